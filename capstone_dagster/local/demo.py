"""The demo: analyses one video on this machine, from upload to events, and times each stage."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from capstone_dagster import terminal
from capstone_dagster.analysis import PyTorchMissing
from capstone_dagster.clients import aws_client
from capstone_dagster.local.clip import DEMO_CLIP, PEOPLE_MS
from capstone_dagster.local.dagster_services import UI_PORT_VARIABLE
from capstone_dagster.local.detector import DEMO_SCORE
from capstone_dagster.local.stack import LocalStack, enter_environment, local_stack
from capstone_dagster.local.state import read_environment
from capstone_dagster.model_files import EMBEDDED_MODEL, POOR_RESULTS, ModelUnavailable, locate_model
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.objects import open_object_store
from capstone_dagster.storage.video_status import status_of_upload
from capstone_dagster.storage.videos import with_recording_times
from capstone_dagster.submit import Submission, submit_video
from capstone_dagster.terminal import Report
from capstone_dagster.terminal_tables import events_table

if TYPE_CHECKING:
    from dagster import DagsterInstance, RunRecord

# What `make demo VIDEO=…` tries before the embedded detector, which knows only its own scenes.
SMALL_MODEL = "yolo11n.pt"
# Nothing the pipeline does takes this long without a sign of life.
_STALL_S = 180.0
_POLL_S = 0.2
# Dagster, the emulator and PostgreSQL may each take their time to stop.
_STOPPING_S = 30.0
# Failures that the end of a server does not explain.
_FINDINGS = {"internal", "configuration", "undecodable-video"}
_FINAL = {"done", "failed", "cancelled", "superseded"}
_STEPS = {
    "waiting": "Uploaded; waiting for S3's message to reach the sensor",
    "received": "Received; waiting for its run",
    "queued": "Queued; waiting for its run to start",
    "running": "Analysing",
    "done": "Done; the run is closing",
}


class DemoFailed(Exception):
    """The video could not be analysed; the message says why and where to look."""

    failure_class = "internal"


@dataclass(frozen=True, slots=True)
class Leg:
    """One stage of the analysis, in seconds."""

    name: str
    seconds: float


def prepare(stack: LocalStack) -> None:
    """What a stack needs before Dagster starts on it: the event store's tables."""
    database = Database(stack.environment["CAPSTONE_DATABASE_URL"])
    database.migrate()
    database.close()


