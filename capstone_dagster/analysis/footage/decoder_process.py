"""The process that decodes a stranger's file and nothing else: `reader` starts it, and it answers by pipes.

It says in JSON lines what the file is, then which frames there are; pictures lie in shared memory. The other
side checks each answer: a hostile file may have taken this process over.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import select
import sys
import time
import traceback
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ..errors import UndecodableVideo
from .budget import check_memory, renew_time_limit
from .decoding import VideoFile
from .pixels import BgrReader, Image, LumaReader
from .sampling import Sampling
from .sandbox import confine, die_with
from .shared_pictures import SharedPictures

# Frames without pictures are reported together: up to this number, or this duration.
_FRAMES_TOLD_AT_ONCE = 64
_TOLD_EVERY_S = 0.2


def main() -> None:
    """Reads the order from the command line, and works until the frames or the other side's interest end."""
    order = json.loads(sys.argv[1])
    die_with(order["parent"])
    answers = _Answers(order["answers"])
    path = Path(order["path"])
    cv2.setNumThreads(1)  # FFmpeg's threads keep the processors busy
    _rehearse()
    try:
        layers = confine(path, devices=order["hardware"])
        renew_time_limit()
        video = VideoFile(path, order["name"], hardware=order["hardware"])
        answers.say({"info": _plain(asdict(video.info)), "decoder": video.decoder, "layers": layers})
        _Pass(video, answers, order["requests"], order["memory"]).run()
    except MemoryError as error:
        answers.say({"error": _described(_why_no_memory(error, order["name"]))})
    except BrokenPipeError:
        pass  # the reader has closed
    except BaseException as error:
        answers.say({"error": _described(error)})


def _rehearse() -> None:
    """Imports all that is imported at first use: after `confine` no other file can be read."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.startswith(("av.__", "av.datasets")):
            importlib.import_module(module.name)
    for codec in ("ascii", "latin_1", "utf_8", "utf_16", "idna"):
        importlib.import_module(f"encodings.{codec}")
    picture = av.VideoFrame(64, 64, "gray")
    sampling, luma = Sampling(0, motion_gate=True), LumaReader().read(picture)
    for second in (0, 1):
        sampling.takes(Fraction(second), luma)
    BgrReader(picture, None).read(picture, None)


class _Answers:
    """Lines of JSON into a pipe.

    Attributes:
        waited_s: time that passed because the other side was busy.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.waited_s = 0.0

    def say(self, message: object) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        started = time.perf_counter()
        while line:
            line = line[os.write(self._descriptor, line) :]
        self.waited_s += time.perf_counter() - started


class _Pass:
    """One pass over the frames, as fast as the other side gives pictures back."""

    def __init__(self, video: VideoFile, answers: _Answers, requests: int, memory: int) -> None:
        self._video = video
        self._answers = answers
        self._requests = requests
        self._memory = memory
        self._waited_s = 0.0
        self._used: set[int] = set()

    def run(self) -> None:
        with os.fdopen(os.dup(self._requests), "rb", buffering=0) as file:
            line = file.readline()
        if not line:
            return
        asked = json.loads(line)
        info = self._video.info
        self._pictures = SharedPictures(self._memory, info.width, info.height, asked["pictures"])
        self._free = list(range(asked["pictures"]))
        os.set_blocking(self._requests, False)
        started, said_at = time.perf_counter(), 0.0
        rows: list[tuple[int, int, float, int | None]] = []
        for frame in self._video.frames(
            sample_fps=asked["sample_fps"], motion_gate=asked["motion_gate"], canvas=self._canvas
        ):
            renew_time_limit()
            place = None if frame.image is None else self._taken
            rows.append((frame.index, frame.pts_ms, frame.motion, place))
            now = time.monotonic()
            if place is not None or len(rows) == _FRAMES_TOLD_AT_ONCE or now - said_at > _TOLD_EVERY_S:
                self._answers.say({"frames": rows})
                rows, said_at = [], now
        self._answers.say({"frames": rows})
        waited = self._waited_s + self._answers.waited_s
        self._answers.say(
            {
                "end": {
                    "damage": asdict(self._video.damage),
                    "end_ms": self._video.end_ms,
                    "busy_s": max(0.0, time.perf_counter() - started - waited),
                    "peak_rss_mb": max(
                        0.0, _peak_rss_mb() - self._pictures.bytes_of(len(self._used)) / 2**20
                    ),
                }
            }
        )

    def _canvas(self) -> Image:
        """Where the next picture goes; waits until there is room."""
        self._take_back()
        started = time.perf_counter()
        while not self._free:
            select.select([self._requests], [], [])
            self._take_back()
        self._waited_s += time.perf_counter() - started
        self._taken = self._free.pop()
        self._used.add(self._taken)
        return self._pictures[self._taken]

    def _take_back(self) -> None:
        try:
            given = os.read(self._requests, 1 << 16)
        except BlockingIOError:
            return
        if not given:
            raise BrokenPipeError
        self._free += np.frombuffer(given, np.uint16).tolist()


def _why_no_memory(error: MemoryError, name: str) -> BaseException:
    try:
        check_memory(name)
    except (UndecodableVideo, MemoryError) as found:
        return found
    return error


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, UndecodableVideo):
        return {"kind": "undecodable", "text": str(error)}
    if isinstance(error, MemoryError):
        return {
            "kind": "memory",
            "text": str(error),
        }
    if isinstance(error, OSError) and error.errno:
        return {"kind": "machine", "errno": error.errno, "text": error.strerror or str(error)}
    return {"kind": "defect", "text": "".join(traceback.format_exception(error))}


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    created = info["creation_time"]
    return info | {"creation_time": created.isoformat() if created else None}


def _peak_rss_mb() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1024 * 1024 if sys.platform == "darwin" else 1024)
