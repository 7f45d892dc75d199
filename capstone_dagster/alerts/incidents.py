"""From verdicts to incidents: what belongs together, and which notice is sent at once, later, or never. Pure.

An incident is one cause and everything that failed because of it. The first failure is sent at once; what
follows is counted and sent at growing intervals; the end is sent with how long it lasted and how much it hit.
A cause that comes and goes is announced each time, and each time its end takes longer to be believed, so that
nobody is flooded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capstone_dagster.failures.classes import SHOWN_BY_ANY_RUN, SYSTEMIC, FailureClass
from capstone_dagster.failures.verdicts import Cause, Outcome, Verdict

Kind = Literal["failure", "update", "recovery"]
# A cause that meets whatever runs: any later run that ends well shows that it is gone. Capacity and the right
# to read the videos are so too, though no reason to pause intake.
ENDS_WITH_ANY_RUN = SYSTEMIC | {FailureClass.SOURCE_FORBIDDEN, FailureClass.CAPACITY}
# Of these the class is no cause yet: two permissions are two incidents.
_SEVERAL_CAUSES = frozenset(
    {FailureClass.PERMISSION_DENIED, FailureClass.CONFIGURATION, FailureClass.INTERNAL}
)
_CAUSES_OF_A_CLASS = 4  # beyond that many open ones, the rest of a class is one incident

# After the first notice: soon once more, because a burst's size shows only then, and ever more seldom.
UPDATE_AFTER_S = (60.0, 300.0, 1200.0, 3600.0, 4 * 3600.0)
# A cause that returns after this long is announced at once again.
_RESTED_S = 3600.0
# An end is believed after so long without a failure; four times as long for each relapse within an hour.
CALM_S = 30.0
_CALM_LIMIT_S = 3600.0
_RELAPSE_S = 3600.0
# A broken file is put away without a notice; what should be mended stays open for longer.
_FORGET_S = 6 * 3600.0
_FORGET_SYSTEMIC_S = 72 * 3600.0
# Bounds of the cursor, which each tick writes: an incident is some 1.5 kB.
MAX_INCIDENTS = 60
_MAX_VIDEOS = 50
_MAX_TRYING = 20
_MAX_CAUSE = 400
# Of the first run that failed, for the notice.
_QUOTED = ("run_id", "video_id", "external_id", "attempt", "outlook", "job_id", "log_stream", "ended_at")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong with the system now, although no run need fail of it.

    Attributes:
        name: what it is, the same as long as it lasts; its first word is the source that reported it, as in
            `sensor upload_sensor`.
        cause: one sentence with the facts.
        page: anchor of its page in the runbook.
        failure: the class, where it has one; the incident is shared with runs that fail for it.
        count: how many are concerned, where there are several: messages, runs.
        runs: ids of runs that try a step again and have not failed yet. That they are gone proves nothing:
            they ended well, or have failed.
    """

    name: str
    cause: str
    page: str
    failure: FailureClass | None = None
    count: int = 1
    runs: tuple[str, ...] = ()


@dataclass(slots=True)
class Incident:
    """One cause, from its first failure to its end.

    Attributes:
        id: names it in every notice of it.
        runs: number of failed runs; `announced` is the extent in the last notice.
        videos: those whose runs failed and did not end well since; what is beyond the bound is not followed.
        troubles: name → count, of those that last.
        had_troubles: there was one whose end is the incident's end, unless a run fails after that.
        trying: runs that tried a step again because of it.
        most: the most that the troubles' counts came to.
        well_since: since when it looks over; None: it does not.
        relapse: how often the same cause had ended within the hour before.
        due: the notices that are decided and not sent, each with when it was decided.
    """

    id: str
    key: str
    page: str
    cause: str
    opened: float
    last: float
    failure: str | None = None
    runs: int = 0
    announced: int = 0
    announced_at: float | None = None
    tellings: int = 0
    example: dict[str, Any] | None = None
    videos: list[str] = field(default_factory=list)
    more_videos: bool = False
    troubles: dict[str, int] = field(default_factory=dict)
    had_troubles: bool = False
    trying: list[str] = field(default_factory=list)
    most: int = 0
    well_since: float | None = None
    relapse: int = 0
    closed: float | None = None
    due: list[tuple[Kind, float]] = field(default_factory=list)

    @property
    def extent(self) -> int:
        """How much has failed so far: runs, and the troubles' counts at their worst."""
        return self.runs + self.most

    @property
    def systemic(self) -> bool:
        """Whether one cause meets whatever runs."""
        return self.failure is None or FailureClass(self.failure) in ENDS_WITH_ANY_RUN


