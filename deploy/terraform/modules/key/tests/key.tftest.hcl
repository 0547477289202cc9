mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region = "eu-west-1"
  name   = "dispatcher"
}

run "rotates_and_is_for_logs_of_its_own_region" {
  command = plan

  assert {
    condition     = aws_kms_key.this.enable_key_rotation && aws_kms_key.this.region == "eu-west-1" && aws_kms_alias.this.region == "eu-west-1"
    error_message = "the key must rotate, and be in its Region"
  }

  assert {
    condition = anytrue([
      for statement in jsondecode(aws_kms_key.this.policy).Statement :
      try(statement.Principal.Service, "") == "logs.eu-west-1.amazonaws.com"
    ])
    error_message = "CloudWatch Logs of the Region must be able to use it"
  }

  assert {
    condition = [for statement in jsondecode(aws_kms_key.this.policy).Statement : try(statement.Principal.Service, "account")] == [
      "account", "logs.eu-west-1.amazonaws.com", "cloudwatch.amazonaws.com", "events.amazonaws.com",
    ]
    error_message = "the account, logs, alarms on their way to the topic, warnings on theirs to the queue"
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_kms_key.this.policy).Statement :
      can(statement.Condition) || statement.Principal == { AWS = "arn:aws:iam::123456789012:root" }
    ])
    error_message = "services use it for this account only"
  }
}
