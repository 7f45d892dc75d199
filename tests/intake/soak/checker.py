"""Whether a history is as it must be: pure, data in and violations out.

A dead letter is known by the message that it came from and its text. SQS promises delivery at least once,
and a crash between the copy and the deletion makes a second copy, so copies of a dead letter that belongs
there are counted apart and are no violation; a missing one and one that does not belong there are.

Where old runs were deleted, a run key may be used again: what holds then is that no two runs of a key were
on record at the same time and that all of them had to do the same work, which the detection id
recognises as done.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from tests.intake.soak.history import Ask, DeadLetter, History, Message, Run


class Fault(StrEnum):
    """What can be wrong with a history."""

    LOST = "lost: no run answers it"
    DUPLICATED = "duplicated: two runs for one request"
    EARLY = "acknowledged before its run was on record"
    NEVER_SUBMITTED = "a run was created and never submitted"
    UNEXPLAINED_RUN = "a run that nobody asked for"
    OTHER_WORK = "runs of one key do different work"
    DEAD_LETTER_MISSING = "not among the dead letters"
    DEAD_LETTER_UNEXPLAINED = "does not belong to the dead letters"
    LEFT_BEHIND = "still in the queue"
    NO_PARTITION = "a run whose video is no partition"
    WRONG_STATUS = "the event store does not say that it got further than received"
    WRONG_NOTICES = "its arrival was not announced exactly once"
    WRONG_EXTERNAL_ID = "the back end's id was lost"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is not as it must be, and of what."""

    fault: Fault
    subject: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.fault}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All violations; `dead_letter_copies` counts second copies, which are none."""

    violations: tuple[Violation, ...]
    dead_letter_copies: int = 0

    def count(self, *faults: Fault) -> int:
        return sum(violation.fault in faults for violation in self.violations)

    @property
    def dead_letters_exact(self) -> bool:
        return not self.count(Fault.DEAD_LETTER_MISSING, Fault.DEAD_LETTER_UNEXPLAINED)


def check(history: History) -> Verdict:
    """Everything that is wrong with a history; nothing, if all is as promised."""
    violations: list[Violation] = []
    found = _dead_letters(history)
    if history.left:
        violations.append(Violation(Fault.LEFT_BEHIND, f"{history.left} messages"))
    violations += _check_messages(history)
    violations += _check_runs(history)
    violations += _check_dead_letters(history, found)
    violations += _check_event_store(history)
    copies = sum(len(letters) - 1 for letters in found.values())
    # Several messages may tell of one loss.
    return Verdict(tuple(dict.fromkeys(violations)), copies)


def _check_messages(history: History) -> Iterator[Violation]:
    """Law 2: what asks for an analysis has its run, and had it before it was acknowledged."""
    runs = _runs_by_answer(history)
    for message in history.messages:
        acknowledged = history.acknowledged.get(message.message_id)
        if acknowledged is None and not message.forbidden:
            continue  # still in the queue, which is another violation
        for ask in message.asks:
            if ask.forbidden or _was_gone(ask, acknowledged):
                continue
            answers = [run for answer in _answers(ask) for run in runs[answer]]
            if not answers:
                uploads = ", ".join(sorted(upload[:12] for upload in ask.run_keys))
                yield Violation(Fault.LOST, f"upload {uploads} of {ask.video_id}")
            elif acknowledged is not None and acknowledged < min(run.created_at for run in answers):
                yield Violation(Fault.EARLY, f"message {message.message_id}")


def _check_runs(history: History) -> Iterator[Violation]:
    asked = {
        answer
        for message in history.messages
        for ask in message.asks
        if not ask.forbidden
        for answer in _answers(ask)
    }
    together: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in history.runs:
        if not run.root:
            continue
        together[(run.run_key,) if run.run_key else (run.upload_id, run.work)].append(run)
        if (run.upload_id, run.run_key) not in asked:
            yield Violation(Fault.UNEXPLAINED_RUN, f"run {run.run_id} with key {run.run_key}")
        if run.partition not in history.partitions:
            yield Violation(Fault.NO_PARTITION, f"run {run.run_id} of {run.partition}")
        if not run.submitted and run.deleted_at is None:
            yield Violation(Fault.NEVER_SUBMITTED, f"run {run.run_id}")
    for runs in together.values():
        runs.sort(key=lambda run: run.created_at)
        for first, second in pairwise(runs):
            if first.deleted_at is None or first.deleted_at > second.created_at:
                both = f"runs {first.run_id} and {second.run_id}"
                yield Violation(Fault.DUPLICATED, f"upload {second.upload_id[:12]}: {both}")
        if len({run.work for run in runs}) > 1:
            yield Violation(Fault.OTHER_WORK, f"run key {runs[0].run_key}")


def _check_dead_letters(
    history: History, found: dict[tuple[str, str], list[DeadLetter]]
) -> Iterator[Violation]:
    expected = {letter for message in history.messages for letter in _expected_letters(message)}
    for identity, body in sorted(expected - set(found)):
        yield Violation(Fault.DEAD_LETTER_MISSING, f"message {identity}: {body[:80]}")
    for identity, body in sorted(set(found) - expected):
        yield Violation(Fault.DEAD_LETTER_UNEXPLAINED, f"message {identity}: {body[:80]}")


def _check_event_store(history: History) -> Iterator[Violation]:
    queued = {run.upload_id for run in history.runs}
    for upload, status in history.statuses.items():
        if status.notices != 1:
            yield Violation(Fault.WRONG_NOTICES, f"upload {upload[:12]} ({status.notices} notices)")
    for message in history.messages:
        acknowledged = history.acknowledged.get(message.message_id)
        if acknowledged is None:
            continue
        for ask in message.asks:
            if ask.forbidden or _was_gone(ask, acknowledged):
                continue
            known = [history.statuses[upload] for upload in ask.run_keys if upload in history.statuses]
            if queued.intersection(ask.run_keys) and not any(status.state != "received" for status in known):
                yield Violation(Fault.WRONG_STATUS, f"upload of {ask.video_id}")
            if ask.external_id and history.external_ids.get(ask.video_id) != ask.external_id:
                yield Violation(Fault.WRONG_EXTERNAL_ID, f"{ask.external_id} of {ask.video_id}")


def _was_gone(ask: Ask, acknowledged: float | None) -> bool:
    """Whether S3 could have said, before the message was acknowledged, that there is no such object."""
    return ask.gone_from is not None and (acknowledged is None or ask.gone_from <= acknowledged)


def _answers(ask: Ask) -> list[tuple[str, str | None]]:
    """(upload, run key) of the runs that would answer; a run without a key answers whatever was asked."""
    return [each for upload, key in ask.run_keys.items() for each in ((upload, key), (upload, None))]


def _runs_by_answer(history: History) -> dict[tuple[str, str | None], list[Run]]:
    runs: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for run in history.runs:
        runs[(run.upload_id, run.run_key)].append(run)
    return runs


def _expected_letters(message: Message) -> list[tuple[str, str]]:
    # SQS moves a forbidden message as it is, malformed parts and all.
    texts = (message.body,) if message.forbidden else message.malformed
    return [(message.message_id, _canonical(text)) for text in texts]


def _dead_letters(history: History) -> dict[tuple[str, str], list[DeadLetter]]:
    found: dict[tuple[str, str], list[DeadLetter]] = defaultdict(list)
    for letter in history.dead_letters:
        found[(letter.source_message_id or letter.message_id, _canonical(letter.body))].append(letter)
    return found


def _canonical(body: str) -> str:
    """The same text for the same JSON, however it is spaced."""
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except ValueError:
        return body
