"""Whether a file is all there, by its container's own words: sizes, marks of the end, whole packets.

What is missing at the end decodes without an error in many formats. A half sound track is found by times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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


def is_cut(path: Path) -> bool:
    """Whether the file ends before its container says that it does; False where nothing shows it."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"OggS":
            return _lacks_last_page(file, length)
        if head[:4] == b"GIF8":
            return _lacks_trailer(file, length)
        if (packets := ts_packets(head)) is not None:
            start, size = packets
            return (length - start) % size != 0
        if head.startswith(_EBML):
            return _matroska_is_cut(file, head, length)
    stated = _stated_bytes(head, path)
    return stated is not None and length < stated * (1 - _LOSS_SHARE)


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
