"""The sensor `alerts`: looks at the records, decides what is told, and hands it to SNS.

It never raises once it has sent something: a tick that fails leaves its cursor as it was, and would tell the
same again. What SNS does not take stays in the cursor. It does not use the tick's own log, which Dagster
stores in S3 when the tick ends, with more patience than a tick has time.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import dagster as dg

from capstone_dagster.alerts import reading
from capstone_dagster.alerts.memory import Memory
from capstone_dagster.alerts.notices import Trouble, due, observe, sent
from capstone_dagster.alerts.sending import NotSent, Topic
from capstone_dagster.alerts.standing import SENSOR_NAME
from capstone_dagster.alerts.wording import Place, compose
from capstone_dagster.catalog.metrics import NOTICES_FAILED, NOTICES_SENT
from capstone_dagster.logs.redaction import Redaction, known_secrets
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.metrics.waiting_messages import Queues
from capstone_dagster.settings import Settings

log = logging.getLogger("capstone.alerts")

# Of the 60 s that a tick may take: classifying a failed run takes some 5 ms, a notice to SNS some 20 ms.
_READ_BUDGET_S = 10.0
_SEND_BUDGET_S = 15.0
# The number of dead letters takes three requests and a client; it may be that old.
_LETTERS_INTERVAL_S = 20.0
# SNS is tried again with the next tick, then less often.
_AGAIN_S = 5.0
_AGAIN_LIMIT_S = 60.0


class Needs(Protocol):
    """What the sensor uses of what the code location shares."""

    @property
    def settings(self) -> Settings: ...
    @property
    def metrics(self) -> Metrics: ...


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells people what failed, why, and when it is over: runs by class, sensors whose ticks "
    "fail, messages that were given up, intake that has paused itself, runs without a machine.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Needs]) -> dg.SensorResult:
    """See the module; without a topic it does nothing and says so."""
    if services.settings.alert_topic_arn is None:
        told = "CAPSTONE_ALERT_TOPIC_ARN is not set: nobody is told of failures."
        return dg.SensorResult(skip_reason=dg.SkipReason(told), cursor=context.cursor)
    memory = Memory.read(context.cursor, time.time())
    failed = _look(context.instance, services, memory)
    told = _tell(services, memory, Topic(services.settings.alert_topic_arn))
    told = f"{failed} new failures. {told}"
    return dg.SensorResult(skip_reason=dg.SkipReason(told), cursor=memory.write())


def _look(instance: dg.DagsterInstance, services: Needs, memory: Memory) -> int:
    """Enter what has happened since the last tick; returns how many runs failed."""
    now = time.time()
    clean = Redaction(known_secrets(services.settings)).text
    failures = list(
        reading.new_failures(
            instance,
            memory.position,
            now=now,
            budget_s=_READ_BUDGET_S,
            retries=services.settings.reexecutions_per_video,
            clean=clean,
        )
    )
    successes = reading.successes(instance, memory.successes_read) if memory.record.incidents else []
    memory.successes_read = now
    sources: dict[str, Callable[[], list[Trouble]]] = {
        "sensor": lambda: reading.failing_sensors(instance, now=now, clean=clean),
        "intake": lambda: reading.intake_pause(instance),
        "lookup": lambda: reading.left_messages(instance, now=now, clean=clean),
        "waiting": lambda: reading.waiting_runs(instance, now=now),
        "retry": lambda: reading.retrying_runs(instance, now=now, clean=clean),
        "overdue": lambda: reading.overdue_runs(instance, services.settings, now=now),
    }
    unseen = set()
    if now - memory.letters_read >= _LETTERS_INTERVAL_S and services.settings.queue_url is not None:
        memory.letters_read = now
        queues = Queues(services.settings.queue_url)
        sources["dead"] = lambda: reading.dead_letters(queues)
    else:
        unseen.add("dead")
    troubles = []
    for source, look in sources.items():
        try:
            troubles += look()
        except Exception as error:  # one source that cannot be looked at must not hide the others
            unseen.add(source)
            log.warning(
                "Trouble with %s cannot be looked for: %s: %s",
                source,
                type(error).__name__,
                error,
                extra={"action": "look.failed", "source": source},
            )
    observe(memory.record, failures=failures, successes=successes, troubles=troubles, unseen=unseen, now=now)
    return len(failures)


def _tell(services: Needs, memory: Memory, topic: Topic) -> str:
    """Send what is due; returns what was done in a sentence."""
    place = place_of(services.settings, topic.arn)
    waiting = list(due(memory.record))
    over = time.monotonic() + _SEND_BUDGET_S
    count = 0
    if waiting and time.time() >= memory.try_again:
        for incident, kind in waiting:
            if time.monotonic() > over:
                break
            message = compose(incident, kind, place, given_up=memory.record.given_up)
            try:
                topic.publish(message)
            except NotSent as error:
                _note_refusal(services, memory, error)
                break
            sent(memory.record, incident, kind, time.time())
            count += 1
            memory.refusals, memory.refusal = 0, ""
            _log_sent(message.subject, message.attributes)
    if count:
        services.metrics.add(NOTICES_SENT, count)
    left = len(waiting) - count
    if memory.refusal:
        return f"{count} notices sent, {left} kept to be sent again: {memory.refusal}"
    return f"{count} notices sent." if count or left else "Nothing to tell."


def place_of(settings: Settings, topic_arn: str) -> Place:
    """Where this deployment's links lead."""
    region = None if settings.environment == "local" else topic_arn.split(":")[3]
    return Place(settings.environment, settings.ui_url, settings.runbook_url, region)


def _note_refusal(services: Needs, memory: Memory, error: NotSent) -> None:
    now = time.time()
    if memory.refusals == 0:
        memory.refused_since = now
    memory.refusals += 1
    memory.refusal = str(error)
    # An exponent that grew with an outage of days would be too large for a float.
    memory.try_again = now + min(_AGAIN_S * 2 ** min(memory.refusals - 1, 10), _AGAIN_LIMIT_S)
    services.metrics.add(NOTICES_FAILED)
    log.error(
        "A notice was not sent: %s", error, extra={"action": "notice.failed", "refusals": memory.refusals}
    )


def _log_sent(subject: str, attributes: Mapping[str, str]) -> None:
    log.info(
        "%s",
        subject,
        extra={
            "action": "notice.sent",
            "notice": attributes["kind"],
            "failure_class": attributes["class"],
            "incident": attributes["incident"],
        },
    )
