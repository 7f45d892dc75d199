"""The commands of docs/deploy.md: bash can read them, AWS knows their operations and options, and the stacks,
templates and parameters that they name exist. What they do on AWS is shown by none of it.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session
import jmespath  # type: ignore[import-untyped]
import pytest
from botocore import xform_name

from capstone_dagster.cli import app
from tests.infra.stacks import INFRA, ORDER, resources, template
from tests.infra.test_templates import BY_A_BUCKET

ROOT = INFRA.parent
PAGE = ROOT / "docs" / "deploy.md"
RESTORE = ROOT / "docs" / "howto" / "restore.md"
# What the AWS CLI adds to AWS's API, with the options of its reference that are used here.
COMMANDS_OF_THE_CLI = {
    "cloudformation deploy": {
        *("stack-name", "template-file", "capabilities", "parameter-overrides"),
        *("s3-bucket", "s3-prefix", "disable-rollback"),
    },
    "ecr get-login-password": set[str](),
    "logs tail": {"since"},
    "s3 cp": set[str](),
    "s3 rb": {"force"},
}
# What it calls otherwise than AWS's API does.
RENAMED_BY_THE_CLI = {"sns subscribe": {"notification-endpoint": "endpoint"}}
# The rules of the alarms that page when a heartbeat is missing.
HEARTBEATS = [{"Fn::Sub": f'ALARM("${{{name}HeartbeatLost}}")'} for name in ("Daemon", "Webserver")]
# Options of every command.
OPTIONS_OF_THE_CLI = {"query", "output", "region", "max-items"}


def blocks(section: str = "", page: Path = PAGE) -> list[str]:
    text = page.read_text()
    return re.findall(r"^ *```bash\n(.*?)^ *```", text[text.index(section) :], re.MULTILINE | re.DOTALL)


def invocations(section: str = "", page: Path = PAGE) -> Iterator[list[str]]:
    """The words of every `aws …`, also of those whose output goes into a variable or a pipe."""
    for line in "\n".join(blocks(section, page)).replace("\\\n", " ").splitlines():
        assigned = re.fullmatch(r"\w+=\$\((.*)\)", line.strip())
        words = shlex.shlex(assigned[1] if assigned else line.strip(), posix=True, punctuation_chars="|;")
        words.whitespace_split = True
        words.commenters = ""
        command: list[str] = []
        for word in [*words, "|"]:
            if word in ("|", ";"):
                if command[:1] == ["aws"]:
                    yield command[1:]
                command = []
            else:
                command.append(word)


COMMANDS = list(invocations())


@cache
def operation(service: str, name: str) -> set[str]:
    """The options that an operation takes, spelled as the CLI spells them."""
    # The CLI keeps `s3` for its own commands.
    model = botocore.session.get_session().get_service_model("s3" if service == "s3api" else service)
    names = {xform_name(each, "-"): each for each in model.operation_names}
    shape = model.operation_model(names[name]).input_shape
    members = shape.members if shape is not None else {}
    flags = {f"no-{xform_name(key, '-')}" for key, each in members.items() if each.type_name == "boolean"}
    return {xform_name(key, "-") for key in members} | flags


def options(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            found[name] = []
        elif name:
            found[name].append(word)
    return found


def test_bash_can_read_the_commands() -> None:
    assert len(blocks()) >= 10
    for block in [*blocks(), *blocks(page=RESTORE)]:
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_the_commands_are_found() -> None:
    mentioned = len(re.findall(r"(?m)(?:^|\(|\| |    )aws [a-z]", "\n".join(blocks())))
    assert len(COMMANDS) == mentioned > 40


@pytest.mark.parametrize(
    "words", [*COMMANDS, *invocations(page=RESTORE)], ids=lambda words: "-".join(words[:2])
)
def test_aws_knows_the_command(words: list[str]) -> None:
    service, name = words[0], words[1]
    given = set(options(words)) - OPTIONS_OF_THE_CLI
    session = botocore.session.get_session()
    if f"{service} {name}" in COMMANDS_OF_THE_CLI:
        known = COMMANDS_OF_THE_CLI[f"{service} {name}"]
    elif name == "wait":
        waiters = session.create_client(service, region_name="ap-northeast-2").waiter_names
        assert words[2].replace("-", "_") in waiters
        asked = session.get_waiter_model(service).get_waiter(
            next(
                each
                for each in session.get_waiter_model(service).waiter_names
                if xform_name(each, "-") == words[2]
            )
        )
        known = operation(service, xform_name(asked.operation, "-"))
    else:
        known = operation(service, name)

    renamed = RENAMED_BY_THE_CLI.get(f"{service} {name}", {})
    assert {renamed.get(each, each) for each in given} <= known
    for query in options(words).get("query", []):
        jmespath.compile(query)  # raises if it is none


def test_every_template_is_deployed_in_its_turn() -> None:
    deployed = [options(words) for words in COMMANDS if words[:2] == ["cloudformation", "deploy"]]
    first = list(dict.fromkeys(each["stack-name"][0] for each in deployed))

    assert first == [f"capstone-{name}" for name in ORDER]
    for each in deployed:
        name = each["stack-name"][0].removeprefix("capstone-")
        assert each["template-file"] == [f"infra/{name}.yaml"]
        parameters = {word.partition("=")[0] for word in each.get("parameter-overrides", []) if "=" in word}
        assert parameters <= set(template(name).get("Parameters", {}))
        has_roles = any("AWS::IAM::" in body["Type"] for body in template(name)["Resources"].values())
        assert each.get("capabilities", []) == (["CAPABILITY_IAM"] if has_roles else [])
        by_bucket = name in BY_A_BUCKET
        assert each.get("s3-bucket", []) == (["capstone-derived-$ACCOUNT-$AWS_REGION"] if by_bucket else [])


def test_the_models_parameters_exist() -> None:
    assignments = re.findall(r'^MODEL="(.*)"$', PAGE.read_text(), re.MULTILINE)
    assert len(assignments) == 2
    for each in assignments:
        assert set(re.findall(r"(\w+)=", each)) <= set(template("application")["Parameters"])


def test_parameters_without_a_default_are_given_at_the_first_deployment() -> None:
    """`$MODEL` stands for the model's."""
    text = PAGE.read_text().replace("$MODEL", "Model=m")
    for name in ORDER:
        first = text[text.index(f"--stack-name capstone-{name}") :].partition("```")[0]
        needed = {key for key, each in template(name).get("Parameters", {}).items() if "Default" not in each}
        assert needed <= set(re.findall(r"(\w+)=", first)), name


