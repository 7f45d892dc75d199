"""The job `check_videos`: judges finished videos anew, many in a run, by their checks alone.

Dagster executes checks of partitioned assets only together with the assets (its pages), or for partitions
that a run's tags name (its API), and drops the partitions of a job that consists of checks. So this job is
made of an op that writes the same evaluations.
"""

from functools import partial

import dagster as dg
from pydantic import Field

from capstone_dagster.assets.checks import evaluations_in_turn, judge_detections, judge_events
from capstone_dagster.assets.partitions import videos
from capstone_dagster.assets.references import LatestReferences
from capstone_dagster.services import Services

_SHOWN = 20


class CheckVideosConfig(dg.Config):
    """Which videos to judge, by their partition keys; empty: those of the run's partition or range."""

    videos: list[str] = Field(default_factory=list)


@dg.op(out=dg.Out(dg.Nothing), tags={"batch_gpu/compute": "cpu"})
def check_each(
    context: dg.OpExecutionContext, config: CheckVideosConfig, services: dg.ResourceParam[Services]
) -> None:
    """Judge the stored detections and the published events of each video, one after the other.

    Raises:
        Failure: naming videos that contradict themselves or of which there is nothing, when all are judged.
    """
    chosen = list(dict.fromkeys(config.videos)) or _partitions(context)
    if not chosen:
        raise dg.Failure(
            "This run knows of no video: choose a partition, or name some in the configuration's `videos`.",
            allow_retries=False,
        )
    wrong: dict[str, str] = {}
    judges = {
        "detections": partial(judge_detections, services=services),
        "events": partial(judge_events, services=services),
    }
    for asset, judge in judges.items():
        references = LatestReferences(services.objects, asset, chosen)
        for said in evaluations_in_turn(asset, references, judge):
            if isinstance(said, str):
                wrong.setdefault(said, f"no {asset}")
                continue
            # Dagster takes evaluations as well, and forgets to say so.
            context.log_event(said)  # type: ignore[arg-type]
            if not said.passed and said.severity == dg.AssetCheckSeverity.ERROR:
                wrong.setdefault(str(said.partition), said.check_name)
    if wrong:
        told = ", ".join(f"{video_id} ({why})" for video_id, why in list(wrong.items())[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise dg.Failure(
            f"{len(wrong)} of {len(chosen)} videos are wrong or have nothing to judge: {told}{more}.",
            metadata={"wrong": list(wrong)},
            allow_retries=False,
        )


@dg.job(
    partitions_def=videos,
    description="Judges finished videos anew, by their checks alone: nothing is analysed or published, and "
    "no status changes. Under Partitions choose some, a run each, or name many for one run in the Launchpad.",
)
def check_videos() -> None:
    """One op; what it finds stands on the pages of the assets."""
    check_each()


def _partitions(context: dg.OpExecutionContext) -> list[str]:
    if context.has_partition_key_range:
        return list(context.partition_keys)
    return [context.partition_key] if context.has_partition_key else []
