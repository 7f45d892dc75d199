"""The demo and the running stack as a new user has them: real processes, cold start to clean stop."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from capstone_dagster.local import demo as demo_code
from capstone_dagster.local.demo import DemoFailed, follow, run_demo, running_stack
from capstone_dagster.local.postgres import EVENT_DATABASE, postgres_server
from capstone_dagster.local.processes import free_port
from capstone_dagster.local.state import own_state, read_environment, remove_environment, write_environment
from tests.support.waiting import scaled

pytestmark = pytest.mark.live
CAPSTONE = [sys.executable, "-m", "capstone_dagster.cli"]
# Far above what it takes (a minute on two busy cores): reaching it means that it hangs.
DEADLINE_S = 240
ASSETS = """
{ assetNodes {
    assetKey { path }
    dependencyKeys { path }
    assetMaterializations(limit: 1) { partition }
} }
"""
RUNS = "{ runsOrError { ... on Runs { results { status jobName tags { key value } } } } }"


def environment() -> dict[str, str]:
    """As in a fresh shell: what this test process was given for emulators must not leak into the stack."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPSTONE_", "AWS_"))}
    return {**kept, "COLUMNS": "200"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack's directory that the tests of this file share, in order: the demo's second run is faster."""
    return tmp_path_factory.mktemp("stack") / "state"


def demo(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CAPSTONE, "demo", "--state", str(state), "--port", str(free_port()), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=scaled(DEADLINE_S),
        check=False,
    )


def users_of(state: Path) -> list[psutil.Process]:
    """Processes that name this directory in their command line."""
    return [each for each in psutil.process_iter(["cmdline"]) if str(state) in str(each.info["cmdline"])]


def contents(state: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the event store that a second demo must not add to."""
    queries = {
        "analyses": "SELECT analysis_id, published_at, run_id FROM capstone.analyses ORDER BY 1",
        "events": "SELECT event_id, start_ms, end_ms FROM capstone.events ORDER BY 1",
        "status": "SELECT state FROM capstone.video_status ORDER BY uploaded_at",
    }
    with postgres_server(state / "postgres", state / "logs" / "test.log") as server:
        engine = sa.create_engine(server.url(EVENT_DATABASE, "psycopg"))
        with engine.connect() as connection:
            found = {name: [tuple(r) for r in connection.execute(sa.text(q))] for name, q in queries.items()}
        engine.dispose()
    return found


@pytest.mark.timeout(2 * DEADLINE_S)
def test_the_demo_shows_a_videos_whole_way_and_a_second_one_adds_nothing(state: Path) -> None:
    first = demo(state)

    assert first.returncode == 0, first.stderr + first.stdout
    legs = dict(re.findall(r"^  (.*\S)\s+(\d+\.\d\d) s$", first.stdout, re.MULTILINE))
    assert list(legs) == [
        "upload → message in the queue",
        "message → run started",
        "run started → first frame analysed",
        "first frame → last frame",
        "last frame → events persisted",
        "in all",
    ]
    before = contents(state)
    assert len(before["analyses"]) == 1
    assert before["events"]
    assert all(0 <= start < end <= 17_600 for _, start, end in before["events"])
    for name in ("contact_sheet.jpg", "frames.parquet", "detections.parquet", "events.parquet"):
        path = re.search(rf"^  (/.*{name})$", first.stdout, re.MULTILINE)
        assert path is not None
        assert Path(path[1]).stat().st_size > 0
    assert not users_of(state)

    second = demo(state)

    assert second.returncode == 0, second.stderr + second.stdout
    assert "no inference ran" in second.stdout
    after = contents(state)
    assert (after["analyses"], after["events"]) == (before["analyses"], before["events"])
    assert after["status"] == [("done",), ("done",)]


@pytest.mark.timeout(2 * DEADLINE_S)
def test_a_demo_that_is_stopped_while_it_analyses_leaves_no_process_and_does_not_block_the_next(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    with subprocess.Popen(
        [*CAPSTONE, "demo", "--state", str(state), "--port", str(free_port())],
        env={**environment(), "CAPSTONE_SAMPLE_FPS": "0"},  # every frame: long enough to be caught at it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as interrupted:
        assert interrupted.stderr is not None
        assert any("Analysing" in line for line in iter(interrupted.stderr.readline, ""))
        interrupted.send_signal(signal.SIGTERM)
        rest = interrupted.stderr.read()
        assert interrupted.wait(scaled(90)) == 143, rest
    assert "Traceback" not in rest
    assert read_environment(state) is None
    assert not users_of(state)

    outcome = demo(state)

    assert outcome.returncode == 0, outcome.stderr + outcome.stdout


@pytest.fixture
def running(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`capstone dev`, and the address of its UI."""
    port = free_port()
    process = subprocess.Popen(
        [*CAPSTONE, "dev", "--state", str(state), "--port", str(port)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ui = f"http://127.0.0.1:{port}"
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C stops everything" in line:
                break
        assert process.poll() is None, "".join(said)
        yield process, ui
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(scaled(60))


def ask(ui: str, query: str) -> Any:
    request = urllib.request.Request(
        f"{ui}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=scaled(30)) as answer:
        return json.load(answer)["data"]


@pytest.mark.timeout(DEADLINE_S)
def test_dev_serves_the_ui_and_other_terminals_until_ctrl_c(
    state: Path, running: tuple[subprocess.Popen[str], str], clip: Path, tmp_path: Path
) -> None:
    process, ui = running

    def capstone(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        outcome = subprocess.run(
            [*CAPSTONE, *arguments, "--state", str(state)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=scaled(DEADLINE_S),
            check=False,
        )
        assert outcome.returncode == code, outcome.stderr
        return outcome

    # What the demo left is still there after the restart, in PostgreSQL and in Dagster's UI.
    nodes = {node["assetKey"]["path"][0]: node for node in ask(ui, ASSETS)["assetNodes"]}
    lineage = {name: [key["path"][0] for key in node["dependencyKeys"]] for name, node in nodes.items()}
    assert lineage == {
        "raw_videos": [],
        "extracted_frames": ["raw_videos"],
        "detections": ["raw_videos"],
        "events": ["detections"],
        "daily_activity": ["events"],
        "service_report": [],
        "delivery_report": [],
    }
    for name in ("raw_videos", "extracted_frames", "detections", "events"):
        assert nodes[name]["assetMaterializations"], name
    runs = ask(ui, RUNS)["runsOrError"]["results"]
    assert "SUCCESS" in {run["status"] for run in runs if run["jobName"] == "analyze_upload"}

    # Another terminal joins by the state directory alone, and waits for the events.
    gate = ("--camera", "gate", "--external-id", "84")
    events = json.loads(capstone("submit", str(clip), *gate, "--wait", "--json").stdout)
    assert {event["camera"] for event in events} == {"gate"}
    assert json.loads(capstone("events", "84", "--json").stdout) == events
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all")
    refused = capstone("demo", str(broken), code=1).stderr
    assert "undecodable-video" in refused
    assert str(state / "logs") in refused
    assert "Traceback" not in refused
    with subprocess.Popen(
        [*CAPSTONE, "status", "84", "--watch", "--state", str(state)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        for _ in range(2):  # it shows the table again
            assert any(" done " in line for line in iter(watching.stdout.readline, ""))
        watching.send_signal(signal.SIGINT)
        assert watching.wait(scaled(30)) == 0

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=scaled(90))
    assert process.returncode == 0, said
    assert "Stopping" in said
    assert "Traceback" not in said
    assert read_environment(state) is None


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Path]:
    """A state directory on which, as far as can be seen, another process runs a stack."""
    before = dict(os.environ)
    state = tmp_path / "joined"
    with own_state(state):
        write_environment(state, {"CAPSTONE_UI_PORT": "3000", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
        yield state
    os.environ.clear()
    os.environ.update(before)


def silent(what: str, fraction: float | None = None) -> None:
    del what, fraction


def test_a_joined_stack_that_stops_is_noticed(joined: Path) -> None:
    with running_stack(joined, 3000, silent) as stack:
        stack.check()
        remove_environment(joined)
        with pytest.raises(DemoFailed, match="stopped by its own terminal"):
            stack.check()


def test_a_server_that_stops_first_is_told_as_the_stacks_stop(
    joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        remove_environment(joined)
        raise ConnectionError("connection refused")

    monkeypatch.setattr(demo_code, "submit_video", refused)
    monkeypatch.setenv("AWS_REGION", "ap-northeast-2")
    with (
        running_stack(joined, 3000, silent) as stack,
        pytest.raises(DemoFailed, match="stopped by its own terminal"),
    ):
        follow(tmp_path / "a.mp4", stack, silent)


@pytest.mark.parametrize(
    ("model", "own_video", "warned"),
    [(None, True, True), (None, False, False), ("embedded", True, True), ("yolo11n.pt", True, False)],
)
def test_a_joined_stacks_model_is_told(
    joined: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str | None,
    own_video: bool,
    warned: bool,
) -> None:
    variables = {"CAPSTONE_UI_PORT": "3000"} | ({"CAPSTONE_MODEL": model} if model else {})
    write_environment(joined, variables)
    monkeypatch.setenv("CAPSTONE_MODEL", "mine.pt")
    video = tmp_path / "mine.mp4"
    video.write_bytes(b"video")

    def enough(*_: object, **__: object) -> None:
        raise DemoFailed("enough")

    monkeypatch.setattr(demo_code, "follow", enough)
    with pytest.raises(DemoFailed, match="enough"):
        run_demo(video if own_video else None, joined, 3000)

    shown = " ".join(capsys.readouterr().err.split())
    assert f"analyses with the model {model or 'embedded'}" in shown
    assert "CAPSTONE_MODEL=mine.pt would count" in shown
    assert ("expect poor results" in shown) == warned
