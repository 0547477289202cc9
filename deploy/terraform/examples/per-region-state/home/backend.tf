# `../apply` gives each Region a state of its own. In production: "s3" here, and a REGION.tfbackend (home.tfbackend)
# beside the script with bucket, key and region: a bucket in the Region itself.
terraform {
  backend "local" {}
}
