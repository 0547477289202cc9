# One Region: its queue, and, once the home Region and an image are there, its dispatchers.

provider "aws" {
  region = var.region
}

locals {
  tags    = { Application = var.name }
  service = var.fleet != null && var.image != null && (var.cidr != null || var.vpc_id != null)
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
  max_receive_count            = var.max_receive_count
  oldest_message_alarm_seconds = 3600
  alarm_topic_arn              = module.observability.alarm_topic_arn
  tags                         = local.tags
}

# Home's own is in its root: that is where images are pushed.
module "registry" {
  source = "../../../modules/registry"
  count  = var.fleet == null ? 0 : var.fleet.home_region == var.region ? 0 : 1

  region      = var.region
  name        = var.name
  kms_key_arn = module.key.arn
  tags        = local.tags
}

module "spot_warnings" {
  source = "../../../modules/spot_warnings"
  count  = try(var.fleet.spot_warnings_queue_arn, null) == null ? 0 : 1

  region                   = var.region
  home_region              = var.fleet.home_region
  queue_arn                = var.fleet.spot_warnings_queue_arn
  name                     = "${var.name}-spot-warnings"
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}

module "network" {
  source = "../../../modules/network"
  count  = local.service && var.cidr != null ? 1 : 0

  region                   = var.region
  name                     = var.name
  cidr                     = var.cidr
  availability_zones       = var.availability_zones
  nat                      = var.nat
  interface_endpoints      = var.interface_endpoints
  kms_key_arn              = module.key.arn
  log_retention_days       = var.log_retention_days
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}

module "service" {
  source = "../../../modules/service"
  count  = local.service ? 1 : 0

  region                   = var.region
  name                     = var.name
  image                    = replace(var.image, "{region}", var.region)
  environment              = var.fleet.environment
  task_policies            = var.fleet.task_policies
  http_token_secret_arn    = var.dispatcher.http_token_secret_arn
  vpc_id                   = var.cidr != null ? module.network[0].vpc_id : var.vpc_id
  subnet_ids               = var.cidr != null ? module.network[0].subnet_ids : var.subnet_ids
  egress_cidrs             = var.dispatcher.egress_cidrs
  scraper_cidrs            = var.dispatcher.scraper_cidrs
  cpu                      = var.dispatcher.cpu
  memory                   = var.dispatcher.memory
  min_tasks                = var.dispatcher.min_tasks
  max_tasks                = var.dispatcher.max_tasks
  backlog_queue_name       = var.fleet.home_region == var.region ? "${var.name}-master" : null
  kms_key_arn              = module.key.arn
  log_retention_days       = var.log_retention_days
  alarm_topic_arn          = module.observability.alarm_topic_arn
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}
