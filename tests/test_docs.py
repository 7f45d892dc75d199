"""What the documentation shows works: its commands, its SQL, its message, its links, its tables."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster._cli import create_dagster_cli as dagster_commands
from typer.main import get_command

from capstone_dagster.cli import app
from capstone_dagster.intake.messages import KeyFilter, parse_message
from capstone_dagster.storage.database import Database
from tests.support.command_line import Capstone

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Options of programs that are not ours.
OPTIONS_OF_OTHERS = {"--disable-rollback", "--help", "--log-format", "--protocol"}  # Dagster's, the AWS CLI's


def blocks(language: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """Code blocks of a language on these pages, those in lists too."""
    pattern = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for page in pages for _, block in pattern.findall(page.read_text())]


def commands(pages: Sequence[Path] = PAGES) -> list[str]:
    """Every command line of these pages, once."""
    lines = [line for block in blocks("sh", pages) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip() and not line.startswith("#")))


def mentions() -> list[str]:
    """Every `capstone …` within a sentence, once; `status|pause` are two."""
    found = [
        " ".join(alternative)
        for page in PAGES
        for words in re.findall(r"(?<!`)`capstone ([^`]+)`(?!`)", page.read_text())
        for alternative in itertools.product(*(word.split("|") for word in words.split()))
    ]
    return list(dict.fromkeys(found))


def every_command(words: str = "", command: Any = None) -> list[str]:
    """The words that call each command, groups left out."""
    command = command or get_command(app)
    if not hasattr(command, "commands"):
        return [words.strip()]
    return [
        found for name, each in command.commands.items() for found in every_command(f"{words} {name}", each)
    ]


def find_command(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that these words call, and its arguments; fails if there is none."""
    command, rest = get_command(app), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"capstone has no command {rest[0]!r}: {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def links(page: Path) -> list[tuple[str, str]]:
    """File and anchor of every relative link of a page; either may be empty."""
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    return [(target, anchor) for target, anchor in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Where links into a page can lead: its headings, as GitHub names them, and what has an id."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).strip().replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return {*found, *re.findall(r'<a id="([^"]+)">', text)}


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
    if words[0] == ".venv/bin/dagster":
        assert words[1] in dagster_commands().commands
        return
    assert words[0] == ".venv/bin/capstone"
    command, rest = find_command(words[1:])
    # Parses the arguments and options as typed, and runs nothing.
    with command.make_context(str(command.name), rest) as context:
        assert context.args == []


@pytest.mark.parametrize("mention", mentions())
def test_mentioned_commands_and_options_exist(mention: str) -> None:
    command, rest = find_command([word.strip("().,;") for word in mention.split() if word != "…"])
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    mentioned = {word.split("=")[0] for word in rest if word.startswith("-")}
    assert mentioned <= options | {"--help", "-h"}, f"capstone {mention}"


@pytest.mark.parametrize("words", every_command())
def test_help_teaches_every_command(words: str, capstone: Capstone) -> None:
    outcome = capstone(*words.split(), "--help")
    command, _ = find_command(words.split())
    assert outcome.code == 0, outcome.err
    # The terminal takes what looks like a tag for one, and leaves it out.
    assert command.help
    assert "<" not in re.sub(r"`[^`]*`", "", command.help)
    for param in command.params:
        assert getattr(param, "help", None), f"capstone {words}: nothing is said of {param.name}"


@pytest.mark.timeout(400)  # servers of its own, beside those of a busy suite
def test_the_examples_of_the_testing_page_pass() -> None:
    """With nothing but the plugin: no conftest of ours."""
    folder = tempfile.mkdtemp(prefix="capstone-test-")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/x", "."],
        cwd=ROOT / "docs" / "examples",
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("words", every_command())
def test_every_command_is_listed_described_and_has_an_example(words: str) -> None:
    anchor = f"capstone-{words.replace(' ', '-')}"
    assert f"[`{words}`](docs/reference.md#{anchor})" in (ROOT / "README.md").read_text()
    assert f"\n### capstone {words}\n" in (ROOT / "docs" / "reference.md").read_text()
    command, _ = find_command(words.split())
    if {each.name for each in command.params} <= {"state", "help"}:
        return  # its name is the example
    [example] = re.findall(r"Example: `capstone ([^`]+)`", " ".join(command.help.split()))
    called, rest = find_command(shlex.split(example))
    assert called.name == command.name
    with called.make_context(str(called.name), rest) as context:
        assert context.args == []


def test_options_that_are_mentioned_exist() -> None:
    """Those alone in backticks; what other programs take is listed."""
    known = {
        name
        for words in every_command()
        for param in find_command(words.split())[0].params
        for name in (*param.opts, *param.secondary_opts)
    }
    for page in PAGES:
        mentioned = set(re.findall(r"`(--[a-z][a-z-]*)", page.read_text()))
        assert mentioned <= known | OPTIONS_OF_OTHERS, page.name


def test_every_document_is_linked_from_the_first_pages() -> None:
    first = [ROOT / "README.md", ROOT / "docs" / "concepts.md"]
    linked = {(page.parent / target).resolve() for page in first for target, _ in links(page)}
    assert {page for page in PAGES if page not in first} <= linked


def test_the_readme_shows_the_commands_of_the_first_day() -> None:
    shown = " ".join(commands([ROOT / "README.md"]))
    for name in ("submit", "status", "events", "analyze", "doctor"):
        assert f"capstone {name}" in shown


def test_the_launchpad_takes_the_configuration_that_is_shown() -> None:
    from capstone_dagster.definitions import defs

    [block] = blocks("yaml", [ROOT / "docs" / "howto" / "backfill.md"])
    for shown in (block, re.sub(r"# (?=\w+: )", "", block)):  # the lines that are commented out, too
        assert dg.validate_run_config(defs.resolve_job_def("analyze_videos"), yaml.safe_load(shown))


def test_sql_runs_as_a_reader(database: Database) -> None:
    queries = blocks("sql")
    assert len(queries) >= 2
    with database.engine.connect() as connection:
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
    for target, anchor in links(page):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), f"{target}#{anchor}"
