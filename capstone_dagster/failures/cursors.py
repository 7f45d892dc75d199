"""What sensors keep from tick to tick, read by another version of the program than wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def known_fields(kind: type, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was kept, the fields that a dataclass has.

    A deployment may be rolled back: then a later version's fields are there, and must stop no sensor.
    """
    return {field.name: kept[field.name] for field in fields(kind) if field.name in kept}
