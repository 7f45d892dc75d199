"""One notice for one incident, by composites that notify in place of alarms.

Signs of one incident are told of once, by a composite that rings while any of them does. An alarm that others
explain is told of by a composite that waits for them: a rule such as "this one and not its cause" would not
do, because the effect is often seen before its cause, would be told of, and then be taken back. CloudWatch's
suppression waits for the cause before it tells anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .model import Alarm, Composite


def composites(alarms: Sequence[Alarm]) -> tuple[Composite, ...]:
    """What notifies in place of alarms that have fellow signs or causes, and what keeps these back, causes
    first.

    Raises:
        ValueError: a cause is no alarm of the list, is caused by its own effect, or is not always there; or
            an alarm has both an incident and causes.
    """
    by_name = {each.name: each for each in alarms}
    incidents: dict[str, list[Alarm]] = {}
    explained: list[Composite] = []
    for alarm in alarms:
        if alarm.incident:
            if alarm.causes:
                raise ValueError(f"{alarm.name}: a sign of {alarm.incident} cannot have causes of its own")
            incidents.setdefault(alarm.incident, []).append(alarm)
        elif alarm.causes:
            explained += _explained(alarm, _all_causes(alarm, by_name))
    together = (
        Composite(name, signs[0].meaning, tuple(each.name for each in signs), condition=signs[0].condition)
        for name, signs in incidents.items()
    )
    return (*together, *explained)


def notifier(alarm: Alarm) -> str:
    """Name of the alarm by whose change of state people are told: its composite's where it has one."""
    return alarm.incident or (f"{alarm.name}Unexplained" if alarm.causes else alarm.name)


def _explained(alarm: Alarm, causes: Sequence[str]) -> list[Composite]:
    made = []
    suppressor = causes[0]
    if len(causes) > 1:
        suppressor = f"{alarm.name}Causes"
        meaning = f"Something rings that explains {alarm.name}."
        made.append(Composite(suppressor, meaning, tuple(causes), notifies=False, condition=alarm.condition))
    extension_s = alarm.extension_s
    if extension_s is None:
        extension_s = alarm.period_s * alarm.periods + alarm.wait_s
    made.append(
        Composite(
            notifier(alarm),
            alarm.meaning,
            (alarm.name,),
            suppressor,
            alarm.wait_s,
            extension_s,
            condition=alarm.condition,
        )
    )
    return made


def _all_causes(alarm: Alarm, by_name: Mapping[str, Alarm]) -> list[str]:
    """The causes and their causes; in place of one sign of an incident, the composite of all of them."""
    found: dict[str, None] = {}
    to_visit = list(alarm.causes)
    while to_visit:
        name = to_visit.pop(0)
        if name not in by_name:
            raise ValueError(f"{alarm.name}: its cause {name} is no alarm of the list")
        if name == alarm.name:
            raise ValueError(f"{alarm.name} causes itself, by way of {', '.join(found)}")
        cause = by_name[name]
        if cause.condition not in (None, alarm.condition):
            raise ValueError(f"{alarm.name}: its cause {name} exists only under {cause.condition}")
        if (known_as := cause.incident or name) not in found:
            found[known_as] = None
            to_visit += cause.causes
    return list(found)
