"""The daemon's process, again and again: each life is a fork that runs Dagster's sensor loop until killed.

The parent loads everything once and then only forks, so that a life begins within a tenth of a second; it
has no connection and no thread that a child could inherit half-done. A child runs Dagster's own daemon code
(`execute_sensor_iteration`) on the real storage and ends by SIGKILL at its point, or when nothing is left
to do. Orders come as lines of JSON on standard input, each is answered by a line.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster._daemon.sensor
from botocore.exceptions import ClientError
from dagster import DagsterInstance
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.remote_representation.code_location import InProcessCodeLocation
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget

from capstone_dagster.logs.json_lines import configure_logging

# Standard output is for answers. Whoever gives a process its log lines first decides where they go.
configure_logging(None, "soak", stream=sys.stderr, level=logging.WARNING, style="text")

from capstone_dagster.definitions import services  # noqa: E402
from capstone_dagster.intake.queue import UploadQueue  # noqa: E402
from tests.intake.soak.journal import JournalWriter, Tick  # noqa: E402
from tests.intake.soak.points import Point  # noqa: E402
from tests.intake.soak.traps import Fate, set_traps  # noqa: E402

LOCATION = "tests.intake.soak.location"


@dataclass(frozen=True, slots=True)
class Order:
    """One life: where it ends, how long it lasts at most, and which keys S3 refuses it."""

    point: str | None
    passes: int
    ticks: int
    forbidden: Sequence[str]


class _Tally:
    """What the current iteration did, as seen from outside of the sensor."""

    def __init__(self) -> None:
        self.received = self.acknowledged = self.runs = self.evaluations = 0

    @property
    def nothing_to_do(self) -> bool:
        """The sensor was asked (no earlier tick was resumed instead), and nothing came of it."""
        return self.evaluations > 0 and not (self.received or self.acknowledged or self.runs)


def main(journal: Path) -> None:
    instance = DagsterInstance.get()
    # Loaded once, so that the children find modules, definitions and clients in memory.
    with _workspace(instance):
        pass
    queue = UploadQueue(services.sqs, services.settings.required("queue_url"))
    dead_letter_url = queue.dead_letter_url
    services.sqs.close()
    del services.sqs, queue
    _ = services.sqs, services.s3, services.database
    assert threading.active_count() == 1, "a fork would inherit the locks of threads that are gone"
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _live(instance, Order(**json.loads(line)), journal, dead_letter_url)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _live(instance: DagsterInstance, order: Order, journal: Path, dead_letter_url: str) -> None:
    code = 1
    try:
        # Nothing of a life may reach the answers.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _run_daemon(instance, order, JournalWriter(journal), dead_letter_url)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run_daemon(
    instance: DagsterInstance, order: Order, journal: JournalWriter, dead_letter_url: str
) -> None:
    # As the webserver does: Dagster's daemon opens a connection for each statement, which takes four times
    # as long and is not what is tested here.
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=20)
    # Asked of PostgreSQL six times a run, and the tables stay as they are: a seventh of the time.
    for storage, question in (
        (SqlRunStorage, "has_run_stats_index_cols"),
        (SqlEventLogStorage, "has_asset_key_index_cols"),
    ):
        setattr(storage, question, cache(getattr(storage, question)))
    # The harness does not wait a second between two ticks.
    dagster._daemon.sensor.is_under_min_interval = lambda *_: False
    tally = _Tally()
    _watch(services.sqs, journal, tally)
    _forbid(services.s3, frozenset(order.forbidden))
    _count(tally)
    point = None if order.point is None else Point(order.point)
    set_traps(Fate(point, order.passes, journal), services, dead_letter_url)
    logger = logging.getLogger("soak")
    logger.setLevel(logging.WARNING)
    with _workspace(instance) as workspace:
        for _ in range(order.ticks):
            tally.__init__()  # type: ignore[misc]
            started = time.monotonic()
            said = list(
                dagster._daemon.sensor.execute_sensor_iteration(
                    workspace, logger, threadpool_executor=None, submit_threadpool_executor=None
                )
            )
            failed = any(said)
            journal.tick(
                Tick(time.monotonic() - started, tally.received, tally.acknowledged, tally.runs, failed)
            )
            if tally.nothing_to_do and not failed:
                break
        for thread in threading.enumerate():
            # A lingering evaluation ends before its process, or nobody would know what it deleted.
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()


def _workspace(instance: DagsterInstance) -> WorkspaceProcessContext:
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=LOCATION)
    origin = InProcessCodeLocationOrigin(target, location_name=LOCATION)
    return WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget([origin]))


def _watch(sqs: Any, journal: JournalWriter, tally: _Tally) -> None:
    """Keep account of what goes over the wire; this lies inside of every trap."""
    receive, delete = sqs.receive_message, sqs.delete_message_batch

    def receive_message(**call: Any) -> Any:
        # A long poll of an empty queue would only cost time.
        answer = receive(**{**call, "WaitTimeSeconds": 0})
        messages = {each["MessageId"]: each["ReceiptHandle"] for each in answer.get("Messages", [])}
        if messages:
            journal.received(messages)
            tally.received += len(messages)
        return answer

    def delete_message_batch(**call: Any) -> Any:
        asked_at = time.time()
        answer = delete(**call)
        receipts = {entry["Id"]: entry["ReceiptHandle"] for entry in call["Entries"]}
        confirmed = [receipts[each["Id"]] for each in answer.get("Successful", [])]
        journal.acknowledged(confirmed, asked_at)
        tally.acknowledged += len(confirmed)
        return answer

    sqs.receive_message, sqs.delete_message_batch = receive_message, delete_message_batch


def _forbid(s3: Any, keys: frozenset[str]) -> None:
    """Refuse some keys as S3 does; the emulators do not enforce permissions."""
    head = s3.head_object

    def head_object(**call: Any) -> Any:
        if call["Key"] in keys:
            raise ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject")
        return head(**call)

    s3.head_object = head_object


def _count(tally: _Tally) -> None:
    create, evaluate = DagsterInstance.create_run, InProcessCodeLocation.get_sensor_execution_data

    def create_run(*args: Any, **kwargs: Any) -> Any:
        run = create(*args, **kwargs)
        tally.runs += 1
        return run

    def get_sensor_execution_data(*args: Any, **kwargs: Any) -> Any:
        tally.evaluations += 1
        return evaluate(*args, **kwargs)

    DagsterInstance.create_run = create_run  # type: ignore[method-assign]
    InProcessCodeLocation.get_sensor_execution_data = get_sensor_execution_data  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
