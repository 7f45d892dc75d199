"""A rule of our own: who stays longer than somebody who passes by."""

from collections.abc import Iterable

from capstone_dagster.analysis import Event


def loitering(events: Iterable[Event], *, at_least_s: float = 30.0) -> list[Event]:
    """Those persons who stay so long, longest first."""
    found = [
        event
        for event in events
        if event.label == "person" and event.end_ms - event.start_ms >= at_least_s * 1000
    ]
    return sorted(found, key=lambda event: event.start_ms - event.end_ms)
