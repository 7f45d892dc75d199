"""What must be so of an image, looked at from outside and by working in it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstone_dagster.local.processes import free_port
from capstone_dagster.local.stack import LocalStack, join_environment
from tests.image.builder import ROOT, ImageTestError, PipSettings
from tests.image.container import Image
from tests.support.waiting import wait_for

_PYTHON = "/opt/venv/bin/python"
# The last tells OpenVINO's maker of each import.
_UNWANTED = ("pip", "moto", "pytest", "openvino_telemetry")
_PACKAGES = "opt/venv/lib/python3*/site-packages"
# Read and compile everything that a process of each kind imports, and say how long that took.
_IMPORTS = {
    "an analysis on a CPU": "import capstone_dagster.analysis, capstone_dagster.cli, openvino",
    "a run (Dagster and the code location)": "import dagster, capstone_dagster.definitions",
    "PyTorch, for a GPU": "import torch",
}
# The detector that a GPU gets, on this processor: PyTorch, Ultralytics and torchvision as they are in there.
_PYTORCH = """
from pathlib import Path
from capstone_dagster.analysis import AnalysisSettings, analyze_video
from capstone_dagster.analysis.detection.device import Device
from capstone_dagster.analysis.detection.torch_detector import TorchDetector
from capstone_dagster.local.detector import MODEL_PATH
settings = AnalysisSettings(sample_fps=2)
detector = TorchDetector(MODEL_PATH, settings, device=Device("cpu"), sha256="0" * 64)
found = analyze_video(
    Path("/home/capstone/clip.mp4"), Path("/tmp/by-pytorch"), detector=detector, settings=settings
)
print(found.backend, found.detections)
"""
_STALE = """
import importlib.util, pathlib, struct, sys
stale = checked = 0
for folder in sys.argv[1:]:
    for source in pathlib.Path(folder).rglob("*.py"):
        compiled = pathlib.Path(importlib.util.cache_from_source(source))
        if compiled.exists():
            flags, modified, size = struct.unpack("<4xIII", compiled.read_bytes()[:16])
            checked += 1
            found = source.stat()
            stale += flags == 0 and (modified, size) != (int(found.st_mtime), found.st_size)
