"""Compares two analyses of one video: which events are the same, and which appeared, vanished or moved.

Pure: two lists in, a comparison out. It says what changed, not which analysis is right.

Events are paired one to one within a label. The score of a pair is `temporal IoU × (1 - distance)`, and the
pairing with the largest sum is chosen. If one analysis splits an event into pieces, the piece that fits best
is paired; the others have appeared or vanished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from .events import Event
from .tracking.association import assign

LEAST_TEMPORAL_IOU = 1 / 3
"""The IoU of two equally long events that share half of their time. Below it, most is not shared."""

FARTHEST = 1.0
"""Best boxes that are as far apart as they are wide (or high) no longer touch."""

MOVED_PLACE = 0.5
"""A best box that shifted by half its width or height shows another part of the scene."""

MOVED_MS = 1000.0
"""A smaller shift of a start or end is a detection more or less at the edge of the picture."""

# Two analyses may see the same walker best at different times, hence at different places. A pedestrian needs
# at least some four seconds to cross a picture; what they can have walked in between does not count.
_PACE_PER_S = 0.25

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same event in both analyses.

    Attributes:
        start_shift_ms, end_shift_ms: how much later it starts and ends in the second one; negative: earlier.
        place_shift: distance between the best boxes, in widths or heights of the box, minus what a person
            can have walked between the two times.
    """

    before: Event
    after: Event
    start_shift_ms: int
    end_shift_ms: int
    place_shift: float

    @property
    def tolerance_ms(self) -> float:
        """Smaller shifts do not count: starts and ends are exact to one sample interval."""
        return max(MOVED_MS, self.before.sample_interval_ms + self.after.sample_interval_ms)

    @property
    def moved(self) -> bool:
        """Whether its start, its end or its best box differs."""
        shift_ms = max(abs(self.start_shift_ms), abs(self.end_shift_ms))
        return shift_ms > self.tolerance_ms or self.place_shift > MOVED_PLACE


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two analyses, each list in order of time.

    Attributes:
        matched: events in both, moved or not.
        appeared: events only in the second one.
        vanished: events only in the first one.
    """

    matched: tuple[Pair, ...]
    appeared: tuple[Event, ...]
    vanished: tuple[Event, ...]

    @property
    def moved(self) -> tuple[Pair, ...]:
        """The matched events whose time or place differs."""
        return tuple(pair for pair in self.matched if pair.moved)

    @property
    def identical(self) -> bool:
        """Whether nothing appeared, vanished or moved."""
        return not (self.appeared or self.vanished or self.moved)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of events that matched, moved (of those that matched), appeared and vanished."""
        return {
            "matched": len(self.matched),
            "moved": len(self.moved),
            "appeared": len(self.appeared),
            "vanished": len(self.vanished),
        }

    @property
    def sentence(self) -> str:
        """The counts as a sentence."""
        counts = self.counts
        return (
            f"{counts['matched']} events match, {counts['moved']} of them moved; "
            f"{counts['appeared']} appeared, {counts['vanished']} vanished."
        )


def compare_events(before: Sequence[Event], after: Sequence[Event]) -> Comparison:
    """What changed from one analysis's events to another's; the order of the lists does not matter.

    Comparing the other way round gives the same pairs, with appeared and vanished exchanged.
    """
    first, second = sorted(before, key=_in_order), sorted(after, key=_in_order)
    # Of pairings with equal scores, both directions must choose the same one.
    if swapped := [_in_order(event) for event in first] > [_in_order(event) for event in second]:
        first, second = second, first
    pairs = sorted(_pairs(first, second))
    if swapped:
        first, second = second, first
        pairs = sorted((j, i) for i, j in pairs)
    paired_first, paired_second = {i for i, _ in pairs}, {j for _, j in pairs}
    return Comparison(
        matched=tuple(_pair(first[i], second[j]) for i, j in pairs),
        appeared=tuple(event for j, event in enumerate(second) if j not in paired_second),
        vanished=tuple(event for i, event in enumerate(first) if i not in paired_first),
    )


def _in_order(event: Event) -> tuple[object, ...]:
    """Sort key: by time, with ties broken by all other fields."""
    others = tuple(str(value) for value in astuple(event))
    return (event.start_ms, event.end_ms, event.label, event.track_id, others)


