"""An asset of our own behind the project's: for how long there were people in a video."""

import dagster as dg

from capstone_dagster.assets.declared.partitions import videos
from capstone_dagster.services import Services
from capstone_dagster.storage.events import current_events


@dg.asset(partitions_def=videos, deps=["events"], group_name="videos")
def person_seconds(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult:
    """Seconds of presence, of all persons together."""
    events = services.database.transact(current_events, context.partition_key)
    seconds = sum((e["end_ms"] - e["start_ms"]) / 1000 for e in events if e["label"] == "person")
    return dg.MaterializeResult(metadata={"person_seconds": seconds})
