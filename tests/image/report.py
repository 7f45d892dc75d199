"""The figures of both images, for people and for bench/RESULTS.md."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import record, table

# A network speed to reckon with, named because the pull itself cannot be measured here.
_GBIT_PER_S = 5


@dataclass
class Figures:
    """Seconds and bytes, as measured."""

    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    layers: dict[str, list[int]] = field(default_factory=dict)
    starts: dict[str, tuple[float, float]] = field(default_factory=dict)
    doctor: str = ""
    analysis: dict[str, Any] = field(default_factory=dict)
    model: dict[str, float] = field(default_factory=dict)
    webserver: tuple[float, float | None] = (0, None)
    daemon: tuple[float, float | None] = (0, None)

    def shown(self) -> str:
        """Markdown."""
        size = table(
            ("part", *(f"{image}, MB on disk" for image in self.parts)),
            [
                (part, *(_mb(parts[part]) for parts in self.parts.values()))
                for part in next(iter(self.parts.values()))
            ],
        )
        pulls = table(
            ("image", "MB compressed by gzip", "layers above 1 MB", f"s at {_GBIT_PER_S} Gbit/s"),
            [
                (
                    image,
                    _mb(sum(layers)),
                    ", ".join(_mb(count) for count in layers if count > 1e6),
                    f"{sum(layers) * 8 / _GBIT_PER_S / 1e9:.0f}",
                )
                for image, layers in self.layers.items()
            ],
        )
        starts = table(
            ("process", "s, from disk", "s, again"),
            [(name, f"{cold:.1f}", f"{warm:.1f}") for name, (cold, warm) in self.starts.items()],
        )
        loads = table(
            ("the embedded model is", "s to load"),
            [(name, f"{seconds:.2f}") for name, seconds in self.model.items()],
        )
        stopped = {
            name: "does not stop within half a minute" if seconds is None else f"stops in {seconds:.1f} s"
            for name, seconds in (("webserver", self.webserver[1]), ("daemon", self.daemon[1]))
        }
        return f"""{size}

Pulling was not measured: there is no registry here. The seconds are those of the compressed bytes alone;
unpacking comes on top.

{pulls}

{starts}

{loads}

Webserver healthy after {self.webserver[0]:.0f} s, and {stopped["webserver"]} when asked as process 1;
daemon healthy after {self.daemon[0]:.0f} s, and {stopped["daemon"]}. The demo clip,
{self.analysis["duration_s"]:.0f} s of video, took {self.analysis["seconds"]:.1f} s
({self.analysis["backend"]}, {self.analysis["events"]} events)."""

    def record(self) -> None:
        """Into bench/RESULTS.md."""
        record("Container image", "make image-test RECORD=1", self.shown(), ("torch", "openvino", "dagster"))


def sizes(root: Path) -> dict[str, int]:
    """Bytes on disk of the image's parts."""
    packages = next(root.glob("opt/venv/lib/python3*/site-packages"))
    counted = {
        "CUDA libraries": packages / "nvidia",
        "PyTorch": packages / "torch",
    }
    parts = {name: _bytes(path) for name, path in counted.items()}
    parts["other Python packages"] = _bytes(root / "opt/venv") - sum(parts.values())
    parts["the project"] = _bytes(root / "app")
    parts["the model's export"] = _bytes(root / "var/cache/capstone")
    parts["everything"] = _bytes(root)
    parts["the base"] = parts["everything"] - sum(parts[name] for name in list(parts)[:-1])
    parts["bytecode, counted above"] = sum(path.stat().st_size for path in (root / "opt/venv").rglob("*.pyc"))
    return parts


def _bytes(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names
    )


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.1f}"
