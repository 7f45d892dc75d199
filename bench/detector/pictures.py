"""Training pictures: labelled source pictures become many small, varied ones of a fixed size.

Pure functions over arrays: no files, no teachers. Everything random comes from the generator passed in, so
one seed gives one data set. Object sizes follow what the detector meets at `INFERENCE_SIZE`, where a whole
frame is 480 pixels wide: a square picture is mostly a crop of such a frame, a wide one mostly a whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from bench.detector.teachers import FACE, PERSON

SQUARE = (320, 320)
"""Height and width of the pictures that most is learned from: a quarter of the work of 640 pixels."""

WIDE = (288, 480)
"""Height and width of the pictures to finish with: a 16:9 frame as the detector sees it, padding included."""

MIN_PART = 0.3
"""A box of which less than this part is left by a crop is no longer taught as somebody."""

FULL_FIGURE = 90
"""Below this height in pixels only upright figures are pasted: far away, nobody is seen to the waist only."""

MIN_SIDE = {PERSON: 7.0, FACE: 5.0}
"""Boxes narrower than this (pixels of the training picture) are less than the model's grid can tell."""


@dataclass(frozen=True)
class Labelled:
    """A picture (h, w, 3) uint8 BGR with class ids (n,) and boxes (n, 4) xyxy pixels of what is in it."""

    picture: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    source: str = ""


@dataclass(frozen=True)
class Cutout:
    """Somebody without surroundings: pixels (h, w, 3), opacity (h, w) float32 0-1, boxes in these pixels.

    The first box is the person's, the others are faces on it.
    """

    picture: np.ndarray
    opacity: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray


