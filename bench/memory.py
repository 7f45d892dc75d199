"""Peak memory of the pass over ten minutes of video beside one minute of the same: flat, if it streams.

The demo clip, whose people give tracks and thumbnails, is repeated without being encoded anew; each length is
analysed by the demo's detector in a fresh process, alternating, and the medians of their peaks are compared.

    .venv/bin/python bench/memory.py [--rounds 3] [--every-frame]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from bench.footage import repeat
from bench.report import machine, record, table

_PACKAGES = ("openvino", "av", "pyarrow")
_MINUTES = (1, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every-frame", action="store_true", help="analyse every frame, not 5 a second")
    parser.add_argument("--record", action="store_true", help="put the result into bench/RESULTS.md")
    options = parser.parse_args()
    peaks: dict[int, list[tuple[float, float]]] = {minutes: [] for minutes in _MINUTES}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        from capstone_dagster.local.clip import DEMO_CLIP

        videos = {
            minutes: repeat(DEMO_CLIP, Path(folder) / f"{minutes}.mp4", seconds=60 * minutes)
            for minutes in _MINUTES
        }
        # The first one exports and compiles the model: not counted.
        for turn in range(options.rounds + 1):
            for minutes, video in videos.items() if turn % 2 == 0 else reversed(videos.items()):
                if turn == 0 and minutes != _MINUTES[0]:
                    continue
                with spawn.Pool(1) as pool:  # a process of its own, whose peak is this pass's
                    peak = pool.apply(_peak, (str(video), folder, options.every_frame))
                print(f"{minutes} min: {peak[0]:.0f} MiB, with events {peak[1]:.0f}", file=sys.stderr)
                if turn:
                    peaks[minutes].append(peak)
    result: dict[str, float] = {}
    for index, what in enumerate(("", "_with_events")):
        short, long = (statistics.median(peak[index] for peak in peaks[minutes]) for minutes in _MINUTES)
        result |= {
            f"peak_rss_mb_{_MINUTES[0]}_min{what}": round(short, 1),
            f"peak_rss_mb_{_MINUTES[1]}_min{what}": round(long, 1),
            f"ratio{what}": round(long / short, 3),
        }
    shown = table(["", "MiB, or ratio"], list(result.items()))
    print(machine(_PACKAGES), shown, json.dumps(result), sep="\n")
    if options.record:
        name = "Memory, every frame" if options.every_frame else "Memory"
        record(name, shlex.join(["python", "-m", "bench.memory", *sys.argv[1:]]), shown, _PACKAGES)


def _peak(video: str, folder: str, every_frame: bool) -> tuple[float, float]:
    """MiB after the pass, and after its events were derived, which hold all detections at once."""
    from capstone_dagster.analysis import (
        AnalysisSettings,
        EventRules,
        analyze_video,
        build_events,
        load_detector,
        read_detections,
    )
    from capstone_dagster.analysis.engine import peak_rss_mb
    from capstone_dagster.local import detector as demo_detector

    settings = AnalysisSettings(sample_fps=0.0 if every_frame else AnalysisSettings().sample_fps)
    weights = Path(demo_detector.__file__).with_name("person_face.pt")
    loaded = load_detector(weights, settings, device="cpu", cache=Path(folder) / "cache")
    out = Path(folder) / "out"
    done = analyze_video(Path(video), out, detector=loaded, settings=settings)
    build_events(
        read_detections(out / "detections.parquet"),
        done.coverage,
        analysis_id="bench",
        rules=EventRules(),
    )
    return done.peak_rss_mb, peak_rss_mb()


if __name__ == "__main__":
    main()
