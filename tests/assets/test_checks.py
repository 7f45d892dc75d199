"""Asset checks: what breaks a result is said by the check it breaks, in the run, and stops what follows."""

from pathlib import Path

import dagster as dg

from tests.assets.conftest import Pipeline

OF_DETECTIONS = {
    "frames_complete",
    "boxes_inside_frame",
    "scores_in_range",
    "configured_model",
    "picture_visible",
    "expected_device",
    "tracks_lasting",
}
OF_EVENTS = {
    "events_stored",
    "events_apart",
    "usual_detection_rate",
    "usual_confidence",
    "expected_latency",
}


def said(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


def failed(result: dg.ExecuteInProcessResult) -> set[str]:
    return {name for name, each in said(result).items() if not each.passed}


def test_checks_judge_every_run_and_pass_for_a_good_video(pipeline: Pipeline, clip: Path) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())

    result = pipeline.run(upload)

    assert result.success
    assert set(said(result)) == OF_DETECTIONS | OF_EVENTS
    assert failed(result) == set(), [each.description for each in said(result).values() if not each.passed]
    for each in said(result).values():
        assert each.partition == upload.video_id
        assert each.description
        assert each.metadata["video"].value == upload.video_id
    assert said(result)["boxes_inside_frame"].blocking
    assert not said(result)["picture_visible"].blocking
