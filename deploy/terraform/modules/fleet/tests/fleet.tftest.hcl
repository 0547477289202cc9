variables {
  home_region = "us-east-1"
  master_queue = {
    url                   = "https://sqs.us-east-1.amazonaws.com/123456789012/dispatcher-master"
    arn                   = "arn:aws:sqs:us-east-1:123456789012:dispatcher-master"
    dead_letter_queue_url = "https://sqs.us-east-1.amazonaws.com/123456789012/dispatcher-master-dlq"
    dead_letter_queue_arn = "arn:aws:sqs:us-east-1:123456789012:dispatcher-master-dlq"
  }
  ledger = { table_name = "dispatcher-ledger", arn = "arn:aws:dynamodb:us-east-1:123456789012:table/dispatcher-ledger" }
  regional_queues = {
    us-east-1 = {
      url                   = "https://sqs.us-east-1.amazonaws.com/123456789012/dispatcher-regional"
      arn                   = "arn:aws:sqs:us-east-1:123456789012:dispatcher-regional"
      dead_letter_queue_arn = "arn:aws:sqs:us-east-1:123456789012:dispatcher-regional-dlq"
    }
    eu-west-1 = {
      url                   = "https://sqs.eu-west-1.amazonaws.com/123456789012/dispatcher-regional"
      arn                   = "arn:aws:sqs:eu-west-1:123456789012:dispatcher-regional"
      dead_letter_queue_arn = "arn:aws:sqs:eu-west-1:123456789012:dispatcher-regional-dlq"
      weight                = 0.5
      models                = ["sd-xl"]
      overload_threshold    = 2000
    }
  }
  kms_key_arns = ["arn:aws:kms:us-east-1:123456789012:key/1", "arn:aws:kms:eu-west-1:123456789012:key/2"]
}

run "speaks_the_daemons_settings" {
  command = plan

  assert {
    condition = toset(keys(output.environment)) == toset([
      "DISPATCHER_HOME_REGION", "DISPATCHER_MASTER_QUEUE_URL", "DISPATCHER_DEAD_LETTER_QUEUE_URL", "DISPATCHER_REGIONS", "DISPATCHER_LEDGER_TABLE",
    ])
    error_message = "the five settings, and nothing that is a default"
  }

  assert {
    condition     = jsondecode(output.environment.DISPATCHER_REGIONS)["us-east-1"] == { queue_url = "https://sqs.us-east-1.amazonaws.com/123456789012/dispatcher-regional" }
    error_message = "only what was said of a Region"
  }

  assert {
    condition = jsondecode(output.environment.DISPATCHER_REGIONS)["eu-west-1"] == {
      queue_url          = "https://sqs.eu-west-1.amazonaws.com/123456789012/dispatcher-regional"
      weight             = 0.5
      models             = ["sd-xl"]
      overload_threshold = 2000
    }
    error_message = "all that was said of a Region"
  }
}

run "gives_each_only_what_it_needs" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for policy in output.policies : [
        for statement in jsondecode(policy).Statement : [
          for name in flatten([statement.Resource, statement.Action]) : !strcontains(name, "*")
        ]
      ]
    ]))
    error_message = "no star among resources and actions"
  }

  assert {
    condition = alltrue([
      for action in ["sqs:PurgeQueue", "sqs:DeleteQueue", "dynamodb:Scan", "dynamodb:DeleteItem", "dynamodb:PartiQLDelete"] :
      !anytrue([for policy in output.policies : strcontains(policy, action)])
    ])
    error_message = "nobody may drop queues, or read or empty the table"
  }

  assert {
    condition = [
      for statement in jsondecode(output.policies["dispatcher"]).Statement : statement.Resource if contains(statement.Action, "sqs:ReceiveMessage")
    ] == [["arn:aws:sqs:us-east-1:123456789012:dispatcher-master"]]
    error_message = "it takes from the master queue alone"
  }

  assert {
    condition = [
      for statement in jsondecode(output.policies["worker_eu-west-1"]).Statement : statement.Resource if contains(statement.Action, "sqs:ReceiveMessage")
    ] == [["arn:aws:sqs:eu-west-1:123456789012:dispatcher-regional"]]
    error_message = "a worker takes from its own Region alone"
  }

  assert {
    condition = [
      for statement in jsondecode(output.policies["dispatcher"]).Statement : statement.Condition.StringLike["kms:ViaService"] if contains(statement.Action, "kms:Decrypt")
    ] == [["sqs.*.amazonaws.com", "dynamodb.*.amazonaws.com"]]
    error_message = "keys are used by the two services only"
  }

  assert {
    condition     = alltrue([for action in ["PartiQLInsert", "PartiQLUpdate"] : strcontains(output.policies["dispatcher"], "dynamodb:${action}")])
    error_message = "PartiQL has actions of its own"
  }
}

