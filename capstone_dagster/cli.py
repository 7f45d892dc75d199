"""The `capstone` command: thin commands over the rooms, and the sentence that every failure ends with."""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from capstone_dagster import dead_letters, terminal
from capstone_dagster.joining import DEFAULT_STATE, START_STACK, FormatOption, StateOption, join_local_stack
from capstone_dagster.settings import NotConfigured, read_settings

if TYPE_CHECKING:  # what a command needs it imports itself, so that --help stays quick
    from collections.abc import Iterator
    from types import FrameType

    from capstone_dagster.storage.event_store import EventStore

app = typer.Typer(
    name="capstone",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Uploaded videos become persisted events.\n\n"
    "Begin with **capstone demo**, which shows the whole way on this machine. **capstone dev** keeps the "
    "same stack running; then **submit** videos and watch **status** and **events** from another terminal. "
    "Settings are environment variables, listed in the README; **doctor** checks them.",
)


class Compute(StrEnum):
    """Where runs of `capstone dev` execute."""

    LOCAL = "local"
    BATCH = "batch"


PortOption = Annotated[
    int, typer.Option("--port", envvar="CAPSTONE_UI_PORT", min=1, max=65535, help="Port of the Dagster UI.")
]


@app.command()
def demo(
    video: Annotated[
        Path | None, typer.Argument(help="Your own video; without one, a clip made from two photographs.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    port: PortOption = 3000,
) -> None:
    """Show the whole way of one video on this machine, from upload to events, and stop again.

    Starts PostgreSQL, an AWS emulator and Dagster (or uses those of a running `capstone dev`), uploads the
    video to the local S3, and waits until its events are in PostgreSQL.
    """
    from capstone_dagster.local.demo import run_demo

    run_demo(video, state.resolve(), port)


@app.command()
def dev(
    state: StateOption = DEFAULT_STATE,
    port: PortOption = 3000,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget everything earlier stacks left.")] = False,
    compute: Annotated[
        Compute,
        typer.Option(
            help="Where runs execute: as processes here, or as jobs of a fake AWS Batch, as in the cloud."
        ),
    ] = Compute.LOCAL,
) -> None:
    """Run the local stack with the Dagster UI until Ctrl-C."""
    from capstone_dagster.local.cloud import fake_batch
    from capstone_dagster.local.demo import model_of, prepare
    from capstone_dagster.local.stack import LocalStack, local_stack

    with ExitStack() as running:

        def before_dagster(stack: LocalStack) -> None:
            prepare(stack)
            if compute is Compute.BATCH:
                running.enter_context(fake_batch(stack))

        with terminal.progress("Starting the local stack") as report:
            stack = running.enter_context(
                local_stack(
                    state.resolve(),
                    webserver_port=port,
                    fresh=fresh,
                    before_dagster=before_dagster,
                    on_progress=report,
                )
            )
        assert stack.dagster is not None
        terminal.out.print(f"Dagster UI   {stack.dagster.url}")
        terminal.out.print(f"Logs         {stack.logs}", markup=False, soft_wrap=True)
        if compute is Compute.BATCH:
            terminal.out.print(f"AWS Batch    {stack.environment['AWS_ENDPOINT_URL_BATCH']} (fake)")
        terminal.out.print(f"Model        {model_of(stack.environment)}", markup=False, soft_wrap=True)
        terminal.out.print("Try, in another terminal:")
        terminal.out.print("             .venv/bin/capstone submit my-video.mp4")
        terminal.out.print("             .venv/bin/capstone status")
        terminal.out.print("             .venv/bin/capstone events")
        terminal.out.print("Ctrl-C stops everything.")
        try:
            while True:
                stack.check()
                time.sleep(1)
        except KeyboardInterrupt:
            # This is how it is meant to end: no failure, for make neither.
            terminal.err.print("Stopping …")


@app.command()
def submit(
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    external_id: Annotated[
        str | None, typer.Option(help="The back end's own id of the video (one video only).")
    ] = None,
    camera: Annotated[
        str | None, typer.Option(help="Where it was filmed; also the key's first folder.")
    ] = None,
    recorded_at: Annotated[
        str | None, typer.Option(help="Wall-clock time of the first frame, ISO 8601.", metavar="TIME")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Upload videos for analysis."""
    from capstone_dagster.clients import aws_client
    from capstone_dagster.submit import submit_video

    if external_id is not None and len(videos) > 1:
        raise typer.BadParameter("an external id names one video; submit them one by one")
    if recorded_at is not None:
        _iso_time(recorded_at)
    joined = join_local_stack(state)
    settings = read_settings()
    s3 = aws_client("s3")
    if joined is not None:
        from capstone_dagster.local.demo import warn_if_embedded

        warn_if_embedded(joined)
    for path in videos:
        with terminal.progress(f"Uploading {path.name}") as report:
            submission = submit_video(
                path,
                s3,
                settings,
                external_id=external_id,
                camera=camera,
                recorded_at=recorded_at,
                sent=lambda fraction, name=path.name: report(f"Uploading {name}", fraction),  # type: ignore[misc]
            )
        terminal.out.print(f"{path.name} → {submission.url}", markup=False, soft_wrap=True)
        terminal.out.print(f"  capstone status {submission.video_id}", markup=False, soft_wrap=True)


@app.command()
def status(
    video: Annotated[str | None, typer.Argument(help="A video's id or external id; all by default.")] = None,
    form: FormatOption = "table",
    limit: Annotated[int, typer.Option(min=1, help="Most rows, latest first.")] = 50,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show how far each video is, and why one failed."""
    store = _event_store(state)
    rows = store.current_status(video, limit=limit)
    if not rows and video is not None:
        raise typer.BadParameter(f"no video {video!r} is known; `capstone status` lists those that are")
    if not rows and form == "table":
        terminal.err.print("No video was uploaded yet. Upload one with `capstone submit FILE`.")
        return
    columns = _columns(store, "current_status")
    terminal.print_rows(rows, form, terminal.status_table(rows), columns=columns)


@app.command()
def events(
    video: Annotated[str | None, typer.Option("--video", help="A video's id or external id.")] = None,
    form: FormatOption = "table",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List events: who was seen, when, how surely."""
    store = _event_store(state)
    rows = store.current_events(video)
    if not rows and form == "table":
        terminal.err.print("There are no events" + (f" of {video}." if video else " yet."), markup=False)
        return
    columns = _columns(store, "current_events")
    terminal.print_rows(rows, form, terminal.events_table(rows), columns=columns)


@app.command()
def analyze(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for Parquet files and pictures.")],
    model: Annotated[str | None, typer.Option(help="Model, as CAPSTONE_MODEL.")] = None,
    sample_fps: Annotated[
        float | None, typer.Option(min=0, help="Frames analysed per second of video; 0: every frame.")
    ] = None,
    motion_gate: Annotated[
        bool | None,
        typer.Option("--motion-gate/--no-motion-gate", help="Leave out frames in which nothing changes."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:0.")] = None,
) -> None:
    """Analyse files here and now: no Dagster, no database, no AWS.

    Writes frames.parquet, detections.parquet, events.parquet, contact_sheet.jpg and thumbnails. Of several
    files each gets a folder of its own; the model is loaded once, and one that fails does not stop the
    others. Ends with one line of JSON for each.
    """
    from capstone_dagster.local.analyze_file import FileAnalyzer, check_source, output_folders

    overrides = {"model": model, "sample_fps": sample_fps, "motion_gate": motion_gate, "device": device}
    settings = read_settings(**{name: value for name, value in overrides.items() if value is not None})
    if len(videos) == 1:
        check_source(videos[0])  # before the model, which takes seconds
    failed = 0
    with terminal.progress("Loading the model") as report:
        analyzer = FileAnalyzer(settings, report)
        for video, folder in zip(videos, output_folders(videos, out), strict=True):
            try:
                summary = analyzer.analyze(video, folder, report)
            except Exception as error:  # whatever it is, it is this video's
                if len(videos) == 1:
                    raise
                failed += 1
                told = _sentence(error) or f"{type(error).__name__}: {error}"
                terminal.err.print(f"{video}: {told}", markup=False, soft_wrap=True)
                continue
            terminal.err.print(f"Wrote {folder}", markup=False, soft_wrap=True)
            print(json.dumps(asdict(summary)), flush=True)
    if failed:
        terminal.err.print(f"{failed} of {len(videos)} files could not be analysed.", markup=False)
        raise typer.Exit(1)


@app.command()
def doctor(state: StateOption = DEFAULT_STATE) -> None:
    """Check settings, model, decoder, GPU, database and AWS, one by one.

    Exits 1 if something needed is missing; what is merely absent is a warning.
    """
    from capstone_dagster.doctor import MARKS, examine

    join_local_stack(state)
    failed = False
    for finding in examine():
        colour, mark = MARKS[finding.state]
        told = f"[{colour}]{mark}[/]  [bold]{finding.subject:<12}[/] {escape(finding.detail)}"
        terminal.out.print(told, soft_wrap=True)
        if finding.remedy:
            terminal.out.print(f"{'':<19}→ {escape(finding.remedy)}", soft_wrap=True)
        failed = failed or finding.state == "fail"
    if failed:
        raise typer.Exit(1)


app.add_typer(dead_letters.app, name="dlq")


@app.command()
def migrate(state: StateOption = DEFAULT_STATE) -> None:
    """Create or upgrade the event store's tables; safe to repeat."""
    with terminal.progress("Migrating the event store"):
        _event_store(state).migrate()
    terminal.err.print("The event store is up to date.")


def main() -> None:
    """Run the command line; every failure ends in one sentence and exit code 1.

    What ends it from outside ends it cleanly, with what it started: exit code 130 after Ctrl-C, 143 after
    SIGTERM, 129 when the terminal is closed.
    """
    # dagster.yaml and the commands speak; library chatter would drown them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        with _signals_end_cleanly():
            app(prog_name="capstone")
    except Exception as error:
        told = _sentence(error)
        if told is None:
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}. This is a defect: please report the lines above."
        terminal.err.print(f"[bold red]Error:[/] {escape(told)}", soft_wrap=True)
        sys.exit(1)


@contextmanager
def _signals_end_cleanly() -> "Iterator[None]":
    """SIGTERM and SIGHUP unwind the program as Ctrl-C does, instead of ending it where it stands."""
    on_terminal = [stream for stream in (1, 2) if os.isatty(stream)]

    def end(number: int, frame: "FrameType | None") -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)  # stopping is under way, and takes its time
        if number == signal.SIGHUP:
            # The terminal is gone; the sentences about stopping must not fail on it.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in on_terminal:
                os.dup2(nowhere, stream)
        raise SystemExit(128 + number)

    # Whoever started this with `nohup` wants it to survive its terminal.
    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    previous = {each: signal.signal(each, end) for each in heeded}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _sentence(error: Exception) -> str | None:
    """What went wrong and what to do about it; None if it is not known to happen."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    from capstone_dagster.local.errors import LocalStackError

    if isinstance(error, NotConfigured):
        return f"{error} {START_STACK}"
    if hasattr(error, "failure_class") or isinstance(error, LocalStackError):
        return str(error)
    if isinstance(error, ClientError):
        return f"AWS refused: {error}. `capstone doctor` tells which permission or name is wrong."
    if isinstance(error, (BotoCoreError, Boto3Error)):
        told = str(error).rstrip(".")
        return f"AWS cannot be used: {told}. Check the AWS_* variables, profile and region among them."
    if isinstance(error, OSError):
        if error.filename is None:
            return f"The system refused: {error}. Check disk space, memory and network."
        return f"{error.filename}: {error.strerror}. {_remedy(error)}"
    return None


def _remedy(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "A directory is needed there: name another path, or move that file away."
    if isinstance(error, PermissionError):
        return "Give this user access to it, or name another path."
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return "Check the path."
    return "Check the path, and the disk that it is on."


def _event_store(state: Path) -> "EventStore":
    from capstone_dagster.storage.event_store import EventStore

    join_local_stack(state)
    return EventStore(read_settings().event_store_url())


def _columns(store: "EventStore", view: str) -> list[str]:
    """The columns of a view for consumers, in its order."""
    import sqlalchemy as sa

    from capstone_dagster.storage.database import database_errors
    from capstone_dagster.storage.schema import SCHEMA

    with database_errors(store.engine), store.engine.connect() as connection:
        return list(connection.execute(sa.text(f"SELECT * FROM {SCHEMA}.{view} LIMIT 0")).keys())


def _iso_time(text: str) -> None:
    from datetime import datetime

    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time as in 2026-01-22T14:23:15+09:00") from error


if __name__ == "__main__":
    main()
