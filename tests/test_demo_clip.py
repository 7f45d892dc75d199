"""The demo clip: a real H.264 file, the same bytes every time, and a truth that fits what it shows."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from capstone_dagster.local import clip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[clip.DemoClip, list[float]]:
    """The clip and the progress that was reported while it was made."""
    reported: list[float] = []
    path = tmp_path_factory.mktemp("clip") / "new folder" / "demo.mp4"
    return clip.make_demo_clip(path, progress=reported.append), reported


def test_it_is_h264_720p_at_25_frames_a_second(rendered: tuple[clip.DemoClip, list[float]]) -> None:
    demo, _ = rendered
    with av.open(str(demo.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (1280, 720)
        assert stream.average_rate == 25
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx(np.arange(len(times)) / 25)
    assert 10 <= demo.duration_s <= 20
    assert len(times) / 25 == pytest.approx(demo.duration_s)


def test_progress_rises_to_one_and_nothing_else_is_left_behind(
    rendered: tuple[clip.DemoClip, list[float]],
) -> None:
    demo, reported = rendered
    assert len(reported) > 10
    assert reported == sorted(reported)
    assert reported[-1] == 1.0
    assert [path.name for path in demo.path.parent.iterdir()] == ["demo.mp4"]


def test_two_renderings_are_the_same_upload(
    rendered: tuple[clip.DemoClip, list[float]], tmp_path: Path
) -> None:
    demo, _ = rendered
    again = clip.make_demo_clip(tmp_path / "again.mp4")
    assert again.path.read_bytes() == demo.path.read_bytes()
    assert again.truth == demo.truth


def test_an_interrupted_rendering_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "demo.mp4"
    path.write_bytes(b"the old clip")

    def interrupt(part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip.make_demo_clip(path, progress=interrupt)
    assert path.read_bytes() == b"the old clip"
    assert list(tmp_path.iterdir()) == [path]


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


def test_making_the_clip_loads_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys; from capstone_dagster.local import clip; clip.load_photograph(clip.STREET); "
        "sys.exit(', '.join({'torch', 'ultralytics'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
