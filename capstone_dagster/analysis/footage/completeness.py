"""Whether a file is all there, by its container's own words: sizes, marks of the end, chains of blocks.

What is missing decodes without an error in many formats. A half sound track is found by times. Raw H.264 and
H.265 have no container: what a decoder does not miss there, nobody can.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# Sizes are rounded, and some writers leave out padding: 2 % are no loss.
_LOSS_SHARE = 0.02

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")

# MPEG-TS as broadcast, with a Blu-ray's 4 bytes before each packet, with 16 bytes of parity.
_TS_PACKETS = (188, 192, 204)
TS_SYNC = 0x47
# An Ogg page has at most 65,307 bytes.
_OGG_PAGE = 65_307
_OGG_LAST = 4

_GIF_TRAILER, _GIF_EXTENSION, _GIF_PICTURE = 0x3B, 0x21, 0x2C
# Programs append a note behind a GIF's trailer.
_GIF_NOTE = 1024
# A number of FLV's metadata: its name's length, name, and type.
_FLV_SIZE = b"\0\x08filesize\0"
_FLV_TAGS = (8, 9, 15, 18, 22)
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_TAIL = 1 << 20


def is_cut(path: Path) -> bool:
    """Whether the file ends before its container says that it does; False where nothing shows it."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"OggS":
            return _lacks_last_page(file, length)
        if head[:4] == b"GIF8":
            return _lacks_trailer(file, length)
        if head[:4] == b"DHAV":
            tail = _tail(file, length)
            last = tail[tail.rfind(b"dhav") :]
            return len(last) < 8 or bool(last[8:].strip(b"\0"))
        if head.startswith(_JPEG_BEGIN):
            tail = _tail(file, length)
            return _JPEG_BEGIN in tail[tail.rfind(_JPEG_END) + 2 :]
        if (packets := ts_packets(head)) is not None:
            start, size = packets
            return (length - start) % size != 0
        if head.startswith(_EBML):
            return _matroska_is_cut(file, head, length)
    stated = _stated_bytes(head, path)
    return stated is not None and length < stated * (1 - _LOSS_SHARE)


def has_stated_size(path: Path) -> bool:
    """Whether an FLV is as long as it states: no time is missing, whatever glitch its stated end includes."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(_FLV_SIZE) + len(_FLV_SIZE) if head[:3] == b"FLV" and _FLV_SIZE in head else len(head)
    stated = head[place : place + 8]
    return len(stated) == 8 and struct.unpack(">d", stated)[0] == path.stat().st_size


def breaks(path: Path) -> int:
    """At how many places a chain of blocks is broken: what lay between is lost. 0 where nothing shows it."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            walk = next((walk for start, walk in _WALKS.items() if content[: len(start)] == start), None)
            return walk(content) if walk is not None else 0


def boxes(path: Path) -> Iterator[tuple[str, int, int]]:
    """The outermost boxes of an ISO media file: kind, start and end. Nothing of any other file."""
    length = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + 8 <= length:
            file.seek(place)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if not re.fullmatch(rb"[ -~]{4}", kind) or (place == 0 and kind not in _FIRST_BOXES):
                return
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            end = place + size if size >= 8 else length
            yield kind.decode("ascii"), place, end
            place = end


def ts_packets(head: bytes) -> tuple[int, int] | None:
    """Where the first packet of an MPEG-TS begins, and how long each is."""
    for size in _TS_PACKETS:
        lead = 4 if size == 192 else 0
        for start in range(size):
            marks = head[start + lead :: size]
            if len(marks) > 5 and marks.count(TS_SYNC) == len(marks):
                return start, size
    return None


def _stated_bytes(head: bytes, path: Path) -> int | None:
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if 0 < size < (1 << 32) - 16 else None
    if head.startswith(_ASF):
        properties = head.find(_ASF_PROPERTIES)
        return int.from_bytes(head[properties + 40 : properties + 48], "little") if properties > 0 else None
    ends = [end for _, _, end in boxes(path)]
    return ends[-1] if ends else None


