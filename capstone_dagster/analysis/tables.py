"""Schemas, writers and readers of an analysis's Parquet files. A writer buffers at most one row group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from .events import Event


def _required(name: str, kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, kind)


FRAMES_SCHEMA = pa.schema(
    [
        _required("frame_index", pa.int32()),
        _required("pts_ms", pa.int64()),
        _required("motion", pa.float32()),
        _required("analyzed", pa.bool_()),
        _required("detections", pa.int16()),
    ]
)
"""One row for each decoded frame. `motion`: see `Frame.motion`, 0 for the first frame."""

DETECTIONS_SCHEMA = pa.schema(
    [
        _required("frame_index", pa.int32()),
        _required("pts_ms", pa.int64()),
        _optional("track_id", pa.int32()),
        _required("label", pa.string()),
        _required("score", pa.float32()),
        _required("x1", pa.float32()),
        _required("y1", pa.float32()),
        _required("x2", pa.float32()),
        _required("y2", pa.float32()),
    ]
)
"""One row for each detection: its box in pixels of the upright source; `track_id` null if untracked."""

_BOX = pa.list_(pa.float64())
_VISIT = pa.struct([("zone", pa.string()), ("entered_ms", pa.int64()), ("dwell_ms", pa.int64())])
_CROSSING = pa.struct([("line", pa.string()), ("at_ms", pa.int64()), ("direction", pa.string())])

EVENTS_SCHEMA = pa.schema(
    [
        _required("event_id", pa.string()),
        _required("analysis_id", pa.string()),
        _required("track_id", pa.int32()),
        _required("label", pa.string()),
        _required("start_ms", pa.int64()),
        _required("end_ms", pa.int64()),
        _required("first_frame", pa.int32()),
        _required("last_frame", pa.int32()),
        _required("sample_interval_ms", pa.float64()),
        _required("detections", pa.int32()),
        _required("best_score", pa.float64()),
        _required("mean_score", pa.float64()),
        _required("best_ms", pa.int64()),
        _required("best_box", _BOX),
        _optional("face_score", pa.float64()),
        _optional("face_box", _BOX),
        _required("truncated_start", pa.bool_()),
        _required("truncated_end", pa.bool_()),
        _required("thumbnail_key", pa.string()),
        _optional("zones", pa.list_(_VISIT)),
        _optional("crossings", pa.list_(_CROSSING)),
    ]
)
"""One row for each event. Boxes are x1, y1, x2, y2 as shares of the frame's width and height (0-1)."""

# Some megabytes of memory and a row group that query engines read well; an hour at 25 frames/s gives six.
_ROWS_PER_GROUP = 16_384
_ROWS_AS_OBJECTS = 1024


class TableWriter:
    """Appends rows to a Parquet file. The file appears under its name only when it is complete."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._schema = schema
        self._buffered = 0
        self._batches: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd")
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                self._partial.replace(self._path)
            else:
                self._writer.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def append(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Adds rows given by column; every column of the schema, all of one length."""
        lengths = {len(columns[name]) for name in self._schema.names}
        if len(lengths) != 1:
            raise ValueError(f"columns of one length were expected, but came lengths {sorted(lengths)}")
        for name, values in self._columns.items():
            values.extend(columns[name])
        added = lengths.pop()
        self.rows += added
        self._buffered += added
        if self._buffered >= _ROWS_AS_OBJECTS:
            self._pack()
        if sum(batch.num_rows for batch in self._batches) >= _ROWS_PER_GROUP:
            self._flush()

    def _pack(self) -> None:
        """Python's numbers and strings, some 500 bytes a row, become columns of some 40."""
        self._batches.append(pa.record_batch(self._columns, schema=self._schema))
        for values in self._columns.values():
            values.clear()
        self._buffered = 0

    def _flush(self) -> None:
        if self._buffered:
            self._pack()
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
            self._batches.clear()


def read_frames(path: Path) -> pa.Table:
    return _read(path, FRAMES_SCHEMA)


def read_detections(path: Path) -> pa.Table:
    return _read(path, DETECTIONS_SCHEMA)


def write_events(path: Path, events: Sequence[Event]) -> None:
    with TableWriter(path, EVENTS_SCHEMA) as writer:
        rows = [asdict(event) for event in events]
        writer.append({name: [row[name] for row in rows] for name in EVENTS_SCHEMA.names})


def read_events(path: Path) -> list[Event]:
    return [Event.of(row) for row in _read(path, EVENTS_SCHEMA, added=2).to_pylist()]


def _read(path: Path, schema: pa.Schema, *, added: int = 0) -> pa.Table:
    """A file of this schema, or of the one before its last columns were added; these are null then."""
    table = pq.read_table(path)
    if added and table.num_columns == len(schema) - added:
        for field in list(schema)[-added:]:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    if not table.schema.equals(schema):
        raise ValueError(f"{path} was expected to have the columns\n{schema}\nbut has\n{table.schema}")
    return table
