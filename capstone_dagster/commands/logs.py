"""`capstone logs`: one video's log lines, from its upload to its last run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import open_database, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, StateOption, VideoArgument
from capstone_dagster.outside_text import visible
from capstone_dagster.wall_clock import wall_clock

if TYPE_CHECKING:
    from rich.text import Text

    from capstone_dagster.logs.video_log import LogLine, Reading, Subject

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_COLOURS = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
_POLL_S = 2.0
# CloudWatch shows a line some seconds after it has taken it, and not in the order of taking.
_OVERLAP_MS = 60_000
# A clock that is behind the database's must not hide the first lines.
_EARLIER_MS = 3_600_000


def logs(
    video: VideoArgument,
    tail: Annotated[int | None, typer.Option(min=1, help="Only this many last lines.")] = None,
    level: Annotated[Level, typer.Option(help="The lowest level to show.", case_sensitive=False)] = "INFO",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects; with --follow, one object a line.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show one video's log lines: from intake, its runs and their jobs.

    The lines come from CloudWatch. Where it cannot be read, or has none, Dagster's own records fill in.

    Example: `capstone logs 84 --level WARNING --tail 20`
    """
    from rich.text import Text

    from capstone_dagster.logs.video_log import GROUPS, at_least, logs_client, read_story

    subject, since_ms = _subject(video, state)
    client = cache(logs_client)
    groups = (*GROUPS[:-1], read_settings().job_log_group)

    def read(since_ms: int | None) -> Reading:
        nonlocal subject
        reading = read_story(subject, client=client, groups=groups, since_ms=since_ms)
        subject = reading.subject
        return reading

    def show(lines: Iterable[LogLine]) -> None:
        if as_json and not follow:
            terminal.print_json([line.fields for line in lines])
            return
        for line in lines:
            shown = Text(visible(line.text)) if as_json else _in_text(line, with_traceback=level == "DEBUG")
            terminal.out.print(shown, soft_wrap=True)

    with terminal.progress("Reading the logs") if terminal.err.is_terminal else nullcontext():
        reading = read(since_ms)
    lines = list(reading.lines)
    for trouble in reading.troubles:
        _warn(trouble)
    if not lines:
        lines = _dagsters_records(subject)
    wanted = at_least(level, lines)
    show(wanted[-tail:] if tail else wanted)
    if follow:
        _follow(read, lines, lambda new: show(at_least(level, new)))
    elif not wanted:
        some = f" of level {level} or above; there are {len(lines)} below" if lines else ""
        sentence = (
            f"There is no line about {video}{some}; `capstone status {video}` shows whether it is known."
        )
        terminal.note(sentence)
        raise typer.Exit(1)


def _subject(video: str, state: Path) -> tuple[Subject, int | None]:
    """The names that lines may use for the video, and the time of its first line; None if unknown."""
    from capstone_dagster.logs.video_log import Subject, subject_of
    from capstone_dagster.settings import NotConfigured
    from capstone_dagster.storage.errors import StorageError
    from capstone_dagster.storage.video_status import current_status
    from capstone_dagster.storage.videos import first_seen

    asked = Subject(frozenset({video}))
    try:
        database = open_database(state)
        rows = database.transact(current_status, video)
        began = database.transact(first_seen, [row["video_id"] for row in rows])
    except NotConfigured:
        if not _names_a_region():
            raise
        return asked, None
    except StorageError as error:
        _warn(f"{error} Until then, only lines that name {video} itself are found.")
        return asked, None
    since_ms = round(began.timestamp() * 1000) - _EARLIER_MS if began else None
    return subject_of(rows).and_also(asked), since_ms


def _names_a_region() -> bool:
    """Whether the environment names an AWS region, though no event store."""
    import boto3

    return boto3.Session().region_name is not None


def _dagsters_records(subject: Subject) -> list[LogLine]:
    """What Dagster itself has recorded of the video's runs."""
    import dagster as dg

    from capstone_dagster.logs.video_log import read_dagster

    if "DAGSTER_HOME" not in os.environ:
        _warn("Dagster's own records could fill in: set DAGSTER_HOME and DAGSTER_POSTGRES_URL for that.")
        return []
    try:
        with dg.DagsterInstance.get() as instance:
            recorded = read_dagster(subject, instance)
    except Exception as error:  # its storage raises whatever its driver does
        reason = str(error).strip().partition("\n")[0]
        _warn(f"Dagster's own records cannot be read either: {type(error).__name__}: {reason}")
        return []
    if recorded:
        _warn("CloudWatch has no line of it. What follows is what Dagster has recorded itself.")
    return recorded


def _follow(
    read: Callable[[int | None], Reading], shown: Sequence[LogLine], show: Callable[[list[LogLine]], None]
) -> None:
    """Show new lines as they come; a failed read is reported once, and tried again."""
    known = Counter(line.text for line in shown)
    reported: set[str] = set()
    latest_ms = max((line.time_ms for line in shown), default=round(time.time() * 1000))
    try:
        while True:
            time.sleep(_POLL_S)
            reading = read(latest_ms - _OVERLAP_MS)
            for trouble in {*reading.troubles} - reported:
                _warn(trouble)
            reported = {*reading.troubles}
            met: Counter[str] = Counter()
            new = []
            for line in reading.lines:
                met[line.text] += 1
                if met[line.text] > known[line.text]:
                    new.append(line)
            known |= met
            latest_ms = max((latest_ms, *(line.time_ms for line in new)))
            show(new)
    except KeyboardInterrupt:
        return  # the ordinary end


def _in_text(line: LogLine, *, with_traceback: bool) -> Text:
    """A line for people, coloured by its level."""
    from rich.text import Text

    colour = _COLOURS.get(line.level, "default")
    at = wall_clock(line.time_ms / 1000)
    fields = line.fields
    # A message of Dagster's may hold a command or a stack trace after its first line.
    message, *below = visible(str(fields.get("message", line.text)).rstrip()).split("\n")
    below += visible(str(fields.get("exception") or "").rstrip()).splitlines()
    text = Text.assemble(
        (f"[{at}] ", "dim"),
        (line.level, colour),
        f" {fields.get('component', line.group)} - ",
        (message, colour),
    )
    if below and not with_traceback:
        below = [f"({len(below)} more lines: --level DEBUG shows them)"]
    for following in below:
        text.append(f"\n    {following}", style="dim")
    return text


def _warn(sentence: str) -> None:
    terminal.note(sentence, style="yellow")
