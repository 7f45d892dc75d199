"""Where log lines go, from which level on, and how long they are kept.

awslogs carries a container's whole standard output into one group, so the group follows from the container.
"""

from __future__ import annotations

from .model import LogGroup

INTAKE = LogGroup(
    "/capstone/intake",
    "INFO",
    7,
    "awslogs",
    "Standard output of the code location: what the upload sensor did with each message (received, ignored, "
    "refused, run requested), the other sensors, and what Dagster recorded about ended runs outside of their "
    "workers.",
)
BATCH_JOB = LogGroup(
    "/aws/batch/job",
    "INFO",
    14,
    "sensor",
    "Start, end, reason and resources of each job, written by the sensor that watches jobs.",
)
VIDEO_ANALYSIS = LogGroup(
    "/capstone/video-analysis",
    "DEBUG",
    30,
    "awslogs",
    "Standard output of the jobs' containers: each run with its steps, assets, retries and failures.",
)
WEBSERVER = LogGroup(
    "/ecs/capstone-webserver", "WARNING", 7, "awslogs", "Warnings and errors of Dagster's web server."
)
DAEMON = LogGroup("/ecs/capstone-daemon", "WARNING", 7, "awslogs", "Warnings and errors of Dagster's daemon.")

LOG_GROUPS = (INTAKE, BATCH_JOB, VIDEO_ANALYSIS, WEBSERVER, DAEMON)
