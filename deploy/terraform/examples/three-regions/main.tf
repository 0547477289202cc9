# Dispatchers in three Regions, all equal, on one master queue and one ledger; a warm standby of both in us-west-2.

# Every resource says its Region; the provider's own is only where it asks who it is. Not where everything is down.
provider "aws" {
  region = var.failed_over ? "us-west-2" : "us-east-1"
}

variable "image" {
  description = "Image pinned by digest; null on the first apply, which makes the registry to push to."
  type        = string
  default     = null
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}

variable "failed_over" {
  description = "us-west-2 is home: see \"The home Region fails\" in docs/operations.md."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether the ledger refuses to be deleted."
  type        = bool
  default     = true
}

module "dispatcher" {
  source = "../.."

  home_region         = "us-east-1"
  image               = var.image
  deletion_protection = var.deletion_protection
  regions = {
    us-east-1 = {
      cidr               = "10.10.0.0/20"
      availability_zones = ["us-east-1a", "us-east-1b"]
    }
    us-west-2 = {
      cidr               = "10.20.0.0/20"
      availability_zones = ["us-west-2a", "us-west-2b"]
    }
    eu-west-1 = {
      cidr               = "10.30.0.0/20"
      availability_zones = ["eu-west-1a", "eu-west-1b"]
      models             = ["gpt-l-7b", "sd-xl"] # what its workers serve; null: every model
    }
  }
  spot_warnings  = true
  standby_region = "us-west-2"
  failed_over    = var.failed_over
  alarm_emails   = var.alarm_emails
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