def hide(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy in which what the teachers doubt is smeared beyond recognition: neither a lesson nor a lie."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    for x1, y1, x2, y2 in boxes:
        pad = 0.1 * max(x2 - x1, y2 - y1)
        a, b = max(int(x1 - pad), 0), max(int(y1 - pad), 0)
        c, d = min(int(x2 + pad) + 1, width), min(int(y2 + pad) + 1, height)
        if c > a and d > b:
            tiny = cv2.resize(picture[b:d, a:c], (2, 2), interpolation=cv2.INTER_AREA)
            picture[b:d, a:c] = cv2.resize(tiny, (c - a, d - b), interpolation=cv2.INTER_LINEAR)
    return picture


def crop(
    item: Labelled, rng: np.random.Generator, shape: tuple[int, int] = SQUARE, *, fill: bool = False
) -> Labelled:
    """A crop of (height, width) `shape` of the picture scaled to at most 900 pixels, often around somebody.

    `fill` asks for a scale at which no grey padding is left.
    """
    height, width = item.picture.shape[:2]
    narrow, wide = (shape[1], 900) if rng.random() < 0.75 else (0.7 * shape[1], shape[1])
    frame_width = float(np.exp(rng.uniform(np.log(narrow), np.log(wide))))
    if fill:
        frame_width = max(frame_width, 1.15 * max(shape[1], shape[0] * width / height))
    # Nobody is shown much larger than the training picture: nothing would be left of the outline.
    if len(item.boxes):
        largest = float((item.boxes[:, 2:] - item.boxes[:, :2]).max())
        frame_width = min(frame_width, 1.6 * shape[0] * width / largest)
    scale = frame_width / width
    stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
    sx, sy = scale * stretch, scale / stretch
    if len(item.boxes) and rng.random() < 0.75:
        x1, y1, x2, y2 = item.boxes[rng.integers(len(item.boxes))]
        cx, cy = rng.uniform(x1, x2), rng.uniform(y1, y2)
    else:
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    left = _place(cx * sx - rng.uniform(0.15, 0.85) * shape[1], width * sx, shape[1], rng)
    top = _place(cy * sy - rng.uniform(0.15, 0.85) * shape[0], height * sy, shape[0], rng)
    area = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    resized = cv2.resize(
        item.picture, (max(round(width * sx), 1), max(round(height * sy), 1)), interpolation=area
    )
    return _cut(item, resized, (sx, sy), (round(left), round(top)), shape)


def fit_whole(item: Labelled, shape: tuple[int, int] = WIDE) -> Labelled:
    """The whole picture, scaled and padded to (height, width) `shape` as the detector gets it."""
    height, width = item.picture.shape[:2]
    scale = min(shape[0] / height, shape[1] / width)
    size = (round(width * scale), round(height * scale))
    resized = cv2.resize(item.picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    origin = (-((shape[1] - size[0]) // 2), -((shape[0] - size[1]) // 2))
    return _cut(item, resized, (scale, scale), origin, shape)


def _cut(
    item: Labelled,
    resized: np.ndarray,
    scale: tuple[float, float],
    origin: tuple[int, int],
    shape: tuple[int, int],
) -> Labelled:
    """The part of `resized` that starts at `origin` (x, y), padded to `shape`, with the boxes of `item`."""
    (sx, sy), (ox, oy) = scale, origin
    out = np.full((*shape, 3), 114, dtype=np.uint8)  # the grey with which Ultralytics pads what is too narrow
    x0, y0 = max(ox, 0), max(oy, 0)
    x1, y1 = min(ox + shape[1], resized.shape[1]), min(oy + shape[0], resized.shape[0])
    out[y0 - oy : y1 - oy, x0 - ox : x1 - ox] = resized[y0:y1, x0:x1]
    boxes = item.boxes * np.array([sx, sy, sx, sy]) - np.array([ox, oy, ox, oy])
    return _inside(replace(item, picture=out, boxes=boxes))


def _place(wanted: float, length: float, room: int, rng: np.random.Generator) -> float:
    """Where the crop starts along one axis: inside a picture that is long enough, else anywhere around it."""
    if length >= room:
        return min(max(wanted, 0.0), length - room)
    return float(-rng.uniform(0, room - length))


def _inside(item: Labelled) -> Labelled:
    """Boxes clipped to the picture; what is nearly gone or tiny is dropped."""
    height, width = item.picture.shape[:2]
    boxes = item.boxes
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    clipped = np.clip(boxes, 0, [width, height, width, height])
    sides = clipped[:, 2:] - clipped[:, :2]
    smallest = np.array([MIN_SIDE[int(c)] for c in item.classes])
    keep = (sides.min(axis=1, initial=np.inf) >= smallest) & (np.prod(sides, axis=1) >= MIN_PART * area)
    return replace(item, classes=item.classes[keep], boxes=clipped[keep])


def cut_out(item: Labelled, index: int) -> Cutout | None:
    """Separate person `index` from what is behind, by GrabCut; None where the outline is not a person's."""
    height, width = item.picture.shape[:2]
    x1, y1, x2, y2 = item.boxes[index]
    pad_x, pad_y = 0.15 * (x2 - x1), 0.08 * (y2 - y1)
    a, b = int(max(x1 - pad_x, 0)), int(max(y1 - pad_y, 0))
    c, d = int(min(x2 + pad_x, width)), int(min(y2 + pad_y, height))
    patch = item.picture[b:d, a:c]
    scale = min(1.0, 240 / max(patch.shape[:2]))
    patch = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    inner = ((item.boxes[index] - [a, b, a, b]) * scale).round().astype(int)
    if min(inner[2] - inner[0], inner[3] - inner[1]) < 12:
        return None
    mask = np.full(patch.shape[:2], cv2.GC_BGD, dtype=np.uint8)
    mask[inner[1] : inner[3], inner[0] : inner[2]] = cv2.GC_PR_FGD
    try:
        cv2.grabCut(patch, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None  # all of one colour
    solid = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(solid)
    if count < 2:
        return None
    solid = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    box_area = float((inner[2] - inner[0]) * (inner[3] - inner[1]))
    ys, xs = np.nonzero(solid)
    tall = (ys.max() - ys.min()) / max(inner[3] - inner[1], 1)
    wide = (xs.max() - xs.min()) / max(inner[2] - inner[0], 1)
    if not 0.25 < solid.sum() / box_area < 0.92 or tall < 0.85 or wide < 0.6:
        return None
    opacity = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 1.0)
    classes, boxes = [PERSON], [inner.astype(np.float32)]
    for other, box in zip(item.classes, item.boxes, strict=True):
        centre = (box[:2] + box[2:]) / 2
        if other == FACE and (centre > [x1, y1]).all() and (centre < [x2, y2]).all():
            classes.append(FACE)
            boxes.append(((box - [a, b, a, b]) * scale).astype(np.float32))
    return Cutout(patch, opacity, np.array(classes), np.array(boxes))


def paste(scene: Labelled, people: list[Cutout], rng: np.random.Generator) -> Labelled:
    """`scene` with people put into it, the farther (higher) ones first."""
    height, width = scene.picture.shape[:2]
    picture = scene.picture.astype(np.float32)
    classes, boxes = [*scene.classes], [*scene.boxes]
    # One scene has one scale: heights vary around it and shrink towards the top, as from a raised camera.
    base = float(np.exp(rng.uniform(np.log(22), np.log(240))))
    slope = rng.uniform(0.0, 1.0)
    if base < FULL_FIGURE:
        people = [p for p in people if p.boxes[0][3] - p.boxes[0][1] > 1.6 * (p.boxes[0][2] - p.boxes[0][0])]
    feet = np.sort(rng.uniform(0.25, 1.15, len(people)))
    for person, foot in zip(people, feet, strict=True):
        tall = base * (1 - slope * (1 - min(foot, 1.0))) * float(np.exp(rng.normal(0, 0.12)))
        tall = max(tall, 12.0)
        scale = tall / person.picture.shape[0]
        squeeze = float(np.exp(rng.normal(0, 0.06)))
        size = (max(round(person.picture.shape[1] * scale * squeeze), 4), max(round(tall), 8))
        pixels = cv2.resize(person.picture, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        opacity = cv2.resize(person.opacity, size, interpolation=cv2.INTER_AREA)
        own = person.boxes * np.array([size[0], size[1]] * 2) / np.array(person.picture.shape[1::-1] * 2)
        if rng.random() < 0.5:
            pixels, opacity = pixels[:, ::-1], opacity[:, ::-1]
            own = np.stack([size[0] - own[:, 2], own[:, 1], size[0] - own[:, 0], own[:, 3]], axis=1)
        pixels = np.clip((pixels - 128) * rng.uniform(0.7, 1.2) + 128 + rng.uniform(-35, 25), 0, 255)
        x, y = round(rng.uniform(-0.3 * size[0], width - 0.7 * size[0])), round(foot * height - size[1])
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size[0], width), min(y + size[1], height)
        if x1 - x0 < 3 or y1 - y0 < 3:
            continue
        own = own + np.array([x, y, x, y])
        # Whoever is now mostly covered is no longer taught.
        covered = [_covered(np.asarray(b), own[0]) for b in boxes]
        classes = [c for c, part in zip(classes, covered, strict=True) if part < 0.65]
        boxes = [b for b, part in zip(boxes, covered, strict=True) if part < 0.65]
        alpha = opacity[y0 - y : y1 - y, x0 - x : x1 - x, None]
        picture[y0:y1, x0:x1] = (
            picture[y0:y1, x0:x1] * (1 - alpha) + pixels[y0 - y : y1 - y, x0 - x : x1 - x] * alpha
        )
        classes.extend(person.classes)
        boxes.extend(own)
    whole = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return _inside(Labelled(picture.astype(np.uint8), np.array(classes, dtype=np.int64), whole, scene.source))


def _covered(box: np.ndarray, by: np.ndarray) -> float:
    """Which part of `box` the box `by` overlaps."""
    sides = np.minimum(box[2:], by[2:]) - np.maximum(box[:2], by[:2])
    return float(np.prod(np.maximum(sides, 0)) / max(np.prod(box[2:] - box[:2]), 1e-6))


def weather(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same picture as a worse camera, another light or a stronger compression would have given it."""
    out: np.ndarray = picture.astype(np.float32)
    height, width = picture.shape[:2]
    if rng.random() < 0.25:  # low resolution: shrunk and enlarged again
        part = rng.uniform(0.35, 0.8)
        small = cv2.resize(out, (round(width * part), round(height * part)), interpolation=cv2.INTER_AREA)
        out = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, 1.6))
    if rng.random() < 0.10:  # a moving camera
        length = int(rng.integers(3, 9))
        kernel = np.zeros((length, length), np.float32)
        kernel[length // 2] = 1 / length
        out = cv2.filter2D(out, -1, kernel if rng.random() < 0.6 else kernel.T)
    if rng.random() < 0.12:  # night: dark, grey or greenish, noisy
        grey = out.mean(axis=2, keepdims=True)
        out = (out * 0.2 + grey * 0.8) * np.array([1.0, rng.uniform(1.0, 1.15), 1.0])
        out = 255 * (out / 255).clip(0, 1) ** rng.uniform(1.2, 2.0) * rng.uniform(0.5, 0.9)
        out = out + rng.normal(0, rng.uniform(3, 12), out.shape)
    elif rng.random() < 0.5:
        out = 255 * (out / 255).clip(0, 1) ** np.exp(rng.uniform(-0.4, 0.4))
        out = (out - 128) * rng.uniform(0.7, 1.25) + 128 + rng.uniform(-20, 20)
    if rng.random() < 0.1:  # uneven light
        ramp = np.linspace(rng.uniform(0.5, 1), rng.uniform(1, 1.3), width, dtype=np.float32)
        out = out * (ramp if rng.random() < 0.5 else ramp[::-1])[None, :, None]
    if rng.random() < 0.08:
        out = np.repeat(out.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.2:
        out = out + rng.normal(0, rng.uniform(2, 8), out.shape)
    out8 = out.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", out8, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        out8 = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return out8
