"""Metrics that AWS publishes of the services that this system runs on."""

from __future__ import annotations

from .model import AwsMetric

_DATABASE = {"DBInstanceIdentifier": "database"}
_WEBSERVER = {"ClusterName": "cluster", "ServiceName": "webserver_service"}
_DAEMON = {"ClusterName": "cluster", "ServiceName": "daemon_service"}
_LOAD_BALANCER = {"LoadBalancer": "load_balancer"}

DATABASE_CPU = AwsMetric("AWS/RDS", "CPUUtilization", "Percent", _DATABASE)
DATABASE_CONNECTIONS = AwsMetric(
    "AWS/RDS", "DatabaseConnections", "Count", _DATABASE, "sum(pg_stat_activity_count)"
)
DATABASE_FREE_STORAGE = AwsMetric(
    "AWS/RDS", "FreeStorageSpace", "Bytes", _DATABASE, 'min(node_filesystem_avail_bytes{mountpoint="/"})'
)

WEBSERVER_CPU = AwsMetric("AWS/ECS", "CPUUtilization", "Percent", _WEBSERVER)
WEBSERVER_MEMORY = AwsMetric("AWS/ECS", "MemoryUtilization", "Percent", _WEBSERVER)
DAEMON_CPU = AwsMetric("AWS/ECS", "CPUUtilization", "Percent", _DAEMON)
DAEMON_MEMORY = AwsMetric("AWS/ECS", "MemoryUtilization", "Percent", _DAEMON)

REQUESTS = AwsMetric(
    "AWS/ApplicationELB", "RequestCount", "Count", _LOAD_BALANCER, "capstone_http_requests_total"
)
RESPONSE_TIME = AwsMetric(
    "AWS/ApplicationELB", "TargetResponseTime", "Seconds", _LOAD_BALANCER, "capstone_http_request_seconds"
)
# What the web server answered, and what the load balancer answered in its place when it did not.
TARGET_5XX = AwsMetric(
    "AWS/ApplicationELB",
    "HTTPCode_Target_5XX_Count",
    "Count",
    _LOAD_BALANCER,
    'capstone_http_requests_total{code="5xx"}',
)
LOAD_BALANCER_5XX = AwsMetric("AWS/ApplicationELB", "HTTPCode_ELB_5XX_Count", "Count", _LOAD_BALANCER)

QUEUE_LENGTH = AwsMetric(
    "AWS/SQS",
    "ApproximateNumberOfMessagesVisible",
    "Count",
    {"QueueName": "upload_queue"},
    'sum(capstone_queue_messages{queue="uploads"})',
)
# SQS's own word on it, which is there even when the sensor that measures QueueAge is not.
QUEUE_OLDEST = AwsMetric(
    "AWS/SQS",
    "ApproximateAgeOfOldestMessage",
    "Seconds",
    {"QueueName": "upload_queue"},
    "max(capstone_queue_age_seconds)",
)
DEAD_LETTER_QUEUE_LENGTH = AwsMetric(
    "AWS/SQS",
    "ApproximateNumberOfMessagesVisible",
    "Count",
    {"QueueName": "dead_letter_queue"},
    'sum(capstone_queue_messages{queue="dead-letters"})',
)

AWS_METRICS: tuple[AwsMetric, ...] = tuple(
    value for value in globals().values() if isinstance(value, AwsMetric)
)
