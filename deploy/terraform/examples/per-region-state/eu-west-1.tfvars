cidr               = "10.30.0.0/20"
availability_zones = ["eu-west-1a", "eu-west-1b"]
