"""The last uploads' runs that ended, in brief: what intake's circuit breaker learns of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from capstone_dagster.failures.classes import SYSTEMIC, FailureClass
from capstone_dagster.failures.cursors import Kept
from capstone_dagster.failures.requests import UPLOAD_JOB
from capstone_dagster.failures.verdicts import Outcome, Verdict

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


RECENT_RUNS: Kept[list[EndedRun]] = Kept("capstone/failures/recent_runs", list[EndedRun], list)
"""Runs that succeeded or failed, newest first; only the reader of ended runs writes it."""


def remember(instance: dg.DagsterInstance, verdicts: Iterable[Verdict]) -> None:
    """Add uploads' runs that ended; of a run that was cancelled nothing is to be learnt."""
    fresh = {
        each.run_id: of_verdict(each)
        for each in verdicts
        if each.job == UPLOAD_JOB and each.outcome != Outcome.CANCELED
    }
    if not fresh:
        return
    known = [*fresh.values(), *(run for run in RECENT_RUNS.read(instance) if run.run_id not in fresh)]
    newest = sorted(known, key=lambda run: run.ended_at, reverse=True)[:_KEPT]
    since = newest[0].ended_at - _KEPT_S
    RECENT_RUNS.write(instance, [run for run in newest if run.ended_at > since])
