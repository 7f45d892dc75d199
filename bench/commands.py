"""How long a person waits for a `capstone` command: processor time of help, of typing errors, of reading.

    python -m bench.commands [--state DIR] [--record]

Processor time, not wall-clock time, so that other work on the machine hardly shows. Reading commands ask the
local stack that runs on the state; where none runs, PostgreSQL and the AWS emulator are started for the
measurement. After `make demo` there is a video to ask for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer.main

from bench.report import record, table
from capstone_dagster.cli import app
from capstone_dagster.local.stack import local_stack
from capstone_dagster.local.state import read_environment

ROOT = Path(__file__).resolve().parent.parent
# What only reads, VIDEO standing for one that was analysed.
READING = (
    ("status",),
    ("status", "VIDEO"),
    ("events",),
    ("analyses", "VIDEO"),
    ("logs", "VIDEO"),
    ("trace", "VIDEO"),
    ("slo",),
    ("perf-report",),
    ("incidents",),
    ("dora",),
    ("alerts",),
    ("intake", "status"),
    ("dlq", "list"),
)
# Typed wrongly in other ways than by an option that does not exist.
MISTYPED = (
    ("retry",),
    ("retry", "--class", "nonsense"),
    ("retry", "--since", "yesterday"),
    ("status", "--limit", "many"),
    ("submit",),
    ("submit", "video.mp4", "--recorded-at", "noon"),
    ("export", "events", "--out", "x.csv", "--since", "noon"),
    ("events", "--since", "noon"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=ROOT / ".capstone", help="the local stack's")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code to run, to compare two")
    parser.add_argument("--times", type=int, default=3, help="of which the median counts")
    parser.add_argument("--record", action="store_true", help="write the table into bench/RESULTS.md")
    asked = parser.parse_args()

    with _stack(asked.state.resolve()) as stack:
        measured = list(_measured(asked.checkout.resolve(), stack, asked.times))
    body = table(("command", "kind", "processor s", "exit code"), measured)
    print(body)
    for kind in dict.fromkeys(kind for _, kind, *_ in measured):
        seconds = [float(each) for _, of_kind, each, _ in measured if of_kind == kind]
        print(f"{kind}: {len(seconds)} commands, {min(seconds):.2f} to {max(seconds):.2f} s", file=sys.stderr)
    if asked.record:
        record("Commands", "python -m bench.commands --record", body, ("typer", "sqlalchemy", "dagster"))


@contextmanager
def _stack(state: Path) -> Iterator[Mapping[str, str]]:
    running = read_environment(state)
    if running is not None:
        yield running
        return
    with local_stack(state, with_dagster=False) as stack:
        yield stack.environment


def _measured(checkout: Path, stack: Mapping[str, str], times: int) -> Iterator[tuple[str, str, str, int]]:
    def row(kind: str, words: Sequence[str]) -> tuple[str, str, str, int]:
        seconds, code, _ = _median(checkout, stack, words, times)
        return f"capstone {' '.join(words)}", kind, f"{seconds:.2f}", code

    yield "(python that does nothing)", "", f"{_run(checkout, {}, ['-c', 'pass'])[0]:.2f}", 0
    names = list(_commands())
    for name in [(), *names]:
        yield row("help", [*name, "--help"])
    for name in names:
        yield row("typing error", [*name, "--nonsense"])
    for words in MISTYPED:
        yield row("typing error", words)
    *_, out = _median(checkout, stack, ["status", "--json"], 1)
    videos = [each["video_id"] for each in json.loads(out) if each["state"] == "done"]
    for words in READING:
        if videos or "VIDEO" not in words:
            yield row("reading", [videos[0] if word == "VIDEO" else word for word in words])


def _commands() -> Iterator[tuple[str, ...]]:
    """Every command as it is typed, those of groups too."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", {}):
            yield name, inner
        if not hasattr(command, "commands"):
            yield (name,)


def _median(
    checkout: Path, stack: Mapping[str, str], words: Sequence[str], times: int
) -> tuple[float, int, str]:
    program = "from capstone_dagster.cli import main; main()"
    runs = [_run(checkout, stack, ["-c", program, *words]) for _ in range(times)]
    return statistics.median(seconds for seconds, *_ in runs), runs[0][1], runs[0][2]


def _run(checkout: Path, stack: Mapping[str, str], arguments: Sequence[str]) -> tuple[float, int, str]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **stack, "PYTHONPATH": str(checkout), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, process.returncode, out


if __name__ == "__main__":
    main()
