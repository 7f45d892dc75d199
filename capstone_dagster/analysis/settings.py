"""Settings of an analysis, validated on construction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from .errors import InvalidAnalysisSettings
from .zones import Zone

TrackerName = Literal["motion", "bytetrack", "botsort"]
Precision = Literal["auto", "full"]

# ByteTrack continues a track through weak detections that could not start one. Its authors' floor is 0.1,
# below which boxes are mostly background. The detector reports everything above it, whatever is kept later.
WEAK_SCORE = 0.1


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """What to detect, how often, and from which score.

    >>> AnalysisSettings(labels=("person",), sample_fps=2).sample_fps
    2.0
    >>> AnalysisSettings(min_score=2)
    Traceback (most recent call last):
        ...
    capstone_dagster.analysis.errors.InvalidAnalysisSettings: min_score must be more than 0 and at most 1, \
but is 2.0; correct the setting.

    Attributes:
        labels: the classes to detect, by the model's names.
        sample_fps: frames analysed per second of video; 0 means every frame. Sampling goes by presentation
            time.
        motion_gate: skip sampled frames in which nothing has changed (see `Sampling`).
        min_score: detections with a lower score are dropped (0-1).
        iou: two boxes of one label that overlap by more than this are one object (non-maximum suppression,
            0-1).
        image_size: the longer side, in pixels, of the picture the model sees; None leaves it to the model.
        tracker: joins detections into tracks: `motion`, which makes one track of one visit, or Ultralytics'
            unmodified ByteTrack or BoT-SORT.
        track_buffer_s: how long a person may be unseen within one track, in seconds of video. The default
            is longer than it takes to pass behind a pillar; more gained nothing on synthetic footage.
        precision: `auto` uses bf16 or half precision if the processor has it; `full` uses 32 bits, for the
            same boxes as Ultralytics on any machine.
    """

    labels: tuple[str, ...] = ("person", "face")
    sample_fps: float = 5.0
    motion_gate: bool = False
    min_score: float = 0.25
    iou: float = 0.7
    image_size: int | None = None
    tracker: TrackerName = "motion"
    track_buffer_s: float = 5.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        # Convert to tuples and floats, so that equal settings compare equal and have equal ids.
        object.__setattr__(self, "labels", _names("labels", self.labels))
        for field in ("sample_fps", "min_score", "iou", "track_buffer_s"):
            object.__setattr__(self, field, _number(field, getattr(self, field)))
        _require(
            len(self.labels) > 0
            and all(isinstance(name, str) and name.strip() == name != "" for name in self.labels),
            "labels",
            self.labels,
            "at least one name without surrounding blanks, such as ('person', 'face')",
        )
        _require(len(set(self.labels)) == len(self.labels), "labels", self.labels, "names that differ")
        # 1000 is beyond any camera; more is a mistyped interval in milliseconds.
        _require(
            0 <= self.sample_fps <= 1000, "sample_fps", self.sample_fps, "0 (every frame) to 1000 per second"
        )
        _require(isinstance(self.motion_gate, bool), "motion_gate", self.motion_gate, "True or False")
        _require(0 < self.min_score <= 1, "min_score", self.min_score, "more than 0 and at most 1")
        _require(0 < self.iou <= 1, "iou", self.iou, "more than 0 and at most 1")
        _require(
            self.image_size is None or (_is_integer(self.image_size) and 32 <= self.image_size <= 8192),
            "image_size",
            self.image_size,
            "None or a whole number of pixels from 32 to 8192",
        )
        _require(
            self.tracker in get_args(TrackerName), "tracker", self.tracker, f"one of {get_args(TrackerName)}"
        )
        _require(
            0 < self.track_buffer_s <= 600,
            "track_buffer_s",
            self.track_buffer_s,
            "more than 0, at most 600 s",
        )
        _require(
            self.precision in get_args(Precision),
            "precision",
            self.precision,
            f"one of {get_args(Precision)}",
        )

    @property
    def weak_score(self) -> float:
        """The lowest score that the detector reports: the tracker also uses detections that are not kept."""
        return min(WEAK_SCORE, self.min_score)

    def detection_fields(self) -> dict[str, object]:
        """Every setting that changes detections or tracks, for JSON; the order of labels does not count."""
        return {
            "labels": sorted(self.labels),
            "sample_fps": self.sample_fps,
            "motion_gate": self.motion_gate,
            "min_score": self.min_score,
            "iou": self.iou,
            "image_size": self.image_size,
            "tracker": self.tracker,
            "track_buffer_s": self.track_buffer_s,
            "precision": self.precision,
        }


@dataclass(frozen=True, slots=True)
class EventRules:
    """How detections become events. A changed rule never needs the pixels again.

    >>> EventRules(max_gap_s=2).as_fields()["max_gap_s"]
    2.0

    Attributes:
        min_detections: a shorter appearance is noise. The default is 2, because a false detection rarely
            repeats in place.
        min_duration_s: a shorter appearance is noise. Each detection counts one sampling interval: at 5
            frames a second two detections last 0.4 s; at 30, 0.3 s needs about nine.
        max_gap_s: a track unseen for longer begins a new event. At least 2.5 sampling intervals, so that one
            missed detection never splits an event. None leaves the decision to the tracker, which also used
            detections that were not kept.
        face_containment: a face belongs to a person if at least this fraction of its box lies in the
            person's box. 0.8 allows for imprecise boxes, but not for the face of a passer-by.
        zones: what is noted of each event besides, in its camera's picture.
    """

    min_detections: int = 2
    min_duration_s: float = 0.3
    max_gap_s: float | None = None
    face_containment: float = 0.8
    zones: tuple[Zone, ...] = ()

    def __post_init__(self) -> None:
        for field in ("min_duration_s", "face_containment"):
            object.__setattr__(self, field, _number(field, getattr(self, field)))
        if self.max_gap_s is not None:
            object.__setattr__(self, "max_gap_s", _number("max_gap_s", self.max_gap_s))
        _require(
            _is_integer(self.min_detections) and self.min_detections >= 1,
            "min_detections",
            self.min_detections,
            "a whole number of at least 1",
        )
        _require(self.min_duration_s >= 0, "min_duration_s", self.min_duration_s, "0 s or more")
        _require(
            self.max_gap_s is None or self.max_gap_s >= 0, "max_gap_s", self.max_gap_s, "None, or 0 s or more"
        )
        _require(
            0 < self.face_containment <= 1,
            "face_containment",
            self.face_containment,
            "more than 0, at most 1",
        )

    def as_fields(self) -> dict[str, object]:
        """Every rule, for JSON and for the analysis id, which had no zones before there were any."""
        fields: dict[str, object] = asdict(self)
        return fields if self.zones else {name: fields[name] for name in fields if name != "zones"}


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidAnalysisSettings(
            f"{field} must be a finite number, but is {value!r}; correct the setting."
        )
    return float(value)


def _names(field: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):  # a string is iterable, too
        raise InvalidAnalysisSettings(
            f"{field} must be a sequence of names, but is {value!r}; write a tuple."
        )
    return tuple(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise InvalidAnalysisSettings(f"{field} must be {allowed}, but is {value!r}; correct the setting.")
