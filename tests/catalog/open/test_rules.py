"""Prometheus' rules: each fires for its fault, clears afterwards, and stays silent without it."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from capstone_dagster.catalog import alarms
from capstone_dagster.catalog.alarms import ALARMS
from capstone_dagster.catalog.model import AwsMetric, Series
from capstone_dagster.catalog.open_stack import LEFT_OUT, MEASURED_OTHERWISE, RULES
from capstone_dagster.catalog.render.prometheus import condition, rules_file
from capstone_dagster.catalog.render.promql import NotMeasured, of_expression, of_series

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus"
)
STEP_S = 15
A_MINUTE = 60 // STEP_S
QUIET_MINUTES = 75


@dataclass(frozen=True)
class Values:
    """A series each minute while all is well, and during the fault; a counter's are what it rises by."""

    well: float
    fault: float
    counts: bool = False

    def notation(self, minutes: int) -> str:
        """In promtool's notation: well, the fault, well again for more than any rule looks back."""
        quiet, faulty = QUIET_MINUTES * A_MINUTE, minutes * A_MINUTE
        if not self.counts:
            return f"{self.well}+0x{quiet} {self.fault}+0x{faulty} {self.well}+0x{4 * quiet}"
        slow, fast = self.well / A_MINUTE, self.fault / A_MINUTE
        began, ended = slow * quiet, slow * quiet + fast * faulty
        return f"0+{slow}x{quiet} {began}+{fast}x{faulty} {ended}+{slow}x{4 * quiet}"


@dataclass(frozen=True)
class Fault:
    """What Prometheus scrapes when an alarm has a reason.

    Attributes:
        minutes: how long it lasts; it fires by its end.
        harmless: lesser values, by which it must not fire.
    """

    series: Mapping[str, Values]
    minutes: int = 20
    harmless: Mapping[str, Values] | None = None


def counted(name: str, fault: float, harmless: float, well: float = 0, minutes: int = 20) -> Fault:
    name = f"capstone_{name}_total"
    return Fault({name: Values(well, fault, True)}, minutes, {name: Values(well, harmless, True)})


def looked_at(name: str, fault: float, harmless: float, well: float = 0, minutes: int = 20) -> Fault:
    return Fault({name: Values(well, fault)}, minutes, {name: Values(well, harmless)})


def paused(failure_class: str) -> Fault:
    name = "capstone_intake_paused"
    return looked_at(f'{name}{{failure_class="{failure_class}"}}', 1, 0)


