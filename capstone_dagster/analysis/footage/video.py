"""Video files as frames with presentation timestamps, never with times computed from a frame's index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import av.error
from av.codec.hwaccel import HWAccel

from ..errors import UndecodableVideo
from .deinterlacing import deinterlaced
from .pixels import BgrReader, Luma, LumaReader
from .pixels import Image as Image
from .sampling import Sampling
from .timeline import Timeline, milliseconds

# An upload is a stranger's file. FFmpeg also opens play lists and concatenation scripts, which name other
# files and addresses, and plays text files as terminal art: only containers that hold their own pictures
# are let in.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,gif,apng,"
    "dv,h264,hevc,av1,obu,m4v,mjpeg,rm,wtv,vob,swf,nsv,roq,mpjpeg,y4m,yuv4mpegpipe,live_flv"
)
_OPEN_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

# 16K, four times the area of 8K: no camera films more, and a small file can claim any size, and with it a
# machine's memory.
_MOST_PIXELS = 16384 * 8192

Decoder = Literal["software", "nvdec"]


# What says nothing about the video: a pass that took it for damage would store too few frames for good.
_OF_THE_MACHINE = (av.error.MemoryError, av.error.PermissionError, av.error.BlockingIOError)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says of itself, checked against its first frame.

    Attributes:
        duration_ms: as stated by the container, which may be wrong; None when it says nothing.
        width, height: in pixels as displayed: upright (rotation metadata applied) and with square pixels (the
            side along which coded pixels are short is stretched), which is what frames and boxes are in.
        fps: mean frames per second as stated; None when it says nothing.
        codec: FFmpeg's name of the codec, such as `h264`.
        creation_time: the container's tag, in UTC; None when missing or impossible.
        frame_count: as stated by the container; None when it says nothing.
    """

    duration_ms: int | None
    width: int
    height: int
    fps: float | None
    codec: str
    creation_time: datetime | None
    frame_count: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame.

    Attributes:
        index: its place in presentation order, from 0, counting every decoded frame.
        pts_ms: milliseconds since the first frame, by presentation timestamps; never decreasing.
        motion: mean absolute difference of luma to the frame before, 0-1; 0 for the first frame.
        image: (height, width, 3) uint8 BGR, upright; None when the frame was not sampled.
    """

    index: int
    pts_ms: int
    motion: float
    image: Image | None


def probe(path: Path) -> VideoInfo:
    """What the file says of itself. Decodes one frame, so a file that passes is a video."""
    with VideoReader(path) as video:
        return video.info


def frames(path: Path, *, sample_fps: float, motion_gate: bool = False) -> Iterator[Frame]:
    """Every decoded frame in order of presentation, with its image where `Sampling` takes it."""
    with VideoReader(path) as video:
        yield from video.frames(sample_fps=sample_fps, motion_gate=motion_gate)


class VideoReader:
    """One video file, open for one pass over its frames.

    After the pass `last_frame_end_ms` is where the last frame ends, `decode_errors` how often decoding
    stumbled, and `truncated` whether the file ended before what it promises, or in an error. `decoder` says
    what decodes.
    """

    def __init__(self, path: Path, *, hardware: bool = False) -> None:
        """Opens the file and decodes its first frame; raises `UndecodableVideo` where there is none.

        With `hardware` NVIDIA's decoder is used where the machine has one that knows the codec, otherwise
        software, as without.
        """
        self.path = Path(path)
        self.decode_errors = 0
        self.last_frame_end_ms = 0
        self._error_at_the_end = False
        if self.path.stat().st_size == 0:
            raise UndecodableVideo(
                f"A video was expected in {self.path.name}, but the file is empty; upload it again."
            )
        self._container = self._open(hardware)
        try:
            self._stream = self._video_stream()
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
            self._decoded = deinterlaced(self._decode())
            first = next(self._decoded, None)
            if first is None:
                raise UndecodableVideo(
                    f"A video was expected in {self.path.name}, but none of its frames can be decoded "
                    f"({self._stream.codec_context.name or 'unknown codec'}); check that it plays, "
                    "and upload it again."
                )
            self._first: av.VideoFrame = first
            self._bgr = BgrReader(first, self._stream.sample_aspect_ratio)
            self._stated_s = self._stated_duration(of_pictures_only=True)
            # PyAV hands pictures over in main memory; only the decoder's own format tells of a device.
            self.decoder: Decoder = "nvdec" if self._stream.codec_context.pix_fmt == "cuda" else "software"
            self.info = self._describe()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def truncated(self) -> bool:
        """Whether decoding ended in an error, or clearly before the end that the container states."""
        # Stated durations are rounded, and trimmed by edit lists: half a second and 2 % are no loss.
        missing = self._stated_s is not None and self.last_frame_end_ms < self._stated_s * 980 - 500
        return self._error_at_the_end or missing

    def frames(self, *, sample_fps: float, motion_gate: bool = False) -> Iterator[Frame]:
        """Every frame from the first on; a truncated tail ends the stream. To be iterated once."""
        sampling = Sampling(sample_fps, motion_gate=motion_gate)
        timeline = Timeline(self._stream)
        read_luma = LumaReader().read
        previous: Luma | None = None
        decoded: av.VideoFrame | None = self._first
        index = 0
        while decoded is not None:
            seconds = timeline.place(decoded)
            luma = read_luma(decoded)
            motion = 0.0 if previous is None else luma.difference(previous)
            previous = luma
            image = self._bgr.read(decoded) if sampling.takes(seconds, luma) else None
            self.last_frame_end_ms = milliseconds(seconds + timeline.frame_s)
            yield Frame(index, milliseconds(seconds), motion, image)
            index += 1
            decoded = next(self._decoded, None)

    def _open(self, hardware: bool) -> av.container.InputContainer:
        accelerator = HWAccel("cuda", allow_software_fallback=True) if hardware else None
        try:
            return av.open(
                str(self.path), options=_OPEN_OPTIONS, metadata_errors="replace", hwaccel=accelerator
            )
        except av.error.FFmpegError as error:
            if hardware:  # no device, or a file that is none: software tells which
                return self._open(hardware=False)
            raise UndecodableVideo(
                f"A video was expected in {self.path.name}, but its content is not of a known video format "
                f"({_reason(error)}); upload an MP4, MOV, MKV, WebM, AVI or MPEG-TS file."
            ) from error

    def _video_stream(self) -> av.VideoStream:
        for stream in self._container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic:  # a record sleeve is no video
                return stream
        kinds = sorted({stream.type for stream in self._container.streams})
        raise UndecodableVideo(
            f"A video was expected in {self.path.name}, but it holds no video track "
            f"(found: {', '.join(kinds) or 'nothing'}); upload the file that has the pictures."
        )

    def _decode(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                yield from self._decode_packet(packet)
        except _OF_THE_MACHINE:
            raise
        except av.error.FFmpegError:
            self._stumbled()
            yield from self._decode_packet(None)  # what the decoder still holds

    def _decode_packet(self, packet: av.Packet[av.VideoStream] | None) -> Iterator[av.VideoFrame]:
        # One damaged packet costs its frames, not the rest of the video: decoders find their feet at a key
        # frame.
        try:
            if packet is not None and packet.is_corrupt:
                self._stumbled()
            decoded = self._stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except _OF_THE_MACHINE:
            raise
        except av.error.FFmpegError:
            self._stumbled()
            return
        for frame in decoded:
            if (
                packet is not None and packet.size
            ):  # frames flushed out at the end do not prove the tail sound
                self._error_at_the_end = self._error_at_the_end and packet.is_corrupt
            yield frame

    def _stumbled(self) -> None:
        self.decode_errors += 1
        self._error_at_the_end = True

    def _describe(self) -> VideoInfo:
        stated = self._stated_duration(of_pictures_only=False)
        rate = self._stream.average_rate or self._stream.guessed_rate
        return VideoInfo(
            duration_ms=None if stated is None else milliseconds(stated),
            width=self._bgr.width,
            height=self._bgr.height,
            fps=float(rate) if rate else None,
            codec=self._stream.codec_context.name,
            creation_time=_creation_time({**self._stream.metadata, **self._container.metadata}),
            frame_count=self._stream.frames or None,
        )

    def _stated_duration(self, *, of_pictures_only: bool) -> Fraction | None:
        """Seconds, by the video track, else by the container, whose sound may outlast its pictures."""
        if self._stream.duration and self._stream.time_base:
            return self._stream.duration * self._stream.time_base
        alone = len(self._container.streams) == 1
        if self._container.duration and self._container.duration > 0 and (alone or not of_pictures_only):
            return Fraction(self._container.duration, av.time_base)
        return None


def _creation_time(tags: dict[str, str]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(tags.get("creation_time", ""))
    except ValueError:
        return None
    # Without a zone the QuickTime and Matroska specifications mean UTC. A clock that was never set says
    # 1904 or 1970; no recording that can be uploaded today was made before 1990.
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment if moment.year >= 1990 else None


def _reason(error: av.error.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).lower()
