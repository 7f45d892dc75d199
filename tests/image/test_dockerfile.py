"""What a change of the Dockerfile must not lose; building it is `make image-test`."""

import re
import shlex
import sysconfig
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
from packaging.specifiers import SpecifierSet

from tests.image.checks import unused_files
from tests.infra.stacks import template

ROOT = Path(__file__).resolve().parents[2]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Of the Dockerfile: the word in capitals and what follows it, on one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage by its name, those of the stage that it stands on before its own."""
    found: dict[str, list[Instruction]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = [*found.get(base, []), (word, rest)]
        elif found:
            stage.append((word, rest))
    return found


SHIPPED = ("services", "worker")


def shipped(word: str, stage: str = "worker") -> list[str]:
    return [rest for each, rest in stages()[stage] if each == word]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in shipped("ENV") for pair in shlex.split(rest))


def reaches_the_builder(path: str) -> bool:
    """By .dockerignore, where the last pattern that fits decides; a folder's fits all that is in it."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
        if any(fnmatch(str(part), pattern) or _anywhere(part, pattern) for part in parts):
            kept = line.startswith("!")
    return kept


def _anywhere(part: PurePosixPath, pattern: str) -> bool:
    return pattern.startswith("**/") and fnmatch(part.name, pattern.removeprefix("**/"))


def test_every_stage_stands_on_one_exact_python() -> None:
    assert {each[0][1].split()[0] for each in stages().values()} == {"${BASE_IMAGE}"}

    [default] = [rest.partition("=")[2] for word, rest in instructions() if rest.startswith("BASE_IMAGE=")]
    found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-[\w-]+@sha256:[0-9a-f]{64}", default)
    assert found, f"{default} is not an exact tag with its digest"
    supported = re.search(r'requires-python = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert supported
    assert found[1] in SpecifierSet(supported[1])


@pytest.mark.parametrize("image", SHIPPED)
def test_it_does_not_run_as_root(image: str) -> None:
    user = shipped("USER", image)[-1]

    # By number, so that a runtime can tell that it is not root (Kubernetes' runAsNonRoot).
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    made = [rest for word, rest in stages()["packages"] if word == "RUN" and "useradd" in rest]
    assert f"--uid {user.split(':')[0]} " in made[0]


@pytest.mark.parametrize("image", SHIPPED)
def test_the_folder_that_python_imports_from_stays_roots(image: str) -> None:
    """Whoever makes it first owns it, and buildah makes a WORKDIR for the image's user."""
    steps = [(word, rest) for word, rest in stages()[image] if rest.split()[-1] == "/app"]
    assert [(word, "--chown" in rest) for word, rest in steps] == [
        ("COPY", False),
        ("COPY", True),
        ("WORKDIR", False),
    ]


def test_every_package_is_one_that_the_lock_file_knows() -> None:
    installs = [
        command
        for word, rest in instructions()
        if word == "RUN"
        for command in rest.split("&&")
        if re.search(r"\b(pip|uv)\b.* install\b|\b(apt|apt-get|apk|dnf|curl|wget)\b", command)
    ]

    assert [("--require-hashes" in each, "--no-index" in each) for each in installs] == [
        (True, False),  # the services' packages, and what builds the project
        (True, False),  # PyTorch
        (False, True),  # the project itself, from the checkout
    ]


def test_each_file_that_is_left_out_of_the_packages_is_in_the_pinned_version() -> None:
    """A pattern that fits nothing any more hides that an image has grown."""
    packages = Path(sysconfig.get_path("purelib"))

    patterns = unused_files()
    assert len(patterns) > 15
    assert [each for each in patterns if not any(packages.glob(each))] == []
    installs = [rest for word, rest in instructions() if word == "RUN" and "--require-hashes" in rest]
    assert ["/build/unused" in each for each in installs] == [True, True]


def test_only_the_worker_has_pytorch() -> None:
    assert not [rest for rest in shipped("COPY", "services") if "--from=torch" in rest]
    assert [rest for rest in shipped("COPY", "worker") if rest == "--from=torch /layers/cuda /"]


def test_nothing_says_where_packages_come_from_or_what_opens_them() -> None:
    """Arguments and variables stay in an image's history; a secret's mount does not."""
    text = "".join(rest for _, rest in instructions())
    named = [rest for word, rest in instructions() if word in ("ARG", "ENV", "LABEL")]

    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|--proxy", text)
    assert not re.search(r"password|token|secret|credential|index|proxy", " ".join(named), re.IGNORECASE)
    assert not [rest for word, rest in instructions() if word in ("ADD", "COPY") and "pip.conf" in rest]


@pytest.mark.parametrize("image", SHIPPED)
def test_what_is_shipped_is_copied_only(image: str) -> None:
    """A command in a last stage leaves traces of the machine that ran it."""
    assert not shipped("RUN", image)
    assert all(re.match(r"--from=(packages|torch|project) ", rest) for rest in shipped("COPY", image))


def test_a_command_given_by_the_launcher_is_run_as_it_is() -> None:
    assert not shipped("ENTRYPOINT")


def test_dagster_finds_its_files() -> None:
    definitions = template("application")["Resources"]["GpuJobDefinition"]["Properties"][
        "ContainerProperties"
    ]
    given = {each["Name"]: each["Value"] for each in definitions["Environment"]}

    assert given["DAGSTER_HOME"] == environment()["DAGSTER_HOME"] == f"{shipped('WORKDIR')[-1]}/dagster_home"


def test_infra_leaves_the_images_own_settings_alone() -> None:
    definitions = template("application")["Resources"]["GpuJobDefinition"]["Properties"][
        "ContainerProperties"
    ]

    assert {each["Name"] for each in definitions["Environment"]} & set(environment()) <= {
        "DAGSTER_HOME",  # the same
        # Whoever deploys may name another model than the one that is baked in.
        *("CAPSTONE_MODEL", "CAPSTONE_MODEL_SHA256"),
    }


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", ".capstone/postgres/PG_VERSION", ".env", "pip.conf"),
        *("tests/conftest.py", "bench/RESULTS.md", "infra/data.yaml", ".ci/run"),
        *("capstone_dagster/__pycache__/cli.cpython-311.pyc", "batch_gpu/testing/__pycache__/x.pyc"),
    ],
)
def test_what_the_image_does_not_need_does_not_reach_the_builder(path: str) -> None:
    assert not reaches_the_builder(path)


def test_what_the_dockerfile_copies_is_there_and_reaches_the_builder() -> None:
    sources = [
        re.sub(r"\$\{\w+:-(.+)\}", r"\1", source)
        for word, rest in instructions()
        if word in ("ADD", "COPY") and "--from=" not in rest
        for source in rest.split()[:-1]
    ]

    assert len(sources) >= 10
    for source in sources:
        assert (ROOT / source).exists(), source
        assert reaches_the_builder(source if (ROOT / source).is_file() else f"{source}/any.py"), source
