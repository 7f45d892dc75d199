"""Reads one video's story back: from CloudWatch, or from Dagster's own records.

Nothing here raises for a service that cannot be read: what is missing is reported beside what was found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
)

from capstone_dagster.catalog.log_groups import BATCH_JOB, INTAKE, VIDEO_ANALYSIS
from capstone_dagster.catalog.model import Level
from capstone_dagster.clients import COMMAND, CREDENTIALS, FORBIDDEN, aws_client, error_code
from capstone_dagster.logs.json_lines import json_line
from capstone_dagster.redaction import Redaction
from capstone_dagster.run_tags import EXTERNAL_ID_TAG, VIDEO_TAG

if TYPE_CHECKING:
    import dagster as dg
    from mypy_boto3_logs import CloudWatchLogsClient

GROUPS = (INTAKE.name, VIDEO_ANALYSIS.name, BATCH_JOB.name)
"""Where a video's story stands; the last one is CAPSTONE_JOB_LOG_GROUP's default."""
LEVELS: tuple[Level, ...] = get_args(Level)
_NAMES = ("video_id", "external_id")

# Limits of FilterLogEvents: events in an answer, characters of a pattern.
_PAGE = 10_000
_PATTERN_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log.

    Attributes:
        time_ms: when it was written, in milliseconds since 1970.
        group: name of the log group; of Dagster's own records, `dagster`.
        text: the line as it was written.
        fields: the object that it is.
    """

    time_ms: int
    group: str
    text: str
    fields: Mapping[str, Any] = field(hash=False)

    @property
    def level(self) -> str:
        """Its level; INFO where it names none."""
        return str(self.fields.get("level", "INFO"))


@dataclass(frozen=True, slots=True)
class Subject:
    """The video that lines are about.

    Attributes:
        names: its id and its external id.
        run_ids: its runs, as far as they are known. A line of a run that names no video belongs to the
            story: a library's warning.
    """

    names: frozenset[str]
    run_ids: frozenset[str] = frozenset()

    def owns(self, fields: Mapping[str, Any]) -> bool:
        """Whether a line is part of the story."""
        video_id = fields.get("video_id")
        if video_id in self.names or str(fields.get("external_id")) in self.names:
            return True
        return not video_id and fields.get("run_id") in self.run_ids

    def and_also(self, other: Subject) -> Subject:
        """Both."""
        return Subject(self.names | other.names, self.run_ids | other.run_ids)

    def without(self, other: Subject) -> Subject:
        """What the other one lacks."""
        return Subject(self.names - other.names, self.run_ids - other.run_ids)

    def __bool__(self) -> bool:
        return bool(self.names or self.run_ids)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found.

    Attributes:
        lines: in order of time.
        troubles: in sentences, what could not be read and what to do about it.
        has_cloudwatch: whether CloudWatch's part is there.
        subject: the video, with the names and runs that its lines have added.
    """

    lines: Sequence[LogLine]
    troubles: Sequence[str]
    has_cloudwatch: bool
    subject: Subject


def logs_client() -> CloudWatchLogsClient:
    """A client for a command: it gives up within half a minute."""
    return aws_client("logs", COMMAND)


def read_story(
    subject: Subject,
    *,
    client: Callable[[], CloudWatchLogsClient],
    groups: Sequence[str] = GROUPS,
    since_ms: int | None = None,
) -> Reading:
    """A video's lines from CloudWatch.

    Args:
        client: makes the client; its failure is reported as a trouble, too.
        since_ms: leave out what is older; the whole story without it.
    """
    troubles: list[str] = []
    lines: list[LogLine] = []
    has_cloudwatch = False
    try:
        lines, missing = _from_cloudwatch(client(), subject, groups, since_ms)
        has_cloudwatch = len(missing) < len(groups)
        if not has_cloudwatch:
            troubles.append(
                f"CloudWatch has none of the log groups {', '.join(groups)}. Check account and region; the "
                "deployment makes them (docs/deploy.md)."
            )
    except (BotoCoreError, ClientError) as error:
        troubles.append(_in_words(error))
    lines = [line for line in lines if line.time_ms >= (since_ms or 0)]
    return Reading(lines, troubles, has_cloudwatch, subject.and_also(_named_by(lines)))


def read_dagster(subject: Subject, instance: dg.DagsterInstance) -> list[LogLine]:
    """What Dagster itself has recorded of the video's runs, in order of time."""
    import dagster as dg

    from capstone_dagster.logs.run_records import record_fields

    runs: dict[str, dg.DagsterRun] = {}
    for tag in (VIDEO_TAG, EXTERNAL_ID_TAG, "dagster/partition"):
        filters = dg.RunsFilter(tags={tag: sorted(subject.names)})
        runs |= {run.run_id: run for run in instance.get_runs(filters)}
    if subject.run_ids:
        filters = dg.RunsFilter(run_ids=sorted(subject.run_ids))
        runs |= {run.run_id: run for run in instance.get_runs(filters)}
    lines = []
    for run in runs.values():
        for entry in instance.all_logs(run.run_id):
            text = json_line(record_fields(entry, run), Redaction())
            lines.append(LogLine(round(entry.timestamp * 1000), "dagster", text, json.loads(text)))
    return sorted(lines, key=_by_time)


