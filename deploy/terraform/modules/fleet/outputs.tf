output "environment" {
  description = "The exact environment of `dispatcher run`, and of every other command."
  value       = local.environment
}

output "policies" {
  description = "IAM policies (JSON) by who needs them: dispatcher, producer, operator, and worker_<region> for each Region."
  value       = { for who, statements in merge(local.statements, local.workers) : who => jsonencode({ Version = "2012-10-17", Statement = statements }) }
}
