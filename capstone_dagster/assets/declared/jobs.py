"""Jobs over videos that their configuration names: analyse many, judge many anew, render one preview."""

import dagster as dg
from pydantic import Field

from capstone_dagster.assets.declared.partitions import videos
from capstone_dagster.assets.failing import as_failure, partitions_of
from capstone_dagster.assets.steps.check_rules import some
from capstone_dagster.assets.steps.detection import AnalysisOrder
from capstone_dagster.assets.steps.judging import evaluations, judge_each
from capstone_dagster.assets.steps.previews import store_preview
from capstone_dagster.assets.steps.references import LatestReferences
from capstone_dagster.assets.steps.video_by_video import analyze_in_turn
from capstone_dagster.services import Services


class AnalyzeVideosConfig(dg.Config):
    """Which videos to analyse again, and with which settings in place of the configured ones.

    `videos` are partition keys; of each the latest upload is analysed. Detections that exist already are
    reused; `nonce`, any text, has the work done again.
    """

    videos: list[str]
    sample_fps: float | None = None
    model: str | None = None
    nonce: str | None = None


@dg.op(pool="gpu", out=dg.Out(dg.Nothing), tags={"batch_gpu/compute": "gpu"})
def analyze_each(
    context: dg.OpExecutionContext, config: AnalyzeVideosConfig, services: dg.ResourceParam[Services]
) -> None:
    """Analyse the latest upload of each video and publish its events, one after the other."""
    analyze_in_turn(
        context,
        services,
        config.videos,
        lambda upload: AnalysisOrder(upload, config.sample_fps, config.model, config.nonce),
        with_events=True,
    )


@dg.job(description="Analyses many videos in one run, with one loaded model; name them in the configuration.")
def analyze_videos() -> None:
    """One op, so that one process does it all."""
    analyze_each()


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
    chosen = list(dict.fromkeys(config.videos)) or partitions_of(context)
    if not chosen:
        raise dg.Failure(
            "This run names no video: choose a partition, or name some in the configuration's `videos`.",
            allow_retries=False,
        )
    wrong: dict[str, str] = {}
    for asset in ("detections", "events"):
        references = LatestReferences(services.objects, asset, chosen)
        for video_id, findings in judge_each(references, services):
            if findings is None:
                wrong.setdefault(video_id, f"no {asset}")
                continue
            for each, evaluation in zip(
                findings, evaluations(context.instance, asset, video_id, findings), strict=True
            ):
                # Dagster takes evaluations as well; its annotation lacks them.
                context.log_event(evaluation)  # type: ignore[arg-type]
                if each.contradicts:
                    wrong.setdefault(video_id, each.check)
    if wrong:
        named = some([f"{video_id} ({why})" for video_id, why in wrong.items()], most=20)
        raise dg.Failure(
            f"{len(wrong)} of {len(chosen)} videos are wrong or have nothing to judge: {named}.",
            metadata={"wrong": list(wrong)},
            allow_retries=False,
        )


# Dagster executes checks of partitioned assets only together with the assets (its pages), or for partitions
# that a run's tags name (its API), and drops the partitions of a job that consists of checks. So this job is
# an op that writes the same evaluations.
@dg.job(
    partitions_def=videos,
    description="Judges finished videos anew, by their checks alone: nothing is analysed or published, and "
    "no status changes. Under Partitions choose some, a run each, or name many for one run in the Launchpad.",
)
def check_videos() -> None:
    """One op; what it finds stands on the pages of the assets."""
    check_each()


class PreviewConfig(dg.Config):
    """Which video to preview; `analysis`, an analysis's id, is by default the current one."""

    video: str
    analysis: str | None = None


@dg.op(out=dg.Out(dg.Nothing), tags={"batch_gpu/compute": "cpu"})
def render_video_preview(
    context: dg.OpExecutionContext, config: PreviewConfig, services: dg.ResourceParam[Services]
) -> None:
    """Render the preview, or find that it is there; its address is in the run's log."""
    try:
        stored = store_preview(config.video, services, analysis_id=config.analysis)
    except Exception as error:  # a missing preview is no failure of its video, whose status stays as it is
        raise as_failure(error) from error
    outcome = "was rendered" if stored.made else "was there already"
    context.log.info(
        f"The preview {outcome}: {services.objects.url(stored.key)}",
        extra={"action": "preview.stored", "video_id": config.video},
    )


@dg.job(description="Renders the annotated preview of one video; name it in the configuration.")
def preview_video() -> None:
    """One op, on a CPU."""
    render_video_preview()
