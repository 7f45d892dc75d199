"""The sensor `outbox`: sends what waits in the event store's outbox, in the order of each video.

While SNS answers nothing at all, the whole topic waits, less and less often tried; a notice that it refuses
alone holds back only its own video's later ones. Nothing is lost either way: a row is sent once SNS has said
so.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass

import dagster as dg

from capstone_dagster.catalog.metrics import OUTBOX_AGE, OUTBOX_REFUSED, OUTBOX_SENT
from capstone_dagster.failures.cursors import known_fields
from capstone_dagster.outbox.topic import BATCH, NoticeTopic, NotSent
from capstone_dagster.services import Services
from capstone_dagster.storage.outbox import oldest_notice, prune_notices, send_notices

SENSOR_NAME = "outbox"
# A tick may take 60 s. A request to SNS that hangs takes 8 s more.
_BUDGET_S = 15.0
# A topic that cannot be reached is tried again with the next tick, then less often.
_AGAIN_S = 5.0
_AGAIN_LIMIT_S = 60.0
# Twice as long as SQS keeps a message for a consumer, so that sent notices can be looked up.
KEPT_DAYS = 28
_PRUNE_EVERY_S = 3600.0

log = logging.getLogger("capstone.notices")


@dataclass(slots=True)
class _Memory:
    """What one tick leaves to the next; times are seconds since 1970.

    Attributes:
        failures: how often in a row SNS could not be used, and `failure` why not last.
        failed_since: since when.
        try_again: not before this time is it tried again.
        pruned: when old notices were forgotten last.
    """

    failures: int = 0
    failure: str = ""
    failed_since: float = 0.0
    try_again: float = 0.0
    pruned: float = 0.0


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notifies other systems through SNS about each upload: received, analyzed, failed; "
    "at least once, in order for each video.",
)
def outbox_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult:
    """See the module. Without a topic it does nothing, and says so."""
    arn = services.settings.notice_topic_arn
    if arn is None:
        message = "CAPSTONE_NOTICE_TOPIC_ARN is not set: notices to other systems stay in the outbox."
        return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=context.cursor)
    memory = _read(context.cursor)
    message = _send(services, NoticeTopic(arn), memory)
    if memory.failures:
        context.log.error(message)
    _forget_old(services, memory)
    return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=json.dumps(asdict(memory)))


def _read(cursor: str | None) -> _Memory:
    """The state of an earlier tick, even of a later version that was rolled back."""
    return _Memory(**known_fields(_Memory, json.loads(cursor) if cursor else {}))


def _send(services: Services, topic: NoticeTopic, memory: _Memory) -> str:
    """Send due notices within the tick's time; returns a summary."""
    sent = 0
    refused: dict[int, str] = {}
    over = time.monotonic() + _BUDGET_S
    while time.time() >= memory.try_again and time.monotonic() < over:
        try:
            count, refusals = services.database.transact(send_notices, topic.publish, most=BATCH)
        except NotSent as error:
            _note_failure(memory, error)
            break
        if not count and not refusals:
            break
        _note_answer(memory)
        sent += count
        refused |= refusals
    for notice_id, reason in refused.items():
        log.warning(
            f"Notice {notice_id} holds back its video's later ones: {reason}",
            extra={"action": "outbox.refused", "notice_id": notice_id},
        )
    oldest = services.database.transact(oldest_notice)
    age_s = max(0.0, time.time() - oldest.timestamp()) if oldest is not None else 0.0
    failed = len(refused) + bool(memory.failures)
    services.metrics.add_all({OUTBOX_SENT: sent, OUTBOX_REFUSED: failed, OUTBOX_AGE: age_s})
    if sent:
        log.info(
            f"{sent} notices sent.",
            extra={"action": "outbox.sent", "notices": sent, "refused": len(refused)},
        )
    if memory.failures:
        return f"{sent} notices sent; the oldest that waits is {age_s:,.0f} s old: {memory.failure}"
    if refused:
        last = next(reversed(refused.values()))
        return f"{sent} notices sent, {len(refused)} refused and tried again later: {last}"
    return f"{sent} notices sent." if sent or not age_s else f"Notices wait for {age_s:,.0f} s at most."


def _note_failure(memory: _Memory, error: NotSent) -> None:
    now = time.time()
    if not memory.failures:
        memory.failed_since = now
    memory.failures += 1
    memory.failure = str(error)
    memory.try_again = now + min(_AGAIN_S * 2 ** min(memory.failures - 1, 8), _AGAIN_LIMIT_S)
    log.error(
        f"Notices to other systems wait: {error}",
        extra={"action": "outbox.failed", "failures": memory.failures},
    )


def _note_answer(memory: _Memory) -> None:
    if memory.failures:
        after_s = time.time() - memory.failed_since
        log.info(
            f"Notices leave again, after {after_s:,.0f} s.",
            extra={"action": "outbox.recovered", "elapsed_s": round(after_s, 1)},
        )
    memory.failures, memory.failure, memory.try_again = 0, "", 0.0


def _forget_old(services: Services, memory: _Memory) -> None:
    if time.time() - memory.pruned < _PRUNE_EVERY_S:
        return
    if not services.database.transact(prune_notices, days=KEPT_DAYS):
        memory.pruned = time.time()
