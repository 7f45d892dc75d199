"""Synthetic footage with truth, to choose tracking constants on: people who walk, stop, turn, meet, pass
behind pillars, come and go, before a camera whose detector misses, trembles and sees things.

Only what a tracker is given is made: detections, and pictures coarse enough to tell clothes apart. Everything
follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capstone_dagster.analysis.detections import Detections
from capstone_dagster.analysis.footage.video import Image

WIDTH, HEIGHT, RATE = 640, 360, 30
NAMES = ("person",)

# A camera 4.5 m above a level ground, as on a lamp post; people stand 8 to 26 m away.
_FOCAL, _HORIZON, _CAMERA_HEIGHT_M = 533.0, 30.0, 4.5
_NEAR_M, _FAR_M = 8.0, 26.0
_SHOULDERS_M = 0.6
# In truth, a person is present while at least this part of the box is in the frame.
_PRESENT = 0.3
# Side of the cells in which it is computed who hides whom, in pixels.
_CELL = 4

# Clothes are mostly dark, grey, white or blue: a tracker must not be able to count on colours.
_CLOTHES = ((30, 30, 35), (60, 60, 60), (110, 105, 100), (200, 200, 205), (95, 55, 35), (130, 80, 50),
            (40, 40, 140), (60, 120, 70), (60, 160, 190), (150, 60, 120))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Moment:
    """What is true at one time: `ids` (n,), `boxes` (n, 4) xyxy pixels in the frame; the hidden included."""

    ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class World:
    """One scene at `RATE` frames a second: truth and detections of every frame, pictures on demand."""

    moments: Sequence[Moment]
    detections: Sequence[Detections]
    _scenes: Sequence[Sequence[tuple[float, int, tuple[float, float, float, float]]]]
    _looks: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]]
    _background: Image
    _noise: npt.NDArray[np.int16]

    def picture(self, index: int) -> Image:
        image = self._background.copy()
        for _, who, box in self._scenes[index]:
            x1, y1, x2, y2 = (round(value) for value in box)
            if who < 0:
                image[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = (120, 125, 130)
                continue
            shirt, trousers = self._looks[who]
            inset = (x2 - x1) // 6
            parts = (
                (0.0, 0.14, 2 * inset, (120, 150, 190)),
                (0.14, 0.52, inset, shirt),
                (0.52, 1.0, inset, trousers),
            )
            for top, bottom, aside, colour in parts:
                rows = slice(max(0, round(y1 + top * (y2 - y1))), max(0, round(y1 + bottom * (y2 - y1))))
                image[rows, max(0, x1 + aside) : max(0, x2 - aside)] = colour
        shifted = self._noise[index % 7 : index % 7 + HEIGHT, index % 11 : index % 11 + WIDTH]
        return np.clip(image.astype(np.int16) + shifted, 0, 255).astype(np.uint8)


def make_world(seed: int, *, seconds: float = 60.0, arrivals_s: float = 4.0) -> World:
    """A scene into which somebody, or a couple, comes every `arrivals_s` seconds on average."""
    rng = np.random.default_rng(seed)
    frames = round(seconds * RATE)
    people = []
    at = -float(rng.uniform(0, 15))
    while at < seconds:
        route = _route(rng)
        for member in range(2 if rng.random() < 0.25 else 1):
            people.append(_walk(rng, route + member * np.array([0.5, 0.6]), at + 0.2 * member, frames))
        at += float(rng.exponential(arrivals_s))
    pillars = [_pillar(rng) for _ in range(int(rng.integers(0, 4)))]
    looks = {
        who: (_CLOTHES[rng.integers(len(_CLOTHES))], _CLOTHES[rng.integers(6)]) for who in range(len(people))
    }
    clutter = rng.uniform((20, 60), (WIDTH - 20, HEIGHT - 60), size=(int(rng.integers(0, 4)), 2))
    detector = _Detector(rng, len(people), clutter)
    moments, detections, scenes = [], [], []
    for frame in range(frames):
        scene: list[tuple[float, int, tuple[float, float, float, float]]] = [*pillars]
        for who, person in enumerate(people):
            if (ground := person.get(frame)) is not None:
                scene.append((ground[1], who, _box(*ground)))
        scene.sort(key=lambda item: -item[0])
        moments.append(_truth(scene))
        detections.append(detector.look(scene))
        scenes.append(scene)
    light = np.linspace(90, 150, WIDTH)[None, :, None] + np.linspace(-25, 15, HEIGHT)[:, None, None]
    background = np.broadcast_to(light + np.array([0, 6, 4]), (HEIGHT, WIDTH, 3)).astype(np.uint8)
    noise = rng.normal(0, 9, (HEIGHT + 8, WIDTH + 12, 3)).astype(np.int16)
    return World(moments, detections, scenes, looks, background, noise)


def _half_width_m(depth_m: float) -> float:
    return WIDTH / 2 * depth_m / _FOCAL


def _box(x_m: float, z_m: float, height_m: float) -> tuple[float, float, float, float]:
    foot = _HORIZON + _FOCAL * _CAMERA_HEIGHT_M / z_m
    x, height, width = WIDTH / 2 + _FOCAL * x_m / z_m, _FOCAL * height_m / z_m, _FOCAL * _SHOULDERS_M / z_m
    return x - width / 2, foot - height, x + width / 2, foot


def _route(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Way points on the ground in metres: from one side, over up to two places, to either side."""
    places = []
    for kind in ("edge", *["inside"] * int(rng.integers(0, 3)), "edge"):
        z = float(rng.uniform(_NEAR_M, _FAR_M))
        side = _half_width_m(z) + 1.5
        x = (
            float(rng.choice([-side, side]))
            if kind == "edge"
            else float(rng.uniform(-0.8, 0.8)) * (side - 1.5)
        )
        places.append((x, z))
    if len(places) == 2 and places[0][0] * places[1][0] > 0:  # straight through, not back out at once
        places[1] = (-places[1][0], places[1][1])
    return np.array(places)


