# Tasks in a VPC that is there. Its private subnets need a way out to SQS and DynamoDB of every Region.

provider "aws" {
  region = "us-east-1"
}

variable "image" {
  description = "Image pinned by digest; null on the first apply, which makes the registry to push to."
  type        = string
  default     = null
}

variable "vpc_id" {
  description = "VPC of the tasks."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, in two zones or more."
  type        = list(string)
}

variable "scraper_cidrs" {
  description = "Addresses of the Prometheus that reads the tasks' metrics."
  type        = list(string)
  default     = []
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
      vpc_id     = var.vpc_id
      subnet_ids = var.subnet_ids
      dispatcher = { scraper_cidrs = var.scraper_cidrs }
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
