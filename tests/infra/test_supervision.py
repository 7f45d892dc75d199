"""Every container's command runs under the supervisor, which passes on and tells what the list says."""

from typing import Any

import pytest
import yaml

from capstone_dagster.catalog.alarms import DAEMON, WEBSERVER
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.logs.shipping import supervisor
from capstone_dagster.logs.shipping.heartbeats import health_check_of
from tests.infra.stacks import INFRA, resources

PROGRAM = ["python", "-m", "capstone_dagster.logs.shipping.supervisor"]
LEVELS = {group.name: group.level for group in LOG_GROUPS}


def containers() -> dict[str, dict[str, Any]]:
    return {
        each["Name"]: each
        for _, body in resources("AWS::ECS::TaskDefinition")
        for each in body["Properties"]["ContainerDefinitions"]
    }


def job_entry() -> list[str]:
    config = yaml.safe_load((INFRA.parent / "dagster.yaml").read_text())["run_launcher"]["config"]
    return [*config["entry_point"]]


def parsed(command: list[str]) -> Any:
    assert command[: len(PROGRAM)] == PROGRAM
    return supervisor._parse(command[len(PROGRAM) :])


@pytest.mark.parametrize(
    ("name", "program"),
    [("prepare", "/bin/sh"), ("daemon", "dagster-daemon"), ("webserver", "dagster-webserver")],
)
def test_a_services_output_is_passed_on_from_its_groups_level(name: str, program: str) -> None:
    container = containers()[name]
    options = parsed([*container["EntryPoint"], *container["Command"]])
    group = container["LogConfiguration"]["Options"]["awslogs-group"]

    assert options.command[0] == program
    assert (options.service, options.level) == (name, LEVELS[group])


def test_a_jobs_output_is_passed_on_from_its_groups_level() -> None:
    """By the launcher's entry point: a job definition of AWS Batch has none of its own."""
    options = parsed([*job_entry(), "api", "execute_run", "{}"])

    assert options.command == ["dagster", "api", "execute_run", "{}"]
    assert options.level == LEVELS["/aws/batch/job"]
    assert options.health_check is None, "a run is watched by Dagster"


def test_the_services_that_alarms_listen_to_send_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster@database:5432/dagster")
    beating = {}
    for container in containers().values():
        options = parsed([*container["EntryPoint"], *container["Command"]])
        if options.health_check is not None:
            beating[options.service] = health_check_of(options.health_check)

    assert set(beating) == {DAEMON, WEBSERVER}


def test_the_web_server_is_checked_where_it_listens() -> None:
    container = containers()["webserver"]
    port = container["Command"][container["Command"].index("--port") + 1]

    assert (
        parsed([*container["EntryPoint"], *container["Command"]]).health_check == f"http://127.0.0.1:{port}"
    )
    assert f"http://127.0.0.1:{port}/" in " ".join(container["HealthCheck"]["Command"])
