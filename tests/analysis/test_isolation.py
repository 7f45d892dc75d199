"""A hostile file may crash its decoder and nothing else: it is confined, and ends with its reader."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from capstone_dagster.analysis import UndecodableVideo, frames, probe
from capstone_dagster.analysis.errors import DecoderLost
from capstone_dagster.analysis.footage import budget, container
from capstone_dagster.analysis.footage.decoding import VideoFile
from capstone_dagster.analysis.footage.reader import VideoReader
from tests.support.waiting import wait_for

from .conftest import MakeClip, decoders

STEADY = [40 * index for index in range(60)]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")


_ATTEMPTS = """
import json, os, socket, subprocess, sys
from pathlib import Path
from capstone_dagster.analysis.footage.sandbox import confine
video, other = Path(sys.argv[1]), Path(sys.argv[2])
attempts = {
    "read the video": lambda: video.read_bytes(),
    "read another file": lambda: other.read_bytes(),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: other.with_name("new").write_text("x"),
    "change the video": lambda: video.open("r+b").close(),
    "delete the video": lambda: video.unlink(),
    "open the video to all": lambda: video.chmod(0o777),
    "date the video": lambda: os.utime(video),
    "open a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "start a process": os.fork,
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "take 8 GiB": lambda: bytearray(8 << 30),
    "start a thread": lambda: __import__("threading").Thread(target=int).start(),
}
import threading
layers, outcomes = confine(video), {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcomes[name] = "done"
    except (OSError, MemoryError) as error:
        outcomes[name] = type(error).__name__
os.write(1, json.dumps({"layers": layers, "outcomes": outcomes}).encode())
"""


@linux_only
def test_a_confined_process_reads_one_file_and_reaches_nothing_else(tmp_path: Path) -> None:
    video, other = tmp_path / "a.mp4", tmp_path / "secret"
    video.write_bytes(b"video")
    other.write_text("secret")
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPTS, str(video), str(other)], capture_output=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    allowed = {name for name, outcome in said["outcomes"].items() if outcome == "done"}
    wanted = {"read the video", "start a thread"}
    if not any(layer.startswith("landlock") for layer in said["layers"]):
        wanted |= {"read another file", "list a folder", "delete the video", "change the video"}
    if "seccomp" not in said["layers"]:
        wanted |= {name for name in said["outcomes"] if "socket" in name or "pr" in name or "signal" in name}
    assert allowed == wanted, said
    assert video.exists()


@linux_only
def test_the_decoder_has_no_credentials_and_no_open_files_of_ours(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    clip = make_clip("a.mp4", STEADY)
    with clip.open("rb"), VideoReader(clip) as video:
        assert "limits" in video.isolation
        (decoder,) = decoders(os.getpid())
        environment = Path(f"/proc/{decoder}/environ").read_bytes()
        assert b"secret" not in environment
        opened = [os.readlink(link) for link in Path(f"/proc/{decoder}/fd").iterdir()]
        kinds = {name.partition(":")[0] for name in opened}
        assert kinds <= {"/dev/null", "pipe", "/memfd", str(clip)}, opened


@pytest.mark.parametrize(
    ("ended_by", "error", "failure_class"),
    [
        (signal.SIGSEGV, UndecodableVideo, "undecodable-video"),
        (signal.SIGABRT, UndecodableVideo, "undecodable-video"),
        (signal.SIGXCPU, UndecodableVideo, "undecodable-video"),
        (signal.SIGKILL, DecoderLost, "worker-lost"),
        (signal.SIGTERM, DecoderLost, "worker-lost"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_decoder_that_dies_is_a_failure_that_names_the_signal(
    make_clip: MakeClip, ended_by: signal.Signals, error: type[Exception], failure_class: str
) -> None:
    far_from_its_end = [40 * index for index in range(600)]
    with VideoReader(make_clip("a.mp4", far_from_its_end)) as video:
        shown = video.frames(sample_fps=0, pictures=2)
        next(shown)
        (decoder,) = decoders(os.getpid())
        os.kill(decoder, ended_by)
        with pytest.raises(error, match=ended_by.name) as raised:
            list(shown)
    assert "a.mp4" in str(raised.value)
    assert raised.value.failure_class == failure_class  # type: ignore[attr-defined]
    assert decoders(os.getpid()) == []


def test_no_decoder_outlives_the_process_that_wanted_it(make_clip: MakeClip) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from capstone_dagster.analysis.footage.reader import VideoReader\n"
        "video = VideoReader(Path(sys.argv[1]))\n"
        "print('open', flush=True)\n"
        "time.sleep(600)\n"
    )
    reading = subprocess.Popen(
        [sys.executable, "-c", program, str(make_clip("a.mp4", STEADY))], stdout=subprocess.PIPE, text=True
    )
    assert reading.stdout is not None
    assert reading.stdout.readline() == "open\n"
    (decoder,) = decoders(reading.pid)
    reading.kill()
    reading.wait()
    wait_for("the decoder to end", lambda: not Path(f"/proc/{decoder}").exists(), 10)


def test_who_holds_on_to_pictures_gets_copies_and_no_picture_changes(make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", STEADY, lambda index: [("person", 2 * index, 10, 2 * index + 24, 90)])
    with VideoReader(clip) as video:
        held = list(video.frames(sample_fps=0, pictures=2))
    expected = VideoFile(clip).frames(sample_fps=0)
    for ours, theirs in zip(held, expected, strict=True):
        assert (ours.index, ours.pts_ms, ours.motion) == (theirs.index, theirs.pts_ms, theirs.motion)
        assert ours.image is not None
        assert theirs.image is not None
        assert np.array_equal(ours.image, theirs.image)


def test_decoded_frames_are_freed_at_once(make_clip: MakeClip) -> None:
    """Each is megabytes of memory that Python's garbage collector does not see, and so does not hurry for."""
    file = VideoFile(make_clip("a.mp4", STEADY))
    gc.collect()
    gc.disable()
    try:
        for _ in file.frames(sample_fps=0):
            pass
        kept = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    finally:
        gc.enable()
    assert kept < 10


def test_reading_may_end_at_any_frame(make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", STEADY)
    for wanted in (0, 1, 30):
        with VideoReader(clip) as video:
            for frame in video.frames(sample_fps=0):
                if frame.index >= wanted:
                    break
        assert decoders(os.getpid()) == []
    assert len(list(frames(clip, sample_fps=1))) == len(STEADY)


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("_SECONDS_FREE", -1.0, "processor seconds"),
        ("_PIXELS_FREE", -(10**12), "pixels"),
        ("_BYTES_FREE", -(10**9), "again and again"),
    ],
)
def test_what_costs_too_much_is_refused(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, reason: str
) -> None:
    monkeypatch.setattr(budget, limit, value)
    with pytest.raises(UndecodableVideo, match=reason):
        list(VideoFile(make_clip("a.mp4", STEADY)).frames(sample_fps=0))


