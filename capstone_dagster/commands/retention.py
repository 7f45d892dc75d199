"""`capstone retention`: shows and deletes data that is older than its settings allow."""

from __future__ import annotations

from typing import Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import dagster_instance, join_local_stack, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, DryRunOption, JsonOption, StateOption


def retention(
    dry_run: DryRunOption = False,
    most: Annotated[
        int | None, typer.Option(min=1, help="Maximum of each kind in one call.", show_default="2000")
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Delete data older than its CAPSTONE_..._RETENTION_DAYS, as the job `retention` does every night.

    Use `--dry-run` first. By default videos, detections and events are kept for ever; partitions, runs and
    their logs have limits. One call deletes a limited number; repeat it to delete more.

    Example: `capstone retention --dry-run`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.removal.retention import MOST_A_NIGHT, Retention
    from capstone_dagster.services import Services

    join_local_stack(state)
    services = Services(read_settings())
    with (
        dagster_instance(state) as instance,
        terminal.progress("Looking for what is old" if dry_run else "Removing what is old"),
    ):
        done = Retention(services, instance, most or MOST_A_NIGHT).apply(dry_run=dry_run)
    rows = [
        {
            "kind": each.kind,
            "setting": each.variable,
            "days": each.days,
            "number": each.number,
            "more": each.more,
        }
        for each in done
    ]
    if as_json:
        terminal.print_json({"dry_run": dry_run, "kinds": rows})
        return
    terminal.print_table(tables.retention_table(rows, "would go" if dry_run else "went"))
