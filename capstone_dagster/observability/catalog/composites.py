"""One notice for one incident: alarms that another one explains notify through a composite, which waits.

A rule such as "this one and not its cause" would not do: the effect is often seen before its cause, would be
told of, and then be taken back. CloudWatch's suppression waits for the cause before it tells anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .model import Alarm, Composite


def composites(alarms: Sequence[Alarm]) -> tuple[Composite, ...]:
    """What notifies in place of each alarm that has causes, and what keeps it back, causes first.

    Raises:
        ValueError: a cause is no alarm of the list, is caused by its own effect, or is not always there.
    """
    by_name = {each.name: each for each in alarms}
    made: list[Composite] = []
    for alarm in alarms:
        if not alarm.causes:
            continue
        causes = [by_name[name] for name in _all_causes(alarm, by_name)]
        suppressor = causes[0].name
        if len(causes) > 1:
            suppressor = f"{alarm.name}Causes"
            made.append(
                Composite(
                    suppressor,
                    f"Something rings that explains {alarm.name}.",
                    tuple(each.name for each in causes),
                    notifies=False,
                    condition=alarm.condition,
                )
            )
        made.append(
            Composite(
                notifier(alarm),
                alarm.meaning,
                (alarm.name,),
                suppressor,
                # A cause may see the same fault that much later, and its effect may go on that much longer.
                wait_s=max(each.period_s * each.datapoints for each in causes),
                extension_s=alarm.period_s * alarm.periods,
                condition=alarm.condition,
            )
        )
    return tuple(made)


def notifier(alarm: Alarm) -> str:
    """Name of the alarm by whose change of state people are told: its composite's where it has one."""
    return f"{alarm.name}Unexplained" if alarm.causes else alarm.name


def _all_causes(alarm: Alarm, by_name: Mapping[str, Alarm]) -> list[str]:
    found: dict[str, None] = {}
    to_visit = list(alarm.causes)
    while to_visit:
        name = to_visit.pop(0)
        if name not in by_name:
            raise ValueError(f"{alarm.name}: its cause {name} is no alarm of the list")
        if name == alarm.name:
            raise ValueError(f"{alarm.name} causes itself, by way of {', '.join(found)}")
        if by_name[name].condition not in (None, alarm.condition):
            raise ValueError(f"{alarm.name}: its cause {name} exists only under {by_name[name].condition}")
        if name not in found:
            found[name] = None
            to_visit += by_name[name].causes
    return list(found)
