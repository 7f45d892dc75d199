"""Opens a video file: which containers are let in, and the true reason where one is not."""

from __future__ import annotations

import errno
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import av.logging
from av.codec.hwaccel import HWAccel

from ..errors import UndecodableVideo

# An upload is a stranger's file. FFmpeg also opens play lists and concatenation scripts, which name other
# files and addresses, and plays text files as terminal art: only containers that hold their own pictures
# are let in.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,gif,apng,"
    "dv,dhav,h264,hevc,av1,obu,m4v,mjpeg,rm,wtv,vob,swf,nsv,roq,mpjpeg,y4m,yuv4mpegpipe,live_flv"
)
_OPEN_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

_ERRORS_OF_FILES = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.EBADF)
_SOME_MEMORY = 64 << 20

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
        check_machine(path, error)
        raise UndecodableVideo(_why_not_opened(path, name, error)) from error
    picture = _PICTURE_BRANDS.get(container.metadata.get("major_brand", ""))
    if picture:
        container.close()
        raise UndecodableVideo(_still_picture(name, picture))
    return container


def check_machine(path: Path, error: av.error.FFmpegError) -> None:
    """Raises where FFmpeg failed because the machine did; an error's number does not tell.

    Decoders return `EPERM` and demuxers `EIO` and `ENOMEM` for broken content. So the file is read to its
    end, and memory is asked for.

    Raises:
        OSError: a part of the file cannot be read.
        MemoryError: the machine has none left.
    """
    if isinstance(error, av.error.MemoryError):
        try:
            mmap.mmap(-1, _SOME_MEMORY).close()
        except OSError:
            raise MemoryError("The machine has no memory left to decode a video in.") from error
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
    boxes = [kind for kind, _ in _boxes(path)]
    if boxes and "moov" not in boxes and "moof" not in boxes and {"ftyp", "mdat"} & set(boxes):
        return (
            f"A video was expected in {name}, but the recording was not finished: the index that a recorder "
            "writes last (the `moov` box) is missing. Let the recorder repair the file, or upload another."
        )
    picture = _picture(path)
    if picture:
        return _still_picture(name, picture)
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


def _boxes(path: Path) -> Iterator[tuple[str, int]]:
    """The kinds and sizes of an ISO media file's outermost boxes; nothing of any other file."""
    length = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + 8 <= length:
            file.seek(place)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if not re.fullmatch(rb"[ -~]{4}", kind):
                return
            yield kind.decode("ascii"), size
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8:
                return
            place += size
