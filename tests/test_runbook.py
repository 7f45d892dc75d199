"""Every failure class, alarm and condition has its page in the runbook, and what a page names exists."""

import re
import shlex
from pathlib import Path

import botocore.session
import pytest
from typer.main import get_command

from capstone_dagster.alerts.troubles import CONDITIONS
from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.queries import QUERIES
from capstone_dagster.cli import app
from capstone_dagster.failures.classes import POLICIES, FailureClass
from capstone_dagster.settings import Settings, variable_name
from tests.infra.stacks import INFRA

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "runbook.md").read_text()
# Anchor, title and text of each page; the anchors under "First steps" have no title.
PAGES = {
    anchor: (title, text)
    for anchor, title, text in re.findall(
        r'^<a id="([^"]+)"></a>\n### ([^\n]+)\n(.*?)(?=^<a id=|^## |\Z)', TEXT, re.MULTILINE | re.DOTALL
    )
}
COMMANDS = sorted({" ".join(command.split()) for command in re.findall(r"`((?:capstone|aws) [^`]+)`", TEXT)})
# Endpoint, which the AWS CLI keeps for its own --endpoint-url.
RENAMED_BY_THE_CLI = {"notification-endpoint"}


def test_each_class_alarm_and_condition_has_one_page_and_each_page_one_of_them() -> None:
    linked = {*FailureClass, *CONDITIONS, *(alarm.runbook for alarm in (*ALARMS, *ANOMALY_ALARMS))}
    anchors = re.findall(r'<a id="([^"]+)"></a>', TEXT)

    assert set(PAGES) == linked
    assert len(set(anchors)) == len(anchors)


def test_a_notice_has_the_title_of_its_page() -> None:
    titles = {page: each.title for page, each in (*POLICIES.items(), *CONDITIONS.items())}

    assert {page: PAGES[page][0] for page in titles} == titles


@pytest.mark.parametrize("anchor", PAGES)
def test_a_page_says_what_to_check_and_do_and_names_only_what_exists(anchor: str) -> None:
    _, text = PAGES[anchor]
    variables = {variable_name(field) for field in Settings.model_fields}
    saved = {query.name.rpartition("/")[2] for query in QUERIES}

    meaning, _, rest = text.partition("**Check**\n\n- ")
    check, _, remedy = rest.partition("**Remedy**\n\n1. ")
    assert len(meaning.split()) > 5
    assert check
    assert "\n**Resolved when** " in remedy
    assert set(re.findall(r"\bCAPSTONE_[A-Z_0-9]+", text)) <= variables
    assert set(re.findall(r"saved query `([^`]+)`", text)) <= saved
    for name, template in re.findall(r"([A-Z]\w+)\s+of\s+(infra/\w+\.yaml)", text):
        assert re.search(rf"^  {name}:", (INFRA.parent / template).read_text(), re.MULTILINE), name
    assert text.count("`") % 2 == 0


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("capstone ")])
def test_a_command_of_ours_exists(command: str) -> None:
    words = shlex.split(command)[1:]
    found = get_command(app)
    while hasattr(found, "commands"):
        found, words = found.commands[words[0]], words[1:]
    with found.make_context(str(found.name), list(words)) as context:
        assert context.args == []


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("aws ")])
def test_a_command_of_the_aws_cli_exists(command: str) -> None:
    _, service, operation, *words = shlex.split(command)
    model = botocore.session.get_session().get_service_model("s3" if service == "s3api" else service)
    wanted = operation.replace("-", "").lower()
    [name] = [each for each in model.operation_names if each.lower() == wanted]
    members = {_as_option(member) for member in model.operation_model(name).input_shape.members}
    options = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert options - members - RENAMED_BY_THE_CLI == set()


def _as_option(member: str) -> str:
    """The AWS CLI's spelling of a request's member: DBInstanceIdentifier becomes db-instance-identifier."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", member)
    return apart.lower()
