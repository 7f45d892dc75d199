"""Video files as frames with presentation timestamps, never with times computed from a frame's index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from .errors import InvalidAnalysisSettings, UndecodableVideo

Image = npt.NDArray[np.uint8]

# An upload is a stranger's file. FFmpeg also opens play lists and concatenation scripts, which name other
# files and addresses, and plays text files as terminal art: only containers that hold their own pictures
# are let in.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,gif,apng,"
    "dv,h264,hevc,av1,obu,m4v,mjpeg,rm,wtv,vob,swf,nsv,roq,mpjpeg,y4m,yuv4mpegpipe,live_flv"
)
_OPEN_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

# Motion needs no detail: at 320 x 180 a walking person far away still covers tens of pixels, and sensor noise
# averages out. The same size for every video makes its values comparable.
_MOTION_WIDTH, _MOTION_HEIGHT = 320, 180

# Matroska stores whole milliseconds: a frame due at 133.33 ms carries 133, and must not wait for the next
# one.
_TIMESTAMP_ROUNDING = Fraction(1, 1000)

# Used only where neither frame nor stream says how long a frame lasts (raw streams without a header).
_ASSUMED_FRAME_S = Fraction(1, 25)

# MPEG-TS counts 33 bits at 90 kHz and starts over after 26.5 hours, which is what FFmpeg takes a step back
# for: it reports a jump forward. One of more than half the period is better explained by a clock that was
# set back.
_CLOCK_RESTARTED_S = Fraction(1 << 32, 90_000)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says of itself, checked against its first frame.

    Attributes:
        duration_ms: as stated by the container, which may be wrong; None when it says nothing.
        width, height: in pixels, upright (rotation metadata applied).
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


def frames(path: Path, *, sample_fps: float) -> Iterator[Frame]:
    """Every decoded frame in order of presentation, with its image where sampling by time takes it."""
    with VideoReader(path) as video:
        yield from video.frames(sample_fps=sample_fps)


class Sampling:
    """Decides by time which frames to analyse: the first at or after each tick of a regular clock."""

    def __init__(self, sample_fps: float) -> None:
        if not (math.isfinite(sample_fps) and sample_fps >= 0):
            raise InvalidAnalysisSettings(
                f"sample_fps must be 0 (every frame) or more, but is {sample_fps!r}."
            )
        # From the decimal the user wrote: binary 0.1 would drift off the frames within an hour.
        self._rate = Fraction(str(sample_fps))
        self._last_tick = -1

    def takes(self, seconds: Fraction) -> bool:
        """Whether to analyse the frame shown at this time; to be asked once for each frame, in order."""
        if self._rate == 0:
            return True
        tick = math.floor((seconds + _TIMESTAMP_ROUNDING) * self._rate)
        if tick <= self._last_tick:
            return False
        self._last_tick = tick
        return True


class VideoReader:
    """One video file, open for one pass over its frames.

    After the pass `last_frame_end_ms` is where the last frame ends, `decode_errors` how often decoding
    stumbled, and `truncated` whether the file ended before what it promises, or in an error.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and decodes its first frame; raises `UndecodableVideo` where there is none."""
        self.path = Path(path)
        self.decode_errors = 0
        self.last_frame_end_ms = 0
        self._error_at_the_end = False
        if self.path.stat().st_size == 0:
            raise UndecodableVideo(
                f"A video was expected in {self.path.name}, but the file is empty; upload it again."
            )
        try:
            self._container = av.open(str(self.path), options=_OPEN_OPTIONS, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise UndecodableVideo(
                f"A video was expected in {self.path.name}, but its content is not of a known video format "
                f"({_reason(error)}); upload an MP4, MOV, MKV, WebM, AVI or MPEG-TS file."
            ) from error
        try:
            self._stream = self._video_stream()
            self._stream.thread_type = "AUTO"
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise UndecodableVideo(
                    f"A video was expected in {self.path.name}, but none of its frames can be decoded "
                    f"({self._stream.codec_context.name or 'unknown codec'}); check that it plays, "
                    "and upload it again."
                )
            self._first: av.VideoFrame = first
            self._quarter_turns = round(first.rotation / 90) % 4
            self._size = (first.width, first.height)
            self._stated_s = self._stated_duration(of_pictures_only=True)
            self.info = self._describe(first)
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

    def frames(self, *, sample_fps: float) -> Iterator[Frame]:
        """Every frame from the first on; a truncated tail ends the stream. To be iterated once."""
        sampling = Sampling(sample_fps)
        to_luma, to_bgr = VideoReformatter(), VideoReformatter()
        timeline = _Timeline(self._stream)
        previous: Image | None = None
        decoded: av.VideoFrame | None = self._first
        index = 0
        while decoded is not None:
            seconds = timeline.place(decoded)
            luma = _pixels(to_luma.reformat(decoded, _MOTION_WIDTH, _MOTION_HEIGHT, "gray"))
            motion = 0.0 if previous is None else cv2.norm(luma, previous, cv2.NORM_L1) / (luma.size * 255.0)
            previous = luma
            image = self._upright(to_bgr, decoded) if sampling.takes(seconds) else None
            self.last_frame_end_ms = _milliseconds(seconds + timeline.frame_s)
            yield Frame(index, _milliseconds(seconds), motion, image)
            index += 1
            decoded = next(self._decoded, None)

    def _upright(self, to_bgr: VideoReformatter, decoded: av.VideoFrame) -> Image:
        # A stream may change size midway; its frames keep the size of the first, so that boxes stay
        # comparable.
        image = _pixels(to_bgr.reformat(decoded, *self._size, "bgr24"))
        return np.ascontiguousarray(np.rot90(image, self._quarter_turns)) if self._quarter_turns else image

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

    def _describe(self, first: av.VideoFrame) -> VideoInfo:
        width, height = self._size if self._quarter_turns % 2 == 0 else self._size[::-1]
        stated = self._stated_duration(of_pictures_only=False)
        rate = self._stream.average_rate or self._stream.guessed_rate
        return VideoInfo(
            duration_ms=None if stated is None else _milliseconds(stated),
            width=width,
            height=height,
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


class _Timeline:
    """Turns timestamps into seconds since the first frame, repairing what is missing or runs backwards."""

    def __init__(self, stream: av.VideoStream) -> None:
        rate = stream.average_rate or stream.guessed_rate
        self.frame_s = 1 / Fraction(rate) if rate else _ASSUMED_FRAME_S
        self._stream_time_base = stream.time_base
        self._origin: Fraction | None = None
        self._last: Fraction | None = None

    def place(self, frame: av.VideoFrame) -> Fraction:
        time_base = frame.time_base or self._stream_time_base
        if frame.duration and time_base:
            self.frame_s = frame.duration * time_base
        stamp = frame.pts * time_base if frame.pts is not None and time_base else None
        if self._last is None:
            self._origin, seconds = stamp, Fraction(0)
        elif stamp is None:
            seconds = self._last + self.frame_s
        elif self._origin is None or not 0 <= stamp - self._origin - self._last < _CLOCK_RESTARTED_S:
            # Timestamps begin late, or restart where recordings were joined: time goes on from the last
            # frame.
            seconds = self._last + self.frame_s
            self._origin = stamp - seconds
        else:
            seconds = stamp - self._origin
        self._last = seconds
        return seconds


def _pixels(frame: av.VideoFrame) -> Image:
    return cast(Image, frame.to_ndarray())


def _milliseconds(seconds: Fraction) -> int:
    return round(seconds * 1000)


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
