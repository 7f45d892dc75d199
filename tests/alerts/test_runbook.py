"""The runbook's pages: one for each class, alarm and alert, and nothing in them that does not exist."""

import re
import shlex

import botocore.session
import pytest
from typer.main import get_command

from capstone_dagster.alerts import reading
from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.queries import QUERIES
from capstone_dagster.catalog.runbook import FAILURE_PAGES, PAGES, SYSTEM_PAGES
from capstone_dagster.cli import app
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.settings import Settings, variable_name
from capstone_dagster.storage import database, errors

# Pages that only notices lead to: no alarm looks at these.
OF_NOTICES = {"waiting-for-capacity"}
# Endpoint, which the AWS CLI keeps for its own --endpoint-url.
RENAMED_BY_THE_CLI = {"notification-endpoint"}
TEXTS = {
    page.anchor: " ".join([page.means, *page.look, *page.do, page.after])
    for page in (*FAILURE_PAGES, *SYSTEM_PAGES)
}
COMMANDS = sorted(
    {command for text in TEXTS.values() for command in re.findall(r"`((?:capstone|aws) [^`]+)`", text)}
)


def test_every_class_has_its_page_for_alerts() -> None:
    assert [page.anchor for page in FAILURE_PAGES] == [kind.value for kind in FailureClass]
    assert len(PAGES) == len(FAILURE_PAGES) + len(SYSTEM_PAGES)


def test_every_alarm_leads_to_a_page_and_every_page_is_led_to() -> None:
    led_to = {alarm.runbook for alarm in (*ALARMS, *ANOMALY_ALARMS)}
    assert led_to - set(PAGES) == set()
    assert {page.anchor for page in SYSTEM_PAGES} - led_to == OF_NOTICES


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("capstone ")])
def test_commands_of_the_alerts_pages_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    found = get_command(app)
    while hasattr(found, "commands"):
        found, words = found.commands[words[0]], words[1:]
    with found.make_context(str(found.name), list(words)) as context:
        assert context.args == []


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("aws ")])
def test_aws_commands_of_the_alerts_pages_exist(command: str) -> None:
    _, service, operation, *words = shlex.split(command)
    model = botocore.session.get_session().get_service_model("s3" if service == "s3api" else service)
    wanted = operation.replace("-", "").lower()
    [name] = [each for each in model.operation_names if each.lower() == wanted]
    members = {_as_option(member) for member in model.operation_model(name).input_shape.members}
    options = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert options - members - RENAMED_BY_THE_CLI == set()


def _as_option(member: str) -> str:
    """As the AWS CLI names a member of a request: DBInstanceIdentifier → db-instance-identifier."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", member)
    return apart.lower()


@pytest.mark.parametrize("anchor", PAGES)
def test_what_the_alerts_pages_name_exists(anchor: str) -> None:
    text = TEXTS[anchor]
    variables = {variable_name(field) for field in Settings.model_fields}
    assert set(re.findall(r"\bCAPSTONE_[A-Z_0-9]+", text)) <= variables
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(PAGES)
    named = set(re.findall(r"saved query `([^`]+)`", text))
    assert named <= {query.name.rpartition("/")[2] for query in QUERIES}
    assert text.count("`") % 2 == 0
    assert len(PAGES[anchor].look) >= 1
    assert len(PAGES[anchor].do) >= 1


def test_the_names_that_alerts_know_ticks_errors_by_are_those_of_the_errors() -> None:
    import capstone_dagster.settings as settings

    known = {
        name: kind
        for module in (errors, database, settings)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and hasattr(kind, "failure_class")
    }
    for name, failure in reading.ERRORS.items():
        assert known[name].failure_class == failure.value
