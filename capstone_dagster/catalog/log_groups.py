"""Where log lines go, from which level on, and for how long they are kept."""

from __future__ import annotations

from .model import LogGroup

INTAKE = LogGroup(
    "/capstone/intake",
    "INFO",
    7,
    "shipper",
    "What the upload sensor did with each message: received, ignored, refused, asked for a run.",
)
BATCH_JOB = LogGroup(
    "/aws/batch/job",
    "INFO",
    14,
    "awslogs",
    "Standard output of the jobs' containers: start, end, resources, and what runs say from INFO up.",
)
VIDEO_ANALYSIS = LogGroup(
    "/capstone/video-analysis",
    "DEBUG",
    30,
    "shipper",
    "The whole story of each run: steps, assets, what monitoring and the launcher report, sensor ticks.",
)
WEBSERVER = LogGroup(
    "/ecs/capstone-webserver", "WARNING", 7, "awslogs", "What Dagster's web server complains about."
)
DAEMON = LogGroup("/ecs/capstone-daemon", "WARNING", 7, "awslogs", "What Dagster's daemon complains about.")

LOG_GROUPS = (INTAKE, BATCH_JOB, VIDEO_ANALYSIS, WEBSERVER, DAEMON)
