# What must work when Prometheus does not: alarms' topic, and a dashboard of what AWS itself knows.

data "aws_caller_identity" "this" {}

resource "aws_sns_topic" "alarms" {
  region            = var.region
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
  tags              = var.tags
}

resource "aws_sns_topic_policy" "alarms" {
  region = var.region
  arn    = aws_sns_topic.alarms.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "AlarmsOfThisAccount"
      Effect    = "Allow"
      Principal = { Service = "cloudwatch.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alarms.arn
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
    }]
  })
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = var.alarm_emails
  region    = var.region
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  dead_letters = [for queue in var.queue_names : "${queue}-dlq"]
  queues       = { region = var.region, period = 60, stat = "Maximum", view = "timeSeries" }
  graphs = concat(
    [
      merge(local.queues, {
        title   = "Waiting messages"
        metrics = [for queue in var.queue_names : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", queue]]
      }),
      merge(local.queues, {
        title   = "Age of the oldest message (s)"
        metrics = [for queue in var.queue_names : ["AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", queue]]
      }),
      merge(local.queues, {
        title   = "Dead letters"
        metrics = [for queue in local.dead_letters : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", queue]]
      }),
    ],
    [for table in var.table_name[*] : merge(local.queues, {
      title = "Ledger: write units, throttled requests"
      stat  = "Sum"
      metrics = [
        for metric in ["ConsumedWriteCapacityUnits", "WriteThrottleEvents", "ReadThrottleEvents"] :
        ["AWS/DynamoDB", metric, "TableName", table]
      ]
    })],
    [for service in var.service_name[*] : merge(local.queues, {
      title = "Tasks, and the CPU they use (%)"
      metrics = [
        ["ECS/ContainerInsights", "RunningTaskCount", "ClusterName", service, "ServiceName", service],
        ["AWS/ECS", "CPUUtilization", "ClusterName", service, "ServiceName", service],
      ]
    })],
  )
}

resource "aws_cloudwatch_dashboard" "this" {
  region         = var.region
  dashboard_name = "${var.name}-${var.region}"
  dashboard_body = jsonencode({
    widgets = [
      for number, graph in local.graphs :
      { type = "metric", x = number % 2 * 12, y = floor(number / 2) * 6, width = 12, height = 6, properties = graph }
    ]
  })
}
