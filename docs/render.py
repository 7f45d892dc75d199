"""Renders what the code knows best: parts of the documentation, between their markers, and two templates.

`make docs` writes them; a test runs this with `--check`, which changes nothing and fails if they are stale.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import catalog_tables
from from_code import assets, automation, command_list, commands, example

from capstone_dagster.assets.declared.checks import SEVERITIES, detections_checks, events_checks
from capstone_dagster.catalog.alarms import ALARMS, ANOMALY_ALARMS
from capstone_dagster.catalog.dashboard import DASHBOARDS, OPERATIONS
from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.catalog.metrics import METRICS
from capstone_dagster.catalog.open_stack import RULES
from capstone_dagster.catalog.queries import QUERIES
from capstone_dagster.catalog.render.cloudformation import logs_template, observability_template
from capstone_dagster.catalog.render.grafana import dashboard_file
from capstone_dagster.catalog.render.prometheus import alertmanager_file, prometheus_file, rules_file
from capstone_dagster.failures.classes import POLICIES
from capstone_dagster.settings import Settings, variable_name

ROOT = Path(__file__).resolve().parent.parent


def settings_table() -> str:
    """Every setting: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{variable_name(name)}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(rows)


def failures_table() -> str:
    """Every failure class: whether trying again can help, and what to do."""
    rows = ["| class | passes by itself? | what to do |", "|---|---|---|"]
    for failure, policy in POLICIES.items():
        page = f"[`{failure}`](runbook.md#{failure})"
        rows.append(f"| {page} | {'can' if policy.transient else 'no'} | {policy.remedy} |")
    return "\n".join(rows)


def checks_table() -> str:
    """Every asset check: of which asset, how bad a failure is, what holds where it passes."""
    rows = ["| asset | check | a failure is | holds if it passes |", "|---|---|---|---|"]
    for checks in (detections_checks, events_checks):
        for spec in checks.check_specs:
            severity = "an error, events are not made" if spec.blocking else SEVERITIES[spec.name]
            rows.append(
                f"| `{spec.asset_key.to_user_string()}` | `{spec.name}` | {severity} | {spec.description} |"
            )
    return "\n".join(rows)


PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"commands": command_list},
    ROOT / "docs" / "checks.md": {"checks": checks_table},
    ROOT / "docs" / "failures.md": {"failures": failures_table},
    ROOT / "docs" / "reference.md": {
        "settings": settings_table,
        "commands": commands,
        "assets": assets,
        "automation": automation,
    },
    ROOT / "docs" / "testing.md": {
        "conftest": lambda: example("conftest.py"),
        "rule": lambda: example("loitering.py"),
        "rule test": lambda: example("test_loitering.py"),
        "asset": lambda: example("person_seconds.py"),
        "asset test": lambda: example("test_person_seconds.py"),
    },
    ROOT / "docs" / "observability.md": {
        "log groups": lambda: catalog_tables.log_groups(LOG_GROUPS),
        "metrics": lambda: catalog_tables.metrics(METRICS),
        "alarms": lambda: catalog_tables.alarms(ALARMS, ANOMALY_ALARMS),
        "notifiers": lambda: catalog_tables.notifiers(ALARMS),
        "dashboard": lambda: catalog_tables.dashboard(OPERATIONS),
        "queries": lambda: catalog_tables.queries(QUERIES),
    },
}
# Rendered from the first line to the last.
WHOLE = {
    ROOT / "infra" / "logs.yaml": lambda: logs_template(LOG_GROUPS),
    ROOT / "infra" / "observability.yaml": lambda: observability_template(
        ALARMS, ANOMALY_ALARMS, DASHBOARDS, QUERIES
    ),
    ROOT / "observability" / "rules.yml": lambda: rules_file(RULES),
    **{
        ROOT / "observability" / "grafana" / "dashboards" / f"{each.name}.json": partial(dashboard_file, each)
        for each in DASHBOARDS
    },
    ROOT / "observability" / "prometheus.yml": lambda: prometheus_file(
        {
            "capstone": "127.0.0.1:3000",
            "node": "127.0.0.1:9100",
            "postgres": "127.0.0.1:9187",
            "cadvisor": "127.0.0.1:8080",
        },
        "127.0.0.1:9093",
    ),
    ROOT / "observability" / "alertmanager.yml": lambda: alertmanager_file(RULES),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file would change")
    check = parser.parse_args().check
    rendered = {path: render() for path, render in WHOLE.items()}
    rendered |= {path: _with_parts(path, parts) for path, parts in PARTS.items()}
    stale = []
    for path, text in rendered.items():
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text)
    if stale:
        print(("stale, run `make docs`: " if check else "wrote ") + ", ".join(stale))
    return int(check and bool(stale))


def _with_parts(path: Path, parts: Mapping[str, Callable[[], str]]) -> str:
    text = path.read_text()
    for name, render in parts.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        part = f"{opening}\n{render()}\n{closing}"
        pattern = re.escape(opening) + ".*?" + re.escape(closing)
        text, found = re.subn(pattern, lambda _, part=part: part, text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"{path} should hold the markers of {name} once, found {found}")
    return text


def _shown(default: Any) -> str:
    if default is None or default in ("", ()):
        return ""
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return f"`{text.replace('|', '&#124;')}`"


if __name__ == "__main__":
    sys.exit(main())
