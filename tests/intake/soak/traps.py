"""Traps at the named points, set from outside around the calls that a tick makes; nothing in the code knows.

They are set in a process that lives for one life only, so nothing is ever taken back.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy as sa
from botocore.exceptions import ClientError
from dagster import DagsterInstance
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.remote_representation.code_location import InProcessCodeLocation
from dagster._core.scheduler.instigation import TickStatus
from dagster._daemon.sensor import SensorLaunchContext
from dagster_postgres import PostgresRunStorage

from capstone_dagster.services import Services
from tests.intake.soak.journal import JournalWriter
from tests.intake.soak.points import Point

Call = Callable[..., Any]
# Several, so that not each of them is saved by some later duplicate if nobody cares for it.
SUBMISSIONS_THAT_FAIL = 8


class Fate:
    """The one point at which this life ends or goes wrong, and how often it may be passed before."""

    def __init__(self, point: Point | None, passes: int, journal: JournalWriter) -> None:
        self._point = point
        self._passes = passes
        self._journal = journal
        # HeadObject is called by several threads.
        self._lock = threading.Lock()

    def strikes(self, point: Point) -> bool:
        """Whether a fault strikes here and now; at a point that kills, nobody is left to answer."""
        if point is not self._point:
            return False
        with self._lock:
            self._passes -= 1
            if self._passes != -1:
                return False
            self._journal.struck(point)
            if point.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        return True


def set_traps(fate: Fate, services: Services, dead_letter_url: str) -> None:
    """Wrap every call at which something may happen."""
    _around_sqs(fate, services.sqs, dead_letter_url)
    _around(services.s3, "head_object", after=lambda: fate.strikes(Point.AFTER_HEAD))
    _around_event_store(fate, services.database.engine)
    _around_statements(fate)
    _around_evaluation(fate)
    _around_runs(fate)
    _around_tick(fate)


def _around(owner: Any, name: str, *, before: Call | None = None, after: Call | None = None) -> None:
    """Put calls around a method of an object or a class."""
    original = getattr(owner, name)

    def trapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            before()
        result = original(*args, **kwargs)
        if after:
            after()
        return result

    setattr(owner, name, trapped)


def _around_sqs(fate: Fate, sqs: Any, dead_letter_url: str) -> None:
    receive, send, delete = sqs.receive_message, sqs.send_message, sqs.delete_message_batch

    def receive_message(**call: Any) -> Any:
        fate.strikes(Point.BEFORE_RECEIVE)
        answer = receive(**call)
        if answer.get("Messages"):
            fate.strikes(Point.AFTER_RECEIVE)
        return answer

    def send_message(**call: Any) -> Any:
        if call["QueueUrl"] != dead_letter_url:
            return send(**call)
        fate.strikes(Point.BEFORE_DEAD_LETTER)
        answer = send(**call)
        fate.strikes(Point.AFTER_DEAD_LETTER)
        return answer

    def delete_message_batch(**call: Any) -> Any:
        fate.strikes(Point.BEFORE_ACKNOWLEDGE)
        if fate.strikes(Point.QUEUE_DOWN):
            raise ClientError({"Error": {"Code": "500", "Message": "InternalError"}}, "DeleteMessageBatch")
        answer = delete(**call)
        fate.strikes(Point.AFTER_ACKNOWLEDGE)
        return answer

    sqs.receive_message, sqs.send_message = receive_message, send_message
    sqs.delete_message_batch = delete_message_batch


def _around_event_store(fate: Fate, engine: sa.Engine) -> None:
    """Found by what the statements say, so that it does not matter which methods send them."""
    said: dict[int, str] = {}

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        said.pop(id(connection.connection.driver_connection), None)

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _(connection: sa.Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        key = id(connection.connection.driver_connection)
        said[key] = said.get(key, "") + statement

    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        statements = said.pop(id(connection.driver_connection), "")
        records = "INSERT INTO capstone.videos" in statements
        marks = not records and "UPDATE capstone.video_status" in statements
        if records:
            fate.strikes(Point.BEFORE_RECORDING_UPLOAD)
        if marks:
            fate.strikes(Point.BEFORE_MARKING_QUEUED)
        if (records or marks) and fate.strikes(Point.EVENT_STORE_DOWN):
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        commit(connection)
        if records:
            fate.strikes(Point.AFTER_RECORDING_UPLOAD)

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]


def _around_statements(fate: Fate) -> None:
    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def _(*_rest: Any) -> None:
        fate.strikes(Point.ANY_STATEMENT)


def _around_evaluation(fate: Fate) -> None:
    """The sensor's function runs in this process; in a code server of its own it can also be too late."""
    evaluate = InProcessCodeLocation.get_sensor_execution_data

    def get_sensor_execution_data(*args: Any, **kwargs: Any) -> Any:
        if fate.strikes(Point.LINGERING):
            threading.Thread(target=evaluate, args=args, kwargs=kwargs).start()
            raise DagsterUserCodeUnreachableError("The user code server timed out, and still works.")
        result = evaluate(*args, **kwargs)
        fate.strikes(Point.AFTER_EVALUATION)
        if fate.strikes(Point.TIME_OUT):
            raise DagsterUserCodeUnreachableError("The user code server timed out.")
        return result

    InProcessCodeLocation.get_sensor_execution_data = get_sensor_execution_data  # type: ignore[method-assign]


