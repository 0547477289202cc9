# What all dispatchers work on, in the daemon's own words: their environment, and who needs which rights for what.
# It creates nothing, so that the root with one state and the roots with a state for each Region say the same.

locals {
  environment = merge(var.settings, {
    DISPATCHER_HOME_REGION           = var.home_region
    DISPATCHER_MASTER_QUEUE_URL      = var.master_queue.url
    DISPATCHER_DEAD_LETTER_QUEUE_URL = var.master_queue.dead_letter_queue_url
    DISPATCHER_LEDGER_TABLE          = var.ledger.table_name
    DISPATCHER_REGIONS = jsonencode({
      for region, queue in var.regional_queues : region => merge(
        { queue_url = queue.url },
        { for name, value in {
          weight             = queue.weight
          overload_threshold = queue.overload_threshold
          drain_per_second   = queue.drain_per_second
          instances          = queue.instances
        } : name => value if value != null },
        { for name, value in { models = queue.models } : name => value if value != null },
      )
    })
  })

  yes     = ["1", "on", "t", "true", "y", "yes"] # what the daemon takes for it
  rescues = contains(local.yes, lower(lookup(var.settings, "DISPATCHER_RESCUE", "false")))
  batches = contains(local.yes, lower(lookup(var.settings, "DISPATCHER_LEDGER_BATCHING", "true")))
  # .../ACCOUNT/NAME; Spot's warnings come to a queue of the home Region and this account
  warnings = [
    for url in lookup(var.settings, "DISPATCHER_INTERRUPTION_QUEUE_URL", null)[*] :
    replace(var.master_queue.arn, "/[^:]+$/", basename(url))
  ]

  consume          = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"]
  regional         = [for queue in var.regional_queues : queue.arn]
  regional_letters = [for queue in var.regional_queues : queue.dead_letter_queue_arn]

  keys = { for services in [["sqs"], ["sqs", "dynamodb"]] : join("+", services) => [
    for arns in [var.kms_key_arns] : {
      Sid       = "UseKeys"
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"] # a sender needs both
      Resource  = arns
      Condition = { StringLike = { "kms:ViaService" = [for service in services : "${service}.*.amazonaws.com"] } }
    } if length(arns) > 0
  ] }

  statements = {
    dispatcher = concat(
      [
        { Sid = "TakeFromMaster", Effect = "Allow", Action = local.consume, Resource = concat([var.master_queue.arn], local.warnings) },
        { Sid = "SendToRegions", Effect = "Allow", Action = ["sqs:SendMessage", "sqs:GetQueueAttributes"], Resource = local.regional },
        { Sid = "RejectToDeadLetters", Effect = "Allow", Action = ["sqs:SendMessage"], Resource = [var.master_queue.dead_letter_queue_arn] },
        {
          Sid      = "ReadDepthsOfDeadLetters"
          Effect   = "Allow"
          Action   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"]
          Resource = concat([var.master_queue.dead_letter_queue_arn], local.regional_letters)
        },
        {
          Sid    = "ClaimInLedger"
          Effect = "Allow"
          Action = concat(
            [for operation in ["GetItem", "BatchGetItem", "PutItem", "UpdateItem", "DescribeTable", "DescribeTimeToLive"] : "dynamodb:${operation}"],
            local.batches ? ["dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate"] : [],
          )
          Resource = [var.ledger.arn]
        },
      ],
      [for yes in [local.rescues] : { Sid = "RescueFromRegions", Effect = "Allow", Action = local.consume, Resource = local.regional } if yes],
      local.keys["sqs+dynamodb"],
    )

    producer = concat(
      [{ Sid = "SendToMaster", Effect = "Allow", Action = ["sqs:SendMessage", "sqs:GetQueueUrl"], Resource = [var.master_queue.arn] }],
      local.keys["sqs"],
    )

    # `dispatcher dlq list | redrive | purge`, `dispatcher status`, and `aws sqs start-message-move-task`
    operator = concat(
      [
        { Sid = "WorkOnDeadLetters", Effect = "Allow", Action = local.consume, Resource = [var.master_queue.dead_letter_queue_arn] },
        { Sid = "SendBack", Effect = "Allow", Action = ["sqs:SendMessage", "sqs:GetQueueAttributes"], Resource = [var.master_queue.arn] },
        { Sid = "ReadDepths", Effect = "Allow", Action = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"], Resource = concat(local.regional, local.regional_letters) },
        { Sid = "LookUp", Effect = "Allow", Action = ["dynamodb:GetItem"], Resource = [var.ledger.arn] },
        # a Region's dead letters back to its own queue: the runbook DispatcherDeadLetters
        {
          Sid      = "MoveRegionalDeadLetters"
          Effect   = "Allow"
          Action   = ["sqs:StartMessageMoveTask", "sqs:ListMessageMoveTasks", "sqs:CancelMessageMoveTask", "sqs:ReceiveMessage", "sqs:DeleteMessage"]
          Resource = local.regional_letters
        },
        { Sid = "SendBackToRegions", Effect = "Allow", Action = ["sqs:SendMessage"], Resource = local.regional },
      ],
      local.keys["sqs+dynamodb"],
    )
  }

  workers = { for region, queue in var.regional_queues : "worker_${region}" => concat(
    [{ Sid = "Work", Effect = "Allow", Action = concat(local.consume, ["sqs:GetQueueUrl"]), Resource = [queue.arn] }],
    local.keys["sqs"],
  ) }
}
