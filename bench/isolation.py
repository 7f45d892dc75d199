"""What the decoder's own process costs: one video, decoded in this process and isolated, in pairs.

Every sampled frame becomes a picture, in memory that both sides use again. The order within a pair changes
from pair to pair, and the median of the pairs' ratios counts, so that other load falls on both. Starting the
process is measured apart, because an hour of video pays it once. Run it on an idle machine.

    python -m bench.isolation [VIDEO] [--pairs 7] [--seconds 30] [--sample-fps 5] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.footage import make_footage
from bench.report import record, table
from capstone_dagster.analysis.footage.decoding import VideoFile
from capstone_dagster.analysis.footage.reader import VideoReader

COMMAND = "python -m bench.isolation --record"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", nargs="?", type=Path, help="made here in 1080p where none is named")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the video that is made")
    parser.add_argument("--sample-fps", type=float, default=5.0, help="0: every frame is a picture")
    parser.add_argument("--record", action="store_true", help="write the figures into bench/RESULTS.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        video = asked.video or make_footage(Path(folder) / "footage.mp4", seconds=asked.seconds)
        here, isolated, started = measure(video, asked.sample_fps, asked.pairs)
    cost = statistics.median(theirs / ours - 1 for theirs, ours in zip(isolated, here, strict=True))
    text = table(
        ("decoding", "s, median", "s, each"),
        [
            ("in this process", f"{statistics.median(here):.2f}", _all(here)),
            ("isolated", f"{statistics.median(isolated):.2f}", _all(isolated)),
            ("starting the process, once a video", f"{statistics.median(started):.2f}", _all(started)),
        ],
    )
    text += f"\n\nIsolation costs {cost:+.1%} of decoding, the median of {asked.pairs} pairs."
    print(text)
    if asked.record:
        record("The decoder's own process", COMMAND, text, ("av", "numpy"))


def measure(video: Path, sample_fps: float, pairs: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each pass in this process, of each isolated one, and until its first answer."""
    here, isolated, started = list[float](), list[float](), list[float]()

    def unprotected() -> None:
        began = time.perf_counter()
        file = VideoFile(video)
        canvas = np.empty((file.info.height, file.info.width, 3), np.uint8)
        for _ in file.frames(sample_fps=sample_fps, canvas=lambda: canvas):
            pass
        file.close()
        here.append(time.perf_counter() - began)

    def protected() -> None:
        asked = time.perf_counter()
        with VideoReader(video) as reader:
            began = time.perf_counter()
            for _ in reader.frames(sample_fps=sample_fps):
                pass
            isolated.append(time.perf_counter() - began)
        started.append(began - asked)

    for number in range(pairs):
        pair: list[Callable[[], None]] = [unprotected, protected]
        for run in pair if number % 2 else pair[::-1]:
            run()
    return here, isolated, started


def _all(seconds: list[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in seconds)


if __name__ == "__main__":
    main()
