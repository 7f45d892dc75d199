"""`capstone reanalyze`: the backfill that it asks Dagster's daemon for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from capstone_dagster.assets import backfills
from capstone_dagster.assets.ops import events, raw_videos, video_analysis
from capstone_dagster.commands import reanalysis
from capstone_dagster.storage.event_store import EventStore
from tests.storage.samples import UPLOAD
from tests.support.command_line import Capstone

_definitions = dg.Definitions(
    assets=[raw_videos, video_analysis, events],
    resources={"services": object(), "io_manager": dg.mem_io_manager},
)


@pytest.fixture
def instance(
    event_store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """Four videos, the last without a partition; the second was filmed elsewhere."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", event_store.engine.url.render_as_string(hide_password=False))
    monkeypatch.setattr(reanalysis, "_repository", _definitions.get_repository_def)
    for number in range(1, 5):
        video = replace(UPLOAD, upload_id=f"u{number}", video_id=f"v{number}", external_id=f"8{number}")
        event_store.record_upload(replace(video, camera="yard" if number == 2 else "gate"))
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
    outcome = capstone("reanalyze", *asked, "--by", "kim", "--format", "json")

    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    [backfill] = instance.get_backfills()
    assert backfill.backfill_id == told["backfill_id"]
    assert backfill.tags == tags
    data = backfill.asset_backfill_data
    assert data is not None
    assert {key.to_user_string() for key in data.target_subset.asset_keys} == assets
    for key in data.target_subset.asset_keys:
        assert set(data.get_target_partitions_subset(key).get_partition_keys()) == videos
    assert set(told["videos"]) == videos
    # v1 and v3 do not stand side by side.
    assert told["runs"] == len(videos)


def test_reanalyze_asks_for_nothing_in_a_dry_run_of_a_backfill(
    instance: dg.DagsterInstance, capstone: Capstone
) -> None:
    outcome = capstone("reanalyze", "v1", "v2", "--dry-run")

    assert (outcome.code, outcome.out) == (0, "2 videos in 1 run would be analysed again.\n")
    assert instance.get_backfills() == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([], "one of the three"),
        (["v1", "--all"], "one of the three"),
        (["v1", "--events-only", "--force"], "leaves as they are"),
        (["--camera", "roof"], "no video of camera 'roof'"),
        (["v9"], "no video 'v9' is known"),
        (["--all"], "no partition for v4"),
    ],
)
def test_reanalyze_refuses_a_backfill_of_what_is_not_there(
    instance: dg.DagsterInstance, capstone: Capstone, asked: list[str], told: str
) -> None:
    outcome = capstone("reanalyze", *asked)

    assert outcome.code != 0
    assert told in " ".join(outcome.err.replace("│", " ").split())
    assert instance.get_backfills() == []


def test_a_backfill_is_spread_over_runs_as_dagster_does() -> None:
    partitions = [str(number) for number in range(50)]
    chosen = {*partitions[:45], "47", "49"}
    assert [len(run) for run in backfills.in_runs(partitions, chosen)] == [20, 20, 5, 1, 1]
