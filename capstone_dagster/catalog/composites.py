"""One notice for one incident, by composites that notify in place of alarms.

All signs of one incident lead to one notice, by a composite that fires while any of them does. An alarm that
others can explain notifies by a composite that waits for them: a rule such as "this one and not its cause"
would not do, because the effect is often seen before its cause, would be notified, and then be revoked.
CloudWatch's suppression waits for the cause before it notifies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .model import Alarm, Composite


def composites(alarms: Sequence[Alarm]) -> tuple[Composite, ...]:
    """What notifies in place of alarms that have fellow signs or causes, and what keeps that back; each
    stands after all that it refers to.

    Raises:
        ValueError: a cause does not stand in the list before its effect, or is not always there.
    """
    groups: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        groups.setdefault(notifier(alarm), []).append(alarm)
    # By each alarm that is dealt with: what rings when it does, and what explains it in turn.
    explains: dict[str, tuple[str, ...]] = {}
    made: list[Composite] = []
    for alarm in alarms:
        name = notifier(alarm)
        signs = groups[name]
        if alarm is not signs[-1]:
            continue  # notified with the last of its group
        causes = _causes(signs, alarms, explains)
        if alarm.incident or causes:
            made += _notifying(name, signs, causes)
        for each in signs:
            explains[each.name] = (alarm.incident or alarm.name, *causes)
    return tuple(made)


def notifier(alarm: Alarm) -> str:
    """Name of the alarm that notifies: its composite if it has one, else itself."""
    return alarm.incident or (f"{alarm.name}Unexplained" if alarm.causes else alarm.name)


def _causes(
    signs: Sequence[Alarm], alarms: Sequence[Alarm], explains: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Names of what explains any of the signs, causes of causes included."""
    conditions = {each.name: each.condition for each in alarms}
    found: dict[str, None] = {}
    for sign in signs:
        for cause in sign.causes:
            if cause not in explains:
                raise ValueError(f"{sign.name}: its cause {cause} must stand before it in the list")
            if conditions[cause] not in (None, sign.condition):
                raise ValueError(f"{sign.name}: its cause {cause} exists only under {conditions[cause]}")
            found |= dict.fromkeys(explains[cause])
    return tuple(found)


def _notifying(name: str, signs: Sequence[Alarm], causes: Sequence[str]) -> list[Composite]:
    made = []
    suppressor = causes[0] if causes else None
    if len(causes) > 1:
        suppressor = f"{signs[0].incident or signs[0].name}Causes"
        made.append(
            Composite(
                suppressor,
                f"Something rings that explains {signs[0].incident or signs[0].name}.",
                tuple(causes),
                notifies=False,
                condition=signs[0].condition,
            )
        )
    extensions = (
        each.extension_s if each.extension_s is not None else each.period_s * each.periods + each.wait_s
        for each in signs
    )
    made.append(
        Composite(
            name,
            signs[0].meaning,
            tuple(each.name for each in signs),
            suppressor,
            wait_s=max(each.wait_s for each in signs) if suppressor else 0,
            extension_s=max(extensions) if suppressor else 0,
            condition=signs[0].condition,
        )
    )
    return made