def _lacks_last_page(file: BinaryIO, length: int) -> bool:
    """Each stream of an Ogg file marks its last page: the file's last page is such a one, and whole."""
    file.seek(max(0, length - _OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    size = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return len(page) < size or not page[5] & _OGG_LAST


def _tail(file: BinaryIO, length: int) -> bytes:
    file.seek(max(0, length - _TAIL))
    return file.read()


def _lacks_trailer(file: BinaryIO, length: int) -> bool:
    file.seek(max(0, length - 1024))
    tail = file.read().rstrip(b"\0")  # some writers pad
    return bool(tail) and not tail.endswith(b";")


def _matroska_is_cut(file: BinaryIO, head: bytes, length: int) -> bool:
    """By the segment's size; where a live recording has none, whether the last element is whole."""
    place = head.find(_SEGMENT)
    if place < 0:
        return False
    while place < length:
        file.seek(place)
        kind, body, size = _element(file.read(16))
        if not kind:
            return True
        if size is not None:
            if place + body + size > length and kind == _SEGMENT:
                return length < (place + body + size) * (1 - _LOSS_SHARE)
            place += body + size
        elif kind in (_SEGMENT, _CLUSTER):
            place += body
        else:
            return False
    return place > length


def _element(head: bytes) -> tuple[bytes, int, int | None]:
    """An EBML element's id, the length of its head, and its size: 1 to 8 bytes, all ones where unknown."""
    first = 9 - head[0].bit_length()
    if first > 4 or len(head) <= first or not head[first]:
        return b"", 0, None
    length = 9 - head[first].bit_length()
    bits = 7 * length
    size = int.from_bytes(head[first : first + length], "big") & ((1 << bits) - 1)
    return head[:first], first + length, None if size == (1 << bits) - 1 else size


def _gif_breaks(content: mmap.mmap) -> int:
    """Extensions and pictures, each a head and a chain of blocks that a block of no bytes ends.

    Of a picture's blocks all but the last have one size. Chains read from a wrong place soon find back.
    """

    def colours(packed: int) -> int:
        return 3 << (packed & 7) + 1 if packed & 0x80 else 0

    place = 13 + colours(content[10]) if len(content) > 13 else len(content)
    while place + 10 < len(content):
        kind = content[place]
        if kind == _GIF_TRAILER:
            return int(len(content) - place > _GIF_NOTE)
        if kind == _GIF_EXTENSION:
            place += 2
        elif kind == _GIF_PICTURE:
            place += 11 + colours(content[place + 9])
        else:
            return int(bool(content[place:].strip(b"\0")))
        sizes = []
        while place < len(content) and content[place]:
            sizes.append(content[place])
            place += 1 + content[place]
        if kind == _GIF_PICTURE and len(set(sizes[:-1])) > 1 and place < len(content):
            return 1
        place += 1
    return 0


def _ogg_breaks(content: mmap.mmap) -> int:
    """Pages, which are numbered in each stream."""
    found, place, numbers = 0, 0, dict[bytes, int]()
    while 0 <= place <= len(content) - 27:
        whole = content[place : place + 4] == b"OggS"
        if not whole:
            place = content.find(b"OggS", place)
            if place < 0:
                return found + 1
        stream = content[place + 14 : place + 18]
        number = int.from_bytes(content[place + 18 : place + 22], "little")
        found += not whole or number != numbers.get(stream, number - 1) + 1
        numbers[stream] = number
        segments = content[place + 26]
        place += 27 + segments + sum(content[place + 27 : place + 27 + segments])
    return found


def _flv_breaks(content: mmap.mmap) -> int:
    """Tags, behind each its size once more; some writers leave that 0, or leave the head out."""
    place = int.from_bytes(content[5:9], "big") + 4
    while place + 11 <= len(content):
        size = int.from_bytes(content[place + 1 : place + 4], "big")
        end = place + 11 + size
        again = int.from_bytes(content[end : end + 4], "big")
        if content[place] & 0x1F not in _FLV_TAGS or (
            end + 4 <= len(content) and again not in (0, size, size + 11)
        ):
            return int(bool(content[place:].strip(b"\0")))
        place = end + 4
    return 0


def _dahua_breaks(content: mmap.mmap) -> int:
    """Chunks, which name their length in their head and in their tail."""
    found, place = 0, 0
    while place + 32 <= len(content):
        end = place + int.from_bytes(content[place + 12 : place + 16], "little")
        if end > len(content):
            return found + (content.find(b"DHAV", place + 4) > 0)
        if content[end - 8 : end - 4] != b"dhav" or content[end : end + 4] not in (b"DHAV", b"", bytes(4)):
            found += 1
            end = content.find(b"DHAV", place + 4)
            if end < 0:
                break
        place = end
    return found


def _asf_breaks(content: mmap.mmap) -> int:
    """Packets of one size, which all begin alike."""
    properties, data = content.find(_ASF_PROPERTIES, 0, 1 << 20), content.find(_ASF_DATA, 0, 1 << 24)
    if properties < 0 or data < 0:
        return 0
    smallest, largest = (
        int.from_bytes(content[properties + at : properties + at + 4], "little") for at in (92, 96)
    )
    packets = int.from_bytes(content[data + 40 : data + 48], "little")
    if not 0 < smallest == largest:
        return 0
    found, sound = 0, True
    for place in range(data + 50, min(data + 50 + packets * largest, len(content)), largest):
        before, sound = sound, content[place] == content[data + 50]
        found += before and not sound
    return found


_WALKS: dict[bytes, Callable[[mmap.mmap], int]] = {
    b"GIF8": _gif_breaks,
    b"OggS": _ogg_breaks,
    b"FLV\x01": _flv_breaks,
    b"DHAV": _dahua_breaks,
    _ASF: _asf_breaks,
}
