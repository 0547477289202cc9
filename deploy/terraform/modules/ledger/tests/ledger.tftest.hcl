mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region      = "us-east-1"
  name        = "dispatcher-ledger"
  kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "is_what_the_daemon_expects" {
  command = plan

  assert {
    condition     = aws_dynamodb_table.this.hash_key == "request_id" && tolist(aws_dynamodb_table.this.attribute)[0].type == "S"
    error_message = "the key is request_id, a string"
  }

  assert {
    condition     = aws_dynamodb_table.this.ttl[0].attribute_name == "expires_at" && aws_dynamodb_table.this.ttl[0].enabled
    error_message = "expired records are removed by TTL"
  }

  assert {
    condition     = aws_dynamodb_table.this.billing_mode == "PAY_PER_REQUEST" && length(aws_dynamodb_table.this.on_demand_throughput) == 0
    error_message = "on demand, without a cap unless asked for"
  }
}

run "can_be_restored_and_is_not_deleted_by_mistake" {
  command = plan

  assert {
    condition     = aws_dynamodb_table.this.deletion_protection_enabled && aws_dynamodb_table.this.point_in_time_recovery[0].enabled
    error_message = "protected, with recovery"
  }

  assert {
    condition     = aws_dynamodb_table.this.server_side_encryption[0].kms_key_arn == "arn:aws:kms:us-east-1:123456789012:key/1"
    error_message = "the customer's key"
  }
}

run "tells_of_throttling_and_of_system_errors" {
  command = plan

  assert {
    condition = toset([for query in aws_cloudwatch_metric_alarm.faults.metric_query : query.metric[0].metric_name if length(query.metric) > 0]) == toset(
      ["ReadThrottleEvents", "WriteThrottleEvents", "SystemErrors"]
    )
    error_message = "all three, in one alarm"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.faults.threshold == 10 && aws_cloudwatch_metric_alarm.faults.comparison_operator == "GreaterThanThreshold"
    error_message = "more than ten a minute"
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.faults.metric_query) <= 10
    error_message = "an alarm takes ten queries at most"
  }
}

run "copies_itself_to_a_standby" {
  command = plan

  variables {
    replicas          = { us-west-2 = "arn:aws:kms:us-west-2:123456789012:key/2" }
    max_request_units = 4000
  }

  assert {
    condition     = one(aws_dynamodb_table.this.replica).region_name == "us-west-2" && one(aws_dynamodb_table.this.replica).kms_key_arn == "arn:aws:kms:us-west-2:123456789012:key/2"
    error_message = "a replica with a key of its own Region"
  }

  assert {
    condition     = aws_dynamodb_table.this.stream_enabled && aws_dynamodb_table.this.stream_view_type == "NEW_AND_OLD_IMAGES"
    error_message = "replicas need the stream"
  }

  assert {
    condition     = aws_dynamodb_table.this.on_demand_throughput[0].max_write_request_units == 4000
    error_message = "the cap"
  }
}
