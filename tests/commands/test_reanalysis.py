"""`capstone reanalyze`: the backfill that it asks Dagster's daemon for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from capstone_dagster.analysis import detection_id
from capstone_dagster.assets.declared import backfills
from capstone_dagster.assets.declared.videos import events, raw_videos, video_analysis
from capstone_dagster.commands import reanalysis
from capstone_dagster.model_files import analysis_settings
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, UPLOAD
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home

TODAYS = "b" * 64
_definitions = dg.Definitions(
    assets=[raw_videos, video_analysis, events],
    resources={"services": object(), "io_manager": dg.mem_io_manager},
)


@pytest.fixture
def instance(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """Four videos, the last without a partition; the second was filmed elsewhere."""
    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path))
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    monkeypatch.setattr(reanalysis, "repository", _definitions.get_repository_def)
    for number in range(1, 5):
        video = replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}", external_id=f"8{number}")
        if number in (2, 3):
            video = replace(video, uploaded_at=datetime.now(UTC) - timedelta(hours=1))
        video = replace(video, etag=f"e{number}")
        database.transact(record_upload, replace(video, camera="yard" if number == 2 else "gate"))
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("videos", ["v1", "v2", "v3"])
        yield instance


@pytest.mark.parametrize(
    ("asked", "videos", "assets", "tags"),
    [
        (["v3", "81"], {"v1", "v3"}, {"extracted_frames", "detections", "events"}, {"user": "kim"}),
        (["--camera", "yard", "--events-only"], {"v2"}, {"events"}, {"user": "kim"}),
        (
            ["v2", "--force"],
            {"v2"},
            {"extracted_frames", "detections", "events"},
            {"user": "kim", "capstone/force": "true"},
        ),
    ],
)
def test_reanalyze_asks_for_a_backfill(
    instance: dg.DagsterInstance,
    capstone: Capstone,
    asked: list[str],
    videos: set[str],
    assets: set[str],
    tags: dict[str, str],
) -> None:
    outcome = capstone("reanalyze", *asked, "--by", "kim", "--json")

    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    [backfill] = instance.get_backfills()
    assert backfill.backfill_id == answer["backfill_id"]
    assert backfill.tags == tags
    data = backfill.asset_backfill_data
    assert data is not None
    assert {key.to_user_string() for key in data.target_subset.asset_keys} == assets
    for key in data.target_subset.asset_keys:
        assert set(data.get_target_partitions_subset(key).get_partition_keys()) == videos
    assert set(answer["videos"]) == videos
    # v1 and v3 do not stand side by side.
    assert answer["runs"] == len(videos)


def test_reanalyze_asks_for_nothing_in_a_dry_run_of_a_backfill(
    instance: dg.DagsterInstance, capstone: Capstone
) -> None:
    outcome = capstone("reanalyze", "v1", "v2", "--dry-run")

    assert outcome.code == 0, outcome.err
    first, second, _ = outcome.out.split("\n")
    assert first == "2 videos in 1 run would be analysed again."
    assert second == ("2 passes over 2 videos of unknown length. No earlier pass says how long that takes.")
    assert instance.get_backfills() == []


@pytest.fixture
def models(instance: dg.DagsterInstance, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """v1 is by an older model, uploaded yesterday; v2 by today's, on a GPU; v3 has no analysis."""
    monkeypatch.setenv("CAPSTONE_MODEL_SHA256", TODAYS)
    settings = analysis_settings(read_settings()).detection_fields()
    facts = replace(FACTS, duration_ms=1_800_000)
    older = replace(ANALYSIS, upload_id="u1", video_id="v1", model="old.pt", model_sha256="0" * 64)
    database.transact(publish_analysis, older, [], facts)
    finished = detection_id(
        etag="e2", size_bytes=5, model_sha256=TODAYS, settings=analysis_settings(read_settings())
    )
    database.transact(
        publish_analysis,
        replace(
            older,
            analysis_id="a2",
            detection_id=finished,
            video_id="v2",
            upload_id="u2",
            model="new.pt",
            model_sha256=TODAYS,
            settings=settings,
            seconds=180.0,
            gpu_seconds=180.0,
            device="cuda:0",
        ),
        [],
        facts,
    )


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("asked", "videos"),
    [
        (["--model-not", "today"], {"v1"}),
        (["--model-not", "new.pt"], {"v1"}),
        (["--model-not", "s3://models/old.pt"], {"v2"}),
        (["--model-not", "00000000"], {"v2"}),
        (["--model-not", "today", "--camera", "gate"], {"v1"}),
        (["--since", "1d"], {"v2", "v3"}),
        (["--since", "1d", "--camera", "gate"], {"v3"}),
    ],
)
def test_reanalyze_chooses_by_model_time_and_camera_for_a_backfill(
    instance: dg.DagsterInstance, capstone: Capstone, asked: list[str], videos: set[str]
) -> None:
    outcome = capstone("reanalyze", *asked, "--json")

    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)["videos"]) == videos
    assert len(instance.get_backfills()) == 1


