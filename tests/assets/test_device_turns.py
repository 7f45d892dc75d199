"""Turns on the device: one run at a time passes over pixels, and a run that waits is not overdue."""

import multiprocessing
import os
import signal
import tempfile
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.assets.steps.device_turns import device_turn
from capstone_dagster.failures.limits import age_over_limit
from capstone_dagster.run_tags import TURN_TAG
from capstone_dagster.settings import read_settings
from tests.support.waiting import scaled

DEADLINE_S = scaled(30)
spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def hold(folder: str, devices: int, has_it: Event, end: Event) -> None:
    tempfile.tempdir = folder
    with device_turn("here", waiting=lambda _: None, devices=devices):
        has_it.set()
        end.wait()


def another(tmp_path: Path, devices: int = 1) -> tuple[Any, Event]:
    """A process that holds a device until its event is set."""
    has_it, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(str(tmp_path), devices, has_it, end))
    process.start()
    assert has_it.wait(DEADLINE_S)
    return process, end


@pytest.mark.parametrize("ends", ["finishes", "is killed"])
def test_a_run_waits_until_the_other_ends(tmp_path: Path, ends: str) -> None:
    process, end = another(tmp_path)
    waited: list[float] = []

    def waiting(elapsed_s: float) -> None:
        waited.append(elapsed_s)
        if ends == "finishes":
            end.set()
        elif process.is_alive():
            os.kill(process.pid, signal.SIGKILL)

    with device_turn("here", waiting=waiting, devices=1):
        assert waited, "the device was held"
    process.join(DEADLINE_S)


def test_runs_of_another_instance_or_on_another_gpu_do_not_wait(tmp_path: Path) -> None:
    def nobody_waits(elapsed_s: float) -> None:
        raise AssertionError("waits")

    process, end = another(tmp_path, devices=2)
    with (
        device_turn("elsewhere", waiting=nobody_waits, devices=2),
        device_turn("here", waiting=nobody_waits, devices=2),
    ):
        pass
    end.set()
    process.join(DEADLINE_S)


@pytest.mark.parametrize(
    ("turn", "ratio"),
    [
        ("", 2.0),
        ("{run_id} waiting", 0.0),
        ("{run_id} 3000", 1.0),
        ("the-parent waiting", 2.0),  # a tag that a retry took along
        ("the-parent 3000", 2.0),
    ],
)
def test_waiting_for_a_device_is_no_part_of_a_runs_age(turn: str, ratio: float) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(nothing)
        instance.add_run_tags(run.run_id, {TURN_TAG: turn.format(run_id=run.run_id)} if turn else {})
        record = instance.get_run_record_by_id(run.run_id)
    assert record is not None
    record = record._replace(start_time=1200.0)

    assert age_over_limit(record, read_settings(run_limit_minutes=30), 4800.0) == pytest.approx(ratio)


@dg.job
def nothing() -> None:
    pass
