"""A checkpoint is exported once, whoever asks, and nothing but a whole export is ever used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capstone_dagster.analysis import AnalysisSettings, ModelUnavailable, load_detector, model_sha256
from capstone_dagster.analysis.detection.checkpoint import import_ultralytics
from capstone_dagster.analysis.detection.export import openvino_export, shipped_export
from capstone_dagster.local import detector as demo_detector
from tests.support.waiting import scaled, wait_for

WEIGHTS = Path(demo_detector.__file__).with_name("person_face.pt")
SHA256 = model_sha256(WEIGHTS)
SETTINGS = AnalysisSettings()

# Followed by the cache: exports the demo detector in a process of its own.
_PROGRAM = (
    "import sys; from pathlib import Path;"
    "from capstone_dagster.analysis.detection.export import openvino_export;"
    "openvino_export(Path(sys.argv[1]), sys.argv[2], cache=Path(sys.argv[3]), say=print)"
)
EXPORT = [sys.executable, "-c", _PROGRAM, str(WEIGHTS), SHA256]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the demo detector's export: one process was killed at it, then two asked at once."""
    folder = tmp_path_factory.mktemp("cache")
    cache = folder / "new"
    killed = subprocess.Popen([*EXPORT, str(cache)], start_new_session=True)
    [left] = wait_for("the export to begin", lambda: list(cache.rglob(".exporting-*")))
    os.killpg(killed.pid, signal.SIGKILL)  # the exporting child with it
    killed.wait()
    assert not list(cache.rglob("*_openvino_model")), "a killed export passes for a model"
    (left.parent / ".exporting-young").mkdir()
    os.utime(left, (0, 0))
    # A cache may be named by a path from here.
    ask = [*EXPORT, cache.name]
    both = [subprocess.Popen(ask, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=scaled(120))[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Exporting person_face.pt" in each for each in said) == 1
    return cache


def test_what_a_killed_export_leaves_is_removed_once_it_is_old(exported: Path) -> None:
    assert [path.name for path in exported.rglob(".exporting-*")] == [".exporting-young"]


def test_an_export_is_made_once(exported: Path) -> None:
    first = next(exported.rglob("*_openvino_model"))
    made = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert first.name == "person_face_openvino_model"
    assert SHA256 in str(first)
    assert {"metadata.yaml", "person_face.xml", "person_face.bin"} <= set(made)
    assert openvino_export(WEIGHTS, SHA256, cache=exported) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == made


def truncate(export: Path) -> None:
    with (export / "person_face.xml").open("r+b") as file:
        file.truncate(1000)


def empty(export: Path) -> None:
    for file in export.iterdir():
        file.unlink()


@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_damaged_export_is_made_anew(
    exported: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(exported, tmp_path / "cache", ignore=shutil.ignore_patterns("compiled"))
    damage(next((tmp_path / "cache").rglob("*_openvino_model")))
    said: list[str] = []
    alone = shutil.copy(WEIGHTS, tmp_path)  # the embedded one's export lies beside it
    detector = load_detector(Path(alone), SETTINGS, device="cpu", cache=tmp_path / "cache", say=said.append)
    assert len(detector.detect([np.zeros((90, 160, 3), np.uint8)])) == 1
    assert "damaged" in said[0]


# Stands for an installation without the extra `torch`; exits with what it imported all the same.
_WITHOUT_PYTORCH = """
import importlib.machinery, sys
from pathlib import Path
import numpy as np
find = importlib.machinery.PathFinder.find_spec
absent = ("torch", "torchvision", "ultralytics")
importlib.machinery.PathFinder.find_spec = lambda name, *more: None if name in absent else find(name, *more)
from capstone_dagster.analysis import AnalysisError, AnalysisSettings, load_detector
try:
    detector = load_detector(
        Path(sys.argv[1]), AnalysisSettings(), device=sys.argv[2], cache=Path(sys.argv[3])
    )
    print(len(detector.detect([np.zeros((90, 160, 3), np.uint8)])), "pictures")
except AnalysisError as error:
    print(type(error).__name__, error)
sys.exit(str(set(absent) & set(sys.modules)) if set(absent) & set(sys.modules) else 0)
"""


@pytest.mark.parametrize(
    ("model", "device", "message"),
    [
        (WEIGHTS, "cpu", "1 pictures"),
        (WEIGHTS, "auto", "1 pictures"),
        (Path("own.pt"), "cpu", "PyTorchMissing The checkpoint own.pt needs PyTorch and Ultralytics"),
        (WEIGHTS, "cuda:0", "make torch"),
    ],
)
def test_without_pytorch_a_shipped_export_runs_and_all_else_says_what_to_install(
    tmp_path: Path, model: Path, device: str, message: str
) -> None:
    if model is not WEIGHTS:
        model = Path(shutil.copy(WEIGHTS, tmp_path / model))
    arguments = [sys.executable, "-c", _WITHOUT_PYTORCH, str(model), device, str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert message in done.stdout


def test_an_export_that_merely_lies_beside_a_checkpoint_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Ultralytics writes its exports there, of whatever the file held at the time."""
    other = Path(shutil.copy(WEIGHTS, tmp_path))
    beside = "person_face_openvino_model"
    shutil.copytree(WEIGHTS.with_name(beside), tmp_path / beside)
    assert shipped_export(other, SHA256) == tmp_path / beside
    assert shipped_export(other, "0" * 64) is None
    metadata = tmp_path / beside / "metadata.yaml"
    metadata.write_text("\n".join(metadata.read_text().splitlines()[:-1]))
    assert shipped_export(other, SHA256) is None


def test_a_checkpoint_for_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pt"
    import_ultralytics().YOLO("yolo11n-cls.yaml").save(str(path))
    with pytest.raises(ModelUnavailable, match=r"classifier\.pt is for 'classify'"):
        openvino_export(path, model_sha256(path), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*_openvino_model"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelUnavailable, match="could not be kept in"):
        openvino_export(WEIGHTS, SHA256, cache=tmp_path / "file")


def test_an_export_is_used_where_nothing_can_be_written(exported: Path, tmp_path: Path) -> None:
    """As in a container whose file system is read-only: what OpenVINO compiles is not kept, that is all."""
    export = next(exported.rglob("*_openvino_model"))
    (tmp_path / "file").write_text("in the way")
    detector = load_detector(export, SETTINGS, device="cpu", cache=tmp_path / "file")
    assert len(detector.detect([np.zeros((90, 160, 3), np.uint8)])) == 1


def test_one_who_waits_for_an_export_is_not_disturbed_by_its_failure(tmp_path: Path) -> None:
    """Whoever holds the lock may fail; the next one then exports by itself."""
    path = tmp_path / "broken.pt"
    path.write_bytes(b"garbage")
    failures: list[Exception] = []

    def ask() -> None:
        try:
            openvino_export(path, model_sha256(path), cache=tmp_path / "cache")
        except ModelUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=scaled(120))
    assert len(failures) == 2
    assert all("broken.pt does not load" in str(failure) for failure in failures)
