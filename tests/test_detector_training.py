"""How the embedded detector is trained and measured: labels stay on what they name, scores are right."""

import numpy as np
import pytest

from bench.detector import clip
from bench.detector.evaluate import match, ratios
from bench.detector.pictures import (
    SQUARE,
    WIDE,
    Cutout,
    Labelled,
    crop,
    fit_whole,
    hide,
    paste,
)
from bench.detector.teachers import FACE, PERSON, Labels
from bench.detector.train import agreed


def bright_box(picture: np.ndarray) -> np.ndarray:
    """xyxy of all pixels that are nearly white."""
    ys, xs = np.nonzero(picture.min(axis=2) > 200)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize("shape", [SQUARE, WIDE])
@pytest.mark.parametrize("seed", range(12))
def test_a_crop_moves_boxes_with_the_pixels(seed: int, shape: tuple[int, int]) -> None:
    picture = np.zeros((432, 768, 3), np.uint8)
    picture[100:260, 300:380] = 255
    item = Labelled(picture, np.array([PERSON]), np.array([[300, 100, 380, 260]], np.float32))
    out = crop(item, np.random.default_rng(seed), shape)
    assert out.picture.shape == (*shape, 3)
    if len(out.boxes):  # otherwise the crop shows too little of it to be taught
        assert bright_box(out.picture) == pytest.approx(out.boxes[0], abs=2)


@pytest.mark.parametrize("size", [(360, 640), (480, 640), (1080, 810)])
def test_a_whole_frame_is_padded_as_the_detector_gets_it(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[100:260, 300:380] = 255
    item = Labelled(picture, np.array([PERSON]), np.array([[300, 100, 380, 260]], np.float32))
    out = fit_whole(item, WIDE)
    assert out.picture.shape == (*WIDE, 3)
    assert bright_box(out.picture) == pytest.approx(out.boxes[0], abs=2)
    assert np.ptp(out.boxes[0][::2]) / np.ptp(out.boxes[0][1::2]) == pytest.approx(80 / 160, rel=0.1)


def test_a_crop_without_padding_shows_the_scene_only() -> None:
    scene = Labelled(np.full((270, 480, 3), 7, np.uint8), np.zeros(0, int), np.zeros((0, 4), np.float32))
    for seed in range(20):
        out = crop(scene, np.random.default_rng(seed), fill=True)
        assert (out.picture == 7).all()


def test_pasted_people_are_where_their_labels_say() -> None:
    empty = Labelled(np.zeros((*SQUARE, 3), np.uint8), np.zeros(0, int), np.zeros((0, 4), np.float32))
    figure = np.full((120, 50, 3), 255, np.uint8)
    whole = np.array([[0, 0, 50, 120], [15, 5, 35, 30]], np.float32)
    person = Cutout(figure, np.ones((120, 50), np.float32), np.array([PERSON, FACE]), whole)
    shown = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = paste(empty, [person], rng)
        if PERSON in out.classes and out.picture.max() > 220:
            shown += 1
            assert bright_box(out.picture) == pytest.approx(out.boxes[0], abs=3)
    assert shown >= 5


def test_what_is_hidden_cannot_be_recognised() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    out = hide(noise, np.array([[50, 50, 150, 150]]))
    assert out[60:140, 60:140].std() < 0.1 * noise[60:140, 60:140].std()
    assert (out[:30] == noise[:30]).all()


@pytest.mark.parametrize(
    ("found", "scores", "truth", "doubtful", "expected"),
    [
        pytest.param([], [], [[0, 0, 10, 10]], [], [], id="nothing found"),
        pytest.param([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 12]], [], [(0.9, True)], id="found"),
        pytest.param([[0, 0, 10, 10]], [0.9], [[6, 6, 16, 16]], [], [(0.9, False)], id="too far away"),
        pytest.param([[0, 0, 10, 10]], [0.9], [], [[0, 0, 10, 10]], [], id="doubtful counts for nothing"),
        pytest.param(
            [[0, 0, 10, 10], [0, 0, 10, 11]],
            [0.4, 0.8],
            [[0, 0, 10, 10]],
            [],
            [(0.8, True), (0.4, False)],
            id="a second box of the same person is wrong",
        ),
    ],
)
def test_detections_are_matched_once_and_best_first(
    found: list[list[int]],
    scores: list[float],
    truth: list[list[int]],
    doubtful: list[list[int]],
    expected: list[tuple[float, bool]],
) -> None:
    boxes = [np.array(b, np.float32).reshape(-1, 4) for b in (found, truth, doubtful)]
    assert match(boxes[0], np.array(scores), boxes[1], boxes[2]) == expected


def test_precision_recall_and_average_precision_by_hand() -> None:
    answers = [(0.9, True), (0.8, False), (0.6, True), (0.1, True)]
    precision, recall, ap = ratios(answers, boxes=4)
    assert precision == pytest.approx(2 / 3)
    assert recall == pytest.approx(2 / 4)  # the one scored 0.1 is below the threshold
    assert ap == pytest.approx((1 + 3 / 4 + 3 / 4) / 4)
    assert ratios([], boxes=0) == (None, None, None)
    assert ratios([], boxes=3) == (None, 0.0, 0.0)


def test_a_view_that_the_teachers_and_the_truth_see_differently_is_not_taught() -> None:
    view = clip.View(clip.STREET, 405, 625, 806)
    picture = np.zeros((360, 640, 3), np.uint8)
    true = [(PERSON, np.array(v.box) / 2) for v in clip.visible_in(view) if v.subject.label == "person"]
    agreeing = agreed(picture, Labels.of(true, []), clip.visible_in(view))
    assert agreeing is not None
    assert sorted(agreeing.classes) == [PERSON] * 4 + [FACE] * 2
    stranger = (PERSON, np.array([300, 10, 340, 90]))
    assert agreed(picture, Labels.of([*true, stranger], []), clip.visible_in(view)) is None


def test_a_teachers_box_goes_to_whom_it_fits_best() -> None:
    """Close to the man watching, the clipped rest of the man pointing overlaps his box, and is nobody."""
    view = clip.View(clip.TOUCHLINE, 1010, 185, 540)
    picture = np.zeros((360, 640, 3), np.uint8)
    watching = next(v for v in clip.visible_in(view) if v.present and v.subject.label == "person")
    item = agreed(picture, Labels.of([(PERSON, np.array(watching.box) / 2)], []), clip.visible_in(view))
    assert item is not None
    assert sorted(item.classes) == [PERSON, FACE]
    assert item.boxes[item.classes == PERSON][0] == pytest.approx(np.array(watching.box) / 2)
