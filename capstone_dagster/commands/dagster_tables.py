"""What Dagster's storage says of the queue and of intake, read by SQL: importing Dagster takes a second.

Only the four tables that this needs, as Dagster 1.13 has them; nothing here writes.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from capstone_dagster.failures.breaker_state import BREAKER, BreakerState
from capstone_dagster.intake.orders import ORDER, Order
from capstone_dagster.reports.reading import dagster_connection
from capstone_dagster.run_tags import PRIORITY_TAG, UPLOAD_TAG
from capstone_dagster.runs.queueing import Queue, QueuedRun

# The daemon that starts queued runs says every 30 s that it lives.
_DEQUEUER = "QUEUED_RUN_COORDINATOR"

_runs = sa.table("runs", *map(sa.column, ("id", "run_id", "status")))
_run_tags = sa.table("run_tags", *map(sa.column, ("run_id", "key", "value")))
_heartbeats = sa.table("daemon_heartbeats", *map(sa.column, ("daemon_type", "body")))
_kept = sa.table("kvs", *map(sa.column, ("key", "value")))


def read_queue() -> Queue:
    """The runs that wait, in the order of their creation, and what decides when they start.

    Raises:
        NotConfigured: DAGSTER_POSTGRES_URL is not set.
        DatabaseUnavailable, SQLAlchemyError: its storage does not answer, or has no tables yet.
    """
    priority, upload = _run_tags.alias(), _run_tags.alias()
    waiting = (
        sa.select(_runs.c.run_id, priority.c.value, upload.c.value)
        .outerjoin(priority, (priority.c.run_id == _runs.c.run_id) & (priority.c.key == PRIORITY_TAG))
        .outerjoin(upload, (upload.c.run_id == _runs.c.run_id) & (upload.c.key == UPLOAD_TAG))
        .where(_runs.c.status == "QUEUED")
        .order_by(_runs.c.id)
    )
    under_way = sa.select(sa.func.count()).where(_runs.c.status.in_(("STARTING", "STARTED", "CANCELING")))
    heartbeat = sa.select(_heartbeats.c.body).where(_heartbeats.c.daemon_type == _DEQUEUER)
    with dagster_connection() as connection:
        found = connection.execute(waiting).all()
        body = connection.execute(heartbeat).scalar()
        return Queue(
            waiting=tuple(
                QueuedRun(run_id, priority or "0", upload_id) for run_id, priority, upload_id in found
            ),
            running=connection.execute(under_way).scalar_one(),
            daemon_seen_at=None if body is None else float(json.loads(body)["timestamp"]),
            intake=BREAKER.parse(_value(connection, BREAKER.key)),
        )


def read_intake() -> tuple[BreakerState, Order | None]:
    """Intake's circuit breaker as its last tick left it, and the last order that was given.

    Raises:
        NotConfigured: DAGSTER_POSTGRES_URL is not set.
        DatabaseUnavailable, SQLAlchemyError: its storage does not answer.
    """
    with dagster_connection() as connection:
        if not sa.inspect(connection).has_table(_kept.name):
            return BREAKER.parse(None), ORDER.parse(None)  # Dagster has not started yet
        return BREAKER.parse(_value(connection, BREAKER.key)), ORDER.parse(_value(connection, ORDER.key))


def _value(connection: sa.Connection, key: str) -> str | None:
    kept: str | None = connection.execute(sa.select(_kept.c.value).where(_kept.c.key == key)).scalar()
    return kept
