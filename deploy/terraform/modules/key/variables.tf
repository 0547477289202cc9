variable "region" {
  description = "Region of the key."
  type        = string
}

variable "name" {
  description = "Its alias is alias/<name>."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
