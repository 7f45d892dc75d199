"""Where an event was within its picture: the zones it entered and for how long, the lines it crossed. Pure.

Conventions are those of Roboflow's `supervision`: one point of a box, its anchor, decides; "in" is from the
right-hand side of a line's arrow to the left-hand side, as seen in the picture. Points are shares of the
frame's width and height, so that a zone holds for each size that a camera films in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .errors import InvalidAnalysisSettings

Point = tuple[float, float]
Points = npt.NDArray[np.float64]

# Shares of a box's width and height, under the names of `supervision.Position`.
ANCHORS: dict[str, Point] = {
    f"{vertical}{horizontal}": (x, y)
    for vertical, y in (("TOP", 0.0), ("CENTER", 0.5), ("BOTTOM", 1.0))
    for horizontal, x in (("_LEFT", 0.0), ("_CENTER", 0.5), ("_RIGHT", 1.0))
    if vertical != "CENTER" or horizontal != "_CENTER"
} | {"CENTER": (0.5, 0.5)}
# Where a person stands.
FEET = "BOTTOM_CENTER"
_POINTS_AT_MOST = 100


@dataclass(frozen=True, slots=True)
class Zone:
    """An area, or a line with a direction, in a camera's picture.

    >>> Zone("door", "polygon", ((0, 0), (1, 0), (1, 1))).anchor
    'BOTTOM_CENTER'

    Attributes:
        points: the corners of a polygon; the start and the end of a line.
        anchor: the point of a box that decides, a name of `ANCHORS`.

    Raises:
        InvalidAnalysisSettings: it has no area or no length, or a value is not as described.
    """

    name: str
    kind: Literal["polygon", "line"]
    points: tuple[Point, ...]
    anchor: str = FEET

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple((float(x), float(y)) for x, y in self.points))
        wrong = self._wrong()
        if wrong is not None:
            raise InvalidAnalysisSettings(f"The zone {self.name!r} {wrong}.")

    def _wrong(self) -> str | None:
        least, most = (3, _POINTS_AT_MOST) if self.kind == "polygon" else (2, 2)
        if not self.name.strip() or not self.name.isprintable():
            return "needs a name that can be shown"
        if self.kind not in ("polygon", "line"):
            return f"is a {self.kind!r}; expected polygon or line"
        if self.anchor not in ANCHORS:
            return f"has the anchor {self.anchor!r}; expected one of {', '.join(ANCHORS)}"
        if not least <= len(self.points) <= most:
            return f"has {len(self.points)} points; a {self.kind} has {least}" + (
                f" to {most}" if most > least else ""
            )
        if not all(0 <= each <= 1 for point in self.points for each in point):
            return "has a point outside of the picture; expected shares of width and height, 0 to 1"
        if len(set(self.points)) < least:
            return "has points that are the same"
        return None


@dataclass(frozen=True, slots=True)
class ZoneVisit:
    """That an event was in a zone.

    Attributes:
        entered_ms: the first detection in it.
        dwell_ms: how long altogether.
    """

    zone: str
    entered_ms: int
    dwell_ms: int


@dataclass(frozen=True, slots=True)
class LineCrossing:
    """That an event crossed a line; `at_ms` is the first detection beyond it."""

    line: str
    at_ms: int
    direction: Literal["in", "out"]


def visits(
    zones: Sequence[Zone], boxes: Points, pts_ms: npt.NDArray[np.int64], interval_ms: float
) -> tuple[ZoneVisit, ...]:
    """The polygons that an event was in, in the order of the zones.

    Args:
        boxes: (n, 4) float64 xyxy, shares of the frame, in order of time.
        pts_ms: (n,) their times. A detection counts until the next one.
        interval_ms: what the last detection counts.
    """
    lasting = np.append(np.diff(pts_ms), round(interval_ms))
    found = []
    for zone in zones:
        if zone.kind == "polygon":
            within = inside(_anchor_points(boxes, zone.anchor), np.array(zone.points))
            if within.any():
                found.append(ZoneVisit(zone.name, int(pts_ms[within][0]), int(lasting[within].sum())))
    return tuple(found)


def crossings(
    zones: Sequence[Zone], boxes: Points, pts_ms: npt.NDArray[np.int64]
) -> tuple[LineCrossing, ...]:
    """The crossings of lines by an event, in order of time; arguments as of `visits`."""
    found: list[LineCrossing] = []
    for zone in zones:
        if zone.kind == "line":
            rows, inwards = crossed(_anchor_points(boxes, zone.anchor), np.array(zone.points))
            found += [
                LineCrossing(zone.name, int(pts_ms[row]), "in" if into else "out")
                for row, into in zip(rows, inwards, strict=True)
            ]
    return tuple(sorted(found, key=lambda each: (each.at_ms, each.line)))


def inside(points: Points, polygon: Points) -> npt.NDArray[np.bool_]:
    """Which of (n, 2) points lie in a polygon of (m, 2) corners, by the even-odd rule."""
    x, y = points[:, :1], points[:, 1:]
    (x1, y1), (x2, y2) = polygon.T, np.roll(polygon, -1, axis=0).T
    straddles = (y1 > y) != (y2 > y)
    height = np.where(y1 == y2, 1.0, y2 - y1)  # a level edge straddles nothing
    right_of = x < x1 + (x2 - x1) * (y - y1) / height
    odd: npt.NDArray[np.bool_] = np.logical_xor.reduce(straddles & right_of, axis=1)
    return odd


def crossed(points: Points, line: Points) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """The rows of a path of (n, 2) points that are the first beyond a line's segment, and which go in.

    Points on the line itself are on neither side: a path that touches it and turns back has not crossed.
    """
    start, along = line[0], line[1] - line[0]
    offset = points - start
    side = along[0] * offset[:, 1] - along[1] * offset[:, 0]
    rows = np.flatnonzero(side)
    before, after = rows[:-1], rows[1:]
    changes = (side[before] < 0) != (side[after] < 0)
    before, after = before[changes], after[changes]
    share = side[before] / (side[before] - side[after])
    place = offset[before] + share[:, None] * (offset[after] - offset[before])
    position = place @ along / math.fsum(along**2)
    within = (position >= 0) & (position <= 1)
    return after[within], side[after[within]] < 0


def _anchor_points(boxes: Points, anchor: str) -> Points:
    share = np.array(ANCHORS[anchor])
    return boxes[:, :2] + share * (boxes[:, 2:] - boxes[:, :2])
