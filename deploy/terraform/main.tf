# Master queue and ledger in the home Region; in each Region a queue for its GPU workers and, where enabled, a
# dispatcher. The caller configures the one provider; each resource says its Region.

locals {
  homes       = toset(compact([var.home_region, var.standby_region]))
  dispatchers = { for region, rules in var.regions : region => rules if rules.dispatcher.enabled && var.image != null }
  own_vpcs    = { for region, rules in var.regions : region => rules if rules.dispatcher.enabled && rules.cidr != null }
  registries  = toset(concat([var.home_region], [for region, rules in var.regions : region if rules.dispatcher.enabled]))
  active_home = var.failed_over ? var.standby_region : var.home_region
  tags        = merge({ Application = var.name }, var.tags)
}

module "key" {
  source   = "./modules/key"
  for_each = var.regions

  region = each.key
  name   = var.name
  tags   = local.tags
}

module "observability" {
  source   = "./modules/observability"
  for_each = var.regions

  region       = each.key
  name         = var.name
  kms_key_arn  = module.key[each.key].arn
  alarm_emails = var.alarm_emails
  queue_names  = concat(["${var.name}-regional"], contains(local.homes, each.key) ? ["${var.name}-master"] : [])
  table_name   = each.key == var.home_region ? "${var.name}-ledger" : null
  service_name = contains(keys(local.dispatchers), each.key) ? var.name : null
  tags         = local.tags
}

module "master_queue" {
  source   = "./modules/queue"
  for_each = local.homes

  region                       = each.key
  name                         = "${var.name}-master"
  kms_key_arn                  = module.key[each.key].arn
  visibility_timeout_seconds   = 600
  max_receive_count            = var.max_receive_count
  oldest_message_alarm_seconds = 900
  alarm_topic_arn              = module.observability[each.key].alarm_topic_arn
  tags                         = local.tags
}

module "regional_queue" {
  source   = "./modules/queue"
  for_each = var.regions

  region                       = each.key
  name                         = "${var.name}-regional"
  kms_key_arn                  = module.key[each.key].arn
  visibility_timeout_seconds   = 3600
  max_receive_count            = var.max_receive_count
  oldest_message_alarm_seconds = 3600
  alarm_topic_arn              = module.observability[each.key].alarm_topic_arn
  tags                         = local.tags
}

module "ledger" {
  source = "./modules/ledger"

  region              = var.home_region
  name                = "${var.name}-ledger"
  kms_key_arn         = module.key[var.home_region].arn
  replicas            = { for region in compact([var.standby_region]) : region => module.key[region].arn }
  max_request_units   = var.ledger_max_request_units
  deletion_protection = var.deletion_protection
  alarm_topic_arn     = module.observability[var.home_region].alarm_topic_arn
  tags                = local.tags
}

module "spot_warnings_queue" {
  source = "./modules/queue"
  count  = var.spot_warnings ? 1 : 0

  region                       = var.home_region
  name                         = "${var.name}-spot-warnings"
  kms_key_arn                  = module.key[var.home_region].arn
  visibility_timeout_seconds   = 60
  message_retention_seconds    = 3600 # an old warning is none
  event_rule_name              = "${var.name}-spot-warnings"
  oldest_message_alarm_seconds = 900
  alarm_topic_arn              = module.observability[var.home_region].alarm_topic_arn
  tags                         = local.tags
}

module "spot_warnings" {
  source   = "./modules/spot_warnings"
  for_each = var.spot_warnings ? var.regions : {}

  region                   = each.key
  home_region              = var.home_region
  queue_arn                = module.spot_warnings_queue[0].arn
  name                     = "${var.name}-spot-warnings"
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}

# One fleet for each possible home: what dispatchers need is the same, but for where they take from.
module "fleet" {
  source   = "./modules/fleet"
  for_each = local.homes

  home_region  = each.key
  master_queue = module.master_queue[each.key]
  ledger = {
    table_name = module.ledger.table_name
    arn        = replace(module.ledger.arn, ":${var.home_region}:", ":${each.key}:") # a replica has the same name
  }
  regional_queues = { for region, rules in var.regions : region => merge(module.regional_queue[region], {
    for field in ["weight", "models", "overload_threshold", "drain_per_second", "instances"] : field => rules[field]
  }) }
  kms_key_arns = [for key in module.key : key.arn]
  settings = merge(var.settings, {
    for queue in module.spot_warnings_queue : "DISPATCHER_INTERRUPTION_QUEUE_URL" => queue.url if each.key == var.home_region # it is home's alone
  })
}

module "registry" {
  source   = "./modules/registry"
  for_each = local.registries

  region          = each.key
  name            = var.name
  kms_key_arn     = module.key[each.key].arn
  replica_regions = each.key == var.home_region && var.replicate_images ? setsubtract(local.registries, [var.home_region]) : []
  tags            = local.tags
}

module "network" {
  source   = "./modules/network"
  for_each = local.own_vpcs

  region                   = each.key
  name                     = var.name
  cidr                     = each.value.cidr
  availability_zones       = each.value.availability_zones
  nat                      = each.value.nat
  interface_endpoints      = each.value.interface_endpoints
  kms_key_arn              = module.key[each.key].arn
  log_retention_days       = var.log_retention_days
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}

module "service" {
  source   = "./modules/service"
  for_each = local.dispatchers

  region                   = each.key
  name                     = var.name
  image                    = replace(var.image, "{region}", each.key)
  environment              = module.fleet[local.active_home].environment
  task_policies            = { for region, fleet in module.fleet : region => fleet.policies["dispatcher"] } # IAM may be out when a home is
  http_token_secret_arn    = each.value.dispatcher.http_token_secret_arn
  vpc_id                   = each.value.cidr != null ? module.network[each.key].vpc_id : each.value.vpc_id
  subnet_ids               = each.value.cidr != null ? module.network[each.key].subnet_ids : each.value.subnet_ids
  egress_cidrs             = each.value.dispatcher.egress_cidrs
  scraper_cidrs            = each.value.dispatcher.scraper_cidrs
  cpu                      = each.value.dispatcher.cpu
  memory                   = each.value.dispatcher.memory
  min_tasks                = each.value.dispatcher.min_tasks
  max_tasks                = each.value.dispatcher.max_tasks
  backlog_queue_name       = each.key == local.active_home ? "${var.name}-master" : null
  kms_key_arn              = module.key[each.key].arn
  log_retention_days       = var.log_retention_days
  alarm_topic_arn          = module.observability[each.key].alarm_topic_arn
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}
