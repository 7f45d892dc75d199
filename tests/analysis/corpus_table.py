"""The corpus as a table: each file, what is expected of it, and what the decoder makes of it.

    python -m tests.analysis.corpus_table [WORD]      files whose name contains the word

It ends with status 1 where they differ. `test_corpus` asks the same of each file.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capstone_dagster.analysis import UndecodableVideo
from capstone_dagster.analysis.footage.decoding import VideoFile

from .corpus import CORNERS, FILES, RED, Right


@dataclass(frozen=True)
class Got:
    """What became of a file; of one that is refused only the sentence.

    Attributes:
        corners: those in which the picture shown last is red.
        shapes: of all pictures.
    """

    refusal: str | None = None
    times_ms: tuple[int, ...] = ()
    end_ms: int = 0
    size: tuple[int, int] = (0, 0)
    damage: frozenset[str] = frozenset()
    corners: frozenset[str] = frozenset()
    shapes: frozenset[tuple[int, ...]] = frozenset()
    said: dict[str, Any] | None = None

    @classmethod
    def of(cls, path: Path) -> Got:
        """Decodes every frame, in this process: it is quick, and `test_isolation` has one of its own."""
        try:
            video = VideoFile(path)
            shown = list(video.frames(sample_fps=0))
        except UndecodableVideo as refusal:
            return cls(refusal=str(refusal))
        video.close()
        images = [frame.image for frame in shown if frame.image is not None]
        said = asdict(video.info)
        said["creation_time"] = said["creation_time"] and said["creation_time"].isoformat()
        return cls(
            times_ms=tuple(frame.pts_ms for frame in shown),
            end_ms=video.end_ms,
            size=(video.info.width, video.info.height),
            damage=frozenset(name for name, figure in asdict(video.damage).items() if figure),
            corners=frozenset(
                name
                for name, place in CORNERS.items()
                if np.abs(images[-1][place].astype(int) - RED).mean() < 40
            ),
            shapes=frozenset(image.shape for image in images),
            said=said,
        )

    def __str__(self) -> str:
        return self.refusal or _line(self.times_ms, self.end_ms, self.size, self.damage)


def expected(right: Right) -> str:
    """What is right, in words."""
    if right.refused is not None:
        return f"refused: {right.refused}"
    line = _line(right.times_ms, right.end_ms, right.size, right.warned, "up to " if right.fewer else "")
    more = [*right.said.values(), *([f"red {right.corner}"] if right.corner else [])]
    return ", ".join([line, *map(str, more)])


def differences(name: str, right: Right, got: Got) -> list[str]:
    """What is wrong with what a file became."""
    if right.refused is not None or got.refusal is not None:
        as_refused = right.refused and got.refusal and re.search(right.refused, got.refusal)
        return [] if as_refused and name in str(got.refusal) else [f"refusal: {got.refusal}"]
    allowed = right.times_ms
    in_time = (
        0 < len(got.times_ms) <= len(allowed)
        and all(min(abs(time - known) for known in allowed) <= 20 for time in got.times_ms)
        if right.fewer
        else len(got.times_ms) == len(allowed)
        and all(abs(time - known) <= 1 for time, known in zip(got.times_ms, allowed, strict=True))
    )
    said = got.said or {}
    wrong = {
        f"times: {got.times_ms}": not in_time,
        f"end: {got.end_ms}": right.end_ms is not None and abs(got.end_ms - right.end_ms) > 1,
        f"damage: {sorted(got.damage)}": not got.damage >= right.warned
        or bool(got.damage and not right.warned),
        f"size: {got.size}, pictures {sorted(got.shapes)}": got.size != right.size
        or got.shapes != {(*right.size[::-1], 3)},
        f"red corners: {sorted(got.corners)}": right.corner is not None and got.corners != {right.corner},
        f"said: {said}": any(said.get(key) != value for key, value in right.said.items()),
    }
    return [what for what, is_wrong in wrong.items() if is_wrong]


def _line(
    times_ms: Sequence[int],
    end_ms: int | None,
    size: tuple[int, int],
    damage: frozenset[str],
    most: str = "",
) -> str:
    ends = "" if end_ms is None else f", ends at {end_ms}"
    marks = f", {' and '.join(sorted(damage))}" if damage else ""
    return (
        f"{most}{len(times_ms)} frames from {times_ms[0]} to {times_ms[-1]} ms{ends}, "
        f"{size[0]} × {size[1]}{marks}"
    )


def main() -> None:
    """Prints the table."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    failed = 0
    print("| file | expected | got | |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for file in (file for file in FILES if word in file.name):
            path = Path(folder) / file.name
            file.write(path)
            got = Got.of(path)
            wrong = differences(file.name, file.right, got)
            failed += bool(wrong)
            print(f"| {file.name} | {expected(file.right)} | {got} | {'; '.join(wrong) or 'right'} |")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
