"""Reads all settings from the environment, typed and validated at start.

Every setting is an environment variable. A wrong one fails before any work begins, with the variable's name,
the value and what is allowed (:class:`ConfigurationError`).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CommaSeparated = Annotated[tuple[str, ...], NoDecode]
# Variables of this project that the tests, the Makefile or dagster.yaml read.
_OTHER_VARIABLES = (
    "CAPSTONE_TEST_DATA",
    "CAPSTONE_TEST_SLOWNESS",
    "CAPSTONE_UI_PORT",
    "CAPSTONE_BROWSE_PORT",
    "CAPSTONE_LOG_BUCKET",
    "CAPSTONE_GPU_QUEUE",
    "CAPSTONE_GPU_JOB_DEFINITION",
    "CAPSTONE_CPU_QUEUE",
    "CAPSTONE_CPU_JOB_DEFINITION",
)
_TOPIC_ARN = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[\w-]{1,256}(\.fifo)?", re.ASCII)


class ConfigurationError(Exception):
    """A setting is missing or wrong; the message names the variable and what is allowed."""

    failure_class = "configuration"


class NotConfigured(ConfigurationError):
    """A required setting is not set."""


class Settings(BaseSettings):
    """Everything that differs between a laptop and the cloud, read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="CAPSTONE_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    queue_url: str | None = Field(
        default=None, description="URL of the SQS queue that receives upload notifications and requests."
    )
    raw_bucket: str | None = Field(default=None, description="Bucket that `capstone submit` uploads to.")
    derived_url: str | None = Field(
        default=None,
        description="Destination of Parquet files and pictures: `s3://bucket/prefix` or `file:///directory`.",
    )
    alert_topic_arn: str | None = Field(default=None, description="SNS topic for alerts to people.")
    notice_topic_arn: str | None = Field(
        default=None,
        description="SNS topic for notices to other systems (`video.received`, `video.analyzed`, "
        "`video.failed`, `video.watched`); without it, notices stay in the outbox.",
    )
    message_urls: SecretStr | None = Field(
        default=None,
        description="Where people get messages of what they watch (`capstone watch`): URLs as the library "
        "apprise takes them, for mail, Slack, Telegram and others, separated by blanks.",
    )

    database_url: SecretStr | None = Field(
        default=None,
        description="URL of the event store (PostgreSQL), with its driver: `postgresql+psycopg://…`. "
        "Without it, the POSTGRES_* variables are used.",
    )
    postgres_host: str | None = Field(
        default=None, validation_alias="POSTGRES_HOST", description="Event store's host."
    )
    postgres_port: int = Field(
        default=5432, ge=1, le=65535, validation_alias="POSTGRES_PORT", description="Event store's port."
    )
    postgres_db: str = Field(
        default="capstone", validation_alias="POSTGRES_DB", description="Event store's database."
    )
    postgres_user: str = Field(
        default="capstone", validation_alias="POSTGRES_USER", description="Event store's user."
    )
    postgres_password: SecretStr | None = Field(
        default=None, validation_alias="POSTGRES_PASSWORD", description="Event store's password."
    )

    model: str = Field(
        default="embedded",
        min_length=1,
        description="Detection model: a local path (`.pt` or an exported directory), an `s3://` address, an "
        "Ultralytics model name such as `yolov8x.pt` (downloaded once), or `embedded`, the small model "
        "that ships with the project for its demo.",
    )
    model_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the model; any other file is rejected.",
    )
    request_models: CommaSeparated = Field(
        default=(),
        description="Models that a request may name in addition to CAPSTONE_MODEL: Ultralytics names, "
        "`embedded`, or `s3://` prefixes, separated by commas; other requests are rejected.",
    )
    model_cache: str = Field(
        default="~/.cache/capstone/models",
        description="Directory for downloaded models, their exports and compiled forms.",
    )
    labels: CommaSeparated = Field(
        default=("person", "face"), description="Labels to detect, separated by commas."
    )
    sample_fps: float = Field(
        default=5.0, ge=0, le=1000, description="Frames analysed per second of video; 0 means every frame."
    )
    motion_gate: bool = Field(
        default=False,
        description="Skip sampled frames in which nothing has changed, except one every two seconds: `true` "
        "or `false`.",
    )
    min_score: float = Field(
        default=0.25, gt=0, le=1, description="Detections with a lower score are dropped."
    )
    tracker: Literal["motion", "bytetrack", "botsort"] = Field(
        default="motion",
        description="Tracker: `motion` makes one track of one visit; `bytetrack` and `botsort` are "
        "Ultralytics' unmodified trackers.",
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto`, `cpu`, `cuda` or `cuda:0`."
    )
    require_gpu: bool = Field(
        default=False,
        description="Fail if no GPU can be used, instead of analysing slowly on the CPU.",
    )
    hardware_decoding: bool = Field(
        default=False,
        description="Decode with the GPU's decoder if it supports the format, else in software. Off, because "
        "it is not yet tested on a GPU.",
    )
    precision: Literal["auto", "full"] = Field(
        default="auto",
        description="`auto` uses bf16 or half precision if the processor has them, `full` uses 32 bits.",
    )

    compute: Literal["local", "batch"] = Field(
        default="local", description="Where runs execute: a process on this machine, or AWS Batch."
    )
    environment: Literal["local", "dev", "prod"] = Field(
        default="local", description="Which deployment this is."
    )
    timezone: str = Field(
        default="Asia/Seoul",
        description="Time zone of wall-clock times without one, such as those in file names.",
    )

    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="Log lines on standard output: `json`, one object in a line; `text` for people; `auto` "
        "is text on a terminal and JSON otherwise.",
    )
    metrics: Literal["off", "emf"] = Field(
        default="off",
        description="`emf` writes metrics to standard output in CloudWatch's embedded metric format, which "
        "awslogs carries there; `off` writes none.",
    )
    metrics_collector: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+:\d{1,5}$",
        description="`host:port` to which each of these lines is sent by UDP as well. `capstone-webserver` "
        "listens there and serves them to Prometheus under `/metrics`; nothing waits for it.",
    )
    job_log_group: str = Field(
        default="/aws/batch/job",
        pattern=r"^[\w./#-]+$",
        description="Log group of the jobs' history: start, end, reason and resources of each AWS Batch job.",
    )
    ui_url: str | None = Field(default=None, description="Address of Dagster's pages, for links in alerts.")
    browse_url: str | None = Field(
        default=None,
        description="Address of the pages of `capstone browse`, for links to them; they answer to this name "
        "and to those of loopback.",
    )
    observer_urls: Annotated[tuple[Annotated[str, Field(pattern=r"^[^=]+=https?://\S+$")], ...], NoDecode] = (
        Field(
            default=(),
            description="Pages of Prometheus, Grafana and their like, `name=address` separated by commas, "
            "for links from the pages of `capstone browse`; `capstone dev --observe` sets it.",
        )
    )
    runbook_url: str = Field(
        default="docs/runbook.md", description="Address of the runbook, for links in alerts."
    )
    gpu_usd_per_hour: float | None = Field(
        default=None, ge=0, description="Price of a GPU hour, for the estimated cost of a video."
    )
    version: str | None = Field(
        default=None, description="Which version this is: its commit, as the image says; counts deployments."
    )
    committed_at: datetime | None = Field(
        default=None, description="When that commit was made, ISO 8601 with its offset from UTC."
    )
    run_limit_minutes: float = Field(
        default=30, gt=0, description="A run that takes longer is overdue, unless its video is long."
    )
    run_limit_per_video: float = Field(
        default=2,
        gt=0,
        description="For long videos: seconds that a run may take for each second of video, if that is more "
        "than CAPSTONE_RUN_LIMIT_MINUTES.",
    )
    reexecutions_per_video: int = Field(
        default=3, ge=0, description="How often the system retries a video's failed run."
    )
    reexecutions_per_hour: int = Field(
        default=60, ge=0, description="How many failed runs the system retries in an hour."
    )
    pause_after_failures: int = Field(
        default=5,
        ge=1,
        description="Intake pauses automatically after this number of consecutive uploads failed for one "
        "systemic reason.",
    )

    source_buckets: CommaSeparated = Field(
        default=(),
        description="Buckets that messages may name, separated by commas; without it CAPSTONE_RAW_BUCKET, "
        "and any bucket where that is not set either.",
    )
    key_prefix: str = Field(default="", description="Only keys under this prefix are analysed.")
    key_suffixes: CommaSeparated = Field(
        default=(
            ".mp4",
            ".mov",
            ".mkv",
            ".avi",
            ".webm",
            ".m4v",
            ".mpg",
            ".mpeg",
            ".ts",
            ".gif",
            ".3gp",
            ".mts",
            ".m2ts",
            ".wmv",
            ".dav",
            ".h264",
            ".h265",
        ),
        description="File name endings of videos (any case), separated by commas; other keys are ignored.",
    )
    external_id_pattern: str | None = Field(
        default=None,
        description="Regular expression searched in the key; its group `external_id` (else the first) is the "
        "back end's id, if neither the message nor the object's metadata has one.",
    )
    camera_pattern: str = Field(
        default=r"^(?P<camera>[^/]+)/",
        description="Regular expression searched in the key; its group `camera` (else the first) names the "
        "camera. The default takes the first folder.",
    )
    recorded_at_pattern: str = Field(
        # 20250526_193726, perhaps with milliseconds; 20250526193726; 2025-05-26 19-37-26, as OBS writes it.
        default=r"(?<!\d)(?P<recorded_at>(?:19|20)(?:\d{6}[_-]\d{6}(?=(?:\d{3})?(?!\d))|\d{12}(?!\d)"
        r"|\d\d(?P<dash>[-._])\d\d(?P=dash)\d\d[ T_-](?:at[ _])?\d\d[-.:_]?\d\d[-.:_]?\d\d(?!\d)))",
        description="Regular expression searched in the file's name for a local time such as "
        "20250526_193726 or 2025-05-26 19-37-26.",
    )

    poll_wait_s: float = Field(
        default=20.0,
        ge=0,
        le=20,
        description="Seconds that a sensor tick waits for its first message (long poll).",
    )
    messages_per_tick: int = Field(
        default=200,
        ge=1,
        le=5000,
        description="Maximum of messages in one tick. Their runs are submitted afterwards, which must end "
        "before the queue's visibility time-out.",
    )
    max_queued_runs: int = Field(
        default=1000,
        ge=1,
        description="While more runs than this are queued, new messages stay in SQS.",
    )
    request_patience_s: float = Field(
        default=2700.0,
        ge=0,
        le=3300,
        description="Seconds that a back end's request waits in the queue for an object that is not there. "
        "A message becomes a dead letter after 20 deliveries, 180 s apart.",
    )
    raw_retention_days: int = Field(
        default=0,
        ge=0,
        description="Days after its last upload when a finished video's object is deleted, with all "
        "versions; 0 keeps it for ever, because it belongs to its uploader.",
    )
    detections_retention_days: int = Field(
        default=0,
        ge=0,
        description="Days after the last request when frames, detections, pictures and previews are deleted; "
        "0 keeps them for ever, because new event rules need them. Events stay.",
    )
    earlier_analyses_retention_days: int = Field(
        default=0,
        ge=0,
        description="Days that an analysis is kept that is not current, with its events and files; 0 keeps "
        "it for ever, because `capstone compare` and `rollback` need it.",
    )
    events_retention_days: int = Field(
        default=0,
        ge=0,
        description="Days that any analysis is kept, also the current one, with events and files; 0 keeps "
        "it for ever, because events are the product.",
    )
    partition_retention_days: int = Field(
        default=365,
        ge=0,
        description="Days after its last upload that a finished video stays a partition in Dagster, which "
        "supports about 100,000 of them; 0: for ever. Its rows and files stay.",
    )
    run_retention_days: int = Field(
        default=400,
        ge=0,
        description="Days that Dagster keeps an ended run, its logs, materialisations and pictures; 0: for "
        "ever. Runs of a listed partition stay: without them it would look unanalysed.",
    )
    event_log_retention_days: int = Field(
        default=90,
        ge=0,
        description="Days that Dagster keeps the log lines of ended runs; 0: for ever. Step events, "
        "materialisations and checks stay.",
    )

    @field_validator(
        "labels", "key_suffixes", "request_models", "source_buckets", "observer_urls", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("request_models")
    @classmethod
    def _within_a_bucket(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for model in value:
            if model.startswith("s3:") and (model.strip("/") == "s3:" or ".." in model.split("/")):
                raise ValueError(f"an s3:// prefix names a bucket and holds no `..`, but {model!r} does not")
        return value

    @field_validator("labels")
    @classmethod
    def _some_label(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one label is needed, as in person,face")
        repeated = [label for label, times in Counter(value).items() if times > 1]
        if repeated:
            raise ValueError(f"each label may occur once, but {', '.join(repeated)} occurs more often")
        return value

    @field_validator("queue_url")
    @classmethod
    def _queue_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+/\S+", value):
            raise ValueError(
                "expected the URL that SQS gives the queue, as in "
                "https://sqs.ap-northeast-2.amazonaws.com/123456789012/capstone-uploads"
            )
        return value

    @field_validator("alert_topic_arn", "notice_topic_arn")
    @classmethod
    def _topic_arn(cls, value: str | None) -> str | None:
        if value is not None and not _TOPIC_ARN.fullmatch(value):
            raise ValueError(
                "expected an SNS topic's ARN, as in arn:aws:sns:ap-northeast-2:123456789012:capstone-alerts"
            )
        return value

    @field_validator("derived_url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^(s3://[^/]+|file:///.+)", value):
            raise ValueError("expected s3://bucket/prefix or file:///directory")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("expected a zone of the IANA database, as in Asia/Seoul or UTC") from error
        return value

    @field_validator("external_id_pattern", "camera_pattern", "recorded_at_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from error
        if pattern.groups < 1:
            raise ValueError("expected a regular expression with one group, the part that is wanted")
        return value

    @model_validator(mode="after")
    def _driver_named(self) -> Settings:
        url = self.database_url.get_secret_value() if self.database_url else None
        if url is not None and not url.startswith("postgresql+psycopg://"):
            raise ValueError(
                "CAPSTONE_DATABASE_URL: expected postgresql+psycopg://user:password@host:port/database "
                "(psycopg 3 named as the driver: it is the one that the event store writes with)"
            )
        return self

    @property
    def observers(self) -> list[tuple[str, str]]:
        """Names and addresses of CAPSTONE_OBSERVER_URLS."""
        return [(name, url) for name, _, url in (each.partition("=") for each in self.observer_urls)]

    @property
    def has_event_store(self) -> bool:
        """Whether an event store is configured."""
        return self.database_url is not None or self.postgres_host is not None

    def event_store_url(self) -> str:
        """The event store's SQLAlchemy URL, with its password; never log it.

        Raises:
            NotConfigured: neither CAPSTONE_DATABASE_URL nor POSTGRES_HOST is set.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.postgres_host is None:
            raise NotConfigured(
                "No event store is configured: set CAPSTONE_DATABASE_URL "
                "(postgresql+psycopg://user:password@host:5432/capstone) or POSTGRES_HOST and its companions."
            )
        password = self.postgres_password.get_secret_value() if self.postgres_password else ""
        credentials = quote(self.postgres_user, safe="") + (
            f":{quote(password, safe='')}" if password else ""
        )
        return (
            f"postgresql+psycopg://{credentials}@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}"
        )

    def video_page(self, video_id: str) -> str | None:
        """The address of a video's page in `capstone browse`; None if the pages have no address."""
        if self.browse_url is None:
            return None
        return f"{self.browse_url.rstrip('/')}/videos/{quote(video_id, safe='')}"

    def unwanted_model(self, model: str | None) -> str | None:
        """Why a request or a run's configuration may not name this model; None if it may, or names none.

        Loading a model runs code: who sends messages or starts runs must not choose any file.
        """
        allowed = (self.model, *self.request_models)
        if model is None or model in allowed:
            return None
        prefixes = tuple(name for name in allowed if name.startswith("s3://") and name.endswith("/"))
        if prefixes and model.startswith(prefixes) and not {".", ".."} & set(model.split("/")):
            return None
        return f"model {model!r} is neither CAPSTONE_MODEL nor allowed by CAPSTONE_REQUEST_MODELS"

    def required(self, name: str) -> str:
        """The value of an optional text setting that this caller cannot work without.

        Raises:
            NotConfigured: it is not set.
        """
        value = getattr(self, name)
        if value is None:
            description = type(self).model_fields[name].description
            raise NotConfigured(f"{variable_name(name)} is not set. It is needed here: {description}")
        return str(value)


def variable_name(field: str) -> str:
    """The environment variable that a field of :class:`Settings` is read from."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"CAPSTONE_{field.upper()}"


def read_settings(**overrides: Any) -> Settings:
    """Read and check the environment afresh; keyword arguments, which command-line options are, win over it.

    Raises:
        ConfigurationError: one sentence per wrong variable or option.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, overrides)) from None


def unknown_variables(environment: Iterable[str]) -> Mapping[str, str | None]:
    """Names that begin like a setting's and are none, mistyped probably; each with the nearest known one."""
    prefix = "CAPSTONE_"  # left out of the comparison: what all share makes strangers look alike
    known = {*map(variable_name, Settings.model_fields), *_OTHER_VARIABLES}
    endings = [name.removeprefix(prefix) for name in sorted(known) if name.startswith(prefix)]
    found = {}
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known:
            near = difflib.get_close_matches(name.removeprefix(prefix), endings, n=1)
            found[name] = prefix + near[0] if near else None
    return found


def _explain(error: ValidationError, overrides: Mapping[str, Any]) -> str:
    sentences = []
    for problem in error.errors():
        # An error's location is the alias where there is one, else the field; model-wide ones have none.
        location = str(problem["loc"][0]) if problem["loc"] else ""
        reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if not location:
            sentences.append(f"{reason}.")
            continue
        field = location if location in Settings.model_fields else location.lower()
        name = variable_name(field)
        if field in overrides:
            name = f"--{field.replace('_', '-')} (in place of {name})"
        # A database's URL has a password in it.
        secret = SecretStr in get_args(Settings.model_fields[field].annotation)
        shown = "" if secret else f" is {problem['input']!r}"
        sentences.append(f"{name}{shown}: {reason}. {Settings.model_fields[field].description}")
    return "Wrong configuration. " + " ".join(sentences)