@linux_only
def test_a_decoder_that_computes_for_ever_is_ended(make_clip: MakeClip) -> None:
    program = (
        "import resource\n"
        "from capstone_dagster.analysis.footage import budget\n"
        "budget._SECONDS_STALLED = 1\n"
        "budget.renew_time_limit()\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert done.returncode == -signal.SIGXCPU


@pytest.mark.parametrize(
    "error",
    [av.error.PermissionError(1, "EPERM"), av.error.OSError(5, "EIO"), av.error.MemoryError(12, "ENOMEM")],
)
def test_an_error_of_the_decoder_is_not_taken_for_the_machines(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """FFmpeg returns the same numbers for broken content; the file can be read, and there is memory."""
    clip = make_clip("a.mp4", STEADY)

    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(container.av, "open", refuse)
    with pytest.raises(UndecodableVideo):
        VideoFile(clip)


@pytest.mark.parametrize("number", [5, 13, 116])
def test_an_error_of_the_disk_is_not_taken_for_the_videos(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    clip = make_clip("a.mp4", STEADY)

    def refuse(*arguments: object, **options: object) -> None:
        raise av.error.OSError(5, "EIO")

    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(container.av, "open", refuse)
    monkeypatch.setattr(Path, "open", lambda *arguments, **options: Broken())
    with pytest.raises(OSError, match=os.strerror(number)):
        VideoFile(clip)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none.mp4")
