"""How long from upload to the first analysed frame, leg by leg: medians over several uploads to one stack.

Each upload is the demo clip with a few bytes more behind its end, which players ignore: other bytes, so that
nothing is found analysed already. Run it on an idle machine.

    .venv/bin/python bench/first_frame.py [--uploads 5]
"""

import argparse
import os
import platform
import statistics
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.demo import follow, running_stack
from capstone_dagster.local.processes import free_port


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uploads", type=int, default=5)
    count = parser.parse_args().uploads
    legs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        clip = DEMO_CLIP.read_bytes()

        def quiet(what: str, fraction: float | None = None) -> None:
            del what, fraction

        with running_stack(Path(folder) / "state", free_port(), quiet) as stack:
            for index in range(count):
                # An MP4 box of type "free": its length, its type, and room for the number.
                padding = index.to_bytes(8)
                path = Path(folder) / f"upload-{index}.mp4"
                path.write_bytes(clip + (8 + len(padding)).to_bytes(4) + b"free" + padding)
                outcome = follow(path, stack, quiet, camera="bench")
                assert not outcome.reused
                for leg in outcome.legs:
                    legs.setdefault(leg.name, []).append(leg.seconds)
                first = sum(leg.seconds for leg in outcome.legs[:3])
                legs.setdefault("upload → first frame analysed", []).append(first)
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, load at the end {load:.1f}, ", end="")
    print(f"Python {platform.python_version()}, dagster {version('dagster')}, {datetime.now(UTC):%Y-%m-%d}")
    for name, seconds in legs.items():
        print(f"{name:<40} median {statistics.median(seconds):6.2f} s of {[round(s, 2) for s in seconds]}")


if __name__ == "__main__":
    main()
