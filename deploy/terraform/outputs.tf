output "dispatcher_environment" {
  description = "The exact environment of `dispatcher run`, and of every other command: see docs/operations.md for how to export it."
  value       = module.fleet[local.active_home].environment
}

output "policies" {
  description = "IAM policies (JSON) to attach, by home (producers need the standby's, too): dispatcher, producer, operator, worker_<region>."
  value       = { for region, fleet in module.fleet : region => fleet.policies }
}

output "master_queues" {
  description = "Where clients send requests: at home, and at the standby while it is home."
  value       = { for region, queue in module.master_queue : region => { url = queue.url, arn = queue.arn } }
}

output "regional_queues" {
  description = "Where each Region's GPU workers take requests from, and where what they give up goes."
  value       = { for region, queue in module.regional_queue : region => { url = queue.url, arn = queue.arn, dead_letter_queue_arn = queue.dead_letter_queue_arn } }
}

output "repository_url" {
  description = "Where to push the image."
  value       = module.registry[var.home_region].repository_url
}

output "image" {
  description = "The value of var.image, but for \"@sha256:…\"."
  value       = module.registry[var.home_region].image
}

output "services" {
  description = "For Prometheus: each Region's cluster (aws_sd_configs) and the name of its tasks in the VPC (dns_sd_configs)."
  value       = { for region, service in module.service : region => { cluster_arn = service.cluster_arn, dns_name = service.dns_name } }
}

output "alarm_topic_arns" {
  description = "SNS topic of each Region's alarms."
  value       = { for region, watch in module.observability : region => watch.alarm_topic_arn }
}
