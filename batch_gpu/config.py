"""The launcher's configuration: one model for `dagster.yaml`, for a code location and for one run.

A job's fields are merged from three places, of which the later wins; maps are merged key by key:

1. the compute class's section (`gpu:` or `cpu:`) of `run_launcher.config` in dagster.yaml;
2. the code location's image, and the same sections under `batch_gpu` of its container context;
3. the run's tag `batch_gpu/config`, a JSON object with a job's fields.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import dagster as dg
from pydantic import ConfigDict, Field, ValidationError, field_validator

from batch_gpu.compute import ComputeClass
from batch_gpu.errors import ConfigurationError

CONFIG_TAG = "batch_gpu/config"
CONTEXT_KEY = "batch_gpu"
"""Where a code location's container context holds the fields of its jobs."""

# AWS Batch refuses shorter ones: its agents look at running jobs only about once a minute.
SHORTEST_TIMEOUT_S = 60
_MOST_MIB = 32 * 1024 * 1024
_MOST_S = 10**8
# Parameters of SubmitJob that have a field of their own, or by which a job is found again.
_NOT_RAW = {"jobName", "jobQueue", "jobDefinition"}

_Model = TypeVar("_Model", bound=dg.Config)


class JobConfig(dg.Config):
    """What one run's Batch job gets. None, or an empty map, leaves it to the job definition."""

    model_config = ConfigDict(extra="forbid")

    job_queue: str | None = Field(default=None, description="Name or ARN of the job queue.")
    job_definition: str | None = Field(
        default=None,
        description="Name, name:revision or ARN of the job definition; a name means its latest revision.",
    )
    image: str | None = Field(
        default=None, description="Another image than the job definition's. Registers a revision of it, once."
    )
    gpus: int | None = Field(default=None, ge=0, le=1024, description="GPUs.")
    vcpus: int | None = Field(default=None, ge=1, le=1024, description="vCPUs.")
    memory_mib: int | None = Field(
        default=None,
        ge=4,
        le=_MOST_MIB,
        description="Memory in MiB; the container is killed when it takes more.",
    )
    shared_memory_mib: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_MIB,
        description="Size of /dev/shm in MiB. Registers a revision of the job definition, once.",
    )
    timeout_seconds: int | None = Field(
        default=None,
        ge=SHORTEST_TIMEOUT_S,
        le=_MOST_S,
        description="Longest time of one attempt, at least 60.",
    )
    max_wait_seconds: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_S,
        description="Longest time that a job waits for a machine; needs the sensor of batch_gpu.sensor.",
    )
    attempts: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="How often Batch starts the job when its host is reclaimed, 1 to 10; 3 by default.",
    )
    runs_per_job: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="How many runs a job executes one after the other where more of them wait; 1 by default. "
        "They wait in Dagster's queue, so the pool's limit must not exceed the machines.",
    )
    share_identifier: str | None = Field(
        default=None,
        description="The share to count the job to, for queues with a fair-share scheduling policy.",
    )
    scheduling_priority: int | None = Field(
        default=None, ge=0, le=9999, description="Priority within the share, 0 to 9999; higher goes first."
    )
    environment: dict[str, str] = Field(
        default={}, description="More environment variables of the container."
    )
    secrets: dict[str, str] = Field(
        default={},
        description="Environment variables from Secrets Manager or the parameter store: name to ARN. "
        "Registers a revision of the job definition, once.",
    )
    secrets_tag: str | None = Field(
        default=None,
        description="Key of a tag: each secret of Secrets Manager that has it becomes the environment "
        "variable that the tag's value names.",
    )
    aws_tags: dict[str, str] = Field(default={}, description="More tags of the Batch job.")
    submit_job: dict[str, Any] = Field(
        default={},
        description="Raw parameters of SubmitJob for what has no field here, merged over the request.",
    )

    @field_validator("submit_job")
    @classmethod
    def _no_identity(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := _NOT_RAW & set(value):
            raise ValueError(f"{', '.join(sorted(taken))} cannot be set here; use the field of that name")
        return value

    def merged(self, over: "JobConfig") -> "JobConfig":
        """This configuration with the set fields of `over` in place of its own; maps key by key."""
        ours, theirs = self.model_dump(), over.model_dump(exclude_none=True)
        return JobConfig(**merged(ours, theirs))


class JobSections(dg.Config):
    """The jobs of runs that need a GPU, and those of all others."""

    model_config = ConfigDict(extra="forbid")

    gpu: JobConfig = Field(default=JobConfig(), description="Jobs of runs that need a GPU.")
    cpu: JobConfig = Field(default=JobConfig(), description="Jobs of all other runs.")


class LauncherConfig(JobSections):
    """Everything under `run_launcher.config` in dagster.yaml."""

    # An enum cannot come from an environment variable.
    compute: str = Field(default="batch", description="`batch`, or `local` for processes on this machine.")
    region: str | None = Field(default=None, description="AWS region; else as boto3 finds it.")
    job_name_prefix: str = Field(default="dagster", description="Jobs are named <prefix>-<run id>-<attempt>.")
    entry_point: list[str] = Field(
        default=[],
        description="What starts Dagster in the container, e.g. [python, -m, dagster]; by default what the "
        "code location says, usually `dagster` on the image's PATH.",
    )
    run_tags: list[str] = Field(
        default=[], description="Keys of run tags that the job gets as AWS tags, for example to split costs."
    )
    preload: list[str] = Field(
        default=[],
        description="With `compute: local`, the modules that are imported once, before the first run: the "
        "project's definitions and what its runs import themselves.",
    )
    submit_deadline_seconds: int = Field(
        default=60, description="How long a request is repeated while AWS throttles or fails."
    )
    log_lines: int = Field(
        default=20, description="How many of a lost worker's last log lines the failure quotes; 0 for none."
    )
    gpu_pool: str = Field(default="gpu", description="The pool whose limit `python -m batch_gpu.pool` sets.")
    max_gpu_jobs: int = Field(
        default=1000, description="The pool's limit with `compute: batch`; locally it is the number of GPUs."
    )
    runs_per_gpu: int = Field(
        default=1,
        description="With `compute: local`, how many runs share a GPU. Above 1, the ops see to it that one "
        "at a time uses it.",
    )

    # A queued run is launched within some three seconds of another one's end; a container starts in more.
    idle_seconds: int = Field(
        default=10,
        ge=0,
        description="With `runs_per_job`, how long a job waits for its next run; less than a start takes.",
    )

    @field_validator("compute")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("local", "batch"):
            raise ValueError("expected local or batch")
        return value

    def job(
        self,
        compute: ComputeClass,
        run_tags: Mapping[str, str],
        *,
        image: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> JobConfig:
        """The job of a run of this class.

        Args:
            image: the code location's.
            context: the code location's container context.

        Raises:
            ConfigurationError: the tag or the context is not valid, or no queue or definition is named.
        """
        job: JobConfig = getattr(self, compute)
        job = job.merged(JobConfig(image=image))
        if context and CONTEXT_KEY in context:
            whose = f"The code location's container context, under {CONTEXT_KEY}"
            job = job.merged(getattr(_checked(JobSections, context[CONTEXT_KEY], whose), compute))
        if CONFIG_TAG in run_tags:
            job = job.merged(parse_tag(run_tags[CONFIG_TAG]))
        for needed in ("job_queue", "job_definition"):
            if not getattr(job, needed):
                raise ConfigurationError(
                    f"No {needed} is configured for {compute} runs: set it in dagster.yaml under "
                    f"run_launcher.config.{compute}.{needed}."
                )
        return job


def config_schema() -> dict[str, Any]:
    """The launcher's schema for dagster.yaml; every text and number may be `{env: VARIABLE}`."""
    return dict(LauncherConfig.to_fields_dict())


def from_yaml(value: Mapping[str, Any]) -> LauncherConfig:
    """The typed configuration of a value that satisfies `config_schema`.

    Raises:
        ConfigurationError: a value is out of range, or `compute` is unknown.
    """
    config = _checked(LauncherConfig, value, "run_launcher.config")
    if config.compute == "batch":  # refused at start, not when the first run comes
        config.job("gpu", {})
        config.job("cpu", {})
    return config


def parse_tag(text: str) -> JobConfig:
    """The value of a run's `batch_gpu/config` tag. `{env: …}` is refused here: a tag must not read the
    daemon's environment.

    Raises:
        ConfigurationError: it is not a JSON object of a job's fields.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"The run's tag {CONFIG_TAG} is not JSON: {error}. Expected e.g. "
            '{"memory_mib": 30000, "timeout_seconds": 7200}.'
        ) from None
    return _checked(JobConfig, value, f"The run's tag {CONFIG_TAG}")


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A map with another's values in place of its own; maps within them are merged too."""
    result = dict(ours)
    for key, value in theirs.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _checked(model: type[_Model], value: Any, whose: str) -> _Model:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{whose} is {value!r}; expected an object of {model.__name__}'s fields.")
    try:
        return model(**value)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg']}"
            for each in error.errors()
        )
        raise ConfigurationError(f"{whose} is not valid: {reasons}.") from None