def at_least(level: str, lines: Iterable[LogLine]) -> list[LogLine]:
    """Those of a level or above; an unknown level counts as INFO."""
    rank: dict[str, int] = {name: number for number, name in enumerate(LEVELS)}
    return [line for line in lines if rank.get(line.level, rank["INFO"]) >= rank[level]]


def filter_patterns(subject: Subject) -> list[str]:
    """Patterns of CloudWatch Logs that together match a superset of the story, each short enough for it."""
    clauses = [f"($.{key} = {_quoted(name)})" for name in sorted(subject.names) for key in _NAMES]
    # Without asking whether a video is named beside it: that is looked at here.
    clauses += [f"($.run_id = {_quoted(run_id)})" for run_id in sorted(subject.run_ids)]
    patterns: list[list[str]] = [[]]
    for clause in clauses:
        if len(" || ".join([*patterns[-1], clause])) + 4 > _PATTERN_LIMIT:
            patterns.append([])
        patterns[-1].append(clause)
    return ["{ " + " || ".join(each) + " }" for each in patterns]


def _from_cloudwatch(
    client: CloudWatchLogsClient, subject: Subject, groups: Sequence[str], since_ms: int | None
) -> tuple[list[LogLine], Collection[str]]:
    """The story in order of time, and the groups that do not exist."""
    found: dict[str, LogLine] = {}
    missing: set[str] = set()
    known = Subject(frozenset())
    while subject:
        for group in groups:
            try:
                for pattern in filter_patterns(subject):
                    for event_id, line in _events(client, group, pattern, since_ms):
                        # Emulators match everything, and no pattern matches by what a line lacks.
                        if subject.owns(line.fields):
                            found[event_id] = line
            except ClientError as error:
                if error_code(error) != "ResourceNotFoundException":
                    raise
                missing.add(group)
        known = known.and_also(subject)
        # An external id leads to the video's own id, and a video to its runs.
        subject = _named_by(found.values()).without(known)
    return sorted(found.values(), key=_by_time), missing


def _events(
    client: CloudWatchLogsClient, group: str, pattern: str, since_ms: int | None
) -> Iterator[tuple[str, LogLine]]:
    """Every line of the group that matches, by its event's id; some of them twice."""
    start_ms = since_ms or 0
    while True:
        met, last_ms = 0, start_ms
        pages = client.get_paginator("filter_log_events").paginate(
            logGroupName=group, filterPattern=pattern, startTime=start_ms
        )
        for page in pages:
            for event in page["events"]:
                met += 1
                last_ms = max(last_ms, event["timestamp"])
                line = parse_line(event["message"], group, event["timestamp"])
                if line is not None:
                    yield event["eventId"], line
        # An emulator ends after a full page, without a token for the next one.
        if met == 0 or met % _PAGE or last_ms == start_ms:
            return
        start_ms = last_ms


def parse_line(text: str, group: str, time_ms: int) -> LogLine | None:
    """A line as it was written; None for a metric and for what is not our JSON.

    Args:
        time_ms: when it was received, for lines that do not say when they were written.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    if not isinstance(fields, dict) or "_aws" in fields:
        return None
    return LogLine(_time_ms(fields.get("timestamp"), time_ms), group, text, fields)


def _by_time(line: LogLine) -> int:
    return line.time_ms


def _time_ms(timestamp: Any, otherwise: int) -> int:
    try:
        return round(datetime.fromisoformat(str(timestamp)).timestamp() * 1000)
    except ValueError:
        return otherwise


def _named_by(lines: Iterable[LogLine]) -> Subject:
    """The videos and runs that lines name."""
    names, run_ids = set(), set()
    for line in lines:
        names.add(line.fields.get("video_id"))
        run_ids.add(line.fields.get("run_id"))
    return Subject(frozenset(filter(None, names)), frozenset(filter(None, run_ids)))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _in_words(error: BotoCoreError | ClientError) -> str:
    """Why CloudWatch cannot be read, and what to do."""
    what = f"CloudWatch cannot be read: {str(error).rstrip('.')}."
    if isinstance(error, ClientError):
        code = error_code(error)
        if code in FORBIDDEN:
            return f"{what} Grant this user logs:FilterLogEvents on {', '.join(GROUPS)}."
        if code in CREDENTIALS:
            return f"{what} Log in again, or name another profile in AWS_PROFILE."
        if "Throttling" in code or "LimitExceeded" in code:
            return f"{what} Others are asking, too: try again in a minute."
        return f"{what} `capstone doctor` looks further."
    if isinstance(error, NoCredentialsError):
        return f"{what} Log in, or name a profile in AWS_PROFILE."
    if isinstance(error, NoRegionError):
        return f"{what} Set AWS_DEFAULT_REGION, as in ap-northeast-2."
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return f"{what} Check the network, and AWS_ENDPOINT_URL if it is set."
    return f"{what} Check the AWS_* variables, profile and region among them."


def subject_of(rows: Collection[Mapping[str, Any]]) -> Subject:
    """The subject that rows of `current_status` are about."""
    run_ids = {row["run_id"] for row in rows if row["run_id"] is not None}
    return Subject(frozenset(row["video_id"] for row in rows), frozenset(run_ids))
