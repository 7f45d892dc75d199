"""Small videos as phones, recorders, editors and broken disks write them, each with what is right.

`FILES` names each file, the function that writes it, and what is expected of it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from capstone_dagster.testing.scenes import COLOURS, square_clip

FRAMES = 50
STEADY = [40 * index for index in range(FRAMES)]
SIZE = (64, 48)
MPEG4 = {"codec": "mpeg4"}
B_FRAMES = {
    "codec_options": {"preset": "medium", "bf": "2", "g": "25", "x264-params": "b-adapt=0:scenecut=0"}
}

Change = Callable[[int, Any, av.VideoStream], object]
Write = Callable[[Path], object]


@dataclass(frozen=True)
class Right:
    """What is expected: times in milliseconds from the container's start, the size as displayed.

    Attributes:
        end_ms: where the last frame ends; None where it does not matter.
        refused: a part of the message where the file is none that decodes.
        warned: figures of damage that are more than 0 (or True); all others are 0.
        fewer: frames may be missing, those that are there have the right times.
        corner: the colour of the upper left corner, where orientation matters.
        said: further fields of `VideoInfo`.
    """

    times_ms: Sequence[int] = tuple(STEADY)
    end_ms: int | None = FRAMES * 40
    size: tuple[int, int] = SIZE
    refused: str | None = None
    warned: frozenset[str] = frozenset()
    fewer: bool = False
    corner: str | None = None
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One file of the corpus."""

    name: str
    write: Write
    right: Right


def clip(times_ms: Sequence[int] = tuple(STEADY), **options: Any) -> Write:
    """An ordinary clip whose picture moves."""

    def write(path: Path) -> None:
        options.setdefault("size", SIZE)
        square_clip(path, times_ms, lambda index: [("person", index % 30, 4, index % 30 + 20, 40)], **options)

    return write


def remuxed(source: Write, change: Change, *, via: str = "source.mp4", format: str | None = None) -> Write:
    """A clip's packets in another container; `change` edits each, False leaves it out."""

    def write(path: Path) -> None:
        original = path.with_name(f"{path.stem}-{via}")
        source(original)
        with av.open(str(original)) as read, av.open(str(path), "w", format=format) as written:
            stream = read.streams.video[0]
            copy = written.add_stream_from_template(stream)
            copy.time_base = Fraction(1, 25)  # where a container lets one choose
            packets = [packet for packet in read.demux(stream) if packet.dts is not None]
            for number, packet in enumerate(packets):
                if change(number, packet, stream) is not False:
                    packet.stream = copy
                    written.mux(packet)

    return write


def in_decoding_order(number: int, packet: Any, stream: av.VideoStream) -> None:
    packet.pts = packet.dts = round(number / 25 / packet.time_base)


def back_and_forth(number: int, packet: Any, stream: av.VideoStream) -> None:
    packet.pts = packet.dts + round(Fraction(1 if number % 2 else 3, 25) / packet.time_base)


def moved(seconds: float, *numbers: int) -> Change:
    def change(number: int, packet: Any, stream: av.VideoStream) -> None:
        if number in numbers:
            packet.pts += round(Fraction(seconds) / packet.time_base)

    return change


def edited(source: Write, edit: Callable[[bytearray], bytes | bytearray | None]) -> Write:
    """A clip whose bytes are changed."""

    def write(path: Path) -> None:
        source(path)
        content = bytearray(path.read_bytes())
        path.write_bytes(edit(content) or content)

    return write