def _pairs(first: Sequence[Event], second: Sequence[Event]) -> Iterator[tuple[int, int]]:
    for label in sorted({event.label for event in first} & {event.label for event in second}):
        rows = [i for i, event in enumerate(first) if event.label == label]
        columns = [j for j, event in enumerate(second) if event.label == label]
        worth = _worth([first[i] for i in rows], [second[j] for j in columns])
        for group_rows, group_columns in _groups(worth):
            table = np.zeros((len(group_rows), len(group_columns)))
            for place, i in enumerate(group_rows):
                for other, j in enumerate(group_columns):
                    table[place, other] = worth.get((i, j), 0.0)
            for i, j in assign(table):
                yield rows[group_rows[i]], columns[group_columns[j]]


def _worth(first: Sequence[Event], second: Sequence[Event]) -> dict[tuple[int, int], float]:
    """Scores in (0, 1] of the possible pairs; only these are stored, because most pairs are impossible."""
    starts, ends = _spans(second)
    boxes, best_ms = _boxes(second)
    worth = {}
    for i, event in enumerate(first):
        (start,), (end,) = _spans([event])
        shared = np.minimum(end, ends) - np.maximum(start, starts)
        iou = np.clip(shared, 0, None) / (np.maximum(end, ends) - np.minimum(start, starts))
        (box,), (best,) = _boxes([event])
        near = 1 - _distance(box, best, boxes, best_ms) / FARTHEST
        for j in np.flatnonzero((iou >= LEAST_TEMPORAL_IOU) & (near > 0)):
            worth[i, int(j)] = float(iou[j] * near[j])
    return worth


def _spans(events: Sequence[Event]) -> tuple[_Floats, _Floats]:
    """Starts and ends; an event lasts until the frame after its last one."""
    starts = np.array([event.start_ms for event in events], dtype=np.float64)
    lasts = np.array([event.end_ms + max(event.sample_interval_ms, 1.0) for event in events])
    return starts, lasts


def _boxes(events: Sequence[Event]) -> tuple[_Floats, _Floats]:
    boxes = np.array([event.best_box for event in events], dtype=np.float64).reshape(-1, 4)
    return boxes, np.array([event.best_ms for event in events], dtype=np.float64)


def _distance(box: _Floats, best_ms: float, boxes: _Floats, others_ms: _Floats) -> _Floats:
    """(n,) distance of a box from n others, in their mean widths or heights, whichever is larger.

    At 1 and above the boxes do not touch. Each axis uses fractions of the frame's side, so the shape of the
    frame does not matter.
    """
    between = np.abs((boxes[:, :2] + boxes[:, 2:]) - (box[:2] + box[2:])) / 2
    walked = _PACE_PER_S * np.abs(others_ms - best_ms)[:, None] / 1000
    sides = ((boxes[:, 2:] - boxes[:, :2]) + (box[2:] - box[:2])) / 2
    apart = np.clip(between - walked, 0, None) / np.maximum(sides, 1e-9)
    farthest: _Floats = apart.max(axis=1, initial=0.0)
    return farthest


def _groups(worth: dict[tuple[int, int], float]) -> Iterator[tuple[list[int], list[int]]]:
    """Groups of rows and columns that candidate pairs connect; each group is assigned by itself."""
    columns_of: dict[int, list[int]] = {}
    rows_of: dict[int, list[int]] = {}
    for i, j in worth:
        columns_of.setdefault(i, []).append(j)
        rows_of.setdefault(j, []).append(i)
    seen: set[int] = set()
    for begin in sorted(columns_of):
        if begin in seen:
            continue
        rows, columns, pending = {begin}, set(), [begin]
        while pending:
            for j in columns_of[pending.pop()]:
                if j not in columns:
                    columns.add(j)
                    pending += [i for i in rows_of[j] if i not in rows]
                    rows.update(rows_of[j])
        seen |= rows
        yield sorted(rows), sorted(columns)


def _pair(before: Event, after: Event) -> Pair:
    (box,), (best,) = _boxes([before])
    return Pair(
        before=before,
        after=after,
        start_shift_ms=after.start_ms - before.start_ms,
        end_shift_ms=after.end_ms - before.end_ms,
        place_shift=float(_distance(box, best, *_boxes([after]))[0]),
    )
