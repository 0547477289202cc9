mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region        = "us-west-2"
  name          = "dispatcher"
  image         = "123456789012.dkr.ecr.us-west-2.amazonaws.com/dispatcher@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  environment   = { DISPATCHER_HOME_REGION = "us-east-1" }
  task_policies = { us-east-1 = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  vpc_id        = "vpc-1"
  subnet_ids    = ["subnet-1", "subnet-2"]
  kms_key_arn   = "arn:aws:kms:us-west-2:123456789012:key/1"
}

run "runs_a_container_that_can_do_nothing_else" {
  command = plan

  assert {
    condition = alltrue([
      for container in jsondecode(aws_ecs_task_definition.this.container_definitions) :
      container.readonlyRootFilesystem && container.user == "10001:10001" && container.linuxParameters.capabilities.drop == ["ALL"]
    ])
    error_message = "read-only, non-root, no capabilities"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.this.container_definitions)[0].stopTimeout == 120
    error_message = "a drain needs its 100 s"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.this.container_definitions)[0].healthCheck.command == ["CMD", "dispatcher", "healthcheck"]
    error_message = "ECS does not read the image's own health check"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.this.container_definitions)[0].logConfiguration.options.mode == "non-blocking"
    error_message = "logs never block"
  }

  assert {
    condition     = aws_ecs_task_definition.this.runtime_platform[0].cpu_architecture == "ARM64"
    error_message = "ARM64"
  }

  assert {
    condition     = { for variable in jsondecode(aws_ecs_task_definition.this.container_definitions)[0].environment : variable.name => variable.value } == { DISPATCHER_HOME_REGION = "us-east-1", DISPATCHER_REVISION = "0123456789ab" }
    error_message = "the environment as given, and which image runs"
  }

  assert {
    condition     = !can(jsondecode(aws_ecs_task_definition.this.container_definitions)[0].secrets)
    error_message = "no secrets unless asked for"
  }
}

run "is_private" {
  command = plan

  assert {
    condition     = !aws_ecs_service.this.network_configuration[0].assign_public_ip && length(aws_vpc_security_group_ingress_rule.scraper) == 0
    error_message = "no public address, nothing comes in"
  }

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_egress_rule.tls : rule.from_port == 443 && rule.to_port == 443])
    error_message = "out by TLS only"
  }
}

run "goes_back_when_a_deployment_fails" {
  command = plan

  assert {
    condition     = aws_ecs_service.this.deployment_circuit_breaker[0].rollback && aws_ecs_service.this.alarms[0].rollback && aws_ecs_service.this.alarms[0].alarm_names == toset(["dispatcher-errors"])
    error_message = "circuit breaker and alarm"
  }

  assert {
    condition     = aws_ecs_service.this.deployment_minimum_healthy_percent == 100 && aws_ecs_service.this.deployment_maximum_percent == 200
    error_message = "new ones start before old ones stop"
  }
}

run "rings_when_tasks_are_missing_or_complain" {
  command = plan

  assert {
    condition     = aws_cloudwatch_metric_alarm.tasks.comparison_operator == "LessThanThreshold" && aws_cloudwatch_metric_alarm.tasks.threshold == 2 && aws_cloudwatch_metric_alarm.tasks.treat_missing_data == "breaching"
    error_message = "fewer than min_tasks"
  }

  assert {
    condition     = alltrue([for word in ["level = \"error\"", "start.waiting", "poll.failed", "call.failed"] : strcontains(aws_cloudwatch_log_metric_filter.errors.pattern, word)])
    error_message = "errors, and a task that does not get what it needs"
  }

  assert {
    condition = (
      aws_cloudwatch_metric_alarm.errors.comparison_operator == "GreaterThanThreshold"
      && aws_cloudwatch_metric_alarm.errors.metric_name == aws_cloudwatch_log_metric_filter.errors.metric_transformation[0].name
      && aws_cloudwatch_metric_alarm.errors.namespace == aws_cloudwatch_log_metric_filter.errors.metric_transformation[0].namespace
    )
    error_message = "the alarm is of what the filter counts"
  }

  assert {
    condition = { for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement : statement.Sid => join(" ", statement.Action) } == {
      WriteLogs       = "logs:CreateLogStream logs:PutLogEvents"
      PullImage       = "ecr:BatchCheckLayerAvailability ecr:BatchGetImage ecr:GetDownloadUrlForLayer"
      LogInToRegistry = "ecr:GetAuthorizationToken"
    }
    error_message = "what starting a task takes, and no more"
  }
}

