locals {
  dead_letter_retention_seconds = 1209600 # 14 days, SQS's most
  long_poll_seconds             = 20
  max_message_bytes             = 1048576
}

resource "aws_sqs_queue" "this" {
  region                     = var.region
  name                       = var.name
  visibility_timeout_seconds = var.visibility_timeout_seconds
  message_retention_seconds  = var.message_retention_seconds
  receive_wait_time_seconds  = local.long_poll_seconds
  max_message_size           = local.max_message_bytes
  kms_master_key_id          = var.kms_key_arn
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null # the two exclude each other
  tags                       = var.tags
}

resource "aws_sqs_queue" "dead_letters" {
  region                     = var.region
  name                       = "${var.name}-dlq"
  visibility_timeout_seconds = var.visibility_timeout_seconds
  message_retention_seconds  = local.dead_letter_retention_seconds
  receive_wait_time_seconds  = local.long_poll_seconds
  max_message_size           = local.max_message_bytes
  kms_master_key_id          = var.kms_key_arn
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  tags                       = var.tags
}

# Resources of their own: inside aws_sqs_queue the two would need each other.
resource "aws_sqs_queue_redrive_policy" "this" {
  region    = var.region
  queue_url = aws_sqs_queue.this.url
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = var.max_receive_count
  })
}

resource "aws_sqs_queue_redrive_allow_policy" "this" {
  region    = var.region
  queue_url = aws_sqs_queue.dead_letters.url
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.this.arn]
  })
}

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

# What is not TLS is refused; who may do what is said by identity policies, but for EventBridge, which has no identity.
resource "aws_sqs_queue_policy" "this" {
  for_each = {
    queue        = { url = aws_sqs_queue.this.url, arn = aws_sqs_queue.this.arn, rules = var.event_rule_name[*] }
    dead_letters = { url = aws_sqs_queue.dead_letters.url, arn = aws_sqs_queue.dead_letters.arn, rules = [] }
  }

  region    = var.region
  queue_url = each.value.url
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Principal = "*"
        Action = [
          "sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility",
          "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:PurgeQueue", "sqs:SetQueueAttributes",
        ]
        Resource  = each.value.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }],
      [for rule in each.value.rules : {
        Sid       = "EventsOfOneRule"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = ["sqs:SendMessage"]
        Resource  = each.value.arn
        Condition = { ArnEquals = {
          "aws:SourceArn" = "arn:${data.aws_partition.this.partition}:events:${var.region}:${data.aws_caller_identity.this.account_id}:rule/${rule}"
        } }
      }],
    )
  })
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  region              = var.region
  alarm_name          = "${var.name}-dead-letters"
  alarm_description   = "Messages were given up: see the runbook DispatcherDeadLetters."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.dead_letters.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching" # SQS says nothing of a queue that was idle for hours
  alarm_actions       = var.alarm_topic_arn[*]
  ok_actions          = var.alarm_topic_arn[*]
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "oldest_message" {
  region              = var.region
  alarm_name          = "${var.name}-oldest-message"
  alarm_description   = "Messages wait longer than ${var.oldest_message_alarm_seconds} s: see the runbooks DispatcherMessageAge and DispatcherRegionalBacklog."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = aws_sqs_queue.this.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.oldest_message_alarm_seconds
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arn[*]
  ok_actions          = var.alarm_topic_arn[*]
  tags                = var.tags
}
