terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.8, < 7.0" # 6: a region on each resource; 6.8: queues' max_message_size up to 1 MiB
    }
  }
}