def _walk(
    rng: np.random.Generator, route: npt.NDArray[np.float64], start_s: float, frames: int
) -> dict[int, tuple[float, float, float]]:
    """Where a person is in each frame of his way: metres aside, metres away, his height in metres."""
    speed, height = max(0.5, float(rng.normal(1.3, 0.3))), float(rng.normal(1.72, 0.08))
    place, velocity = route[0].copy(), np.zeros(2)
    way: dict[int, tuple[float, float, float]] = {}
    frame, target, pause = round(start_s * RATE), 1, 0
    while frame < frames and target < len(route):
        towards = route[target] - place
        distance = float(np.hypot(*towards))
        if distance < 0.4:
            target += 1
            pause = round(RATE * float(rng.uniform(1, 8))) if rng.random() < 0.4 else 0
            continue
        wanted = np.zeros(2) if pause > 0 else towards / distance * speed
        pause -= pause > 0
        # Half a second to react, and a gait that is never quite straight or even.
        velocity += (wanted - velocity) / (0.5 * RATE) + rng.normal(0, 0.35, 2) * RATE**-0.5
        place += velocity / RATE
        if frame >= 0:
            way[frame] = (float(place[0]), max(4.0, float(place[1])), height)
        frame += 1
    return way


def _pillar(rng: np.random.Generator) -> tuple[float, int, tuple[float, float, float, float]]:
    z = float(rng.uniform(_NEAR_M, 18))
    x = float(rng.uniform(-0.8, 0.8)) * _half_width_m(z)
    x1, _, x2, foot = _box(x, z, 1.0)
    middle, half = (x1 + x2) / 2, (x2 - x1) / 2 * float(rng.uniform(0.7, 2.0))
    return z, -1, (middle - half, foot - 4.0 * _FOCAL / z, middle + half, foot)


