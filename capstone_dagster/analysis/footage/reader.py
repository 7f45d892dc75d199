"""Reads one video in a process of its own: what it is, its frames, and what was wrong with it.

The file is a stranger's, and decoders have faults. The process that opens it has no credentials, no network
and no other file (`sandbox`), its work is bounded (`budget`), and what it answers is checked here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import DecoderLost, UndecodableVideo
from .budget import MOST_PIXELS
from .sampling import Sampling
from .shared_pictures import SharedPictures, reserve, unnamed_file
from .video import Damage, Decoder, Frame, Image, VideoInfo

# The package's own import would load Parquet and detectors, which a decoder has no use for.
_START = """
import sys, types
sys.path[:] = sys.argv.pop().split("\\n")
analysis = types.ModuleType("capstone_dagster.analysis")
analysis.__path__ = [sys.argv.pop()]
sys.modules[analysis.__name__] = analysis
from capstone_dagster.analysis.footage.decoder_process import main
main()
"""
# Numerical libraries would start a thread for each processor, to no use here. And glibc would give each
# picture's memory back to the kernel, which clears it for the next one: 0.4 ms for 1920 x 1080.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # the largest that glibc takes
}
# What the loader and a GPU's driver are found by.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")

_LONGEST_LINE = 1 << 20
# The last free places are kept: a consumer that holds on to pictures gets copies, and decoding goes on.
_PLACES_KEPT = 2
_MOST_PLACES = 1024

# A decoder dies by these because of what it reads; by others because somebody else ends it.
_OF_THE_VIDEO = (
    "SIGSEGV",
    "SIGBUS",
    "SIGABRT",
    "SIGFPE",
    "SIGILL",
    "SIGSYS",
    "SIGTRAP",
    "SIGXCPU",
    "SIGXFSZ",
)


def probe(path: Path) -> VideoInfo:
    """What a file states about itself. Decodes one frame, so a file that passes is a video.

    Raises:
        UndecodableVideo: the file has no frame that decodes; the message says why.

    >>> info = probe(Path("gate.mp4"))
    >>> info.width, info.height, info.codec
    (320, 180, 'h264')
    """
    with VideoReader(path) as video:
        return video.info


def frames(path: Path, *, sample_fps: float, motion_gate: bool = False) -> Iterator[Frame]:
    """Every decoded frame in order of presentation; frames that `Sampling` selects have an image.

    >>> from itertools import islice
    >>> [frame.pts_ms for frame in islice(frames(Path("gate.mp4"), sample_fps=5), 3)]
    [0, 40, 80]
    """
    with VideoReader(path) as video:
        yield from video.frames(sample_fps=sample_fps, motion_gate=motion_gate)


class VideoReader:
    """One video file, open for one pass over its frames.

    Attributes:
        info: what the file says of itself.
        decoder: what decodes.
        isolation: the layers that confine the decoding process, as `sandbox.confine` names them.
        damage: what was wrong with the file; known when the frames have ended, as are those below.
        end_ms: where the last frame ends, in milliseconds from the container's start.
        busy_s: how long the decoder was at work.
        peak_rss_mb: the most memory that it had resident, in MiB, without the pictures that both share.
    """

    def __init__(self, path: Path, *, name: str | None = None, hardware: bool = False) -> None:
        """Starts the process, which opens the file and decodes its first frame.

        Args:
            name: what messages call the file; by default its own name.
            hardware: prefer NVIDIA's decoder where the machine has one that reads the codec.

        Raises:
            UndecodableVideo: there is no frame; the message says why.
            OSError, MemoryError: the machine failed.
        """
        self._name = name or Path(path).name
        Path(path).stat()
        self._child = _Child(Path(path).absolute(), self._name, hardware)
        try:
            answer = self._child.answer()
            self.info = _video_info(answer["info"])
            self.decoder: Decoder = "nvdec" if answer["decoder"] == "nvdec" else "software"
            self.isolation = ", ".join(str(layer)[:40] for layer in answer["layers"])
        except (KeyError, TypeError, ValueError) as error:
            self._child.close()
            raise self._child.broken(error) from error
        except BaseException:
            self._child.close()
            raise
        self.damage = Damage()
        self.end_ms = 0
        self.busy_s = self.peak_rss_mb = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    def frames(self, *, sample_fps: float, motion_gate: bool = False, pictures: int = 8) -> Iterator[Frame]:
        """Every frame from the first on; a truncated tail ends the stream. To be iterated once.

        Args:
            pictures: how many the decoder may have ready or in use at once; who holds more gets copies.
        """
        Sampling(sample_fps, motion_gate=motion_gate)  # refuses what cannot be meant
        places = min(pictures + _PLACES_KEPT, _MOST_PLACES)
        lent = self._child.begin(
            self.info, {"sample_fps": sample_fps, "motion_gate": motion_gate, "pictures": places}
        )
        try:
            while "end" not in (answer := self._child.answer()):
                for index, pts_ms, motion, place in answer["frames"]:
                    image = None if place is None else lent.picture(place)
                    yield Frame(int(index), int(pts_ms), float(motion), image)
            end = answer["end"]
            self.damage = _damage(end["damage"])
            self.end_ms = int(end["end_ms"])
            self.busy_s, self.peak_rss_mb = float(end["busy_s"]), float(end["peak_rss_mb"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._child.broken(error) from error


class _Lent:
    """Pictures that the decoder has filled: each goes back when nobody holds it any more."""

    def __init__(self, pictures: SharedPictures, places: int, requests: int) -> None:
        self._pictures = pictures
        self._places = places
        self._requests = requests
        self._out: set[int] = set()
        # Reentrant, because a picture may be freed by the garbage collector at any place.
        self._lock = threading.RLock()
        self._closed = False

    def picture(self, place: int) -> Image:
        """The picture at a place, or a copy of it where nearly all places are held."""
        with self._lock:
            if not isinstance(place, int) or not 0 <= place < self._places or place in self._out:
                raise ValueError(f"there is no picture at place {place!r}")
            image = self._pictures[place]
            self._out.add(place)
            if len(self._out) > self._places - _PLACES_KEPT:
                image = image.copy()
                self._give_back(place)
            else:
                weakref.finalize(image, self._give_back, place).atexit = False
        return image

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _give_back(self, place: int) -> None:
        with self._lock:
            self._out.discard(place)
            if not self._closed:
                with contextlib.suppress(OSError):  # the decoder has ended
                    os.write(self._requests, place.to_bytes(2, sys.byteorder))


class _Child:
    """The decoding process, and the pipes to it."""

    def __init__(self, path: Path, name: str, hardware: bool) -> None:
        self._name = name
        self._lent: _Lent | None = None
        with contextlib.ExitStack() as its_own:
            requests, self._requests = os.pipe()
            its_own.callback(os.close, requests)
            answers_read, answers = os.pipe()
            its_own.callback(os.close, answers)
            self._answers = os.fdopen(answers_read, "rb")
            self._memory = unnamed_file("pictures")
            order = {
                "path": str(path),
                "name": name,
                "hardware": hardware,
                "parent": os.getpid(),
                "requests": requests,
                "answers": answers,
                "memory": self._memory,
            }
            package = Path(__file__).parent.parent
            search = [entry for entry in [str(package.parent.parent), *sys.path] if entry]
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _START,
                    json.dumps(order),
                    str(package),
                    "\n".join(search),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT | {name: os.environ[name] for name in _INHERITED if name in os.environ},
                pass_fds=(requests, answers, self._memory),
                start_new_session=True,  # Ctrl-C is for the one who can tell what to do about it
            )

    def begin(self, info: VideoInfo, asked: Mapping[str, Any]) -> _Lent:
        """Asks for the frames."""
        reserve(self._memory, info.width, info.height, asked["pictures"])
        pictures = SharedPictures(self._memory, info.width, info.height, asked["pictures"])
        self._lent = _Lent(pictures, asked["pictures"], self._requests)
        with contextlib.suppress(BrokenPipeError):  # why it ended is read from its answers
            os.write(self._requests, json.dumps(asked).encode() + b"\n")
        return self._lent

    def answer(self) -> dict[str, Any]:
        """What it says next; raises what it says went wrong, or how it died."""
        line = self._answers.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self._ended()
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("an answer is an object")
        if "error" in answer:
            raise self._error(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        if self._lent is not None:
            self._lent.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if not self._answers.closed:
            self._answers.close()
            os.close(self._requests)
            os.close(self._memory)

    def broken(self, error: Exception) -> UndecodableVideo:
        """What it says makes no sense."""
        return UndecodableVideo(
            f"{self._name} cannot be decoded: the decoder answered nonsense ({error!r}). Convert the file "
            "with FFmpeg and upload that."
        )

    def _error(self, error: Mapping[str, Any]) -> BaseException:
        kind, text = error.get("kind"), str(error.get("text"))[:4000]
        if kind == "undecodable":
            return UndecodableVideo(text)
        if kind == "memory":
            return MemoryError(text)
        if kind == "machine":
            return OSError(int(error["errno"]), text)
        return RuntimeError(f"The decoder met a defect of ours in {self._name}:\n{text}")

    def _ended(self) -> Exception:
        code = self._process.wait()
        if code >= 0:
            return DecoderLost(
                f"The decoder of {self._name} ended without a word (status {code}). Try again."
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGXCPU":
            return UndecodableVideo(
                f"{self._name} cannot be decoded: a single frame took longer than any recording's (the "
                "decoder was ended by SIGXCPU). Convert the file with FFmpeg and upload that."
            )
        if name in _OF_THE_VIDEO:
            return UndecodableVideo(
                f"{self._name} cannot be decoded: the decoder crashed on it ({name}). Convert the file with "
                "FFmpeg and upload that."
            )
        return DecoderLost(
            f"The decoder of {self._name} was ended by {name}: the machine may be short of memory. Try again."
        )


def _damage(said: Mapping[str, Any]) -> Damage:
    return Damage(
        truncated=bool(said["truncated"]),
        decode_errors=int(said["decode_errors"]),
        corrupt_frames=int(said["corrupt_frames"]),
        size_changes=int(said["size_changes"]),
    )


def _video_info(said: Mapping[str, Any]) -> VideoInfo:
    created = said["creation_time"]
    info = VideoInfo(**{**said, "creation_time": datetime.fromisoformat(created) if created else None})
    if not (isinstance(info.width, int) and isinstance(info.height, int)):
        raise TypeError("a size is a number of pixels")
    if not 0 < info.width * info.height <= MOST_PIXELS:
        raise ValueError(f"pictures of {info.width} × {info.height} pixels")
    return info
