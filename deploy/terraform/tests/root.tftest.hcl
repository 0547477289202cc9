mock_provider "aws" {
  source          = "./tests/mocks"
  override_during = plan
}

variables {
  home_region = "us-east-1"
  image       = "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  regions = {
    us-east-1 = { cidr = "10.10.0.0/20", availability_zones = ["us-east-1a", "us-east-1b"] }
    us-west-2 = { vpc_id = "vpc-9", subnet_ids = ["subnet-9"], weight = 2 }
    eu-west-1 = { dispatcher = { enabled = false }, models = ["sd-xl"] }
  }
}

run "puts_everything_where_it_belongs" {
  command = plan

  assert {
    condition     = keys(module.master_queue) == ["us-east-1"] && length(module.regional_queue) == 3
    error_message = "one master queue at home, a regional queue in each Region"
  }

  assert {
    condition     = toset(keys(module.service)) == toset(["us-east-1", "us-west-2"])
    error_message = "a service where it is enabled"
  }

  assert {
    condition     = keys(module.network) == ["us-east-1"]
    error_message = "a VPC where none was given"
  }
}

run "speaks_the_daemons_settings" {
  command = plan

  assert {
    condition     = output.dispatcher_environment.DISPATCHER_HOME_REGION == "us-east-1" && output.dispatcher_environment.DISPATCHER_LEDGER_TABLE == "dispatcher-ledger"
    error_message = "home and ledger"
  }

  assert {
    condition = [for region, rules in jsondecode(output.dispatcher_environment.DISPATCHER_REGIONS) : "${region}: ${join(", ", keys(rules))}"] == [
      "eu-west-1: models, queue_url", "us-east-1: queue_url", "us-west-2: queue_url, weight",
    ]
    error_message = "every Region, with what was said of it"
  }

  assert {
    condition     = keys(output.master_queues) == ["us-east-1"] && keys(output.policies) == ["us-east-1"]
    error_message = "no standby unless asked for"
  }
}

run "passes_spot_warnings_on_when_asked" {
  command = plan

  variables {
    spot_warnings = true
  }

  assert {
    condition     = length(module.spot_warnings) == 3 && output.dispatcher_environment.DISPATCHER_INTERRUPTION_QUEUE_URL != ""
    error_message = "a rule in every Region, and the daemon knows the queue"
  }
}

run "has_a_standby_when_asked" {
  command = plan

  variables {
    standby_region = "us-west-2"
  }

  assert {
    condition     = toset(keys(module.master_queue)) == toset(["us-east-1", "us-west-2"])
    error_message = "a second master queue"
  }

  assert {
    condition     = output.dispatcher_environment.DISPATCHER_HOME_REGION == "us-east-1"
    error_message = "home is home until somebody says otherwise"
  }

  assert {
    condition     = strcontains(output.policies["us-west-2"]["dispatcher"], "arn:aws:dynamodb:us-west-2:123456789012:table/dispatcher-ledger")
    error_message = "rights to the replica are there before they are needed"
  }
}

run "fails_over_by_one_variable" {
  command = plan

  variables {
    standby_region = "us-west-2"
    failed_over    = true
  }

  assert {
    condition     = output.dispatcher_environment.DISPATCHER_HOME_REGION == "us-west-2" && output.dispatcher_environment.DISPATCHER_LEDGER_TABLE == "dispatcher-ledger"
    error_message = "the standby is home"
  }

  assert {
    condition     = toset(keys(module.master_queue)) == toset(["us-east-1", "us-west-2"])
    error_message = "and nothing of the old home is touched"
  }
}

run "refuses_to_fail_over_to_nowhere" {
  command = plan

  variables {
    failed_over = true
  }

  expect_failures = [var.failed_over]
}

run "has_no_service_before_there_is_an_image" {
  command = plan

  variables {
    image = null
  }

  assert {
    condition     = length(module.service) == 0 && output.image == "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher"
    error_message = "the registry first"
  }
}

run "refuses_a_home_that_is_no_region_of_ours" {
  command = plan

  variables {
    home_region = "ap-south-1"
  }

  expect_failures = [var.home_region]
}

run "refuses_a_tag" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher:1.0"
  }

  expect_failures = [var.image]
}

run "refuses_a_dispatcher_without_a_network" {
  command = plan

  variables {
    regions = { us-east-1 = {} }
  }

  expect_failures = [var.regions]
}

run "refuses_networks_that_overlap" {
  command = plan

  variables {
    regions = {
      us-east-1 = { cidr = "10.10.0.0/16", availability_zones = ["us-east-1a"] }
      us-west-2 = { cidr = "10.10.16.0/20", availability_zones = ["us-west-2a"] }
    }
  }

  expect_failures = [var.regions]
}

run "refuses_a_standby_at_home" {
  command = plan

  variables {
    standby_region = "us-east-1"
  }

  expect_failures = [var.standby_region]
}
