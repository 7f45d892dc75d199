"""Prometheus, Alertmanager and exporters beside the local stack, as far as their programs are installed here.

Debian has them as `prometheus`, `prometheus-alertmanager`, `prometheus-node-exporter` and
`prometheus-postgres-exporter`. What is missing is left out by name; nothing of the stack needs any of them.
"""

from __future__ import annotations

import secrets
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from capstone_dagster.catalog.open_names import JOB
from capstone_dagster.catalog.open_stack import RULES
from capstone_dagster.catalog.render.prometheus import alertmanager_file, prometheus_file, rules_file
from capstone_dagster.local.processes import LOOPBACK, ChildProcess, Command, free_port, start

PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"
NODE_EXPORTER, POSTGRES_EXPORTER = "prometheus-node-exporter", "prometheus-postgres-exporter"
_MONITOR = "capstone_monitor"
_START_DEADLINE_S = 60.0


@dataclass
class Observers:
    """What runs.

    Attributes:
        links: what people open, by name.
        missing: programs that are not installed.
    """

    links: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    processes: list[ChildProcess] = field(default_factory=list)

    def stop(self) -> None:
        for process in self.processes:
            process.begin_stop()
        for process in self.processes:
            process.stop()


def start_observers(
    state: Path,
    environment: Mapping[str, str],
    keep_open: Sequence[int] = (),
    *,
    operators: Mapping[str, Any] | None = None,
    targets: Mapping[str, str] | None = None,
    adapt: Callable[[str], str] = lambda text: text,
) -> Observers:
    """Start what is installed, and return when its pages answer.

    Args:
        state: where they keep what they remember.
        environment: of the stack; names the database and the address of `/metrics`.
        operators: as in `alertmanager_file`; None: the stack's own topic of alerts.
        targets: what is scraped in place of the stack and the exporters: job → `host:port`.
        adapt: changes configuration files before they are used.
    """
    found = {
        name: shutil.which(name) for name in (PROMETHEUS, ALERTMANAGER, NODE_EXPORTER, POSTGRES_EXPORTER)
    }
    running = Observers(missing=[name for name, path in found.items() if path is None])
    folder, logs = state / "observers", state / "logs"
    folder.mkdir(parents=True, exist_ok=True)

    def run(name: str, arguments: Sequence[str], **variables: str) -> str:
        """Start a program on a free port; returns its address."""
        program = found[name]
        assert program is not None
        address = f"{LOOPBACK}:{free_port()}"
        argv = [program, f"--web.listen-address={address}", *arguments]
        command = Command(name, argv, logs / f"{name}.log", {**environment, **variables})
        running.processes.append(start(command, keep_open))
        return address

    try:
        if targets is None:
            targets = {JOB: environment["CAPSTONE_UI_URL"].removeprefix("http://")}
            if found[NODE_EXPORTER]:
                targets["node"] = run(NODE_EXPORTER, [])
            if found[POSTGRES_EXPORTER]:
                source = monitoring_login(environment["CAPSTONE_DATABASE_URL"])
                targets["postgres"] = run(POSTGRES_EXPORTER, [], DATA_SOURCE_NAME=source)
        alertmanager = ""
        if found[ALERTMANAGER]:
            config = folder / "alertmanager.yml"
            config.touch(mode=0o600)
            config.write_text(adapt(alertmanager_file(RULES, operators or _topic(environment))))
            arguments = [f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}"]
            alertmanager = run(ALERTMANAGER, [*arguments, "--cluster.listen-address="])
            running.links["Alertmanager"] = f"http://{alertmanager}"
        if found[PROMETHEUS]:
            (folder / "rules.yml").write_text(adapt(rules_file(RULES)))
            config = folder / "prometheus.yml"
            config.write_text(adapt(prometheus_file(targets, alertmanager or f"{LOOPBACK}:9093")))
            arguments = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"]
            running.links["Prometheus"] = f"http://{run(PROMETHEUS, arguments)}"
        for link in running.links.values():
            running.processes[-1].wait_until(lambda link=link: _silent(f"{link}/-/ready"), _START_DEADLINE_S)  # type: ignore[misc]
    except BaseException:
        running.stop()
        raise
    return running


def monitoring_login(url: str) -> str:
    """A login that may read PostgreSQL's statistics and nothing else, with a new password, as a libpq URL.

    The stack's own has a hash of one iteration, which the exporter's driver refuses.
    """
    import psycopg
    from psycopg import sql

    owner = sa.make_url(url).set(drivername="postgresql")
    password = secrets.token_urlsafe(24)
    role = sql.Identifier(_MONITOR)
    with psycopg.connect(owner.render_as_string(hide_password=False)) as connection:
        connection.execute("SET scram_iterations = 4096")
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [_MONITOR]).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        connection.execute(sql.SQL("GRANT pg_monitor TO {}").format(role))
    login = owner.set(username=_MONITOR, password=password).update_query_dict({"sslmode": "disable"})
    return login.render_as_string(hide_password=False)


def _topic(environment: Mapping[str, str]) -> dict[str, Any]:
    """Notices to the topic that the daemon's own alerts use; locally `capstone alerts` shows both."""
    keys = {
        "region": environment["AWS_DEFAULT_REGION"],
        "access_key": environment["AWS_ACCESS_KEY_ID"],
        "secret_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    return {
        "sns_configs": [
            {
                "topic_arn": environment["CAPSTONE_ALERT_TOPIC_ARN"],
                "api_url": environment["AWS_ENDPOINT_URL"],
                "sigv4": keys,
                "send_resolved": True,
                "subject": "{{ .Status }}: {{ .GroupLabels.incident }}",
                "message": "{{ range .Alerts }}{{ .Labels.alertname }}: {{ .Annotations.summary }}\n"
                "Look at: {{ .Annotations.look_at }}\nRunbook: {{ .Annotations.runbook }}\n{{ end }}",
            }
        ]
    }


def _silent(url: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=5).close()
    except (urllib.error.URLError, OSError) as error:
        return f"{url} does not answer: {error}"
    return None
