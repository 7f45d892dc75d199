"""Dagster's own commands in a copy of the checkout, with nothing set: they find or start the local stack."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from capstone_dagster.local.processes import free_port
from capstone_dagster.local.state import read_environment
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import current_status
from tests.support.waiting import scaled, wait_for

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MODULE = "capstone_dagster.definitions"
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, and nothing that was built or remembered."""
    copy = tmp_path_factory.mktemp("habit") / "checkout"
    built = shutil.ignore_patterns(".git", ".venv", ".capstone", ".*_cache", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=built)
    return copy


@pytest.fixture
def clean(checkout: Path) -> dict[str, str]:
    """A fresh shell's environment; PYTHONPATH stands for an installation of the copy."""
    return {
        "PATH": os.defpath,
        "HOME": str(checkout.parent),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(checkout),
    }


def run(checkout: Path, environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scaled(DEADLINE_S),
        check=False,
    )


@contextmanager
def running(checkout: Path, environment: dict[str, str], *command: str) -> "Iterator[subprocess.Popen[str]]":
    """A command in a terminal of its own, until its web server answers."""
    port = str(free_port())
    log = checkout.parent / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / command[0], *command[1:], "--port", port],
            cwd=checkout,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=scaled(5)):
                return True
        except OSError:
            return False

    try:
        wait_for("the web server", answers, DEADLINE_S)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def users_of(checkout: Path) -> list[str]:
    """Processes that name the copy in their command line or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(checkout) in word for word in words):
            found.append(f"{process.pid} {words}")
    return found


@pytest.mark.parametrize("command", [("dagster", "dev"), ("dg", "dev")], ids=" ".join)
@pytest.mark.timeout(400)
def test_dev_turns_an_upload_into_events_and_ctrl_c_leaves_nothing(
    command: tuple[str, ...], checkout: Path, clean: dict[str, str], clip: Path
) -> None:
    before = {path.name for path in checkout.iterdir()}
    with running(checkout, clean, *command) as process:
        camera = command[0]
        sent = run(checkout, clean, "capstone", "submit", str(clip), "--camera", camera)
        assert sent.returncode == 0, sent.stderr
        environment = read_environment(checkout / ".capstone")
        assert environment is not None
        database = Database(environment["CAPSTONE_DATABASE_URL"])

        def done() -> dict[str, Any] | None:
            rows = [row for row in database.transact(current_status) if row["camera"] == camera]
            return next((row for row in rows if row["state"] in ("done", "failed")), None)

        row = wait_for("the analysis", done, DEADLINE_S)
        assert row["state"] == "done", row["message"]
        assert database.transact(current_events, row["video_id"])
        database.close()
        with psycopg.connect(environment["DAGSTER_POSTGRES_URL"].replace("+psycopg2", "")) as connection:
            ticks = "SELECT count(*) FROM job_ticks WHERE status = 'FAILURE'"
            assert connection.execute(ticks).fetchone() == (0,)

        # A second terminal works with the stack that is there, whoever started it.
        if command == ("dagster", "dev"):
            again = run(
                checkout, clean, "dagster", "asset", "materialize", "-m", MODULE, "--select", "events",
                "--partition", row["video_id"],
            )  # fmt: skip
            assert again.returncode == 0, again.stderr
            assert "PostgreSQL is ready" not in again.stderr
        second = run(checkout, clean, *command)
        assert (second.returncode, "Traceback" in second.stderr) == (1, False), second.stderr
        assert f"process {process.pid} holds it" in second.stderr  # a second daemon does everything twice

        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(scaled(90))
    wait_for("the end of all it started", lambda: not users_of(checkout))
    assert {path.name for path in checkout.iterdir()} - before <= {".capstone", "__pycache__"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("dagster", "sensor", "list"), "upload_sensor"),
        (("dagster", "asset", "list", "-m", MODULE), "daily_activity"),
        (("dg", "check", "defs"), "loaded successfully"),
        (("dg", "launch", "--job", "retention"), "analyses with events went"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_command_starts_what_it_needs_and_stops_it(
    command: tuple[str, ...], said: str, checkout: Path, clean: dict[str, str]
) -> None:
    outcome = run(checkout, clean, *command)
    assert outcome.returncode == 0, outcome.stderr
    assert said in outcome.stdout + outcome.stderr
    assert users_of(checkout) == []


def test_without_the_local_stack_an_address_is_asked_for_in_one_sentence(
    checkout: Path, clean: dict[str, str]
) -> None:
    outcome = run(checkout, clean | {"CAPSTONE_ENVIRONMENT": "prod"}, "dagster", "sensor", "list")
    assert outcome.returncode == 1
    assert "Traceback" not in outcome.stderr
    assert "DAGSTER_POSTGRES_URL is not set, and CAPSTONE_ENVIRONMENT is 'prod'" in outcome.stderr
