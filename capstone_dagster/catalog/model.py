"""The kinds of entry that the list has: plain values, which renderers turn into CloudFormation and
documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

NAMESPACE = "Capstone"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Unit = Literal["Count", "Seconds", "Milliseconds", "Bytes", "Megabytes", "Percent", "Count/Second", "None"]
Statistic = Literal["Sum", "Average", "Minimum", "Maximum", "SampleCount", "p50", "p90", "p95", "p99"]
Kind = Literal["counter", "gauge", "measure"]
Severity = Literal["page", "ticket"]
Comparison = Literal[
    "GreaterThanThreshold",
    "GreaterThanOrEqualToThreshold",
    "LessThanThreshold",
    "LessThanOrEqualToThreshold",
]


@dataclass(frozen=True, slots=True)
class LogGroup:
    """A CloudWatch log group.

    Attributes:
        level: the least that is written there.
        carrier: what carries lines there: `awslogs` (a container's standard output), or a `sensor` that
            writes them itself.
    """

    name: str
    level: Level
    retention_days: int
    carrier: Literal["awslogs", "sensor"]
    meaning: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of ours, in namespace :data:`NAMESPACE`.

    Every metric is published with the dimension `Environment` alone, and once more with each of `dimensions`
    beside it.

    Attributes:
        dimensions: further dimensions, each with few values. Never one that names a video: CloudWatch bills
            each distinct value as a metric of its own.
        kind: `counter` adds up (Sum), `gauge` is looked at (Maximum), `measure` is distributed (percentiles).
    """

    name: str
    unit: Unit
    kind: Kind
    meaning: str
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AwsMetric:
    """A metric that an AWS service publishes.

    Attributes:
        dimensions: name → name of the deployment's resource (a key of `render.cloudformation`'s table of
            imports), because those names are known only there.
        promql: what exporters beside Prometheus give in its place: a counter, the name of a histogram, or an
            expression that is looked at; None: nothing measures it there.
    """

    namespace: str
    name: str
    unit: Unit
    dimensions: Mapping[str, str]
    promql: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line of numbers: a metric, its statistic, and values for its further dimensions.

    Attributes:
        id: its name in an expression; begins with a small letter.
    """

    id: str
    metric: Metric | AwsMetric
    statistic: Statistic
    dimensions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MissingData:
    """How CloudWatch treats a period without data, and why that is right for the alarm."""

    treatment: Literal["notBreaching", "breaching", "ignore", "missing"]
    why: str


ERRORS_ONLY = MissingData("notBreaching", "Errors are counted when they happen: no data is no error.")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that a person must learn of.

    The defaults fit most alarms: a count of errors in five minutes.

    Attributes:
        expression: metric math over the ids of `series`; None compares the one series itself.
        period_s, periods, datapoints: `datapoints` out of the last `periods` periods must breach.
        severity, owner: how urgent it is, and the team that handles it.
        runbook: anchor of its page in docs/runbook.md.
        look_at: what to open first: security group, IAM policy, database state, quota.
        incident: the incident of which this alarm is one sign among several. The incident notifies in its
            place, once for all signs that ring (`catalog.composites`).
        causes: names of alarms that explain this one while they ring: its composite stays quiet then. The
            causes of a cause count too, and so does every sign of the same incident as a cause.
        wait_s: how long to wait before notifying, because a cause may be seen that much later.
        extension_s: how long this alarm may ring after its causes are over without notifying; None: for the
            length of its window.
        condition: the template's condition under which there is anything to watch (a load balancer); None:
            always.
    """

    name: str
    meaning: str
    series: tuple[Series, ...]
    _: KW_ONLY
    expression: str | None = None
    threshold: float
    comparison: Comparison = "GreaterThanThreshold"
    period_s: int = 300
    periods: int = 1
    datapoints: int = 1
    missing: MissingData = ERRORS_ONLY
    severity: Severity
    owner: str
    runbook: str
    look_at: tuple[str, ...]
    incident: str | None = None
    causes: tuple[str, ...] = ()
    wait_s: int = 120
    extension_s: int | None = None
    condition: str | None = None


@dataclass(frozen=True, slots=True)
class Composite:
    """An alarm made of the states of others.

    Attributes:
        any_of: names of the alarms of which one must ring.
        suppressor: name of the alarm that keeps this one's actions back while it rings; None: nothing does.
        wait_s: how long an action waits for the suppressor to ring first.
        extension_s: how long an action waits after the suppressor has fallen silent.
        notifies: whether it has actions; a suppressor has none.
        condition: as in :class:`Alarm`.
    """

    name: str
    meaning: str
    any_of: tuple[str, ...]
    suppressor: str | None = None
    wait_s: int = 0
    extension_s: int = 0
    notifies: bool = True
    condition: str | None = None

    @property
    def notifies_recovery(self) -> bool:
        """Whether it has an action for OK: after a suppressed ALARM, CloudWatch would send the OK alone."""
        return self.notifies and self.suppressor is None


@dataclass(frozen=True, slots=True)
class AnomalyAlarm:
    """A value outside the band that CloudWatch's own model expects of it; the model is AWS's, unproven here.

    Attributes:
        band: width of the band in standard deviations.
    """

    name: str
    meaning: str
    series: Series
    band: float
    period_s: int
    periods: int
    datapoints: int
    severity: Severity
    owner: str
    runbook: str
    look_at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedQuery:
    """A query of CloudWatch Logs Insights.

    Attributes:
        groups: names of the log groups it reads.
        text: the query, each command on lines of its own.
    """

    name: str
    meaning: str
    groups: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A horizontal line in a graph."""

    label: Literal["target", "warning", "critical"]
    value: float


@dataclass(frozen=True, slots=True)
class Graph:
    """A dashboard widget that draws numbers.

    Attributes:
        expressions: (id, metric math, label) over the ids of `series`; a series that one of them reads is not
            drawn itself. `{name}` in one stands for a number that the deployment knows, by its key in the
            renderer's table.
        unit: what the left axis counts, where the metrics' own unit is not what is drawn.
    """

    title: str
    series: tuple[Series, ...]
    expressions: tuple[tuple[str, str, str], ...] = ()
    lines: tuple[Line, ...] = ()
    stacked: bool = False
    period_s: int = 60
    width: int = 8
    height: int = 6
    unit: str = ""
    condition: str | None = None


@dataclass(frozen=True, slots=True)
class LogTable:
    """A dashboard widget that shows lines found by a query."""

    title: str
    query: SavedQuery
    width: int = 24
    height: int = 6


@dataclass(frozen=True, slots=True)
class Words:
    """A dashboard widget of Markdown."""

    markdown: str
    width: int = 24
    height: int = 2


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Widgets in reading order; rows are filled from the left, 24 columns wide."""

    name: str
    widgets: tuple[Graph | LogTable | Words, ...]
