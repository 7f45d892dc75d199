"""What a running run tries a step again for, as data in a tag of the run: its step records no class.

The worker writes it, alerts read it. A worker that cannot write it goes on: only observers miss it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from capstone_dagster.failures.classes import FailureClass, sentence
from capstone_dagster.failures.cursors import from_json, to_json
from capstone_dagster.run_tags import RETRYING_TAG

_log = logging.getLogger("capstone.analysis")
_MAX_CAUSE = 400


@dataclass(frozen=True, slots=True)
class StepRetry:
    """Why a step is tried again.

    Attributes:
        run_id: whose step it is; a later run takes its parent's tags along.
        since: when it failed first, seconds since 1970.
    """

    run_id: str
    failure: FailureClass
    cause: str
    since: float


def retry_of(run_id: str, tags: Mapping[str, str]) -> StepRetry | None:
    """What a run tries a step again for now; None if nothing."""
    try:
        retry = from_json(StepRetry, tags.get(RETRYING_TAG, ""))
    except ValueError:  # none, or what somebody else wrote: anyone may write a tag
        return None
    return retry if retry.run_id == run_id else None


def note_retry(
    instance: dg.DagsterInstance,
    run_id: str,
    before: StepRetry | None,
    failure: FailureClass,
    cause: str,
) -> None:
    """Note that a step is tried again; `before` is what was noted at its last try."""
    since = before.since if before is not None else time.time()
    _write(instance, run_id, to_json(StepRetry(run_id, failure, cause[:_MAX_CAUSE], since)))


def clear_retry(instance: dg.DagsterInstance, run_id: str) -> None:
    """Note that the step went well after all."""
    _write(instance, run_id, "null")


def _write(instance: dg.DagsterInstance, run_id: str, value: str) -> None:
    try:
        instance.add_run_tags(run_id, {RETRYING_TAG: value})
    except Exception as error:  # law: what only observes fails no run
        _log.warning(
            f"What a step is tried again for could not be noted: {sentence(error)}",
            extra={"action": "retry.unnoted"},
        )
