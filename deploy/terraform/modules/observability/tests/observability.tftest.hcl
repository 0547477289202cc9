mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region       = "us-east-1"
  name         = "dispatcher"
  kms_key_arn  = "arn:aws:kms:us-east-1:123456789012:key/1"
  alarm_emails = ["oncall@example.org"]
  queue_names  = ["dispatcher-regional", "dispatcher-master"]
  table_name   = "dispatcher-ledger"
  service_name = "dispatcher"
}

run "tells_people_by_an_encrypted_topic" {
  command = plan

  assert {
    condition     = aws_sns_topic.alarms.kms_master_key_id == "arn:aws:kms:us-east-1:123456789012:key/1"
    error_message = "encrypted"
  }

  assert {
    condition     = one(values(aws_sns_topic_subscription.email)).endpoint == "oncall@example.org"
    error_message = "subscribed"
  }

  assert {
    condition     = jsondecode(aws_sns_topic_policy.alarms.policy).Statement[0].Condition.StringEquals["aws:SourceAccount"] == "123456789012" && jsondecode(aws_sns_topic_policy.alarms.policy).Statement[0].Action == "sns:Publish"
    error_message = "alarms of this account only"
  }
}

run "shows_queues_dead_letters_ledger_and_tasks" {
  command = plan

  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets) == 5
    error_message = "five graphs at home"
  }

  assert {
    condition     = strcontains(aws_cloudwatch_dashboard.this.dashboard_body, "dispatcher-master-dlq")
    error_message = "dead letters are shown"
  }
}

run "shows_less_where_there_is_less" {
  command = plan

  variables {
    table_name   = null
    service_name = null
  }

  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets) == 3
    error_message = "no ledger, no tasks"
  }
}
