"""Detections as COCO and as MOT: what their readers need, whatever the video holds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.accuracy import _read_truth
from bench.tracking_scores import Boxes, track_scores
from capstone_dagster.analysis import DETECTIONS_SCHEMA, FRAMES_SCHEMA
from capstone_dagster.analysis.formats import write_coco, write_mot

# frame, track, label, score, box
Row = tuple[int, int | None, str, float, tuple[float, float, float, float]]
WALK: list[Row] = [
    (0, 2, "person", 1.0, (10.0, 20.0, 30.5, 60.25)),
    (0, 1, "person", 1.0, (100.0, 20.0, 130.0, 90.0)),
    (0, None, "person", 1.0, (5.0, 5.0, 9.0, 9.0)),
    (2, 1, "person", 1.0, (104.0, 20.0, 134.0, 90.0)),
    (2, 1, "face", 1.0, (110.0, 22.0, 120.0, 32.0)),
    (4, 1, "person", 1.0, (108.0, 20.0, 138.0, 90.0)),
]


def write(folder: Path, rows: list[Row], frames: int = 6, step: int = 2) -> tuple[Path, Path]:
    columns: dict[str, list[Any]] = {
        "frame_index": [row[0] for row in rows],
        "pts_ms": [row[0] * 40 for row in rows],
        "track_id": [row[1] for row in rows],
        "label": [row[2] for row in rows],
        "score": [row[3] for row in rows],
    }
    for place, name in enumerate(("x1", "y1", "x2", "y2")):
        columns[name] = [row[4][place] for row in rows]
    detections, decoded = folder / "detections.parquet", folder / "frames.parquet"
    pq.write_table(pa.table(columns, schema=DETECTIONS_SCHEMA), detections)
    table = {
        "frame_index": range(frames),
        "pts_ms": [index * 40 for index in range(frames)],
        "motion": [0.0] * frames,
        "analyzed": [index % step == 0 for index in range(frames)],
        "detections": [0] * frames,
    }
    pq.write_table(pa.table({name: list(of) for name, of in table.items()}, schema=FRAMES_SCHEMA), decoded)
    return detections, decoded


def coco(detections: Path, frames: Path, **options: Any) -> dict[str, Any]:
    target = io.StringIO()
    written = write_coco(detections, frames, target, width=160, height=120, video="gate-1", **options)
    data: dict[str, Any] = json.loads(target.getvalue())
    assert written == len(data["annotations"])
    return data


def assert_coco(data: dict[str, Any], width: int, height: int) -> None:
    """What pycocotools and its kin take for granted."""
    assert set(data) == {"info", "licenses", "images", "annotations", "categories"}
    for kind in ("images", "annotations", "categories"):
        ids = [each["id"] for each in data[kind]]
        assert len(set(ids)) == len(ids)
        assert all(isinstance(each, int) and each > 0 for each in ids)
    images = {each["id"] for each in data["images"]}
    categories = {each["id"] for each in data["categories"]}
    assert all((each["width"], each["height"]) == (width, height) for each in data["images"])
    assert len({each["file_name"] for each in data["images"]}) == len(images)
    assert all({"name", "supercategory"} <= set(each) for each in data["categories"])
    for each in data["annotations"]:
        assert each["image_id"] in images
        assert each["category_id"] in categories
        x, y, w, h = each["bbox"]
        assert x >= 0
        assert y >= 0
        assert w >= 0
        assert h >= 0
        assert each["area"] == pytest.approx(w * h, abs=1e-3)
        assert each["iscrowd"] == 0
        assert 0 <= each["score"] <= 1


def test_coco_has_every_analysed_frame_and_every_detection(tmp_path: Path) -> None:
    data = coco(*write(tmp_path, WALK))

    assert_coco(data, 160, 120)
    assert [(image["id"], image["frame_index"], image["pts_ms"]) for image in data["images"]] == [
        (1, 0, 0),
        (3, 2, 80),
        (5, 4, 160),
    ]
    assert data["images"][0]["file_name"] == "gate-1/00000000.jpg"
    assert {each["name"]: each["id"] for each in data["categories"]} == {"person": 1, "face": 2}
    assert len(data["annotations"]) == 6
    assert data["annotations"][0]["bbox"] == [10.0, 20.0, 20.5, 40.25]
    assert [each.get("track_id") for each in data["annotations"]] == [2, 1, None, 1, 1, 1]
    assert "track_id" not in data["annotations"][2]


def test_coco_of_one_label_and_of_nothing(tmp_path: Path) -> None:
    files = write(tmp_path, WALK)
    faces = coco(*files, labels=["face"])
    assert [each["category_id"] for each in faces["annotations"]] == [1]
    assert [each["name"] for each in faces["categories"]] == ["face"]

    nothing = coco(*write(tmp_path, []))
    assert_coco(nothing, 160, 120)
    assert (len(nothing["images"]), nothing["annotations"], nothing["categories"]) == (3, [], [])


def test_mot_is_read_back_by_the_benchmarks_reader_as_the_same_tracks(tmp_path: Path) -> None:
    detections, _ = write(tmp_path, WALK)
    target = tmp_path / "mot.txt"
    with target.open("w") as file:
        assert write_mot(detections, file, labels=["person"]) == 4

    assert target.read_text().splitlines()[0] == "1,1,100.000,20.000,30.000,70.000,1.000000,-1,-1,-1"
    assert [line.split(",")[:2] for line in target.read_text().splitlines()] == [
        ["1", "1"],
        ["1", "2"],
        ["3", "1"],
        ["5", "1"],
    ]
    read = _read_truth(target, 5, (1.0, 1.0))
    stored = [
        Boxes(
            np.array([row[1] for row in WALK if row[0] == index and row[1] and row[2] == "person"], np.int64),
            np.array(
                [row[4] for row in WALK if row[0] == index and row[1] and row[2] == "person"], np.float64
            ).reshape(-1, 4),
        )
        for index in range(5)
    ]
    scores = track_scores(stored, read)
    assert (scores["mota"], scores["idf1"], scores["switches"]) == (1.0, 1.0, 0)


def test_large_tables_are_written_whole(tmp_path: Path) -> None:
    """More rows than are in memory at once."""
    rows: list[Row] = [(index, 1, "person", 0.5, (1.0, 2.0, 3.0, 4.0)) for index in range(10_000)]
    files = write(tmp_path, rows, frames=10_000, step=1)

    data = coco(*files)
    mot = io.StringIO()
    write_mot(files[0], mot)

    assert [each["image_id"] for each in data["annotations"]] == list(range(1, 10_001))
    assert [int(line.split(",")[0]) for line in mot.getvalue().splitlines()] == list(range(1, 10_001))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 2, 4]),
            st.one_of(st.none(), st.integers(1, 9)),
            st.text(min_size=1, max_size=8),
            st.floats(0, 1, width=32),
            st.tuples(*[st.floats(0, 50, width=32)] * 2, *[st.floats(50, 120, width=32)] * 2),
        ),
        max_size=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_coco_is_valid_whatever_was_detected(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    files = write(tmp_path_factory.mktemp("coco"), sorted(rows, key=lambda row: row[0]))
    data = coco(*files)
    assert_coco(data, 160, 120)
    assert len(data["annotations"]) == len(rows)
