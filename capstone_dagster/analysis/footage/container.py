"""Opens a video file: which containers are let in, and the true reason where one is not."""

from __future__ import annotations

import errno
import re
from itertools import islice
from pathlib import Path

import av
import av.error
import av.logging
from av.codec.hwaccel import HWAccel

from ..errors import UndecodableVideo
from .budget import check_memory
from .completeness import TS_SYNC, boxes, ts_packets

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
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"SDPX": "DPX",
    b"XPDS": "DPX",
    b"8BPS": "Photoshop",
    b"qoif": "QOI",
}
_PICTURE_BRANDS = {
    "heic": "HEIC",
    "heix": "HEIC",
    "mif1": "HEIF",
    "msf1": "HEIF",
    "avif": "AVIF",
    "jxl ": "JPEG XL",
}

# The first bytes of files that hold sound alone; MP4, Matroska, Ogg and ASF are opened, and say so.
_SOUNDS = {
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
    b"fLaC": "FLAC",
    b"#!AMR": "AMR",
    b"caff": "CAF",
    b".snd": "AU",
}

# A still picture of a phone may hold some others behind it: a gain map, a depth map.
_PICTURES_OF_A_STREAM = 5

# Indexes of hours have some MB.
_LONGEST_INDEX = 16 << 20

# So far into an MPEG-TS a scrambled packet is looked for: some seconds.
_SCRAMBLED_WITHIN = 4 << 20

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
        if _is_motion_jpeg(path):
            return av.open(f"file:{path}", format="mjpeg", options=_OPEN_OPTIONS)
        raise UndecodableVideo(_why_not_opened(path, name, error)) from error
    picture = _PICTURE_BRANDS.get(container.metadata.get("major_brand", ""))
    if container.format.name == "gif" and _pictures_at_start(path, "gif") == 1:
        picture = "GIF"
    if picture:
        container.close()
        raise UndecodableVideo(_still_picture(name, picture))
    return container


def _is_motion_jpeg(path: Path) -> bool:
    """Whether a file is pictures of JPEG in a row, as network cameras send them; FFmpeg takes it for one."""
    if _picture(path) != "JPEG":
        return False
    return _pictures_at_start(path, "mjpeg") == _PICTURES_OF_A_STREAM


def _pictures_at_start(path: Path, format: str) -> int:
    """How many pictures a file of this format begins with, as far as it matters."""
    try:
        with av.open(f"file:{path}", format=format, options=_OPEN_OPTIONS) as container:
            return sum(packet.size > 0 for packet in islice(container.demux(), _PICTURES_OF_A_STREAM))
    except av.error.FFmpegError:
        return 0


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


def is_scrambled(path: Path) -> bool:
    """Whether packets at the start of an MPEG-TS are scrambled, which their heads say (ISO/IEC 13818-1)."""
    with path.open("rb") as file:
        content = file.read(_SCRAMBLED_WITHIN)
    packets = ts_packets(content[:4096])
    if packets is None:
        return False
    start, size = packets
    start += 4 if size == 192 else 0
    marks = zip(content[start::size], content[start + 3 :: size], strict=False)
    return any(mark == TS_SYNC and control & 0xC0 for mark, control in marks)


def encrypted_sentence(name: str, codecs: str = "") -> str:
    """Why a file with encrypted pictures is refused."""
    which = f" (codec {codecs})" if codecs else ""
    return (
        f"A video was expected in {name}, but its pictures are encrypted{which}: a protected recording "
        "cannot be analysed. Export it without protection and upload that."
    )


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
    picture, sound = _picture(path), _sound(path)
    if picture:
        return _still_picture(name, picture)
    if sound:
        return (
            f"A video was expected in {name}, but it is sound only ({sound}); upload the file that has the "
            "pictures."
        )
    places = {kind: (start, end) for kind, start, end in boxes(path)}
    if places and "moov" not in places and "moof" not in places and {"ftyp", "mdat"} & set(places):
        return (
            f"A video was expected in {name}, but the recording was not finished: the index that a recorder "
            "writes last (the `moov` box) is missing. Let the recorder repair the file, or upload another."
        )
    if is_scrambled(path) or ("moov" in places and _names_encryption(path, *places["moov"])):
        return encrypted_sentence(name)
    reason = (error.strerror or type(error).__name__).lower()
    return (
        f"A video was expected in {name}, but its content is not of a known video format ({reason}); upload "
        "an MP4, MOV, MKV, WebM, AVI or MPEG-TS file."
    )


def _names_encryption(path: Path, start: int, end: int) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        index = file.read(min(end - start, _LONGEST_INDEX))
    return any(tag.encode() in index for tag in _ENCRYPTED_TAGS)


def _still_picture(name: str, picture: str) -> str:
    if picture.startswith("animated"):
        return (
            f"A video was expected in {name}, but FFmpeg does not read its format ({picture}); convert it "
            "to MP4 and upload that."
        )
    return f"A video was expected in {name}, but it is a still picture ({picture}); upload the video."


def _sound(path: Path) -> str | None:
    """The format of a file that holds sound alone; None for any other."""
    with path.open("rb") as file:
        head = file.read(12)
    if (head[:4], head[8:]) in ((b"RIFF", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC")):
        return head[8:].decode()
    return next((sound for start, sound in _SOUNDS.items() if head.startswith(start)), None)


def _picture(path: Path) -> str | None:
    """The format of a file that holds a single picture, or an animation that FFmpeg does not read."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp":
        return _PICTURE_BRANDS.get(head[8:12].decode("latin-1"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "animated WebP" if b"ANIM" in head else "WebP"
    return next((picture for start, picture in _PICTURES.items() if head.startswith(start)), None)