@dataclass(slots=True)
class Record:
    """Everything that is remembered from tick to tick.

    Attributes:
        incidents: in the order in which they began.
        given_up: notices dropped because there were too many incidents; the next notice reports them.
    """

    incidents: list[Incident] = field(default_factory=list)
    given_up: int = 0


def observe(
    record: Record,
    *,
    verdicts: Iterable[Verdict] = (),
    troubles: Collection[Trouble] = (),
    unseen: Collection[str] = (),
    now: float,
) -> None:
    """Record what was seen since the last time, and decide what to announce.

    Args:
        troubles: all that last now.
        unseen: sources that could not be read this time; their last state is assumed to continue.
    """
    ended = list(verdicts)
    for verdict in ended:
        if verdict.cause is not None:
            _add_failure(record, verdict, verdict.cause, now)
    _compare_troubles(record, troubles, unseen, now)
    for verdict in ended:
        if verdict.outcome == Outcome.SUCCEEDED and verdict.video_id is not None:
            _add_success(record, verdict, now)
    for incident in record.incidents:
        _decide(incident, now)
    _put_away(record, now)


def due(record: Record) -> Iterator[tuple[Incident, Kind]]:
    """What is to be sent, in the order in which it was decided."""
    waiting = [
        (at, place, kind, incident)
        for incident in record.incidents
        for place, (kind, at) in enumerate(incident.due)
    ]
    for _, _, kind, incident in sorted(waiting, key=lambda each: each[:2]):
        yield incident, kind


def sent(record: Record, incident: Incident, kind: Kind, now: float) -> None:
    """Note that an incident's earliest waiting notice was sent."""
    # By its kind, not by its place: a clock that steps back changes their order, and this one is sent.
    incident.due.pop([each for each, _ in incident.due].index(kind))
    record.given_up = 0
    if kind != "recovery":
        incident.announced, incident.announced_at = incident.extent, now
        incident.tellings += 1


def fingerprint(cause: str) -> str:
    """What two causes have in common that differ only in names, numbers and addresses."""
    text = cause.lower()
    for pattern in (r"\w+://\S+", r"'[^']*'", r'"[^"]*"', r"\S*/\S+", r"\b[0-9a-f-]{8,}\b", r"\d+"):
        text = re.sub(pattern, "_", text)
    return hashlib.sha256(re.sub(r"\s+", " ", text)[:200].encode()).hexdigest()[:8]


def _add_failure(record: Record, verdict: Verdict, cause: Cause, now: float) -> None:
    incident = _incident_for(record, _key(record, cause.failure, cause.sentence), now, verdict.ended_at)
    if incident.example is None:
        incident.failure = incident.page = cause.failure.value
        incident.cause = incident.cause or _cut(cause.sentence)
        incident.example = {name: getattr(verdict, name) for name in _QUOTED}
    incident.runs += 1
    incident.last = max(incident.last, verdict.ended_at)
    # What failed before the trouble ended, and is only read now, does not make it last.
    ended_after = incident.had_troubles and verdict.ended_at <= (incident.well_since or 0.0)
    incident.well_since = incident.well_since if ended_after else None
    if verdict.video_id is not None and verdict.video_id not in incident.videos:
        if len(incident.videos) < _MAX_VIDEOS:
            incident.videos.append(verdict.video_id)
        else:
            incident.more_videos = True


def _compare_troubles(
    record: Record, troubles: Collection[Trouble], unseen: Collection[str], now: float
) -> None:
    present = {trouble.name for trouble in troubles}
    for trouble in troubles:
        shared = trouble.failure is not None and trouble.failure not in _SEVERAL_CAUSES
        key = str(trouble.failure) if shared else trouble.name
        incident = _incident_for(record, key, now, now)
        if not incident.cause:
            incident.cause, incident.page = _cut(trouble.cause), trouble.page
            incident.failure = trouble.failure.value if trouble.failure else None
        incident.troubles[trouble.name] = trouble.count
        incident.had_troubles = incident.had_troubles or not trouble.runs
        incident.trying = list(dict.fromkeys([*trouble.runs, *incident.trying]))[:_MAX_TRYING]
        incident.last = now
        incident.well_since = None
    for incident in record.incidents:
        if incident.closed is None and incident.troubles:
            incident.most = max(incident.most, sum(incident.troubles.values()))
            incident.troubles = {
                name: count
                for name, count in incident.troubles.items()
                if name in present or name.split()[0] in unseen
            }
            if not incident.troubles and incident.had_troubles and incident.well_since is None:
                incident.well_since = now


