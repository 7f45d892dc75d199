"""Frames carry the file's presentation time, whatever the file is like; what is no video is refused."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import av
import numpy as np
import pytest

from capstone_dagster.analysis import UndecodableVideo, frames, probe
from capstone_dagster.analysis.footage.reader import VideoReader

from .conftest import MakeClip

STEADY = [index * 40 for index in range(30)]
VARYING = [0, 40, 80, 500, 540, 1700, 1740, 1780, 3000, 3333, 3400]


def times(path: Path, sample_fps: float = 0) -> list[int]:
    return [frame.pts_ms for frame in frames(path, sample_fps=sample_fps)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mov", {}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.ts", {"format": "mpegts"}),
    ],
)
@pytest.mark.parametrize("shown_ms", [STEADY, VARYING], ids=["steady", "varying"])
@pytest.mark.parametrize("start_ms", [0, 7_000], ids=["from-zero", "from-seven-seconds"])
def test_timestamps_are_those_of_the_container(
    make_clip: MakeClip, name: str, options: dict[str, str], shown_ms: list[int], start_ms: int
) -> None:
    clip = make_clip(name, [start_ms + time_ms for time_ms in shown_ms], **options)
    decoded = list(frames(clip, sample_fps=0))
    assert [frame.index for frame in decoded] == list(range(len(shown_ms)))
    assert [frame.pts_ms for frame in decoded] == shown_ms


def test_a_stream_without_timestamps_is_spaced_by_its_frame_rate(make_clip: MakeClip) -> None:
    assert times(make_clip("a.h264", STEADY, format="h264")) == STEADY


def test_joined_recordings_go_on_where_the_first_ended(make_clip: MakeClip, tmp_path: Path) -> None:
    parts = [make_clip(f"{part}.ts", [part * 90_000 + t for t in STEADY], format="mpegts") for part in (1, 0)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert times(joined) == [index * 40 for index in range(2 * len(STEADY))]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"container_options": {"movflags": "faststart"}}), ("a.mkv", {})],
)
def test_a_truncated_tail_ends_the_video_with_what_there_is(
    make_clip: MakeClip, name: str, options: dict[str, object]
) -> None:
    def scene(index: int) -> list[tuple[str, int, int, int, int]]:
        return [("person", 3 * index, 20, 3 * index + 30, 90)]

    shown_ms = [index * 40 for index in range(50)]
    clip = make_clip(name, shown_ms, scene, **options)
    with VideoReader(clip) as whole:
        complete = list(whole.frames(sample_fps=1))
        assert not whole.damage.truncated
    clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * 0.6)])
    with VideoReader(clip) as cut:
        rest = list(cut.frames(sample_fps=1))
        assert cut.damage.truncated
    assert 0 < len(rest) < len(complete)
    assert [frame.pts_ms for frame in rest] == [frame.pts_ms for frame in complete[: len(rest)]]


def test_damage_in_the_middle_costs_frames_and_not_the_rest(make_clip: MakeClip) -> None:
    clip = make_clip("a.ts", [index * 40 for index in range(400)], format="mpegts")
    content = bytearray(clip.read_bytes())
    third = len(content) // 3
    content[third : third + 4000] = bytes(4000)
    clip.write_bytes(content)
    shown = times(clip)
    assert shown[-1] == 399 * 40
    assert len(shown) > 300
    assert shown == sorted(shown)


def test_frames_that_change_size_keep_the_size_of_the_first(make_clip: MakeClip, tmp_path: Path) -> None:
    parts = [
        make_clip(f"{size[0]}.h264", STEADY, format="h264", size=size) for size in ((192, 128), (320, 240))
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = [frame.image.shape for frame in frames(joined, sample_fps=0) if frame.image is not None]
    assert shapes == [(128, 192, 3)] * (2 * len(STEADY))


def test_motion_is_the_change_of_the_picture(make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", STEADY, lambda index: [("person", 0, 0, 192, 128)] if index >= 20 else ())
    motion = [frame.motion for frame in frames(clip, sample_fps=1)]
    assert motion[0] == 0
    assert np.argmax(motion) == 20
    assert 0.05 < motion[20] <= 1
    assert max(*motion[:20], *motion[21:]) < 0.01


def test_an_animated_picture_is_a_video(make_clip: MakeClip) -> None:
    clip = make_clip("a.gif", [index * 100 for index in range(10)], codec="gif")
    assert times(clip) == [index * 100 for index in range(10)]


def test_probe_tells_what_the_container_says(make_clip: MakeClip) -> None:
    info = probe(make_clip("a.mp4", STEADY, metadata={"creation_time": "2025-05-26T19:37:26+09:00"}))
    assert (info.width, info.height, info.codec) == (192, 128, "h264")
    assert info.fps == pytest.approx(25)
    assert info.duration_ms == 1200
    assert info.frame_count == 30
    assert info.creation_time == datetime(2025, 5, 26, 10, 37, 26, tzinfo=UTC)


@pytest.mark.parametrize("tag", [None, "yesterday", "1904-01-01T00:00:00Z"])
def test_an_impossible_creation_time_is_none(make_clip: MakeClip, tag: str | None) -> None:
    # Matroska keeps the text as it is; MP4 would turn it into a number.
    metadata = {} if tag is None else {"creation_time": tag}
    assert probe(make_clip("a.mkv", STEADY, metadata=metadata)).creation_time is None


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"hello world\n" * 50, "not of a known video format"),
        # FFmpeg would play a text file as terminal art ...
        ("text.txt", b"hello world\n" * 50, "not of a known video format"),
        ("error.mp4", b"<!doctype html><html><body>404</body></html>" * 20, "not of a known video format"),
        # ... and would follow these to other files and addresses.
        (
            "list.m3u8",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\na.ts\n#EXT-X-ENDLIST\n",
            "known video format",
        ),
        ("script.mp4", b"ffconcat version 1.0\nfile a.ts\n", "known video format"),
        ("noise.mp4", np.random.default_rng(0).bytes(20_000), "not of a known video format"),
    ],
)
def test_what_is_no_video_is_said_to_be_none(
    make_clip: MakeClip, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    make_clip("a.ts", STEADY, format="mpegts")  # what the play lists name is there to be found
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UndecodableVideo, match=reason) as refusal:
        probe(path)
    assert name in str(refusal.value)
    assert refusal.value.failure_class == "undecodable-video"


def test_a_file_with_sound_only_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    _audio_only(path)
    with pytest.raises(UndecodableVideo, match=r"no video track \(found: audio\)"):
        probe(path)


def test_a_video_without_one_whole_frame_is_undecodable(make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", STEADY, container_options={"movflags": "faststart"})
    content = bytearray(clip.read_bytes())
    pictures = content.index(b"mdat") + 4
    content[pictures:] = bytes(len(content) - pictures)
    clip.write_bytes(content)
    with pytest.raises(UndecodableVideo, match="none of its frames can be decoded"):
        list(frames(clip, sample_fps=5))


def test_a_missing_file_is_not_called_undecodable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    ("stated_ms", "truncated"),
    [(0, False), (400, False), (1200, False), (3_600_000, True)],
    ids=["nothing", "too short", "true", "an hour"],
)
def test_a_stated_duration_is_reported_and_not_believed(
    make_clip: MakeClip, stated_ms: int, truncated: bool
) -> None:
    """Every frame is decoded whatever the header says; one that promises far more is called truncated."""
    clip = make_clip("a.mkv", STEADY)
    content = bytearray(clip.read_bytes())
    field = content.index(b"\x44\x89\x88") + 3  # Matroska's Duration: 8 bytes of floating point, milliseconds
    struct.pack_into(">d", content, field, stated_ms)
    clip.write_bytes(content)
    with VideoReader(clip) as video:
        assert video.info.duration_ms == (stated_ms or None)
        assert [frame.pts_ms for frame in video.frames(sample_fps=1)] == STEADY
        assert video.end_ms == 1200
        assert video.damage.truncated == truncated


@pytest.mark.parametrize("stated", [0, 3, 1_000_000])
def test_a_stated_frame_count_is_reported_and_not_believed(make_clip: MakeClip, stated: int) -> None:
    clip = make_clip("a.avi", STEADY, codec="mpeg4")
    content = bytearray(clip.read_bytes())
    header = content.index(b"strh") + 8
    struct.pack_into("<I", content, header + 32, stated)  # dwLength of the stream
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, stated)  # dwTotalFrames of the file
    clip.write_bytes(content)
    assert probe(clip).frame_count == (stated or None)
    # AVI has no timestamps: places in a grid of 1/1000 s, as the clip was written.
    assert times(clip) == STEADY


def test_one_frame_is_a_video(make_clip: MakeClip) -> None:
    with VideoReader(make_clip("a.mp4", [0])) as video:
        (frame,) = video.frames(sample_fps=5)
        assert (frame.index, frame.pts_ms, frame.motion) == (0, 0, 0)
        assert frame.image is not None
        assert not video.damage.truncated


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_container_without_any_frame_is_undecodable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        container.start_encoding()
    with pytest.raises(UndecodableVideo):
        probe(path)


@pytest.mark.parametrize(
    ("size", "pix_fmt"),
    [((1, 1), "yuv444p"), ((1, 480), "yuv444p"), ((7680, 4320), "yuv420p")],
    ids=["1x1", "1x480", "8K"],
)
def test_pictures_may_be_tiny_and_huge(make_clip: MakeClip, size: tuple[int, int], pix_fmt: str) -> None:
    picture = np.full((size[1], size[0], 3), 120, dtype=np.uint8)
    picture[size[1] // 2 :] = 30
    clip = make_clip("a.mp4", [0, 40], picture=lambda index: picture, size=size, pix_fmt=pix_fmt)
    info = probe(clip)
    assert (info.width, info.height) == size
    shown = list(frames(clip, sample_fps=0, motion_gate=True))
    assert [frame.pts_ms for frame in shown] == [0, 40]
    assert shown[0].image is not None
    assert shown[0].image.shape == picture.shape
    some = np.s_[:: max(1, size[1] // 50), :: max(1, size[0] // 50)]
    assert np.abs(shown[0].image[some].astype(int) - picture[some]).max() <= 8
    assert shown[1].image is None  # nothing changed


def test_hours_of_sparse_frames_keep_their_times_to_the_millisecond(make_clip: MakeClip) -> None:
    """A camera that takes a picture now and then for a day and a half: longer than MPEG-TS can count."""
    shown_ms = [index * 77_777 + index % 3 for index in range(1700)]
    clip = make_clip("a.mkv", shown_ms, size=(16, 16))
    decoded = list(frames(clip, sample_fps=5))
    assert [frame.pts_ms for frame in decoded] == shown_ms
    assert all(frame.image is not None for frame in decoded)
    assert probe(clip).duration_ms == pytest.approx(shown_ms[-1], abs=100_000)


def test_hardware_decoding_that_is_not_there_falls_back_to_software_and_says_so(make_clip: MakeClip) -> None:
    """Where there is a device, it says that instead; frames and times are the same."""
    clip = make_clip("a.mp4", VARYING)
    with VideoReader(clip) as software, VideoReader(clip, hardware=True) as asked:
        assert software.decoder == "software"
        assert asked.decoder == ("nvdec" if Path("/dev/nvidiactl").exists() else "software")
        assert asked.info == software.info
        assert [frame.pts_ms for frame in asked.frames(sample_fps=5)] == VARYING


def test_what_is_no_video_is_refused_alike_when_hardware_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(b"hello world\n" * 50)
    with pytest.raises(UndecodableVideo, match="not of a known video format"):
        VideoReader(path, hardware=True)
