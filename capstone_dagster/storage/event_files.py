"""Events as CSV, JSON and Parquet files, a portion of rows at a time."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from capstone_dagster.storage.schema import events as table

# What the columns of JSON hold lists of.
_ENTRIES: Mapping[str, Mapping[str, pa.DataType]] = {
    "zones": {"zone": pa.string(), "entered_ms": pa.int64(), "dwell_ms": pa.int64()},
    "crossings": {"line": pa.string(), "at_ms": pa.int64(), "direction": pa.string()},
}
Portions = Iterator[Sequence[tuple[Any, ...]]]
# What spreadsheets take for a formula's first character, its full-width forms and leading blanks included.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def _write_csv(
    path: Path, columns: Sequence[str], portions: Portions, *, text: Callable[[str], str] = str
) -> int:
    """Write CSV with a header.

    Args:
        text: what becomes of a text.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for portion in portions:
            writer.writerows(
                [text(value) if isinstance(value, str) else _cell(value) for value in row] for row in portion
            )
            rows += len(portion)
    return rows


def _write_json(path: Path, columns: Sequence[str], portions: Portions) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for portion in portions:
            for row in portion:
                file.write(",\n" if rows else "\n")
                file.write(_json_object(columns, row))
                rows += 1
        file.write("\n]\n")
    return rows


def _json_object(columns: Sequence[str], row: Sequence[Any]) -> str:
    return json.dumps(dict(zip(columns, row, strict=True)), default=datetime.isoformat, ensure_ascii=False)


def _write_parquet(path: Path, columns: Sequence[str], portions: Portions) -> int:
    rows = 0
    schema = _parquet_schema(columns)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for portion in portions:
            values = dict(zip(columns, zip(*portion, strict=True), strict=True))
            writer.write_batch(pa.record_batch({name: list(values[name]) for name in columns}, schema=schema))
            rows += len(portion)
    return rows


def _parquet_schema(columns: Sequence[str]) -> pa.Schema:
    """By what the columns are in PostgreSQL, also where there is no row to guess from."""

    def kind(name: str) -> pa.DataType:
        column = table.c[name].type if name in table.c else sa.Text()
        if isinstance(column, ARRAY):
            return pa.list_(pa.float64())
        if isinstance(column, sa.DateTime):
            return pa.timestamp("us", tz="UTC")
        if isinstance(column, sa.Boolean):
            return pa.bool_()
        if isinstance(column, sa.Integer):
            return pa.int64()
        if isinstance(column, JSONB):
            return pa.list_(pa.struct(list(_ENTRIES[name].items())))
        return pa.float64() if isinstance(column, sa.Double) else pa.string()

    return pa.schema([pa.field(name, kind(name)) for name in columns])


def no_formula(text: str) -> str:
    """The text as a cell that spreadsheets show: with an apostrophe where it would be a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def _cell(value: Any) -> Any:
    """Times as ISO 8601, lists as JSON."""
    if isinstance(value, list):
        return json.dumps(value)
    return value.isoformat() if isinstance(value, datetime) else value


WRITERS: Mapping[str, Callable[[Path, Sequence[str], Portions], int]] = {
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
    "spreadsheet": partial(_write_csv, text=no_formula),
}
"""By format: writes columns and rows to a file, and returns the number of rows."""
