"""A killed process leaves a video behind, and the next one removes it; what is in use stays."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from capstone_dagster.storage import scratch

HOLDS = """
import sys
from capstone_dagster.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "video.mp4").write_bytes(b"somebody's face")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = os.environ | {"TMPDIR": str(tmp_path)}
    start = [sys.executable, "-c", HOLDS]
    holders = [
        subprocess.Popen(start, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = []
    for holder in holders:
        assert holder.stdout is not None
        folders.append(Path(holder.stdout.readline().strip()))
    killed, living = holders
    killed.kill()
    killed.wait()
    for folder in folders:
        os.utime(folder, (time.time() - 3600,) * 2)
    foreign = tmp_path / "capstone-elsewhere"
    foreign.mkdir()

    assert scratch.sweep() == 1
    assert [folder.exists() for folder in folders] == [False, True]
    living.communicate("")
    assert not folders[1].exists(), "its owner removes it"
    assert foreign.exists()


def test_a_folder_whose_owner_is_about_to_lock_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "capstone-scratch-new").mkdir()
    assert scratch.sweep() == 0