def run_demo(video: Path | None, state: Path, port: int) -> None:
    """Analyse one video with the local stack and show the result.

    Raises:
        DemoFailed, LocalStackError, NotSubmitted, ConfigurationError: with the sentence to show.
    """
    began = time.monotonic()
    if video is not None and not video.is_file():
        raise DemoFailed(f"Expected a video file, but there is none at {video}.")
    with terminal.progress("Preparing") as report:
        joined = read_environment(state)
        if joined is not None:
            _warn_of_model(joined, own_video=video is not None)
        elif video is not None:
            _choose_model(report)
        elif model_of(os.environ) == EMBEDDED_MODEL:
            os.environ.setdefault("CAPSTONE_MIN_SCORE", str(DEMO_SCORE))
        with running_stack(state, port, report) as running:
            outcome = follow(video or DEMO_CLIP, running, report, camera="demo" if video is None else None)
            files = _fetch(outcome, state, report)
    _show(outcome, files, is_clip=video is None, running=running, seconds=time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class RunningStack:
    """The stack that the demo works with.

    Attributes:
        stays: another process runs it, so its UI is there when the demo is over.
        check: raises if a part of it ended.
    """

    ui: str
    logs: Path
    stays: bool
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the video.

    Attributes:
        reused: its detections existed before: nothing was analysed again.
    """

    submission: Submission
    run_id: str
    legs: Sequence[Leg]
    events: Sequence[Mapping[str, Any]]
    analysis: Mapping[str, Any]
    reused: bool


def model_of(environment: Mapping[str, str]) -> str:
    """The model that a local stack analyses with, out of its variables."""
    return environment.get("CAPSTONE_MODEL") or EMBEDDED_MODEL


def warn_if_embedded(environment: Mapping[str, str]) -> None:
    """Warn if a running stack uses the embedded model, which is not made for other videos."""
    if model_of(environment) == EMBEDDED_MODEL:
        terminal.err.print(
            f"[yellow]Warning:[/] {escape(POOR_RESULTS)} For real ones stop the stack and start it with a "
            f"YOLO model: CAPSTONE_MODEL={SMALL_MODEL} make dev",
            soft_wrap=True,
        )


def _warn_of_model(environment: Mapping[str, str], *, own_video: bool) -> None:
    """Say that a running stack uses its own model, whichever is set here."""
    model, own = model_of(environment), os.environ.get("CAPSTONE_MODEL")
    message = f"The stack that is running analyses with the model {model}"
    if own and own != model:
        message += f"; CAPSTONE_MODEL={own} would count for a stack of the demo's own only"
    terminal.err.print(f"{message}.", markup=False, soft_wrap=True)
    if own_video:
        warn_if_embedded(environment)


def _choose_model(report: Report) -> None:
    """Choose a model for a user's own video; the embedded detector, with a warning, is the last resort."""
    if os.environ.get("CAPSTONE_MODEL"):
        return
    report(f"Fetching the model {SMALL_MODEL}")
    settings = read_settings()
    try:
        cache = Path(settings.model_cache).expanduser()
        found = locate_model(SMALL_MODEL, cache=cache, s3=lambda: aws_client("s3"))
    except (ModelUnavailable, PyTorchMissing) as error:
        terminal.err.print(
            f"[yellow]Warning:[/] {escape(str(error))}\nThe embedded model is used instead. "
            f"{escape(POOR_RESULTS)} Set CAPSTONE_MODEL to a YOLO model file for real ones.",
            soft_wrap=True,
        )
        os.environ["CAPSTONE_MODEL"] = EMBEDDED_MODEL
    else:
        os.environ["CAPSTONE_MODEL"] = str(found)


@contextmanager
def running_stack(state: Path, port: int, report: Report) -> Iterator[RunningStack]:
    """The stack that runs on `state`, else one for the time of the block."""
    environment = read_environment(state)
    if environment is not None:
        report("Using the local stack that is running")
        enter_environment(environment)
        ui = f"http://127.0.0.1:{environment[UI_PORT_VARIABLE]}"

        def check() -> None:
            if read_environment(state) != environment:  # gone, or another one since
                raise DemoFailed(
                    "The local stack that the demo worked with was stopped by its own terminal. Start it "
                    "again with `make dev`, which goes on with the video, or run the demo without one."
                )

        yield RunningStack(ui, state / "logs", stays=True, check=check)
        return
    with local_stack(state, webserver_port=port, before_dagster=prepare, on_progress=report) as stack:
        assert stack.dagster is not None
        enter_environment(stack.environment)
        terminal.err.print(f"Dagster UI, while this runs: {stack.dagster.url}")
        yield RunningStack(stack.dagster.url, stack.logs, stays=False, check=stack.check)


def follow(path: Path, running: RunningStack, report: Report, *, camera: str | None = None) -> Outcome:
    """Upload a file and follow it until its events are persisted.

    Raises:
        DemoFailed: its run failed, or nothing moved for long.
    """
    report(f"Uploading {path.name}")
    sent_at = time.time()
    with _naming_a_stop(running):
        submission = submit_video(path, aws_client("s3"), read_settings(), camera=camera)
        record = _wait(submission, running, report)
        return _outcome(record, submission, sent_at)


@contextmanager
def _naming_a_stop(running: RunningStack) -> Iterator[None]:
    """Report an error as the stop of the stack if another terminal stops it: its servers end one by one."""
    try:
        yield
    except Exception as error:
        if getattr(error, "failure_class", "") not in _FINDINGS:
            give_up = time.monotonic() + (_STOPPING_S if running.stays else 0)
            while time.monotonic() < give_up:
                running.check()
                time.sleep(_POLL_S)
        raise


def _wait(submission: Submission, running: RunningStack, report: Report) -> RunRecord:
    """Follow the upload until its run is over.

    Raises:
        DemoFailed: it failed; or, on a stack that analyses nothing else, nothing moved for long.
    """
    from dagster import DagsterInstance, DagsterRunStatus

    database = Database(read_settings().event_store_url())
    seen, since = None, time.monotonic()
    with DagsterInstance.get() as instance:
        while True:
            running.check()
            row = database.transact(status_of_upload, submission.upload_id)
            state = row["state"] if row else "waiting"
            if row != seen:
                seen, since = row, time.monotonic()
            report(
                _STEPS.get(state, state),
                row["progress"] if row and state == "running" and row["progress"] else None,
            )
            if row and state in _FINAL and row["run_id"]:
                record = instance.get_run_record_by_id(row["run_id"])
                if record is not None and record.dagster_run.is_finished:
                    break
            if not running.stays and time.monotonic() - since > _STALL_S:
                raise DemoFailed(
                    f"Nothing has moved for {_STALL_S:.0f} s: the video is {state}. See the logs in "
                    f"{running.logs}; `make dev` shows the same in Dagster's UI."
                )
            time.sleep(_POLL_S)
    if record.dagster_run.status != DagsterRunStatus.SUCCESS:
        raise DemoFailed(
            f"The analysis failed ({row['failure_class'] or state}): {row['message'] or ''} "
            f"Run {row['run_id']}; logs are in {running.logs}, and `make dev` shows the run."
        )
    return record


def _outcome(record: RunRecord, submission: Submission, sent_at: float) -> Outcome:
    from dagster import DagsterInstance

    database = Database(read_settings().event_store_url())
    status = database.transact(status_of_upload, submission.upload_id)
    assert status is not None
    current = next(row for row in database.transact(analyses_of, submission.video_id) if row["is_current"])
    with DagsterInstance.get() as instance:
        times = _times(instance, record, submission.video_id)
    stations = [
        ("upload → message in the queue", times.get("announced_at")),
        ("message → run started", record.start_time),
        ("run started → first frame analysed", times.get("first_frame_at")),
        ("first frame → last frame", times.get("last_frame_at")),
        ("last frame → events persisted", status["updated_at"].timestamp()),
    ]
    if times.get("reused"):
        stations[2:] = [
            ("run started → found analysed already, events current", status["updated_at"].timestamp())
        ]
    legs, last = [], sent_at
    for name, at in stations:
        if at is not None:
            # S3's times are whole milliseconds, so a very short leg may come out negative.
            legs.append(Leg(name, max(at - last, 0.0)))
            last = max(at, last)
    return Outcome(
        submission=submission,
        run_id=record.dagster_run.run_id,
        legs=legs,
        events=database.transact(
            with_recording_times, database.transact(current_events, submission.video_id)
        ),
        analysis=current,
        reused=bool(times.get("reused")),
    )


def _times(instance: DagsterInstance, record: RunRecord, video_id: str) -> dict[str, Any]:
    """Moments that the materialisations of this run, and of the upload, carry."""
    from dagster import AssetKey

    found: dict[str, Any] = {}
    for asset in ("raw_videos", "extracted_frames"):
        fetched = instance.fetch_materializations(_of_partition(AssetKey(asset), video_id), limit=1)
        for event in fetched.records:
            materialization = event.asset_materialization
            if materialization is None or (
                asset == "extracted_frames" and event.run_id != record.dagster_run.run_id
            ):
                continue
            found |= {name: value.value for name, value in materialization.metadata.items()}
    return found


def _of_partition(asset: Any, partition: str) -> Any:
    from dagster import AssetRecordsFilter

    return AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])


