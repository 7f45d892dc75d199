"""Adds to `capstone status` what Dagster knows: queue positions and reasons for waiting."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from capstone_dagster import terminal

WAITING_COLUMNS = ("queue_position", "queue_length", "waiting_for")
_WAITING = ("received", "queued", "waiting-for-compute")


def with_waiting(rows: Sequence[Mapping[str, Any]], *, ask: bool) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of `current_status` with :data:`WAITING_COLUMNS`, and why intake is paused, if it is.

    Without Dagster's storage the columns are null, except for a reason in the row itself.

    Args:
        ask: also where no row waits, for intake's pause.
    """
    answers: dict[str, Any] = {}
    paused = None
    has_dagster = any(os.environ.get(name) for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL"))
    if has_dagster and (ask or any(row["state"] in _WAITING for row in rows)):
        try:
            answers, paused = _ask_dagster(rows)
        except Exception as error:  # any error of its storage: the event store's rows are shown without it
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            terminal.note(f"What videos wait for is unknown: Dagster's storage cannot be read ({what}).")
    return [{**row, **_columns(row, answers.get(row["upload_id"]))} for row in rows], paused


def _ask_dagster(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str | None]:
    from capstone_dagster.commands.dagster_tables import read_queue
    from capstone_dagster.runs.queueing import intake_pause, waits

    queue = read_queue()
    return waits(queue, rows), intake_pause(queue)


def _columns(row: Mapping[str, Any], waiting: Any) -> dict[str, Any]:
    if waiting is None:
        reason = row["message"] if row["state"] in _WAITING else None
        return dict(zip(WAITING_COLUMNS, (None, None, reason), strict=True))
    place = waiting.place
    values = (place and place.position, place and place.of, waiting.reason)
    return dict(zip(WAITING_COLUMNS, values, strict=True))