ENDED = "capstone_runs_succeeded_total"
FAILED = 'capstone_runs_failed_total{failure_class="internal"}'
UPLOADS = 'capstone_queue_messages{queue="uploads"}'
RECEIVED = "capstone_uploads_received_total"
OK, ERROR = (f'capstone_http_requests_total{{code="{code}"}}' for code in ("2xx", "5xx"))
FAULTS: Mapping[str, Fault] = {
    "DatabaseDown": looked_at("pg_up", 0, 1, well=1),
    "DatabaseConnectionFailure": counted("database_connection_failures", 2, 0.5),
    "IntakePausedForDatabase": paused("database-unavailable"),
    "S3AccessDenied": counted("s3_access_denied", 12, 4),
    "IntakePausedForPermission": paused("permission-denied"),
    "DuplicateJobDetected": counted("duplicate_jobs", 1, 0),
    "IntakePausedForDuplicates": paused("duplicate-job"),
    "DaemonHeartbeatLost": looked_at("capstone_daemon_silence_seconds", 400, 90, well=20),
    "WebserverHeartbeatLost": looked_at('up{job="capstone"}', 0, 1, well=1),
    "SensorTicksFailing": counted("sensor_tick_errors", 1, 0.2),
    "DatabaseConnectionsHigh": Fault(
        {"pg_stat_activity_count": Values(20, 85), "pg_settings_max_connections": Values(100, 100)},
        harmless={"pg_stat_activity_count": Values(20, 79), "pg_settings_max_connections": Values(100, 100)},
    ),
    "DatabaseStorageLow": looked_at('node_filesystem_avail_bytes{mountpoint="/"}', 1e9, 3e9, well=9e9),
    "IntakePaused": Fault(
        {'capstone_intake_paused{failure_class="gpu-error"}': Values(0, 1)},
        # Who paused it by hand knows.
        harmless={'capstone_intake_paused{failure_class="operator"}': Values(0, 1)},
    ),
    "HighBatchJobFailureRate": Fault(
        {ENDED: Values(1, 0.5, True), FAILED: Values(0, 0.5, True)},
        minutes=40,
        # Four failures among many runs, as many as broken videos make.
        harmless={ENDED: Values(1, 1, True), FAILED: Values(0, 0.1, True)},
    ),
    "LongRunningJobs": looked_at("capstone_longest_run_over_limit", 1.1, 0.95, well=0.5),
    "QueueAgeHigh": looked_at("capstone_queue_age_seconds", 3700, 3500, well=5),
    "NoSuccess": looked_at("capstone_seconds_without_success", 7300, 7100),
    "DeadLettersPresent": looked_at("capstone_dead_letters", 1, 0),
    "ReexecutionsUsedUp": counted("reexecutions_refused", 0.2, 0),
    "CpuFallback": counted("cpu_fallbacks", 0.2, 0),
    "NoticesFailing": counted("notices_failed", 2, 0.5),
    "OutboxRefused": counted("outbox_refused", 6, 2),
    "OutboxLate": looked_at("capstone_outbox_age_seconds", 700, 500),
    "TelemetryDropped": counted("telemetry_dropped", 10, 0),
    "WebserverErrors": Fault(
        {OK: Values(60, 60, True), ERROR: Values(0, 12, True)},
        harmless={OK: Values(60, 60, True), ERROR: Values(0, 5, True)},
    ),
    "HostCpuHigh": Fault(
        {'node_cpu_seconds_total{mode="idle"}': Values(50, 6, True)},
        harmless={'node_cpu_seconds_total{mode="idle"}': Values(50, 15, True)},
    ),
    "HostMemoryHigh": Fault(
        {"node_memory_MemAvailable_bytes": Values(8, 2), "node_memory_MemTotal_bytes": Values(16, 16)},
        harmless={
            "node_memory_MemAvailable_bytes": Values(8, 3),
            "node_memory_MemTotal_bytes": Values(16, 16),
        },
    ),
    "ExporterDown": looked_at('up{job="node"}', 0, 1, well=1),
}
# A queue that nobody empties while the sensor, which would say how old its messages are, is off.
FORGOTTEN = Fault({UPLOADS: Values(0, 3), RECEIVED: Values(1, 0, True)}, minutes=150)
BUSY = {UPLOADS: Values(0, 3), RECEIVED: Values(1, 5, True)}


def promtool_test(name: str, series: Mapping[str, Values], minutes: int, fires: bool) -> dict[str, object]:
    """One of promtool's tests: silent before, firing at the end of the fault, silent long after."""
    ends = QUIET_MINUTES + minutes

    def at(minute: int, firing: bool) -> dict[str, object]:
        query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
        return {
            "expr": query,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": "{}", "value": int(firing)}],
        }

    return {
        "name": f"{name}{'' if fires else ', harmless'}",
        "interval": f"{STEP_S}s",
        "input_series": [
            {"series": each, "values": values.notation(minutes)} for each, values in series.items()
        ],
        "promql_expr_test": [at(QUIET_MINUTES - 1, False), at(ends - 1, fires), at(ends + 150, False)],
    }