def _fetch(outcome: Outcome, state: Path, report: Report) -> Path:
    """Copy the results out of the local S3, where they can be opened when the stack is down."""
    report("Fetching the results")
    settings = read_settings()
    objects = open_object_store(settings.required("derived_url"), lambda: aws_client("s3"))
    target = state / "demo" / outcome.submission.video_id
    prefixes = (
        f"detections/{outcome.analysis['detection_id']}/",
        f"analyses/{outcome.analysis['analysis_id']}/",
    )
    for prefix in prefixes:
        for key in objects.keys(prefix):
            path = target / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            objects.get_file(key, path)
    return target


def _show(outcome: Outcome, files: Path, *, is_clip: bool, running: RunningStack, seconds: float) -> None:
    say = terminal.out.print
    url = escape(outcome.submission.url)
    say(f"\n[bold]{url}[/] → video {outcome.submission.video_id}\n", soft_wrap=True)
    say("[bold]How long each leg took[/]")
    for leg in outcome.legs:
        say(f"  {leg.name:<52}{leg.seconds:>7.2f} s")
    say(f"  {'in all':<52}{sum(leg.seconds for leg in outcome.legs):>7.2f} s")
    if outcome.reused:
        say("\nThe same bytes were analysed before: no inference ran, and nothing was added.")
    count = len(outcome.events)
    say(f"\n[bold]{count} event{'' if count == 1 else 's'}[/], as consumers read them from current_events")
    if outcome.events:
        say(events_table(outcome.events))
    if is_clip:
        _compare_with_truth(outcome.events)
    say("\n[bold]Where the results are[/] (copies of what lies in the local S3)")
    for name in ("contact_sheet.jpg", "frames.parquet", "detections.parquet", "events.parquet"):
        say(f"  {files / name}", markup=False, soft_wrap=True)
    say(f"  {files / 'thumbnails'}/", markup=False, soft_wrap=True)
    say("\n[bold]How to go on[/]")
    if running.stays:
        say(f"  {running.ui:<30} Dagster's UI, still running")
    else:
        say(
            f"  make dev                       the same stack, left running, with the UI at {running.ui}",
            soft_wrap=True,
        )
    say("  make demo VIDEO=my-video.mp4   the same with your own video")
    say(f"  The UI shows this run under Runs as {outcome.run_id[:8]}.")
    say(f"\nDone in {seconds:.0f} s.")


def _compare_with_truth(events: Sequence[Mapping[str, Any]]) -> None:
    """Compare the events with the times at which people are in the clip."""
    found = [(event["start_ms"], event["end_ms"]) for event in events if event["label"] == "person"]

    def overlapping(ones: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> int:
        return sum(any(min(a[1], b[1]) > max(a[0], b[0]) for b in others) for a in ones)

    terminal.out.print(
        f"The clip's truth: {len(PEOPLE_MS)} presences of people, {overlapping(PEOPLE_MS, found)} of them "
        f"while an event was on; {overlapping(found, PEOPLE_MS)} of {len(found)} person events fall into a "
        "presence."
    )
