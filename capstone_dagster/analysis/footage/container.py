"""Opens a video file: which containers are let in, and the true reason where one is not."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import av.logging
from av.codec.hwaccel import HWAccel

from ..errors import UndecodableVideo
from .budget import check_memory

# An upload is a stranger's file. FFmpeg also opens play lists and concatenation scripts, which name other
# files and addresses, and plays text files as terminal art: only containers that hold their own pictures
# are let in.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,gif,apng,"
    "dv,dhav,h264,hevc,av1,obu,m4v,mjpeg,rm,wtv,vob,swf,nsv,roq,mpjpeg,y4m,yuv4mpegpipe,live_flv"
)
_OPEN_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

_ERRORS_OF_FILES = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.EBADF)

# The first bytes of files that hold a single picture, and the brands of ISO media files that do.
_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\x01\0": "ICO",
    b"\x0a\x05\x01\x08": "PCX",
}
_PICTURE_BRANDS = {
    "heic": "HEIC",
    "heix": "HEIC",
    "mif1": "HEIF",
    "msf1": "HEIF",
    "avif": "AVIF",
    "jxl ": "JPEG XL",
}

# How files of three kinds begin, and the parts of them that say how long they are.
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")

# Four letters that name an encrypted track in ISO media files (ISO/IEC 14496-12) and Apple's.
_ENCRYPTED_TAGS = ("encv", "drmi", "drms")
_STREAM = re.compile(
    r"Stream #\d+:(?P<index>\d+)\S*: Video: (?P<codec>\S+?),?(?: \((?P<tag>.{4}) / 0x[0-9A-Fa-f]+\))?[ ,]"
)


def open_container(path: Path, name: str, *, hardware: bool = False) -> av.container.InputContainer:
    """Opens a file for reading.

    Args:
        name: what messages call it.
        hardware: prefer NVIDIA's decoder.

    Raises:
        UndecodableVideo: it is no video; the message says what it is.
        OSError: the file cannot be read, which is not the video's fault.
    """
    if path.stat().st_size == 0:
        raise UndecodableVideo(f"A video was expected in {name}, but the file is empty; upload it again.")
    accelerator = HWAccel("cuda", allow_software_fallback=True) if hardware else None
    try:
        # The protocol is named, because a colon in the file's name would be taken for the end of one.
        container = av.open(
            f"file:{path}", options=_OPEN_OPTIONS, metadata_errors="replace", hwaccel=accelerator
        )
    except av.error.FFmpegError as error:
        if hardware:  # no device, or a file that is none: software tells which
            return open_container(path, name)
        check_machine(path, name, error)
        raise UndecodableVideo(_why_not_opened(path, name, error)) from error
    picture = _PICTURE_BRANDS.get(container.metadata.get("major_brand", ""))
    if picture:
        container.close()
        raise UndecodableVideo(_still_picture(name, picture))
    return container


def check_machine(path: Path, name: str, error: av.error.FFmpegError) -> None:
    """Raises where FFmpeg failed because the machine did; an error's number does not tell.

    Decoders return `EPERM` and demuxers `EIO` and `ENOMEM` for broken content. So the file is read to its
    end, and memory is asked for.

    Raises:
        OSError: a part of the file cannot be read.
        MemoryError: the machine has none left.
        UndecodableVideo: the file asks for all that decoding may take.
    """
    if isinstance(error, av.error.MemoryError):
        check_memory(name)
    if error.errno in _ERRORS_OF_FILES:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def is_encrypted(stream: av.VideoStream) -> bool:
    """Whether a track's pictures are encrypted: FFmpeg decodes such a track to noise."""
    tag = stream.codec_context.codec_tag if stream.codec_context is not None else ""
    return tag in _ENCRYPTED_TAGS or "enc_key_id" in stream.metadata


def codec_names(container: av.container.InputContainer) -> dict[int, str]:
    """How FFmpeg names the codec of each video track, by the track's index; a tag where it knows no decoder.

    PyAV says nothing of a track without a decoder, so this reads what FFmpeg prints of the container.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        printed: str = container.dumps_format()  # type: ignore[attr-defined]
    finally:
        av.logging.set_level(level)
    found = {int(match["index"]): match for match in _STREAM.finditer(printed)}
    return {
        index: match["codec"] if match["codec"] not in ("none", "unknown") else (match["tag"] or "unknown")
        for index, match in found.items()
    }


def _why_not_opened(path: Path, name: str, error: av.error.FFmpegError) -> str:
    picture = _picture(path)
    if picture:
        return _still_picture(name, picture)
    boxes = [kind for kind, _ in _boxes(path)]
    if boxes and "moov" not in boxes and "moof" not in boxes and {"ftyp", "mdat"} & set(boxes):
        return (
            f"A video was expected in {name}, but the recording was not finished: the index that a recorder "
            "writes last (the `moov` box) is missing. Let the recorder repair the file, or upload another."
        )
    reason = (error.strerror or type(error).__name__).lower()
    return (
        f"A video was expected in {name}, but its content is not of a known video format ({reason}); upload "
        "an MP4, MOV, MKV, WebM, AVI or MPEG-TS file."
    )


def _still_picture(name: str, picture: str) -> str:
    return f"A video was expected in {name}, but it is a still picture ({picture}); upload the video."


def _picture(path: Path) -> str | None:
    """The format of a file that holds a single picture; None for any other."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return _PICTURE_BRANDS.get(head[8:12].decode("latin-1"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((picture for start, picture in _PICTURES.items() if head.startswith(start)), None)


def stated_bytes(path: Path) -> int | None:
    """How long the container says that the file is; None where it does not, or says a placeholder."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if 0 < size < (1 << 32) - 16 else None
    if head.startswith(_ASF):
        properties = head.find(_ASF_PROPERTIES)
        return int.from_bytes(head[properties + 40 : properties + 48], "little") if properties > 0 else None
    if head.startswith(_EBML):
        return _segment_end(head)
    boxes = list(_boxes(path))
    return boxes[-1][1] if boxes else None


def _segment_end(head: bytes) -> int | None:
    """Where Matroska's segment ends. Its size has 1 to 8 bytes; all ones mean that it is unknown."""
    place = head.find(_SEGMENT)
    if place < 0 or place + 12 > len(head) or not head[place + 4]:
        return None
    length = 9 - head[place + 4].bit_length()
    bits = 7 * length
    size = int.from_bytes(head[place + 4 : place + 4 + length], "big") & ((1 << bits) - 1)
    return None if size == (1 << bits) - 1 else place + 4 + length + size


def _boxes(path: Path) -> Iterator[tuple[str, int]]:
    """The kinds of an ISO media file's outermost boxes and where each ends; nothing of any other file."""
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
            yield kind.decode("ascii"), end
            place = end