def half(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


def joined(*sources: Write) -> Write:
    def write(path: Path) -> None:
        parts = []
        for number, source in enumerate(sources):
            part = path.with_name(f"{path.stem}-{number}{path.suffix}")
            source(part)
            parts.append(part.read_bytes())
        path.write_bytes(b"".join(parts))

    return write


def raw(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def display_matrix(*matrix: int) -> Callable[[bytearray], None]:
    """Writes a, b, c, d of a track's matrix, as a phone does."""
    a, b, c, d = (value << 16 for value in matrix)

    def edit(content: bytearray) -> None:
        struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)

    return edit


def marked(**options: Any) -> Write:
    """A clip with a red square in its upper left corner."""
    return clip_of([("person", 0, 0, 20, 20)], **options)


def clip_of(squares: Sequence[tuple[str, int, int, int, int]], **options: Any) -> Write:
    return lambda path: square_clip(path, STEADY, lambda index: squares, **{"size": SIZE, **options})


def with_sound(source: Write, *, pictures_at_s: float = 0.0, sound_s: float = 2.0) -> Write:
    """The clip's pictures beside a tone, in the container that the file's name asks for."""

    def write(path: Path) -> None:
        original = path.with_name(f"{path.stem}-silent.mp4")
        source(original)
        with av.open(str(original)) as read, av.open(str(path), "w") as written:
            stream = read.streams.video[0]
            assert stream.time_base is not None
            copy = written.add_stream_from_template(stream)
            tone = written.add_stream("aac" if path.suffix != ".avi" else "mp2", rate=16_000)
            packets: list[Any] = []
            for number in range(round(sound_s * 16_000 / 1024)):
                samples = np.sin(np.arange(1024) / 9, dtype=np.float32).reshape(1, -1)
                layout, kind = "mono", "fltp" if path.suffix != ".avi" else "s16"
                values = samples if kind == "fltp" else (samples * 9000).astype(np.int16)
                sound = av.AudioFrame.from_ndarray(values, format=kind, layout=layout)
                sound.sample_rate, sound.pts = 16_000, number * 1024
                packets += tone.encode(sound)
            packets += tone.encode(None)
            for packet in read.demux(stream):
                if packet.dts is not None:
                    packet.pts += round(Fraction(pictures_at_s) / stream.time_base)
                    packet.dts += round(Fraction(pictures_at_s) / stream.time_base)
                    packet.stream = copy
                    packets.append(packet)
            for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
                written.mux(packet)

    return write


def two_tracks(first: Write, second: Write, *, default: int | None = 1, extra: str = ".mp4") -> Write:
    """Two clips as tracks of one file; one of them, or each, is marked as the default."""

    def write(path: Path) -> None:
        sources = [path.with_name(f"{path.stem}-{number}{extra}") for number in range(2)]
        for source, make in zip(sources, (first, second), strict=True):
            make(source)
        with av.open(str(path), "w") as written:
            packets: list[Any] = []
            for number, source in enumerate(sources):
                with av.open(str(source)) as read:
                    stream = read.streams.video[0]
                    copy = written.add_stream_from_template(stream)
                    marked = default is None or number == default
                    copy.disposition = av.stream.Disposition(int(marked))
                    for packet in read.demux(stream):
                        if packet.dts is not None:
                            packet.stream = copy
                            packets.append(packet)
            for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
                written.mux(packet)

    return write


def cover_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as written:
        tone = written.add_stream("aac", rate=16_000)
        cover = written.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="bgr24")
        written.mux([*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode(None)])
        written.mux(_tone(tone))


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as written:
        written.mux(_tone(written.add_stream("aac", rate=16_000)))


