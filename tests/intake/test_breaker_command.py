"""`capstone intake`: an operator's view of the circuit breaker, and his word on it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from capstone_dagster.commands import intake as command
from capstone_dagster.failures.breaker_state import BREAKER, BreakerState, Phase
from capstone_dagster.intake.orders import ORDER
from tests.intake.conftest import Intake
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster's storage as the command finds it: by DAGSTER_HOME, or by SQL."""
    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"sqlite:///{tmp_path}/history/runs.db")
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def ticking(intake: Intake, instance: dg.DagsterInstance) -> Iterator[Intake]:
    """Intake whose daemon ticks meanwhile."""
    intake.instance = instance
    with meanwhile(lambda: intake.tick()):
        yield intake


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Do something again and again on a thread, until the end of the block."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.05):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_an_operator_pauses_and_resumes_and_everybody_reads_who_and_why(
    capstone: Capstone, ticking: Intake
) -> None:
    assert capstone("intake", "status").out == "Intake runs.\n"

    paused = capstone("intake", "pause", "--by", "kim", "--why", "the model is changed")
    assert paused.code == 0
    assert "Intake is paused since" in paused.out
    assert "kim: the model is changed" in paused.out
    assert BREAKER.read(ticking.instance).paused
    status = json.loads(capstone("intake", "status", "--json").out)
    assert (status["paused"], status["cause"], status["by"]) == (True, "operator", "kim")

    resumed = capstone("intake", "resume", "--by", "lee")
    assert "Intake runs." in resumed.out
    assert not BREAKER.read(ticking.instance).paused


def test_status_says_why_intake_paused_itself_and_when_it_tries_again(
    capstone: Capstone, instance: dg.DagsterInstance
) -> None:
    now = time.time()
    state = BreakerState(
        Phase.OPEN, since=now, cause="model-unavailable", reason="5 uploads failed.", next_probe_at=now + 60
    )
    BREAKER.write(instance, state)

    status = capstone("intake", "status").out

    for word in ("paused since", "model-unavailable", "5 uploads failed.", "next probe is due at"):
        assert word in status


def test_an_order_that_no_tick_follows_is_kept_and_said_to_be(
    capstone: Capstone, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_FOLLOWED_WITHIN_S", 0.1)

    said = capstone("intake", "pause", "--by", "kim", "--why", "maintenance")

    assert said.code == 0
    assert "no tick has followed it yet: does the daemon run" in said.err
    order = ORDER.read(instance)
    assert order is not None
    assert (order.wanted, order.by, order.why) == ("pause", "kim", "maintenance")
    assert "no tick has followed it yet" in capstone("intake", "status").err


def test_without_dagsters_storage_it_says_what_to_set(capstone: Capstone) -> None:
    for word, variable in (("status", "DAGSTER_POSTGRES_URL"), ("pause", "DAGSTER_HOME")):
        said = capstone("intake", word)
        assert said.code == 1
        assert f"{variable} is not set" in said.err