def _add_success(record: Record, success: Verdict, now: float) -> None:
    for incident in record.incidents:
        if incident.closed is not None or (incident.had_troubles and incident.troubles):
            continue
        if success.run_id in incident.trying and not incident.runs:
            over = True  # what it tried again went well, and nothing else has failed
        elif incident.systemic:
            shown = success.whole or incident.failure in SHOWN_BY_ANY_RUN
            over = shown and success.started_at > incident.last
        else:
            if success.video_id in incident.videos:
                incident.videos.remove(success.video_id)
            over = bool(incident.runs) and not incident.videos and not incident.more_videos
        if over and incident.well_since is None:
            incident.well_since = now


def _decide(incident: Incident, now: float) -> None:
    if incident.closed is not None:
        return
    kinds = [kind for kind, _ in incident.due]
    if incident.tellings == 0 and not kinds:
        incident.due.append(("failure", now))
    elif not kinds and incident.extent > incident.announced and incident.announced_at is not None:
        rested = incident.last - incident.announced_at > _RESTED_S
        wait_s = UPDATE_AFTER_S[min(max(incident.tellings, 1), len(UPDATE_AFTER_S)) - 1]
        if rested or now - incident.announced_at >= wait_s:
            incident.tellings = 0 if rested else incident.tellings
            incident.due.append(("update", now))
    calm_s = min(CALM_S * 4 ** min(incident.relapse, 10), _CALM_LIMIT_S)
    if incident.well_since is not None and now - incident.last >= calm_s:
        incident.closed = incident.well_since
        incident.due.append(("recovery", now))


def _put_away(record: Record, now: float) -> None:
    """Drop incidents that are over, those left unresolved, and above the limit the oldest."""
    kept = []
    for incident in record.incidents:
        if incident.due:
            kept.append(incident)
        elif incident.closed is not None:
            if now - incident.closed < _RELAPSE_S:
                kept.append(incident)
        elif incident.troubles or now - incident.last < (
            _FORGET_SYSTEMIC_S if incident.systemic else _FORGET_S
        ):
            kept.append(incident)
    # First those that are over and announced, then the oldest.
    kept.sort(key=lambda item: (bool(item.due) or item.closed is None, item.opened))
    for incident in kept[: max(0, len(kept) - MAX_INCIDENTS)]:
        record.given_up += len(incident.due)
        kept.remove(incident)
    record.incidents = sorted(kept, key=lambda item: item.opened)


def _key(record: Record, failure: FailureClass, cause: str) -> str:
    if failure not in _SEVERAL_CAUSES:
        return failure.value
    key = f"{failure.value} {fingerprint(cause)}"
    others = [
        item
        for item in record.incidents
        if item.closed is None and item.key != key and item.key.startswith(f"{failure.value} ")
    ]
    return key if len(others) < _CAUSES_OF_A_CLASS else f"{failure.value} various"


def _incident_for(record: Record, key: str, now: float, at: float) -> Incident:
    incident = _open(record, key)
    if incident is None:
        before: Sequence[Incident] = _ended(record, key, now)
        relapse = 1 + max(item.relapse for item in before) if before else 0
        name = hashlib.sha256(json.dumps([key, at]).encode()).hexdigest()[:12]
        incident = Incident(name, key, "", "", opened=at, last=at, relapse=relapse)
        record.incidents.append(incident)
    return incident


def _open(record: Record, key: str) -> Incident | None:
    return next((item for item in record.incidents if item.key == key and item.closed is None), None)


def _ended(record: Record, key: str, now: float) -> list[Incident]:
    return [
        item
        for item in record.incidents
        if item.key == key and item.closed is not None and now - item.closed < _RELAPSE_S
    ]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CAUSE else text[: _MAX_CAUSE - 1] + "…"
