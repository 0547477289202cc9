variable "name" {
  description = "Every name created begins with it."
  type        = string
  default     = "dispatcher"
}

variable "home_region" {
  description = "Region of the master queue and the ledger."
  type        = string
}

variable "regional_queues" {
  description = "Output `queue` of the root `region` in each Region."
  type = map(object({
    url                   = string
    arn                   = string
    dead_letter_queue_arn = string
    kms_key_arn           = string
  }))
}

variable "regions" {
  description = "What a dispatcher shall know of a Region beyond its queue: weight, models, overload_threshold, drain_per_second, instances."
  type = map(object({
    weight             = optional(number)
    models             = optional(list(string))
    overload_threshold = optional(number)
    drain_per_second   = optional(number)
    instances          = optional(number)
  }))
  default = {}
}

variable "settings" {
  description = "More of the daemon's settings for all dispatchers."
  type        = map(string)
  default     = {}
}

variable "spot_warnings" {
  description = "Pass EC2's Spot interruption warnings of every Region on to the dispatchers, which then send it less at once."
  type        = bool
  default     = false
}

variable "max_receive_count" {
  description = "Receives after which a message goes to the dead-letter queue."
  type        = number
  default     = 3
}

variable "ledger_max_request_units" {
  description = "Guard against runaway cost: units per second above which the ledger throttles; null: no limit."
  type        = number
  default     = null
}

variable "deletion_protection" {
  description = "Whether the ledger refuses to be deleted."
  type        = bool
  default     = true
}

variable "replicate_images" {
  description = "Copy images to the other Regions. One setting for the account's whole registry in the home Region: false where it is managed elsewhere."
  type        = bool
  default     = true
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}
