"""Pictures are what a viewer sees: upright, with square pixels, whole, in the colours of other readers."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.filter import Graph
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.analysis import UndecodableVideo, frames, probe
from capstone_dagster.analysis.footage.pixels import LUMA_SIZE, BgrReader, LumaReader
from capstone_dagster.analysis.footage.video import Image

from .conftest import COLOURS, MakeClip

STEADY = [index * 40 for index in range(12)]


def images(path: Path) -> list[Image]:
    return [frame.image for frame in frames(path, sample_fps=0) if frame.image is not None]


@pytest.mark.parametrize(
    ("degrees", "size", "rows", "columns"),
    [
        (0, (192, 128), slice(0, 24), slice(0, 24)),
        (90, (128, 192), slice(0, 24), slice(-24, None)),
        (180, (192, 128), slice(-24, None), slice(-24, None)),
        (270, (128, 192), slice(-24, None), slice(0, 24)),
    ],
)
def test_rotation_metadata_is_honoured(
    make_clip: MakeClip, degrees: int, size: tuple[int, int], rows: slice, columns: slice
) -> None:
    """A marker in the corner of a sensor that lay on its side must land where an upright viewer sees it."""
    clip = make_clip("phone.mp4", STEADY, lambda index: [("person", 0, 0, 32, 32)])
    _write_display_matrix(clip, degrees)
    info = probe(clip)
    assert (info.width, info.height) == size
    image = images(clip)[0]
    assert image.shape == (size[1], size[0], 3)
    assert np.abs(image[rows, columns].astype(int) - COLOURS["person"]).max() < 60


def _write_display_matrix(mp4: Path, degrees_clockwise: int) -> None:
    """As a phone does: the rotation stands in the track header, the pictures stay as the sensor saw them."""
    turns = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = turns[degrees_clockwise]
    content = bytearray(mp4.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes stand before the matrix
    one = 1 << 16
    struct.pack_into(">9i", content, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    mp4.write_bytes(content)


@pytest.mark.parametrize(
    ("pixel_aspect", "size"),
    [
        (Fraction(4, 3), (256, 128)),
        (Fraction(64, 45), (273, 128)),
        (Fraction(8, 9), (192, 144)),
        (Fraction(1), (192, 128)),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_anamorphic_video_has_square_pixels(
    make_clip: MakeClip, name: str, pixel_aspect: Fraction, size: tuple[int, int]
) -> None:
    """A square on the display is one in the picture, and where the picture is the boxes are."""
    across, down = round(48 / max(pixel_aspect, 1)), round(48 * min(pixel_aspect, 1))
    clip = make_clip(
        name,
        STEADY,
        lambda index: [("person", 0, 0, across, down)],
        sample_aspect_ratio=pixel_aspect,
    )
    info = probe(clip)
    assert (info.width, info.height) == size
    image = images(clip)[0]
    assert image.shape == (size[1], size[0], 3)
    red = np.abs(image.astype(int) - COLOURS["person"]).max(axis=2) < 60
    assert red.any(axis=0).sum() == pytest.approx(48, abs=3)
    assert red.any(axis=1).sum() == pytest.approx(48, abs=3)


@pytest.mark.parametrize(
    ("pixel_aspect", "size"),
    [
        (None, (720, 576)),
        (Fraction(1), (720, 576)),
        (Fraction(64, 45), (1024, 576)),
        (Fraction(8, 9), (720, 648)),
        (Fraction(1001, 1000), (720, 576)),  # somebody's rounding
        (Fraction(200), (720, 576)),  # no camera's
        (Fraction(1, 200), (720, 576)),
        (Fraction(0), (720, 576)),
    ],
)
def test_pixel_aspects_that_cannot_be_meant_are_ignored(
    pixel_aspect: Fraction | None, size: tuple[int, int]
) -> None:
    reader = BgrReader(av.VideoFrame(720, 576, "yuv420p"), pixel_aspect)
    assert (reader.width, reader.height) == size


def test_anamorphic_video_of_a_turned_camera_is_stretched_before_it_is_turned(make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", STEADY, sample_aspect_ratio=Fraction(4, 3))
    _write_display_matrix(clip, 90)
    assert images(clip)[0].shape == (256, 128, 3)


def _woven(index: int) -> Image:
    """A bar that moves between the two moments a frame was filmed at: odd lines show it further right."""
    image = np.full((128, 192, 3), 120, dtype=np.uint8)
    for field, lines in ((2 * index, slice(0, None, 2)), (2 * index + 1, slice(1, None, 2))):
        image[lines, 10 + 5 * field : 40 + 5 * field] = COLOURS["person"]
    return image


def _combing(image: Image) -> float:
    """How much lines differ from both their neighbours, in values of luma."""
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(int)
    return float(np.abs(2 * gray[1:-1] - gray[:-2] - gray[2:]).mean())


INTERLACED = {"x264-params": "tff=1"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"codec_options": INTERLACED}),
        ("a.ts", {"codec_options": INTERLACED, "format": "mpegts"}),
        ("a.avi", {"codec": "mpeg4", "codec_options": {"flags": "+ilme+ildct", "qmin": "1", "qmax": "2"}}),
    ],
)
def test_interlaced_frames_become_whole_pictures_and_keep_their_times(
    make_clip: MakeClip, name: str, options: dict[str, object]
) -> None:
    woven = make_clip(name, STEADY, picture=_woven, **options)
    shown = list(frames(woven, sample_fps=0))
    assert [frame.pts_ms for frame in shown] == STEADY
    combed = [_combing(image) for image in _as_coded(woven)]
    assert min(combed) > 1
    # Not the outermost frames: the filter has one neighbour only to compare those with.
    assert max(_combing(frame.image) for frame in shown[1:-1] if frame.image is not None) < min(combed) / 5


def test_progressive_frames_are_left_alone(make_clip: MakeClip) -> None:
    """Fine lines are detail where a frame does not say that it is interlaced."""
    clip = make_clip("a.mp4", STEADY, picture=_woven)
    assert all(
        np.array_equal(ours, theirs) for ours, theirs in zip(images(clip), _as_coded(clip), strict=True)
    )


def test_recordings_may_switch_between_interlaced_and_progressive(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    kinds = [{}, INTERLACED, {}, INTERLACED]
    parts = [
        make_clip(
            f"{index}.ts",
            [600 * index + time_ms for time_ms in STEADY],
            picture=_woven,
            format="mpegts",
            codec_options=options,
        )
        for index, options in enumerate(kinds)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shown = list(frames(joined, sample_fps=0))
    assert len(shown) == len(kinds) * len(STEADY)
    times_ms = [frame.pts_ms for frame in shown]
    assert times_ms == sorted(set(times_ms))
    for part, options in enumerate(kinds):
        middle = shown[part * len(STEADY) + 5].image
        assert middle is not None
        assert (_combing(middle) < 0.3) == bool(options)


def test_interlaced_frames_that_change_size_all_come_out(make_clip: MakeClip, tmp_path: Path) -> None:
    parts = [
        make_clip(f"{size[0]}.h264", STEADY, format="h264", size=size, codec_options=INTERLACED)
        for size in ((192, 128), (320, 240))
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shown = list(frames(joined, sample_fps=0))
    assert [frame.pts_ms for frame in shown] == [index * 40 for index in range(2 * len(STEADY))]
    assert {frame.image.shape for frame in shown if frame.image is not None} == {(128, 192, 3)}


def test_one_interlaced_frame_is_a_video(make_clip: MakeClip) -> None:
    assert len(images(make_clip("a.mp4", [0], picture=_woven, codec_options=INTERLACED))) == 1


def _as_coded(path: Path) -> list[Image]:
    """What a plain decoder gives."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


