"""The examples in the docstrings of the analysis library run as shown."""

import doctest
import importlib
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import capstone_dagster.analysis
from capstone_dagster.local.detector import MODEL_PATH
from capstone_dagster.testing import MakeClip

MODULES = [
    capstone_dagster.analysis.__name__,
    *(
        module.name
        for module in pkgutil.walk_packages(
            capstone_dagster.analysis.__path__, capstone_dagster.analysis.__name__ + "."
        )
    ),
]
# In the order of the library's docstring, whose results other examples read.
WITH_EXAMPLES = [
    name for name in MODULES if ">>>" in Path(str(importlib.import_module(name).__file__)).read_text()
]


@pytest.fixture(autouse=True)
def reader(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the files that examples name."""
    make_clip("gate.mp4", range(0, 3000, 40), size=(320, 180))
    for file in (MODEL_PATH, MODEL_PATH.with_name("person_face_openvino_model")):
        copy = shutil.copytree if file.is_dir() else shutil.copy
        copy(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    return


def test_the_examples_run_as_shown() -> None:
    assert len(WITH_EXAMPLES) >= 8
    for name in WITH_EXAMPLES:
        module = importlib.import_module(name)
        outcome = doctest.testmod(module, extraglobs={"Path": Path}, optionflags=doctest.ELLIPSIS)
        assert outcome.failed == 0, name
