"""Chooses the track that is the video, where a file has several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.error
import av.stream

from ..errors import UndecodableVideo
from .container import codec_names, encrypted_sentence, is_encrypted, open_container

# Packets read to see which tracks have pictures: some seconds of any file, and a bound on broken ones.
_PACKETS_SURVEYED = 2_000
_BYTES_SURVEYED = 64 << 20
# A track with fewer pictures than this share of the fullest one's shows thumbnails.
_THUMBNAILS_SHARE = 0.1

_NO_VIDEO = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.still_image
)


@dataclass(frozen=True, slots=True)
class Track:
    """One track of pictures, as it is judged.

    Attributes:
        index: of the stream in its container.
        codec: FFmpeg's name, or the tag of a codec that it does not know.
        decodable: there is a decoder, and the pictures are not encrypted.
        encrypted: they are.
        pictures: packets that came in the first seconds, or that the container's index lists.
        few: pictures are one, or a small share of another track's.
        default: the container marks the track as the one to be shown.
        width, height: as coded, in pixels.
    """

    index: int
    codec: str
    decodable: bool
    encrypted: bool
    pictures: int
    default: bool
    width: int
    height: int
    few: bool = False

    def __str__(self) -> str:
        return f"track {self.index} ({self.codec}, {self.width}×{self.height})"

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """Larger is better: can be decoded, is no thumbnails, is marked as the default, is large."""
        return self.decodable, not self.few, self.default, self.width * self.height


def video_tracks(path: Path, name: str, container: av.container.InputContainer) -> list[Track]:
    """A file's tracks of pictures, the best first. Cover pictures of music are none.

    Raises:
        UndecodableVideo: there is none, or none that can be decoded; the message says what there is.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not streams:
        raise UndecodableVideo(_no_pictures(name, container))
    names = codec_names(container) if any(_has_no_decoder(stream) for stream in streams) else {}
    counts = _pictures_of(path, name) if len(streams) > 1 else Counter({streams[0].index: 2})
    found = [_judged(stream, names, counts) for stream in streams]
    many = max((each.pictures for each in found if each.decodable), default=0)
    tracks = sorted(
        (replace(each, few=each.pictures <= max(1, _THUMBNAILS_SHARE * many)) for each in found),
        key=lambda each: each.rank,
        reverse=True,
    )
    if not tracks[0].decodable:
        raise UndecodableVideo(_not_decodable(name, tracks))
    return tracks


def why_chosen(tracks: Sequence[Track], chosen: Track) -> str | None:
    """Which track is analysed and why, as a sentence; None where there is no choice."""
    others = [track for track in tracks if track != chosen]
    if not others:
        return None
    left = ", ".join(f"{other}: {_why_not(other, chosen)}" for other in others)
    return f"{chosen} was analysed; left out: {left}"


def _judged(stream: av.VideoStream, names: dict[int, str], counts: Counter[int]) -> Track:
    context, encrypted = stream.codec_context, is_encrypted(stream)
    missing = _has_no_decoder(stream)
    return Track(
        index=stream.index,
        codec=names.get(stream.index, "unknown") if missing else context.name,
        decodable=not missing and not encrypted,
        encrypted=encrypted or names.get(stream.index) in ("encv", "drmi"),
        pictures=stream.frames or counts[stream.index],
        default=bool(stream.disposition & av.stream.Disposition.default),
        width=context.width if context is not None else 0,
        height=context.height if context is not None else 0,
    )


def _has_no_decoder(stream: av.VideoStream) -> bool:
    return stream.codec_context is None  # PyAV's types do not say that it may be


def _pictures_of(path: Path, name: str) -> Counter[int]:
    """How many packets each track has in the file's first seconds."""
    counts: Counter[int] = Counter()
    seen = 0
    with open_container(path, name) as container:
        try:
            for number, packet in enumerate(container.demux()):
                counts[packet.stream_index] += packet.size > 0
                seen += packet.size
                if number >= _PACKETS_SURVEYED or seen >= _BYTES_SURVEYED:
                    break
        except (av.error.FFmpegError, IndexError):
            pass  # the pass over the frames meets it again, and counts it
    return counts


def _why_not(other: Track, chosen: Track) -> str:
    if other.encrypted:
        return "encrypted"
    if not other.decodable:
        return "no decoder"
    if other.few and not chosen.few:
        return {0: "no pictures", 1: "a single picture"}.get(other.pictures, "thumbnails")
    if chosen.default and not other.default:
        return "not the default"
    return "smaller"


def _no_pictures(name: str, container: av.container.InputContainer) -> str:
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    cover = ", and a cover picture" if container.streams.video else ""
    return (
        f"A video was expected in {name}, but it holds no video track (found: {', '.join(kinds) or 'nothing'}"
        f"{cover}); upload the file that has the pictures."
    )


def _not_decodable(name: str, tracks: Sequence[Track]) -> str:
    found = ", ".join(dict.fromkeys(track.codec for track in tracks))
    if any(track.encrypted for track in tracks):
        return encrypted_sentence(name, found)
    return (
        f"A video was expected in {name}, but FFmpeg has no decoder for its codec ({found}); convert it to "
        "H.264 and upload that."
    )
