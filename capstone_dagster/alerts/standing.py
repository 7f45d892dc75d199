"""Whether notices reach people, as `capstone doctor` asks: from the sensor's ticks and its cursor."""

from __future__ import annotations

from dataclasses import dataclass, field

import dagster as dg

from capstone_dagster.alerts.alerting import AlertState
from capstone_dagster.alerts.incidents import due
from capstone_dagster.dagster_private import InstigatorStatus, InstigatorType, SensorInstigatorData
from capstone_dagster.failures.cursors import from_json
from capstone_dagster.failures.ended_runs import SENSOR_NAME


@dataclass(frozen=True, slots=True)
class Standing:
    """What the sensor left behind.

    Attributes:
        running: whether it is switched on.
        ticked: when it ticked last, seconds since 1970; None: never.
        kept: notices that wait to be sent.
        open: incidents that are not over.
        refusal: why SNS did not take a notice, since `refused_since`; empty if it did.
    """

    running: bool
    ticked: float | None
    kept: int
    open: int
    refusal: str
    refused_since: float


@dataclass(slots=True)
class _Cursor:
    """The part of the sensor's cursor that is about alerts."""

    alerts: AlertState = field(default_factory=AlertState)


def read_standing(instance: dg.DagsterInstance) -> Standing | None:
    """The sensor's standing; None if Dagster's daemon has never run it."""
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        data = state.instigator_data
        if state.instigator_name == SENSOR_NAME and isinstance(data, SensorInstigatorData):
            alerts = from_json(_Cursor, data.cursor).alerts if data.cursor else AlertState()
            return Standing(
                state.status != InstigatorStatus.STOPPED,
                data.last_tick_timestamp,
                len(list(due(alerts.record))),
                sum(incident.closed is None for incident in alerts.record.incidents),
                alerts.sns.reason,
                alerts.sns.since,
            )
    return None
