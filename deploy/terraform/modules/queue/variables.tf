variable "region" {
  description = "Region of the queue and its dead-letter queue."
  type        = string
}

variable "name" {
  description = "Name of the queue; the dead-letter queue is <name>-dlq."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,76}$", var.name))
    error_message = "Letters, digits, - and _ only, 76 at most: SQS allows 80, and the dead-letter queue's name has four more."
  }
}

variable "kms_key_arn" {
  description = "Key of the same Region; null: SQS's own encryption."
  type        = string
  default     = null
}

variable "visibility_timeout_seconds" {
  description = "How long a received message is hidden from other consumers."
  type        = number

  validation {
    condition     = var.visibility_timeout_seconds >= 0 && var.visibility_timeout_seconds <= 43200
    error_message = "0 to 43200 seconds (12 hours)."
  }
}

variable "max_receive_count" {
  description = "Receives after which a message goes to the dead-letter queue."
  type        = number
  default     = 3

  validation {
    condition     = var.max_receive_count >= 1 && floor(var.max_receive_count) == var.max_receive_count
    error_message = "A whole number of at least 1."
  }
}

variable "message_retention_seconds" {
  description = "How long a message waits at most. It must be less than the dead-letter queue's 14 days, which count from the original send."
  type        = number
  default     = 345600

  validation {
    condition     = var.message_retention_seconds >= 60 && var.message_retention_seconds < 1209600
    error_message = "60 seconds to less than 14 days: the dead-letter queue keeps a message 14 days from when it was first sent."
  }
}

variable "event_rule_name" {
  description = "EventBridge rule of this account and Region that may send here; null: none."
  type        = string
  default     = null
}

variable "oldest_message_alarm_seconds" {
  description = "Age of the oldest message that raises an alarm."
  type        = number
}

variable "alarm_topic_arn" {
  description = "SNS topic of the same Region that alarms go to; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
