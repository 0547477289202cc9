variable "region" {
  description = "Region whose alarms it takes and whose numbers it shows."
  type        = string
}

variable "name" {
  description = "Name of topic and dashboard."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the same Region that the topic is encrypted with; its policy lets CloudWatch use it."
  type        = string
}

variable "alarm_emails" {
  description = "Who is told; each has to confirm once."
  type        = set(string)
  default     = []
}

variable "queue_names" {
  description = "Queues of this Region to show."
  type        = list(string)
}

variable "table_name" {
  description = "The ledger, in its own Region; null elsewhere."
  type        = string
  default     = null
}

variable "service_name" {
  description = "Name of the ECS cluster and service; null: there is none in this Region."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
