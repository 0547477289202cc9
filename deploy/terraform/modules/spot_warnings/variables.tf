variable "region" {
  description = "Region whose Spot interruption warnings are passed on."
  type        = string
}

variable "home_region" {
  description = "Region of the queue."
  type        = string
}

variable "queue_arn" {
  description = "The queue that the warnings go to; its policy has to let this rule send (event_rule_name of the module queue)."
  type        = string
}

variable "name" {
  description = "Name of rule and role; the same in every Region, and in the queue's policy."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the role; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
