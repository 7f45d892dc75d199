"""`capstone zones`: what is set is shown, in the form in which it is set."""

import json
from pathlib import Path

import pytest

from capstone_dagster.storage.database import Database
from tests.support.command_line import Capstone

DOOR = {"name": "문", "polygon": [[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], "anchor": "CENTER"}
GATE = {"name": "gate", "line": [[0, 0.5], [1, 0.5]]}


@pytest.fixture(autouse=True)
def _environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))


def test_zones_are_set_shown_and_replaced(capstone: Capstone, tmp_path: Path) -> None:
    file = tmp_path / "zones.json"
    file.write_text(json.dumps([DOOR, GATE]))
    assert "2 zones" in capstone("zones", "set", "yard", str(file)).out
    shown = json.loads(capstone("zones", "show", "yard", "--json").out)
    assert shown == [{"camera": "yard", **GATE, "anchor": "BOTTOM_CENTER"}, {"camera": "yard", **DOOR}]
    assert json.loads(capstone("zones", "show", "elsewhere", "--json").out) == []

    file.write_text(json.dumps(shown[:1]))  # what was shown can be set
    capstone("zones", "set", "yard", str(file))
    assert "gate  line" in capstone("zones", "show").out
    file.write_text("[]")
    assert "no zones" in capstone("zones", "set", "yard", str(file)).out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected"),
        ("[1]", "expected"),
        ('[{"name": "a"}]', "expected"),
        (json.dumps([DOOR | {"colour": "red"}]), "expected"),
        (json.dumps([DOOR, DOOR]), "same name"),
        (json.dumps([DOOR | {"polygon": [[0, 0], [1, 1]]}]), "2 points"),
    ],
)
def test_a_file_without_zones_is_refused(capstone: Capstone, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "zones.json").write_text(text)
    done = capstone("zones", "set", "yard", str(tmp_path / "zones.json"))
    assert done.code != 0
    assert told in done.err
