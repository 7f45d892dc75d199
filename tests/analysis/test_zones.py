"""Zones and lines: which events were in them and for how long, which crossed them and how."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import (
    EventRules,
    InvalidAnalysisSettings,
    LineCrossing,
    Zone,
    ZoneVisit,
    analysis_id,
    read_events,
    write_events,
)
from capstone_dagster.analysis.zones import crossed, crossings, inside, visits
from capstone_dagster.testing import Visit, events_of

SQUARE = ((0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6))
# Of whole numbers, so that points on edges and corners are common and arithmetic is exact.
POINT = st.tuples(st.integers(0, 6), st.integers(0, 6))


def naive_inside(x: int, y: int, corners: list[tuple[int, int]]) -> bool:
    """Edges that a ray to the right crosses, one by one, in exact arithmetic."""
    odd = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + Fraction((x2 - x1) * (y - y1), y2 - y1):
            odd = not odd
    return odd


def naive_crossings(path: list[tuple[int, int]], line: list[tuple[int, int]]) -> list[tuple[int, bool]]:
    """Step by step: on which side of the line the path was last, and where it meets the line."""
    (sx, sy), (ex, ey) = line
    found, last = [], None
    for row, (x, y) in enumerate(path):
        side = (ex - sx) * (y - sy) - (ey - sy) * (x - sx)
        if side == 0:
            continue
        if last is not None and (last[0] < 0) != (side < 0):
            share = Fraction(last[0], last[0] - side)
            place = [was + share * (now - was) for was, now in zip(last[1:], (x, y), strict=True)]
            along = (place[0] - sx) * (ex - sx) + (place[1] - sy) * (ey - sy)
            if 0 <= along <= (ex - sx) ** 2 + (ey - sy) ** 2:
                found.append((row, side < 0))
        last = (side, x, y)
    return found


@given(points=st.lists(POINT, min_size=1, max_size=20), corners=st.lists(POINT, min_size=3, max_size=8))
def test_inside_is_what_counting_edges_one_by_one_gives(
    points: list[tuple[int, int]], corners: list[tuple[int, int]]
) -> None:
    found = inside(np.array(points, dtype=float), np.array(corners, dtype=float))
    near_edge = [
        any(
            abs((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) < 1e-9
            for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True)
        )
        for x, y in points
    ]
    expected = [naive_inside(x, y, corners) for x, y in points]
    # On an edge, rounding may decide either way.
    assert [a for a, edge in zip(found, near_edge, strict=True) if not edge] == [
        a for a, edge in zip(expected, near_edge, strict=True) if not edge
    ]


@given(
    path=st.lists(POINT, max_size=20),
    line=st.lists(POINT, min_size=2, max_size=2, unique=True),
)
def test_crossings_are_what_following_the_path_step_by_step_gives(
    path: list[tuple[int, int]], line: list[tuple[int, int]]
) -> None:
    # Of a length beyond the grid's ends by an odd fraction, no path meets the line's very end.
    (sx, sy), (ex, ey) = line
    longer = [(20 * sx - (ex - sx), 20 * sy - (ey - sy)), (20 * ex + (ex - sx), 20 * ey + (ey - sy))]
    scaled = [(20 * x, 20 * y) for x, y in path]
    rows, inwards = crossed(np.array(scaled, dtype=float).reshape(-1, 2), np.array(longer, dtype=float))
    assert list(zip(rows.tolist(), inwards.tolist(), strict=True)) == naive_crossings(scaled, longer)


@pytest.mark.parametrize(
    ("path", "directions"),
    [
        ([(0.5, 0.9), (0.5, 0.1)], ["in"]),  # upwards: to the left of an arrow to the right
        ([(0.5, 0.1), (0.5, 0.9)], ["out"]),
        ([(0.5, 0.9), (0.5, 0.5), (0.5, 0.1)], ["in"]),  # stands on the line meanwhile
        ([(0.5, 0.9), (0.5, 0.5), (0.5, 0.9)], []),  # touches it and turns back
        ([(0.5, 0.9), (0.5, 0.1), (0.5, 0.9)], ["in", "out"]),
        ([(0.9, 0.9), (0.9, 0.1)], []),  # passes beside its end
        ([(0.5, 0.9)], []),
    ],
)
def test_in_is_to_the_left_of_a_line(path: list[tuple[float, float]], directions: list[str]) -> None:
    boxes = np.array([(x, y, x, y) for x, y in path])
    times = 100 * np.arange(len(path))
    line = Zone("gate", "line", ((0.2, 0.5), (0.8, 0.5)))
    assert [each.direction for each in crossings([line], boxes, times)] == directions


@pytest.mark.parametrize(("anchor", "dwell_ms"), [("BOTTOM_CENTER", 500), ("TOP_LEFT", 200), ("CENTER", 600)])
def test_the_anchor_decides_and_a_detection_counts_until_the_next(anchor: str, dwell_ms: int) -> None:
    # Its feet are in the square from the second to the fourth detection, its head in the last one.
    boxes = np.array([(0.45, bottom - 0.2, 0.55, bottom) for bottom in (0.2, 0.45, 0.52, 0.55, 0.65)])
    times = np.array([0, 100, 200, 400, 600])
    found = visits([Zone("square", "polygon", SQUARE, anchor)], boxes, times, 200.0)
    assert [each.dwell_ms for each in found] == [dwell_ms]


def test_events_carry_zones_and_crossings_and_files_keep_them(tmp_path: Path) -> None:
    zones = (
        Zone("left", "polygon", ((0, 0), (0.5, 0), (0.5, 1), (0, 1))),
        Zone("middle", "line", ((0.5, 1), (0.5, 0))),
    )
    [event] = events_of(
        Visit(0.0, 2.0, box=(0.2, 0.2, 0.3, 0.9)),
        Visit(2.2, 4.0, box=(0.7, 0.2, 0.8, 0.9)),
        rules=EventRules(zones=zones),
    )
    assert event.zones == (ZoneVisit("left", 0, 2200),)
    assert event.crossings == (LineCrossing("middle", 2200, "out"),)

    path = tmp_path / "events.parquet"
    write_events(path, [event])
    assert read_events(path) == [event]
    # As it was written before there were zones.
    earlier = pq.read_table(path).drop_columns(["zones", "crossings"])
    pq.write_table(earlier, path)
    [read] = read_events(path)
    assert (read.event_id, read.zones, read.crossings) == (event.event_id, (), ())


def test_zones_make_another_analysis_and_none_the_one_of_before() -> None:
    work = {"video_id": "v", "detection_id": "d"}
    none = analysis_id(**work, rules=EventRules())
    assert none == "48b88a33fe85d029d3aefd9c996a8de6"  # of the version before zones
    assert analysis_id(**work, rules=EventRules(zones=(Zone("a", "polygon", SQUARE),))) != none


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("", "polygon", SQUARE), "a name"),
        (("a", "circle", SQUARE), "polygon or line"),
        (("a", "polygon", SQUARE[:2]), "2 points"),
        (("a", "line", SQUARE), "4 points"),
        (("a", "line", ((0.1, 0.1), (0.1, 0.1))), "the same"),
        (("a", "polygon", ((0, 0), (2, 0), (1, 1))), "outside"),
        (("a", "polygon", ((0, 0), (math.nan, 0), (1, 1))), "outside"),
        (("a", "polygon", SQUARE, "HEAD"), "BOTTOM_CENTER"),
    ],
)
def test_what_is_no_zone_is_refused(values: tuple[object, ...], told: str) -> None:
    with pytest.raises(InvalidAnalysisSettings, match=told):
        Zone(*values)  # type: ignore[arg-type]
