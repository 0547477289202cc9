output "cluster_arn" {
  description = "ARN of the cluster, for Prometheus's discovery."
  value       = aws_ecs_cluster.this.arn
}

output "dns_name" {
  description = "Name inside the VPC that has the address of every task."
  value       = "${aws_service_discovery_service.this.name}.${aws_service_discovery_private_dns_namespace.this.name}"
}