def _around_runs(fate: Fate) -> None:
    instance = DagsterInstance
    _around(instance, "report_runless_asset_event", after=lambda: fate.strikes(Point.AFTER_ASSET_EVENT))
    _around(
        instance,
        "add_dynamic_partitions",
        before=lambda: fate.strikes(Point.BEFORE_PARTITIONS),
        after=lambda: fate.strikes(Point.AFTER_PARTITIONS),
    )

    def before_run() -> None:
        fate.strikes(Point.BEFORE_RUN_CREATED)
        if fate.strikes(Point.RUN_STORAGE_DOWN):
            raise sa.exc.OperationalError("INSERT INTO runs", {}, Exception("server closed the connection"))

    _around(instance, "create_run", before=before_run, after=lambda: fate.strikes(Point.AFTER_RUN_CREATED))

    failing = 0

    def before_submit() -> None:
        # Dagster notes this error and calls the tick a success: the runs stay behind, not started.
        nonlocal failing
        if fate.strikes(Point.SUBMIT_DOWN):
            failing = SUBMISSIONS_THAT_FAIL
        if failing:
            failing -= 1
            raise sa.exc.OperationalError("INSERT INTO event_logs", {}, Exception("connection closed"))

    _around(
        instance, "submit_run", before=before_submit, after=lambda: fate.strikes(Point.AFTER_RUN_SUBMITTED)
    )
    # A submission is an event and a change of the run's row, in two transactions: this is between them.
    _around(PostgresRunStorage, "handle_run_event", before=lambda: fate.strikes(Point.INSIDE_SUBMIT))


def _around_tick(fate: Fate) -> None:
    _around(SensorLaunchContext, "set_run_requests", after=lambda: fate.strikes(Point.AFTER_TICK_STORED))
    update_tick, update_state = DagsterInstance.update_tick, DagsterInstance.update_instigator_state

    def trapped_tick(self: DagsterInstance, tick: Any) -> Any:
        if tick.status is TickStatus.SUCCESS:
            fate.strikes(Point.BEFORE_TICK_FINISHED)
        result = update_tick(self, tick)
        if tick.status is TickStatus.SUCCESS:
            fate.strikes(Point.BEFORE_CURSOR)
        return result

    def trapped_state(self: DagsterInstance, state: Any) -> Any:
        result = update_state(self, state)
        # Only the end of a tick says that it succeeded; its beginning takes that back.
        data = state.instigator_data
        if data is not None and data.last_tick_success_timestamp and data.cursor not in (None, "", "[]"):
            fate.strikes(Point.AFTER_CURSOR)
        return result

    DagsterInstance.update_tick = trapped_tick  # type: ignore[method-assign]
    DagsterInstance.update_instigator_state = trapped_state  # type: ignore[method-assign]
