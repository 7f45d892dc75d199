"""Tracklets joined into visits: who was lost behind something and found again is one and the same.

A tracker decides at once, knowing only the past. Here each end of a tracklet waits until everything that
could be its continuation has begun and has been watched for a moment; then motion is compared from both
sides, forwards from the end and backwards from the beginning, and looks with it. What waits is bounded by
how long it waits, not by the length of the video; of tracklets that are decided, one number is kept.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import appearance
from .association import assign
from .motion import Floats, MotionModel, States

UNTRACKED = -1

# Chosen with `bench/accuracy.py --worlds`, see there: nats that speak for a visitor being a new one, before
# anything is known about him; and how much boxes may differ in size across a gap, in sizes (what hides a
# part of somebody when he is lost hides another part when he is found).
_NEW_VISITOR = 1.0
_EXTENT_CHANGE = 0.25

# Watching a beginning for longer than this tells no more about where it came from; sightings closer together
# than the second number tell little more than one of them.
_HEAD_MS = 1500
_HEAD_SPACING_MS = 100

# A box within this share of its size of the frame's border touches it; somebody there who moves outwards
# (inwards) by more than this many sizes a second leaves (comes). Detectors end boxes a little before the
# border.
_AT_BORDER = 0.06
_CROSSING = 0.15

# A visit must have been seen twice, and be believed: the sum of what its sightings add to that (with
# `motion`, how far scores are above what false alarms have), each times the seconds that it stands for, a
# fifth of one at most. So a false alarm that flickers for a moment is none however often it is looked at,
# and two sightings at a score of 0.5 and 5 frames a second are just enough. Half as much again gained a
# little more on synthetic footage, where false alarms are as frequent as we made them, and would lose real
# glimpses.
_LONGEST_GLIMPSE_MS = 200
_BELIEVED = 0.1


@dataclass(slots=True, eq=False)
class Tracklet:
    """Sightings of one object that were joined on the spot.

    Attributes:
        number: from 1 in order of beginning.
        model: how such objects move.
        frame: width and height of the pictures it is seen in; None where that is unknown.
        first_ms, last_ms: its first and its last sighting.
        sightings: how many there are.
        belief: see `_BELIEVED`.
        tail: its state at the last sighting, known when it has ended.
        look: what it looks like (see `appearance`); None where that is unknown.
    """

    number: int
    model: MotionModel
    frame: tuple[int, int] | None
    first_ms: int
    last_ms: int
    sightings: int = 0
    belief: float = 0.0
    tail: States | None = None
    look: npt.NDArray[np.float32] | None = None
    # Time, (4,) x, y, width, height and their variances of the first sightings, thinned out; and what
    # follows.
    _head: list[tuple[int, Floats, Floats]] = field(default_factory=list)
    _beginning: States | None = None
    _comes: bool = False

    def saw(self, pts_ms: int, measured: Floats, noise: Floats, belief: float) -> None:
        """One more sighting: x, y, width, height and their variances, each (4,); how far it is believed."""
        # A first sighting counts as much as one that follows after any longer time.
        elapsed_ms = pts_ms - self.last_ms if self.sightings else _LONGEST_GLIMPSE_MS
        self.belief += max(0.0, belief) * min(elapsed_ms, _LONGEST_GLIMPSE_MS) / 1000
        self.last_ms = pts_ms
        self.sightings += 1
        if not self._head or (
            pts_ms - self.first_ms <= _HEAD_MS and pts_ms - self._head[-1][0] >= _HEAD_SPACING_MS
        ):
            self._head.append((pts_ms, measured, noise))
            self._beginning = None

    def beginning(self) -> States:
        """Its state at the first sighting, as the sightings after it tell."""
        if self._beginning is None:
            time_ms, place, _ = self._head[-1]
            state = States.seen(place[None], self.model)
            for earlier_ms, place, noise in reversed(self._head[:-1]):
                state = state.after((time_ms - earlier_ms) / 1000, self.model)
                state = state.corrected(place[None], noise[None])
                time_ms = earlier_ms
            self._beginning = state.reversed()
            self._comes = _crosses_border(self._beginning, self.frame, outwards=False)
        return self._beginning

    @property
    def comes(self) -> bool:
        """Whether it began by coming into the frame."""
        self.beginning()
        return self._comes

    @property
    def leaves(self) -> bool:
        """Whether it ended by leaving the frame."""
        return self.tail is not None and _crosses_border(self.tail, self.frame, outwards=True)


class Stitcher:
    """Decides which tracklet continues which; call its methods in order of time.

    `max_gap_ms` is how long a visitor may be unseen; 0 joins nothing.
    """

    def __init__(self, max_gap_ms: float) -> None:
        self._max_gap_ms = max_gap_ms
        self._before = array("i")  # for each tracklet the one that it continues, 0 if none
        self._sightings = array("i")
        self._belief = array("f")
        self._begun: dict[int, Tracklet] = {}
        self._ended: dict[int, Tracklet] = {}

    def begin(self, model: MotionModel, pts_ms: int, frame: tuple[int, int] | None) -> Tracklet:
        """A new tracklet, which the caller goes on to fill."""
        self._before.append(0)
        self._sightings.append(0)
        self._belief.append(0.0)
        tracklet = Tracklet(len(self._before), model, frame, pts_ms, pts_ms)
        self._begun[tracklet.number] = tracklet
        return tracklet

    def end(self, tracklet: Tracklet, tail: States | None) -> None:
        """What the caller will not continue; without its state at the last sighting nobody else does."""
        self._sightings[tracklet.number - 1] = tracklet.sightings
        self._belief[tracklet.number - 1] = tracklet.belief
        tracklet.tail = tail
        if tracklet.sightings < 2:
            # A single sighting has no motion: joining it to anything would be guessing.
            self._begun.pop(tracklet.number, None)
        elif tail is not None and not tracklet.leaves:
            self._ended[tracklet.number] = tracklet

    def advance(self, now_ms: float) -> None:
        """Decides what nothing still to come can change; to be called when a picture's work is done."""
        wait_ms = self._max_gap_ms + _HEAD_MS
        due = [number for number, tracklet in self._ended.items() if tracklet.last_ms + wait_ms <= now_ms]
        for number in sorted(due, key=lambda number: self._ended[number].last_ms):
            self._decide(self._ended[number])
        for number in [n for n, tracklet in self._begun.items() if tracklet.first_ms + wait_ms < now_ms]:
            del self._begun[number]

    def finish(self) -> npt.NDArray[np.int32]:
        """Decides the rest; see `VideoTracker.finish`."""
        self.advance(math.inf)
        count = len(self._before)
        first = np.arange(count)
        for index, before in enumerate(self._before):
            if before:
                first[index] = first[before - 1]
        sightings, belief = (
            np.bincount(first, weights=values, minlength=count) for values in (self._sightings, self._belief)
        )
        visits = (sightings >= 2) & (belief >= _BELIEVED)  # stands at each visit's first tracklet
        return np.where(visits, np.cumsum(visits), UNTRACKED).astype(np.int32)[first]

    def _decide(self, ended: Tracklet) -> None:
        """Settles what follows one tracklet, in view of others that it could rather follow."""
        del self._ended[ended.number]
        begun = list(self._begun.values())
        own = self._evidence(ended, begun)
        wanted = [begun[index] for index in np.flatnonzero(own > 0)]
        if not wanted:
            return
        rivals = [end for end in self._ended.values() if (self._evidence(end, wanted) > 0).any()]
        for row, column in assign(np.stack([own, *(self._evidence(rival, begun) for rival in rivals)])):
            if row == 0:
                self._before[begun[column].number - 1] = ended.number
                del self._begun[begun[column].number]

    def _evidence(self, end: Tracklet, begun: Sequence[Tracklet]) -> Floats:
        """(n,) nats for each to continue that one; minus infinity for what cannot."""
        evidence = np.full(len(begun), -np.inf)
        possible = [
            index
            for index, tracklet in enumerate(begun)
            if 0 < tracklet.first_ms - end.last_ms <= self._max_gap_ms
            and tracklet.model is end.model
            and tracklet.sightings >= 2
            and not tracklet.comes
        ]
        if possible:
            evidence[possible] = link_evidence(end, [begun[index] for index in possible])
        return evidence


