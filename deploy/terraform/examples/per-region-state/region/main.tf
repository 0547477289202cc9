# One Region: its queue, and, once the home Region and an image are there, its dispatchers.

provider "aws" {
  region = var.region
}

locals {
  tags    = { Application = var.name }
  service = var.fleet != null && var.image != null && var.cidr != null
}

module "key" {
  source = "../../../modules/key"

  region = var.region
  name   = var.name
  tags   = local.tags
}

module "observability" {
  source = "../../../modules/observability"

  region       = var.region
  name         = var.name
  kms_key_arn  = module.key.arn
  alarm_emails = var.alarm_emails
  queue_names  = ["${var.name}-regional"]
  service_name = local.service ? var.name : null
  tags         = local.tags
}

module "regional_queue" {
  source = "../../../modules/queue"

  region                       = var.region
  name                         = "${var.name}-regional"
  kms_key_arn                  = module.key.arn
  visibility_timeout_seconds   = 3600
  oldest_message_alarm_seconds = 3600
  alarm_topic_arn              = module.observability.alarm_topic_arn
  tags                         = local.tags
}

module "network" {
  source = "../../../modules/network"
  count  = local.service ? 1 : 0

  region             = var.region
  name               = var.name
  cidr               = var.cidr
  availability_zones = var.availability_zones
  kms_key_arn        = module.key.arn
  tags               = local.tags
}

module "service" {
  source = "../../../modules/service"
  count  = local.service ? 1 : 0

  region             = var.region
  name               = var.name
  image              = replace(var.image, "{region}", var.region)
  environment        = var.fleet.environment
  task_policies      = var.fleet.task_policies
  vpc_id             = module.network[0].vpc_id
  subnet_ids         = module.network[0].subnet_ids
  backlog_queue_name = var.fleet.home_region == var.region ? "${var.name}-master" : null
  kms_key_arn        = module.key.arn
  alarm_topic_arn    = module.observability.alarm_topic_arn
  tags               = local.tags
}
