"""Sensors and their ticks on record, as Dagster's daemon leaves them."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo


def record_sensor(
    instance: dg.DagsterInstance, name: str, cursor: str | None = None, ticked: float | None = None
) -> RemoteInstigatorOrigin:
    """Record the state of a sensor that is switched on, or bring it up to date."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("location"), "repository")
    origin = RemoteInstigatorOrigin(repository, name)
    data = SensorInstigatorData(cursor=cursor, last_tick_timestamp=ticked)
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
    if instance.get_instigator_state(origin.get_id(), origin.get_selector().get_id()) is None:
        instance.add_instigator_state(state)
    else:
        instance.update_instigator_state(state)
    return origin


def record_tick(
    instance: dg.DagsterInstance,
    sensor: str,
    status: TickStatus,
    *,
    error: SerializableErrorInfo | None = None,
    seconds: float | None = None,
) -> InstigatorTick:
    """Record a tick that begins now, of a sensor that need not be on record yet."""
    origin, began = record_sensor(instance, sensor), time.time()
    return instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name=sensor,
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=began,
            end_timestamp=None if seconds is None else began + seconds,
            selector_id=origin.get_selector().get_id(),
            error=error,
        )
    )
