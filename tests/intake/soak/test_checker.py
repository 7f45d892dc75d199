"""The checker on histories of one upload: sound ones pass, and every fault is named."""

from dataclasses import replace

import pytest

from tests.intake.soak.checker import Fault, check
from tests.intake.soak.history import Ask, DeadLetter, History, Message, Run, Status

UPLOAD, VIDEO, KEY = "u" * 64, "gate-1", "k" * 32
ASK = Ask(VIDEO, {UPLOAD: KEY}, external_id="84")
RUN = Run("r1", KEY, UPLOAD, VIDEO, "work", created_at=10.0)
AGAIN = replace(RUN, run_id="r2", created_at=30.0)
DELETED = replace(RUN, deleted_at=20.0)
FORBIDDEN = Message("m3", "forbidden body", (replace(ASK, forbidden=True),))
LETTER = DeadLetter("d1", "m2", "not json")
SOUND = History(
    messages=[Message("m1", "a body", (ASK,)), Message("m2", "not json", malformed=("not json",))],
    runs=[RUN],
    acknowledged={"m1": 11.0, "m2": 11.0},
    dead_letters=[LETTER],
    partitions=frozenset({VIDEO}),
    statuses={UPLOAD: Status("queued")},
    external_ids={VIDEO: "84"},
)


def of_asks(*asks: Ask, **changed: object) -> History:
    return replace(SOUND, messages=[Message("m1", "a body", asks), SOUND.messages[1]], **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(SOUND, id="one-upload-one-run"),
        pytest.param(replace(SOUND, runs=[DELETED, AGAIN]), id="a-deleted-run-re-opens-its-key"),
        pytest.param(replace(SOUND, runs=[DELETED]), id="a-run-deleted-after-the-acknowledgement"),
        pytest.param(replace(SOUND, runs=[RUN, replace(AGAIN, root=False)]), id="a-retry-is-no-duplicate"),
        pytest.param(of_asks(Ask(VIDEO, {}, gone_from=5.0), runs=[]), id="nothing-for-a-vanished-object"),
        pytest.param(
            of_asks(Ask(VIDEO, {"other": "l" * 32, UPLOAD: KEY})), id="the-newer-upload-of-an-overwritten-one"
        ),
        pytest.param(
            replace(
                SOUND,
                messages=[*SOUND.messages, FORBIDDEN],
                dead_letters=[LETTER, DeadLetter("m3", None, "forbidden body")],
            ),
            id="a-forbidden-message-ends-as-it-is",
        ),
        pytest.param(
            replace(
                SOUND,
                messages=[Message("m1", "a body", (ASK,), ('{"bad": 1}',)), SOUND.messages[1]],
                dead_letters=[DeadLetter("d2", "m1", '{"bad":1}'), LETTER],
            ),
            id="a-bad-part-beside-a-good-one",
        ),
    ],
)
def test_sound_histories_pass(history: History) -> None:
    assert check(history).violations == ()


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        pytest.param(replace(SOUND, runs=[]), Fault.LOST, id="no-run"),
        pytest.param(
            of_asks(Ask(VIDEO, {UPLOAD: KEY}, gone_from=12.0), runs=[]), Fault.LOST, id="gone-only-later"
        ),
        pytest.param(of_asks(ASK, Ask("v2", {"x": "l" * 32})), Fault.LOST, id="one-record-of-two"),
        pytest.param(replace(SOUND, runs=[RUN, AGAIN]), Fault.DUPLICATED, id="two-runs"),
        pytest.param(
            replace(SOUND, runs=[replace(RUN, run_key=None), replace(AGAIN, run_key=None)]),
            Fault.DUPLICATED,
            id="two-runs-without-a-key",
        ),
        pytest.param(
            replace(SOUND, runs=[replace(RUN, deleted_at=40.0), AGAIN]),
            Fault.DUPLICATED,
            id="deleted-too-late-to-excuse-it",
        ),
        pytest.param(replace(SOUND, acknowledged={"m1": 9.0, "m2": 11.0}), Fault.EARLY, id="early"),
        pytest.param(
            replace(SOUND, runs=[replace(RUN, submitted=False)]), Fault.NEVER_SUBMITTED, id="unsent"
        ),
        pytest.param(
            replace(SOUND, runs=[RUN, replace(RUN, run_id="r9", run_key="z" * 32)]),
            Fault.UNEXPLAINED_RUN,
            id="unasked",
        ),
        pytest.param(
            of_asks(replace(ASK, forbidden=True), dead_letters=[LETTER, DeadLetter("m1", None, "a body")]),
            Fault.UNEXPLAINED_RUN,
            id="a-run-of-a-forbidden-object",
        ),
        pytest.param(
            replace(SOUND, runs=[DELETED, replace(AGAIN, work="other")]), Fault.OTHER_WORK, id="other-work"
        ),
        pytest.param(replace(SOUND, dead_letters=[]), Fault.DEAD_LETTER_MISSING, id="no-dead-letter"),
        pytest.param(
            replace(SOUND, messages=[*SOUND.messages, FORBIDDEN]),
            Fault.DEAD_LETTER_MISSING,
            id="forbidden-and-nowhere",
        ),
        pytest.param(
            replace(SOUND, dead_letters=[LETTER, DeadLetter("m1", None, "a body")]),
            Fault.DEAD_LETTER_UNEXPLAINED,
            id="a-good-message-given-up",
        ),
        pytest.param(replace(SOUND, left=1), Fault.LEFT_BEHIND, id="left"),
        pytest.param(replace(SOUND, partitions=frozenset()), Fault.NO_PARTITION, id="no-partition"),
        pytest.param(
            replace(SOUND, statuses={UPLOAD: Status("received")}), Fault.WRONG_STATUS, id="still-received"
        ),
        pytest.param(
            replace(SOUND, statuses={UPLOAD: Status("queued", notices=2)}),
            Fault.WRONG_NOTICES,
            id="announced-twice",
        ),
        pytest.param(
            replace(SOUND, external_ids={VIDEO: None}), Fault.WRONG_EXTERNAL_ID, id="external-id-lost"
        ),
    ],
)
def test_each_fault_is_told(history: History, fault: Fault) -> None:
    assert {violation.fault for violation in check(history).violations} == {fault}


def test_a_second_copy_of_a_dead_letter_is_counted_and_no_violation() -> None:
    verdict = check(replace(SOUND, dead_letters=[LETTER, replace(LETTER, message_id="d9")]))

    assert verdict.violations == ()
    assert verdict.dead_letter_copies == 1
    assert verdict.dead_letters_exact
