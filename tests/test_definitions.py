"""What Dagster loads: it validates, refuses a wrong setting by name, and each room keeps to its floor."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from sqlalchemy.engine import make_url

from tests.support.waiting import scaled

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "capstone_dagster"


Validate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def validate(database_url: str) -> Validate:
    """Runs Dagster's own validation on the files of the repository, storage included."""
    storage = make_url(database_url).set(drivername="postgresql+psycopg2")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        instance = {
            "DAGSTER_POSTGRES_URL": storage.render_as_string(hide_password=False),
            "CAPSTONE_LOG_BUCKET": "capstone-derived",
            "CAPSTONE_COMPUTE": "local",
            "CAPSTONE_GPU_QUEUE": "capstone-gpu",
            "CAPSTONE_GPU_JOB_DEFINITION": "capstone-gpu",
            "CAPSTONE_CPU_QUEUE": "capstone-cpu",
            "CAPSTONE_CPU_JOB_DEFINITION": "capstone-cpu",
        }
        return subprocess.run(
            [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml")],
            env={**os.environ, **instance, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=scaled(120),
        )

    return run


def test_definitions_validate(validate: Validate) -> None:
    outcome = validate()
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_a_wrong_setting_keeps_the_code_location_from_loading(validate: Validate) -> None:
    outcome = validate(CAPSTONE_SAMPLE_FPS="often")
    assert outcome.returncode != 0
    assert "CAPSTONE_SAMPLE_FPS is 'often'" in outcome.stdout + outcome.stderr


def test_a_job_gives_up_waiting_for_a_machine_before_monitoring_gives_up_the_run() -> None:
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    # The verdict on an ended run alone decides whether it is started again.
    assert instance["run_retries"] == {"enabled": False}
    job = instance["run_launcher"]["config"]["gpu"]
    assert job["max_wait_seconds"] < instance["run_monitoring"]["start_timeout_seconds"]


# What each package may import of ours: the table of docs/architecture.md.
ALLOWED = {
    package: set(re.findall(r"`(\w+)`", imported))
    for package, imported in re.findall(
        r"^\| `(\w+)` \| .* \| (.*?) ?\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
    )
    if imported != "everything"
}
FOREIGN = {"dagster", "boto3", "botocore", "sqlalchemy", "psycopg"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_keep_to_their_floor(room: str) -> None:
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for path in files:
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "capstone_dagster" and len(parts) > 1 and parts[1] != room:
                assert parts[1] in ALLOWED[room], f"{path.relative_to(ROOT)} imports {module}"
            if room == "analysis":
                assert parts[0] not in FOREIGN, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", ["capstone_dagster", "batch_gpu"])
def test_what_dagster_keeps_private_is_imported_in_one_place(package: str) -> None:
    """Whoever raises Dagster's version checks that place, and says so there."""
    users = {
        str(path.relative_to(ROOT / package))
        for path in (ROOT / package).rglob("*.py")
        if any(module.startswith("dagster._") for module in imports(path))
    }
    assert users == {"dagster_private.py"}
    read_in = (ROOT / package / "dagster_private.py").read_text().splitlines()[0]
    assert f"dagster {version('dagster')}." in read_in


def test_the_launcher_knows_nothing_of_this_project() -> None:
    files = sorted((ROOT / "batch_gpu").rglob("*.py"))
    assert files
    for path in files:
        known = {module.split(".")[0] for module in imports(path)}
        assert not known & {"capstone_dagster", "torch", "ultralytics"}, path.relative_to(ROOT)
        if "testing" in path.parts:
            assert "dagster" not in known, f"{path.relative_to(ROOT)} serves tests without Dagster too"


def test_the_launcher_installs_and_imports_without_the_project(tmp_path: Path) -> None:
    """Its own distribution holds all that it imports."""
    source = Path(shutil.copytree(ROOT / "batch_gpu", tmp_path / "source"))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, check=True)
    [wheel] = tmp_path.glob("batch_gpu-*.whl")
    modules = [
        ".".join(("batch_gpu", *path.relative_to(source).with_suffix("").parts)).removesuffix(".__init__")
        for path in source.rglob("*.py")
        if path.name != "__main__.py" and "build" not in path.parts
    ]
    code = (
        "import importlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "sys.modules['capstone_dagster'] = None  # whoever imports it fails\n"
        "found = [importlib.import_module(name).__file__ for name in sys.argv[2:]]\n"
        "print([each for each in found if not each.startswith(sys.argv[1])])"
    )
    arguments = [sys.executable, "-P", "-c", code, str(wheel), *modules]
    outcome = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (len(modules) > 10, outcome.stdout.strip()) == (True, "[]")


def test_the_launcher_is_imported_without_aws_or_the_project() -> None:
    code = (
        "import sys, batch_gpu.launcher, batch_gpu.testing\n"
        "print([m for m in ('boto3', 'botocore', 'torch', 'capstone_dagster') if m in sys.modules])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert outcome.stdout.strip() == "[]"
