"""The `capstone` command: assembles the commands and ends every failure with one sentence."""

import os
import signal
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster.commands import (
    alerts,
    analyses,
    browse,
    dead_letters,
    erasure,
    export,
    intake,
    logs,
    operating,
    preview,
    reanalysis,
    reports,
    retention,
    stack,
    system,
    videos,
    watches,
    zones,
)
from capstone_dagster.commands.sections import Sections
from capstone_dagster.commands.sentences import sentence_of, usage_sentence

if TYPE_CHECKING:  # a command imports what it needs, so that --help stays fast
    from collections.abc import Iterator
    from types import FrameType


app = typer.Typer(
    name="capstone",
    cls=Sections,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Uploaded videos become persisted events.\n\n"
    "Begin with `capstone demo`, which shows the whole way on this machine. `capstone dev` keeps the "
    "same stack running; then `submit` videos and watch `status` and `events` from another terminal. "
    "Settings are environment variables, listed in docs/reference.md; `doctor` checks them.\n\n"
    "Exit codes: 0, success; 1, failure, with one sentence that says why; 2, wrong or unknown arguments; "
    "130, Ctrl-C.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"capstone {version('capstone-dagster')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
) -> None:
    """Options of `capstone` itself."""


# In the order in which --help lists them.
COMMANDS = {
    "On this machine": (stack.demo, stack.dev, videos.analyze),
    "Videos": (
        *(videos.submit, videos.status, logs.logs, reports.trace, operating.cancel, operating.prioritize),
        *(operating.retry, reanalysis.reanalyze, erasure.delete),
    ),
    "Results": (
        browse.browse,
        videos.events,
        analyses.analyses,
        analyses.compare,
        analyses.rollback,
        preview.preview,
    ),
    "The system": (system.doctor, alerts.alerts, retention.retention, system.migrate),
    "How good it is": (reports.slo, reports.perf_report, reports.incidents, reports.dora),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(export.app, name="export", rich_help_panel="Results")
app.add_typer(watches.app, name="watch", rich_help_panel="Results")
app.add_typer(zones.app, name="zones", rich_help_panel="Results")
app.add_typer(intake.app, name="intake", rich_help_panel="The system")
app.add_typer(dead_letters.app, name="dlq", rich_help_panel="The system")


def main() -> None:
    """Run the command line. A failure ends with one sentence and exit code 1, a usage error with 2.

    Signals end it cleanly, with everything that it started: exit code 130 after Ctrl-C, 143 after SIGTERM,
    129 when the terminal closes.
    """
    _leave_root()
    # Warnings of libraries would hide the output of the command.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        with _signals_end_cleanly():
            code = app(prog_name="capstone", standalone_mode=False)
    except typer.Abort:
        typer.echo("Nothing was done.", err=True)
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's class, or click's in other versions
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message())
            else:
                _say_error(usage_sentence(error))
            sys.exit(2)
        message = sentence_of(error)
        if message is None:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}. This is a defect: please report the lines above."
        _say_error(message)
        sys.exit(1)
    sys.exit(code or 0)


def _leave_root() -> None:
    """In a container, become the user that the service runs as.

    ECS starts an operator's command as root (ECS developer guide, "Monitor Amazon ECS containers with ECS
    Exec"), and the service cannot read what root writes into caches and homes.
    """
    home = os.environ.get("HOME", "")
    if os.geteuid() != 0 or not os.path.isdir(home):
        return
    owner = os.stat(home)
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _say_error(sentence: str) -> None:
    typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)


@contextmanager
def _signals_end_cleanly() -> "Iterator[None]":
    """SIGTERM and SIGHUP unwind the program as Ctrl-C does, instead of killing it."""
    on_terminal = [stream for stream in (1, 2) if os.isatty(stream)]

    def end(number: int, frame: "FrameType | None") -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)  # stopping is in progress
        if number == signal.SIGHUP:
            # The terminal is gone; messages about stopping must not fail.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in on_terminal:
                os.dup2(nowhere, stream)
        raise SystemExit(128 + number)

    # A command that was started with `nohup` survives its terminal.
    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    previous = {each: signal.signal(each, end) for each in heeded}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    main()
