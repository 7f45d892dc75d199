"""Output of the command line: consoles, progress, rows as tables, JSON or CSV.

Data goes to stdout, the rest to stderr, so that output can be piped.

Importing this does not import rich, so that help and typing errors are fast; tables are in
`terminal_tables.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from time import sleep
from typing import TYPE_CHECKING, Any, Literal, Protocol

from capstone_dagster.outside_text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from capstone_dagster.analysis.comparison import Pair

    out: Console
    err: Console

Format = Literal["table", "json", "csv"]
_WIDEST = 10_000


def __getattr__(name: str) -> Console:
    """`out` and `err`, made when they are first used."""
    if name not in ("out", "err"):
        raise AttributeError(name)
    # Names and messages from outside hold brackets and colons: no emoji codes anywhere, and markup only in
    # sentences of our own.
    console = globals()[name] = safe_console(stderr=name == "err", highlight=False, emoji=False)
    return console


def say(text: str, style: str | None = None) -> None:
    """Print a line of the result as it is: nothing in it is markup, and nothing is wrapped."""
    from capstone_dagster.terminal import out  # by attribute: it may not be made yet

    out.print(text, style=style, markup=False, soft_wrap=True)


def note(text: str, style: str | None = None) -> None:
    """Print a line beside the result, on stderr, as it is."""
    from capstone_dagster.terminal import err

    err.print(text, style=style, markup=False, soft_wrap=True)


def safe_console(**options: Any) -> Console:
    """A console that shows the control characters of what it prints; tables make their own cells safe."""
    from rich.console import Console

    class SafeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)

    return SafeConsole(**options)


class Report(Protocol):
    """Shows the current step of a long action, and the fraction done (0–1) if it is known."""

    def __call__(self, what: str, fraction: float | None = None) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show the current step, its progress and the elapsed time while the block runs.

    Without a terminal (a pipe, CI), print each new step once instead.
    """
    from capstone_dagster.terminal import err  # by attribute: it may not be made yet

    if not err.is_terminal:
        last = ""

        def print_step(what: str, fraction: float | None = None) -> None:
            nonlocal last
            if what != last:
                err.print(f"… {what}", markup=False, soft_wrap=True)
                last = what

        print_step(what)
        yield print_step
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    step = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), step, BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def report(what: str, fraction: float | None = None) -> None:
            if fraction is None:
                bars.update(task, description=what, total=None)
            else:
                bars.update(task, description=what, total=1.0, completed=fraction)

        yield report


def format_of(*, as_json: bool, as_csv: bool) -> Format:
    """The format in which a command prints its rows.

    Raises:
        BadParameter: both options are given.
    """
    if as_json and as_csv:
        import typer

        raise typer.BadParameter("--json and --csv exclude each other: give one of them")
    return "json" if as_json else "csv" if as_csv else "table"


def print_json(value: Any) -> None:
    """Print one JSON value, a list or an object, for other programs."""
    print(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def print_table(table: RenderableType) -> None:
    """Print a table as wide as its content, so that ids and addresses can be copied whole.

    A narrow terminal wraps the lines itself, and copies them as one.
    """
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(highlight=False, emoji=False, width=_WIDEST)
    wide.width = max(Measurement.get(wide, wide.options, table).maximum, 1)
    wide.print(table)


def watch(show: Callable[[], RenderableType], *, pause_s: float) -> None:
    """Show something again and again until Ctrl-C, in place on a terminal, else one below the other."""
    from capstone_dagster.terminal import out

    with suppress(KeyboardInterrupt):  # the ordinary end
        while True:
            table = show()
            out.clear()  # does nothing where output is piped
            print_table(table)
            sleep(pause_s)


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    form: Format,
    table: Callable[[Sequence[Mapping[str, Any]]], RenderableType],
    *,
    columns: Sequence[str],
) -> None:
    """Print rows as JSON (a list of objects), CSV with a header, or a table.

    Args:
        table: makes the table from the rows.
        columns: the header of CSV, there without any row too.
    """
    if form == "json":
        print_json([dict(row) for row in rows])
    elif form == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row[name]) for name in columns] for row in rows)
    else:
        print_table(table(rows))


def settings_text(settings: Mapping[str, Any]) -> str:
    """The main settings of an analysis, in a few words."""
    fps, score = settings.get("sample_fps"), settings.get("min_score")
    words = [] if fps is None else ["every frame" if fps == 0 else f"{fps:g} frames/s"]
    words += ["motion gate"] if settings.get("motion_gate") else []
    words += [] if score is None else [f"score ≥ {score:g}"]
    return ", ".join(words)


def move_text(pair: Pair) -> str:
    """How an event moved, in words: shifted times, and the distance."""
    words = []
    for what, shift_ms, at_ms in (
        ("starts", pair.start_shift_ms, pair.after.start_ms),
        ("ends", pair.end_shift_ms, pair.after.end_ms),
    ):
        if shift_ms:
            words.append(f"{what} {shift_ms / 1000:+.1f} s at {clock(at_ms)}")
    if pair.place_shift > 0.05:
        words.append(f"best view {pair.place_shift:.1f} boxes aside")
    return ", ".join(words)


def clock(ms: int) -> str:
    """Milliseconds of video as `m:ss.s`."""
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}:{rest / 1000:04.1f}"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cell(value: Any) -> Any:
    """A value for CSV: times as ISO 8601, lists as JSON."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime) else value
