cidr               = "10.20.0.0/20"
availability_zones = ["us-west-2a", "us-west-2b"]
