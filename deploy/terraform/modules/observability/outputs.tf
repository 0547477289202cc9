output "alarm_topic_arn" {
  description = "ARN of the topic that the Region's alarms go to."
  value       = aws_sns_topic.alarms.arn
}
