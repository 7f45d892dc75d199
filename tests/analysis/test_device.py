"""A GPU is used where there is one that works; the CPU instead of it is said, and can be forbidden."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from capstone_dagster.analysis import GpuError, InvalidAnalysisSettings
from capstone_dagster.analysis.detection.device import Device, Gpus, ThisMachine, choose_device

NOT_ASKED = Gpus(-1)


@dataclass
class FakeMachine:
    """What stands in `traces`, `found` and `failures` is what it tells; asked for more, it fails the test."""

    traces: str | None
    found: Gpus = NOT_ASKED
    failures: tuple[str | None, ...] = ()

    def trace(self) -> str | None:
        return self.traces

    def gpus(self) -> Gpus:
        assert self.found is not NOT_ASKED, "PyTorch was imported for nothing"
        return self.found

    def failure(self, number: int) -> str | None:
        return self.failures[number]


NONE = FakeMachine(None)
WORKING = FakeMachine("/dev/nvidia0 is there", Gpus(2), (None, None))
UNUSABLE = FakeMachine("/dev/nvidia0 is there", Gpus(0, "the driver is too old"))
BROKEN = FakeMachine("/dev/nvidia0 is there", Gpus(2), ("no kernel image is available", None))
FORGOTTEN = FakeMachine(None, Gpus(0, "PyTorch finds no CUDA device"))


@pytest.mark.parametrize(
    ("wanted", "machine", "chosen"),
    [
        ("auto", NONE, Device("cpu")),
        ("auto", WORKING, Device("cuda:0")),
        ("auto", UNUSABLE, Device("cpu", "/dev/nvidia0 is there, but the driver is too old")),
        ("auto", BROKEN, Device("cpu", "/dev/nvidia0 is there, but no kernel image is available")),
        ("cpu", NONE, Device("cpu")),
        ("cpu", WORKING, Device("cpu")),
        ("cuda", WORKING, Device("cuda:0")),
        ("cuda:1", WORKING, Device("cuda:1")),
        ("cuda:1", BROKEN, Device("cuda:1")),
    ],
)
def test_a_device_is_chosen(wanted: str, machine: FakeMachine, chosen: Device) -> None:
    assert choose_device(wanted, machine=machine) == chosen


@pytest.mark.parametrize(
    ("wanted", "machine", "error", "message"),
    [
        ("cuda", FORGOTTEN, InvalidAnalysisSettings, r"cuda was asked for.* 0 usable.*finds no CUDA device"),
        ("cuda:2", WORKING, InvalidAnalysisSettings, r"cuda:2 was asked for.* 2 usable CUDA devices; set"),
        ("cuda:0", UNUSABLE, InvalidAnalysisSettings, "the driver is too old"),
        ("cuda:0", BROKEN, GpuError, r"cuda:0 is there but does not compute \(no kernel image"),
        *(
            (wanted, NONE, InvalidAnalysisSettings, f"auto, cpu or cuda:N, but is '{wanted}'")
            for wanted in ("", "gpu", "cuda:", "cuda:x", "CUDA", "cpu ", "0")
        ),
    ],
)
def test_what_is_not_there_is_refused(
    wanted: str, machine: FakeMachine, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_device(wanted, machine=machine)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (NONE, "no sign of an NVIDIA GPU"),
        (UNUSABLE, "/dev/nvidia0 is there, but the driver is too old"),
        (BROKEN, "no kernel image is available"),
    ],
)
def test_where_a_gpu_is_required_the_cpu_is_a_failure(machine: FakeMachine, message: str) -> None:
    with pytest.raises(GpuError, match=rf"A GPU is required.*{message}; run where the GPU is") as refusal:
        choose_device("auto", require_gpu=True, machine=machine)
    assert refusal.value.failure_class == "gpu-error"


def test_where_a_gpu_is_required_one_that_works_will_do() -> None:
    assert choose_device("auto", require_gpu=True, machine=WORKING) == Device("cuda:0")
    with pytest.raises(InvalidAnalysisSettings, match="A GPU is required and the device is set to cpu"):
        choose_device("cpu", require_gpu=True, machine=WORKING)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if ThisMachine().trace() is not None:
        pytest.skip("this machine has an NVIDIA GPU or its driver")


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(
    ("visible", "traced"),
    [(None, False), ("", False), ("-1", False), (" ", False), ("0", True), ("GPU-1234", True)],
)
def test_a_setting_that_names_a_gpu_speaks_for_one(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, traced: bool
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    trace = ThisMachine().trace()
    assert (trace is not None) == traced
    if trace is not None:
        assert f"CUDA_VISIBLE_DEVICES is {visible!r}" in trace


@pytest.mark.usefixtures("no_driver")
def test_a_gpu_that_is_named_and_missing_is_a_fallback_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    device = choose_device("auto")
    assert device.name == "cpu"
    assert device.cpu_fallback is not None
    assert "CUDA_VISIBLE_DEVICES is '0', but PyTorch cannot use CUDA: " in device.cpu_fallback


def test_hidden_gpus_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert ThisMachine().gpus() == Gpus(0, "CUDA_VISIBLE_DEVICES is '-1', which hides every GPU")


@pytest.mark.usefixtures("no_driver")
def test_without_a_gpu_choosing_costs_no_import_of_pytorch() -> None:
    program = (
        "import sys; from capstone_dagster.analysis.detection.device import choose_device; "
        "print(choose_device('auto').name, 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == ["cpu", "False"]
