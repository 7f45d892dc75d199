"""Conditions of the system that a notice reports although no run has failed with a class of its own.

The key is the anchor of the condition's page in docs/runbook.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """Title and remedy of a condition.

    Attributes:
        title: what has happened, in a few words: the heading of its page.
        remedy: what an operator does next, in one sentence.
    """

    title: str
    remedy: str


CONDITIONS: Mapping[str, Condition] = {
    "sensor-failing": Condition(
        "A sensor's ticks fail", "Read the tick's stack trace in Dagster's UI, Automation."
    ),
    "intake-paused": Condition(
        "Intake is paused", "Remove the cause: intake resumes when a trial upload succeeds."
    ),
    "duplicate-job": Condition(
        "The same GPU work was started twice",
        "Find out how the second run was started, then resume intake with capstone intake resume.",
    ),
    "waiting-for-capacity": Condition(
        "Runs wait long for a machine",
        "Wait ten minutes for a first machine to start, then check AWS Batch's capacity.",
    ),
    "long-running": Condition(
        "A run is overdue",
        "See in capstone status whether it progresses; if not, terminate and re-execute it.",
    ),
}
