mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

run "before_there_is_an_image" {
  command = plan

  assert {
    condition     = length(jsondecode(output.dispatcher_environment.DISPATCHER_REGIONS)) == 3
    error_message = "three Regions"
  }
}

run "with_an_image" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }

  assert {
    condition     = output.dispatcher_environment.DISPATCHER_HOME_REGION == "us-east-1"
    error_message = "home"
  }
}

run "failed_over" {
  command = plan

  variables {
    failed_over = true
  }

  assert {
    condition     = output.dispatcher_environment.DISPATCHER_HOME_REGION == "us-west-2"
    error_message = "the standby is home"
  }
}
