output "queue" {
  description = "What `home` has to know of this Region: an entry of its variable `regional_queues`."
  value = {
    url                   = module.regional_queue.url
    arn                   = module.regional_queue.arn
    dead_letter_queue_arn = module.regional_queue.dead_letter_queue_arn
    kms_key_arn           = module.key.arn
  }
}

output "service" {
  description = "For Prometheus; null without a service."
  value       = one([for service in module.service : { cluster_arn = service.cluster_arn, dns_name = service.dns_name }])
}
