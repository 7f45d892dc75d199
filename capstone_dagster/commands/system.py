"""`capstone doctor` and `capstone migrate`: check the installation, upgrade the database."""

from __future__ import annotations

from dataclasses import asdict

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import join_local_stack, open_database
from capstone_dagster.commands.options import DEFAULT_STATE, JsonRowsOption, StateOption


def doctor(as_json: JsonRowsOption = False, state: StateOption = DEFAULT_STATE) -> None:
    """Check settings, model, decoder, GPU, database and AWS, one by one.

    Exits with 1 if something required is missing; optional things are warnings.

    Example: `capstone doctor --json`
    """
    from rich.markup import escape

    from capstone_dagster.commands.examination import MARKS, examine

    join_local_stack(state)
    if as_json:
        findings = list(examine())
        terminal.print_json([asdict(finding) for finding in findings])
        raise typer.Exit(int(any(finding.state == "fail" for finding in findings)))
    failed = False
    for finding in examine():
        colour, mark = MARKS[finding.state]
        line = f"[{colour}]{mark}[/]  [bold]{finding.subject:<12}[/] {escape(finding.detail)}"
        terminal.out.print(line, soft_wrap=True)
        if finding.remedy:
            terminal.out.print(f"{'':<19}→ {escape(finding.remedy)}", soft_wrap=True)
        failed = failed or finding.state == "fail"
    if failed:
        raise typer.Exit(1)


def migrate(state: StateOption = DEFAULT_STATE) -> None:
    """Create or upgrade the event store's tables; safe to repeat."""
    with terminal.progress("Migrating the event store"):
        open_database(state).migrate()
    terminal.err.print("The event store is up to date.")
