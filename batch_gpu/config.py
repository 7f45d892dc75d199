"""The launcher's configuration: one set of fields, in `dagster.yaml` for all runs and in a tag for one run.

A job's fields are merged from the compute class's section (`gpu:` or `cpu:`) and the run's tag
`batch_gpu/config`, a JSON object with the same fields; the tag wins, and maps are merged key by key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dagster import Array, Field, IntSource, Map, StringSource
from dagster._config import process_config

from batch_gpu.compute import ComputeClass
from batch_gpu.errors import ConfigurationError

CONFIG_TAG = "batch_gpu/config"

# AWS Batch refuses shorter ones: its agents look at running jobs only about once a minute.
SHORTEST_TIMEOUT_S = 60


# Dagster has no types for these functions, nor for some methods of launchers: hence the `type: ignore`s here.
_TEXTS = Map(str, StringSource)  # type: ignore[no-untyped-call]
_PLAIN_TEXTS = Map(str, str)  # type: ignore[no-untyped-call]


def _field(kind: Any, description: str, default: Any = None) -> Any:
    return field(default=default, metadata={"kind": kind, "description": description})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """What one run's Batch job gets. None, or an empty map, leaves it to the job definition."""

    job_queue: str | None = _field(StringSource, "Name or ARN of the job queue.")
    job_definition: str | None = _field(
        StringSource, "Name, name:revision or ARN of the job definition; a name means its latest revision."
    )
    image: str | None = _field(
        StringSource, "Another image than the job definition's. Registers a revision of it, once."
    )
    gpus: int | None = _field(IntSource, "GPUs.")
    vcpus: int | None = _field(IntSource, "vCPUs.")
    memory_mib: int | None = _field(IntSource, "Memory in MiB; the container is killed when it takes more.")
    shared_memory_mib: int | None = _field(
        IntSource, "Size of /dev/shm in MiB. Registers a revision of the job definition, once."
    )
    timeout_seconds: int | None = _field(IntSource, "Longest time of one attempt, at least 60.")
    max_wait_seconds: int | None = _field(
        IntSource, "Longest time that a job waits for a machine; needs the sensor of batch_gpu.sensor."
    )
    attempts: int | None = _field(
        IntSource, "How often Batch starts the job when its host is reclaimed, 1 to 10; 3 by default."
    )
    share_identifier: str | None = _field(
        StringSource, "The share to count the job to, for queues with a fair-share scheduling policy."
    )
    scheduling_priority: int | None = _field(
        IntSource, "Priority within the share, 0 to 9999; higher goes first."
    )
    environment: Mapping[str, str] | None = _field(_TEXTS, "More environment variables of the container.")
    secrets: Mapping[str, str] | None = _field(
        _TEXTS,
        "Environment variables from Secrets Manager or the parameter store: name to ARN. Registers a "
        "revision of the job definition, once.",
    )
    aws_tags: Mapping[str, str] | None = _field(_TEXTS, "More tags of the Batch job.")

    def merged(self, over: "JobConfig") -> "JobConfig":
        """This configuration with the set fields of `over` in place of its own; maps key by key."""
        values: dict[str, Any] = {}
        for each in fields(JobConfig):
            ours, theirs = getattr(self, each.name), getattr(over, each.name)
            if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
                values[each.name] = {**ours, **theirs}
            else:
                values[each.name] = ours if theirs is None else theirs
        return JobConfig(**values)

    def check(self, whose: str) -> "JobConfig":
        """Itself.

        Raises:
            ConfigurationError: a number is outside of what AWS Batch takes.
        """
        limits = {
            "gpus": (0, 1024),
            "vcpus": (1, 1024),
            "memory_mib": (4, 32 * 1024 * 1024),
            "shared_memory_mib": (1, 32 * 1024 * 1024),
            "timeout_seconds": (SHORTEST_TIMEOUT_S, 10**8),
            "max_wait_seconds": (1, 10**8),
            "attempts": (1, 10),
            "scheduling_priority": (0, 9999),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigurationError(f"{whose}: {name} is {value}; expected {low} to {high}.")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherConfig:
    """Everything under `run_launcher.config` in dagster.yaml."""

    # An enum cannot come from an environment variable; `from_yaml` checks this text.
    compute: Literal["local", "batch"] = _field(
        StringSource, "`batch`, or `local` for processes on this machine.", "batch"
    )
    gpu: JobConfig = field(default=JobConfig(), metadata={"description": "Jobs of runs that need a GPU."})
    cpu: JobConfig = field(default=JobConfig(), metadata={"description": "Jobs of all other runs."})
    region: str | None = _field(StringSource, "AWS region; else as boto3 finds it.")
    job_name_prefix: str = _field(StringSource, "Jobs are named <prefix>-<run id>-<attempt>.", "dagster")
    entry_point: tuple[str, ...] = _field(
        Array(str),
        "What starts Dagster in the container, e.g. [python, -m, dagster]; by default what the code location "
        "says, usually `dagster` on the image's PATH.",
        (),
    )
    preload: tuple[str, ...] = _field(
        Array(str),
        "With `compute: local`, the modules that are imported once, before the first run: the project's "
        "definitions and what its runs import themselves.",
        (),
    )
    submit_deadline_seconds: int = _field(
        IntSource, "How long a request is repeated while AWS throttles or fails.", 60
    )
    log_lines: int = _field(
        IntSource, "How many of a lost worker's last log lines the failure quotes; 0 for none.", 20
    )
    gpu_pool: str = _field(StringSource, "The pool whose limit `python -m batch_gpu.pool` sets.", "gpu")
    max_gpu_jobs: int = _field(
        IntSource, "The pool's limit with `compute: batch`; locally it is the number of GPUs.", 1000
    )

    def job(self, compute: ComputeClass, run_tags: Mapping[str, str]) -> JobConfig:
        """The job of a run of this class.

        Raises:
            ConfigurationError: the run's tag is not what it should be, or no queue or definition is named.
        """
        merged = self.gpu if compute == "gpu" else self.cpu
        if CONFIG_TAG in run_tags:
            merged = merged.merged(parse_tag(run_tags[CONFIG_TAG])).check(f"The run's {CONFIG_TAG} tag")
        for needed in ("job_queue", "job_definition"):
            if not getattr(merged, needed):
                raise ConfigurationError(
                    f"No {needed} is configured for {compute} runs: set it in dagster.yaml under "
                    f"run_launcher.config.{compute}.{needed}."
                )
        return merged

    def max_wait_seconds(self, queue: str | None, run_tags: Mapping[str, str]) -> int | None:
        """How long a run's job may wait in this queue; None means as long as Dagster lets it."""
        over = parse_tag(run_tags[CONFIG_TAG]) if CONFIG_TAG in run_tags else JobConfig()
        section = self.gpu if queue == self.gpu.job_queue else self.cpu
        return section.merged(over).max_wait_seconds


def config_schema() -> dict[str, Any]:
    """The launcher's schema for dagster.yaml; every scalar of a job may be `{env: VARIABLE}`."""
    schema = {}
    for each in fields(LauncherConfig):
        is_job = isinstance(each.default, JobConfig)
        default: dict[str, Any] = {} if is_job or not each.default else {"default_value": each.default}
        schema[each.name] = Field(
            _job_schema() if is_job else each.metadata["kind"],
            is_required=False,
            description=each.metadata["description"],
            **default,
        )
    return schema


def from_yaml(value: Mapping[str, Any]) -> LauncherConfig:
    """The typed configuration of a value that satisfies `config_schema`.

    Raises:
        ConfigurationError: a value is out of range, or `compute` is unknown.
    """
    values = dict(value)
    if values.get("compute", "batch") not in ("local", "batch"):
        raise ConfigurationError(
            f"run_launcher.config.compute is {values['compute']!r}; expected local or batch."
        )
    for section in ("gpu", "cpu"):
        where = f"run_launcher.config.{section}"
        values[section] = JobConfig(**values.get(section) or {}).check(where)
    for name in ("entry_point", "preload"):
        values[name] = tuple(values.get(name) or ())
    config = LauncherConfig(**values)
    if config.compute == "batch":  # refused at start, not when the first video comes
        config.job("gpu", {})
        config.job("cpu", {})
    return config


def parse_tag(text: str) -> JobConfig:
    """The value of a run's `batch_gpu/config` tag. `{env: …}` is refused here: a tag must not read the
    daemon's environment.

    Raises:
        ConfigurationError: it is no JSON object of a job's fields.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"The run's tag {CONFIG_TAG} is no JSON: {error}. Expected e.g. "
            '{"memory_mib": 30000, "timeout_seconds": 7200}.'
        ) from None
    result = process_config(_job_schema(from_environment=False), value)
    if not result.success or result.value is None:
        reasons = "; ".join(error.message for error in result.errors or [])
        raise ConfigurationError(
            f"The run's tag {CONFIG_TAG} is not what it should be: {reasons}. It takes the fields of a "
            "section gpu or cpu of the launcher's configuration."
        )
    return JobConfig(**result.value)


def _job_schema(from_environment: bool = True) -> dict[str, Any]:
    plain = {id(StringSource): str, id(IntSource): int}

    def kind(each: Any) -> Any:
        declared = each.metadata["kind"]
        if from_environment:
            return declared
        return _PLAIN_TEXTS if declared is _TEXTS else plain[id(declared)]

    return {
        each.name: Field(kind(each), is_required=False, description=each.metadata["description"])
        for each in fields(JobConfig)
    }
