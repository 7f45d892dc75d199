"""The list's alarms as Prometheus' rules, and how Alertmanager makes one notice of one incident.

`composites` decides which alarms are signs of one incident and what explains what; each of its composites
becomes an alert on alerts. A notice is the alert of an incident, or of an alarm that stands alone; signs
notify nobody. While a `…Suppressed` fires, which is as long as a cause does and for the extension afterwards,
Alertmanager inhibits the notice of the same `incident`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from capstone_dagster.catalog.composites import composites, notifier
from capstone_dagster.catalog.model import Alarm, Composite
from capstone_dagster.catalog.open_stack import Rule

from .promql import duration, of_expression, of_series

EVALUATED_EVERY_S = 15
# What an alert is: a notice to people, one of an incident's signs, or what keeps a notice back.
NOTICE, SIGN, SUPPRESSOR = "notice", "sign", "suppressor"
_RENDERED = "# Rendered by `make docs` from capstone_dagster/catalog: change it there.\n"
_COMPARED = {
    "GreaterThanThreshold": ">",
    "GreaterThanOrEqualToThreshold": ">=",
    "LessThanThreshold": "<",
    "LessThanOrEqualToThreshold": "<=",
}


def rules_file(rules: Sequence[Rule]) -> str:
    """`observability/rules.yml`."""
    alarms = [rule.alarm for rule in rules]
    by_name = {alarm.name: alarm for alarm in alarms}
    made = composites(alarms)
    suppressors = {each.name: each for each in made if not each.notifies}
    suppressed = [each for each in made if each.suppressor]
    groups = [
        _group("alarms", [_alert(rule) for rule in rules]),
        _group("causes", [_suppression(each, suppressors, by_name) for each in suppressed]),
        _group("incidents", [_notice(each, by_name) for each in made if each.notifies]),
    ]
    return _RENDERED + dump({"groups": groups})


def alertmanager_file(rules: Sequence[Rule], operators: Mapping[str, Any] | None = None) -> str:
    """`alertmanager.yml`: one notice for each incident, held back as long as its causes may take to be seen.

    Args:
        operators: how operators receive notices, as integrations of an Alertmanager receiver; None: they look
            at its page.
    """
    alerts = [rule for group in yaml.safe_load(rules_file(rules))["groups"] for rule in group["rules"]]
    waits = sorted({alert["labels"]["wait"] for alert in alerts if "wait" in alert["labels"]})
    body = {
        "route": {
            "receiver": "operators",
            "group_by": ["incident"],
            "group_wait": "15s",
            "group_interval": "1m",
            "repeat_interval": "4h",
            "routes": [
                {"matchers": [f'role!="{NOTICE}"'], "receiver": "nobody"},
                *({"matchers": [f'wait="{wait}"'], "group_wait": wait} for wait in waits),
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'role="{SUPPRESSOR}"'],
                "target_matchers": [f'role="{NOTICE}"'],
                "equal": ["incident"],
            }
        ],
        "receivers": [{"name": "nobody"}, {"name": "operators", **(operators or {})}],
    }
    return _RENDERED + dump(body)


def prometheus_file(targets: Mapping[str, str], alertmanager: str, rules: str = "rules.yml") -> str:
    """`prometheus.yml`.

    Args:
        targets: job → `host:port` that is scraped.
        alertmanager: its `host:port`.
        rules: path of the rules, as seen from this file.
    """
    interval = duration(EVALUATED_EVERY_S)
    body = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [rules],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
        ],
    }
    return _RENDERED + dump(body)


def dump(body: Any) -> str:
    """YAML in block style, in the order given."""
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110)


def condition(rule: Rule) -> str:
    """The alarm's condition as PromQL."""
    alarm, period = rule.alarm, duration(rule.alarm.period_s)
    if rule.promql is not None:
        value = rule.promql
    elif alarm.expression is not None:
        value = of_expression(alarm.expression, alarm.series, period)
    else:
        [series] = alarm.series
        value = of_series(series, period)
    return f"({value}) {_COMPARED[alarm.comparison]} {alarm.threshold:g}"


def _alert(rule: Rule) -> dict[str, Any]:
    alarm = rule.alarm
    alert: dict[str, Any] = {"alert": alarm.name, "expr": condition(rule)}
    # Windows slide: `datapoints` of them in a row are true as long as the others take.
    if alarm.datapoints > 1:
        alert["for"] = duration((alarm.datapoints - 1) * alarm.period_s)
    if alarm.periods > alarm.datapoints:
        alert["keep_firing_for"] = duration((alarm.periods - alarm.datapoints) * alarm.period_s)
    role = NOTICE if notifier(alarm) == alarm.name else SIGN
    return {**alert, "labels": _labels(alarm, role), "annotations": _annotations(alarm)}


def _notice(composite: Composite, by_name: dict[str, Alarm]) -> dict[str, Any]:
    first = by_name[composite.any_of[0]]
    labels = _labels(first, NOTICE)
    if composite.suppressor:
        labels["wait"] = duration(composite.wait_s)
    return {
        "alert": composite.name,
        "expr": f'count(ALERTS{{alertstate="firing",role="{SIGN}",incident="{_incident(first)}"}}) > 0',
        "labels": labels,
        "annotations": _annotations(first),
    }


def _labels(alarm: Alarm, role: str) -> dict[str, str]:
    return {"incident": _incident(alarm), "role": role, "severity": alarm.severity, "owner": alarm.owner}


def _annotations(alarm: Alarm) -> dict[str, str]:
    return {
        "summary": alarm.meaning,
        "look_at": "; ".join(alarm.look_at),
        "runbook": f"docs/runbook.md#{alarm.runbook}",
    }


def _suppression(
    composite: Composite, suppressors: dict[str, Composite], by_name: dict[str, Alarm]
) -> dict[str, Any]:
    assert composite.suppressor is not None
    found = suppressors.get(composite.suppressor)
    causes = (composite.suppressor,) if found is None else found.any_of
    incident = _incident(by_name[composite.any_of[0]])
    firing = f'alertstate="firing",role!="{SUPPRESSOR}",incident=~"{"|".join(causes)}"'
    return {
        "alert": f"{incident}Suppressed",
        "expr": f"count(ALERTS{{{firing}}}) > 0",
        "keep_firing_for": duration(composite.extension_s),
        "labels": {"incident": incident, "role": SUPPRESSOR, "severity": "none"},
        "annotations": {"summary": f"Something fires that explains {incident}."},
    }


def _group(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "interval": duration(EVALUATED_EVERY_S), "rules": rules}


def _incident(alarm: Alarm) -> str:
    return alarm.incident or alarm.name
