"""Timestamps on the container's clock, repaired where a container or a recorder got them wrong."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection
from fractions import Fraction
from itertools import pairwise

# Used only where neither frames nor stream say how long a frame lasts (raw streams without a header).
_ASSUMED_FRAME_S = Fraction(1, 25)

# MPEG-TS counts 33 bits at 90 kHz and starts over after 26.5 hours. FFmpeg reports a step back as a jump
# forward; one of more than half the period is better explained by a clock that was set back.
_CLOCK_RESTARTED_S = Fraction(1 << 32, 90_000)

# A step of up to this needs no confirmation: variable rates pause that long, and a mistake costs no more.
_UNREMARKABLE_S = Fraction(1)
_UNREMARKABLE_STEPS = 8

# How many packets after a frame's own are asked whether a jump is real: a glitch may hold a dozen frames.
FOLLOWERS = 32
# A frame is shown at most this many packets before or after its own: no codec reorders more than 16.
_REORDERED = 17
# More steps back than this, each behind a frame in order and no longer than reordering, are no glitches.
_GLITCHES = 2
# Packets that are remembered: their frames may wait in as many decoding threads.
_REMEMBERED = 192
# The usual spacing is the median of this many steps: long enough to outvote pauses, short enough to follow a
# change of rate.
_STEPS_REMEMBERED = 15


# A stated rate that is higher by so much than the first packets' is none.
_WRONG_RATE = 4


class Timeline:
    """Places each frame on the container's clock, in ticks of the stream's time base from its start.

    Three faults are repaired. Timestamps that count in decoding order are sorted. A jump that the following
    packets do not confirm is a glitch of that frame, which goes where it was due. A backward jump that they
    do confirm is the start of a joined recording, which goes on where the first ended.

    >>> timeline = Timeline(time_base=Fraction(1, 1000))
    >>> stamps = [5_000, 5_040, 37_000_000, 5_120, 5_160]
    >>> for stamp in stamps:
    ...     timeline.expect(stamp)
    >>> [timeline.place(stamp) - 5_000 for stamp in stamps]
    [0, 40, 80, 120, 160]
    """

    def __init__(
        self,
        *,
        time_base: Fraction,
        rate: Fraction | None = None,
        zero: int = 0,
        begins: int | None = None,
        ends: int | None = None,
        reorders: bool = False,
    ) -> None:
        """What the container says; times in ticks of `time_base`.

        Args:
            rate: frames a second, as stated.
            zero: the container's start on its own clock, which becomes 0.
            begins: where the stream of pictures starts on that clock.
            ends: where it ends, if the container states it.
            reorders: whether the decoder puts frames into another order than packets have.
        """
        self._time_base = time_base
        self._step = max(1, round((1 / rate if rate else _ASSUMED_FRAME_S) / time_base))
        self._pause = round(_UNREMARKABLE_S / time_base)
        self._restart = round(_CLOCK_RESTARTED_S / time_base)
        self._shift = -zero
        self._begins = begins
        self._ends = None if ends is None else ends - zero
        self._reorders = reorders
        self._in_decoding_order = False
        self._small_steps_back = 0
        self._was_back = False
        self._stamps: deque[int] = deque()  # of the packets from `_first_number` on
        self._first_number = 0
        self._numbers: dict[int, int] = {}  # timestamp -> the packet that has it
        self._waiting: list[tuple[int, int]] = []  # sorted timestamps and packets whose frame has not come
        self._steps: deque[int] = deque(maxlen=_STEPS_REMEMBERED)
        self._last: int | None = None

    def expect(self, stamp: int | None) -> None:
        """Note a packet's timestamp, in decoding order, `FOLLOWERS` packets before its frame is placed."""
        if stamp is None:
            return
        number = self._first_number + len(self._stamps)
        self._numbers[stamp] = number
        self._stamps.append(stamp)
        insort(self._waiting, (stamp, number))
        if len(self._stamps) > _REMEMBERED:
            oldest = self._stamps.popleft()
            if self._numbers.get(oldest) == self._first_number:
                del self._numbers[oldest]
            self._first_number += 1

    def place(self, stamp: int | None, duration: int = 0) -> int:
        """The time of the next frame by its own timestamp, never less than that of the frame before.

        Args:
            duration: of the frame, which counts only where there are no timestamps.
        """
        if stamp is None:
            if not self._steps and duration > 0:
                self._step = duration
            return self._settle(self._due())
        number = self._number(stamp)
        if self._last is None:
            return self._settle(self._first(stamp, number))
        if not self._in_decoding_order and (back := self._last - stamp - self._shift) > 0:
            if back < self._small() and not self._was_back:
                self._small_steps_back += 1
            self._was_back = True
            self._in_decoding_order = self._small_steps_back > _GLITCHES or self._counts_in_decoding_order(
                number
            )
        return self._settle(self._placed(*self._take(stamp, number)))

    @property
    def end(self) -> int:
        """Where the frame placed last ends: at the stated end if that is near, else after a usual step."""
        if self._last is None:
            return 0
        if self._ends is not None and 0 < self._ends - self._last <= self._unremarkable():
            return self._ends
        return self._due()

    def _first(self, stamp: int, number: int | None) -> int:
        self._in_decoding_order = self._counts_in_decoding_order(number)
        spacing = _median([b - a for a, b in pairwise(sorted(self._stamps)) if b > a])
        if spacing > _WRONG_RATE * self._step:  # the ticks of a clock, stated as a rate
            self._step = spacing
        stamp, number = self._take(stamp, number)
        if self._in_decoding_order and self._begins is not None:
            self._shift += self._begins - stamp  # decoding begins before showing
        time = stamp + self._shift
        if time < 0:  # pictures that are shown before the first key frame
            self._shift -= time
            return 0
        if time > self._unremarkable() and not self._is_confirmed(stamp, number, due=0):
            return 0
        return time

    def _placed(self, stamp: int, number: int | None) -> int:
        assert self._last is not None
        time, due = stamp + self._shift, self._due()
        if 0 <= time - self._last <= self._unremarkable():
            return time
        if 0 < self._last - time < self._small():  # never a new clock
            return self._last if self._in_decoding_order else min(due, self._next_waiting(due))
        if not self._is_confirmed(stamp, number, due=due):
            return due
        if 0 <= time - self._last < self._restart:
            return time
        self._shift += due - time
        return due

    def _next_waiting(self, default: int) -> int:
        """The earliest time after the last frame's that a packet has whose frame has not come."""
        assert self._last is not None
        place = bisect_left(self._waiting, (self._last - self._shift + 1, 0))
        return self._waiting[place][0] + self._shift if place < len(self._waiting) else default

    def _is_confirmed(self, stamp: int, number: int | None, *, due: int) -> bool:
        """Whether the packets that follow count on from this stamp, and not from where the frame was due."""
        start = -1 if number is None else number + 1 - self._first_number
        followers = list(self._stamps)[start : start + FOLLOWERS] if start >= 0 else []
        time = stamp + self._shift
        # Where frames are reordered, some packets behind are of frames that were shown before.
        if self._last is not None and time > self._last:
            followers = [each for each in followers if each + self._shift > self._last]
        if not followers:  # the last frame: its container's end may come from this stamp, so it tells little
            return self._ends is not None and due < time <= self._ends and not self._is_regular()
        votes = 0
        for place, follower in enumerate(followers, start=1):
            counted_from = follower + self._shift - place * self._step
            votes += 1 if abs(counted_from - time) < abs(counted_from - due) else -1
        return votes > 0

    def _is_regular(self) -> bool:
        """Whether frames came at one rate lately, as a camera's do; of a screen they come as it changes."""
        return len(self._steps) > _STEPS_REMEMBERED // 2 and max(self._steps) <= 2 * self._step

    def _number(self, stamp: int) -> int | None:
        """The packet of a frame: of several with one stamp, the first whose frame has not come."""
        place = bisect_left(self._waiting, (stamp, 0))
        if place < len(self._waiting) and self._waiting[place][0] == stamp:
            return self._waiting[place][1]
        return self._numbers.get(stamp)

    def _take(self, stamp: int, number: int | None) -> tuple[int, int | None]:
        """The timestamp and the packet of the frame that has come: its own, or the earliest that waits."""
        if number is None:
            return stamp, None
        if self._in_decoding_order or len(self._waiting) > _REMEMBERED:  # some packets make no frame
            self._waiting = [entry for entry in self._waiting if entry[1] > number - _REORDERED]
        if self._in_decoding_order and self._waiting:
            return self._waiting.pop(0)
        place = bisect_left(self._waiting, (stamp, number))
        if place < len(self._waiting) and self._waiting[place] == (stamp, number):
            del self._waiting[place]
        return stamp, number

    def _counts_in_decoding_order(self, number: int | None) -> bool:
        """Whether timestamps grow from packet to packet, as they cannot where the decoder reorders frames."""
        if not self._reorders or number is None:
            return False
        start = max(0, number - self._first_number - FOLLOWERS)
        stamps = list(self._stamps)[start : start + 2 * FOLLOWERS]
        return len(stamps) > 2 and all(a < b for a, b in pairwise(stamps))

    def _unremarkable(self) -> int:
        return max(self._pause, _UNREMARKABLE_STEPS * self._step)

    def _small(self) -> int:
        """Steps back of less come from frames in a wrong order."""
        return min(_REORDERED * self._step, self._pause)

    def _due(self) -> int:
        return 0 if self._last is None else self._last + self._step

    def _settle(self, time: int) -> int:
        if self._last is not None:
            time = max(time, self._last)
            if time > self._last:
                self._steps.append(time - self._last)
                self._step = _median(self._steps)
        self._last = time
        return time


def _median(values: Collection[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0


def milliseconds(seconds: Fraction) -> int:
    """To the nearest millisecond."""
    return round(seconds * 1000)
