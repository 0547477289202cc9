variable "region" {
  description = "Region of the repository. Images are pushed to the home Region's; the others get copies."
  type        = string
}

variable "name" {
  description = "Name of the repository."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the same Region that images are encrypted with."
  type        = string
}

variable "replica_regions" {
  description = "Regions that images are copied to, from the home Region. Replication is one setting for the account's whole registry in a Region: leave this empty where it is managed elsewhere."
  type        = set(string)
  default     = []
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
