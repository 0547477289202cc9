output "fleet" {
  description = "What the service of every Region needs: variable `fleet` of the root `region`."
  value = {
    home_region             = var.home_region
    environment             = module.fleet.environment
    task_policies           = { (var.home_region) = module.fleet.policies["dispatcher"] }
    spot_warnings_queue_arn = one(module.spot_warnings_queue[*].arn)
  }
}

output "regional_queues" {
  description = "What it knows of every Region, for when one of them cannot be asked."
  value       = var.regional_queues
}

output "dispatcher_environment" {
  description = "The environment of every dispatcher command."
  value       = module.fleet.environment
}

output "policies" {
  description = "IAM policies for producers, workers and operators."
  value       = module.fleet.policies
}

output "image" {
  description = "The value of `image` of the root `region`, but for \"@sha256:…\"."
  value       = module.registry.image
}

output "repository_url" {
  description = "Where to push the image."
  value       = module.registry.repository_url
}