BT709 = {"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"codec_options": BT709}),
        ("a.mp4", {"codec_options": {"x264-params": BT709["x264-params"] + ":fullrange=on"}}),
        ("a.mp4", {"pix_fmt": "yuvj420p"}),
        ("a.mp4", {"pix_fmt": "yuv422p"}),
        ("a.mp4", {"pix_fmt": "yuv444p", "size": (191, 127)}),
        ("a.mp4", {"pix_fmt": "yuv420p10le"}),
        ("a.mp4", {"pix_fmt": "gray", "codec_options": {"x264-params": "colorprim=bt709"}}),
        (
            "a.mp4",
            {"codec": "libx265", "pix_fmt": "yuv420p12le", "codec_options": {"x265-params": "log-level=0"}},
        ),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p16le"}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuva420p"}),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj444p"}),
        ("a.avi", {"codec": "rawvideo", "pix_fmt": "bgr24"}),  # lines from the bottom up
        ("a.mov", {"codec": "png", "pix_fmt": "rgb24", "size": (33, 17)}),
        ("a.webm", {"codec": "libvpx-vp9", "size": (97, 53)}),
    ],
)
def test_colours_and_motion_are_right_in_every_pixel_format(
    make_clip: MakeClip, name: str, options: dict[str, object]
) -> None:
    """Colours are those of OpenCV's reader, which Ultralytics uses; motion does not depend on the coding."""
    width, height = options.get("size", (192, 128))  # type: ignore[misc]
    half = [("person", 0, 0, width // 2, height)]
    clip = make_clip(name, STEADY, lambda index: half if index >= 6 else (), **options)
    shown = list(frames(clip, sample_fps=0))
    reader = cv2.VideoCapture(str(clip))
    for frame in shown:
        known, theirs = reader.read()
        assert known
        assert frame.image is not None
        assert np.abs(frame.image.astype(int) - theirs).max() <= 2
    assert not reader.read()[0]
    # Half of the picture goes from grey 120 to a red of luma 98 (BT.601) or 77 (BT.709).
    assert 0.035 < shown[6].motion < 0.1
    assert max(frame.motion for frame in shown[1:6] + shown[7:]) < 0.01


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 300)),
    pix_fmt=st.sampled_from(
        [
            "yuv420p",
            "yuvj422p",
            "yuv410p",
            "nv12",
            "gray",
            "yuv444p10le",
            "p010le",
            "gray16le",
            "rgb24",
            "bgra",
            "rgb0",
        ]
    ),
    value=st.integers(0, 255),
)
def test_luma_is_the_same_small_picture_whatever_the_format(
    size: tuple[int, int], pix_fmt: str, value: int
) -> None:
    image = np.full((size[1], size[0], 3), value, dtype=np.uint8)
    coded = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=pix_fmt, threads=1)
    luma = LumaReader().read(coded)
    assert luma.image.shape == LUMA_SIZE[::-1]
    assert luma.image.dtype == np.uint8
    black = 16 if luma.span == 219 else 0
    assert np.abs((luma.image.astype(float) - black) / luma.span * 255 - value).max() <= 3


def test_pictures_larger_than_any_camera_takes_are_refused(make_clip: MakeClip) -> None:
    """A file of some bytes may claim any size; FFmpeg by itself would go up to 268 million pixels."""
    clip = make_clip("a.gif", STEADY, codec="gif")
    content = bytearray(clip.read_bytes())
    struct.pack_into("<HH", content, 6, 12_000, 12_000)
    clip.write_bytes(content)
    with pytest.raises(UndecodableVideo, match="12000 × 12000 pixels"):
        probe(clip)


def test_luma_of_lines_stored_from_the_bottom_up() -> None:
    """Some codecs do that; FFmpeg's flip filter does the same to any frame."""
    image = np.zeros((180, 320, 3), dtype=np.uint8)
    image[:60] = 255
    graph = Graph()
    upright = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="yuv420p", threads=1)
    graph.link_nodes(
        graph.add_buffer(width=320, height=180, format=upright.format, time_base=Fraction(1, 1000)),
        graph.add("vflip"),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(upright)
    flipped = graph.vpull()
    assert flipped.planes[0].line_size < 0
    luma = LumaReader().read(flipped)
    assert luma.image[:115].max() <= 2
    assert luma.image[125:].min() >= 253
