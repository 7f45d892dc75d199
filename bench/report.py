"""How benchmarks say what they ran on, and where their results go: `bench/RESULTS.md`, a section for each."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_TITLE = "# Benchmark results\n\nWritten by the scripts in this folder; each section says how to repeat it.\n"


def machine(packages: Sequence[str]) -> str:
    """One line: processor, cores, GPU, load, versions and date, so that a figure can be judged later."""
    versions = ", ".join(f"{package} {_version(package)}" for package in ("Python", *packages))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores{_gpu()}, load at the end {os.getloadavg()[0]:.1f}; "
        f"{platform.system()} {platform.release()}; {versions}; {datetime.now(UTC):%Y-%m-%d}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def record(name: str, command: str, body: str, packages: Sequence[str]) -> None:
    """Puts a section into `RESULTS.md`, in place of the one of that name."""
    text = RESULTS.read_text() if RESULTS.exists() else _TITLE
    section = f"## {name}\n\n    {command}\n\n{machine(packages)}\n\n{body.strip()}\n"
    known = re.compile(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if known.search(text):
        text = known.sub(lambda found: section + "\n", text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(text.rstrip() + "\n")


def _version(package: str) -> str:
    if package == "Python":
        return platform.python_version()
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    bf16 = " with bf16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", text) else ""
    return f"{name[1] if name else platform.machine()}{bf16}"


def _gpu() -> str:
    # Whether there is one shows without torch, which not every benchmark needs.
    if not Path("/dev/nvidiactl").exists():
        return ", no GPU"
    import torch

    return f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ", a GPU that does not work"
