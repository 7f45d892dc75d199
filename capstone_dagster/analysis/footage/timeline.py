"""Presentation timestamps as seconds since a video's first frame, never from a frame's index."""

from __future__ import annotations

from fractions import Fraction

import av

# Used only where neither frame nor stream says how long a frame lasts (raw streams without a header).
_ASSUMED_FRAME_S = Fraction(1, 25)

# MPEG-TS counts 33 bits at 90 kHz and starts over after 26.5 hours, which is what FFmpeg takes a step back
# for: it reports a jump forward. One of more than half the period is better explained by a clock that was
# set back.
_CLOCK_RESTARTED_S = Fraction(1 << 32, 90_000)


class Timeline:
    """Turns timestamps into seconds since the first frame, repairing what is missing or runs backwards.

    `frame_s` is how long the frame placed last is shown, in seconds.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        rate = stream.average_rate or stream.guessed_rate
        self.frame_s = 1 / Fraction(rate) if rate else _ASSUMED_FRAME_S
        self._stream_time_base = stream.time_base
        self._origin: Fraction | None = None
        self._last: Fraction | None = None

    def place(self, frame: av.VideoFrame) -> Fraction:
        """Seconds since the first frame, never less than for the frame before; asked once, in order."""
        time_base = frame.time_base or self._stream_time_base
        if frame.duration and time_base:
            self.frame_s = frame.duration * time_base
        stamp = frame.pts * time_base if frame.pts is not None and time_base else None
        if self._last is None:
            self._origin, seconds = stamp, Fraction(0)
        elif stamp is None:
            seconds = self._last + self.frame_s
        elif self._origin is None or not 0 <= stamp - self._origin - self._last < _CLOCK_RESTARTED_S:
            # Timestamps begin late, or restart where recordings were joined: time goes on from the last
            # frame.
            seconds = self._last + self.frame_s
            self._origin = stamp - seconds
        else:
            seconds = stamp - self._origin
        self._last = seconds
        return seconds


def milliseconds(seconds: Fraction) -> int:
    """To the nearest millisecond."""
    return round(seconds * 1000)
