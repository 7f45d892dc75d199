"""The alarms of the list where Prometheus watches in CloudWatch's place, and what only it can see.

An alarm whose metrics this system publishes is taken as it stands. One that reads AWS's own numbers is
measured otherwise here, or is left out because another sees the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import alarms
from .alarms import ALARMS, PLATFORM
from .model import Alarm


@dataclass(frozen=True, slots=True)
class Rule:
    """An alarm as Prometheus evaluates it.

    Attributes:
        promql: the value that is compared with the threshold; None: what the alarm's own series say.
    """

    alarm: Alarm
    promql: str | None = None


def _beyond(
    name: str, promql: str, threshold: float, for_s: int, meaning: str, runbook: str, look_at: tuple[str, ...]
) -> Rule:
    """A value above its threshold for this long."""
    alarm = Alarm(
        name,
        meaning,
        (),
        threshold=threshold,
        period_s=for_s,
        periods=2,
        datapoints=2,
        severity="ticket",
        owner=PLATFORM,
        runbook=runbook,
        look_at=look_at,
    )
    return Rule(alarm, promql)


_STATE = replace(  # a state that is read, and not counted over a period
    alarms.DATABASE_SILENT, series=(), expression=None, period_s=60, periods=2, datapoints=2
)
DATABASE_DOWN = Rule(
    replace(
        _STATE,
        name="DatabaseDown",
        meaning="PostgreSQL has not answered its exporter for a minute: it is stopped, or has failed.",
        look_at=("PostgreSQL: its process and its log", *_STATE.look_at),
    ),
    "min(pg_up)",
)
HOST_CPU_HIGH = _beyond(
    "HostCpuHigh",
    '100 * (1 - avg(rate(node_cpu_seconds_total{mode="idle"}[1m])))',
    80,
    300,
    "The host's processors are above 80 % for 5 minutes.",
    "ecs-cpu",
    ("the host: processes by CPU", "Dagster: the backlog of runs, runs_per_gpu of dagster.yaml"),
)
HOST_MEMORY_HIGH = _beyond(
    "HostMemoryHigh",
    "100 * max(1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    85,
    180,
    "The host's memory is above 85 % for 3 minutes: soon the kernel ends a process.",
    "ecs-memory",
    ("the host: processes by memory", "runs_per_gpu of dagster.yaml: each run takes some 300 MB"),
)
_ANSWERS = "sum(rate(capstone_http_requests_total[2m]))"
_WEBSERVER_ERRORS = _beyond(
    "WebserverErrors",
    # The floor: of ten requests two have to fail.
    f'100 * sum(rate(capstone_http_requests_total{{code="5xx"}}[2m])) / ({_ANSWERS} > {10 / 120:.3f})',
    10,
    120,
    "More than 10 % of the webserver's answers are errors for 2 minutes: Dagster's pages do not work.",
    "load-balancer-errors",
    ("log of the webserver", "Dagster's storage: does PostgreSQL answer"),
)
WEBSERVER_ERRORS = replace(
    _WEBSERVER_ERRORS,
    alarm=replace(_WEBSERVER_ERRORS.alarm, causes=(alarms.DATABASE_CONNECTION_FAILURE.name,)),
)
EXPORTER_DOWN = _beyond(
    "ExporterDown",
    'count(up{job!~"capstone|cadvisor"} == 0)',
    0,
    300,
    "An exporter has not answered Prometheus for 5 minutes: host or database are not seen.",
    "telemetry-dropped",
    ("Prometheus: Status, Targets", "the exporter's process and its log"),
)

_MESSAGES = 'capstone_queue_messages{queue="uploads"}'
MEASURED_OTHERWISE: Mapping[str, Rule] = {
    rule.alarm.name: rule
    for rule in (
        Rule(
            replace(
                alarms.DAEMON_HEARTBEAT_LOST,
                series=(),
                expression=None,
                threshold=300,
                comparison="GreaterThanThreshold",
                # A daemon that starts writes its first heartbeat within 30 s.
                period_s=60,
                periods=2,
                datapoints=2,
            ),
            "max(capstone_daemon_silence_seconds)",
        ),
        Rule(
            replace(
                alarms.WEBSERVER_HEARTBEAT_LOST,
                series=(),
                expression=None,
                periods=2,
                datapoints=2,
                causes=(),
            ),
            'min(up{job="capstone"})',
        ),
        Rule(
            replace(
                alarms.DATABASE_CONNECTIONS_HIGH,
                meaning="More than 80 % of PostgreSQL's connections are open: soon new ones are refused.",
                series=(),
                period_s=60,
                periods=6,
                datapoints=6,
            ),
            "100 * sum(pg_stat_activity_count) / max(pg_settings_max_connections)",
        ),
        # The queue's own word on its age is missing: messages that wait now as an hour ago, and none that was
        # taken meanwhile, are an hour old.
        Rule(
            replace(alarms.QUEUE_AGE_HIGH, series=(), expression=None),
            "max(max_over_time(capstone_queue_age_seconds[5m])) or max(3601 * "
            f"({_MESSAGES} > bool 0) * ({_MESSAGES} offset 1h > bool 0)) "
            "* (sum(increase(capstone_uploads_received_total[1h])) == bool 0)",
        ),
    )
}
_ONE_HOST = "database and services share one host here, which HostCpuHigh and HostMemoryHigh watch"
LEFT_OUT: Mapping[str, str] = {
    alarms.DATABASE_SILENT.name: "DatabaseDown asks the database itself",
    alarms.LOAD_BALANCER_5XX.name: "WebserverErrors counts at the webserver, without a load balancer",
    **dict.fromkeys(
        (
            alarms.DAEMON_CPU_HIGH.name,
            alarms.DAEMON_MEMORY_HIGH.name,
            alarms.WEBSERVER_CPU_HIGH.name,
            alarms.WEBSERVER_MEMORY_HIGH.name,
            alarms.DATABASE_CPU_HIGH.name,
        ),
        _ONE_HOST,
    ),
}

# Causes before their effects.
RULES: tuple[Rule, ...] = (
    DATABASE_DOWN,
    *(MEASURED_OTHERWISE.get(alarm.name, Rule(alarm)) for alarm in ALARMS if alarm.name not in LEFT_OUT),
    WEBSERVER_ERRORS,
    HOST_CPU_HIGH,
    HOST_MEMORY_HIGH,
    EXPORTER_DOWN,
)
