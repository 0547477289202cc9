mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region             = "us-west-2"
  name               = "dispatcher"
  cidr               = "10.20.0.0/20"
  availability_zones = ["us-west-2a", "us-west-2b"]
  kms_key_arn        = "arn:aws:kms:us-west-2:123456789012:key/1"
}

run "has_private_subnets_with_one_way_out" {
  command = plan

  assert {
    condition     = length(aws_subnet.private) == 2 && aws_subnet.private["us-west-2a"].cidr_block == "10.20.0.0/23" && aws_subnet.private["us-west-2b"].cidr_block == "10.20.2.0/23"
    error_message = "one private subnet in each zone"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.out) == 2
    error_message = "one gateway, for both zones"
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.public : !subnet.map_public_ip_on_launch])
    error_message = "nothing gets a public address by itself"
  }
}

run "has_a_way_out_in_each_zone" {
  command = plan

  variables {
    nat = "per_az"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 2 && length(aws_eip.nat) == 2
    error_message = "two gateways"
  }
}

run "has_no_way_out_but_endpoints" {
  command = plan

  variables {
    nat                 = "none"
    interface_endpoints = ["sqs", "logs", "ecr.api", "ecr.dkr"]
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 0 && length(aws_internet_gateway.this) == 0 && length(aws_route.out) == 0
    error_message = "no gateway"
  }

  assert {
    condition     = aws_vpc_endpoint.interface["sqs"].service_name == "com.amazonaws.us-west-2.sqs" && length(aws_vpc_endpoint.gateway) == 2
    error_message = "endpoints of its own Region"
  }
}

run "lets_nothing_in_and_writes_down_what_was_refused" {
  command = plan

  assert {
    condition     = aws_flow_log.refused.traffic_type == "REJECT" && aws_cloudwatch_log_group.flow.kms_key_id == "arn:aws:kms:us-west-2:123456789012:key/1"
    error_message = "flow log, encrypted"
  }

  assert {
    condition = [for statement in jsondecode(aws_iam_role_policy.flow.policy).Statement : join(" ", statement.Action)] == [
      "logs:CreateLogStream logs:PutLogEvents logs:DescribeLogStreams", "logs:DescribeLogGroups",
    ]
    error_message = "it may write its log"
  }

  assert {
    condition     = aws_iam_role.flow.name == "dispatcher-flow-us-west-2"
    error_message = "roles are global: the Region is in the name"
  }
}

run "refuses_no_way_out_at_all" {
  command = plan

  variables {
    nat                 = "none"
    interface_endpoints = ["sqs"]
  }

  expect_failures = [var.interface_endpoints]
}

run "refuses_a_block_too_small" {
  command = plan

  variables {
    cidr = "10.20.0.0/28"
  }

  expect_failures = [var.cidr]
}

run "refuses_a_way_out_that_is_none" {
  command = plan

  variables {
    nat = "two"
  }

  expect_failures = [var.nat]
}
