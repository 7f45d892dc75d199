"""Derives events from tracked detections, one for each appearance. Pure: a table in, a list out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .identity import event_id
from .settings import EventRules
from .zones import LineCrossing, ZoneVisit, crossings, visits

Box = tuple[float, float, float, float]

PERSON, FACE = "person", "face"

# One missed detection must not split an event, however sparse the sampling: 2.5 intervals bridge it, and
# its jitter.
_GAP_IN_INTERVALS = 2.5


@dataclass(frozen=True, slots=True)
class Event:
    """One continuous appearance of one track.

    Times are milliseconds since the first frame. Boxes are x1, y1, x2, y2 as fractions of the frame (0-1).

    Attributes:
        start_ms, end_ms: the first and the last detection.
        first_frame, last_frame: the same, as indices of decoded frames.
        sample_interval_ms: interval between analysed frames, which is the precision of start and end.
        detections: number of detections.
        best_score, best_ms, best_box: the detection with the highest score; the earliest of equals.
        face_score, face_box: the best face seen with a person; None without one, and for other labels.
        truncated_start, truncated_end: present in the first, the last analysed frame.
        thumbnail_key: its picture, relative to the detections' prefix.
        zones, crossings: where it was, by the zones of its camera.
    """

    event_id: str
    analysis_id: str
    track_id: int
    label: str
    start_ms: int
    end_ms: int
    first_frame: int
    last_frame: int
    sample_interval_ms: float
    detections: int
    best_score: float
    mean_score: float
    best_ms: int
    best_box: Box
    face_score: float | None
    face_box: Box | None
    truncated_start: bool
    truncated_end: bool
    thumbnail_key: str
    zones: tuple[ZoneVisit, ...] = ()
    crossings: tuple[LineCrossing, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The event of a row of a file or a database, where boxes are lists; other columns are ignored."""
        values = {each.name: row[each.name] for each in fields(cls)}
        values["zones"] = tuple(ZoneVisit(**each) for each in values["zones"] or ())
        values["crossings"] = tuple(LineCrossing(**each) for each in values["crossings"] or ())
        for box in ("best_box", "face_box"):
            values[box] = None if values[box] is None else tuple(values[box])
        return cls(**values | {"thumbnail_key": values["thumbnail_key"] or ""})


@dataclass(frozen=True, slots=True)
class Coverage:
    """The frames that a pass has analysed.

    Attributes:
        width, height: size of the frames, in pixels.
        first_pts_ms, last_pts_ms: the first and the last analysed frame.
        sample_interval_ms: usual interval between analysed frames.
        longest_interval_ms: longest intended interval between them.
    """

    width: int
    height: int
    first_pts_ms: int
    last_pts_ms: int
    sample_interval_ms: float
    longest_interval_ms: float

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self:
        """The coverage in the JSON summary of a pass."""
        return cls(**{each.name: summary[each.name] for each in fields(cls)})


