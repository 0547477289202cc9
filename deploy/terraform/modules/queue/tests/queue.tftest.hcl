mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region                       = "us-west-2"
  name                         = "dispatcher-regional"
  kms_key_arn                  = "arn:aws:kms:us-west-2:123456789012:key/1"
  visibility_timeout_seconds   = 3600
  oldest_message_alarm_seconds = 900
  alarm_topic_arn              = "arn:aws:sns:us-west-2:123456789012:alarms"
}

run "has_what_the_brief_fixed" {
  command = plan

  assert {
    condition     = aws_sqs_queue.this.visibility_timeout_seconds == 3600 && aws_sqs_queue.this.receive_wait_time_seconds == 20
    error_message = "visibility and long polling"
  }

  assert {
    condition     = jsondecode(aws_sqs_queue_redrive_policy.this.redrive_policy).maxReceiveCount == 3
    error_message = "three receives, then the dead-letter queue"
  }

  assert {
    condition     = jsondecode(aws_sqs_queue_redrive_policy.this.redrive_policy).deadLetterTargetArn == aws_sqs_queue.dead_letters.arn
    error_message = "its own dead-letter queue"
  }

  assert {
    condition     = aws_sqs_queue.dead_letters.message_retention_seconds == 1209600 && aws_sqs_queue.dead_letters.name == "dispatcher-regional-dlq"
    error_message = "dead letters stay 14 days"
  }
}

run "is_encrypted_with_the_key_and_refuses_what_is_not_tls" {
  command = plan

  assert {
    condition = alltrue([
      for queue in [aws_sqs_queue.this, aws_sqs_queue.dead_letters] :
      queue.kms_master_key_id == "arn:aws:kms:us-west-2:123456789012:key/1" && queue.region == "us-west-2"
    ])
    error_message = "both queues, with the Region's key"
  }

  assert {
    condition = length(aws_sqs_queue_policy.this) == 2 && alltrue([
      for policy in values(aws_sqs_queue_policy.this) :
      jsondecode(policy.policy).Version == "2012-10-17"
      && jsondecode(policy.policy).Statement[0].Effect == "Deny"
      && jsondecode(policy.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
      && contains(jsondecode(policy.policy).Statement[0].Action, "sqs:SendMessage")
    ])
    error_message = "both queues refuse what is not TLS"
  }
}

run "lets_one_rule_of_events_in_when_told" {
  command = plan

  variables {
    event_rule_name = "dispatcher-spot-warnings"
  }

  assert {
    condition     = jsondecode(aws_sqs_queue_policy.this["queue"].policy).Statement[1].Condition.ArnEquals["aws:SourceArn"] == "arn:aws:events:us-west-2:123456789012:rule/dispatcher-spot-warnings"
    error_message = "that rule, of this account and Region"
  }

  assert {
    condition     = alltrue([for policy in aws_sqs_queue_policy.this : jsondecode(policy.policy).Statement[0].Effect == "Deny"]) && length(jsondecode(aws_sqs_queue_policy.this["dead_letters"].policy).Statement) == 1
    error_message = "and nobody into the dead letters"
  }
}

run "encrypts_by_itself_without_a_key" {
  command = plan

  variables {
    kms_key_arn = null
  }

  assert {
    condition     = aws_sqs_queue.this.sqs_managed_sse_enabled && aws_sqs_queue.dead_letters.sqs_managed_sse_enabled
    error_message = "SQS's own encryption"
  }
}

run "tells_of_dead_letters_and_of_age" {
  command = plan

  assert {
    condition     = aws_cloudwatch_metric_alarm.dead_letters.dimensions.QueueName == "dispatcher-regional-dlq" && aws_cloudwatch_metric_alarm.dead_letters.threshold == 0
    error_message = "one dead letter is one too many"
  }

  assert {
    condition = alltrue([
      for alarm in [aws_cloudwatch_metric_alarm.dead_letters, aws_cloudwatch_metric_alarm.oldest_message] :
      alarm.comparison_operator == "GreaterThanThreshold" && alarm.treat_missing_data == "notBreaching" && alarm.namespace == "AWS/SQS"
      && alarm.alarm_actions == toset([var.alarm_topic_arn]) && alarm.ok_actions == toset([var.alarm_topic_arn])
    ])
    error_message = "both ring above, and tell the topic"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.dead_letters.metric_name == "ApproximateNumberOfMessagesVisible" && aws_cloudwatch_metric_alarm.oldest_message.metric_name == "ApproximateAgeOfOldestMessage"
    error_message = "of what they say"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.oldest_message.threshold == 900 && aws_cloudwatch_metric_alarm.oldest_message.alarm_actions == toset(["arn:aws:sns:us-west-2:123456789012:alarms"])
    error_message = "the age alarm tells its topic"
  }
}

run "refuses_a_retention_longer_than_dead_letters_have" {
  command = plan

  variables {
    message_retention_seconds = 1209600
  }

  expect_failures = [var.message_retention_seconds]
}

run "refuses_no_receives" {
  command = plan

  variables {
    max_receive_count = 0
  }

  expect_failures = [var.max_receive_count]
}

run "refuses_a_name_whose_dead_letter_queue_could_not_exist" {
  command = plan

  variables {
    name = "a-name.fifo"
  }

  expect_failures = [var.name]
}
