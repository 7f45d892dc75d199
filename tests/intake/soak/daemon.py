"""The worker process seen from the harness: give it a life to live, learn how it ended."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.intake.soak.journal import Journal
from tests.intake.soak.schedule import Life
from tests.intake.soak.stage import ROOT, Stage
from tests.support.waiting import scaled

# A life of a dozen big ticks takes half a minute on a busy machine; this is for one that hangs.
LIFE_DEADLINE_S = scaled(300)


class DaemonError(AssertionError):
    """The worker ended otherwise than by its fate; the message has the end of its log."""


class Daemon:
    """Lives one after the other."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, journal: Journal) -> None:
        self._process = process
        self._log = log
        self.journal = journal
        self._answer()

    def live(self, life: Life, forbidden: list[str]) -> bool:
        """Live one life; whether its point was met."""
        order = {
            "point": None if life.point is None else life.point.value,
            "passes": life.passes,
            "ticks": life.ticks,
            "forbidden": forbidden,
        }
        assert self._process.stdin is not None
        known = len(self.journal.struck)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._answer())
        self.journal.read()
        struck = len(self.journal.struck) > known
        killed = struck and life.point is not None and life.point.kills
        if code != (-signal.SIGKILL if killed else 0):
            raise DaemonError(f"the daemon ended with {code}:\n{self._last_lines()}")
        return struck

    def _answer(self) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(LIFE_DEADLINE_S):
                raise DaemonError(f"no answer in {LIFE_DEADLINE_S:.0f} s:\n{self._last_lines()}")
        line = self._process.stdout.readline()
        if not line:
            raise DaemonError(f"the worker is gone:\n{self._last_lines()}")
        return line

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


@contextmanager
def daemon(stage: Stage) -> Iterator[Daemon]:
    """A worker that plays on this stage."""
    log, journal = stage.home / "worker.log", stage.home / "journal.jsonl"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.intake.soak.worker", str(journal)],
            env=stage.variables,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            bufsize=1,
            # A group of its own, so that a life that hangs goes with its parent.
            start_new_session=True,
        )
    try:
        yield Daemon(process, log, Journal(journal))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