def build_events(
    detections: pa.Table, coverage: Coverage, *, analysis_id: str, rules: EventRules
) -> list[Event]:
    """The events of one video, sorted by start and track; the order of the table's rows does not matter.

    >>> row = {"label": "person", "track_id": 1, "score": 0.9, "x1": 10, "y1": 20, "x2": 30, "y2": 80}
    >>> table = pa.Table.from_pylist(
    ...     [row | {"frame_index": i, "pts_ms": i * 200} for i in range(10)]
    ... )
    >>> coverage = Coverage(640, 480, 0, 10_000, 200, 200)
    >>> [event] = build_events(table, coverage, analysis_id="a", rules=EventRules())
    >>> event.start_ms, event.end_ms, event.detections, event.truncated_start
    (0, 1800, 10, True)
    """
    sample_interval_ms = coverage.sample_interval_ms
    interval_ms = coverage.longest_interval_ms
    max_gap_ms = (
        math.inf if rules.max_gap_s is None else max(rules.max_gap_s * 1000, _GAP_IN_INTERVALS * interval_ms)
    )
    rows = _Rows.tracked(detections)
    presences = [
        presence
        for presence in _presences(rows, max_gap_ms)
        if len(presence) >= rules.min_detections
        and rows.pts_ms[presence[-1]] - rows.pts_ms[presence[0]] + sample_interval_ms
        >= rules.min_duration_s * 1000
    ]
    persons = [presence for presence in presences if rows.label[presence[0]] == PERSON]
    faces = [presence for presence in presences if rows.label[presence[0]] == FACE]
    wearer = _assign_faces(rows, persons, faces, rules.face_containment)
    worn_faces: dict[int, list[int]] = {}
    independent = []
    for presence in presences:
        if rows.label[presence[0]] == FACE:
            assigned = [row for row in presence if row in wearer]
            if 2 * len(assigned) >= len(presence):
                for row in assigned:
                    worn_faces.setdefault(wearer[row], []).append(row)
                continue
        independent.append(presence)

    scale = np.array([coverage.width, coverage.height] * 2, dtype=np.float64)

    def event(presence: npt.NDArray[np.intp]) -> Event:
        first, last = int(presence[0]), int(presence[-1])
        best = rows.best(presence)
        # Its first row identifies an appearance: it belongs to no other.
        face = rows.best(np.array(sorted(worn_faces[first]), dtype=np.intp)) if first in worn_faces else None
        boxes, times = rows.boxes[presence] / scale, rows.pts_ms[presence]
        label, track_id, start_ms = str(rows.label[first]), int(rows.track_id[first]), int(rows.pts_ms[first])
        return Event(
            event_id=event_id(analysis_id=analysis_id, label=label, track_id=track_id, start_ms=start_ms),
            analysis_id=analysis_id,
            track_id=track_id,
            label=label,
            start_ms=start_ms,
            end_ms=int(rows.pts_ms[last]),
            first_frame=int(rows.frame_index[first]),
            last_frame=int(rows.frame_index[last]),
            sample_interval_ms=float(sample_interval_ms),
            detections=len(presence),
            best_score=float(rows.score[best]),
            mean_score=float(np.mean(rows.score[presence], dtype=np.float64)),
            best_ms=int(rows.pts_ms[best]),
            best_box=_normalised(rows.boxes[best], scale),
            face_score=None if face is None else float(rows.score[face]),
            face_box=None if face is None else _normalised(rows.boxes[face], scale),
            truncated_start=start_ms <= coverage.first_pts_ms,
            truncated_end=int(rows.pts_ms[last]) >= coverage.last_pts_ms,
            thumbnail_key=f"thumbnails/{track_id}.jpg",
            zones=visits(rules.zones, boxes, times, sample_interval_ms),
            crossings=crossings(rules.zones, boxes, times),
        )

    return sorted(map(event, independent), key=lambda event: (event.start_ms, event.track_id, event.label))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Tracked detections as columns, sorted by track and time, ties broken by everything else."""

    frame_index: npt.NDArray[np.int64]
    pts_ms: npt.NDArray[np.int64]
    track_id: npt.NDArray[np.int64]
    label: npt.NDArray[np.object_]
    score: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]

    @classmethod
    def tracked(cls, detections: pa.Table) -> _Rows:
        tracked = detections.filter(pc.is_valid(detections["track_id"]))

        def whole(name: str) -> npt.NDArray[np.int64]:
            return tracked[name].to_numpy().astype(np.int64)

        def real(name: str) -> npt.NDArray[np.float64]:
            return tracked[name].to_numpy().astype(np.float64)

        frame_index, pts_ms, track_id = whole("frame_index"), whole("pts_ms"), whole("track_id")
        score = real("score")
        boxes = np.stack([real(name) for name in ("x1", "y1", "x2", "y2")], axis=1)
        # One string for each label instead of each row: a long video has millions.
        names, codes = _labels(tracked["label"])
        order = np.lexsort((*boxes.T, score, frame_index, pts_ms, codes, track_id))
        return cls(
            frame_index[order],
            pts_ms[order],
            track_id[order],
            names[codes[order]],
            score[order],
            boxes[order],
        )

    def best(self, which: npt.NDArray[np.intp]) -> int:
        """The row with the highest score; the first of equals."""
        return int(which[np.argmax(self.score[which])])


def _labels(column: pa.ChunkedArray[Any]) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.intp]]:
    """The distinct labels, sorted, and for each row the index of its label."""
    encoded = column.combine_chunks().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    sorted_first = np.argsort(names)
    rank = np.argsort(sorted_first)
    return names[sorted_first], rank[encoded.indices.to_numpy().astype(np.intp)]


def _presences(rows: _Rows, max_gap_ms: float) -> Iterator[npt.NDArray[np.intp]]:
    """Row numbers of each track in order of time, split at gaps longer than `max_gap_ms`."""
    if len(rows.pts_ms) == 0:
        return
    new_track = (rows.track_id[1:] != rows.track_id[:-1]) | (rows.label[1:] != rows.label[:-1])
    unseen = np.diff(rows.pts_ms) > max_gap_ms
    yield from np.split(np.arange(len(rows.pts_ms)), np.flatnonzero(new_track | unseen) + 1)


def _assign_faces(
    rows: _Rows,
    persons: Sequence[npt.NDArray[np.intp]],
    faces: Sequence[npt.NDArray[np.intp]],
    containment: float,
) -> dict[int, int]:
    """For each face row inside a person of the same frame, the first row of that person's appearance.

    A face belongs to one person and a person has one face; the best pair is assigned first.
    """
    persons_by_frame: dict[int, list[tuple[int, int]]] = {}
    for presence in persons:
        for row in presence:
            persons_by_frame.setdefault(int(rows.frame_index[row]), []).append((int(row), int(presence[0])))
    faces_by_frame: dict[int, list[int]] = {}
    for presence in faces:
        for row in presence:
            faces_by_frame.setdefault(int(rows.frame_index[row]), []).append(int(row))

    wearer: dict[int, int] = {}
    for frame, face_rows in faces_by_frame.items():
        pairs = sorted(
            (_misfit(rows.boxes[face], rows.boxes[person]), face, person, owner)
            for face in face_rows
            for person, owner in persons_by_frame.get(frame, ())
            if _share_inside(rows.boxes[face], rows.boxes[person]) >= containment
        )
        taken: set[int] = set()
        for _, face, person, owner in pairs:
            if face not in wearer and person not in taken:
                wearer[face] = owner
                taken.add(person)
    return wearer


def _share_inside(inner: npt.NDArray[np.float64], outer: npt.NDArray[np.float64]) -> float:
    """The fraction of a box's area that lies in another box."""
    area = (inner[2] - inner[0]) * (inner[3] - inner[1])
    overlap = np.minimum(inner[2:], outer[2:]) - np.maximum(inner[:2], outer[:2])
    return float(overlap[0] * overlap[1] / area) if area > 0 and (overlap > 0).all() else 0.0


def _misfit(face: npt.NDArray[np.float64], person: npt.NDArray[np.float64]) -> float:
    """Distance of a face from the expected place: centred, its top at the top of the person's box.

    The unit is the width and height of the person's box, so that in a crowd a face goes to the person it
    fits, not to a larger one in front or behind.
    """
    width, height = person[2] - person[0], person[3] - person[1]
    aside = abs((face[0] + face[2]) - (person[0] + person[2])) / (2 * width)
    below = abs(face[1] - person[1]) / height
    return float(aside + below)


def _normalised(box: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> Box:
    x1, y1, x2, y2 = np.clip(box / scale, 0.0, 1.0).tolist()
    return x1, y1, x2, y2