print(checked, stale)
"""


def unused_files() -> list[str]:
    """Patterns of what the Dockerfile leaves out of the packages."""
    lines = (ROOT / "infra/image/unused").read_text().splitlines()
    return [pattern for line in lines for pattern in line.partition("#")[0].split()]


def nothing_of_the_builder(image: Image, inspected: Mapping[str, Any], pip: PipSettings) -> None:
    """No index, credential, tool or source of the machine that built it."""
    config = json.dumps(inspected["Docker"])
    for place in pip.places:
        if place in config:
            raise ImageTestError("The image's configuration or history names a place of pip's configuration.")
    root = image.root
    mine = [str(root / folder) for folder in ("app", "etc", "home", "root", "run", "tmp", "var", "opt")]
    for place in pip.places:
        # Text only: in a library the letters of a short path may stand by chance.
        found = subprocess.run(["grep", "-rIlF", "--", place, *mine], text=True, capture_output=True).stdout
        if found.strip():
            raise ImageTestError(f"A place of pip's configuration is written in {found.splitlines()[:5]}.")
    unwanted = [
        *("build", "layers", "opt/pip", "etc/pip.conf", "run/secrets", "usr/bin/gcc", "opt/venv/bin/pip*"),
        *("app/tests", "app/bench", "app/.git", "app/.venv", "app/.capstone", "app/requirements.lock"),
        *(f"{_PACKAGES}/{name}" for name in (*_UNWANTED, *unused_files())),
        # Folders that the build alone was shown; the base has certificates of its own.
        *(f"{folder}/*".lstrip("/") for folder in pip.folders if folder.name != "certs"),
    ]
    there = [str(path.relative_to(root)) for pattern in unwanted for path in root.glob(pattern)]
    if there:
        raise ImageTestError(f"The image holds what it does not need: {', '.join(there)}.")


@dataclass(frozen=True)
class Inside:
    """Commands in the image, beside a stack whose addresses they are given."""

    image: Image
    stack: LocalStack

    @property
    def environment(self) -> dict[str, str]:
        joined = join_environment(self.stack.environment, {})
        # The container's own, as in the cloud: where dagster.yaml is, and the model's cache.
        return {**joined, "DAGSTER_HOME": self.image.environment["DAGSTER_HOME"], "COLUMNS": "200"}

    def run(self, *command: str, read_only: bool = False) -> str:
        """What it printed; raises `ImageTestError` if it failed."""
        done = self.image.run(*command, environment=self.environment, read_only=read_only)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-3000:]
            raise ImageTestError(f"{shlex.join(command)} ended with {done.returncode} in the image:\n{said}")
        return done.stdout

    def user(self) -> None:
        """It is nobody special, and changes nothing of the program that it runs."""
        uid, *groups = self.run("sh", "-c", "id -u; id -G").split()
        if uid == "0" or "0" in groups:
            raise ImageTestError(f"The image's user has uid {uid} and groups {groups}.")
        script = 'for each in /app /app/capstone_dagster /opt/venv/bin /etc; do test ! -w "$each"; done'
        self.run("sh", "-ec", f"{script}; test -w ~; test -w $DAGSTER_HOME; test -w $CAPSTONE_MODEL_CACHE")

    def bytecode(self) -> None:
        """The user cannot write it: what is stale would be compiled at each start."""
        folders = ["/app/capstone_dagster", "/opt/venv/lib"]
        checked, stale = map(int, self.run(_PYTHON, "-c", _STALE, *folders).split())
        if checked < 1000 or stale:
            raise ImageTestError(f"Of {checked} files of bytecode {stale} do not fit their sources.")

    def starts(self) -> dict[str, tuple[float, float]]:
        """Seconds from nothing to everything imported: read from disk, and from memory."""
        measured = {"python that does nothing": self._timed("pass")}
        for name, code in _IMPORTS.items():
            measured[name] = self._timed(code)
        return measured

    def _timed(self, code: str) -> tuple[float, float]:
        _forget(self.image.root)
        seconds = []
        for _ in range(4):
            started = time.monotonic()
            self.run(_PYTHON, "-c", code)
            seconds.append(time.monotonic() - started)
        return seconds[0], sorted(seconds[1:])[1]

    def prepare(self) -> None:
        """What infra/application.yaml runs before each daemon, but for the databases themselves."""
        self.run("python", "-c", "import dagster; dagster.DagsterInstance.get()")
        self.run("dagster", "instance", "migrate")
        self.run("capstone", "migrate")
        self.run("python", "-m", "batch_gpu.pool")

    def doctor(self) -> str:
        """What it says of the model."""
        said = self.run("capstone", "doctor")
        return next(line.split(None, 2)[2] for line in said.splitlines() if " model " in line)

    def analyze(self, *, read_only: bool = False) -> dict[str, Any]:
        """The demo clip, in which there are people."""
        said = self.run(
            *("capstone", "analyze", "/home/capstone/clip.mp4", "--out", "/tmp/found"), read_only=read_only
        )
        summary: dict[str, Any] = json.loads(said.splitlines()[-1])
        if summary["events"] == 0:
            raise ImageTestError(f"People were expected in the demo clip, but the analysis found {summary}.")
        return summary

    def pytorch(self) -> None:
        """A pass by PyTorch, without the files of packages that infra/image/unused leaves out."""
        backend, detections = self.run(_PYTHON, "-c", _PYTORCH).splitlines()[-1].split()
        if not backend.startswith("torch") or int(detections) == 0:
            raise ImageTestError(f"People were expected by PyTorch, but it found {detections} ({backend}).")

    def model_load(self) -> dict[str, float]:
        """Seconds that loading the model takes, with what OpenVINO compiled before and without."""
        code = (
            "import time, os; started = time.monotonic();"
            "from pathlib import Path;"
            "from capstone_dagster.settings import read_settings;"
            "from capstone_dagster.services import Services;"
            "from capstone_dagster.analysis import load_detector;"
            "from capstone_dagster.model_files import analysis_settings;"
            "settings = read_settings(); imported = time.monotonic();"
            "load_detector(Services(settings).model_path(), analysis_settings(settings), device='cpu',"
            " cache=Path(settings.model_cache));"
            "print(time.monotonic() - imported)"
        )
        cache = self.image.environment["CAPSTONE_MODEL_CACHE"]
        forget = f"rm -rf {cache}/openvino/compiled"
        loads = {
            "compiled here": ("sh", "-ec", f'{forget}; exec python -c "$0"', code),
            "compiled before": ("python", "-c", code),
        }
        return {name: float(self.run(*command).splitlines()[-1]) for name, command in loads.items()}

    def webserver(self) -> tuple[float, float | None]:
        """Seconds until its health check is content, and until it had stopped when asked to."""
        port = str(free_port())
        command = ["capstone-webserver", "--host", "127.0.0.1", "--port", port]
        lonely = self.image.run("python", "/app/healthcheck.py", *command)
        if lonely.returncode == 0:
            raise ImageTestError("The health check is content with a webserver that does not run.")
        return self._service([*command, "--workspace", "workspace.yaml"])

    def daemon(self) -> tuple[float, float | None]:
        """Likewise; between, a video that is uploaded becomes events, by a run that is a process in there."""
        lonely = self.image.run(
            "python", "/app/healthcheck.py", "dagster-daemon", environment=self.environment
        )
        if lonely.returncode == 0:
            raise ImageTestError("The health check is content with a daemon that never ran.")

        def upload() -> None:
            self.run("capstone", "submit", "/home/capstone/clip.mp4", "--external-id", "84")
            state = wait_for("the upload's end", self._finished, deadline_s=180)
            events = json.loads(self.run("capstone", "events", "84", "--json"))
            if state != "done" or not events:
                raise ImageTestError(f"The upload ended as {state} with {len(events)} events.")

        return self._service(["dagster-daemon", "run", "--workspace", "workspace.yaml"], upload)

    def _finished(self) -> str | None:
        rows = json.loads(self.run("capstone", "status", "--json"))  # of all: it may not have arrived yet
        states = {row["state"] for row in rows if row["external_id"] == "84"}
        return next(iter(states & {"done", "failed", "cancelled"}), None)

    def _service(self, command: list[str], work: Any = lambda: None) -> tuple[float, float | None]:
        with tempfile.TemporaryDirectory(prefix="capstone-log-") as folder:
            started = time.monotonic()
            log = Path(folder) / "log"
            try:
                with self.image.service(*command, environment=self.environment, log=log) as service:
                    wait_for(f"the health of {command[0]}", service.healthy, deadline_s=180)
                    well = time.monotonic() - started
                    work()
                    return well, service.stop()
            except AssertionError as error:
                raise ImageTestError(f"{error}\n{log.read_text()[-3000:]}") from error


def _forget(root: Path) -> None:
    """Lets the kernel drop what it holds of these files, so that they are read from disk again."""
    for folder, _, names in os.walk(root / "opt"):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
