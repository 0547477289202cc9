mock_provider "aws" {
  source          = "../../../tests/mocks"
  override_during = plan
}

variables {
  region             = "eu-west-1"
  cidr               = "10.30.0.0/20"
  availability_zones = ["eu-west-1a", "eu-west-1b"]
  image              = "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

run "is_only_a_queue_before_home_is_there" {
  command = plan

  assert {
    condition     = output.service == null && output.queue.url != ""
    error_message = "the queue, which home has to know first"
  }
}

run "has_dispatchers_once_home_is_there" {
  command = plan

  variables {
    fleet = {
      home_region   = "us-east-1"
      environment   = { DISPATCHER_HOME_REGION = "us-east-1" }
      task_policies = { us-east-1 = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
    }
  }

  assert {
    condition     = output.service.dns_name == "dispatcher.dispatcher.internal"
    error_message = "a service, found by name"
  }
}