@needs_promtool
@pytest.mark.parametrize("name", [rule.alarm.name for rule in RULES])
def test_rule_fires_for_its_fault_clears_and_stays_silent(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    tests = [promtool_test(name, fault.series, fault.minutes, True)]
    if fault.harmless is not None:
        tests.append(promtool_test(name, fault.harmless, fault.minutes, False))
    if name == "QueueAgeHigh":
        tests.append(promtool_test(name, FORGOTTEN.series, FORGOTTEN.minutes, True))
        tests.append(promtool_test(name, BUSY, FORGOTTEN.minutes, False))
    said = promtool_says(tmp_path, tests, only=name)
    assert said.returncode == 0, said.stdout + said.stderr


@needs_promtool
def test_rules_that_know_nothing_stay_silent(tmp_path: Path) -> None:
    """Neither the first minute of a webserver nor its absence is a fault of what it reports."""
    zeros = {
        f"capstone_{name}_total": Values(0, 0, True)
        for name in ("heartbeat", "runs_failed", "runs_succeeded")
    }
    silent = [
        {
            "interval": f"{STEP_S}s",
            "input_series": [
                {"series": name, "values": "_x400 " + values.notation(5)} for name, values in zeros.items()
            ],
            "promql_expr_test": [
                {"expr": 'ALERTS{role!="suppressor"}', "eval_time": f"{minute}m", "exp_samples": []}
                for minute in (1, 99, 101, 103)
            ],
        }
    ]
    said = promtool_says(tmp_path, silent)
    assert said.returncode == 0, said.stdout + said.stderr


@needs_promtool
def test_three_events_count_as_three(tmp_path: Path) -> None:
    """`increase` extrapolates: 3 at once are 3.16 in five minutes, which is more than 3."""
    [rule] = [each for each in RULES if each.alarm is alarms.NOTICES_FAILING]
    at_once = {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": "capstone_notices_failed_total", "values": "100x100 103x100"}],
        # Between two scrapes, as evaluations are.
        "promql_expr_test": [{"expr": condition(rule), "eval_time": "27m7s", "exp_samples": []}],
    }
    said = promtool_says(tmp_path, [at_once], only="NoticesFailing")
    assert said.returncode == 0, said.stdout + said.stderr


def promtool_says(
    folder: Path, tests: list[dict[str, object]], only: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Its answer to tests of all rules, or of one."""
    body = yaml.safe_load(rules_file(RULES))
    for group in body["groups"]:
        group["rules"] = [rule for rule in group["rules"] if only in (None, rule["alert"])]
    assert only is None or sum(len(group["rules"]) for group in body["groups"]) == 1
    (folder / "rules.yml").write_text(yaml.safe_dump(body))
    body = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(body))
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_every_alarm_has_a_rule_or_a_reason() -> None:
    names = {alarm.name for alarm in ALARMS}
    ruled = {rule.alarm.name for rule in RULES}
    assert names - ruled == set(LEFT_OUT)
    assert set(MEASURED_OTHERWISE) <= names
    assert not set(LEFT_OUT) & set(MEASURED_OTHERWISE)


def test_rules_have_pages_in_the_runbook() -> None:
    text = (Path(__file__).parents[3] / "docs" / "runbook.md").read_text()
    assert [rule.alarm.runbook for rule in RULES if f'<a id="{rule.alarm.runbook}"></a>' not in text] == []


def test_a_metric_without_an_equivalent_is_refused() -> None:
    metric = AwsMetric("AWS/RDS", "CPUUtilization", "Percent", {})
    with pytest.raises(NotMeasured, match="CPUUtilization"):
        of_series(Series("cpu", metric, "Average"), "5m")


def test_an_expression_without_a_translation_is_refused() -> None:
    with pytest.raises(ValueError, match="no translation"):
        of_expression("ANOMALY(failures)", alarms.NOTICES_FAILING.series, "5m")


def test_metric_math_becomes_promql() -> None:
    [rule] = [each for each in RULES if each.alarm is alarms.INTAKE_PAUSED]
    whole, by_hand = "capstone_intake_paused", 'capstone_intake_paused{failure_class="operator"}'
    most = "(max(max_over_time({}[5m])) or vector(0))"
    assert condition(rule) == f"(({most.format(whole)} - {most.format(by_hand)})) > 0"
