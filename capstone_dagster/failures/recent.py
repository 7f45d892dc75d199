"""The last uploads' runs that ended, in brief: what intake's circuit breaker learns of them.

Kept in Dagster's own storage, not in the event store, which may be what failed. The reader of ended runs
alone writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from capstone_dagster.failures.classes import SYSTEMIC, FailureClass
from capstone_dagster.failures.cursors import known_fields
from capstone_dagster.failures.requests import UPLOAD_JOB
from capstone_dagster.failures.verdicts import Outcome, Verdict, named

_KEY = "capstone/failures/recent_runs"
# Some multiple of any sensible CAPSTONE_PAUSE_AFTER_FAILURES: failures of single videos may lie between.
_KEPT = 60
# Runs that ended longer ago say nothing about now.
_KEPT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that ended. Times are seconds since 1970.

    Attributes:
        upload: what it was for; two runs of one upload count once.
        failure: None if it succeeded.
        started_at: when its worker began, else when it ended.
        whole: the pass over the pixels was part of it.
        own_model: its request named another model than the configured one.
        doubled: it did GPU work that another run had done or was doing.
    """

    run_id: str
    upload: str
    failure: FailureClass | None
    started_at: float
    ended_at: float
    whole: bool = True
    own_model: bool = False
    doubled: bool = False

    @property
    def systemic(self) -> bool:
        """Whether its failure says that others will fail likewise."""
        if self.own_model and self.failure == FailureClass.MODEL_UNAVAILABLE:
            return False
        return self.failure in SYSTEMIC


def of_verdict(verdict: Verdict) -> EndedRun:
    """A verdict in brief."""
    return EndedRun(
        verdict.run_id,
        verdict.upload_id or verdict.run_id,
        verdict.failure,
        verdict.started_at,
        verdict.ended_at,
        verdict.whole,
        verdict.own_model,
        verdict.doubled,
    )


def recent_runs(instance: dg.DagsterInstance) -> list[EndedRun]:
    """Runs that succeeded or failed, newest first."""
    kept = instance.daemon_cursor_storage.get_cursor_values({_KEY}).get(_KEY, "[]")
    return [_known(each) for each in json.loads(kept)]


def remember(instance: dg.DagsterInstance, verdicts: Iterable[Verdict]) -> None:
    """Add uploads' runs that ended; of a run that was cancelled nothing is to be learnt."""
    fresh = {
        each.run_id: of_verdict(each)
        for each in verdicts
        if each.job == UPLOAD_JOB and each.outcome != Outcome.CANCELED
    }
    if not fresh:
        return
    known = [*fresh.values(), *(run for run in recent_runs(instance) if run.run_id not in fresh)]
    newest = sorted(known, key=lambda run: run.ended_at, reverse=True)[:_KEPT]
    since = newest[0].ended_at - _KEPT_S
    kept = [asdict(run) for run in newest if run.ended_at > since]
    instance.daemon_cursor_storage.set_cursor_values({_KEY: json.dumps(kept, separators=(",", ":"))})


def _known(kept: dict[str, Any]) -> EndedRun:
    failure = kept["failure"] and named(kept["failure"])
    return EndedRun(**known_fields(EndedRun, kept) | {"failure": failure})
