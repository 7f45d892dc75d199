"""What commands may load: help and typing errors nothing that takes long, reading only what it reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capstone_dagster.storage.database import Database
from tests.conftest import Aws
from tests.support.dagster_home import dagster_home

HEAVY = {
    *(
        "dagster",
        "dagster_postgres",
        "dagster_aws",
        "batch_gpu",
        "alembic",
        "sqlalchemy",
        "psycopg",
        "psycopg2",
    ),
    *("boto3", "botocore", "numpy", "cv2", "av", "pyarrow", "openvino", "torch", "ultralytics", "matplotlib"),
    *("rich", "pydantic_settings", "opentelemetry", "jinja2"),
}
_REPORT = """
import json, sys
from capstone_dagster.cli import main
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code or 0, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def loaded(*words: str, **environment: str) -> tuple[int, set[str]]:
    """Exit code of a command in a process of its own, and which heavy packages it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, *words],
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, HEAVY & set(names)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("status --help", 0),
        ("export detections --help", 0),
        ("dlq --help", 0),
        ("status --nonsense", 2),
        ("status --limit many", 2),
        ("retry", 2),
        ("retry --class nonsense", 2),
        ("retry --since tomorrow", 2),
        ("submit", 2),
        ("submit video.mp4 --recorded-at noon", 2),
        ("submit a.mp4 b.mp4 --external-id 84", 2),
    ],
)
def test_help_and_typing_errors_load_nothing_that_takes_long(words: str, code: int) -> None:
    assert loaded(*words.split()) == (code, set())


READS = {"sqlalchemy", "psycopg", "pydantic_settings", "rich"}


@pytest.mark.parametrize(
    ("words", "may"),
    [
        ("status", READS),
        ("status --json", READS),
        ("events", READS),
        ("intake status", READS),
        ("slo", READS),
        ("dora", READS),
        ("incidents", READS),
        ("perf-report", READS),
        ("alerts", {"boto3", "botocore", "pydantic_settings", "rich"}),
        ("dlq list", {"boto3", "botocore", "pydantic_settings", "rich"}),
    ],
)
def test_reading_loads_only_what_it_reads(
    words: str, may: set[str], aws: Aws, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path))
    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    code, heavy = loaded(
        *words.split(),
        **own,
        CAPSTONE_DATABASE_URL=database.engine.url.render_as_string(hide_password=False),
        CAPSTONE_QUEUE_URL=aws.resources.queue_url,
        CAPSTONE_ALERT_TOPIC_ARN="arn:aws:sns:ap-northeast-2:123456789012:capstone-alerts",
        DAGSTER_POSTGRES_URL=f"sqlite:///{tmp_path}/history/runs.db",
    )
    assert heavy <= may
    assert code == 0
