variable "home_region" {
  description = "Region of the master queue and the ledger."
  type        = string
}

variable "master_queue" {
  description = "The queue that clients send to."
  type = object({
    url                   = string
    arn                   = string
    dead_letter_queue_url = string
    dead_letter_queue_arn = string
  })
}

variable "ledger" {
  description = "The table of claims."
  type        = object({ table_name = string, arn = string })
}

variable "regional_queues" {
  description = "The queue of each Region that serves requests, and what a dispatcher shall know of it (see DISPATCHER_REGIONS in docs/operations.md)."
  type = map(object({
    url                   = string
    arn                   = string
    dead_letter_queue_arn = string
    weight                = optional(number)
    models                = optional(list(string))
    overload_threshold    = optional(number)
    drain_per_second      = optional(number)
    instances             = optional(number)
  }))
}

variable "kms_key_arns" {
  description = "Keys of all these queues and of the table."
  type        = list(string)
}

variable "settings" {
  description = "More of the daemon's settings, such as { DISPATCHER_RESCUE = \"true\" }. No secrets."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : startswith(name, "DISPATCHER_") && name != "DISPATCHER_HTTP_TOKEN"])
    error_message = "Names begin with DISPATCHER_; the token is a secret, not a setting: see http_token_secret_arn."
  }

  validation {
    condition = length(setintersection(keys(var.settings), [
      "DISPATCHER_HOME_REGION", "DISPATCHER_MASTER_QUEUE_URL", "DISPATCHER_DEAD_LETTER_QUEUE_URL", "DISPATCHER_REGIONS", "DISPATCHER_LEDGER_TABLE",
      "DISPATCHER_HTTP_HOST", "DISPATCHER_HTTP_PORT",
    ])) == 0
    error_message = "Queues, Regions and table are known from the resources themselves; the port is 8080."
  }
}
