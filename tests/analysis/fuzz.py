"""Damages videos of six containers at random and decodes them: none may crash, hang or lack a class.

`python -m tests.analysis.fuzz --seconds 600 --seed 1`; `make fuzz` does. Each outcome is a decoded video or
`UndecodableVideo`; whatever else comes is kept in `--keep` with the seed that made it.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from capstone_dagster.analysis import UndecodableVideo
from capstone_dagster.analysis.footage.decoding import VideoFile
from tests.analysis.corpus import B_FRAMES, MPEG4, clip, with_sound
from tests.support.waiting import scaled

# A file of a few kilobytes decodes in milliseconds; what takes so long never ends.
HANG_S = 20.0
SOURCES = {
    "a.mp4": clip(**B_FRAMES),
    "a.mkv": with_sound(clip(**B_FRAMES)),
    "a.avi": clip(**MPEG4),
    "a.ts": clip(format="mpegts"),
    "a.flv": clip(),
    "a.gif": clip(codec="gif"),
}


@dataclass
class Outcomes:
    """What became of the files; each list names those that are wrong, by container and seed."""

    files: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    unclassified: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{len(self.crashes)} crashes, {len(self.hangs)} hangs, {len(self.unclassified)} unclassified"
        )
        return f"fuzz: {self.files} files, {counts}"


def mutated(content: bytes, seed: int) -> bytes:
    """The same content damaged in one of the ways that disks, networks and attackers have."""
    chosen, data = random.Random(seed), bytearray(content)
    for _ in range(chosen.choice((1, 1, 2, 5))):
        place = chosen.randrange(len(data))
        # Headers decide most, and are a small part.
        if chosen.random() < 0.5:
            place = chosen.randrange(min(len(data), 1024)) if chosen.random() < 0.7 else -1 - place % 1024
            place %= len(data)
        kind = chosen.randrange(7)
        if kind == 0:
            data[place] ^= 1 << chosen.randrange(8)
        elif kind == 1:
            data[place] = chosen.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            number = chosen.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, chosen.getrandbits(32)))
            data[place : place + 4] = number.to_bytes(4, chosen.choice(("big", "little")))
        elif kind == 3:
            del data[place : place + chosen.randrange(1, 64)]
        elif kind == 4:
            length = chosen.randrange(1, 256)
            data[place:place] = data[chosen.randrange(len(data)) :][:length]
        elif kind == 5:
            data[place : place + chosen.randrange(1, 256)] = chosen.randbytes(chosen.randrange(1, 256))
        else:
            del data[max(1, place) :]
        data = data or bytearray(b"\0")
    return bytes(data)


def run(seed: int, *, seconds: float, most: int | None = None, keep: Path | None = None) -> Outcomes:
    """Decodes mutations until the time is over, one after the other, in a process that may die."""
    outcomes, ends = Outcomes(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name, write in SOURCES.items():
            write(Path(folder) / name)
            sources[name] = (Path(folder) / name).read_bytes()
        worker = _Worker()
        try:
            for number, name in enumerate(_names()):
                if time.monotonic() > ends or number == most:
                    break
                label = f"{seed + number}-{name}"
                path = Path(folder) / label
                path.write_bytes(mutated(sources[name], seed + number))
                outcomes.files += 1
                outcome = worker.decode(path)
                outcomes.kinds[outcome if outcome in ("decoded", "undecodable") else "wrong"] += 1
                wrong = {"crash": outcomes.crashes, "hang": outcomes.hangs}.get(outcome.partition(":")[0])
                if outcome not in ("decoded", "undecodable"):
                    (outcomes.unclassified if wrong is None else wrong).append(f"{label}: {outcome}")
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / label).write_bytes(path.read_bytes())
                path.unlink()
        finally:
            worker.end()
    return outcomes


def _names() -> Iterator[str]:
    while True:
        yield from SOURCES


class _Worker:
    """A process that decodes files by name, started anew when it dies or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def decode(self, path: Path) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.analysis.fuzz", "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(path, file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], scaled(HANG_S))[0]:
            self.end()
            return "hang"
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._process = None
            return f"crash: {code}"
        return str(json.loads(line))

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _work() -> None:
    for line in sys.stdin:
        path = Path(line.strip())
        try:
            video = VideoFile(path)
            try:
                for _ in video.frames(sample_fps=2):
                    pass
                outcome = "decoded"
            finally:
                video.close()
        except UndecodableVideo:
            outcome = "undecodable"
        except Exception as error:
            outcome = f"unclassified: {error!r}"
        print(json.dumps(outcome), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path(".capstone/fuzz"), help="where failing files go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work()
        return
    outcomes = run(options.seed, seconds=options.seconds, keep=options.keep)
    for line in (*outcomes.crashes, *outcomes.hangs, *outcomes.unclassified):
        print(line)
    print(f"{dict(outcomes.kinds)}, seed {options.seed}")
    print(outcomes)


if __name__ == "__main__":
    main()
