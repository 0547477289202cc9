variable "name" {
  description = "Every name created begins with it."
  type        = string
  default     = "dispatcher"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "2 to 31 lower-case letters, digits and -, a letter first."
  }
}

variable "home_region" {
  description = "Region of the master queue and the ledger."
  type        = string

  validation {
    condition     = contains(keys(var.regions), var.home_region)
    error_message = "The home Region must be among var.regions; where no GPU workers run there, give it weight = 0."
  }
}

variable "regions" {
  description = <<-EOT
    The Regions that serve requests: each gets a queue, and a dispatcher service unless dispatcher.enabled is false.
    cidr and availability_zones make a VPC for the service; vpc_id and subnet_ids use one that is there.
    weight, models, overload_threshold, drain_per_second and instances are what the daemon knows of a Region
    (DISPATCHER_REGIONS in docs/operations.md); null leaves its default.
  EOT
  type = map(object({
    weight             = optional(number)
    models             = optional(list(string))
    overload_threshold = optional(number)
    drain_per_second   = optional(number)
    instances          = optional(number)

    cidr                = optional(string)
    availability_zones  = optional(list(string))
    nat                 = optional(string, "single")
    interface_endpoints = optional(set(string), [])
    vpc_id              = optional(string)
    subnet_ids          = optional(list(string))

    dispatcher = optional(object({
      enabled               = optional(bool, true)
      cpu                   = optional(number, 512)
      memory                = optional(number, 1024)
      min_tasks             = optional(number, 2)
      max_tasks             = optional(number, 10)
      scraper_cidrs         = optional(list(string), [])
      egress_cidrs          = optional(list(string), ["0.0.0.0/0"])
      http_token_secret_arn = optional(string)
    }), {})
  }))

  validation {
    condition     = alltrue([for name in keys(var.regions) : can(regex("^[a-z]{2,}(-[a-z]+)+-[0-9]+$", name))])
    error_message = "Keys are names of AWS Regions, such as us-east-1."
  }

  validation {
    condition = alltrue([for region in values(var.regions) : anytrue([
      !region.dispatcher.enabled,
      region.cidr != null && length(coalesce(region.availability_zones, [])) > 0 && region.vpc_id == null,
      region.vpc_id != null && length(coalesce(region.subnet_ids, [])) > 0 && region.cidr == null,
    ])])
    error_message = "A Region with a dispatcher needs either cidr and availability_zones (a VPC is made) or vpc_id and subnet_ids (it is there); without a dispatcher (dispatcher = { enabled = false }) neither."
  }

  # Two blocks overlap when they are the same but for the bits that the larger one leaves open.
  validation {
    condition = alltrue(flatten([
      for a, left in values(var.regions) : [
        for b, right in values(var.regions) : length(distinct([
          for cidr in [left.cidr, right.cidr] :
          cidrsubnet("${split("/", cidr)[0]}/${min(split("/", left.cidr)[1], split("/", right.cidr)[1])}", 0, 0)
        ])) == 2 if a < b && left.cidr != null && right.cidr != null
      ]
    ]))
    error_message = "The Regions' CIDR blocks overlap: then their VPCs could never be peered."
  }
}

variable "image" {
  description = "Image of the daemon, pinned by digest; {region} stands for the Region of the task: 123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher@sha256:… null: no service yet, for the first apply makes the registry to push to."
  type        = string
  default     = null

  validation {
    condition     = var.image == null || can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "Pin the image by its digest (…@sha256:…): a tag may name something else tomorrow, and a rollback would not."
  }
}

variable "settings" {
  description = "More of the daemon's settings for all dispatchers, such as { DISPATCHER_RESCUE = \"true\" }."
  type        = map(string)
  default     = {}
}

variable "spot_warnings" {
  description = "Pass EC2's Spot interruption warnings of every Region on to the dispatchers, which then send it less at once."
  type        = bool
  default     = false
}

variable "standby_region" {
  description = "Region of a warm standby: a second master queue and a read-only copy of the ledger; see \"The home Region fails\" in docs/operations.md. null: none."
  type        = string
  default     = null

  validation {
    condition     = var.standby_region == null || (contains(keys(var.regions), coalesce(var.standby_region, "-")) && var.standby_region != var.home_region)
    error_message = "The standby is one of var.regions, and not the home Region."
  }
}

variable "failed_over" {
  description = "Dispatchers take from the standby instead of home. By hand, never by itself."
  type        = bool
  default     = false

  validation {
    condition     = !var.failed_over || var.standby_region != null
    error_message = "There is no standby_region to fail over to."
  }
}

variable "max_receive_count" {
  description = "Receives after which a message goes to the dead-letter queue."
  type        = number
  default     = 3
}

variable "ledger_max_request_units" {
  description = "Guard against runaway cost: read and write units per second above which the ledger throttles; null: no limit."
  type        = number
  default     = null
}

variable "deletion_protection" {
  description = "Whether the ledger refuses to be deleted."
  type        = bool
  default     = true
}

variable "replicate_images" {
  description = "Copy images to every Region with a dispatcher. One setting for the account's whole registry in the home Region: false where it is managed elsewhere."
  type        = bool
  default     = true
}

variable "alarm_emails" {
  description = "Who is told of alarms, in every Region; each has to confirm once for each."
  type        = set(string)
  default     = []
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

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
