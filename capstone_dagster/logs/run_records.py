"""Log lines of what Dagster records about a run outside of its worker: queueing, launching, its loss.

A record that passed the run's log handlers has its line already: `RunLogHandler` wrote it there and then. All
others are reported straight to Dagster's storage, where no handler sees them, and get their lines here, once
the run has ended.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

import dagster as dg

from capstone_dagster.failures.verdicts import Verdict
from capstone_dagster.logs.json_lines import json_line, style_of, utc
from capstone_dagster.logs.run_fields import ENDINGS, Fields, event_fields, run_fields
from capstone_dagster.redaction import Redaction, known_secrets
from capstone_dagster.settings import Settings
from capstone_dagster.standard_output import standard_output

# What can be recorded outside of a worker: a run's changes of state, and what launcher and monitoring report.
_OUTSIDE = {kind for kind in dg.DagsterEventType if kind.value.startswith("PIPELINE_")} | {
    dg.DagsterEventType.ENGINE_EVENT
}


class Output(Protocol):
    """Where lines go; :class:`~capstone_dagster.standard_output.StandardOutput` is one."""

    def write(self, line: str) -> bool: ...


def write_run_records(
    instance: dg.DagsterInstance,
    settings: Settings,
    verdicts: Iterable[Verdict],
    output: Output | None = None,
) -> None:
    """Write the lines of ended runs, from INFO up, where lines are JSON.

    Args:
        output: in place of the process's standard output.

    Raises:
        BlockingIOError: nothing reads standard output. The runs can be given again: lines are then repeated,
            none is missing.
    """
    if style_of(settings, sys.stdout) != "json":
        return  # text is for people, who see these records in Dagster's pages
    output = output or standard_output()
    redaction = Redaction(known_secrets(settings))
    for verdict in verdicts:
        for fields in _lines(instance, verdict):
            if not output.write(json_line(fields, redaction)):
                raise BlockingIOError(f"standard output takes no line of run {verdict.run_id}")


def _lines(instance: dg.DagsterInstance, verdict: Verdict) -> Iterator[Fields]:
    run = instance.get_run_by_id(verdict.run_id)
    if run is None:
        return  # deleted meanwhile, and its records with it
    for record in instance.get_records_for_run(verdict.run_id, of_type=_OUTSIDE).records:
        entry = record.event_log_entry
        if int(entry.level) >= logging.INFO and not _was_logged_by_run(entry):
            yield record_fields(entry, run) | _end(verdict, entry)


def record_fields(entry: dg.EventLogEntry, run: dg.DagsterRun) -> Fields:
    """A record of Dagster's event log as the fields of a line."""
    event = entry.dagster_event
    fields: Fields = {
        "timestamp": utc(entry.timestamp),
        "level": logging.getLevelName(int(entry.level)),
        "component": "analysis" if event is None else "dagster",
        "action": "log",
        "job": entry.job_name,
        **run_fields(run.run_id, run.tags),
        "step": entry.step_key,
    }
    if event is not None:
        fields |= event_fields(event)
    # Some events have no message.
    return fields | {"message": entry.message or entry.user_message or fields["action"]}


def _was_logged_by_run(entry: dg.EventLogEntry) -> bool:
    """Whether a record has the message that was logged, or the process that logged it."""
    event = entry.dagster_event
    return bool(entry.user_message) or (event is not None and event.pid is not None)


def _end(verdict: Verdict, entry: dg.EventLogEntry) -> Fields:
    """What the verdict adds to the record of a run's end."""
    found: Fields = {}
    kind = None if entry.dagster_event is None else entry.dagster_event.event_type_value
    if kind in ENDINGS and verdict.ended_at > verdict.started_at:
        found["elapsed_s"] = round(verdict.ended_at - verdict.started_at, 3)
    if kind == "PIPELINE_FAILURE" and verdict.cause is not None:
        found |= {"failure_class": verdict.cause.failure.value, "cause": verdict.cause.sentence}
        found["remedy"] = verdict.remedy
    return found
