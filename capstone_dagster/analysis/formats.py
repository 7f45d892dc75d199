"""Detections in the formats that other tools read: COCO's JSON and MOTChallenge's text.

Rows go from Parquet to the file a few thousand at a time: a day of video needs no more memory than a minute.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROWS_AT_ONCE = 4096


def write_coco(
    detections: Path,
    frames: Path,
    target: TextIO,
    *,
    width: int,
    height: int,
    video: str,
    labels: Collection[str] | None = None,
) -> int:
    """Write detections as a COCO data set (https://cocodataset.org/#format-data).

    An image is an analysed frame. Its id is the frame's place in the video, counted from 1; `frame_index`,
    from 0, and `pts_ms` stand beside it. Boxes are `[x, y, width, height]` in pixels of the upright source.
    Beyond COCO's own fields an annotation has its `score`, as in COCO's results, and `track_id` if it was
    tracked.

    Args:
        detections, frames: the Parquet files of a pass.
        width, height: of the video's frames.
        video: what images are named after: `<video>/<frame index>.jpg`.
        labels: only these; all by default.

    Returns:
        How many annotations were written.
    """
    info = {"description": f"Detections of {video}", "version": "1.0"}
    target.write(f'{{"info": {_json(info)}, "licenses": [], "images": [')
    analyzed = (row for row in _rows(frames, ("frame_index", "pts_ms", "analyzed")) if row["analyzed"])
    _write_list(
        target,
        (
            {
                "id": row["frame_index"] + 1,
                "file_name": f"{video}/{row['frame_index']:08d}.jpg",
                "width": width,
                "height": height,
                "frame_index": row["frame_index"],
                "pts_ms": row["pts_ms"],
            }
            for row in analyzed
        ),
    )
    target.write('], "annotations": [')
    # Only at the end it is known which labels occurred; JSON does not mind the order.
    categories: dict[str, int] = {}

    def annotations() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(_detections(detections, labels), start=1):
            x, y, w, h = _xywh(row)
            annotation = {
                "id": number,
                "image_id": row["frame_index"] + 1,
                "category_id": categories.setdefault(row["label"], len(categories) + 1),
                "bbox": [x, y, w, h],
                "area": round(w * h, 3),
                "iscrowd": 0,
                "score": round(row["score"], 6),
            }
            yield annotation if row["track_id"] is None else annotation | {"track_id": row["track_id"]}

    written = _write_list(target, annotations())
    named = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    target.write(f'], "categories": {_json(named)}}}\n')
    return written


def write_mot(detections: Path, target: TextIO, *, labels: Collection[str] | None = None) -> int:
    """Write tracked detections as a MOTChallenge result (https://motchallenge.net/instructions/).

    A line is `frame, id, left, top, width, height, confidence, -1, -1, -1`, sorted by frame and id. Frames
    are those of the video, counted from 1, analysed or not. Pixels are counted from 0, as trackers write them
    and TrackEval takes them. The format has no labels, and no place for what is not tracked.

    Returns:
        How many lines were written.
    """
    written = 0
    frame, lines = -1, list[tuple[int, str]]()
    for row in _detections(detections, labels):
        if row["track_id"] is None:
            continue
        if row["frame_index"] != frame:
            target.writelines(line for _, line in sorted(lines))
            frame, lines = row["frame_index"], []
        x, y, w, h = _xywh(row)
        place = f"{x:.3f},{y:.3f},{w:.3f},{h:.3f}"
        lines.append(
            (row["track_id"], f"{frame + 1},{row['track_id']},{place},{row['score']:.6f},-1,-1,-1\n")
        )
        written += 1
    target.writelines(line for _, line in sorted(lines))
    return written


def _detections(path: Path, labels: Collection[str] | None) -> Iterator[Mapping[str, Any]]:
    wanted = None if labels is None else pa.array(sorted(labels), pa.string())
    return _rows(path, None, lambda batch: batch if wanted is None else _only(batch, wanted))


def _only(batch: pa.RecordBatch, labels: pa.Array[Any]) -> pa.RecordBatch:
    return batch.filter(pc.is_in(batch["label"], value_set=labels))


def _rows(
    path: Path, columns: tuple[str, ...] | None, chosen: Any = lambda batch: batch
) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(
            batch_size=_ROWS_AT_ONCE, columns=None if columns is None else list(columns)
        ):
            yield from chosen(batch).to_pylist()


def _xywh(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """To a thousandth of a pixel: what is stored as float32 has no more."""
    return (
        round(row["x1"], 3),
        round(row["y1"], 3),
        round(row["x2"] - row["x1"], 3),
        round(row["y2"] - row["y1"], 3),
    )


def _write_list(target: TextIO, items: Iterator[Mapping[str, Any]]) -> int:
    count = 0
    for count, item in enumerate(items, start=1):
        target.write(("\n" if count == 1 else ",\n") + _json(item))
    return count


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
