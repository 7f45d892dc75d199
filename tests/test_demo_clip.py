"""The demo clip of the package: H.264, what `bench/detector/clip.py` renders, and a truth that fits it."""

from itertools import islice

import av
import numpy as np
import pytest

from bench.detector import clip
from capstone_dagster.local.clip import DEMO_CLIP, PEOPLE_MS


def test_it_is_h264_720p_at_25_frames_a_second() -> None:
    with av.open(str(DEMO_CLIP)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (clip.WIDTH, clip.HEIGHT)
        assert stream.average_rate == clip.FPS
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx(np.arange(clip.FRAMES) / clip.FPS)


def test_it_shows_what_is_rendered_at_the_times_that_are_known() -> None:
    """A frame a second. A neighbour in its place would differ by far more than compression makes it."""
    pictures = {
        photograph.file: clip.load_photograph(photograph) for photograph in (clip.STREET, clip.TOUCHLINE)
    }
    with av.open(str(DEMO_CLIP)) as container:
        for shown, rendered in islice(
            zip(container.decode(video=0), clip.frames(pictures), strict=True), 0, None, clip.FPS
        ):
            difference = np.abs(shown.to_ndarray(format="bgr24").astype(int) - rendered)
            assert difference.mean() < 4
    people = [(each.start_ms, each.end_ms) for each in clip.truth() if each.label == "person"]
    assert tuple(people) == PEOPLE_MS


def test_truth_names_six_people_and_four_faces_within_the_clip() -> None:
    truth = clip.truth()
    assert len({p.subject for p in truth if p.label == "person"}) == 6
    assert len({p.subject for p in truth if p.label == "face"}) == 4
    for presence in truth:
        assert 0 < presence.start_ms < presence.end_ms < clip.DURATION_MS - clip.FRAME_MS
        assert presence.end_ms - presence.start_ms >= 1000, "too short to be seen at 5 frames a second"


def test_truth_is_what_the_camera_sees() -> None:
    """Presences and single moments are two readings of one path: they agree at every frame."""
    truth = clip.truth()
    for now in range(0, clip.DURATION_MS, clip.FRAME_MS):
        seen = {(v.subject.label, v.subject.name) for v in clip.visible_at(now) if v.present}
        assert seen == {(p.label, p.subject) for p in truth if p.start_ms <= now <= p.end_ms}


@pytest.mark.parametrize(("start_ms", "end_ms"), [(0, 1000), (9200, 10400), (17000, clip.DURATION_MS)])
def test_nobody_is_in_the_frame_at_the_beginning_at_the_cut_and_at_the_end(
    start_ms: int, end_ms: int
) -> None:
    for now in range(start_ms, end_ms, clip.FRAME_MS):
        assert clip.visible_at(now) == ()


def test_the_camera_never_leaves_its_photograph_and_never_jumps() -> None:
    """Outside there is nothing to show; a jump would be something no tracker can follow."""
    previous = clip.camera_at(0)
    for now in range(0, clip.DURATION_MS, clip.FRAME_MS):
        view = clip.camera_at(now)
        half_width, half_height = view.width / 2, view.width * clip.HEIGHT / clip.WIDTH / 2
        assert half_width <= view.cx <= view.photograph.width - half_width
        assert half_height <= view.cy <= view.photograph.height - half_height
        if view.photograph is previous.photograph:
            step = max(abs(view.cx - previous.cx), abs(view.cy - previous.cy)) * view.scale
            assert step < clip.HEIGHT / 15
        previous = view


def test_a_box_lands_on_the_pixels_it_names() -> None:
    """Draw a mark into a picture and find it where `to_frame` says it is."""
    picture = np.zeros((clip.STREET.height, clip.STREET.width, 3), np.uint8)
    picture[500:520, 300:340] = 255
    view = clip.View(clip.STREET, 350, 520, 400)
    ys, xs = np.nonzero(clip.render_view(picture, view)[:, :, 0] > 127)
    found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert found == pytest.approx(view.to_frame((300, 500, 340, 520)), abs=1.5)
