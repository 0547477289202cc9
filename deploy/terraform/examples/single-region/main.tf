# The small setup: dispatchers in the home Region only, one NAT gateway, queues for GPU workers in three Regions.

provider "aws" {
  region = "us-east-1"
}

variable "image" {
  description = "Image pinned by digest; null on the first apply, which makes the registry to push to."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether the ledger refuses to be deleted."
  type        = bool
  default     = true
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}

module "dispatcher" {
  source = "../.."

  home_region         = "us-east-1"
  image               = var.image
  deletion_protection = var.deletion_protection
  alarm_emails        = var.alarm_emails
  regions = {
    us-east-1 = {
      cidr               = "10.10.0.0/20"
      availability_zones = ["us-east-1a", "us-east-1b"]
    }
    us-west-2 = { dispatcher = { enabled = false } }
    eu-west-1 = { dispatcher = { enabled = false } }
  }
}

output "dispatcher_environment" {
  description = "The environment of every dispatcher command."
  value       = module.dispatcher.dispatcher_environment
}

output "image" {
  description = "The value of var.image, but for \"@sha256:…\"."
  value       = module.dispatcher.image
}

output "repository_url" {
  description = "Where to push the image."
  value       = module.dispatcher.repository_url
}

output "policies" {
  description = "IAM policies for producers, workers and operators."
  value       = module.dispatcher.policies
}

output "services" {
  description = "What Prometheus needs to find the tasks."
  value       = module.dispatcher.services
}

output "regional_queues" {
  description = "Where each Region's GPU workers take requests from."
  value       = module.dispatcher.regional_queues
}

output "master_queues" {
  description = "Where clients send requests."
  value       = module.dispatcher.master_queues
}
