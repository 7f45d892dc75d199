"""Decodes one video file in this process: pictures with their times, and what was wrong with the file.

The file is a stranger's. `reader` does this in a process of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.error

from ..errors import UndecodableVideo
from .budget import MOST_PIXELS, Budget
from .completeness import breaks, has_stated_size, is_cut
from .container import check_machine, encrypted_sentence, is_scrambled, open_container
from .deinterlacing import Timed, deinterlaced
from .filmed import when_filmed
from .pixels import BgrReader, Luma, LumaReader, displayed_size
from .sampling import Sampling
from .timeline import FOLLOWERS, Timeline, milliseconds
from .tracks import Track, video_tracks, why_chosen
from .video import Damage, Decoder, Frame, Image, VideoInfo

# Packets that are read ahead of the decoder, to see what follows a jump in time, may take so much memory.
_BYTES_AHEAD = 32 << 20
# A demuxer that stumbles goes on at the next packet; one that does nothing else has nothing left.
_STUMBLES_IN_A_ROW = 100
# Stated durations are rounded, and trimmed by edit lists: half a second and 2 % are no loss.
_LOSS_S = Fraction(1, 2)
_LOSS_SHARE = Fraction(2, 100)
# A higher rate that is exactly the clock's is none: FFmpeg says so of streams without a steady rate.
_COMMON_RATES = 240
# Where a stream does not state one.
_DEFAULT_TIME_BASE = Fraction(1, 90_000)


@dataclass(slots=True)
class _Counts:
    """What a pass has met so far."""

    packets: int = 0
    decode_errors: int = 0
    corrupt_frames: int = 0
    encrypted: int = 0  # packets, each of which is a decode error too
    error_at_the_end: bool = False
    unread_tail: bool = False
    pictures_end_s: Fraction = Fraction(0)  # by the track's packets, glitches included
    whole_end_s: Fraction = Fraction(0)  # by all tracks' packets


class VideoFile:
    """One video file, open for one pass over its frames.

    Attributes:
        info: what the file says of itself, checked against its first frame.
        decoder: what decodes.
    """

    def __init__(self, path: Path, name: str | None = None, *, hardware: bool = False) -> None:
        """Opens the file and decodes the first frame of the best track that has one.

        Args:
            name: what messages call the file; by default its own name.
            hardware: prefer NVIDIA's decoder where the machine has one that reads the codec.

        Raises:
            UndecodableVideo: there is no frame; the message says why.
            OSError, MemoryError: the machine failed.
        """
        self._path = path
        self._name = name or path.name
        self._hardware = hardware
        self._container = open_container(path, self._name, hardware=hardware)
        try:
            tracks = video_tracks(path, self._name, self._container)
            first = self._begin(tracks)
            self._first: Timed = first
            # PyAV hands pictures over in main memory; only the decoder's own format tells of a device.
            context = self._stream.codec_context
            self.decoder: Decoder = "nvdec" if context.pix_fmt == "cuda" else "software"
            self._bgr = BgrReader(first[0], self._pixel_aspect)
            self._refuse_too_large(self._bgr.width, self._bgr.height)
            self.info = self._describe(why_chosen(tracks, self._track))
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """Releases the decoder."""
        self._container.close()

    def frames(
        self, *, sample_fps: float, motion_gate: bool = False, canvas: Callable[[], Image] | None = None
    ) -> Iterator[Frame]:
        """Every frame in order, with its picture where `Sampling` takes it. To be iterated once.

        Args:
            canvas: gives memory of a picture's shape to put the next one into; by default it is new.
        """
        sampling = Sampling(sample_fps, motion_gate=motion_gate)
        read_luma = LumaReader().read
        previous: Luma | None = None
        for index, (decoded, seconds) in enumerate(chain((self._first,), self._decoded)):
            luma = read_luma(decoded)
            motion = 0.0 if previous is None else luma.difference(previous)
            previous = luma
            taken = sampling.takes(seconds, luma)
            image = (
                self._bgr.read(decoded, self._pixel_aspect, canvas() if canvas else None) if taken else None
            )
            yield Frame(index, milliseconds(seconds), motion, image)

    @property
    def end_ms(self) -> int:
        """Where the frame read last ends, in milliseconds from the container's start."""
        return milliseconds(self._end_s)

    @property
    def damage(self) -> Damage:
        """What was wrong with the file as far as it was read."""
        counts = self._counts
        return Damage(
            truncated=counts.error_at_the_end or counts.unread_tail or self._ends_early(),
            decode_errors=max(counts.decode_errors, breaks(self._path)),
            corrupt_frames=counts.corrupt_frames,
            size_changes=self._bgr.size_changes,
        )

    @property
    def _pixel_aspect(self) -> Fraction | None:
        """A coded pixel's width by its height, as of the frame decoded last; None where nothing is said."""
        coded = self._stream.codec_context.sample_aspect_ratio
        # The container's word goes before the codec's, as in FFmpeg, unless the codec's changes midway.
        return coded if coded != self._coded_aspect else self._stated_aspect

    def _begin(self, tracks: list[Track]) -> Timed:
        """Chooses the first track that has a frame, and decodes that."""
        for track in (track for track in tracks if track.decodable):
            self._choose(track)
            first = next(self._decoded, None)
            if first is not None:
                return first
            self._container.close()
            self._container = open_container(self._path, self._name, hardware=self._hardware)
        best = tracks[0]
        self._refuse_too_large(*displayed_size(best.width, best.height, self._stated_aspect))
        if self._counts.encrypted or is_scrambled(self._path):
            raise UndecodableVideo(encrypted_sentence(self._name, best.codec))
        raise UndecodableVideo(
            f"A video was expected in {self._name}, but none of its frames can be decoded ({best.codec}); "
            "check that it plays, and upload it again."
        )

    def _refuse_too_large(self, width: int, height: int) -> None:
        """Raises `UndecodableVideo` for displayed pictures of this size."""
        if width * height > MOST_PIXELS:
            raise UndecodableVideo(
                f"A video was expected in {self._name}, but its pictures are of {width} × {height} pixels, "
                f"more than the {MOST_PIXELS:,} that are decoded; upload a smaller copy."
            )

    def _choose(self, track: Track) -> None:
        self._track = track
        self._counts = _Counts()
        stream = self._container.streams[track.index]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        self._stated_aspect = stream.sample_aspect_ratio
        self._coded_aspect = stream.codec_context.sample_aspect_ratio
        self._time_base = stream.time_base or _DEFAULT_TIME_BASE
        self._zero_s = Fraction(self._container.start_time or 0, av.time_base)
        self._pictures_end_s = ends = self._stated_end(of_pictures_only=True)
        self._whole_end_s = self._stated_end(of_pictures_only=False)
        # Of all containers that state a count only this one lists each picture.
        self._pictures_listed = stream.frames if self._container_is("mov") else 0
        # ASF states one time a packet, AVI only their order. FFmpeg takes that for the time of decoding, and
        # guesses a time of showing that begins later, or runs back and forth.
        self._one_stamp_each = self._container_is("asf") or self._container_is("avi")
        self._timeline = Timeline(
            time_base=self._time_base,
            rate=_rate(stream),
            zero=round(self._zero_s / self._time_base),
            begins=stream.start_time,
            ends=None if ends is None else round((ends + self._zero_s) / self._time_base),
            reorders=bool(stream.codec_context.has_b_frames),
        )
        self._budget = Budget(self._path.stat().st_size, self._name, container=self._container.format.name)
        self._decoded = deinterlaced(self._placed())

    def _placed(self) -> Iterator[Timed]:
        for frame in self._decode():
            stamp = frame.pts
            ticks = self._timeline.place(stamp, frame.duration)
            seconds = ticks * self._time_base
            self._budget.decoded(frame.width * frame.height, seconds)
            self._counts.corrupt_frames += frame.is_corrupt
            yield frame, seconds

    def _decode(self) -> Iterator[av.VideoFrame]:
        ahead: deque[av.Packet[av.VideoStream]] = deque()
        size = 0
        for packet in self._packets():
            self._timeline.expect(packet.pts if packet.pts is not None else packet.dts)
            ahead.append(packet)
            size += packet.size
            while len(ahead) > FOLLOWERS or (size > _BYTES_AHEAD and len(ahead) > 1):
                size -= ahead[0].size
                yield from self._decode_packet(ahead.popleft())
        for packet in ahead:
            yield from self._decode_packet(packet)
        yield from self._decode_packet(None)  # what the decoder still holds

    def _packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """The track's packets; a demuxer that stumbles goes on behind the damage."""
        stumbles = 0
        while stumbles < _STUMBLES_IN_A_ROW:
            try:
                for packet in self._container.demux():
                    if packet.size == 0 and packet.pts is None and packet.dts is None:
                        continue  # PyAV's mark of the end, one for each track
                    stumbles = 0
                    self._note_end(packet)
                    self._budget.read(packet.size)
                    if packet.stream_index == self._stream.index:
                        if self._one_stamp_each:
                            packet.pts = packet.dts
                        self._counts.packets += 1
                        yield packet  # type: ignore[misc]
                return
            except IndexError:  # a damaged MPEG-TS announces tracks that PyAV did not expect
                stumbles += 1
                self._stumbled()
            except av.error.FFmpegError as error:
                check_machine(self._path, self._name, error)
                if not self._container_is("mpjpeg"):  # it takes the last boundary for a damaged one
                    self._stumbled()
                    self._counts.unread_tail = True
                return

    def _decode_packet(self, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
        # A damaged packet costs its own frames; decoders recover at the next key frame.
        try:
            # What Common Encryption (ISO/IEC 23001-7) hides decodes to noise; a clear beginning is shown.
            if packet is not None and packet.has_sidedata("encryption_info"):
                self._counts.encrypted += 1
                self._stumbled()
                return []
            if packet is not None and packet.is_corrupt:
                self._stumbled()
            decoded = self._stream.codec_context.decode(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            check_machine(self._path, self._name, error)
            self._stumbled()
            return []
        if decoded and packet is not None:  # frames flushed out at the end do not prove the tail sound
            self._counts.error_at_the_end = self._counts.error_at_the_end and packet.is_corrupt
        return decoded

    def _stumbled(self) -> None:
        self._counts.decode_errors += 1
        self._counts.error_at_the_end = True

    def _note_end(self, packet: av.Packet[av.stream.Stream]) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.time_base:
            end = (stamp + (packet.duration or 0)) * packet.time_base - self._zero_s
            self._counts.whole_end_s = max(self._counts.whole_end_s, end)
            if packet.stream_index == self._stream.index:
                self._counts.pictures_end_s = max(self._counts.pictures_end_s, end)

    @property
    def _end_s(self) -> Fraction:
        end = self._timeline.end * self._time_base
        stated = self._pictures_end_s
        # A last picture may be shown for minutes, which only an index that is read to its end can tell.
        return max(end, stated) if stated is not None and self._index_is_read() else end

    def _index_is_read(self) -> bool:
        """Whether the container lists all pictures and each has come."""
        return 0 < self._pictures_listed <= self._counts.packets

    def _ends_early(self) -> bool:
        """Whether there is clearly less in the file than it states."""
        if self._index_is_read() or has_stated_size(self._path):
            return False
        if is_cut(self._path):
            return True
        shown, counts = self._end_s, self._counts
        return _is_short(max(shown, counts.pictures_end_s), self._pictures_end_s) or _is_short(
            max(shown, counts.whole_end_s), self._whole_end_s
        )

    def _container_is(self, kind: str) -> bool:
        return kind in self._container.format.name.split(",")

    def _describe(self, track: str | None) -> VideoInfo:
        stated = self._whole_end_s
        rate = _rate(self._stream)
        tags = {**self._stream.metadata, **self._container.metadata}
        filmed = when_filmed(tags, None if stated is None else timedelta(seconds=float(stated)))
        return VideoInfo(
            duration_ms=None if stated is None else round(stated * 1000),
            width=self._bgr.width,
            height=self._bgr.height,
            fps=float(rate) if rate else None,
            codec=self._stream.codec_context.name,
            creation_time=None if filmed is None else filmed.at,
            creation_time_rule=None if filmed is None else filmed.rule,
            frame_count=self._stream.frames or None,
            track=track,
        )

    def _stated_end(self, *, of_pictures_only: bool) -> Fraction | None:
        """Seconds from the container's start, by the video track, else by the container as a whole.

        Sound may outlast pictures, so the container's word is the track's only where there is no other track.
        """
        stream, container = self._stream, self._container
        if stream.duration and stream.duration > 0 and stream.time_base:
            begins = (stream.start_time or 0) * stream.time_base - self._zero_s
            return max(Fraction(0), begins) + stream.duration * stream.time_base
        alone = len(container.streams) == 1
        if container.duration and container.duration > 0 and (alone or not of_pictures_only):
            stated = Fraction(container.duration, av.time_base)
            # These state where the last frame ends on their own clock, others how long they last.
            on_its_clock = self._container_is("matroska") or self._container_is("flv")
            return max(Fraction(0), stated - self._zero_s) if on_its_clock else stated
        return None


def _rate(stream: av.VideoStream) -> Fraction | None:
    """Frames per second as stated, unless it is the clock's ticks that a container states instead."""
    rates = (stream.average_rate, stream.guessed_rate)
    ticks = 1 / (stream.time_base or _DEFAULT_TIME_BASE)
    return next((rate for rate in rates if rate and (rate <= _COMMON_RATES or rate != ticks)), None)


def _is_short(end_s: Fraction, stated_s: Fraction | None) -> bool:
    return stated_s is not None and end_s < stated_s * (1 - _LOSS_SHARE) - _LOSS_S
