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
  type        = object({ home_region = string, environment = map(string), task_policies = map(string), spot_warnings_queue_arn = optional(string) })
  default     = null
}

variable "image" {
  description = "Image pinned by digest, {region} for the Region; null: no service yet."
  type        = string
  default     = null
}

variable "cidr" {
  description = "Addresses of a VPC that is made for the service; null: there is one (vpc_id), or no service here, only a queue."
  type        = string
  default     = null
}

variable "availability_zones" {
  description = "Zones of that VPC, two or more."
  type        = list(string)
  default     = []
}

variable "nat" {
  description = "Way out of that VPC: single, per_az or none."
  type        = string
  default     = "single"
}

variable "interface_endpoints" {
  description = "AWS services reached inside that VPC."
  type        = set(string)
  default     = []
}

variable "vpc_id" {
  description = "VPC of the service that is there already."
  type        = string
  default     = null
}

variable "subnet_ids" {
  description = "Its private subnets."
  type        = list(string)
  default     = []
}

variable "dispatcher" {
  description = "The service: size, number of tasks, who may scrape it."
  type = object({
    cpu                   = optional(number, 512)
    memory                = optional(number, 1024)
    min_tasks             = optional(number, 2)
    max_tasks             = optional(number, 10)
    scraper_cidrs         = optional(list(string), [])
    egress_cidrs          = optional(list(string), ["0.0.0.0/0"])
    http_token_secret_arn = optional(string)
  })
  default = {}
}

variable "max_receive_count" {
  description = "Receives after which a message goes to the dead-letter queue."
  type        = number
  default     = 3
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
  default     = 365
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of every role; null: none."
  type        = string
  default     = null
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}
