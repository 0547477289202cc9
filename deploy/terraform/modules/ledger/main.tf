resource "aws_dynamodb_table" "this" {
  region                      = var.region
  name                        = var.name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "request_id"
  deletion_protection_enabled = var.deletion_protection
  stream_enabled              = length(var.replicas) > 0
  stream_view_type            = length(var.replicas) > 0 ? "NEW_AND_OLD_IMAGES" : null
  tags                        = var.tags

  attribute {
    name = "request_id"
    type = "S"
  }

  ttl {
    attribute_name = "expires_at"
    enabled        = true
  }

  point_in_time_recovery {
    enabled                 = true
    recovery_period_in_days = var.point_in_time_recovery_days
  }

  server_side_encryption {
    enabled     = true
    kms_key_arn = var.kms_key_arn
  }

  dynamic "on_demand_throughput" {
    for_each = var.max_request_units[*]
    content {
      max_read_request_units  = on_demand_throughput.value
      max_write_request_units = on_demand_throughput.value
    }
  }

  dynamic "replica" {
    for_each = var.replicas
    content {
      region_name            = replica.key
      kms_key_arn            = replica.value
      point_in_time_recovery = true
      propagate_tags         = true
    }
  }
}

locals {
  operations = ["GetItem", "BatchGetItem", "PutItem", "UpdateItem", "BatchExecuteStatement"] # what a dispatcher calls
  faults = merge(
    { for metric in ["ReadThrottleEvents", "WriteThrottleEvents"] : lower(metric) => { metric = metric, dimensions = {} } },
    { for operation in local.operations : "system_${lower(operation)}" => { metric = "SystemErrors", dimensions = { Operation = operation } } },
  )
}

resource "aws_cloudwatch_metric_alarm" "faults" {
  region              = var.region
  alarm_name          = "${var.name}-faults"
  alarm_description   = "The ledger throttles or fails: nothing is dispatched without it. See the runbook DispatcherLedgerErrors."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 10
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arn[*]
  ok_actions          = var.alarm_topic_arn[*]
  tags                = var.tags

  metric_query {
    id          = "faults"
    label       = "throttled requests and system errors"
    expression  = join(" + ", [for id in keys(local.faults) : "FILL(${id}, 0)"])
    return_data = true
  }

  dynamic "metric_query" {
    for_each = local.faults
    content {
      id = metric_query.key
      metric {
        namespace   = "AWS/DynamoDB"
        metric_name = metric_query.value.metric
        dimensions  = merge({ TableName = aws_dynamodb_table.this.name }, metric_query.value.dimensions)
        stat        = "Sum"
        period      = 60
      }
    }
  }
}
