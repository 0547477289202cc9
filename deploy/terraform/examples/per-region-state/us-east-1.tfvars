cidr               = "10.10.0.0/20"
availability_zones = ["us-east-1a", "us-east-1b"]
