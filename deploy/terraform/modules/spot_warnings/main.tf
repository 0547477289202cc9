# EC2's two-minute warnings: at home straight to the queue, from elsewhere over home's event bus to the same rule.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

locals {
  at_home = var.region == var.home_region
  bus     = "arn:${data.aws_partition.this.partition}:events:${var.home_region}:${data.aws_caller_identity.this.account_id}:event-bus/default"
}

resource "aws_cloudwatch_event_rule" "this" {
  region      = var.region
  name        = var.name
  description = "Spot takes an instance back: the dispatcher sends its Region less"
  event_pattern = jsonencode({
    source      = ["aws.ec2"]
    detail-type = ["EC2 Spot Instance Interruption Warning"]
  })
  tags = var.tags
}

resource "aws_cloudwatch_event_target" "this" {
  region   = var.region
  rule     = aws_cloudwatch_event_rule.this.name
  arn      = local.at_home ? var.queue_arn : local.bus
  role_arn = one(aws_iam_role.this[*].arn)
}

# Sending to another Region's bus takes a role; sending to a queue takes the queue's policy.
resource "aws_iam_role" "this" {
  count                = local.at_home ? 0 : 1
  name                 = "${var.name}-${var.region}"
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  count = local.at_home ? 0 : 1
  name  = "pass-on"
  role  = aws_iam_role.this[0].name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["events:PutEvents"], Resource = [local.bus] }]
  })
}
