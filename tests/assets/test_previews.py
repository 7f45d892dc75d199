"""The preview on demand: stored beside the events, once, from what was analysed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import dagster as dg
import pytest

from capstone_dagster.assets.declared.jobs import preview_video
from capstone_dagster.assets.steps.previews import store_preview
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.errors import AnalysisMissing, SourceChanged
from capstone_dagster.storage.video_status import current_status
from capstone_dagster.testing import MakeClip, Pipeline, SquareDetector
from tests.support.command_line import Capstone


@pytest.fixture
def analyzed(
    pipeline: Pipeline, make_clip: MakeClip, stand_in_detector: SquareDetector
) -> tuple[Pipeline, str]:
    clip = make_clip("clip.mp4", range(0, 2000, 40), lambda index: [("person", 20, 20, 60, 120)])
    return pipeline, pipeline.analyze(clip, "gate/clip.mp4").upload.video_id


def plays(path: Path) -> bool:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name == "h264"


def test_a_preview_is_rendered_once_and_refused_of_what_is_gone(
    analyzed: tuple[Pipeline, str], capstone: Capstone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, video_id = analyzed
    fractions: list[float] = []

    first = store_preview(video_id, pipeline.services, progress=fractions.append)

    (analysis,) = pipeline.services.database.transact(analyses_of, video_id)
    assert (first.key, first.made) == (f"analyses/{analysis['analysis_id']}/preview.mp4", True)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    # The command finds it, and copies it.
    settings = pipeline.services.settings
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", settings.event_store_url())
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", settings.required("derived_url"))
    out = tmp_path / "out" / "preview.mp4"
    again = capstone("preview", video_id, "--out", out)
    assert again.code == 0
    assert f"Was there already: {pipeline.services.objects.url(first.key)}" in again.out
    assert plays(out)

    # The job, too; what cannot be previewed says why, and the video's status does not mind.
    def run(**config: Any) -> dg.ExecuteInProcessResult:
        return preview_video.execute_in_process(
            run_config={"ops": {"render_video_preview": {"config": {"video": video_id, **config}}}},
            resources={"services": pipeline.services},
            instance=pipeline.instance,
            raise_on_error=False,
        )

    assert run().success
    failed = run(analysis="a9")
    assert not failed.success
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert "has no analysis a9" in str(failure.step_failure_data.user_failure_data)
    assert pipeline.services.database.transact(current_status, video_id)[0]["state"] == "done"

    with pytest.raises(AnalysisMissing, match="no current analysis"):
        store_preview("nobody", pipeline.services)
    pipeline.aws.client("s3").delete_object(Bucket="capstone-derived", Key=_key(pipeline, first.key))
    pipeline.upload("gate/clip.mp4", b"something else")
    with pytest.raises(SourceChanged, match="overwritten"):
        store_preview(video_id, pipeline.services)


def _key(pipeline: Pipeline, key: str) -> str:
    return pipeline.services.objects.url(key).split("/", 3)[3]
