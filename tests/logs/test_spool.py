"""What was given to the spool is in it, whoever dies; and it costs its callers nothing but a moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.logs.spool import (
    MAX_LINE_BYTES,
    Spool,
    cut_line,
    losses,
    remove_unborn,
    segments,
    used_bytes,
)
from tests.support.waiting import wait_for

GROUP = "/capstone/video-analysis"
PLENTY = 64 * 1024 * 1024


def kept(folder: Path) -> list[str]:
    """Every line in the spool, writer by writer."""
    found = []
    for segment in segments(folder):
        offset, finished = 0, segment.is_finished()
        while True:
            records, end = segment.read(offset, 1000, finished)
            if end == offset:
                break
            found += [record.text for record in records]
            offset = end
    return found


def run(program: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
    )


@given(line=st.text(st.characters(exclude_characters="\n")))
def test_every_text_is_kept_as_a_line_of_its_own(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, PLENTY)
    assert spool.append(GROUP, "first")
    assert spool.append(GROUP, line)
    assert spool.append(GROUP, "last\nof all")
    expected = line.encode(errors="replace").decode()
    assert kept(folder) == ["first", *([expected] if expected else []), "last\\nof all"]


@pytest.mark.parametrize("group", ["/capstone/intake", "a", "ü %/..", "../../outside"])
def test_any_group_name_is_a_folder_of_the_spool(tmp_path: Path, group: str) -> None:
    folder = tmp_path / "spool"
    Spool(folder, PLENTY).append(group, "line")
    assert [segment.group_name for segment in segments(folder)] == [group]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("line", [None, 7, b"bytes", ["list"]])
def test_what_is_no_text_is_refused_alone(tmp_path: Path, line: object) -> None:
    spool = Spool(tmp_path, PLENTY)
    assert spool.append(GROUP, "before")
    assert not spool.append(GROUP, line)  # type: ignore[arg-type]
    assert spool.append(GROUP, "after")
    assert spool.lost == 1
    assert kept(tmp_path) == ["before", "after"]


WRITER = f"""
import itertools, os, sys
from pathlib import Path
from capstone_dagster.logs.spool import Spool
spool = Spool(Path(sys.argv[1]), {PLENTY})
for number in itertools.count():
    if spool.append({GROUP!r}, f"{{number}} " + "x" * (number % 300)):
        os.write(1, b"%d\\n" % number)