run "grants_exactly_these_actions" {
  command = plan

  assert {
    condition = { for statement in jsondecode(output.policies["dispatcher"]).Statement : statement.Sid => join(" ", statement.Action) } == {
      TakeFromMaster          = "sqs:ReceiveMessage sqs:DeleteMessage sqs:ChangeMessageVisibility sqs:GetQueueAttributes"
      SendToRegions           = "sqs:SendMessage sqs:GetQueueAttributes"
      RejectToDeadLetters     = "sqs:SendMessage"
      ReadDepthsOfDeadLetters = "sqs:GetQueueAttributes sqs:GetQueueUrl"
      ClaimInLedger           = "dynamodb:GetItem dynamodb:BatchGetItem dynamodb:PutItem dynamodb:UpdateItem dynamodb:DescribeTable dynamodb:DescribeTimeToLive dynamodb:PartiQLInsert dynamodb:PartiQLUpdate"
      UseKeys                 = "kms:Decrypt kms:GenerateDataKey"
    }
    error_message = "the daemon's"
  }

  assert {
    condition = { for statement in jsondecode(output.policies["producer"]).Statement : statement.Sid => join(" ", statement.Action) } == {
      SendToMaster = "sqs:SendMessage sqs:GetQueueUrl"
      UseKeys      = "kms:Decrypt kms:GenerateDataKey"
    }
    error_message = "a client's"
  }

  assert {
    condition = { for statement in jsondecode(output.policies["worker_eu-west-1"]).Statement : statement.Sid => join(" ", statement.Action) } == {
      Work    = "sqs:ReceiveMessage sqs:DeleteMessage sqs:ChangeMessageVisibility sqs:GetQueueAttributes sqs:GetQueueUrl"
      UseKeys = "kms:Decrypt kms:GenerateDataKey"
    }
    error_message = "a worker's"
  }

  assert {
    condition = { for statement in jsondecode(output.policies["dispatcher"]).Statement : statement.Sid => join(" ", [for arn in statement.Resource : reverse(split(":", arn))[0]]) } == {
      TakeFromMaster          = "dispatcher-master"
      SendToRegions           = "dispatcher-regional dispatcher-regional"
      RejectToDeadLetters     = "dispatcher-master-dlq"
      ReadDepthsOfDeadLetters = "dispatcher-master-dlq dispatcher-regional-dlq dispatcher-regional-dlq"
      ClaimInLedger           = "table/dispatcher-ledger"
      UseKeys                 = "key/1 key/2"
    }
    error_message = "and on these resources"
  }
}

run "takes_yes_as_the_daemon_does" {
  command = plan

  variables {
    settings = { DISPATCHER_RESCUE = "Yes", DISPATCHER_LEDGER_BATCHING = "on" }
  }

  assert {
    condition     = strcontains(output.policies["dispatcher"], "RescueFromRegions") && strcontains(output.policies["dispatcher"], "PartiQL")
    error_message = "however it is spelt"
  }
}

run "rights_follow_the_settings" {
  command = plan

  variables {
    settings = {
      DISPATCHER_RESCUE                 = "true"
      DISPATCHER_LEDGER_BATCHING        = "false"
      DISPATCHER_INTERRUPTION_QUEUE_URL = "https://sqs.us-east-1.amazonaws.com/123456789012/spot-warnings"
    }
  }

  assert {
    condition = anytrue([
      for statement in jsondecode(output.policies["dispatcher"]).Statement :
      statement.Sid == "RescueFromRegions" && contains(statement.Action, "sqs:DeleteMessage") && length(statement.Resource) == 2
    ])
    error_message = "a rescue takes from the Regions"
  }

  assert {
    condition     = !strcontains(output.policies["dispatcher"], "PartiQL")
    error_message = "no PartiQL, no right to it"
  }

  assert {
    condition     = contains(jsondecode(output.policies["dispatcher"]).Statement[0].Resource, "arn:aws:sqs:us-east-1:123456789012:spot-warnings")
    error_message = "warnings are taken from their queue"
  }

  assert {
    condition     = output.environment.DISPATCHER_RESCUE == "true"
    error_message = "settings travel on"
  }
}

run "does_without_customer_keys" {
  command = plan

  variables {
    kms_key_arns = []
  }

  assert {
    condition     = !strcontains(join("", values(output.policies)), "kms:")
    error_message = "no key, no right to one"
  }
}

run "refuses_a_secret_among_settings" {
  command = plan

  variables {
    settings = { DISPATCHER_HTTP_TOKEN = "0123456789abcdef" }
  }

  expect_failures = [var.settings]
}

run "refuses_what_it_knows_itself" {
  command = plan

  variables {
    settings = { DISPATCHER_LEDGER_TABLE = "another" }
  }

  expect_failures = [var.settings]
}