run "scales_on_cpu_away_from_home" {
  command = plan

  assert {
    condition     = length(aws_appautoscaling_policy.backlog) == 0
    error_message = "scaling sees no metric of another Region"
  }

  assert {
    condition     = aws_appautoscaling_target.this.min_capacity == 2 && aws_appautoscaling_target.this.resource_id == "service/dispatcher/dispatcher"
    error_message = "two tasks at least"
  }
}

run "scales_on_backlog_per_task_at_home" {
  command = plan

  variables {
    backlog_queue_name = "dispatcher-master"
  }

  assert {
    condition = anytrue([
      for metric in aws_appautoscaling_policy.backlog[0].target_tracking_scaling_policy_configuration[0].customized_metric_specification[0].metrics :
      try(one(metric.metric_stat[0].metric[0].dimensions).value, "") == "dispatcher-master"
    ])
    error_message = "the master queue's backlog"
  }

  assert {
    condition = one([
      for metric in aws_appautoscaling_policy.backlog[0].target_tracking_scaling_policy_configuration[0].customized_metric_specification[0].metrics : metric.expression if metric.return_data
    ]) == "FILL(backlog, 0) / IF(FILL(tasks, 1) > 0, FILL(tasks, 1), 1)"
    error_message = "for each task that runs, and never divided by nothing"
  }
}

run "trusts_ecs_of_its_region_and_account_only" {
  command = plan

  assert {
    condition = alltrue([
      for role in [aws_iam_role.task, aws_iam_role.execution] :
      jsondecode(role.assume_role_policy).Statement[0].Condition.ArnLike["aws:SourceArn"] == "arn:aws:ecs:us-west-2:123456789012:*" && endswith(role.name, "-us-west-2")
    ])
    error_message = "roles are global: the Region is in name and trust"
  }

  assert {
    condition = anytrue([
      for statement in jsondecode(aws_iam_role_policy.execution.policy).Statement :
      statement.Resource == ["arn:aws:ecr:us-west-2:123456789012:repository/dispatcher"]
    ])
    error_message = "it pulls this one image repository"
  }
}

run "takes_a_token_as_a_secret" {
  command = plan

  variables {
    http_token_secret_arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:token-abcdef"
    scraper_cidrs         = ["10.0.0.0/16"]
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.this.container_definitions)[0].secrets == [{ name = "DISPATCHER_HTTP_TOKEN", valueFrom = "arn:aws:secretsmanager:us-west-2:123456789012:secret:token-abcdef" }]
    error_message = "from the secret store"
  }

  assert {
    condition     = strcontains(aws_iam_role_policy.execution.policy, "secretsmanager:GetSecretValue")
    error_message = "and may be read at the start"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.scraper["10.0.0.0/16"].from_port == 8080
    error_message = "the scraper comes in"
  }
}

run "needs_no_right_for_a_registry_elsewhere" {
  command = plan

  variables {
    image = "registry.example.org/team/dispatcher@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.execution.policy, "ecr:")
    error_message = "no ECR, no right to it"
  }
}

run "refuses_a_tag" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.us-west-2.amazonaws.com/dispatcher:latest"
  }

  expect_failures = [var.image]
}

run "refuses_to_scale_to_nothing" {
  command = plan

  variables {
    min_tasks = 0
  }

  expect_failures = [var.min_tasks]
}
