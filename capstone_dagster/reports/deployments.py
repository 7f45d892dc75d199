"""Which versions were deployed, and when: noted by the code location itself, once it has loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstone_dagster.failures.cursors import Kept

if TYPE_CHECKING:
    import dagster as dg

    from capstone_dagster.settings import Settings

_MOST = 1000


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version that replaced another one. Times are seconds since 1970.

    Attributes:
        version: as its image names it: the commit.
        committed: when the commit was made; None where the image does not say.
        seen: when the code location had loaded it.
    """

    version: str
    committed: float | None
    seen: float


DEPLOYMENTS: Kept[list[Deployment]] = Kept("capstone/deployments", list[Deployment], list)
"""In their order; only the reader of ended runs writes it."""


def note_deployment(instance: dg.DagsterInstance, settings: Settings, now: float) -> None:
    """Note the version that runs, unless it is the one that was noted last. Without a version, do nothing."""
    if settings.version is None:
        return
    known = DEPLOYMENTS.read(instance)
    if known and known[-1].version == settings.version:
        return
    committed = None if settings.committed_at is None else settings.committed_at.timestamp()
    DEPLOYMENTS.write(instance, [*known, Deployment(settings.version, committed, now)][-_MOST:])
