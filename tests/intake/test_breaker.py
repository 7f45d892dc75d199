"""The circuit breaker as a state machine: when it pauses, whom it lets through, and that it resumes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capstone_dagster.failures.breaker_state import (
    DUPLICATE_JOB,
    OPERATOR,
    BreakerState,
    Phase,
    Probe,
    describe,
)
from capstone_dagster.failures.classes import SYSTEMIC, FailureClass
from capstone_dagster.intake.breaker import (
    FIRST_INTERVAL_S,
    LONGEST_INTERVAL_S,
    PROBE_PATIENCE_S,
    REEXECUTION_LOST_S,
    UPLOAD_LOST_S,
    EndedRun,
    ProbeFate,
    Seen,
    advance,
    probe_is_due,
    release,
)
from capstone_dagster.intake.orders import Order

PAUSE_AFTER = 3
DATABASE, MODEL, GPU = (
    FailureClass.DATABASE_UNAVAILABLE,
    FailureClass.MODEL_UNAVAILABLE,
    FailureClass.GPU_ERROR,
)
OF_A_VIDEO = sorted(set(FailureClass) - SYSTEMIC)
START = 1_000.0


def ended(number: int, failure: FailureClass | None, *, at: float = START, **differs: object) -> EndedRun:
    run = EndedRun(f"run-{number}", f"upload-{number}", failure, started_at=at, ended_at=at)
    return replace(run, **differs)  # type: ignore[arg-type]


def failures(failure: FailureClass, times: int = PAUSE_AFTER) -> list[EndedRun]:
    return [ended(number, failure) for number in range(times)]


def after(*runs: EndedRun, state: BreakerState | None = None, now: float = START + 1) -> BreakerState:
    return advance(state or BreakerState(), Seen(runs), now=now, pause_after=PAUSE_AFTER)


OPEN = after(*failures(MODEL))


@pytest.mark.parametrize("failure", sorted(SYSTEMIC))
def test_so_many_uploads_in_a_row_that_fail_for_one_systemic_class_pause_intake(
    failure: FailureClass,
) -> None:
    assert not after(*failures(failure, PAUSE_AFTER - 1)).paused

    state = after(*failures(failure))

    assert (state.phase, state.cause, state.since) == (Phase.OPEN, failure, START + 1)
    assert failure in describe(state)
    assert "run-0" in describe(state)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([*failures(DATABASE, 2), ended(9, None), *failures(DATABASE, 5)], "one succeeded in between"),
        ([*failures(DATABASE, 2), *failures(MODEL, 2)], "two classes"),
        ([ended(n, DATABASE, upload="the same") for n in range(9)], "one upload, tried again and again"),
        ([ended(n, MODEL, own_model=True) for n in range(9)], "models that the requests named"),
    ],
)
def test_it_does_not_pause(runs: list[EndedRun], why: str) -> None:
    assert not after(*runs).paused, why


def test_failures_of_videos_own_neither_pause_nor_hide_a_systemic_one() -> None:
    runs = [ended(20 + n, failure) for n, failure in enumerate(OF_A_VIDEO * PAUSE_AFTER)]
    assert not after(*runs).paused
    between = [run for pair in zip(failures(GPU), runs, strict=False) for run in pair]
    assert after(*between).cause == GPU


def test_publishing_alone_says_something_of_the_database_and_nothing_of_the_gpu() -> None:
    published = ended(50, None, whole=False)
    assert after(published, *failures(GPU)).cause == GPU
    assert not after(published, *failures(DATABASE)).paused

    later = replace(published, started_at=START + 60)
    assert not after(later, state=after(*failures(DATABASE)), now=START + 61).paused
    assert after(later, state=after(*failures(GPU)), now=START + 61).paused


def test_another_run_than_the_probe_that_succeeds_resumes_intake_if_it_began_in_the_pause() -> None:
    assert after(ended(60, None, at=START), state=OPEN, now=START + 9).paused
    resumed = after(ended(60, None, at=START + 5), state=OPEN, now=START + 9)
    assert (resumed.phase, resumed.cause, resumed.paused_since) == (Phase.CLOSED, MODEL, OPEN.since)
    assert "run-60" in resumed.reason


def test_what_failed_before_the_pause_ended_does_not_pause_again() -> None:
    resumed = after(ended(60, None, at=START + 5), state=OPEN, now=START + 9)
    late = [ended(n, MODEL, at=START + 3, ended_at=START + 100) for n in range(70, 75)]
    assert not after(*late, state=resumed, now=START + 101).paused
    new = [ended(n, MODEL, at=START + 10, ended_at=START + 100) for n in range(70, 75)]
    assert after(*new, state=resumed, now=START + 101).paused


def probed(state: BreakerState, fate: ProbeFate | None, now: float, **seen: object) -> BreakerState:
    return advance(state, Seen(probe=fate, **seen), now=now, pause_after=PAUSE_AFTER)  # type: ignore[arg-type]


def test_intervals_grow_to_half_an_hour_and_start_anew_after_a_success() -> None:
    state, now, minutes = OPEN, OPEN.since, []
    for number in range(8):
        minutes.append((state.next_probe_at - now) / 60)
        assert not probe_is_due(state, Seen(), state.next_probe_at - 0.1)
        now = state.next_probe_at
        assert probe_is_due(state, Seen(), now)
        state = release(state, Probe(now, run_key=f"key-{number}"))
        assert not probe_is_due(state, Seen(), now + 10**6)
        now += 30
        state = probed(state, ended(100 + number, MODEL, at=now), now)
    assert minutes == [1, 2, 4, 8, 16, 30, 30, 30]

    state = release(state, Probe(now, run_key="last"))
    state = probed(state, ended(200, None, at=now), now)
    assert not state.paused
    again = [ended(300 + n, MODEL, at=now + 1) for n in range(PAUSE_AFTER)]
    assert after(*again, state=state, now=now + 2).next_probe_at == now + 2 + FIRST_INTERVAL_S


@pytest.mark.parametrize("failure", OF_A_VIDEO)
def test_a_probe_that_fails_for_its_videos_own_reason_says_nothing(failure: FailureClass) -> None:
    state = release(OPEN, Probe(START + 61, run_key="k"))
    state = probed(state, ended(9, failure), START + 70)
    assert (state.phase, state.cause, state.interval_s) == (Phase.OPEN, MODEL, OPEN.interval_s)
    assert state.next_probe_at == START + 70 + FIRST_INTERVAL_S


def test_a_probe_that_fails_for_another_systemic_class_names_that_one() -> None:
    state = release(OPEN, Probe(START + 61, run_key="k"))
    state = probed(state, ended(9, DATABASE), START + 70)
    assert (state.phase, state.cause, state.since) == (Phase.OPEN, DATABASE, OPEN.since)
    assert state.interval_s == 2 * FIRST_INTERVAL_S


@pytest.mark.parametrize(
    ("probe", "limit_s"),
    [(Probe(2000.0, run_key="k"), UPLOAD_LOST_S), (Probe(2000.0, reexecutes="r"), REEXECUTION_LOST_S)],
)
def test_a_probe_that_never_comes_on_record_is_given_up_and_one_under_way_is_waited_for_longer(
    probe: Probe, limit_s: float
) -> None:
    out = release(OPEN, probe)
    assert probed(out, "missing", 2000.0 + limit_s) == out
    lost = probed(out, "missing", 2000.0 + limit_s + 1)
    assert probe_is_due(lost, Seen(), 2000.0 + limit_s + 1)
    assert probed(out, "under way", 2000.0 + PROBE_PATIENCE_S) == out
    hanging = probed(out, "under way", 2000.0 + PROBE_PATIENCE_S + 1)
    assert probe_is_due(hanging, Seen(), 2000.0 + PROBE_PATIENCE_S + 1)


def test_a_probe_that_an_operator_ends_is_followed_by_another() -> None:
    state = probed(release(OPEN, Probe(2000.0, run_key="k")), "canceled", 2100.0)
    assert (state.phase, state.next_probe_at) == (Phase.OPEN, 2100.0 + FIRST_INTERVAL_S)


def test_a_database_seen_away_and_back_is_probed_at_once() -> None:
    state = after(*failures(DATABASE))
    now = state.since + 1
    answers = Seen(reachable=True)
    # It answers although runs fail of it: no reason to hurry.
    state = advance(state, answers, now=now, pause_after=PAUSE_AFTER)
    assert not probe_is_due(state, answers, now)

    silent = Seen(reachable=False)
    late = state.next_probe_at + 3600
    state = advance(state, silent, now=late, pause_after=PAUSE_AFTER)
    assert not probe_is_due(state, silent, late), "a probe could only fail"
    state = advance(state, answers, now=late + 5, pause_after=PAUSE_AFTER)
    assert probe_is_due(state, answers, late + 5)


def test_a_duplicate_job_pauses_once_and_its_own_success_is_no_recovery() -> None:
    doubled = ended(7, None, at=START + 1)
    state = advance(BreakerState(), Seen([doubled], ["run-7"]), now=START + 2, pause_after=PAUSE_AFTER)
    assert (state.cause, state.paused) == (DUPLICATE_JOB, True)
    assert "run-7" in state.reason

    late = replace(doubled, started_at=START + 3)
    state = advance(state, Seen([late], ["run-7"]), now=START + 4, pause_after=PAUSE_AFTER)
    assert state.paused

    fine = ended(8, None, at=START + 5)
    state = advance(state, Seen([fine, late], ["run-7"]), now=START + 6, pause_after=PAUSE_AFTER)
    assert not state.paused
    assert advance(state, Seen([fine], ["run-7"]), now=START + 7, pause_after=PAUSE_AFTER) == state


def test_a_probe_that_doubles_work_has_failed() -> None:
    state = advance(BreakerState(), Seen([], ["run-7"]), now=START, pause_after=PAUSE_AFTER)
    state = release(state, Probe(START + 60, run_key="k"))
    probe = ended(9, None, at=START + 61)
    state = advance(state, Seen([probe], ["run-9", "run-7"], probe), now=START + 70, pause_after=PAUSE_AFTER)
    assert (state.phase, state.next_probe_at) == (Phase.OPEN, START + 70 + 2 * FIRST_INTERVAL_S)


def ordered(state: BreakerState, order: Order, now: float, *runs: EndedRun) -> BreakerState:
    return advance(state, Seen(runs), now=now, pause_after=PAUSE_AFTER, order=order)


def test_an_operators_pause_lasts_until_he_resumes() -> None:
    pause = Order("pause", "kim", "the model is changed", at=500.0)
    state = ordered(BreakerState(), pause, START)
    assert (state.cause, state.by) == (OPERATOR, "kim")
    assert "the model is changed" in describe(state)

    succeeded = ended(1, None, at=START + 5)
    state = ordered(state, pause, START + 10**6, succeeded)
    assert state.paused
    assert not probe_is_due(state, Seen(), START + 10**6)

    resume = Order("resume", "lee", "done", at=600.0)
    state = ordered(state, resume, START + 10**6)
    assert (state.paused, state.by) == (False, "lee")
    assert ordered(state, resume, START + 10**6 + 1) == state


def test_an_operators_resume_counts_failures_anew() -> None:
    resume = Order("resume", "lee", "mended", at=600.0)
    state = ordered(OPEN, resume, START + 10, *failures(MODEL))
    assert not ordered(state, resume, START + 20, *failures(MODEL)).paused
    new = [ended(40 + n, MODEL, at=START + 15) for n in range(PAUSE_AFTER)]
    assert ordered(state, resume, START + 20, *new).paused


def test_an_order_is_followed_once() -> None:
    pause = Order("pause", "kim", "", at=500.0)
    state = ordered(BreakerState(), pause, START)
    state = ordered(state, Order("resume", "kim", "", at=501.0), START + 1)
    assert not ordered(state, pause, START + 2).paused


class World(RuleBasedStateMachine):
    """Any history of runs, outages, lost messages, ticks and orders, as intake's ticks see it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.state = BreakerState()
        self.runs: list[EndedRun] = []
        self.out: str | None = None  # the probe's run, if it is on record and not over
        self.reachable: bool | None = None
        self.order: Order | None = None
        self.broken: FailureClass | None = None
        self.number = 0

    def tick(self, fate: ProbeFate | None = None) -> None:
        if fate is None and self.state.probe is not None:
            fate = "under way" if self.out else "missing"
        seen = Seen(
            sorted(self.runs, key=lambda run: run.ended_at, reverse=True)[:50],
            [run.run_id for run in self.runs if run.upload.startswith("doubled")],
            fate,
            self.reachable if self.state.paused else None,
        )
        released = self.state.probe.released_at if self.state.probe else self.now
        self.state = advance(self.state, seen, now=self.now, pause_after=PAUSE_AFTER, order=self.order)
        self.due = probe_is_due(self.state, seen, self.now)
        if fate == "under way" and self.state.phase is Phase.OPEN:
            patient = self.now - released <= PROBE_PATIENCE_S
            assert self.state.cause == OPERATOR or not patient, "a probe that is under way is waited for"
        if self.state.probe is None:
            self.out = None  # a run like any other from now on

    @rule(seconds=st.floats(0.1, 3000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    @rule(cause=st.sampled_from([None, *FailureClass]), reachable=st.sampled_from([None, True, False]))
    def the_world_changes(self, cause: FailureClass | None, reachable: bool | None) -> None:
        self.broken, self.reachable = cause, reachable
        self.tick()

    @rule(runs=st.integers(1, 8), whole=st.booleans(), doubled=st.booleans())
    def others_end(self, runs: int, whole: bool, doubled: bool) -> None:
        for _ in range(runs):
            self.number += 1
            self.now += 0.01
            upload = f"{'doubled' if doubled else 'upload'}-{self.number}"
            run = EndedRun(f"run-{self.number}", upload, self.broken, self.now - 0.005, self.now, whole)
            self.runs.append(run)
        self.tick()

    @precondition(lambda self: self.state.phase is Phase.OPEN)
    @rule(upload=st.booleans(), arrives=st.booleans())
    def a_probe_is_let_through(self, upload: bool, arrives: bool) -> None:
        self.tick()
        if not self.due:
            return
        assert self.out is None, "never more than one probe is out"
        self.number += 1
        probe = Probe(self.now, run_key="k") if upload else Probe(self.now, reexecutes="r")
        self.state = release(self.state, probe)
        self.out = f"probe-{self.number}" if arrives else None

    @precondition(lambda self: self.out is not None)
    @rule(canceled=st.booleans())
    def the_probe_ends(self, canceled: bool) -> None:
        self.now += 1
        run = EndedRun(str(self.out), str(self.out), self.broken, self.now - 1, self.now)
        if canceled:
            self.tick("canceled")
            assert self.state.probe is None
            return
        self.runs.append(run)
        self.tick(run)
        assert self.state.probe is None
        assert self.state.paused == (self.state.cause == OPERATOR or run.failure is not None)

    @rule(wanted=st.sampled_from(["pause", "resume"]))
    def an_operator_orders(self, wanted: str) -> None:
        self.now += 0.01
        self.order = Order(wanted, "kim", "because", at=self.now)  # type: ignore[arg-type]
        self.tick()
        assert self.state.paused == (wanted == "pause")

    @invariant()
    def it_is_consistent(self) -> None:
        state = self.state
        assert (state.probe is not None) == (state.phase is Phase.HALF_OPEN)
        assert state.interval_s <= LONGEST_INTERVAL_S
        assert state.next_probe_at <= self.now + LONGEST_INTERVAL_S
        assert len(state.duplicates) == len(set(state.duplicates))
        if state.paused:
            assert state.cause in {*SYSTEMIC, DUPLICATE_JOB, OPERATOR}
            assert state.since <= self.now
            # However it came to this: what is mended resumes.
            if state.cause != OPERATOR:
                assert self.resumes(state)
        assert describe(state)

    def resumes(self, state: BreakerState) -> bool:
        """With the cause gone, waiting and letting a probe through ends the pause within an interval."""
        now, mended = self.now, Seen(reachable=True)
        if state.probe is None:
            now = max(now, state.next_probe_at)
            assert probe_is_due(state, mended, now)
            state = release(state, Probe(now, run_key="mended"))
        run = EndedRun("mended", "mended", None, now, now)
        return not probed(state, run, now + 1, reachable=True).paused


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from([None, *OF_A_VIDEO]), max_size=40))
def test_no_row_of_failures_of_videos_own_ever_pauses(outcomes: list[FailureClass | None]) -> None:
    runs = [ended(number, failure) for number, failure in enumerate(outcomes)]
    assert not after(*runs).paused
