variable "name" {
  description = "Every name created begins with it."
  type        = string
  default     = "dispatcher"
}

variable "region" {
  description = "The Region."
  type        = string
}

variable "fleet" {
  description = "Output `fleet` of the root `home`; null: only the queue, which `home` has to know first."
  type        = object({ home_region = string, environment = map(string), task_policies = map(string) })
  default     = null
}

variable "image" {
  description = "Image pinned by digest, {region} for the Region; null: no service yet."
  type        = string
  default     = null
}

variable "cidr" {
  description = "Addresses of the Region's VPC; null: no service here, only a queue."
  type        = string
  default     = null
}

variable "availability_zones" {
  description = "Zones of the VPC, two or more."
  type        = list(string)
  default     = []
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}
