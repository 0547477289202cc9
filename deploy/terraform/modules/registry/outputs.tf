output "repository_url" {
  description = "Where to push images."
  value       = aws_ecr_repository.this.repository_url
}

output "image" {
  description = "The value of `image` but for the digest: {region} stands for the Region of the task that pulls."
  value       = replace(aws_ecr_repository.this.repository_url, ".${var.region}.", ".{region}.")
}
