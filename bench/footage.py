"""Footage for speed: a textured wall that a camera pans over, with things moving in front, H.264 at 1080p."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

_FPS = 30


def make_footage(path: Path, *, seconds: float, size: tuple[int, int] = (1920, 1080)) -> Path:
    """Writes the clip; a minute of it takes half a minute to make, its frames differ as a camera's do."""
    width, height = size
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height + 400, width + 400, 3), dtype=np.uint8)
    wall = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), np.empty(0), 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for index in range(round(seconds * _FPS)):
            swing = np.sin(index / 40)
            left, top = round(200 + 199 * swing), round(200 + 199 * np.cos(index / 55))
            picture = np.ascontiguousarray(wall[top : top + height, left : left + width])
            for thing in range(5):
                x = (index * (2 + thing) + thing * width // 5) % width
                cv2.rectangle(
                    picture, (x, height // 3), (x + width // 25, height * 4 // 5), (40 * thing, 60, 200), -1
                )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    return path


def repeat(source: Path, path: Path, *, seconds: float) -> Path:
    """Writes a video again and again into one file, at least so many seconds, without encoding it anew."""
    with av.open(str(source)) as reading:
        packets = [packet for packet in reading.demux(video=0) if packet.pts is not None]
        stream = reading.streams.video[0]
        assert stream.time_base is not None
        length = max(packet.pts + (packet.duration or 0) for packet in packets if packet.pts is not None)
        with av.open(str(path), "w") as container:
            copy = container.add_stream_from_template(stream)
            for turn in range(1 + int(seconds / (length * stream.time_base))):
                for packet in packets:
                    # What a packet says is changed in place, so each turn adds one length.
                    if turn:
                        packet.pts = (packet.pts or 0) + length
                        packet.dts = (packet.dts or 0) + length
                    packet.stream = copy
                    container.mux(packet)
    return path
