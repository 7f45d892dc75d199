"""The pictures of an analysis: a contact sheet of the whole video and the best view of each track."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from .detections import Detections
from .footage.video import Image

_SHEET_TILES = 12
_TILE_SIDE = 480  # four tiles side by side fill a full-HD screen
_TILE_GAP = 6
_CAPTION_HEIGHT = 26
_BACKGROUND = (32, 28, 26)
_CAPTION_COLOUR = (235, 235, 235)
# BGR; also distinct to people who cannot distinguish red from green.
PALETTE = (
    (0, 190, 255),
    (230, 160, 40),
    (180, 90, 220),
    (110, 200, 60),
    (80, 110, 250),
    (200, 200, 60),
)

_THUMBNAIL_SIDE = 320
# A little of what is around the object tells a viewer where it is, and forgives a tight box.
_THUMBNAIL_MARGIN = 0.15

_JPEG_QUALITY = 88
# A picture of fewer pixels shows nothing any more, however few bytes are wanted.
_SMALLEST_SIDE = 48
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class ContactSheet:
    """Keeps a dozen frames spread evenly over a video of unknown length, in bounded memory.

    It keeps every n-th frame. At two dozen it drops every second one and doubles n.
    """

    def __init__(self) -> None:
        self._tiles: list[_Tile] = []
        self._stride = 1
        self._offered = 0

    def offer(
        self, image: Image, pts_ms: int, detections: Detections, tracklets: npt.NDArray[np.int32]
    ) -> None:
        """Call it for each analysed frame in order, with the tracklet of each detection."""
        if self._offered % self._stride == 0:
            # Always a new picture, because the frame itself is shared with others; small ones are enlarged to
            # carry text.
            scale = _TILE_SIDE / max(image.shape[:2])
            self._tiles.append(_Tile(_resized(image, scale), scale, pts_ms, detections, tracklets))
            if len(self._tiles) == 2 * _SHEET_TILES:
                self._tiles = self._tiles[::2]
                self._stride *= 2
        self._offered += 1

    def write(self, path: Path, visits: npt.NDArray[np.int32]) -> None:
        """Write the sheet as a JPEG, tiles in order of time from left to right and down.

        `visits` has for each tracklet, from 1, its visit: the number drawn beside a box.
        """
        shown = min(_SHEET_TILES, len(self._tiles))
        if shown == 0:
            raise ValueError("a contact sheet needs at least one frame, but none was offered")
        chosen = [self._tiles[round(place)] for place in np.linspace(0, len(self._tiles) - 1, shown)]
        _write_jpeg(path, _grid([_drawn(tile, visits) for tile in chosen]))


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """A reduced frame and its detections, in pixels of the full frame."""

    picture: Image
    scale: float
    pts_ms: int
    detections: Detections
    tracklets: npt.NDArray[np.int32]


@dataclass(slots=True)
class _Candidate:
    score: float
    crop: Image
    last_seen_ms: int


class Thumbnails:
    """Writes the best view of each visit.

    A tracklet's best view is written as soon as the tracklet cannot continue. At the end, when it is known
    which tracklets belong to one visit, the best of their views gets the visit's number.
    """

    def __init__(self, folder: Path, *, keep_ms: float) -> None:
        self._folder = folder
        # In a folder of its own, so that no view of a failed pass counts as a result.
        self._work = folder.with_name(f".{folder.name}.partial")
        self._keep_ms = keep_ms
        self._candidates: dict[int, _Candidate] = {}
        self._scores = array("f")  # of each tracklet's view; 0 where none was written
        self.discard()
        self._work.mkdir(parents=True)
        # Remove those of an earlier pass, but keep other pictures in the folder.
        for stale in folder.glob("*.jpg"):
            if stale.stem.isdecimal():
                stale.unlink()

    def discard(self) -> None:
        """Remove unfinished files."""
        shutil.rmtree(self._work, ignore_errors=True)

    def offer(
        self, image: Image, pts_ms: int, detections: Detections, tracklets: npt.NDArray[np.int32]
    ) -> None:
        """Call it for each analysed frame in order, with tracked detections and their tracklets."""
        for box, score, tracklet in zip(
            detections.boxes, detections.scores.tolist(), tracklets.tolist(), strict=True
        ):
            candidate = self._candidates.get(tracklet)
            if candidate is None:
                self._candidates[tracklet] = _Candidate(score, _crop(image, box), pts_ms)
                continue
            candidate.last_seen_ms = pts_ms
            if score > candidate.score:
                candidate.score, candidate.crop = score, _crop(image, box)
        for tracklet in [
            tracklet
            for tracklet, candidate in self._candidates.items()
            if pts_ms - candidate.last_seen_ms > self._keep_ms
        ]:
            self._write(tracklet)

    def close(self, visits: npt.NDArray[np.int32]) -> None:
        """Write the remaining views. `visits` has for each tracklet, from 1, its visit; negative for none.

        Visits are counted from 1 in order of their first tracklets.
        """
        for tracklet in list(self._candidates):
            self._write(tracklet)
        best: dict[int, int] = {}
        for index, score in enumerate(self._scores):
            visit = int(visits[index])
            if score > 0 and visit > 0 and (visit not in best or score > self._scores[best[visit] - 1]):
                best[visit] = index + 1
        self._folder.mkdir(exist_ok=True)
        for visit, tracklet in best.items():
            (self._work / f"{tracklet}.jpg").replace(self._folder / f"{visit}.jpg")
        self.discard()

    def _write(self, tracklet: int) -> None:
        candidate = self._candidates.pop(tracklet)
        self._scores.extend([0.0] * (tracklet - len(self._scores)))
        # It may have been written before: weak detections hold a tracklet for longer than views are kept.
        if candidate.score > self._scores[tracklet - 1]:
            _write_jpeg(self._work / f"{tracklet}.jpg", candidate.crop)
            self._scores[tracklet - 1] = candidate.score


def _drawn(tile: _Tile, visits: npt.NDArray[np.int32]) -> Image:
    picture, scale, detections = tile.picture.copy(), tile.scale, tile.detections
    for index in range(len(detections)):
        colour = PALETTE[int(detections.label_ids[index]) % len(PALETTE)]
        x1, y1, x2, y2 = (round(value) for value in (detections.boxes[index] * scale).tolist())
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
        tracklet = int(tile.tracklets[index])
        number = f" {visits[tracklet - 1]}" if tracklet > 0 and visits[tracklet - 1] > 0 else ""
        _tag(picture, f"{detections.label(index)}{number}", (x1, y1), colour)
    caption = np.full((_CAPTION_HEIGHT, picture.shape[1], 3), _BACKGROUND, dtype=np.uint8)
    counts = [
        f"{int((detections.label_ids == label_id).sum())} {name}"
        for label_id, name in enumerate(detections.names)
        if (detections.label_ids == label_id).any()
    ]
    text = "   ".join([_clock(tile.pts_ms), *counts])
    cv2.putText(caption, text, (4, _CAPTION_HEIGHT - 8), _FONT, 0.5, _CAPTION_COLOUR, 1, cv2.LINE_AA)
    return np.vstack([picture, caption])


def _tag(picture: Image, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """A small label on a filled ground, above the box where there is room, else inside it."""
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.34, 1)
    x = max(0, min(corner[0], picture.shape[1] - width - 4))
    y = corner[1] if corner[1] >= height + 4 else corner[1] + height + 4
    cv2.rectangle(picture, (x, y - height - 4), (x + width + 4, y), colour, cv2.FILLED)
    cv2.putText(picture, text, (x + 2, y - 3), _FONT, 0.34, (0, 0, 0), 1, cv2.LINE_AA)


def sheet_tiles(sheet: Image, *, width: int, height: int, frames: int) -> list[Image]:
    """The pictures on a contact sheet of a video, in order of time, without their captions.

    Args:
        width, height: of the video's frames, in pixels.
        frames: how many were analysed.

    Raises:
        ValueError: the sheet is not that of such a video.
    """
    scale = _TILE_SIDE / max(height, width)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    shown = min(_SHEET_TILES, frames)
    columns = _columns(shown, down + _CAPTION_HEIGHT, across)
    rows = math.ceil(shown / columns)
    expected = (
        rows * (down + _CAPTION_HEIGHT + _TILE_GAP) + _TILE_GAP,
        columns * (across + _TILE_GAP) + _TILE_GAP,
    )
    if sheet.shape[:2] != expected:
        raise ValueError(
            f"a contact sheet of {expected} pixels was expected of {frames} analysed frames of "
            f"{width} × {height}, but came {sheet.shape[:2]}"
        )
    corners = [
        (
            _TILE_GAP + (place // columns) * (down + _CAPTION_HEIGHT + _TILE_GAP),
            _TILE_GAP + (place % columns) * (across + _TILE_GAP),
        )
        for place in range(shown)
    ]
    return [sheet[top : top + down, left : left + across] for top, left in corners]


def shrunk(jpeg: bytes, *, side: int, most_bytes: int) -> bytes:
    """A smaller copy of a JPEG: its longer side has at most `side` pixels, the file at most `most_bytes`.

    Raises:
        ValueError: the bytes are not a picture.

    >>> from pathlib import Path
    >>> sheet = Path("results/contact_sheet.jpg").read_bytes()
    >>> len(shrunk(sheet, side=320, most_bytes=20_000)) <= 20_000
    True
    """
    image = decoded(jpeg)
    for quality in (80, 60):
        while max(image.shape[:2]) > side:
            image = _resized(image, side / max(image.shape[:2]))
        encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if encoded and data.size <= most_bytes:
            return data.tobytes()
    if side <= _SMALLEST_SIDE:
        return data.tobytes()
    return shrunk(jpeg, side=side * 3 // 4, most_bytes=most_bytes)


def decoded(jpeg: bytes) -> Image:
    """The pixels of a JPEG, (height, width, 3) uint8 BGR.

    Raises:
        ValueError: the bytes are not a picture.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, dtype=np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        raise ValueError(f"a JPEG was expected, but came {len(jpeg)} bytes that are none")
    return np.asarray(image, dtype=np.uint8)