def link_evidence(end: Tracklet, beginnings: Sequence[Tracklet]) -> Floats:
    """(n,) nats for each of them continuing that tracklet, against being somebody else."""
    model = end.model
    assert end.tail is not None
    gaps_s = np.array([beginning.first_ms - end.last_ms for beginning in beginnings]) / 1000
    forward = end.tail.select(np.zeros(len(beginnings), dtype=np.intp)).after(gaps_s, model)
    backward = _joined(beginning.beginning() for beginning in beginnings)
    size = (forward.size + backward.size) / 2
    # Where it is and how fast it moves are compared together, centre x and y each with its 2 x 2 covariance.
    apart, faster = (backward.place - forward.place)[:, :2], (backward.velocity - forward.velocity)[:, :2]
    a = (forward.place_var + backward.place_var)[:, :2]
    b = (forward.covar + backward.covar)[:, :2]
    c = (forward.velocity_var + backward.velocity_var)[:, :2]
    determinant = a * c - b * b
    squared = (c * apart**2 - 2 * b * apart * faster + a * faster**2) / determinant
    motion = -0.5 * (squared + np.log(determinant / size**4)).sum(axis=1)
    # Somebody else would move as anybody does.
    wander = (model.speed * size) ** 2 + backward.velocity_var[:, :2]
    anybody = -0.5 * (backward.velocity[:, :2] ** 2 / wander + np.log(wander / size**2)).sum(axis=1)
    extent_var = (forward.place_var + backward.place_var)[:, 2:] + (_EXTENT_CHANGE * size) ** 2
    extent = -0.5 * (
        (backward.place - forward.place)[:, 2:] ** 2 / extent_var + np.log(extent_var / size**2)
    ).sum(axis=1)
    looks = np.array([_likeness_evidence(end.look, beginning.look) for beginning in beginnings])
    evidence: Floats = motion - anybody + extent + looks - _NEW_VISITOR
    return evidence


def _likeness_evidence(one: npt.NDArray[np.float32] | None, other: npt.NDArray[np.float32] | None) -> float:
    return 0.0 if one is None or other is None else float(appearance.evidence(one @ other))


def _crosses_border(state: States, frame: tuple[int, int] | None, *, outwards: bool) -> bool:
    if frame is None:
        return False
    place, size = state.place[0], float(state.size[0, 0])
    speed = (state.velocity[0, :2] if outwards else -state.velocity[0, :2]) / size
    margin = _AT_BORDER * size
    for axis, length in enumerate(frame):
        near, far = place[axis] - place[axis + 2] / 2, place[axis] + place[axis + 2] / 2
        if (near <= margin and speed[axis] < -_CROSSING) or (
            far >= length - margin and speed[axis] > _CROSSING
        ):
            return True
    return False


def _joined(states: Iterable[States]) -> States:
    parts = list(states)
    return States(*(np.concatenate([getattr(part, name) for part in parts]) for name in States.__slots__))
