"""Turn verdicts and troubles into incidents, and hand the notices that are due to SNS.

Nothing here raises because of what it looks at or where it sends: what SNS does not take is kept
and sent later. It does not use the tick's own log, which Dagster stores in S3 when the tick ends, with
more patience than a tick has time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import dagster as dg

from capstone_dagster.alerts import troubles
from capstone_dagster.alerts.incidents import Record, Trouble, due, observe, sent
from capstone_dagster.alerts.wording import Place, compose
from capstone_dagster.catalog.metrics import NOTICES_FAILED, NOTICES_SENT
from capstone_dagster.failures.backoff import Backoff
from capstone_dagster.failures.past_incidents import PAST_INCIDENTS, PastIncident, merged
from capstone_dagster.failures.verdicts import Cause, Verdict
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.metrics.waiting_messages import queues_at
from capstone_dagster.redaction import Redaction, known_secrets
from capstone_dagster.settings import Settings
from capstone_dagster.topics import NotSent, Topic

log = logging.getLogger("capstone.alerts")

# Of the 60 s that a tick may take; a notice to SNS takes some 20 ms.
_SEND_BUDGET_S = 15.0
# Looking for troubles asks for every sensor's ticks and every running run's steps: it may be that old.
LOOK_INTERVAL_S = 10.0
# The number of dead letters takes three requests and a client.
_LETTERS_INTERVAL_S = 20.0

_Look = Callable[[], list[Trouble]]


@dataclass(slots=True)
class AlertState:
    """What one tick leaves to the next. Times are seconds since 1970.

    Attributes:
        sns: how sending fails.
        looked: when troubles were looked for last; `letters_read`, when the dead letters were counted.
    """

    record: Record = field(default_factory=Record)
    sns: Backoff = field(default_factory=Backoff)
    looked: float = 0.0
    letters_read: float = 0.0


def enter(
    instance: dg.DagsterInstance,
    settings: Settings,
    state: AlertState,
    verdicts: Sequence[Verdict],
    more: Sequence[Trouble] = (),
) -> None:
    """Enter verdicts and what is wrong now into the incidents.

    Args:
        more: troubles that the caller has seen itself.
    """
    now = time.time()
    clean = Redaction(known_secrets(settings)).text
    found, unseen = _look(instance, settings, state, now)
    observe(
        state.record,
        verdicts=[_cleaned(verdict, clean) for verdict in verdicts],
        troubles=[replace(each, cause=clean(each.cause)) for each in (*found, *more)],
        unseen=unseen,
        now=now,
    )


def send_due(settings: Settings, metrics: Metrics, state: AlertState) -> str:
    """Send what is due; returns what was done in a sentence."""
    arn = settings.alert_topic_arn
    if arn is None:
        return "CAPSTONE_ALERT_TOPIC_ARN is not set: no notice is sent."
    topic = Topic(arn, "CAPSTONE_ALERT_TOPIC_ARN")
    place = place_of(settings, arn)
    waiting = list(due(state.record))
    over = time.monotonic() + _SEND_BUDGET_S
    count = 0
    if state.sns.is_due:
        for incident, kind in waiting:
            if time.monotonic() > over:
                break
            message = compose(incident, kind, place, given_up=state.record.given_up)
            try:
                for refusal in topic.publish([message]).values():
                    raise NotSent(refusal)
            except NotSent as error:
                state.sns.failed(str(error))
                metrics.add(NOTICES_FAILED)
                extra = {"action": "notice.failed", "refusals": state.sns.times}
                log.error(f"A notice was not sent: {error}", extra=extra)
                break
            sent(state.record, incident, kind, time.time())
            count += 1
            state.sns.succeeded()
            _log_sent(message.subject, message.attributes)
    if count:
        metrics.add(NOTICES_SENT, count)
    left = len(waiting) - count
    if state.sns.reason:
        return f"{count} notices sent, {left} kept to be sent again: {state.sns.reason}"
    return f"{count} notices sent." if count or left else "No notice is due."


def keep_history(instance: dg.DagsterInstance, record: Record) -> None:
    """Keep when incidents began, were announced and ended, for reports on times that are long past."""
    if not record.incidents:
        return
    seen = [
        PastIncident(each.id, each.page, each.opened, each.announced_at, each.closed, each.extent)
        for each in record.incidents
    ]
    known = PAST_INCIDENTS.read(instance)
    if (kept := merged(known, seen)) != known:
        PAST_INCIDENTS.write(instance, kept)


def place_of(settings: Settings, topic_arn: str) -> Place:
    """Where this deployment's links lead."""
    region = None if settings.environment == "local" else topic_arn.split(":")[3]
    return Place(settings.environment, settings.ui_url, settings.runbook_url, region, settings.browse_url)


def _look(
    instance: dg.DagsterInstance, settings: Settings, state: AlertState, now: float
) -> tuple[list[Trouble], set[str]]:
    """What is wrong now, and the sources that were not looked at this time."""
    sources: dict[str, _Look] = {
        "sensor": partial(troubles.failing_sensors, instance, now=now),
        "intake": partial(troubles.intake_pause, instance),
        "lookup": partial(troubles.left_messages, instance, now=now),
        "waiting": partial(troubles.waiting_runs, instance, now=now),
        "retry": partial(troubles.retrying_runs, instance, now=now),
        "overdue": partial(troubles.overdue_runs, instance, settings, now=now),
    }
    unseen = {"dead"}
    if now - state.looked < LOOK_INTERVAL_S:
        return [], unseen | set(sources)
    state.looked = now
    if settings.queue_url is not None and now - state.letters_read >= _LETTERS_INTERVAL_S:
        state.letters_read = now
        sources["dead"] = partial(troubles.dead_letters, queues_at(settings.queue_url))
        unseen = set()
    found = []
    for source, look in sources.items():
        try:
            found += look()
        except Exception as error:  # one source that cannot be looked at must not hide the others
            unseen.add(source)
            log.warning(
                f"Trouble with {source} cannot be looked for: {type(error).__name__}: {error}",
                extra={"action": "look.failed", "source": source},
            )
    return found, unseen


def _cleaned(verdict: Verdict, clean: Callable[[str], str]) -> Verdict:
    if verdict.cause is None:
        return verdict
    return replace(verdict, cause=Cause(verdict.cause.failure, clean(verdict.cause.sentence)))


def _log_sent(subject: str, attributes: Mapping[str, str]) -> None:
    log.info(
        subject,
        extra={
            "action": "notice.sent",
            "notice": attributes["kind"],
            "failure_class": attributes["class"],
            "incident": attributes["incident"],
        },
    )