@pytest.mark.usefixtures("models")
def test_reanalyze_tells_before_a_backfill_how_long_it_would_take(
    capstone: Capstone, instance: dg.DagsterInstance
) -> None:
    rollout = capstone("reanalyze", "--model-not", "today", "--dry-run")
    everything = json.loads(capstone("reanalyze", "v1", "v2", "--dry-run", "--json").out)
    forced = json.loads(capstone("reanalyze", "v1", "v2", "--force", "--dry-run", "--json").out)
    rules = capstone("reanalyze", "v1", "--events-only", "--dry-run")

    # 180 s of GPU for half an hour of video.
    assert rollout.out == (
        "1 video in 1 run would be analysed again.\n"
        "1 pass over 30.0 minutes of video. About 0.05 GPU hours: 0.1 s for each second of video, "
        "measured on 1 recent pass with this model and settings.\n"
    )
    assert everything["estimate"] == {
        "passes": 1,
        "video_hours": 0.5,
        "of_unknown_length": 0,
        "hours": 0.05,
        "gpu_hours": 0.05,
        "measured_on_passes": 1,
        "measured_with_todays_model": True,
    }
    assert (forced["estimate"]["passes"], forced["estimate"]["gpu_hours"]) == (2, 0.1)
    assert "no GPU is needed" in rules.out
    assert instance.get_backfills() == []


@pytest.mark.usefixtures("models")
def test_reanalyze_goes_by_other_models_where_todays_has_made_nothing(
    capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_MODEL_SHA256", "c" * 64)

    answer = capstone("reanalyze", "--model-not", "today", "--dry-run").out

    assert answer.startswith("2 videos in 1 run would be analysed again.\n2 passes over 1.0 hours of video.")
    assert "measured on 2 recent passes with another model or other settings." in answer


@pytest.mark.usefixtures("models")
def test_reanalyze_wonders_at_a_model_that_made_nothing(capstone: Capstone) -> None:
    outcome = capstone("reanalyze", "--model-not", "nwe.pt", "--dry-run")

    assert "No current analysis is by a model 'nwe.pt': check the spelling." in outcome.err
    assert "2 videos" in outcome.out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "name videos, or choose --all"),
        (["v1", "--all"], "name videos, or choose --all"),
        (["v1", "--since", "1d"], "name videos, or choose --all"),
        (["--all", "--model-not", "today"], "name videos, or choose --all"),
        (["--since", "tomorrow"], "got 'tomorrow'"),
        (["v1", "--events-only", "--force"], "but --events-only keeps them"),
        (["--camera", "roof"], "no video of camera 'roof'"),
        (["v9"], "no video 'v9' is known"),
        (["--all"], "no partition for v4"),
    ],
)
def test_reanalyze_refuses_a_backfill_of_what_is_not_there(
    instance: dg.DagsterInstance, capstone: Capstone, asked: list[str], message: str
) -> None:
    outcome = capstone("reanalyze", *asked)

    assert outcome.code != 0
    assert message in " ".join(outcome.err.replace("│", " ").split())
    assert instance.get_backfills() == []


def test_reanalyze_is_content_where_a_backfill_has_nothing_to_do(
    instance: dg.DagsterInstance, capstone: Capstone
) -> None:
    outcome = capstone("reanalyze", "--since", "1s", "--json")

    assert (outcome.code, json.loads(outcome.out)["videos"]) == (0, [])
    assert "Nothing to analyse again: no video uploaded within the last 1s is known." in outcome.err
    assert instance.get_backfills() == []


def test_a_backfill_is_spread_over_runs_as_dagster_does() -> None:
    partitions = [str(number) for number in range(50)]
    chosen = {*partitions[:45], "47", "49"}
    assert [len(run) for run in backfills.in_runs(partitions, chosen)] == [20, 20, 5, 1, 1]
