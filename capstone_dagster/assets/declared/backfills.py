"""Asking for a backfill without Dagster's pages; its daemon makes the runs, and its pages show them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import dagster as dg

from capstone_dagster.assets.declared.partitions import VIDEOS_PER_RUN, videos
from capstone_dagster.dagster_private import PartitionBackfill, make_new_backfill_id
from capstone_dagster.run_tags import FORCE_TAG

_EVERYTHING = ("extracted_frames", "detections", "events")


def in_runs(partitions: Sequence[str], chosen: Collection[str]) -> list[list[str]]:
    """How Dagster spreads partitions over runs: what stands side by side, a limited number at a time.

    Args:
        partitions: all that there are, in Dagster's order.
    """
    runs: list[list[str]] = []
    beside = False
    for partition in partitions:
        if partition not in chosen:
            beside = False
            continue
        if not beside or len(runs[-1]) == VIDEOS_PER_RUN:
            runs.append([])
        runs[-1].append(partition)
        beside = True
    return runs


def known_partitions(instance: dg.DagsterInstance) -> Sequence[str]:
    """The partitions of videos, in Dagster's order."""
    assert videos.name is not None
    return instance.get_dynamic_partitions(videos.name)


def request_backfill(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    chosen: Sequence[str],
    *,
    events_only: bool,
    force: bool,
    by: str,
) -> str:
    """Put a backfill on record, for Dagster's daemon to begin within half a minute.

    Args:
        chosen: partitions that exist.
        events_only: derive events anew from stored detections, which needs no GPU.
        force: have finished detections made again.

    Returns:
        The backfill's id.
    """
    assets = ("events",) if events_only else _EVERYTHING
    backfill_id = make_new_backfill_id()
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id=backfill_id,
            asset_graph=repository.asset_graph,
            partition_names=list(chosen),
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            backfill_timestamp=time.time(),
            tags={"user": by, **({FORCE_TAG: "true"} if force else {})},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )
    return backfill_id
