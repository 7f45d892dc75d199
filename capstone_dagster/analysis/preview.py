"""Renders an annotated copy of a video that plays in any browser: boxes, track numbers, times.

It draws stored detections, so it shows what was published and needs no model. The file is H.264, 4:2:0, with
the index in front, so that it plays before it is fully loaded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from .footage.reader import VideoReader
from .footage.video import Image
from .pictures import PALETTE
from .tables import read_detections, read_frames

# A laptop shows this size without scaling; an hour takes some hundred megabytes.
_LONGEST_SIDE = 1280
_MILLISECOND = Fraction(1, 1000)
# A preview is watched once: this preset takes a quarter of the default's time for a fifth more bytes. A key
# frame about every two seconds lets a viewer seek.
_ENCODER = {"preset": "veryfast", "crf": "26", "g": "50"}
_BT709 = 1  # what screens assume for HD video
_LIMITED_RANGE = 1
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Preview:
    """The rendered file: size in pixels, number of frames, duration in milliseconds."""

    width: int
    height: int
    frames: int
    duration_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """Boxes of one frame: (n,) track numbers, labels and scores, (n, 4) xyxy in source pixels."""

    tracks: npt.NDArray[np.int64]
    labels: npt.NDArray[np.object_]
    scores: npt.NDArray[np.float64]
    xyxy: npt.NDArray[np.float64]


def render_preview(
    video: Path,
    detections: Path,
    frames: Path,
    out: Path,
    *,
    name: str | None = None,
    recorded_at: datetime | None = None,
    recorded_at_note: str = "",
    progress: Callable[[int], None] = lambda pts_ms: None,
) -> Preview:
    """Draw tracked detections into every frame of a video.

    Between two analysed frames a box moves linearly, at the frames' own times.

    Args:
        detections, frames: the Parquet files of the pass over this video.
        out: the file; it appears when it is complete.
        name: what messages call the video; by default its file's name.
        recorded_at: wall-clock time of the first frame, shown in its own zone beside the video's time.
        recorded_at_note: shown after it, in ASCII, such as that it is not verified.
        progress: called with the time of each frame, in milliseconds.

    Raises:
        UndecodableVideo: the file has no frame that decodes.
    """
    annotations = _Annotations(detections, frames)
    partial = out.with_name(f".{out.name}.partial")
    last_ms, count = -1, 0
    try:
        with (
            VideoReader(video, name=name) as reader,
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
        ):
            info = reader.info
            scale = min(1.0, _LONGEST_SIDE / max(info.width, info.height))
            # 4:2:0 halves both sides.
            width, height = (max(2, round(side * scale / 2) * 2) for side in (info.width, info.height))
            stream = container.add_stream("libx264", rate=30, options=_ENCODER)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.time_base = _MILLISECOND
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            for frame in reader.frames(sample_fps=0):
                if frame.image is None or frame.pts_ms <= last_ms:
                    continue  # a container holds one picture for each timestamp
                last_ms = frame.pts_ms
                image = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA)
                shown = annotations.at(frame.index, frame.pts_ms)
                _draw(np.asarray(image, dtype=np.uint8), shown, (width / info.width, height / info.height))
                _stamp(np.asarray(image, dtype=np.uint8), frame.pts_ms, recorded_at, recorded_at_note)
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24").reformat(
                    format="yuv420p", dst_colorspace="ITU709"
                )
                picture.pts, picture.time_base = frame.pts_ms, _MILLISECOND
                container.mux(stream.encode(picture))
                count += 1
                progress(frame.pts_ms)
            container.mux(stream.encode())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Preview(width, height, count, max(0, last_ms))


class _Annotations:
    """The boxes of any frame: detected in it, or interpolated between the analysed frames around it."""

    def __init__(self, detections: Path, frames: Path) -> None:
        decoded = read_frames(frames)
        analyzed = decoded.filter(decoded["analyzed"])
        self._analyzed = analyzed["frame_index"].to_numpy().tolist()
        self._pts_ms = analyzed["pts_ms"].to_numpy().tolist()
        table = read_detections(detections)
        # Only tracked detections become events; the others would flicker.
        table = table.filter(pc.is_valid(table["track_id"])).sort_by("frame_index")
        self._frame_index = table["frame_index"].to_numpy().astype(np.int64)
        self._rows = _Boxes(
            table["track_id"].to_numpy().astype(np.int64),
            np.array(table["label"].to_pylist(), dtype=object),
            table["score"].to_numpy().astype(np.float64),
            np.stack(
                [table[name].to_numpy().astype(np.float64) for name in ("x1", "y1", "x2", "y2")], axis=1
            ),
        )

    def at(self, index: int, pts_ms: int) -> _Boxes:
        place = bisect_right(self._analyzed, index) - 1
        if place < 0:
            return self._of(-1)
        before = self._of(self._analyzed[place])
        if self._analyzed[place] == index or place + 1 == len(self._analyzed):
            return before
        after = self._of(self._analyzed[place + 1])
        begin, end = self._pts_ms[place], self._pts_ms[place + 1]
        share = (pts_ms - begin) / max(1, end - begin)
        goes_on = {(track, label): row for row, (track, label) in enumerate(_names(after))}
        xyxy = before.xyxy.copy()
        shown = np.full(len(xyxy), share < 0.5)  # a track that is not in the next frame ends halfway
        for row, name in enumerate(_names(before)):
            if name in goes_on:
                xyxy[row] += share * (after.xyxy[goes_on[name]] - xyxy[row])
                shown[row] = True
        return _Boxes(before.tracks[shown], before.labels[shown], before.scores[shown], xyxy[shown])

    def _of(self, frame_index: int) -> _Boxes:
        first, last = np.searchsorted(self._frame_index, [frame_index, frame_index + 1])
        rows = self._rows
        return _Boxes(
            rows.tracks[first:last], rows.labels[first:last], rows.scores[first:last], rows.xyxy[first:last]
        )


def _names(boxes: _Boxes) -> Iterator[tuple[int, str]]:
    return zip(boxes.tracks.tolist(), boxes.labels.tolist(), strict=True)


def _draw(image: Image, boxes: _Boxes, scale: tuple[float, float]) -> None:
    corners = np.round(boxes.xyxy * np.array([*scale, *scale])).astype(int).tolist()
    for (track, label), score, (x1, y1, x2, y2) in zip(
        _names(boxes), boxes.scores.tolist(), corners, strict=True
    ):
        colour = PALETTE[track % len(PALETTE)]
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)
        text = f"{label} {track}  {score:.2f}"
        (width, height), _ = cv2.getTextSize(text, _FONT, 0.5, 1)
        # Above the box if there is room, else inside it; never beyond the right edge.
        left = max(0, min(x1 - 1, image.shape[1] - width - 6))
        top = y1 - height - 8 if y1 >= height + 8 else y1
        cv2.rectangle(image, (left, top), (left + width + 6, top + height + 8), colour, cv2.FILLED)
        cv2.putText(image, text, (left + 3, top + height + 3), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _stamp(image: Image, pts_ms: int, recorded_at: datetime | None, note: str) -> None:
    """Draw the time, bright on dark, so that it is readable on any picture."""
    seconds, tenths = divmod(pts_ms // 100, 10)
    text = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{tenths}"
    if recorded_at is not None:
        moment = recorded_at + timedelta(milliseconds=pts_ms)
        text += f"   {moment.isoformat(sep=' ', timespec='seconds')} {note}".rstrip()
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.5, 1)
    bottom = image.shape[0]
    cv2.rectangle(image, (0, bottom - height - 12), (width + 12, bottom), (0, 0, 0), cv2.FILLED)
    cv2.putText(image, text, (6, bottom - 6), _FONT, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
