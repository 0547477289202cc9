variable "region" {
  description = "Region of the VPC."
  type        = string
}

variable "name" {
  description = "Name of the VPC."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC: a /16 to a /22."
  type        = string

  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(tonumber(split("/", var.cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.cidr)[1]), 99) <= 22
    error_message = "An IPv4 block of /16 to /22, such as 10.10.0.0/20."
  }
}

variable "availability_zones" {
  description = "Zones with a private subnet each, such as [\"us-east-1a\", \"us-east-1b\"]."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 1 && length(var.availability_zones) <= 4
    error_message = "One to four zones."
  }
}

variable "nat" {
  description = "Way out: single (one gateway), per_az (one in each zone), none (then every AWS service that tasks call needs an endpoint; SQS and DynamoDB of other Regions have none)."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["none", "single", "per_az"], var.nat)
    error_message = "none, single or per_az."
  }
}

variable "interface_endpoints" {
  description = "AWS services reached inside the VPC, such as [\"sqs\", \"logs\", \"ecr.api\", \"ecr.dkr\", \"kms\"]. Each costs in each zone; a NAT gateway reaches them all."
  type        = set(string)
  default     = []

  validation {
    condition     = var.nat != "none" || length(setintersection(var.interface_endpoints, ["sqs", "logs", "ecr.api", "ecr.dkr"])) == 4
    error_message = "Without NAT tasks can neither start nor work but by endpoints: sqs, logs, ecr.api and ecr.dkr at least."
  }
}

variable "kms_key_arn" {
  description = "Key of the same Region for the flow log; its policy lets CloudWatch Logs use it."
  type        = string
}

variable "log_retention_days" {
  description = "How long the flow log is kept."
  type        = number
  default     = 365
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the role; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