def _inside(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return max(0.0, box[0]), max(0.0, box[1]), min(float(WIDTH), box[2]), min(float(HEIGHT), box[3])


def _area(box: tuple[float, float, float, float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _truth(scene: Sequence[tuple[float, int, tuple[float, float, float, float]]]) -> Moment:
    present = [
        (who, _inside(box))
        for _, who, box in scene
        if who >= 0 and _area(_inside(box)) >= _PRESENT * _area(box)
    ]
    return Moment(
        np.array([who for who, _ in present], dtype=np.int64),
        np.array([box for _, box in present], dtype=np.float64).reshape(-1, 4),
    )


class _Detector:
    """Sees who is visible, with errors that last: boxes tremble slowly, a hard pose is missed for a while."""

    def __init__(self, rng: np.random.Generator, people: int, clutter: npt.NDArray[np.float64]) -> None:
        self._rng = rng
        self._jitter = np.zeros((people, 4))
        self._mood = np.zeros(people)
        self._hard = np.zeros(people, dtype=bool)
        self._doubled = np.zeros(people, dtype=bool)
        self._clutter = clutter
        self._clutter_on = np.zeros(len(clutter), dtype=bool)

    def look(self, scene: Sequence[tuple[float, int, tuple[float, float, float, float]]]) -> Detections:
        rng, step = self._rng, 1 / RATE
        # Errors forget themselves within a fifth of a second (boxes) and a second (scores).
        self._jitter += (
            -self._jitter * step / 0.2 + rng.normal(0, 1, self._jitter.shape) * (2 * step / 0.2) ** 0.5
        )
        self._mood += -self._mood * step + rng.normal(0, 1, self._mood.shape) * (2 * step) ** 0.5
        self._hard = np.where(self._hard, *_lasting(rng, len(self._hard), ends_s=0.5, begins_s=6.0))
        self._doubled = np.where(self._doubled, *_lasting(rng, len(self._doubled), ends_s=0.3, begins_s=40.0))
        self._clutter_on = np.where(
            self._clutter_on, *_lasting(rng, len(self._clutter_on), ends_s=0.4, begins_s=12.0)
        )
        boxes: list[tuple[float, ...]] = []
        scores: list[float] = []
        for who, share, seen, full in _visible(scene):
            height = full[3] - full[1]
            chance = min(1.0, max(0.0, (share - 0.2) / 0.45)) * (0.25 if self._hard[who] else 0.985)
            if rng.random() > chance:
                continue
            # A detector half believes in what is hidden.
            box = 0.65 * np.array(seen) + 0.35 * np.array(full)
            box += self._jitter[who] * 0.025 * height
            score = 0.35 + 0.5 * share + 0.1 * self._mood[who] - (0.3 if self._hard[who] else 0.0)
            boxes.append(tuple(box))
            scores.append(score)
            if self._doubled[who]:
                boxes.append((box[0], box[1], box[2], box[1] + 0.45 * height))
                scores.append(score - 0.3)
        for (x, y), on in zip(self._clutter, self._clutter_on, strict=True):
            if on:
                boxes.append((x - 10, y - 28, x + 10, y + 28))
                scores.append(float(rng.uniform(0.12, 0.5)))
        kept = [index for index in np.argsort(scores)[::-1] if scores[index] >= 0.1]
        found = Detections.of(
            [boxes[index] for index in kept],
            [min(0.95, scores[index]) for index in kept],
            [0] * len(kept),
            NAMES,
        )
        found = found.clipped(WIDTH, HEIGHT)
        return found.select(_non_maximum_suppression(found.boxes, 0.7))


def _lasting(
    rng: np.random.Generator, count: int, *, ends_s: float, begins_s: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """For states that last: what those that hold become, what those that do not become."""
    return rng.random(count) > 1 / (RATE * ends_s), rng.random(count) < 1 / (RATE * begins_s)


def _visible(
    scene: Sequence[tuple[float, int, tuple[float, float, float, float]]],
) -> list[tuple[int, float, tuple[float, ...], tuple[float, float, float, float]]]:
    """For each person in the frame: who, the share of his box that shows, the box around it, the whole."""
    owner = np.full((HEIGHT // _CELL, WIDTH // _CELL), -1)
    areas = []
    for place, (_, _, box) in enumerate(scene):
        x1, y1, x2, y2 = (max(0, round(value / _CELL)) for value in box)
        owner[y1:y2, x1:x2] = place
        areas.append(max(1, (min(y2, owner.shape[0]) - y1) * (min(x2, owner.shape[1]) - x1)))
    found = []
    for place, (_, who, box) in enumerate(scene):
        inside = _inside(box)
        if who < 0 or _area(inside) <= 0.05 * _area(box):
            continue
        x1, y1, x2, y2 = (max(0, round(value / _CELL)) for value in box)
        mine = owner[y1:y2, x1:x2] == place
        if not mine.any():
            continue
        rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
        seen = (
            max(inside[0], (x1 + columns[0]) * _CELL),
            max(inside[1], (y1 + rows[0]) * _CELL),
            min(inside[2], (x1 + columns[-1] + 1) * _CELL),
            min(inside[3], (y1 + rows[-1] + 1) * _CELL),
        )
        share = float(mine.sum()) / areas[place] * min(1.0, _area(inside) / _area(box) + 0.3)
        found.append((who, min(1.0, share), seen, inside))
    return found


def _non_maximum_suppression(boxes: npt.NDArray[np.float32], limit: float) -> npt.NDArray[np.intp]:
    """Positions that stay, of boxes in order of falling score."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        others = boxes[kept]
        overlap = np.clip(
            np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None
        ).prod(1)
        union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - overlap
        if (overlap <= limit * union).all():
            kept.append(index)
    return np.array(kept, dtype=np.intp)
