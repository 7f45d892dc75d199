"""Detections joined into tracklets on the spot: by where objects should be by now, and by their looks.

In two steps, as ByteTrack does: sure detections first, then weak ones for those tracklets that would
otherwise miss this picture. Unlike there, whether two things belong together is asked in likelihoods, not in
overlaps: at two pictures a second, boxes of one walking person do not overlap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..detections import Detections
from ..footage.video import Image
from ..settings import AnalysisSettings
from . import appearance
from .association import assign, highest_evidence, motion_evidence, overlap, overlap_of_smaller
from .motion import Floats, MotionModel, States, measured
from .stitching import UNTRACKED, Stitcher, Tracklet

# Chosen with `bench/accuracy.py --worlds`, see there, but for what is said to be judged.
# Nats that speak for a detection being something new, before anything is known about it. One more or less
# loses a hundredth of the sum of scores.
_NEW_OBJECT = 3.0
# Variances of weak detections, in those of sure ones.
_WEAK_NOISE = 2.0
# And of boxes that the frame cuts, within this share of its side of the border: they hold what is left of
# somebody who leaves, or is there already of somebody who comes, and that can halve or double from one
# picture to the next. If so much of the smaller lies in the larger, of the box that was expected and the one
# that is there, it is taken for the same, unless something fits better. Judged on training footage of people
# who come close.
_CUT_NOISE = 9.0
_CUT_MARGIN = 0.0125
_CUT_INSIDE, _CUT_EVIDENCE = 0.7, 0.5
# After seconds unseen many places are equally likely, so even the expected one is not believed, by this much.
# A box that overlaps the last one by this much is then a person who still stands there, unless another fits
# better. Chosen by judgement: two people who stand in one place one after the other overlap as well.
_BELIEVABLE = 1.5
_STILL_OVERLAP, _STILL_EVIDENCE = 0.5, 0.5
# A tracklet that is unseen for this long, and in this many pictures, has ended: from there on it is the
# stitcher's, which sees both sides of a gap. What was seen only once is sooner a false alarm.
_PATIENCE_MS, _PATIENCE_PICTURES = 1000, 3
_SINGLE_PATIENCE_MS, _SINGLE_PATIENCE_PICTURES = 350, 2
# Looks change slowly: by how much a new one counts, and how long they are taken to be the same. Judged.
_LOOK_RATE = 0.15
_LOOK_SPACING_MS = 150
# Where another box lies over more than this share of a box, its colours are not its own. Judged.
_COVERED = 0.15
# What a detection adds to the belief that somebody is there: its score above this (or above what is kept,
# where that is less), as false alarms last at low scores; and nothing where so much of its box lies in that
# of a surer detection, as second boxes of one body do.
_DOUBTED = 0.25
_DOUBLED = 0.8


class MotionTracker:
    """Tracklets of one label."""

    def __init__(self, model: MotionModel, settings: AnalysisSettings, stitcher: Stitcher) -> None:
        self._model = model
        self._min_score = settings.min_score
        self._doubted = min(_DOUBTED, settings.min_score)
        self._buffer_ms = settings.track_buffer_s * 1000
        self._stitcher = stitcher
        # One row for each tracklet that is open.
        self._tracklets: list[Tracklet] = []
        self._states = States.seen(np.zeros((0, 4)), model)
        self._missed = np.zeros(0, dtype=np.int64)
        self._cut = np.zeros(0, dtype=np.bool_)
        self._looks = np.zeros((0, appearance.LENGTH), dtype=np.float32)
        self._looked_ms = np.zeros(0, dtype=np.int64)

    def update(self, detections: Detections, image: Image | None, pts_ms: int) -> npt.NDArray[np.int32]:
        """See `LabelTracker`."""
        numbers = np.full(len(detections), UNTRACKED, dtype=np.int32)
        if not self._tracklets and len(detections) == 0:
            return numbers
        places = measured(detections.boxes)
        sure = detections.scores >= self._min_score
        size = np.maximum(1.0, places[:, 2:].max(axis=1, keepdims=True, initial=1.0))
        noise = self._model.noise * size**2 * np.where(sure, 1.0, _WEAK_NOISE)[:, None]
        cut = np.zeros(len(detections), dtype=np.bool_) if image is None else _cut(detections.boxes, image)
        noise *= np.where(cut, _CUT_NOISE, 1.0)[:, None]
        looks = None if image is None else appearance.describe(image, detections.boxes)
        predicted = self._states.after(self._unseen_ms(pts_ms) / 1000, self._model)

        believed = np.where(_inside_surer(places, detections.scores), 0.0, detections.scores - self._doubted)

        pairs = self._pairs(predicted, places, noise, looks, sure, cut)
        rows, columns = pairs[:, 0], pairs[:, 1]
        self._states.assign(rows, predicted.select(rows).corrected(places[columns], noise[columns]))
        self._missed += 1
        self._missed[rows] = 0
        self._cut[rows] = cut[columns]
        for row, column in pairs.tolist():
            tracklet = self._tracklets[row]
            tracklet.saw(pts_ms, places[column], noise[column], float(believed[column]))
            numbers[column] = tracklet.number
        if looks is not None:
            self._learn(pairs, looks, _covered(detections.boxes), pts_ms)

        self._end_lost(pts_ms)
        unknown = sure.copy()
        unknown[columns] = False
        frame = None if image is None else (image.shape[1], image.shape[0])
        for column in np.flatnonzero(unknown).tolist():
            tracklet = self._stitcher.begin(self._model, pts_ms, frame)
            tracklet.saw(pts_ms, places[column], noise[column], float(believed[column]))
            self._tracklets.append(tracklet)
            numbers[column] = tracklet.number
        self._add_rows(places[unknown], cut[unknown])
        return numbers

    def finish(self) -> None:
        """See `LabelTracker`."""
        for row in range(len(self._tracklets)):
            self._end(row)
        self._keep(np.zeros(len(self._tracklets), dtype=np.bool_))

    def _pairs(
        self,
        predicted: States,
        places: Floats,
        noise: Floats,
        looks: npt.NDArray[np.float32] | None,
        sure: npt.NDArray[np.bool_],
        cut: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.intp]:
        """(k, 2) rows of tracklets and positions of detections that belong together."""
        # A box that the frame cuts may be the rest of anybody: the larger must not win by its unit.
        sizes = places[:, 2:].max(axis=1, initial=1.0)
        unit = np.where(cut, sizes, predicted.size)
        evidence = motion_evidence(predicted, places, noise, unit) - _NEW_OBJECT
        if looks is not None:
            known = (self._looked_ms >= 0)[:, None]
            evidence += np.where(known, appearance.evidence(self._looks @ looks.T), 0.0)
        still = highest_evidence(predicted, noise, unit) - _NEW_OBJECT < _BELIEVABLE
        if still.any():
            still &= overlap(self._states.place, places) >= _STILL_OVERLAP
            evidence = np.where(still, np.maximum(evidence, _STILL_EVIDENCE), evidence)
        waiting = self._missed == 0
        if cut.any() or self._cut.any():
            rest = (
                (cut | self._cut[:, None])
                & waiting[:, None]
                & (overlap_of_smaller(predicted.place, places) >= _CUT_INSIDE)
            )
            evidence = np.where(rest, np.maximum(evidence, _CUT_EVIDENCE), evidence)
        first = assign(np.where(sure, evidence, -np.inf))
        waiting[first[:, 0]] = False
        second = assign(np.where(~sure & waiting[:, None], evidence, -np.inf))
        return np.concatenate([first, second])

    def _learn(
        self,
        pairs: npt.NDArray[np.intp],
        looks: npt.NDArray[np.float32],
        covered: npt.NDArray[np.bool_],
        pts_ms: int,
    ) -> None:
        rows, columns = pairs[:, 0], pairs[:, 1]
        clear = ~covered[columns] & (pts_ms - self._looked_ms[rows] >= _LOOK_SPACING_MS)
        rows, columns = rows[clear], columns[clear]
        rate = np.where(self._looked_ms[rows] < 0, 1.0, _LOOK_RATE)[:, None].astype(np.float32)
        mixed = (1 - rate) * self._looks[rows] + rate * looks[columns]
        self._looks[rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        self._looked_ms[rows] = pts_ms
        for row, look in zip(rows.tolist(), self._looks[rows], strict=True):
            self._tracklets[row].look = look

    def _end_lost(self, pts_ms: int) -> None:
        unseen_ms = self._unseen_ms(pts_ms)
        single = np.array([tracklet.sightings < 2 for tracklet in self._tracklets], dtype=np.bool_)
        lost = (unseen_ms > np.where(single, _SINGLE_PATIENCE_MS, _PATIENCE_MS)) & (
            self._missed >= np.where(single, _SINGLE_PATIENCE_PICTURES, _PATIENCE_PICTURES)
        )
        lost |= (unseen_ms > self._buffer_ms) & (self._missed > 0)
        if lost.any():
            for row in np.flatnonzero(lost).tolist():
                self._end(row)
            self._keep(~lost)

    def _end(self, row: int) -> None:
        self._stitcher.end(self._tracklets[row], self._states.select(np.array([row])))

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self._tracklets = [
            tracklet for tracklet, keep in zip(self._tracklets, kept.tolist(), strict=True) if keep
        ]
        self._states = self._states.select(kept)
        self._missed, self._cut = self._missed[kept], self._cut[kept]
        self._looks, self._looked_ms = self._looks[kept], self._looked_ms[kept]

    def _add_rows(self, places: Floats, cut: npt.NDArray[np.bool_]) -> None:
        count = len(places)
        if count:
            self._states = self._states.joined(States.seen(places, self._model))
            self._missed = np.concatenate([self._missed, np.zeros(count, dtype=np.int64)])
            self._cut = np.concatenate([self._cut, cut])
            self._looks = np.concatenate(
                [self._looks, np.zeros((count, appearance.LENGTH), dtype=np.float32)]
            )
            self._looked_ms = np.concatenate([self._looked_ms, np.full(count, -_LOOK_SPACING_MS)])

    def _unseen_ms(self, pts_ms: int) -> npt.NDArray[np.int64]:
        return pts_ms - np.array([tracklet.last_ms for tracklet in self._tracklets], dtype=np.int64)


def _inside_surer(places: Floats, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(n,) whether each box lies mostly inside one with a higher score."""
    area = places[:, 2:].prod(axis=1)
    inside = overlap_of_smaller(places, places) >= _DOUBLED
    return np.asarray(
        (inside & (scores[None, :] > scores[:, None]) & (area[None, :] >= area[:, None])).any(axis=1)
    )


def _cut(boxes: npt.NDArray[np.float32], image: Image) -> npt.NDArray[np.bool_]:
    """(n,) whether each box touches the border of the picture, before which detectors may end it a little."""
    height, width = image.shape[:2]
    size = np.array([width, height])
    near = (boxes[:, :2] <= _CUT_MARGIN * size).any(axis=1)
    far = (boxes[:, 2:] >= (1 - _CUT_MARGIN) * size).any(axis=1)
    return np.asarray(near | far)


def _covered(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(n,) whether another box lies over a good part of each."""
    corners = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], boxes[None, :, :2]
    )
    shared = np.clip(corners, 0, None).prod(axis=2)
    np.fill_diagonal(shared, 0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.asarray((shared > _COVERED * area[:, None]).any(axis=1))
