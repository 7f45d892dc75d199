"""What the documentation shows works: its commands, its SQL, its message, its links, its tables."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.main import get_command

from capstone_dagster.cli import app
from capstone_dagster.intake.messages import KeyFilter, parse_message
from capstone_dagster.storage.event_store import EventStore

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """Code blocks of a language on all pages."""
    return [
        block
        for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_rendered_parts_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "docs" / "render.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("line", commands())
def test_commands_exist_as_shown(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "make":
        target = words[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        return
    assert words[0] == ".venv/bin/capstone"
    command, rest = get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    # Parses the arguments and options as typed, and runs nothing.
    with command.make_context(str(command.name), rest) as context:
        assert context.args == []


def test_every_command_is_in_the_readme_or_the_help() -> None:
    shown = " ".join(commands())
    for name in ("submit", "status", "events", "analyze", "doctor"):
        assert f"capstone {name}" in shown


def test_sql_runs_as_a_reader(event_store: EventStore) -> None:
    queries = blocks("sql")
    assert len(queries) >= 2
    with event_store.engine.connect() as connection:
        connection.execute(sa.text("SET ROLE capstone_reader"))
        for query in queries:
            connection.execute(sa.text(query))


def test_the_message_is_understood() -> None:
    [message] = blocks("json")
    parsed = parse_message(message, KeyFilter("", (".mp4",)))

    assert parsed.malformed == ()
    [request] = parsed.requests
    assert (request.external_id, request.key) == ("84", "gate/a.mp4")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