def clip_of_sound(kind: str) -> Write:
    def write(path: Path) -> None:
        with av.open(str(path), "w", format=kind) as written:
            stream = written.add_stream("flac" if kind == "flac" else "pcm_s16le", rate=16_000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts = 16_000, 0
            written.mux([*stream.encode(sound), *stream.encode(None)])

    return write


def _tone(stream: Any) -> list[Any]:
    packets = []
    for number in range(10):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16_000, number * 1024
        packets += stream.encode(sound)
    return [*packets, *stream.encode(None)]


def packed_bframes(path: Path) -> None:
    """As DivX wrote them into AVI: a P and the B before it in one chunk, then an empty one."""
    original = path.with_name("unpacked.avi")
    square_clip(
        original,
        STEADY,
        lambda index: [("person", index % 30, 4, index % 30 + 20, 40)],
        size=SIZE,
        codec="mpeg4",
        codec_options={"bf": "1", "g": "50", "b_strategy": "0"},
    )
    with av.open(str(original)) as read, av.open(str(path), "w") as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        packets = [packet for packet in read.demux(stream) if packet.dts is not None]
        kinds = [_vop_kind(bytes(packet)) for packet in packets]
        chunks: list[bytes] = []
        number = 0
        while number < len(packets):
            if number + 1 < len(packets) and kinds[number + 1] == 2:
                chunks += [bytes(packets[number]) + bytes(packets[number + 1]), _NOT_CODED]
                number += 2
            else:
                chunks.append(bytes(packets[number]))
                number += 1
        chunks[0] = chunks[0].replace(
            b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb2DivX503b1393p\x00\x00\x01\xb6", 1
        )
        for place, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = copy, Fraction(1, 25)
            packet.pts = packet.dts = place
            packet.is_keyframe = place == 0
            written.mux(packet)


# A picture that says that nothing is coded: MPEG-4's type P, then the flag 0.
_NOT_CODED = b"\x00\x00\x01\xb6\x5f\x00"


def _vop_kind(data: bytes) -> int:
    return data[data.index(b"\x00\x00\x01\xb6") + 4] >> 6


def flipped_bytes(content: bytearray) -> None:
    chosen = random.Random(4)
    for _ in range(3):
        content[chosen.randrange(len(content) // 3, len(content) // 2)] ^= 255


def bit_errors(content: bytearray) -> None:
    chosen = random.Random(7)
    for _ in range(25):
        place = chosen.randrange(188 * 20, len(content))
        if place % 188 >= 4:
            content[place] ^= 1 << chosen.randrange(8)


def zeros_inside(content: bytearray) -> None:
    third = len(content) // 3
    content[third : third + 900] = bytes(900)


def hole(content: bytearray) -> None:
    third = len(content) // 3
    del content[third : third + 900]


def no_pictures(content: bytearray) -> None:
    pictures = content.index(b"mdat") + 4
    content[pictures:] = bytes(len(content) - pictures)


def without_moov(content: bytearray) -> bytes:
    return bytes(content[: content.rindex(b"moov") - 4])


def replaced(old: bytes, new: bytes) -> Callable[[bytearray], bytes]:
    return lambda content: bytes(content).replace(old, new)


def huge(width: int, height: int, aspect: int = 0) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        struct.pack_into("<HH", content, 6, width, height)
        content[12] = aspect  # 64 times the pixel's width by its height, less 15

    return edit


def still(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, np.full((48, 64, 3), 90, np.uint8))[1])


def ts_packets(content: bytearray) -> Iterator[int]:
    """Where the packets of an MPEG-TS begin that carry the pictures."""
    for place in range(0, len(content), 188):
        if int.from_bytes(content[place + 1 : place + 3], "big") & 0x1FFF == 0x100:
            yield place


def scrambled(content: bytearray) -> None:
    for place in ts_packets(content):
        content[place + 3] |= 0x80
        for byte in range(place + 12, place + 188):
            content[byte] ^= 0xA5


def ts_stamps(seconds: float, *numbers: int) -> Callable[[bytearray], None]:
    """Moves PTS and DTS of some pictures, which count 33 bits in an MPEG-TS."""

    def edit(content: bytearray) -> None:
        starts = [place for place in ts_packets(content) if content[place + 1] & 0x40]
        for number in numbers:
            place = starts[number]
            pes = place + 4 + (1 + content[place + 4] if content[place + 3] & 0x20 else 0)
            for at in (pes + 9, pes + 14)[: (content[pes + 7] >> 6) - 1]:
                head, a, b, c, d = content[at : at + 5]
                ticks = (head >> 1 & 7) << 30 | a << 22 | b >> 1 << 15 | c << 7 | d >> 1
                ticks = (ticks + round(seconds * 90_000)) % (1 << 33)
                content[at : at + 5] = bytes(
                    (head & 0xF1 | ticks >> 30 << 1, ticks >> 22 & 255, ticks >> 14 & 254 | 1,
                     ticks >> 7 & 255, ticks << 1 & 254 | 1)
                )  # fmt: skip

    return edit


def flv_stamps(milliseconds: int, *numbers: int) -> Callable[[bytearray], None]:
    """Moves the timestamps of some tags; the first picture's is 1."""

    def edit(content: bytearray) -> None:
        place, tags = 13, []
        while place + 11 < len(content):
            if content[place] == 9:
                tags.append(place)
            place += 15 + int.from_bytes(content[place + 1 : place + 4], "big")
        for number in numbers:
            low = slice(tags[number] + 4, tags[number] + 7)
            moved = int.from_bytes(content[low], "big") + milliseconds
            content[low] = moved.to_bytes(3, "big")

    return edit


def encrypted_matroska(content: bytearray) -> bytes:
    """A track whose head says that its blocks are encrypted by AES."""

    def element(kind: str, body: bytes) -> bytes:
        return bytes.fromhex(kind) + bytes((0x80 | len(body),)) + body

    key = element("47e1", b"\x05") + element("47e2", b"0123456789abcdef")
    encoding = element("6240", element("5033", b"\x01") + element("5035", key))
    added = element("6d80", encoding)
    kind = bytes.fromhex("1654ae6b")
    tracks = content.index(kind, content.index(kind) + 4) + 4  # the first one is its entry in the seek head
    entry = tracks + 9 - content[tracks].bit_length()
    entry += 6 if content[entry] == 0xBF else 0  # a checksum, which may hold any byte
    assert content[entry] == 0xAE
    for place in (tracks, entry + 1):  # both sizes grow; FFmpeg writes them with 8 bytes, all but the first
        length = 9 - content[place].bit_length()
        bits = 7 * length
        size = (int.from_bytes(content[place : place + length], "big") & ((1 << bits) - 1)) + len(added)
        assert size < (1 << bits) - 1
        content[place : place + length] = (size | 1 << bits).to_bytes(length, "big")
    begins = entry + 1 + (9 - content[entry + 1].bit_length())
    content[begins:begins] = added
    return bytes(content)


def mpeg2(path: Path) -> None:
    """As DVD recorders and broadcasters write it; at one of the rates that MPEG-2 knows."""
    with av.open(str(path), "w") as written:
        stream = written.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((SIZE[1], SIZE[0], 3), 4 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p")
            frame.pts = index
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))


def dav(path: Path) -> None:
    """As Dahua's recorders write it: H.264 in chunks that have a date, and milliseconds beside it."""
    plain = path.with_name("plain-dav.h264")
    clip(format="h264", codec_options={"bf": "0"})(plain)
    out = b""
    with av.open(str(plain)) as read:
        packets = [packet for packet in read.demux() if packet.size]
    for number, packet in enumerate(packets):
        extra = bytes((0x81, 0, 2, 25, 0x80, 0, SIZE[0] // 8, SIZE[1] // 8))
        ms = 40 * number
        date = 25 << 26 | 5 << 22 | 26 << 17 | 19 << 12 | 37 << 6 | 26 + ms // 1000  # 2025-05-26 19:37:26
        size = 24 + len(extra) + packet.size + 8
        kind = 0xFD if packet.is_keyframe else 0xFC
        out += b"DHAV" + bytes((kind, 0, 0, 0))
        out += struct.pack("<IIIHBB", number, size, date, ms % 1000, len(extra), 0)
        out += extra + bytes(packet) + b"dhav" + struct.pack("<I", size)
    path.write_bytes(out)


def _noise(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def many_samples(content: bytearray) -> bytes:
    """A sample table that names the first picture a hundred thousand times, in a file that stays small."""
    count = 100_000
    size = int.from_bytes(content[content.index(b"stsz") + 16 :][:4], "big")
    place = int.from_bytes(content[content.index(b"stco") + 12 :][:4], "big")
    tables = {
        b"stsz": struct.pack(">III", 0, size, count),
        b"stco": struct.pack(">II", 0, count) + struct.pack(">I", place) * count,
        b"stsc": struct.pack(">IIIII", 0, 1, 1, 1, 1),
        b"stts": struct.pack(">IIII", 0, 1, count, 512),
    }
    return _with_tables(bytes(content), tables)


def _with_tables(content: bytes, tables: dict[bytes, bytes]) -> bytes:
    """An MP4 whose `moov` comes last, with some boxes' contents exchanged."""

    def rewritten(data: bytes) -> bytes:
        out = b""
        while data:
            size, kind = struct.unpack(">I4s", data[:8])
            body = data[8:size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                body = rewritten(body)
            elif kind in tables:
                body = tables[kind]
            if kind not in (b"edts", b"stss", b"ctts", b"sdtp"):
                out += struct.pack(">I4s", len(body) + 8, kind) + body
            data = data[size:]
        return out

    start = content.rindex(b"moov") - 4
    return content[:start] + rewritten(content[start:])


def _refused(name: str, write: Write, reason: str) -> File:
    return File(name, write, Right(refused=reason))


def _warned(name: str, write: Write, *figures: str, fewer: bool = True, **right: Any) -> File:
    return File(name, write, Right(_LONG, end_ms=None, warned=frozenset(figures), fewer=fewer, **right))


_ORIENTATIONS = {
    "as-filmed": ((1, 0, 0, 1), False, "upper left"),
    "turned-right": ((0, 1, -1, 0), True, "upper right"),
    "upside-down": ((-1, 0, 0, -1), False, "lower right"),
    "turned-left": ((0, -1, 1, 0), True, "lower left"),
    "mirrored": ((-1, 0, 0, 1), False, "upper right"),
    "mirrored-down": ((1, 0, 0, -1), False, "lower left"),
    "transposed": ((0, 1, 1, 0), True, "upper left"),
    "transposed-over": ((0, -1, -1, 0), True, "lower right"),
}

_TS = {"format": "mpegts"}
_PLAIN = Right()
# MPEG-TS counts packets, and says where the count jumps.
_JUMPED = frozenset({"decode_errors"})
_LONG = tuple(range(0, 8_000, 40))
_MOTION_JPEG = clip(_LONG, codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg")
_VP8_IN_OGG = remuxed(clip(codec="libvpx"), lambda *_: None, via="source.webm")
_FRAGMENTS = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}
_CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
_FASTSTART = {"container_options": {"movflags": "faststart"}}

FILES: list[File] = [
    # What ordinary devices write, in each container.
    *(
        File(f"plain.{suffix}", clip(**options), _PLAIN)
        for suffix, options in {
            "mp4": {},
            "mov": {},
            "mkv": {},
            "m4v": {"format": "mp4"},
            "ts": _TS,
            "mts": _TS,
            "m2ts": {**_TS, "container_options": {"mpegts_m2ts_mode": "1"}},
            "flv": {},
            "3gp": {"codec": "mpeg4"},
            "avi": MPEG4,
            "nut": {},
            "gif": {"codec": "gif"},
            "webm": {"codec": "libvpx"},
            "h264": {"format": "h264"},
        }.items()
    ),
    *(File(f"plain.{suffix}", mpeg2, _PLAIN) for suffix in ("mpg", "vob", "mxf")),
    File("plain.dav", dav, _PLAIN),
    File("plain.ogg", _VP8_IN_OGG, _PLAIN),
    File("live.mkv", clip(container_options={"live": "1"}), _PLAIN),
    File("fragments.mp4", clip(**_FRAGMENTS), _PLAIN),
    File(
        "plain.dv",
        clip(STEADY[:5], codec="dvvideo", size=(720, 576)),
        Right(STEADY[:5], 200, (768, 576), said={"fps": 25.0}),
    ),
    File("plain.wmv", clip(codec="wmv2", format="asf"), Right(end_ms=None)),
    File("plain.h265", clip(codec="libx265", format="hevc"), _PLAIN),
    File("plain.mjpeg", clip(codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg"), _PLAIN),
    File("12:30:05.mp4", clip(), _PLAIN),
    # The order of frames.
    *(File(f"b-frames.{suffix}", clip(**B_FRAMES), _PLAIN) for suffix in ("mp4", "mkv", "flv")),
    File("b-frames.ts", clip(**B_FRAMES, **_TS), _PLAIN),
    File("b-frames.avi", remuxed(clip(**B_FRAMES, **_TS), in_decoding_order, via="source.ts"), _PLAIN),
    *(
        File(f"decoding-order.{suffix}", remuxed(clip(**B_FRAMES), in_decoding_order), Right(end_ms=None))
        for suffix in ("mkv", "mp4", "flv", "ts")
    ),
    *(
        File(f"{name}.asf", remuxed(clip(**B_FRAMES), change, format="asf"), Right(end_ms=None))
        for name, change in {"decoding-order": in_decoding_order, "b-frames": lambda *_: None}.items()
    ),
    File("b-frames-mpeg4.avi", clip(codec="mpeg4", codec_options={"bf": "2", "g": "25"}), _PLAIN),
    # Frames whose timestamps run back and forth: a frame may be late, but nothing adds up.
    *(
        File(
            f"back-and-forth.{suffix}",
            remuxed(clip(**B_FRAMES), back_and_forth),
            Right([0, *range(80, 2_040, 40)], None),
        )
        for suffix in ("mkv", "ts", "flv")
    ),
    File("packed-b-frames.avi", packed_bframes, Right(end_ms=None, fewer=True)),
    # Glitches of single timestamps, and real jumps.
    *(
        File(f"{name}.{suffix}", remuxed(clip(codec_options={"bf": "0"}), change), _PLAIN)
        for suffix in ("mkv", "ts", "flv")
        for name, change in {
            "far-ahead": moved(30_000, 20),
            "ahead": moved(30, 20),
            "ahead-onto-another": moved(1.04, 20),  # a later packet has the same stamp
            "three-ahead": moved(45, 20, 21, 22),
        }.items()
    ),
    # FLV has no room for this step, but its stated end includes it.
    File("two-far-ahead.flv", remuxed(clip(**B_FRAMES), moved(37_600, 10, 40)), Right(end_ms=None)),
    File(
        "far-ahead.mp4",
        remuxed(clip(codec_options={"bf": "0"}), moved(0.02, 20)),
        Right(end_ms=None, fewer=True),
    ),
    *(
        File(f"{name}.{suffix}", remuxed(clip(codec_options={"bf": "0"}), moved(40, number)), _PLAIN)
        for suffix in ("mkv", "ts", "flv")
        for name, number in {"first-ahead": 0, "last-ahead": FRAMES - 1}.items()
    ),
    *(
        File(f"{name}-back.{suffix}", edited(clip(**B_FRAMES, **options), change), _PLAIN)
        for name, seconds, numbers in (
            ("one", -1.2, (30,)),
            ("three", -0.7, (20, 21, 22)),
            ("last", -0.7, (49,)),
        )
        for suffix, options, change in (
            ("ts", _TS, ts_stamps(seconds, *numbers)),
            ("flv", {}, flv_stamps(round(seconds * 1000), *(number + 1 for number in numbers))),
        )
    ),
    # 33 bits at 90 kHz run over 1 s after the start.
    File(
        "clock-runs-over.ts",
        edited(clip(**_TS), ts_stamps((1 << 33) / 90_000 - 2.4, *range(FRAMES))),
        _PLAIN,
    ),
    File(
        "joined.ts",
        joined(clip([90_000 + time for time in STEADY], **_TS), clip(**_TS)),
        Right([*STEADY, *(2_000 + time for time in STEADY)], 4_000, warned=_JUMPED),
    ),
    File(
        "pause.ts",
        joined(clip(**_TS), clip([62_000 + time for time in STEADY], **_TS)),
        Right([*STEADY, *(62_000 + time for time in STEADY)], 64_000, warned=_JUMPED),
    ),
    File("pause.mkv", clip([0, 40, 5_000, 5_040, 9_000]), Right([0, 40, 5_000, 5_040, 9_000], None)),
    # The packets behind that of the last frame are shown before it.
    File(
        "pause-before-the-last.mkv",
        clip([0, 33, 100, 500, 533, 2_000, 2_033, 2_040, 7_000], **B_FRAMES),
        Right([0, 33, 100, 500, 533, 2_000, 2_033, 2_040, 7_000], None),
    ),
    # Where time begins, and ends.
    File("begins-at-1-h.mkv", clip([3_600_000 + time for time in STEADY]), _PLAIN),
    File("begins-at-1-h.ts", clip([3_600_000 + time for time in STEADY], **_TS), _PLAIN),
    *(
        File(
            f"late-pictures.{suffix}",
            with_sound(clip(codec_options={"bf": "0"}), pictures_at_s=2.0, sound_s=4.0),
            Right([2_000 + time for time in STEADY], 4_000),
        )
        for suffix in ("mp4", "mkv")
    ),
    File("long-sound.mp4", with_sound(clip(), sound_s=4.0), _PLAIN),
    # Orientation.
    *(
        File(
            f"{name}.mp4",
            edited(marked(), display_matrix(*matrix)),
            Right(size=SIZE[::-1] if turned else SIZE, corner=corner),
        )
        for name, (matrix, turned, corner) in _ORIENTATIONS.items()
    ),
    *(
        File(
            f"{name}-interlaced-anamorphic.mov",
            edited(
                marked(codec_options={"x264-params": "tff=1"}, sample_aspect_ratio=Fraction(4, 3)),
                display_matrix(*matrix),
            ),
            Right(size=(48, 85) if turned else (85, 48), corner=corner),
        )
        for name, (matrix, turned, corner) in _ORIENTATIONS.items()
    ),
    # Which track is the video.
    File(
        "thumbnail-first.mp4",
        two_tracks(clip([0], codec="mjpeg", pix_fmt="yuvj420p", size=(640, 480)), clip()),
        Right(said={"codec": "h264"}),
    ),
    File(
        "thumbnail-last.mkv",
        two_tracks(clip(), clip([0], codec="mjpeg", pix_fmt="yuvj420p", size=(640, 480)), default=None),
        Right(said={"codec": "h264"}),
    ),
    File("proxy-first.mkv", two_tracks(clip(size=(32, 24)), clip()), Right()),
    File("proxy-unmarked.mp4", two_tracks(clip(size=(32, 24)), clip(), default=None), Right()),
    File(
        "unknown-first.mp4",
        edited(two_tracks(clip(codec="mpeg4"), clip()), replaced(b"mp4v", b"zzzv")),
        Right(said={"codec": "h264"}),
    ),
    *(
        File(
            f"thumbnail-first.{suffix}",
            two_tracks(clip([0], codec="mjpeg", pix_fmt="yuvj420p", size=(640, 480)), clip(), default=None),
            Right(said={"codec": "h264"}),
        )
        for suffix in ("mkv", "mov")
    ),
    *(
        File(
            f"{len(times)}-thumbnails-first.{suffix}",
            two_tracks(clip(times, codec="mjpeg", pix_fmt="yuvj420p", size=(640, 480)), clip(), default=0),
            Right(said={"codec": "h264"}),
        )
        for suffix, times in (("mp4", [0, 500, 1_000, 1_500]), ("mkv", [0, 1]))
    ),
    *(
        File(
            f"unknown-first.{suffix}",
            edited(two_tracks(clip(**first), clip(**MPEG4), extra=".avi"), replaced(old, new)),
            Right(end_ms=None, said={"codec": "mpeg4"}),
        )
        for suffix, first, old, new in (
            ("avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, b"MJPG", b"ZZZV"),
            ("mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, b"V_MJPEG", b"V_ZZZZZ"),
        )
    ),
    # Sizes that change midway.
    File(
        "reshaped.ts",
        joined(
            clip(**_TS),
            clip([2_000 + time for time in STEADY], sample_aspect_ratio=Fraction(4, 3), **_TS),
        ),
        Right([*STEADY, *(2_000 + time for time in STEADY)], 4_000, warned=frozenset({"size_changes"})),
    ),
    File(
        "resized.ts",
        joined(clip(**_TS), clip([2_000 + time for time in STEADY], size=(48, 64), **_TS)),
        Right([*STEADY, *(2_000 + time for time in STEADY)], 4_000, warned=frozenset({"size_changes"})),
    ),
    # Damage.
    _warned("flipped-bytes.mp4", edited(clip(), flipped_bytes), "corrupt_frames"),
    _warned("half.mp4", edited(clip(_LONG, **_FASTSTART), half), "truncated"),
    _warned("half.mkv", edited(clip(_LONG), half), "truncated"),
    _warned("half-with-sound.mkv", edited(with_sound(clip(_LONG), sound_s=8.0), half), "truncated"),
    _warned("half.avi", edited(remuxed(clip(_LONG, **MPEG4), lambda *_: None), half), "truncated"),
    _warned("half.flv", edited(clip(_LONG), half), "truncated"),
    _warned("half.wmv", edited(clip(_LONG, codec="wmv2", format="asf"), half), "truncated"),
    _warned("half-live.mkv", edited(clip(_LONG, container_options={"live": "1"}), half), "truncated"),
    _warned("half-fragments.mp4", edited(clip(_LONG, **_FRAGMENTS), half), "truncated"),
    _warned("half.ogg", edited(_VP8_IN_OGG, half), "truncated"),
    _warned("half.gif", edited(clip(_LONG, codec="gif"), half), "truncated"),
    _warned("half.ts", edited(clip(_LONG, **_TS), lambda content: half(content)[:-100]), "truncated"),
    _warned("half.dav", edited(dav, half), "truncated"),
    _warned("half.mjpeg", edited(_MOTION_JPEG, half), "truncated"),
    # What is lost in the middle: blocks are gone, or overwritten with zeros.
    *(
        _warned(f"{name}.{suffix}", edited(write, damage), "decode_errors")
        for suffix, write in {
            "gif": clip(_LONG, codec="gif"),
            "ogg": remuxed(clip(_LONG, codec="libvpx"), lambda *_: None, via="source.webm"),
            "flv": clip(_LONG),
            "wmv": clip(_LONG, codec="wmv2", format="asf"),
            "dav": dav,
        }.items()
        for name, damage in {"hole": hole, "overwritten": zeros_inside}.items()
        if (suffix, name) != ("wmv", "overwritten")  # its packets are larger: the decoder notices
    ),
    _warned(
        "overwritten.wmv", edited(clip(_LONG, codec="wmv2", format="asf"), zeros_inside), "corrupt_frames"
    ),
    _warned("zeros-inside.ts", edited(clip(**_TS), zeros_inside), "decode_errors"),
    _warned("bit-errors.ts", edited(clip(**_TS), bit_errors), "corrupt_frames"),
    # When it was filmed.
    File(
        "android.mp4",
        clip(
            container_options={"movflags": "use_metadata_tags"},
            metadata={"com.android.version": "14", "creation_time": "2021-06-23T18:51:36Z"},
        ),
        Right(said={"creation_time": "2021-06-23T18:51:34+00:00", "creation_time_rule": "android-end"}),
    ),
    File(
        "iphone-export.mov",
        clip(
            container_options={"movflags": "use_metadata_tags"},
            metadata={
                "com.apple.quicktime.creationdate": "2025-05-26T19:37:26+0900",
                "creation_time": "2026-11-30T08:00:00Z",
            },
        ),
        Right(
            said={"creation_time": "2025-05-26T19:37:26+09:00", "creation_time_rule": "apple-creationdate"}
        ),
    ),
    # What is no video, with the reason.
    _refused("empty.mp4", raw(b""), "empty"),
    _refused("text.mp4", raw(b"hello world\n" * 50), "not of a known video format"),
    _refused("noise.mp4", raw(np.random.default_rng(0).bytes(20_000)), "not of a known video format"),
    _refused("not-finished.mp4", edited(clip(), without_moov), "was not finished"),
    _refused("encrypted.mp4", edited(clip(), replaced(b"avc1", b"encv")), "encrypted"),
    _refused("encrypted-by-cenc.mp4", clip(container_options=_CENC), "encrypted"),
    _refused(
        "encrypted-fragments.mp4",
        clip(container_options={**_FRAGMENTS["container_options"], **_CENC}),
        "encrypted",
    ),
    _refused("encrypted.mkv", edited(clip(), encrypted_matroska), "encrypted"),
    _refused("scrambled.ts", edited(clip(**_TS), scrambled), "encrypted"),
    _refused(
        "unknown-codec.mp4", edited(clip(), replaced(b"avc1", b"zzzv")), r"no decoder for its codec \(zzzv\)"
    ),
    _refused("unknown-codec.mkv", edited(clip(), replaced(b"MPEG4/ISO/AVC", b"MPEG4/ISO/XYZ")), "no decoder"),
    _refused("sound.mp4", sound_only, r"no video track \(found: audio\)"),
    _refused("cover.mp4", cover_only, r"found: audio, and a cover picture"),
    _refused("picture.jpg", raw(still(".jpg")), "still picture"),
    _refused("picture.png", raw(still(".png")), "still picture"),
    _refused("picture.mp4", raw(still(".webp")), "still picture"),
    _refused("picture.heic", raw(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)), "still picture"),
    _refused("picture.gif", clip([0], codec="gif"), "still picture"),
    _refused("picture.jp2", raw(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)), "still picture"),
    _refused(
        "animated.webp", raw(b"RIFF\x40\0\0\0WEBPVP8X" + bytes(14) + b"ANIM" + bytes(40)), "animated WebP"
    ),
    _refused("song.mp4", raw(b"ID3\x04" + bytes(20) + b"\xff\xfb\x90\x64" * 400), "sound only"),
    _refused("sound.wav", clip_of_sound("wav"), "sound only"),
    _refused("sound.flac", clip_of_sound("flac"), "sound only"),
    _refused("sound.aiff", clip_of_sound("aiff"), "sound only"),
    _refused("no-pictures.mp4", edited(clip(**_FASTSTART), no_pictures), "none of its frames"),
    _refused("too-large.gif", edited(clip(codec="gif"), huge(12_000, 12_000)), "12000 × 12000"),
    # Each frame would be 800 MB of pixels; the file has some hundred bytes.
    _refused(
        "too-wide.gif", edited(clip([0, 40], codec="gif"), huge(8192, 8192, aspect=241)), "32768 × 8192"
    ),
    _refused(
        "list.m3u8",
        raw(b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nplain.ts\n#EXT-X-ENDLIST\n"),
        "not of a known video format",
    ),
    _refused("script.mp4", raw(b"ffconcat version 1.0\nfile plain.ts\n"), "not of a known video format"),
    # What costs without end; of noise, so that few pictures are many bytes.
    _refused(
        "repeated.mp4",
        edited(clip(size=(640, 480), picture=_noise), many_samples),
        "its index names the same bytes again and again",
    ),
]

CORNERS = {
    "upper left": (slice(0, 12), slice(0, 12)),
    "upper right": (slice(0, 12), slice(-12, None)),
    "lower left": (slice(-12, None), slice(0, 12)),
    "lower right": (slice(-12, None), slice(-12, None)),
}
RED = COLOURS["person"]
