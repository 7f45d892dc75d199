"""The sensor `outbox`: sends what waits in the event store's outbox, in the order of each video.

While SNS answers nothing at all, the whole topic waits, less and less often tried; a notice that it refuses
alone holds back only its own video's later ones. Nothing is lost either way: a row counts as sent once SNS
has accepted it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from capstone_dagster.catalog.metrics import OUTBOX_AGE, OUTBOX_REFUSED, OUTBOX_SENT
from capstone_dagster.failures.backoff import Backoff
from capstone_dagster.failures.cursors import read_cursor, to_json
from capstone_dagster.outbox.message import message
from capstone_dagster.outbox.people import People
from capstone_dagster.services import Services
from capstone_dagster.storage.outbox import Notice, outbox_backlog, prune_notices, send_notices
from capstone_dagster.storage.watches import KIND
from capstone_dagster.topics import BATCH, NotSent, Topic

SENSOR_NAME = "outbox"
# A tick may take 60 s. A request to SNS that hangs takes 8 s more.
_BUDGET_S = 15.0
# People's services are slower than SNS, and each is asked alone, in the transaction that holds the notices.
_BATCH_OF_MESSAGES = 2
# Twice as long as SQS keeps a message for a consumer, so that sent notices can be looked up.
KEPT_DAYS = 28
_PRUNE_EVERY_S = 3600.0

log = logging.getLogger("capstone.notices")


@dataclass(slots=True)
class _Cursor:
    """What one tick leaves to the next; times are seconds since 1970.

    Attributes:
        sns: how sending fails as a whole.
        pruned: when old notices were forgotten last.
    """

    sns: Backoff = field(default_factory=Backoff)
    pruned: float = 0.0


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notifies other systems through SNS about each upload: received, analyzed, failed, watched; "
    "and people of what they watch; at least once, in order for each video.",
)
def outbox_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult:
    """See the module. Without a topic it sends to people alone, without their URLs as well nothing."""
    arn, people = services.settings.notice_topic_arn, _people(services)
    if arn is None and people is None:
        account = "CAPSTONE_NOTICE_TOPIC_ARN is not set: notices to other systems stay in the outbox."
        return dg.SensorResult(skip_reason=dg.SkipReason(account), cursor=context.cursor)
    cursor = read_cursor(_Cursor, context.cursor, _Cursor)
    topic = None if arn is None else Topic(arn, "CAPSTONE_NOTICE_TOPIC_ARN")
    account = _send(services, topic, people, cursor)
    if cursor.sns.times:
        context.log.error(account)
    _forget_old(services, cursor)
    return dg.SensorResult(skip_reason=dg.SkipReason(account), cursor=to_json(cursor))


def _people(services: Services) -> People | None:
    urls, settings = services.settings.message_urls, services.settings
    if urls is None:
        return None
    return People(urls.get_secret_value(), services.objects, ZoneInfo(settings.timezone), settings.browse_url)


def _send(services: Services, topic: Topic | None, people: People | None, cursor: _Cursor) -> str:
    """Send due notices within the tick's time; returns a summary."""
    sent = 0
    refused: dict[int, str] = {}
    over = time.monotonic() + _BUDGET_S
    while cursor.sns.is_due and time.monotonic() < over:
        try:
            count, refusals = services.database.transact(
                send_notices,
                partial(_publish, topic, people, services.settings.video_page),
                most=BATCH if people is None else _BATCH_OF_MESSAGES,
                kind=KIND if topic is None else None,
            )
        except NotSent as error:
            cursor.sns.failed(str(error))
            extra: dict[str, Any] = {"action": "outbox.failed", "failures": cursor.sns.times}
            log.error(f"Notices to other systems wait: {error}", extra=extra)
            break
        if not count and not refusals:
            break
        if cursor.sns.times:
            after_s = time.time() - cursor.sns.since
            extra = {"action": "outbox.recovered", "elapsed_s": round(after_s, 1)}
            log.info(f"Notices leave again, after {after_s:,.0f} s.", extra=extra)
            cursor.sns.succeeded()
        sent += count
        refused |= refusals
    for notice_id, reason in refused.items():
        log.warning(
            f"Notice {notice_id} holds back its video's later ones: {reason}",
            extra={"action": "outbox.refused", "notice_id": notice_id},
        )
    oldest = services.database.transact(outbox_backlog).oldest
    age_s = max(0.0, time.time() - oldest.timestamp()) if oldest is not None else 0.0
    failed = len(refused) + bool(cursor.sns.times)
    services.metrics.add_all({OUTBOX_SENT: sent, OUTBOX_REFUSED: failed, OUTBOX_AGE: age_s})
    if sent:
        log.info(
            f"{sent} notices sent.",
            extra={"action": "outbox.sent", "notices": sent, "refused": len(refused)},
        )
    if cursor.sns.times:
        return f"{sent} notices sent; the oldest that waits is {age_s:,.0f} s old: {cursor.sns.reason}"
    if refused:
        last = next(reversed(refused.values()))
        return f"{sent} notices sent, {len(refused)} refused and tried again later: {last}"
    return f"{sent} notices sent." if sent or not age_s else f"Notices wait for {age_s:,.0f} s at most."


def _publish(
    topic: Topic | None,
    people: People | None,
    page: Callable[[str], str | None],
    notices: Sequence[Notice],
) -> dict[int, str]:
    """Hand notices over; those that SNS or people's services refused: ids to reasons.

    People are last: what they do not get is sent again, and programs know a notice by its id.

    Raises:
        NotSent: SNS took none.
    """
    refused = (
        {} if topic is None else topic.publish([message(notice, page(notice.video_id)) for notice in notices])
    )
    reasons = {notices[place].notice_id: reason for place, reason in refused.items()}
    for notice in notices:
        if people is not None and notice.kind == KIND and notice.notice_id not in reasons:
            reason = people.tell(notice)
            if reason is not None:
                reasons[notice.notice_id] = reason
    return reasons


def _forget_old(services: Services, cursor: _Cursor) -> None:
    if time.time() - cursor.pruned < _PRUNE_EVERY_S:
        return
    if not services.database.transact(prune_notices, days=KEPT_DAYS):
        cursor.pruned = time.time()
