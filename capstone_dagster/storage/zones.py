"""The table `zones`: areas and lines in the pictures of cameras. Each function needs a transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capstone_dagster.storage.schema import zones

Row = Mapping[str, Any]
_COLUMNS = tuple(zones.c[name] for name in ("camera", "name", "kind", "points", "anchor"))


def zones_of(connection: sa.Connection, camera: str) -> list[Row]:
    """Rows of name, kind, points and anchor of a camera's zones, in order of name."""
    statement = sa.select(*_COLUMNS[1:]).where(zones.c.camera == camera).order_by(zones.c.name)
    return [dict(row) for row in connection.execute(statement).mappings()]


def all_zones(connection: sa.Connection) -> list[Row]:
    """The same of every camera, with the camera."""
    statement = sa.select(*_COLUMNS).order_by(zones.c.camera, zones.c.name)
    return [dict(row) for row in connection.execute(statement).mappings()]


def set_zones(connection: sa.Connection, camera: str, rows: Sequence[Row]) -> None:
    """Replace the zones of a camera. Events keep those by which they were derived."""
    connection.execute(sa.delete(zones).where(zones.c.camera == camera))
    if rows:
        connection.execute(insert(zones), [{**row, "camera": camera} for row in rows])
