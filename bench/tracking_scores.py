"""How true tracks and events are: MOTA, IDF1, HOTA (by TrackEval), and scores of events.

**A true event** is one continuous presence of one person: the truth has him in every analysed frame of it,
hidden or not; where it has not for more than `TRUE_GAP_S`, the next presence is another event. **A found
event** is what `build_events` made. In each frame, found and true boxes are paired one to one at IoU ≥ 0.5
with the largest sum of IoU; the overlap of a found event f with a true event t, o(f, t), is in how many
frames they are paired. f is *of* t if o(f, t) is the largest of f's overlaps and f is paired with anybody in
at least half of its detections; of all that are of t, the one with the largest o *matches* t. With F found
events, T true ones and M matches,

- event precision = M / F: what is nobody's counts against it, and so does each further piece of one visit;
- event recall = M / T;
- fragmentation = the mean of how many found events are of t, over the t that have any: 1.0 is one event a
visit;
- boundary error = |start of f - start of t| and |end of f - end of t| over the matches, in seconds: median,
p90.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

with contextlib.redirect_stdout(io.StringIO()):
    from trackeval.metrics import CLEAR, HOTA, Identity

from capstone_dagster.analysis import Event

TRUE_GAP_S = 2.0
_MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Boxes:
    """What is in one analysed frame: `ids` (n,) of tracks or of persons, `xyxy` (n, 4) pixels."""

    ids: npt.NDArray[np.int64]
    xyxy: npt.NDArray[np.float64]


def track_scores(truth: Sequence[Boxes], found: Sequence[Boxes]) -> dict[str, float]:
    """CLEAR and identity scores at IoU 0.5, HOTA over all thresholds; 0-1 but for counts."""
    true_ids, found_ids = _dense(truth), _dense(found)
    data = {
        "num_timesteps": len(truth),
        "num_gt_ids": len(true_ids),
        "num_tracker_ids": len(found_ids),
        "num_gt_dets": sum(len(boxes.ids) for boxes in truth),
        "num_tracker_dets": sum(len(boxes.ids) for boxes in found),
        "gt_ids": [np.array([true_ids[i] for i in boxes.ids.tolist()], dtype=int) for boxes in truth],
        "tracker_ids": [np.array([found_ids[i] for i in boxes.ids.tolist()], dtype=int) for boxes in found],
        "similarity_scores": [iou(t.xyxy, f.xyxy) for t, f in zip(truth, found, strict=True)],
    }
    clear = CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    identity = Identity({"PRINT_CONFIG": False}).eval_sequence(data)
    hota = HOTA().eval_sequence(data)
    return {
        "mota": float(clear["MOTA"]),
        "idf1": float(identity["IDF1"]),
        "hota": float(np.mean(hota["HOTA"])),
        "switches": int(clear["IDSW"]),
        "recall": float(clear["CLR_Re"]),
        "precision": float(clear["CLR_Pr"]),
        "people": len(true_ids),
        "ids": len(found_ids),
    }


def event_scores(
    truth: Sequence[Boxes], found: Sequence[Boxes], times_ms: Sequence[int], events: Sequence[Event]
) -> dict[str, float]:
    """Precision, recall, fragmentation and boundary errors of events; see the top of this module.

    `found` are the tracked detections of each analysed frame, from which the events were built.
    """
    from scipy.optimize import linear_sum_assignment

    times = np.asarray(times_ms)
    true_events = _true_events(truth, times)
    by_track: dict[int, list[Event]] = {}
    for event in events:
        by_track.setdefault(event.track_id, []).append(event)
    overlap: Counter[tuple[str, int]] = Counter()
    paired: Counter[str] = Counter()
    for index, (t, f) in enumerate(zip(truth, found, strict=True)):
        likeness = iou(t.xyxy, f.xyxy)
        for row, column in zip(
            *linear_sum_assignment(np.where(likeness >= _MATCH_IOU, likeness, 0), maximize=True), strict=True
        ):
            if likeness[row, column] < _MATCH_IOU:
                continue
            at = int(times[index])
            person = next(
                n
                for n, (who, start, end) in enumerate(true_events)
                if who == t.ids[row] and start <= at <= end
            )
            for event in by_track.get(int(f.ids[column]), ()):
                if event.start_ms <= at <= event.end_ms:
                    overlap[event.event_id, person] += 1
                    paired[event.event_id] += 1
    of: dict[int, list[tuple[int, Event]]] = {}
    for event in events:
        shares = [(count, -person) for (name, person), count in overlap.items() if name == event.event_id]
        if shares and 2 * paired[event.event_id] >= event.detections:
            count, person = max(shares)
            of.setdefault(-person, []).append((count, event))
    errors = []
    for person, found_events in of.items():
        _, best = max(found_events, key=lambda pair: pair[0])
        _, start, end = true_events[person]
        errors += [abs(best.start_ms - start) / 1000, abs(best.end_ms - end) / 1000]
    return {
        "true_events": len(true_events),
        "events": len(events),
        "event_precision": len(of) / max(1, len(events)),
        "event_recall": len(of) / max(1, len(true_events)),
        "fragmentation": sum(map(len, of.values())) / max(1, len(of)),
        "boundary_median_s": float(np.median(errors)) if errors else float("nan"),
        "boundary_p90_s": float(np.quantile(errors, 0.9)) if errors else float("nan"),
    }


def iou(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, m) of (n, 4) and (m, 4) xyxy boxes."""
    shared = np.clip(
        np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2]),
        0,
        None,
    ).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-9)


def _true_events(truth: Sequence[Boxes], times: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(person, first, last ms) of each continuous presence."""
    presences: dict[int, list[list[int]]] = {}
    for boxes, at in zip(truth, times.tolist(), strict=True):
        for who in boxes.ids.tolist():
            spans = presences.setdefault(who, [])
            if spans and at - spans[-1][1] <= TRUE_GAP_S * 1000:
                spans[-1][1] = at
            else:
                spans.append([at, at])
    return [(who, start, end) for who, spans in presences.items() for start, end in spans]


def _dense(frames: Sequence[Boxes]) -> dict[int, int]:
    ids = sorted({i for boxes in frames for i in boxes.ids.tolist()})
    return {number: place for place, number in enumerate(ids)}