def test_stacks_are_deleted_in_the_opposite_order() -> None:
    deleted = [
        options(words)["stack-name"][0]
        for words in invocations("## Tear down")
        if words[:2] == ["cloudformation", "delete-stack"]
    ]
    order = [f"capstone-{name}" for name in reversed(ORDER)]
    # Log groups hand nothing to anybody; the others are imported from.
    assert [each for each in deleted if each != "capstone-logs"] == [
        each for each in order if each != "capstone-logs"
    ]
    assert set(deleted) == set(order)


def test_names_in_the_commands_are_the_templates() -> None:
    text = "\n".join(blocks())
    application = template("application")["Resources"]
    services = {
        body["Properties"]["ServiceName"]
        for body in application.values()
        if body["Type"] == "AWS::ECS::Service"
    }

    assert set(re.findall(r"--service-name (\S+)", text)) <= services
    assert set(re.findall(r"--cluster (\S+)", text)) == {application["Cluster"]["Properties"]["ClusterName"]}
    outputs = set(template("application")["Outputs"])
    assert set(re.findall(r"OutputKey=='(\w+)'", text)) <= outputs
    for stem in ("raw", "derived"):
        assert f"capstone-{stem}-$ACCOUNT-$AWS_REGION" in text
        bucket = template("data")["Resources"][f"{stem.title()}Bucket"]["Properties"]["BucketName"]
        assert bucket == {"Fn::Sub": f"capstone-{stem}-${{AWS::AccountId}}-${{AWS::Region}}"}


def test_commands_for_the_container_exist() -> None:
    from typer.main import get_command

    asked = [shlex.split(each["command"][0]) for words in COMMANDS if "command" in (each := options(words))]
    assert len(asked) >= 4
    for program, name in asked:
        assert program == "capstone"
        assert name in get_command(app).commands  # type: ignore[attr-defined]


def test_what_the_page_says_of_the_database_is_so() -> None:
    database = template("data")["Resources"]["Database"]["Properties"]
    text = " ".join(Path(PAGE).read_text().split())

    assert template("data")["Parameters"]["DatabaseClass"]["Default"] in text
    assert f"{template('compute')['Parameters']['GpuMaxVcpus']['Default']}" in text
    assert database["PreferredBackupWindow"].replace("-", " to ") in text
    assert "on Mondays from 04:00 to 05:00" in text
    assert "was run on a real AWS account" in text


def test_the_tear_down_deletes_all_that_its_stacks_leave_behind_and_nothing_else() -> None:
    commands = "\n".join(blocks("## Tear down"))
    for where, body in resources():
        if body.get("DeletionPolicy") == "Retain":
            name = next(
                body["Properties"][key]
                for key in ("BucketName", "QueueName", "TopicName", "RepositoryName", "Name")
                if key in body["Properties"]
            )
            text = name if isinstance(name, str) else name["Fn::Sub"]
            shown = text.replace("${AWS::AccountId}", "$ACCOUNT").replace("${AWS::Region}", "$AWS_REGION")
            assert shown in commands, where
    assert "recovery-window" not in commands, "for seven days the name would be taken"


def test_a_first_creation_that_fails_is_not_rolled_back() -> None:
    """Its stack would refuse the next try (CloudFormation user guide, "Stack failure options")."""
    seen = set()
    for words in COMMANDS:
        if (
            words[:2] == ["cloudformation", "deploy"]
            and (name := options(words)["stack-name"][0]) not in seen
        ):
            seen.add(name)
            slow = name.removeprefix("capstone-") not in ("logs", "observability")
            assert ("disable-rollback" in options(words)) == slow, name


def test_alarms_that_are_switched_off_for_an_update_are_those_that_page_for_heartbeats() -> None:
    paging = {
        body["Properties"]["AlarmName"]
        for where, body in resources("AWS::CloudWatch::CompositeAlarm")
        if body["Properties"]["AlarmRule"] in HEARTBEATS
    }
    assert len(paging) == 2
    for verb in ("disable-alarm-actions", "enable-alarm-actions"):
        [words] = [words for words in COMMANDS if words[:2] == ["cloudwatch", verb]]
        assert set(options(words)["alarm-names"]) == paging
