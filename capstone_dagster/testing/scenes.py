"""Clips made on the spot, and a detector that needs no model: it finds coloured squares in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import pytest

from capstone_dagster.analysis import Detections
from capstone_dagster.analysis.detection.device import GpuState
from capstone_dagster.analysis.footage.video import Image
from capstone_dagster.local.clip import DEMO_CLIP

# BGR, far apart and far from the background, so that compression cannot confuse them.
COLOURS = {"person": (40, 40, 230), "face": (230, 60, 40)}
BACKGROUND = (120, 120, 120)

_CLIP_S = 4

Square = tuple[str, int, int, int, int]  # label, x1, y1, x2, y2
Scene = Callable[[int], Sequence[Square]]
MakeClip = Callable[..., Path]


def paint(size: tuple[int, int], squares: Sequence[Square]) -> Image:
    """A picture of `size` (width, height) with these squares on grey: (height, width, 3) uint8 BGR."""
    image = np.full((size[1], size[0], 3), BACKGROUND, dtype=np.uint8)
    for label, x1, y1, x2, y2 in squares:
        image[y1:y2, x1:x2] = COLOURS[label]
    return image


def square_clip(
    path: Path,
    times_ms: Sequence[int],
    scene: Scene = lambda index: (),
    *,
    size: tuple[int, int] = (192, 128),
    codec: str = "libx264",
    format: str | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    pix_fmt: str | None = None,
    codec_options: dict[str, str] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    picture: Callable[[int], Image] | None = None,
) -> Path:
    """Write a video whose frames are shown at exactly these times; `scene` says what is in each frame.

    Args:
        picture: paints a whole frame instead of a scene.
    """
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = cast(av.VideoStream, container.add_stream(codec, rate=25))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt or ("rgb8" if codec == "gif" else "yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "4"}
        stream.options = {**stream.options, **(codec_options or {})}
        if sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        for index, time_ms in enumerate(times_ms):
            image = picture(index) if picture else paint(size, scene(index))
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


@dataclass
class SquareDetector:
    """Finds red squares as persons and blue ones as faces, always sure of them: a `Detector`."""

    name: str = "squares"
    sha256: str = "0" * 64
    labels: tuple[str, ...] = ("person", "face")
    missing_labels: tuple[str, ...] = ()
    device: str = "cpu"
    backend: str = "squares"
    cpu_fallback: str | None = None
    load_seconds: float = 0.0
    workers: int = 1
    batch_size: int = 8
    backoffs: int = 0
    score: float = 0.9

    def __post_init__(self) -> None:
        self.batches: list[int] = []

    def gpu_state(self) -> GpuState | None:
        """It has none."""
        return None

    def rest(self) -> None:
        """It holds nothing."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """The squares of each picture; how many pictures came is noted in `batches`."""
        self.batches.append(len(images))
        return [self._find(image) for image in images]

    def _find(self, image: Image) -> Detections:
        boxes, label_ids = [], []
        for label_id, label in enumerate(self.labels):
            distance = np.abs(image.astype(np.int16) - COLOURS[label]).max(axis=2)
            count, _, stats, _ = cv2.connectedComponentsWithStats((distance < 60).astype(np.uint8))
            for x, y, width, height, area in stats[1:count]:
                if area > 200:  # less is what compression leaves behind
                    boxes.append((x, y, x + width, y + height))
                    label_ids.append(label_id)
        return Detections.of(boxes, [self.score] * len(boxes), label_ids, self.labels)


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """`make_clip(name, times_ms, scene, …)`: `square_clip` in the test's own folder."""

    def make(name: str, *arguments: object, **options: object) -> Path:
        return square_clip(tmp_path / name, *arguments, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo clip's first four seconds: real people, H.264, 1280×720. The embedded model finds them."""
    return cut_clip(DEMO_CLIP, tmp_path_factory.mktemp("clip") / "clip.mp4", _CLIP_S)


def cut_clip(source: Path, target: Path, seconds: float) -> Path:
    """Copy the first seconds of a video, packet by packet."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.pts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = copy
                part.mux(packet)
    return target
