# The daemon on Fargate: cluster, task, service, roles, logs, scaling, discovery, alarms.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

locals {
  account      = data.aws_caller_identity.this.account_id
  partition    = data.aws_partition.this.partition
  port         = 8080 # the daemon's default
  stop_timeout = 120  # Fargate's most; the daemon drains for 100 s at most
  # 123456789012.dkr.ecr.us-east-1.amazonaws.com/name@sha256:… → its repository; other registries need no right
  ecr = try(regex("^(?P<account>\\d{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.[^/]+/(?P<name>[^@:]+)", var.image), null)

  environment = merge({ DISPATCHER_REVISION = substr(split("@sha256:", var.image)[1], 0, 12) }, var.environment)
}

resource "aws_cloudwatch_log_group" "this" {
  region            = var.region
  name              = "/${var.name}/${var.region}/dispatcher"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

# --- who it is ---

locals {
  trust = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = local.account }
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:ecs:${var.region}:${local.account}:*" }
      }
    }]
  })
}

resource "aws_iam_role" "task" {
  name                 = "${var.name}-task-${var.region}" # roles are global: the Region tells them apart
  assume_role_policy   = local.trust
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy" "task" {
  for_each = var.task_policies
  name     = each.key
  role     = aws_iam_role.task.name
  policy   = each.value
}

resource "aws_iam_role" "execution" {
  name                 = "${var.name}-execution-${var.region}"
  assume_role_policy   = local.trust
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy" "execution" {
  name = "start-tasks"
  role = aws_iam_role.execution.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "WriteLogs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${aws_cloudwatch_log_group.this.arn}:*"]
      }],
      [for ecr in local.ecr[*] : {
        Sid      = "PullImage"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = ["arn:${local.partition}:ecr:${ecr.region}:${ecr.account}:repository/${ecr.name}"]
      }],
      [for ecr in local.ecr[*] : {
        Sid      = "LogInToRegistry" # the one action here that knows no resource
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = ["*"]
      }],
      [for secret in var.http_token_secret_arn[*] : {
        Sid      = "ReadToken"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [secret]
      }],
      [for secret in var.http_token_secret_arn[*] : {
        Sid       = "DecryptToken"
        Effect    = "Allow"
        Action    = ["kms:Decrypt"]
        Resource  = [var.kms_key_arn]
        Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" } }
      }],
    )
  })
}

# --- what runs ---

resource "aws_ecs_cluster" "this" {
  region = var.region
  name   = var.name
  tags   = var.tags

  setting {
    name  = "containerInsights" # scaling on backlog needs its count of running tasks
    value = "enabled"
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  region             = var.region
  cluster_name       = aws_ecs_cluster.this.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]
}

resource "aws_ecs_task_definition" "this" {
  region                   = var.region
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn
  tags                     = var.tags

  runtime_platform {
    cpu_architecture        = "ARM64"
    operating_system_family = "LINUX"
  }

  # Only what differs from ECS's defaults, or every plan would show a new revision.
  container_definitions = jsonencode([merge(
    {
      name                   = "dispatcher"
      image                  = var.image
      essential              = true
      user                   = "10001:10001"
      readonlyRootFilesystem = true
      stopTimeout            = local.stop_timeout
      linuxParameters        = { initProcessEnabled = true, capabilities = { drop = ["ALL"] } }
      environment            = [for name, value in local.environment : { name = name, value = value }]
      portMappings           = [{ name = "http", containerPort = local.port, hostPort = local.port, protocol = "tcp" }]
      # ECS ignores the image's own. It asks whether the process is well, never whether AWS is.
      healthCheck = { command = ["CMD", "dispatcher", "healthcheck"], interval = 15, timeout = 5, retries = 3, startPeriod = 30 }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = aws_cloudwatch_log_group.this.name
          awslogs-region        = var.region
          awslogs-stream-prefix = "dispatcher"
          mode                  = "non-blocking" # or a stall of CloudWatch would stop the event loop at its next log line
          max-buffer-size       = "25m"
        }
      }
    },
    var.http_token_secret_arn == null ? {} : { secrets = [{ name = "DISPATCHER_HTTP_TOKEN", valueFrom = var.http_token_secret_arn }] },
  )])
}

resource "aws_security_group" "this" {
  region      = var.region
  name        = "${var.name}-tasks"
  description = "Tasks of the dispatcher"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-tasks" })
}

resource "aws_vpc_security_group_egress_rule" "tls" {
  for_each          = toset(var.egress_cidrs)
  region            = var.region
  security_group_id = aws_security_group.this.id
  description       = "AWS, by TLS"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  tags              = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "scraper" {
  for_each          = toset(var.scraper_cidrs)
  region            = var.region
  security_group_id = aws_security_group.this.id
  description       = "Metrics and status"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = local.port
  to_port           = local.port
  tags              = var.tags
}

resource "aws_ecs_service" "this" {
  region                             = var.region
  name                               = var.name
  cluster                            = aws_ecs_cluster.this.arn
  task_definition                    = aws_ecs_task_definition.this.arn
  desired_count                      = var.min_tasks
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  availability_zone_rebalancing      = "ENABLED"
  enable_execute_command             = false # it does not work with a read-only root
  enable_ecs_managed_tags            = true
  propagate_tags                     = "SERVICE"
  tags                               = var.tags

  # Spot gives the same two minutes that a drain needs.
  capacity_provider_strategy {
    capacity_provider = "FARGATE"
    base              = var.min_tasks
    weight            = 0
  }

  capacity_provider_strategy {
    capacity_provider = "FARGATE_SPOT"
    weight            = 1
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.this.id]
    assign_public_ip = false
  }

  service_registries {
    registry_arn = aws_service_discovery_service.this.arn
  }

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  alarms {
    enable      = true
    rollback    = true
    alarm_names = [aws_cloudwatch_metric_alarm.errors.alarm_name]
  }

  lifecycle {
    ignore_changes = [desired_count] # scaling's own
  }

  # Or the first tasks start without rights.
  depends_on = [aws_iam_role_policy.task, aws_iam_role_policy.execution, aws_ecs_cluster_capacity_providers.this]
}