def _columns(tiles: int, height: int, width: int) -> int:
    """As many columns as make the sheet about as wide as a screen."""
    columns = max(1, min(tiles, round(math.sqrt(tiles * (16 / 9) * height / width))))
    # A full last row, where a little wider gives one.
    return columns + 1 if tiles % columns and tiles % (columns + 1) == 0 else columns


def _grid(tiles: Sequence[Image]) -> Image:
    height, width = tiles[0].shape[:2]
    columns = _columns(len(tiles), height, width)
    rows = math.ceil(len(tiles) / columns)
    sheet = np.empty(
        (rows * (height + _TILE_GAP) + _TILE_GAP, columns * (width + _TILE_GAP) + _TILE_GAP, 3),
        dtype=np.uint8,
    )
    sheet[:] = _BACKGROUND
    for place, tile in enumerate(tiles):
        top = _TILE_GAP + (place // columns) * (height + _TILE_GAP)
        left = _TILE_GAP + (place % columns) * (width + _TILE_GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _crop(image: Image, box: npt.NDArray[np.float32]) -> Image:
    x1, y1, x2, y2 = box.tolist()
    across, down = _THUMBNAIL_MARGIN * (x2 - x1), _THUMBNAIL_MARGIN * (y2 - y1)
    left, top = max(0, math.floor(x1 - across)), max(0, math.floor(y1 - down))
    right, bottom = math.ceil(x2 + across), math.ceil(y2 + down)
    view = image[top:bottom, left:right]
    # A copy where it is small enough already: a view would keep the whole frame in memory.
    return (
        view.copy()
        if max(view.shape[:2]) <= _THUMBNAIL_SIDE
        else _resized(view, _THUMBNAIL_SIDE / max(view.shape[:2]))
    )


def _resized(image: Image, scale: float) -> Image:
    """A new picture. It is halved first, as OpenCV has vector code for that: a third of the time."""
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    halved = image
    while (
        halved.shape[1] >= 2 * width
        and halved.shape[0] >= 2 * height
        and not any(side % 2 for side in halved.shape[:2])
    ):
        half = (halved.shape[1] // 2, halved.shape[0] // 2)
        halved = cast(Image, cv2.resize(halved, half, interpolation=cv2.INTER_AREA))
    if halved is not image and halved.shape[1::-1] == (width, height):
        return halved
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cast(Image, cv2.resize(halved, (width, height), interpolation=interpolation))


def _clock(pts_ms: int) -> str:
    seconds, tenths = divmod(pts_ms // 100, 10)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{tenths}"


def _write_jpeg(path: Path, image: Image) -> None:
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise OSError(f"a JPEG was to be written to {path}, but OpenCV could not encode it")
    path.write_bytes(data.tobytes())
