variable "region" {
  description = "Region that the tasks run in."
  type        = string
}

variable "name" {
  description = "Name of cluster, service and task; roles are <name>-task-<region> and <name>-execution-<region>."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "2 to 31 lower-case letters, digits and -, a letter first: roles' names have 64 characters at most."
  }
}

variable "image" {
  description = "Image, pinned by digest: …@sha256:…"
  type        = string

  validation {
    condition     = can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "Pin the image by its digest (…@sha256:…): a tag may name something else tomorrow, and a rollback would not."
  }
}

variable "environment" {
  description = "Environment of `dispatcher run`: the output of the module fleet."
  type        = map(string)
}

variable "task_policies" {
  description = "What the daemon may do: names and policies (JSON), the output of the module fleet for each possible home."
  type        = map(string)
}

variable "http_token_secret_arn" {
  description = "Secret (Secrets Manager, same Region) with DISPATCHER_HTTP_TOKEN, encrypted with Secrets Manager's own key or with kms_key_arn; null: nobody may report capacity."
  type        = string
  default     = null
}

variable "vpc_id" {
  description = "VPC of the tasks."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets with a way out to AWS, two zones or more."
  type        = list(string)
}

variable "egress_cidrs" {
  description = "Where tasks may call, by TLS. AWS's public addresses are many, so everywhere by default. Who narrows it must leave in S3's and DynamoDB's: they are public even through gateway endpoints."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "scraper_cidrs" {
  description = "Who may read metrics and status on port 8080. Nobody else reaches a task."
  type        = list(string)
  default     = []
}

variable "cpu" {
  description = "CPU units of a task (1024: one vCPU)."
  type        = number
  default     = 512
}

variable "memory" {
  description = "MiB of a task."
  type        = number
  default     = 1024
}

variable "min_tasks" {
  description = "Tasks that always run, on demand; more run on Spot."
  type        = number
  default     = 2

  validation {
    condition     = var.min_tasks >= 1
    error_message = "At least one, or nothing is dispatched and nothing scales."
  }
}

variable "max_tasks" {
  description = "Tasks at most."
  type        = number
  default     = 10

  validation {
    condition     = var.max_tasks >= var.min_tasks
    error_message = "At least min_tasks."
  }
}

variable "backlog_queue_name" {
  description = "Queue of the same Region whose backlog the service scales on: the master queue, at home. null: it scales on CPU, for scaling sees no metric of another Region."
  type        = string
  default     = null
}

variable "backlog_per_task" {
  description = "Waiting messages that one task may have: how long they may wait, in seconds, times what a task dispatches in a second."
  type        = number
  default     = 3000
}

variable "kms_key_arn" {
  description = "Key of the same Region for logs."
  type        = string
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
  default     = 365
}

variable "alarm_topic_arn" {
  description = "SNS topic of the same Region that alarms go to; null: none."
  type        = string
  default     = null
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the roles; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
