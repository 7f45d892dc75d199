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


def parquet_columns(schema: pa.Schema) -> dg.TableSchema:
    """The schema of a Parquet file."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable)
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
                constraints=dg.TableColumnConstraints(
                    nullable=bool(column.nullable), unique=column.primary_key
                ),
            )
            for column in table.columns
        ]
    )


def csv_columns(types: Mapping[str, str]) -> dg.TableSchema:
    """The schema of a CSV file: names to types."""
    return dg.TableSchema([dg.TableColumn(name, kind) for name, kind in types.items()])


def of_asset(schema: dg.TableSchema, *, table: str | None = None) -> Metadata:
    """Of an asset's definition.

    Args:
        table: the name under which a database has it.
    """
    return {"dagster/column_schema": schema, **({"dagster/table_name": table} if table else {})}


def of_materialization(*, rows: int, uri: str) -> Metadata:
    """Of one materialisation: how many rows it has, and where they are."""
    return {"dagster/row_count": rows, "dagster/uri": uri}
