"""Which run passes over which pixels: the place that sees when a second one does.

Nothing is prevented here: run key, detection id and PostgreSQL do that. A second pass that really started
means that one of them has failed, and costs money until somebody knows.
"""

from __future__ import annotations

import logging

import dagster as dg

from capstone_dagster.observability.catalog.metrics import DUPLICATE_JOBS
from capstone_dagster.observability.duplicates import (
    DETECTION_TAG,
    DUPLICATE_OF_TAG,
    DUPLICATE_TAG,
    FINISHED_TAG,
    same_work,
)
from capstone_dagster.services import Services


class Passes:
    """The passes of one run, noted in its tags."""

    def __init__(self, context: dg.OpExecutionContext, services: Services) -> None:
        self._context = context
        self._services = services
        self._counted = False

    def begin(self, detection_id: str) -> None:
        """Note that this run begins a pass, and tell if another one is at it or has finished it.

        The note comes first: of two that begin at the same moment one at least sees the other.
        """
        self._tag({DETECTION_TAG: detection_id})
        others = self._others(detection_id)
        self._counted = bool(others)
        if others:
            self._tell(detection_id, others[0])
        else:
            self._services.metrics.add(DUPLICATE_JOBS, 0)

    def finish(self, detection_id: str) -> None:
        """Note that its results are stored."""
        self._tag({FINISHED_TAG: detection_id})

    def overtaken(self, detection_id: str) -> None:
        """Tell that somebody else's results were there when this run's were ready."""
        # Whoever began later has seen this run's note, and told of it.
        if not self._counted and not self._others(detection_id):
            self._tell(detection_id, None)

    def _others(self, detection_id: str) -> list[dg.DagsterRun]:
        try:
            return same_work(self._context.instance, self._context.run_id, detection_id)
        except Exception as error:  # law: what only observes fails no run
            self._context.log.warning(f"Whether another run does the same is not known: {error!r}")
            return []

    def _tell(self, detection_id: str, other: dg.DagsterRun | None) -> None:
        whose = "a run that cannot be named" if other is None else f"run {other.run_id}"
        self._context.log.log(
            logging.ERROR,
            f"These detections are made twice: {whose} passes over the same pixels or did ({detection_id}). "
            "Look whether its worker still runs, and whether the object store has lost what it stored.",
            extra={
                "action": "analysis.duplicate",
                "detection_id": detection_id,
                "other_run_id": None if other is None else other.run_id,
            },
        )
        self._services.metrics.add(DUPLICATE_JOBS)
        named = {} if other is None else {DUPLICATE_OF_TAG: other.run_id}
        self._tag({DUPLICATE_TAG: self._context.run_id, **named})

    def _tag(self, tags: dict[str, str]) -> None:
        instance = self._context.instance
        try:
            # An op called on its own, as in a test, has no run.
            if instance.has_run(self._context.run_id):
                instance.add_run_tags(self._context.run_id, tags)
        except Exception as error:  # as above
            self._context.log.warning(f"The run's tags could not be written: {error!r}")
