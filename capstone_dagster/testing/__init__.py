"""A pytest plugin for tests of rules, assets and consumers: real servers, tiny videos, no daemon.

    # conftest.py
    pytest_plugins = ["capstone_dagster.testing"]

needs pytest and the extra `local`, and nothing else imports it. `docs/testing.md` shows what it is good for.

PYTEST_DONT_REWRITE: nothing here asserts, so a conftest may import its types before pytest loads the plugin.
"""

from capstone_dagster.testing.pipeline import (
    Analyzed,
    Pipeline,
    analyzed,
    capstone_settings,
    pipeline,
    services,
    stand_in_detector,
)
from capstone_dagster.testing.scenes import (
    MakeClip,
    Scene,
    Square,
    SquareDetector,
    clip,
    make_clip,
    square_clip,
)
from capstone_dagster.testing.servers import (
    Aws,
    aws,
    aws_endpoint,
    aws_reset_path,
    database,
    database_url,
    migrated_database,
    own_environment,
    postgres,
)
from capstone_dagster.testing.visits import Visit, detections_of, events_of

__all__ = [
    "Analyzed",
    "Aws",
    "MakeClip",
    "Pipeline",
    "Scene",
    "Square",
    "SquareDetector",
    "Visit",
    "analyzed",
    "aws",
    "aws_endpoint",
    "aws_reset_path",
    "capstone_settings",
    "clip",
    "database",
    "database_url",
    "detections_of",
    "events_of",
    "make_clip",
    "migrated_database",
    "own_environment",
    "pipeline",
    "postgres",
    "services",
    "square_clip",
    "stand_in_detector",
]
