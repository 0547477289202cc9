output "vpc_id" {
  description = "Id of the VPC."
  value       = aws_vpc.this.id
}

output "subnet_ids" {
  description = "Ids of the private subnets, one in each zone."
  value       = [for zone in var.availability_zones : aws_subnet.private[zone].id]

  # Tasks that start before there is a way out cannot pull their image.
  depends_on = [aws_route.out, aws_route_table_association.private, aws_vpc_endpoint.gateway, aws_vpc_endpoint.interface]
}
