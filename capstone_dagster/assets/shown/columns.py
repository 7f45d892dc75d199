"""Columns, rows and places of tables, as Dagster's catalog shows them: taken from the code's own schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

Metadata = dict[str, Any]

# By name: a column means the same in each table that has it. docs/consume.md says more of those of `events`.
_MEANINGS = {
    "frame_index": "number of the frame, from 0",
    "pts_ms": "time of the frame by the container's timestamps, ms from the first frame",
    "motion": "mean absolute difference of brightness to the frame before, 0 to 1",
    "analyzed": "whether the detector has seen the frame",
    "detections": "number of detections: in the frame, or of the event",
    "track_id": "track within the video; null if untracked",
    "label": "person or face",
    "score": "score of the detection, 0 to 1",
    "x1": "left edge of the box, pixels of the upright source",
    "y1": "top edge of the box, likewise",
    "x2": "right edge of the box, likewise",
    "y2": "bottom edge of the box, likewise",
    "event_id": "the event: one continuous appearance of a person or face",
    "analysis_id": "the analysis that found it",
    "video_id": "the video; also its partition",
    "camera": "the camera; unknown if no source names one",
    "start_ms": "start of the event, ms from the video's first frame",
    "end_ms": "end of the event, likewise",
    "started_at": "wall-clock time of the start; null if the recording's start is unknown",
    "ended_at": "wall-clock time of the end, likewise",
    "first_frame": "number of the event's first frame",
    "last_frame": "number of its last frame",
    "sample_interval_ms": "interval between analysed frames: the precision of start and end",
    "best_score": "highest score, 0 to 1",
    "mean_score": "mean score, 0 to 1",
    "best_ms": "time of the best detection, ms from the video's first frame",
    "best_box": "box of the best detection: x1, y1, x2, y2 as fractions of the frame",
    "face_score": "score of a face seen with the person; null without one",
    "face_box": "box of that face, as best_box",
    "truncated_start": "whether it was present when the video began",
    "truncated_end": "whether it was present when the video ended",
    "thumbnail_key": "its picture, under CAPSTONE_DERIVED_URL",
    "zones": "zones that it was in, with entry and dwell time",
    "crossings": "lines that it crossed, with time and direction",
    "hour": "start of the hour, wall clock in CAPSTONE_TIMEZONE",
    "events": "events that began in the hour",
    "persons": "events with label person",
    "faces": "events of a face, or of a person whose face was seen",
}


def parquet_columns(schema: pa.Schema) -> dg.TableSchema:
    """The schema of a Parquet file."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                str(field.type),
                _MEANINGS[field.name],
                dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def sql_columns(table: sa.Table) -> dg.TableSchema:
    """The schema of a table in PostgreSQL."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                column.type.compile(dialect).lower(),
                _MEANINGS[column.name],
                dg.TableColumnConstraints(nullable=bool(column.nullable), unique=column.primary_key),
            )
            for column in table.columns
        ]
    )


def csv_columns(types: Mapping[str, str]) -> dg.TableSchema:
    """The schema of a CSV file: names to types."""
    return dg.TableSchema([dg.TableColumn(name, kind, _MEANINGS[name]) for name, kind in types.items()])


def of_asset(schema: dg.TableSchema, *, table: str | None = None) -> Metadata:
    """Of an asset's definition.

    Args:
        table: the name under which a database has it.
    """
    return {"dagster/column_schema": schema, **({"dagster/table_name": table} if table else {})}


def of_materialization(*, rows: int, uri: str) -> Metadata:
    """Of one materialisation: how many rows it has, and where they are."""
    return {"dagster/row_count": rows, "dagster/uri": uri}
