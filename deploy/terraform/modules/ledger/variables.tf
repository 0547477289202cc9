variable "region" {
  description = "Region of the table: the home Region."
  type        = string
}

variable "name" {
  description = "Name of the table."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the same Region; null: the key of DynamoDB that belongs to the account."
  type        = string
  default     = null
}

variable "replicas" {
  description = "Read-only copies for a warm standby: Region to the ARN of a key there (null: DynamoDB's)."
  type        = map(string)
  default     = {}
}

variable "point_in_time_recovery_days" {
  description = "How far back the table can be restored."
  type        = number
  default     = 7

  validation {
    condition     = var.point_in_time_recovery_days >= 1 && var.point_in_time_recovery_days <= 35
    error_message = "1 to 35 days."
  }
}

variable "max_request_units" {
  description = "Guard against runaway cost: read and write units per second above which DynamoDB throttles. Each request takes two or three writes. null: no limit."
  type        = number
  default     = null
}

variable "deletion_protection" {
  description = "Whether the table refuses to be deleted."
  type        = bool
  default     = true
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