# --- how Prometheus finds tasks where it does not ask ECS ---

resource "aws_service_discovery_private_dns_namespace" "this" {
  region      = var.region
  name        = "${var.name}.internal"
  description = "Tasks of the dispatcher"
  vpc         = var.vpc_id
  tags        = var.tags
}

# No health_check_custom_config: an empty one is a replacement at every apply, and the sick are to be scraped, too.
resource "aws_service_discovery_service" "this" {
  region        = var.region
  name          = "dispatcher"
  force_destroy = true # or tasks that still run would keep it
  tags          = var.tags

  dns_config {
    namespace_id   = aws_service_discovery_private_dns_namespace.this.id
    routing_policy = "MULTIVALUE"

    dns_records {
      type = "A"
      ttl  = 15
    }
  }
}

# --- how many ---

resource "aws_appautoscaling_target" "this" {
  region             = var.region
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${aws_ecs_service.this.name}"
  min_capacity       = var.min_tasks
  max_capacity       = var.max_tasks
  tags               = var.tags
}

resource "aws_appautoscaling_policy" "backlog" {
  count              = var.backlog_queue_name == null ? 0 : 1
  region             = var.region
  name               = "${var.name}-backlog-per-task"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = var.backlog_per_task
    scale_out_cooldown = 60
    scale_in_cooldown  = 300

    customized_metric_specification {
      metrics {
        id          = "per_task"
        label       = "waiting messages per task"
        expression  = "FILL(backlog, 0) / IF(FILL(tasks, 1) > 0, FILL(tasks, 1), 1)"
        return_data = true
      }

      metrics {
        id          = "backlog"
        return_data = false
        metric_stat {
          stat = "Maximum"
          metric {
            namespace   = "AWS/SQS"
            metric_name = "ApproximateNumberOfMessagesVisible"
            dimensions {
              name  = "QueueName"
              value = var.backlog_queue_name
            }
          }
        }
      }

      metrics {
        id          = "tasks"
        return_data = false
        metric_stat {
          stat = "Average"
          metric {
            namespace   = "ECS/ContainerInsights"
            metric_name = "RunningTaskCount"
            dimensions {
              name  = "ClusterName"
              value = aws_ecs_cluster.this.name
            }
            dimensions {
              name  = "ServiceName"
              value = aws_ecs_service.this.name
            }
          }
        }
      }
    }
  }
}

resource "aws_appautoscaling_policy" "cpu" {
  region             = var.region
  name               = "${var.name}-cpu"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = 60
    scale_out_cooldown = 60
    scale_in_cooldown  = 300

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}

# --- what must not happen ---

resource "aws_cloudwatch_metric_alarm" "tasks" {
  region              = var.region
  alarm_name          = "${var.name}-tasks"
  alarm_description   = "Fewer than ${var.min_tasks} tasks run in ${var.region}: see the runbook DispatcherAbsent."
  namespace           = "ECS/ContainerInsights"
  metric_name         = "RunningTaskCount"
  dimensions          = { ClusterName = aws_ecs_cluster.this.name, ServiceName = aws_ecs_service.this.name }
  statistic           = "Minimum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "LessThanThreshold"
  threshold           = var.min_tasks
  treat_missing_data  = "breaching"
  alarm_actions       = var.alarm_topic_arn[*]
  ok_actions          = var.alarm_topic_arn[*]
  tags                = var.tags
}

resource "aws_cloudwatch_log_metric_filter" "errors" {
  region         = var.region
  name           = "${var.name}-errors"
  log_group_name = aws_cloudwatch_log_group.this.name
  # what a task without rights or without a way out says is no error of the code, but is one of the deployment
  pattern = "{ ($.level = \"error\") || ($.event = \"start.waiting\") || ($.event = \"poll.failed\") || ($.event = \"call.failed\") }"

  metric_transformation {
    namespace     = "Dispatcher"
    name          = "${var.name}-errors"
    value         = "1"
    default_value = "0"
  }
}

# A deployment during which this rings is rolled back.
resource "aws_cloudwatch_metric_alarm" "errors" {
  region              = var.region
  alarm_name          = "${var.name}-errors"
  alarm_description   = "The dispatcher logs errors, or does not get what it needs, in ${var.region}: see the runbook DispatcherErrorBudgetBurnFast."
  namespace           = "Dispatcher"
  metric_name         = "${var.name}-errors"
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  comparison_operator = "GreaterThanThreshold"
  threshold           = 10
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arn[*]
  ok_actions          = var.alarm_topic_arn[*]
  tags                = var.tags
}
