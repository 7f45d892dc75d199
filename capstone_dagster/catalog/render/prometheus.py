"""The list's alarms as Prometheus' rules, and how Alertmanager makes one notice of one incident.

An alert carries the label `incident`, by which notices are grouped. What explains an incident keeps its
notices back: `composites` decides what explains what, and each such composite becomes an alert of its own,
`…Suppressed`, which fires while a cause does and for the extension afterwards. Alertmanager inhibits by it
and sends it to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from capstone_dagster.catalog.composites import composites
from capstone_dagster.catalog.model import Alarm, Composite
from capstone_dagster.catalog.open_stack import Rule

from .promql import duration, of_expression, of_series

EVALUATED_EVERY_S = 15
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
    waits = {_incident(by_name[name]): each.wait_s for each in suppressed for name in each.any_of}
    groups = [
        # First, so that a cause keeps an effect back that is evaluated in the same round.
        _group("causes", [_suppression(each, suppressors, by_name) for each in suppressed]),
        _group("alarms", [_alert(rule, waits) for rule in rules]),
    ]
    return _RENDERED + dump({"groups": groups})


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


def _alert(rule: Rule, waits: dict[str, int]) -> dict[str, Any]:
    alarm = rule.alarm
    alert: dict[str, Any] = {"alert": alarm.name, "expr": condition(rule)}
    # Windows slide: `datapoints` of them in a row are true as long as the others take.
    if alarm.datapoints > 1:
        alert["for"] = duration((alarm.datapoints - 1) * alarm.period_s)
    if alarm.periods > alarm.datapoints:
        alert["keep_firing_for"] = duration((alarm.periods - alarm.datapoints) * alarm.period_s)
    incident = _incident(alarm)
    labels = {"incident": incident, "role": "notice", "severity": alarm.severity, "owner": alarm.owner}
    if incident in waits:
        labels["wait"] = duration(waits[incident])
    return {
        **alert,
        "labels": labels,
        "annotations": {
            "summary": alarm.meaning,
            "look_at": "; ".join(alarm.look_at),
            "runbook": f"docs/runbook.md#{alarm.runbook}",
        },
    }


def _suppression(
    composite: Composite, suppressors: dict[str, Composite], by_name: dict[str, Alarm]
) -> dict[str, Any]:
    assert composite.suppressor is not None
    found = suppressors.get(composite.suppressor)
    causes = (composite.suppressor,) if found is None else found.any_of
    incident = _incident(by_name[composite.any_of[0]])
    return {
        "alert": f"{incident}Suppressed",
        "expr": f'count(ALERTS{{alertstate="firing",role="notice",incident=~"{"|".join(causes)}"}}) > 0',
        "keep_firing_for": duration(composite.extension_s),
        "labels": {"incident": incident, "role": "suppressor", "severity": "none"},
        "annotations": {"summary": f"Something fires that explains {incident}."},
    }


def _group(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "interval": duration(EVALUATED_EVERY_S), "rules": rules}


def _incident(alarm: Alarm) -> str:
    return alarm.incident or alarm.name
