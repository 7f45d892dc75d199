"""The `capstone` command: thin commands over the rooms, and the sentence that every failure ends with."""

import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from capstone_dagster import terminal
from capstone_dagster.settings import read_settings

if TYPE_CHECKING:  # what a command needs it imports itself, so that --help stays quick
    from collections.abc import Iterator, Sequence

    from capstone_dagster.intake.queue import DeadLetter, UploadQueue
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

_REPOSITORY = Path(__file__).resolve().parent.parent
StateOption = Annotated[
    Path,
    typer.Option(
        "--state", help="Where the local stack keeps everything it remembers.", show_default=".capstone"
    ),
]
DEFAULT_STATE = _REPOSITORY / ".capstone"
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
) -> None:
    """Run the local stack with the Dagster UI until Ctrl-C."""
    from capstone_dagster.local.demo import prepare
    from capstone_dagster.local.stack import local_stack

    with ExitStack() as running:
        with terminal.progress("Starting the local stack") as report:
            stack = running.enter_context(
                local_stack(
                    state.resolve(),
                    webserver_port=port,
                    fresh=fresh,
                    before_dagster=prepare,
                    on_progress=report,
                )
            )
        assert stack.dagster is not None
        terminal.out.print(f"Dagster UI   {stack.dagster.url}")
        terminal.out.print(f"Logs         {stack.logs}")
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
    _join_local_stack(state)
    settings, s3 = read_settings(), aws_client("s3")
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
        terminal.out.print(f"{path.name} → {submission.url}", soft_wrap=True)
        terminal.out.print(f"  capstone status {submission.video_id}", soft_wrap=True)


@app.command()
def status(
    video: Annotated[str | None, typer.Argument(help="A video's id or external id; all by default.")] = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How to print.")
    ] = "table",
    limit: Annotated[int, typer.Option(min=1, help="Most rows, latest first.")] = 50,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show how far each video is, and why one failed."""
    rows = _event_store(state).current_status(video, limit=limit)
    if not rows and video is not None:
        raise typer.BadParameter(f"no video {video!r} is known; `capstone status` lists those that are")
    if not rows and form == "table":
        terminal.err.print("No video was uploaded yet. Upload one with `capstone submit FILE`.")
        return
    terminal.print_rows(rows, form, terminal.status_table(rows))


@app.command()
def events(
    video: Annotated[str | None, typer.Option("--video", help="A video's id or external id.")] = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How to print.")
    ] = "table",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List events: who was seen, when, how surely."""
    rows = _event_store(state).current_events(video)
    if not rows and form == "table":
        terminal.err.print("There are no events" + (f" of {video}." if video else " yet."))
        return
    terminal.print_rows(rows, form, terminal.events_table(rows))


@app.command()
def analyze(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for Parquet files and pictures.")],
    model: Annotated[str | None, typer.Option(help="Model, as CAPSTONE_MODEL.")] = None,
    sample_fps: Annotated[
        float | None, typer.Option(min=0, help="Frames analysed per second of video; 0: every frame.")
    ] = None,
) -> None:
    """Analyse one file here and now: no Dagster, no database, no AWS.

    Writes frames.parquet, detections.parquet, events.parquet, contact_sheet.jpg and thumbnails. The last line
    of output is one JSON object.
    """
    from capstone_dagster.local.analyze_file import analyze_file

    overrides = {"model": model, "sample_fps": sample_fps}
    settings = read_settings(**{name: value for name, value in overrides.items() if value is not None})
    with terminal.progress("Loading the model") as report:
        summary = analyze_file(video, out, settings, report)
    terminal.err.print(f"Wrote {out}", soft_wrap=True)
    print(json.dumps(asdict(summary)))


@app.command()
def doctor(state: StateOption = DEFAULT_STATE) -> None:
    """Check settings, model, decoder, GPU, database and AWS, one by one.

    Exits 1 if something needed is missing; what is merely absent is a warning.
    """
    from capstone_dagster.doctor import MARKS, examine

    _join_local_stack(state)
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


dlq = typer.Typer(
    no_args_is_help=True,
    help="Look at messages that could not be understood, or were delivered too often, and send them again.",
)
app.add_typer(dlq, name="dlq")


