# The home Region's own: master queue, ledger, registry; and what all dispatchers work on, as plain values.
# `../apply` runs the roots in order; each has a state of its own, so a Region that is down blocks no other's apply.

provider "aws" {
  region = var.home_region
}

locals {
  tags = { Application = var.name }
}

module "key" {
  source = "../../../modules/key"

  region = var.home_region
  name   = "${var.name}-home"
  tags   = local.tags
}

module "observability" {
  source = "../../../modules/observability"

  region       = var.home_region
  name         = "${var.name}-home"
  kms_key_arn  = module.key.arn
  alarm_emails = var.alarm_emails
  queue_names  = ["${var.name}-master"]
  table_name   = "${var.name}-ledger"
  tags         = local.tags
}

module "master_queue" {
  source = "../../../modules/queue"

  region                       = var.home_region
  name                         = "${var.name}-master"
  kms_key_arn                  = module.key.arn
  visibility_timeout_seconds   = 600
  max_receive_count            = var.max_receive_count
  oldest_message_alarm_seconds = 900
  alarm_topic_arn              = module.observability.alarm_topic_arn
  tags                         = local.tags
}

module "ledger" {
  source = "../../../modules/ledger"

  region              = var.home_region
  name                = "${var.name}-ledger"
  kms_key_arn         = module.key.arn
  max_request_units   = var.ledger_max_request_units
  deletion_protection = var.deletion_protection
  alarm_topic_arn     = module.observability.alarm_topic_arn
  tags                = local.tags
}

module "registry" {
  source = "../../../modules/registry"

  region          = var.home_region
  name            = var.name
  kms_key_arn     = module.key.arn
  replica_regions = var.replicate_images ? setsubtract(keys(var.regional_queues), [var.home_region]) : []
  tags            = local.tags
}

module "spot_warnings_queue" {
  source = "../../../modules/queue"
  count  = var.spot_warnings ? 1 : 0

  region                       = var.home_region
  name                         = "${var.name}-spot-warnings"
  kms_key_arn                  = module.key.arn
  visibility_timeout_seconds   = 60
  message_retention_seconds    = 3600 # an old warning is none
  event_rule_name              = "${var.name}-spot-warnings"
  oldest_message_alarm_seconds = 900
  alarm_topic_arn              = module.observability.alarm_topic_arn
  tags                         = local.tags
}

module "fleet" {
  source = "../../../modules/fleet"

  home_region     = var.home_region
  master_queue    = module.master_queue
  ledger          = module.ledger
  regional_queues = { for region, queue in var.regional_queues : region => merge(queue, try(var.regions[region], {})) }
  kms_key_arns    = concat([module.key.arn], [for queue in var.regional_queues : queue.kms_key_arn])
  settings        = merge(var.settings, { for queue in module.spot_warnings_queue : "DISPATCHER_INTERRUPTION_QUEUE_URL" => queue.url })
}
