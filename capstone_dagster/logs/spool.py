"""Lines on their way to CloudWatch, kept on disk: written by any process at any moment, read by the shipper.

    <folder>/<log group, percent-encoded>/<writer>.<number>.lines    one segment; one record a line
    <folder>/<log group, percent-encoded>/<writer>.lost              how many lines that writer had to give up

A writer is one process, and nobody else writes to its files, so that one `write` a line is all it takes: what
was given to the kernel survives SIGKILL of whoever gave it. A writer holds a lock on each of its files; a
segment without one is finished, because its writer went on to the next, or ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

# CloudWatch's limit for an event is 256 KiB, of which it counts 26 bytes for itself.
MAX_LINE_BYTES = 256 * 1024 - 26
# Small enough that the part of a segment which is sent already, and still takes room, does not matter; large
# enough that a run, some 20 KB of lines, has one of each group.
_SEGMENT_BYTES = 1024 * 1024
# So much a writer writes before it looks again how much all of them have written.
_ALLOWANCE_BYTES = 64 * 1024
# A file takes at least a page of the disk.
_PAGE_BYTES = 4096
# After a refusal, be it for want of room or by the disk, nothing is tried for so long.
_PAUSE_S = 1.0
_CUT = "… [cut, {} bytes in all]"


class Spool:
    """Where this process leaves its lines; usable from all its threads, and after a fork.

    Args:
        folder: made at the first line.
        limit_bytes: the most that all writers together keep there, exceeded by at most 64 KiB for each of
            them that writes at the same moment.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = Path(folder)
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(_PAGE_BYTES, min(_SEGMENT_BYTES, limit_bytes // 16))
        # Reentrant, because a signal handler may log while its thread is in here.
        self._lock = threading.RLock()
        self._writers: dict[str, _Writer] = {}
        self._look_again = 0.0
        self._begin()
        _OPEN.add(self)

    @property
    def lost(self) -> int:
        """How many lines this process could not keep."""
        return sum(writer.lost for writer in self._writers.values())

    def append(self, group_name: str, line: str) -> bool:
        """Keep one line for the log group; whether that was possible. Never raises, and waits for no network.

        A line break within the line is escaped; a line longer than CloudWatch takes is cut, with a mark.
        """
        try:
            with self._lock:
                writer = self._writers.get(group_name)
                if writer is None:
                    folder = self._folder / quote(group_name, safe="")
                    writer = self._writers[group_name] = _Writer(folder, self._name, self._segment_bytes)
                try:
                    data = _record(line)
                except Exception:  # no text at all: the lines after it are none the worse for it
                    writer.count_loss()
                    return False
                try:
                    if not self._has_room(len(data)):
                        raise _NoRoom(f"it holds CAPSTONE_LOG_SPOOL_MB, {self._limit_bytes} bytes, already")
                    writer.write(data)
                except Exception as error:  # law: a line is never worth a failure, whatever is wrong with it
                    self._allowance = 0
                    if time.monotonic() >= self._look_again:  # not during a pause, which would never end
                        self._look_again = time.monotonic() + _PAUSE_S
                    writer.count_loss()
                    self._tell(error)
                    return False
                return True
        except Exception:
            return False

    def close(self) -> None:
        """Finish this process's files; a later line begins new ones, and `lost` anew."""
        with self._lock:
            self._begin()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _begin(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._writers = {}
        self._allowance = 0
        self._look_again = 0.0
        self._told = False

    def _after_fork(self) -> None:
        """The parent's files stay the parent's, and a thread of its that held the lock is not here."""
        self._lock = threading.RLock()
        self._begin()

    def _has_room(self, size: int) -> bool:
        if self._allowance < size:
            if time.monotonic() < self._look_again:
                return False
            free = self._limit_bytes - used_bytes(self._folder)
            if free < size:
                return False
            self._allowance = max(size, min(free, _ALLOWANCE_BYTES))
        self._allowance -= size
        return True

    def _tell(self, error: Exception) -> None:
        """Once, and not by a log line: those come here."""
        if not self._told:
            self._told = True
            with contextlib.suppress(Exception):
                print(
                    f"Log lines for CloudWatch are being dropped, because {self._folder} cannot take them: "
                    f"{error}. Make room there, or raise CAPSTONE_LOG_SPOOL_MB; `capstone doctor` says "
                    "whether they are being sent.",
                    file=sys.stderr,
                )


class _NoRoom(Exception):
    """The spool is full."""


class _Writer:
    """This process's files for one log group."""

    def __init__(self, folder: Path, name: str, segment_bytes: int) -> None:
        self.lost = 0
        self._folder = folder
        self._name = name
        self._segment_bytes = segment_bytes
        self._numbers = itertools.count()
        self._segment: int | None = None
        self._size = 0
        self._counter: int | None = None

    def write(self, data: bytes) -> None:
        if self._segment is None:
            self._segment = _create(self._folder / f"{self._name}.{next(self._numbers):06}.lines")
            self._size = 0
        written = 0
        try:
            written = os.write(self._segment, data)
        finally:
            if written != len(data):
                self._abandon()
        if written != len(data):
            raise OSError("the disk is full")
        self._size += written
        if self._size >= self._segment_bytes:
            self._finish()

    def count_loss(self) -> None:
        self.lost += 1
        with contextlib.suppress(OSError):
            if self._counter is None:
                self._counter = _create(self._folder / f"{self._name}.lost", append=False)
            # Always as long, in place: it takes no room that a full disk would have to give.
            os.pwrite(self._counter, b"%020d" % self.lost, 0)

    def close(self) -> None:
        self._finish()
        if self._counter is not None:
            os.close(self._counter)
            self._counter = None

    def _abandon(self) -> None:
        """Half a line is no line: take it back, and write no more behind it."""
        assert self._segment is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._segment, self._size)
        self._finish()

    def _finish(self) -> None:
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a segment.

    Attributes:
        time_ms: when it was kept, in milliseconds since 1970.
        end: offset of the byte behind it in its segment.
    """

    time_ms: int
    text: str
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of lines, as the shipper sees it.

    Attributes:
        writer: the process that wrote it; its segments are in order by `number`.
    """

    path: Path
    group_name: str
    writer: str
    number: int

    def is_finished(self) -> bool:
        """Whether its writer will write no more to it. Ask before reading what is to be the end."""
        return _is_unlocked(self.path)

    def read(self, offset: int, most_bytes: int, finished: bool) -> tuple[list[Record], int]:
        """Complete lines from `offset` on, and the offset behind them, which is beyond what was no record.

        Args:
            finished: take what stands behind the last line break, too: its writer was killed there.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(max(most_bytes, 2 * MAX_LINE_BYTES))  # never less than a line
            at_end = offset + len(data) == os.fstat(file.fileno()).st_size
            kept_ms = int(os.fstat(file.fileno()).st_mtime * 1000)
        records = []
        for line in _lines(data):
            if not line.endswith(b"\n") and not (finished and at_end):
                break
            offset += len(line)
            time_text, _, text = line.rstrip(b"\n").partition(b" ")
            if text:
                time_ms = int(time_text) if time_text.isdigit() else kept_ms
                records.append(Record(time_ms, text.decode(errors="replace"), offset))
        return records, offset

    def remove(self) -> None:
        """Delete it: what was in it is sent."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Loss:
    """Where one writer counts the lines that it had to give up."""

    path: Path
    group_name: str

    def is_finished(self) -> bool:
        """Whether its writer will count no more here. Ask before reading."""
        return _is_unlocked(self.path)

    def read(self) -> int:
        """How many lines it has lost so far."""
        try:
            return int(self.path.read_bytes())
        except (OSError, ValueError):
            return 0  # gone, or not yet begun


def segments(folder: Path) -> list[Segment]:
    """Every segment, those of one writer in order; a file that vanishes or means nothing is left out."""
    found = []
    for group_name, path in _files(folder, ".lines"):
        writer, _, number = path.name.removesuffix(".lines").rpartition(".")
        if writer and number.isdigit():
            found.append(Segment(path, group_name, writer, int(number)))
    return sorted(found, key=lambda each: (each.group_name, each.writer, each.number))


def losses(folder: Path) -> list[Loss]:
    """What each writer counts."""
    return [Loss(path, group_name) for group_name, path in _files(folder, ".lost")]


def used_bytes(folder: Path) -> int:
    """What the spool takes of the disk, or would."""
    used = 0
    for group in _scan(folder):
        if group.is_dir():
            for file in _scan(Path(group.path)):
                with contextlib.suppress(OSError):
                    used += max(file.stat().st_size, _PAGE_BYTES)
    return used


def remove_unborn(folder: Path) -> None:
    """Delete what a writer left that was killed while it made a file."""
    for _, path in _files(folder, ".new"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 60 and _is_unlocked(path):
                path.unlink()


def cut_line(line: str, most_bytes: int = MAX_LINE_BYTES) -> str:
    """The line, shortened with a mark if it is too long; a JSON object stays one."""
    size = len(line.encode(errors="replace"))
    if size <= most_bytes:
        return line
    mark = _CUT.format(size)
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(line)
        if isinstance(fields, dict):
            while texts := {name: len(text) for name, text in fields.items() if isinstance(text, str)}:
                name = max(texts, key=texts.__getitem__)
                if texts[name] <= len(mark):
                    break
                fields[name] = fields[name][: max(0, texts[name] // 2 - len(mark))] + mark
                shorter = json.dumps(fields, ensure_ascii=False)
                if len(shorter.encode(errors="replace")) <= most_bytes:
                    return shorter
    return line.encode(errors="replace")[: most_bytes - len(mark.encode())].decode(errors="ignore") + mark


def _record(line: str) -> bytes:
    text = (
        cut_line(line.replace("\n", "\\n")) if len(line) * 4 > MAX_LINE_BYTES else line.replace("\n", "\\n")
    )
    return b"%d %b\n" % (time.time_ns() // 1_000_000, text.encode(errors="replace"))


def _lines(data: bytes) -> Iterator[bytes]:
    """Split at \\n alone, unlike bytes.splitlines."""
    yield from re.findall(rb"[^\n]*\n|[^\n]+", data)


def _create(path: Path, append: bool = True) -> int:
    """A new file that is locked from the moment on that it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unborn = path.with_name(f"{path.name}.new")
    descriptor = os.open(unborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_APPEND if append else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unborn.rename(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_unlocked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # gone meanwhile
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _files(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    for group in _scan(folder):
        if group.is_dir():
            for file in _scan(Path(group.path)):
                if file.name.endswith(ending):
                    yield unquote(group.name), Path(file.path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _after_fork_in_child() -> None:
    for spool in list(_OPEN):
        spool._after_fork()


_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork_in_child)