"""


def test_a_writer_killed_at_any_moment_loses_no_line_of_its_logs(tmp_path: Path) -> None:
    """Each line whose writing has returned is there, whole, and in order."""
    for seed in range(5):
        folder = tmp_path / str(seed)
        process = run(WRITER, folder)
        assert process.stdout is not None
        process.stdout.readline()
        wait_until = time.monotonic() + random.Random(seed).uniform(0.0, 0.2)
        told = 0
        while time.monotonic() < wait_until:
            told = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        told = int(rest[-1]) if rest else told
        there = [int(line.partition(" ")[0]) for line in kept(folder)]
        assert there[: told + 1] == list(range(told + 1))
        # The one that it was at may be there too, even in part.
        assert len(there) - (told + 1) in (0, 1)
        assert all(segment.is_finished() for segment in segments(folder))


def test_threads_and_forked_processes_write_side_by_side(tmp_path: Path) -> None:
    spool = Spool(tmp_path, PLENTY)

    def write(name: str) -> None:
        for number in range(300):
            assert spool.append(GROUP, f"{name} {number}")

    threads = [threading.Thread(target=write, args=(f"thread{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for index in range(3):  # while the threads hold the lock now and then
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(60)  # one that waits for a lock of its parent's waits for ever
            try:
                write(f"child{index}")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    lines = kept(tmp_path)
    for name in [f"thread{index}" for index in range(4)] + [f"child{index}" for index in range(3)]:
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {n}" for n in range(300)]
    assert len({segment.writer for segment in segments(tmp_path)}) == 4


def test_a_segment_is_finished_when_its_writer_went_on_or_ended(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 16 * 8192)
    for number in range(40):
        spool.append(GROUP, f"{number} " + "x" * 1000)
    *gone, current = segments(tmp_path)
    assert gone
    assert all(segment.is_finished() for segment in gone)
    assert not current.is_finished()
    spool.close()
    assert current.is_finished()
    assert [int(line.partition(" ")[0]) for line in kept(tmp_path)] == list(range(40))


def test_all_writers_together_are_bounded_and_losses_counted(tmp_path: Path) -> None:
    limit = 300_000
    spools = [Spool(tmp_path, limit) for _ in range(4)]
    kept_lines = lost = 0
    for number in range(800):
        for spool in spools:
            if spool.append(GROUP, f"{number} " + "x" * 500):
                kept_lines += 1
            else:
                lost += 1
    assert lost > 0
    assert used_bytes(tmp_path) <= limit + len(spools) * 2 * 64 * 1024
    assert len(kept(tmp_path)) == kept_lines
    assert sum(loss.read() for loss in losses(tmp_path)) == sum(spool.lost for spool in spools) == lost


def test_it_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 50_000)
    while spool.append(GROUP, "x" * 1000):
        pass
    for segment in segments(tmp_path):
        if segment.is_finished():
            segment.remove()
    wait_for("room", lambda: spool.append(GROUP, "again"), deadline_s=10)


def test_a_disk_that_is_full_in_the_middle_of_a_line_spoils_no_other(tmp_path: Path) -> None:
    """By the limit of a file's size, which cuts a write short as a full disk does."""
    process = run(
        f"""
import resource, sys
from pathlib import Path
from capstone_dagster.logs.spool import Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
spool = Spool(Path(sys.argv[1]), {PLENTY})
kept = [n for n in range(100) if spool.append({GROUP!r}, str(n).ljust(700, "x"))]
print(*kept)
""",
        tmp_path,
    )
    out, _ = process.communicate(timeout=30)
    there = [int(line.rstrip("x")) for line in kept(tmp_path)]
    assert 10 <= len(there) < 100
    assert there == [int(number) for number in out.split()]
    assert sum(loss.read() for loss in losses(tmp_path)) == 100 - len(there)


@pytest.mark.parametrize("folder", ["/proc/no-such-place/spool", "/dev/null/spool"])
def test_a_folder_that_cannot_be_is_told_of_once(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    spool = Spool(Path(folder), PLENTY)
    assert not any(spool.append(GROUP, "line") for _ in range(10))
    assert spool.lost == 10
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert folder in told[0]


@given(
    text=st.text(max_size=300),
    size=st.integers(400, 2000),
    repeated=st.integers(1, 20),
)
def test_a_line_that_is_too_long_is_cut_with_a_mark_and_stays_json(
    text: str, size: int, repeated: int
) -> None:
    line = json.dumps({"message": text * repeated, "level": "INFO"}, ensure_ascii=False)
    cut = cut_line(line, size)
    assert len(cut.encode(errors="replace")) <= size
    if len(line.encode(errors="replace")) <= size:
        assert cut == line
    else:
        fields = json.loads(cut)
        assert fields["level"] == "INFO"
        assert "[cut, " in fields["message"]


def test_the_longest_line_is_what_cloudwatch_takes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, PLENTY)
    assert spool.append(GROUP, "ü" * 1_000_000)
    [line] = kept(tmp_path)
    assert MAX_LINE_BYTES - 100 < len(line.encode()) <= MAX_LINE_BYTES
    assert line.endswith("[cut, 2000000 bytes in all]")


def test_what_a_writer_left_unborn_is_removed_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    old, new = (tmp_path / "group" / f"{name}.000000.lines.new" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 100,) * 2)
    remove_unborn(tmp_path)
    assert [path.exists() for path in (old, new)] == [False, True]
