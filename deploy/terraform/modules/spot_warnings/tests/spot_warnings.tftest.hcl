mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region      = "eu-west-1"
  home_region = "us-east-1"
  queue_arn   = "arn:aws:sqs:us-east-1:123456789012:dispatcher-spot-warnings"
  name        = "dispatcher-spot-warnings"
}

run "passes_warnings_on_to_home" {
  command = plan

  assert {
    condition     = aws_cloudwatch_event_target.this.arn == "arn:aws:events:us-east-1:123456789012:event-bus/default" && aws_cloudwatch_event_rule.this.region == "eu-west-1"
    error_message = "over home's bus"
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.this[0].policy).Statement[0] == { Effect = "Allow", Action = ["events:PutEvents"], Resource = ["arn:aws:events:us-east-1:123456789012:event-bus/default"] }
    error_message = "and may do nothing else"
  }

  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.this.event_pattern)["detail-type"] == ["EC2 Spot Instance Interruption Warning"]
    error_message = "warnings only"
  }
}

run "puts_them_into_the_queue_at_home" {
  command = plan

  variables {
    region = "us-east-1"
  }

  assert {
    condition     = aws_cloudwatch_event_target.this.arn == "arn:aws:sqs:us-east-1:123456789012:dispatcher-spot-warnings" && length(aws_iam_role.this) == 0
    error_message = "straight, without a role"
  }
}