@dlq.command("list")
def dlq_list(
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How to print.")
    ] = "table",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """List the dead letters, oldest first, each with the reason."""
    with _dead_letters(state) as (_, letters):
        rows = [
            {name: value for name, value in asdict(letter).items() if name != "receipt"} for letter in letters
        ]
    if not rows and form == "table":
        terminal.err.print("There are no dead letters.")
        return
    terminal.print_rows(rows, form, terminal.dead_letters_table(rows))


@dlq.command("show")
def dlq_show(
    message: Annotated[str, typer.Argument(help="A message id from the list, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print one dead letter's text."""
    with _dead_letters(state) as (_, letters):
        letter = _one_letter(letters, message)
        terminal.err.print(
            f"{letter.message_id}: {escape(letter.reason or 'delivered too often')}", soft_wrap=True
        )
        print(letter.body)


@dlq.command("redrive")
def dlq_redrive(
    messages: Annotated[
        list[str] | None, typer.Argument(help="Message ids from the list, or their beginnings.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Send dead letters to the upload queue again, for example after a permission was granted."""
    if everything == bool(messages):
        raise typer.BadParameter("name the messages, or give --all")
    with _dead_letters(state) as (queue, letters):
        chosen = (
            list(letters) if everything else [_one_letter(letters, message) for message in messages or []]
        )
        for letter in chosen:
            queue.redrive(letter)
            letters.remove(letter)
    terminal.err.print(f"{len(chosen)} sent again.")


@app.command()
def migrate(state: StateOption = DEFAULT_STATE) -> None:
    """Create or upgrade the event store's tables; safe to repeat."""
    with terminal.progress("Migrating the event store"):
        _event_store(state).migrate()
    terminal.err.print("The event store is up to date.")


def main() -> None:
    """Run the command line; every expected failure ends in one sentence and exit code 1."""
    # dagster.yaml and the commands speak; library chatter would drown them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        app(prog_name="capstone")
    except KeyboardInterrupt:
        terminal.err.print("Interrupted.")
        sys.exit(130)
    except Exception as error:
        if not _speaks_for_itself(error):
            raise
        terminal.err.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def _speaks_for_itself(error: Exception) -> bool:
    from capstone_dagster.local.errors import LocalStackError

    return hasattr(error, "failure_class") or isinstance(error, LocalStackError)


def _join_local_stack(state: Path) -> None:
    """Without a database and a queue in the environment, work with the local stack that runs here."""
    from capstone_dagster.local.stack import enter_environment
    from capstone_dagster.local.state import read_environment

    if any(os.environ.get(name) for name in ("CAPSTONE_DATABASE_URL", "POSTGRES_HOST", "CAPSTONE_QUEUE_URL")):
        return
    environment = read_environment(state.resolve())
    if environment is not None:
        enter_environment(environment)


@contextmanager
def _dead_letters(state: Path) -> "Iterator[tuple[UploadQueue, list[DeadLetter]]]":
    """The upload queue and its dead letters; those still in the list afterwards are put back."""
    from capstone_dagster.clients import aws_client
    from capstone_dagster.intake.queue import UploadQueue

    _join_local_stack(state)
    queue = UploadQueue(aws_client("sqs"), read_settings().required("queue_url"))
    letters = queue.dead_letters()
    try:
        yield queue, letters
    finally:
        queue.put_back(letters)


def _one_letter(letters: "Sequence[DeadLetter]", message: str) -> "DeadLetter":
    found = [letter for letter in letters if letter.message_id.startswith(message)]
    if len(found) != 1:
        raise typer.BadParameter(
            f"{len(found)} dead letters begin with {message!r}; `capstone dlq list` shows them"
        )
    return found[0]


def _event_store(state: Path) -> "EventStore":
    from capstone_dagster.storage.event_store import EventStore

    _join_local_stack(state)
    return EventStore(read_settings().event_store_url())


def _iso_time(text: str) -> None:
    from datetime import datetime

    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time as in 2026-01-22T14:23:15+09:00") from error


if __name__ == "__main__":
    main()
