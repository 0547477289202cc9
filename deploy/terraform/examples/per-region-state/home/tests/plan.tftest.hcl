mock_provider "aws" {
  source          = "../../../tests/mocks"
  override_during = plan
}

variables {
  home_region = "us-east-1"
  regional_queues = {
    eu-west-1 = {
      url                   = "https://sqs.eu-west-1.amazonaws.com/123456789012/dispatcher-regional"
      arn                   = "arn:aws:sqs:eu-west-1:123456789012:dispatcher-regional"
      dead_letter_queue_arn = "arn:aws:sqs:eu-west-1:123456789012:dispatcher-regional-dlq"
      kms_key_arn           = "arn:aws:kms:eu-west-1:123456789012:key/1"
    }
  }
}

run "knows_what_every_dispatcher_needs" {
  command = plan

  variables {
    regions = { eu-west-1 = { weight = 0.5 } }
  }

  assert {
    condition     = jsondecode(output.dispatcher_environment.DISPATCHER_REGIONS)["eu-west-1"].weight == 0.5
    error_message = "what is said of a Region reaches the daemon"
  }

  assert {
    condition     = output.fleet.environment == output.dispatcher_environment && strcontains(output.fleet.task_policies["us-east-1"], "key/1")
    error_message = "environment and rights, keys of the Regions among them"
  }
}
