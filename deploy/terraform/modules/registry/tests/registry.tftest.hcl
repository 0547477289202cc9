mock_provider "aws" {
  source          = "../../tests/mocks"
  override_during = plan
}

variables {
  region          = "us-east-1"
  name            = "dispatcher"
  kms_key_arn     = "arn:aws:kms:us-east-1:123456789012:key/1"
  replica_regions = ["us-west-2", "eu-west-1"]
}

run "keeps_images_as_pushed_and_scans_them" {
  command = plan

  assert {
    condition     = aws_ecr_repository.this.image_tag_mutability == "IMMUTABLE" && aws_ecr_repository.this.image_scanning_configuration[0].scan_on_push
    error_message = "immutable, scanned"
  }
}

run "copies_images_to_the_other_regions" {
  command = plan

  assert {
    condition     = length(aws_ecr_replication_configuration.this[0].replication_configuration[0].rule[0].destination) == 2
    error_message = "two copies"
  }

  assert {
    condition     = output.image == "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher"
    error_message = "each Region pulls from its own"
  }
}

run "leaves_the_account_s_replication_alone_when_told" {
  command = plan

  variables {
    replica_regions = []
  }

  assert {
    condition     = length(aws_ecr_replication_configuration.this) == 0
    error_message = "nothing replicated"
  }
}
