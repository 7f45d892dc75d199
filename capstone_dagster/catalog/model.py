"""The kinds of entry that the list has: plain values, which renderers turn into CloudFormation and
documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NAMESPACE = "Capstone"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Unit = Literal["Count", "Seconds", "Milliseconds", "Bytes", "Megabytes", "Percent", "Count/Second", "None"]
Statistic = Literal["Sum", "Average", "Minimum", "Maximum", "SampleCount", "p50", "p90", "p95", "p99"]
Severity = Literal["page", "ticket"]
# What CloudWatch makes of a period without data.
MissingData = Literal["notBreaching", "breaching", "ignore", "missing"]
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
        carrier: who carries lines there: `awslogs` (a container's stdout) or `shipper` (the spool).
    """

    name: str
    level: Level
    retention_days: int
    carrier: Literal["awslogs", "shipper"]
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
    kind: Literal["counter", "gauge", "measure"]
    meaning: str
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AwsMetric:
    """A metric that an AWS service publishes by itself.

    Attributes:
        dimensions: name → name of the deployment's resource (a key of `render.cloudformation`'s table of
            imports), because those names are known only there.
    """

    namespace: str
    name: str
    unit: Unit
    dimensions: Mapping[str, str]


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
class Alarm:
    """A condition that somebody is told of.

    Attributes:
        expression: metric math over the ids of `series`; None where there is one series and it is compared
            itself.
        period_s, periods, datapoints: `datapoints` out of the last `periods` periods must breach.
        missing: what a period without data counts as, and `why_missing` why that is right here.
        incident: what this alarm is one of several signs of, and what people are told in its place: once,
            however many of the signs ring (`catalog.composites`).
        causes: names of alarms that, while they ring, explain this one: its composite stays quiet then
            (`catalog.composites`, which also counts in the causes of its causes, and what is a sign of the
            same incident as a cause).
        wait_s: how long people are not told yet, because a cause may be seen so much later than its effect.
        extension_s: how long this alarm may go on after its causes are over, before people are told; None:
            as long as what it looks at is.
        condition: the template's condition under which there is anything to watch (a load balancer); None:
            always.
        owner: who is called.
        runbook: anchor of its page in docs/runbook.md.
        look_at: what to open first: security group, IAM policy, database state, quota.
    """

    name: str
    meaning: str
    series: tuple[Series, ...]
    threshold: float
    comparison: Comparison
    period_s: int
    periods: int
    datapoints: int
    missing: MissingData
    why_missing: str
    severity: Severity
    owner: str
    runbook: str
    look_at: tuple[str, ...]
    expression: str | None = None
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
    def tells_recovery(self) -> bool:
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
