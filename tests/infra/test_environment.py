"""Every setting that the code reads reaches every container, and means there what it means here."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config

from batch_gpu.config import config_schema, from_yaml
from capstone_dagster.settings import Settings, read_settings, unknown_variables, variable_name
from capstone_dagster.traces.tracer import ENDPOINT_VARIABLES
from tests.infra.conftest import Deployed
from tests.infra.stacks import task_containers, template
from tests.infra.test_created import containers

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ("capstone-gpu", "capstone-cpu", "prepare", "code-server", "daemon", "webserver")
JOBS = CONTAINERS[:2]

# Settings that no container is given, and why their default is right for all of AWS. A setting that is new
# in the code belongs here or into application.yaml.
LEFT_AT_DEFAULT = {
    "CAPSTONE_DATABASE_URL": "put together from the POSTGRES_* variables, because the password is a secret",
    "CAPSTONE_MODEL_CACHE": "the image's: what was exported when it was built lies there",
    "CAPSTONE_MIN_SCORE": "chosen with the model's benchmarks",
    "CAPSTONE_TRACKER": "chosen with the model's benchmarks",
    "CAPSTONE_PRECISION": "auto: half precision on these GPUs",
    "CAPSTONE_HARDWARE_DECODING": "off until it is proven on a GPU",
    "CAPSTONE_SOURCE_BUCKETS": "the raw bucket alone, which is all that the roles may read",
    "CAPSTONE_KEY_SUFFIXES": "every kind of video file",
    "CAPSTONE_CAMERA_PATTERN": "the key's first folder",
    "CAPSTONE_RECORDED_AT_PATTERN": "a time in the file's name",
    "CAPSTONE_POLL_WAIT_S": "SQS's longest",
    "CAPSTONE_MESSAGES_PER_TICK": "measured against the queue's visibility time-out",
    "CAPSTONE_MAX_QUEUED_RUNS": "what Dagster's queue takes without slowing down",
    "CAPSTONE_REQUEST_PATIENCE_S": "just under the deliveries that the queue allows",
    "CAPSTONE_RAW_RETENTION_DAYS": "for ever, until somebody decides",
    "CAPSTONE_DETECTIONS_RETENTION_DAYS": "for ever, until somebody decides",
    "CAPSTONE_EARLIER_ANALYSES_RETENTION_DAYS": "for ever, until somebody decides",
    "CAPSTONE_EVENTS_RETENTION_DAYS": "for ever, until somebody decides",
    "CAPSTONE_PARTITION_RETENTION_DAYS": "a year",
    "CAPSTONE_RUN_RETENTION_DAYS": "a month more than partitions",
    "CAPSTONE_EVENT_LOG_RETENTION_DAYS": "a quarter; CloudWatch has had the lines",
    "CAPSTONE_VERSION": "the image's own",
    "CAPSTONE_COMMITTED_AT": "the image's own",
    "CAPSTONE_METRICS_COLLECTOR": "CloudWatch reads the lines; no Prometheus is deployed",
    "CAPSTONE_OBSERVER_URLS": "no Prometheus or Grafana is deployed",
    "CAPSTONE_RUN_LIMIT_PER_VIDEO": "twice the video's length, where that is more than the limit",
    "CAPSTONE_REEXECUTIONS_PER_VIDEO": "what passes by itself has passed by then",
    "CAPSTONE_REEXECUTIONS_PER_HOUR": "a bound on what an outage costs, the same wherever it happens",
    "CAPSTONE_PAUSE_AFTER_FAILURES": "the same wherever it happens",
}
# Settings that matter only where an analysis runs.
ONLY_FOR_JOBS = {"CAPSTONE_REQUIRE_GPU", "CAPSTONE_DEVICE"}
# What rightly differs: the daemon pins the revisions that were deployed with it, a job only has to have a
# name there; the administrator is there for whoever makes the databases.
DIFFERENT = {
    *("CAPSTONE_GPU_JOB_DEFINITION", "CAPSTONE_CPU_JOB_DEFINITION", "CODE_SERVER_HOST"),
    "BATCH_GPU_MAX_JOBS",
    *ONLY_FOR_JOBS,
}
# Of the code server alone, where the sensor runs that sends messages, if `MessageUrlsSecretArn` is given.
MESSAGES = {"CAPSTONE_MESSAGE_URLS"}
ADMINISTRATOR = {"POSTGRES_ADMIN_USER", "POSTGRES_ADMIN_PASSWORD"}
READER = {"POSTGRES_READER_USER", "POSTGRES_READER_PASSWORD"}


def declared(container: str) -> tuple[dict[str, Any], set[str]]:
    """The variables and the names of the secrets that application.yaml gives a container."""
    found = template("application")["Resources"]
    definitions = {
        body["Properties"]["JobDefinitionName"]: body["Properties"]["ContainerProperties"]
        for body in found.values()
        if body["Type"] == "AWS::Batch::JobDefinition"
    }
    for body in found.values():
        if body["Type"] == "AWS::ECS::TaskDefinition":
            definitions |= {each["Name"]: each for each in task_containers(body)}
    assert set(definitions) == {*CONTAINERS, "browse"}
    this = definitions[container]
    secrets = [each["Fn::If"][1] if "Fn::If" in each else each for each in this["Secrets"]]
    names = [each["Name"] for each in [*this["Environment"], *secrets]]
    assert len(names) == len(set(names)), "a variable is given twice"
    return {each["Name"]: each["Value"] for each in this["Environment"]}, {each["Name"] for each in secrets}


def given(container: str) -> set[str]:
    variables, secrets = declared(container)
    return set(variables) | secrets


def variables_of_dagster_yaml(value: Any) -> set[str]:
    """What `{env: NAME}` names, wherever it stands."""
    if isinstance(value, dict):
        if set(value) == {"env"}:
            return {str(value["env"])}
        return set().union(*map(variables_of_dagster_yaml, value.values()))
    return set().union(*map(variables_of_dagster_yaml, value)) if isinstance(value, list) else set()


def settings_that_some_code_requires() -> set[str]:
    code = "\n".join(path.read_text() for path in (ROOT / "capstone_dagster").rglob("*.py"))
    return {variable_name(field) for field in re.findall(r'\.required\("(\w+)"\)', code)}


@pytest.mark.parametrize("container", CONTAINERS)
def test_dagster_yaml_finds_what_it_names(container: str) -> None:
    needed = variables_of_dagster_yaml(yaml.safe_load((ROOT / "dagster.yaml").read_text()))

    assert len(needed) >= 6
    assert needed <= given(container)


@pytest.mark.parametrize("container", CONTAINERS)
def test_settings_that_code_cannot_do_without_are_given(container: str) -> None:
    needed = settings_that_some_code_requires()

    assert {"CAPSTONE_QUEUE_URL", "CAPSTONE_DERIVED_URL"} <= needed
    assert needed <= given(container)
    assert {"POSTGRES_HOST", "POSTGRES_PASSWORD", "DAGSTER_HOME", "AWS_REGION"} <= given(container)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_setting_is_given_or_left_for_a_reason(container: str) -> None:
    everything = {variable_name(field) for field in Settings.model_fields}
    left = set(LEFT_AT_DEFAULT) | (set() if container in JOBS else ONLY_FOR_JOBS)
    left |= set() if container == "code-server" else MESSAGES

    assert set(LEFT_AT_DEFAULT) <= everything
    assert everything - given(container) == left


@pytest.mark.parametrize("container", CONTAINERS)
def test_traces_go_to_the_collector_that_is_named(container: str) -> None:
    """By the variable that every program takes, over the one port by which containers get out."""
    variables, _ = declared(container)

    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == {"Ref": "OtlpEndpoint"}
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in ENDPOINT_VARIABLES
    parameter = template("application")["Parameters"]["OtlpEndpoint"]
    assert re.fullmatch(parameter["AllowedPattern"], "https://collector.example.com/otlp")
    assert re.fullmatch(parameter["AllowedPattern"], parameter["Default"])
    assert not re.fullmatch(parameter["AllowedPattern"], "http://collector.example.com:4318")


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_variable_is_mistyped(container: str) -> None:
    assert unknown_variables(given(container)) == {}


def test_containers_agree() -> None:
    """A job analyses with the settings under which the sensor asked for it."""
    first, first_secrets = declared(CONTAINERS[0])
    for container in CONTAINERS[1:]:
        variables, secrets = declared(container)
        compared = (set(first) | set(variables)) - DIFFERENT
        assert {name: variables.get(name) for name in compared} == {
            name: first.get(name) for name in compared
        }
        assert secrets - ADMINISTRATOR - READER - MESSAGES == first_secrets


def test_only_the_container_that_makes_databases_has_the_administrators_password() -> None:
    assert {name for name in CONTAINERS if given(name) & ADMINISTRATOR} == {"prepare"}
    assert {name for name in CONTAINERS if given(name) & READER} == {"prepare"}


def test_the_pages_of_events_agree_with_the_others_and_connect_as_a_reader() -> None:
    variables, secrets = declared("browse")
    others, _ = declared("daemon")
    for name in ("CAPSTONE_UI_URL", "CAPSTONE_BROWSE_URL"):  # this container exists only where they do
        variables[name] = {"Fn::If": [others[name]["Fn::If"][0], variables[name], ""]}
    assert {name: others.get(name) for name in variables} == variables
    assert {"CAPSTONE_BROWSE_URL", "CAPSTONE_RAW_BUCKET", "CAPSTONE_DERIVED_URL"} <= set(variables)
    # Nothing of Dagster: neither its address nor its password.
    assert secrets == {"POSTGRES_USER", "POSTGRES_PASSWORD"}
    found = template("application")["Resources"]["BrowseTask"]["Properties"]["ContainerDefinitions"]
    assert str(found[0]["Secrets"]).count("capstone-reader-database-secret") == 2


def test_no_secret_is_a_plain_variable() -> None:
    for container in CONTAINERS:
        variables, secrets = declared(container)
        assert not [name for name in variables if re.search("PASSWORD|SECRET|TOKEN", name)]
        assert {"PGPASSWORD", "POSTGRES_PASSWORD"} <= secrets


def job_environment(aws: Deployed, name: str) -> dict[str, str]:
    [definition] = aws.client("batch").describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    # moto makes an empty list of an empty text, and leaves a number one.
    return {
        each["name"]: str(each["value"] or "") for each in definition["containerProperties"]["environment"]
    }


def task_environment(aws: Deployed, name: str) -> dict[str, str]:
    family = "capstone-webserver" if name == "webserver" else "capstone-daemon"
    return {each["name"]: each["value"] for each in containers(aws, family)[name]["environment"]}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_code_understands_what_it_is_given(
    container: str, on_ministack: Deployed, on_moto: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the values that the emulators resolved: jobs by moto, services by ministack."""
    found: Mapping[str, str] = (
        job_environment(on_moto, container)
        if container in JOBS
        else task_environment(on_ministack, container)
    )
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")

    settings = read_settings()
    launcher = yaml.safe_load((ROOT / "dagster.yaml").read_text())["run_launcher"]["config"]
    checked = process_config(config_schema(), launcher)
    assert checked.success, checked.errors
    config = from_yaml(checked.value or {})

    assert settings.compute == config.compute == "batch"
    assert (config.gpu.job_queue, config.cpu.job_queue) == ("capstone-gpu", "capstone-cpu")
    assert settings.event_store_url().startswith("postgresql+psycopg://capstone:secret@")
    assert (settings.derived_url or "").startswith("s3://capstone-derived-")
    assert re.fullmatch(r"postgresql\+psycopg2://dagster@[\w.-]+:5432/dagster", found["DAGSTER_POSTGRES_URL"])
    assert settings.require_gpu == (container == "capstone-gpu")
