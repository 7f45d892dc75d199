"""What is old goes, kind by kind, after its own number of days; what is young, current or wanted stays."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

from capstone_dagster.removal import retention
from capstone_dagster.removal.retention import KINDS, Retention
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import analyses_of, publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import mark_failed
from capstone_dagster.storage.videos import record_upload
from tests.conftest import Aws
from tests.storage.samples import ANALYSIS, FACTS, NOON, UPLOAD, count, event_row
from tests.support.command_line import Capstone
from tests.support.waiting import wait_for

LATER = NOON + timedelta(days=10)


class World:
    """An upload with an earlier and a current analysis, their files, and Dagster's records."""

    def __init__(self, aws: Aws, database: Database, instance: dg.DagsterInstance) -> None:
        self.aws, self.database, self.instance = aws, database, instance
        self.s3 = aws.client("s3")
        for _ in range(2):
            self.s3.put_object(Bucket="capstone-raw", Key="gate/a.mp4", Body=b"video")
        self.uploaded_at = self.versions()[0]["LastModified"].replace(microsecond=0)
        database.transact(record_upload, replace(UPLOAD, bucket="capstone-raw", uploaded_at=self.uploaded_at))
        for number, asked in ((1, NOON), (2, NOON + timedelta(days=3))):
            rows = [event_row(f"e{number}") | {"thumbnail_key": f"detections/d{number}/1.jpg"}]
            analysis = replace(
                ANALYSIS, analysis_id=f"a{number}", detection_id=f"d{number}", requested_at=asked, events=1
            )
            database.transact(publish_analysis, analysis, rows, FACTS)
            for key in (f"detections/d{number}/frames.parquet", f"analyses/a{number}/events.parquet"):
                self.objects.put_bytes(key, b"x")
        instance.add_dynamic_partitions("videos", ["v1"])

    @property
    def objects(self) -> Any:
        return self.services().objects

    def services(self, **days: int) -> Services:
        never = dict.fromkeys(KINDS.values(), 0)
        url = self.database.engine.url.render_as_string(hide_password=False)
        settings = {"database_url": url, "derived_url": self.aws.resources.derived_url}
        return Services(read_settings(**settings, **never | days))

    def apply(
        self, dry_run: bool = False, most: int = 100, now: datetime = LATER, **days: int
    ) -> dict[str, int]:
        services = self.services(**days)
        done = Retention(services, self.instance, most).apply(dry_run=dry_run, now=now)
        services.database.close()
        return {KINDS[each.kind]: each.number for each in done if each.number}

    def versions(self) -> list[Any]:
        """Of the raw object, the newest first."""
        found = self.s3.list_object_versions(Bucket="capstone-raw").get("Versions", [])
        return sorted(found, key=lambda version: version["LastModified"], reverse=True)

    def raw(self) -> int:
        return len(self.versions())


@pytest.fixture
def world(aws: Aws, database: Database) -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(aws, database, instance)


def test_nothing_goes_without_a_number(world: World) -> None:
    assert world.apply() == {}
    assert (world.raw(), len(world.objects.keys("")), count(world.database, "events")) == (2, 4, 2)


def test_raw_videos_go_with_every_version_once_they_are_finished(world: World) -> None:
    later = world.uploaded_at + timedelta(days=10)
    assert world.apply(raw_retention_days=11, now=later) == {}
    assert world.apply(raw_retention_days=9, now=later, dry_run=True) == {"raw_retention_days": 1}
    assert world.raw() == 2
    assert world.apply(raw_retention_days=9, now=later) == {"raw_retention_days": 1}
    assert world.raw() == 0
    assert world.apply(raw_retention_days=9, now=later) == {}
    assert count(world.database, "events") == 2


def test_an_upload_that_intake_has_not_heard_of_yet_stays(world: World) -> None:
    """As while intake is paused: nobody has analysed it."""
    # S3 tells the time of an upload in whole seconds.
    wait_for("the next second", lambda: datetime.now(UTC) >= world.uploaded_at + timedelta(seconds=1))
    world.s3.put_object(Bucket="capstone-raw", Key="gate/a.mp4", Body=b"newer")
    later = world.uploaded_at + timedelta(days=10)
    assert world.apply(raw_retention_days=9, now=later) == {"raw_retention_days": 1}
    [newer] = world.versions()
    assert world.s3.get_object(Bucket="capstone-raw", Key="gate/a.mp4")["Body"].read() == b"newer"

    # Heard of after that night, it has its own time, and goes when it is finished.
    came = newer["LastModified"].replace(microsecond=0)
    world.database.transact(
        record_upload, replace(UPLOAD, bucket="capstone-raw", upload_id="u2", uploaded_at=came)
    )
    later += timedelta(days=10)
    assert world.apply(raw_retention_days=9, now=later) == {}
    world.database.transact(mark_failed, "u2", "r2", failure_class="internal", message="")
    assert world.apply(raw_retention_days=9, now=later) == {"raw_retention_days": 1}
    assert world.raw() == 0


def test_files_go_and_events_stay(world: World) -> None:
    assert world.apply(detections_retention_days=9) == {"detections_retention_days": 1}
    assert world.objects.keys("") == ["analyses/a2/events.parquet", "detections/d2/frames.parquet"]
    assert world.apply(detections_retention_days=1) == {"detections_retention_days": 1}
    assert world.objects.keys("") == []
    assert world.apply(detections_retention_days=1) == {}
    [event] = world.database.transact(current_events)
    assert event["thumbnail_key"] is None


def test_earlier_analyses_go_and_the_current_one_stays(world: World) -> None:
    assert world.apply(earlier_analyses_retention_days=1, dry_run=True) == {
        "earlier_analyses_retention_days": 1
    }
    assert world.apply(earlier_analyses_retention_days=1) == {"earlier_analyses_retention_days": 1}
    assert [row["analysis_id"] for row in world.database.transact(analyses_of, "v1")] == ["a2"]
    assert world.objects.keys("") == ["analyses/a2/events.parquet", "detections/d2/frames.parquet"]
    assert world.apply(earlier_analyses_retention_days=1) == {}


def test_detections_that_another_analysis_rests_on_stay(world: World) -> None:
    rules = replace(ANALYSIS, analysis_id="a3", detection_id="d1", requested_at=NOON + timedelta(days=9))
    world.database.transact(publish_analysis, rules, [], FACTS)
    assert world.apply(detections_retention_days=5) == {"detections_retention_days": 1}  # d2
    world.apply(earlier_analyses_retention_days=1)
    assert "detections/d1/frames.parquet" in world.objects.keys("")


def test_events_go_with_their_analyses(world: World) -> None:
    assert world.apply(events_retention_days=1, most=1) == {"events_retention_days": 1}
    assert count(world.database, "events") == 1
    assert world.apply(events_retention_days=1) == {"events_retention_days": 1}
    assert (count(world.database, "events"), world.objects.keys("")) == (0, [])


def test_files_that_were_made_anew_are_shown_and_go_again(world: World) -> None:
    assert world.apply(detections_retention_days=1) == {"detections_retention_days": 2}
    rows = [event_row("e2") | {"thumbnail_key": "detections/d2/1.jpg"}]
    again = replace(ANALYSIS, analysis_id="a2", detection_id="d2", requested_at=LATER, events=1)
    world.database.transact(publish_analysis, again, rows, FACTS)
    world.objects.put_bytes("detections/d2/frames.parquet", b"x")
    [event] = world.database.transact(current_events)
    assert event["thumbnail_key"] == "detections/d2/1.jpg"
    assert world.apply(detections_retention_days=1) == {}
    later = LATER + timedelta(days=2)
    assert world.apply(detections_retention_days=1, now=later) == {"detections_retention_days": 1}
    assert world.objects.keys("") == []


@pytest.mark.parametrize(
    "kind", ["detections_retention_days", "events_retention_days", "earlier_analyses_retention_days"]
)
def test_an_analysis_that_is_asked_for_while_others_go_stays_whole(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a backfill or a rollback in the middle of the night."""
    again = replace(ANALYSIS, requested_at=LATER)
    for name in ("analyses_with_files", "old_analyses"):

        def found(*arguments: Any, look: Any = getattr(retention, name), **options: Any) -> list[str]:
            ids: list[str] = look(*arguments, **options)
            world.database.transact(publish_analysis, again, [], FACTS)
            return ids

        monkeypatch.setattr(retention, name, found)
    done = world.apply(False, 100, LATER, **{kind: 1})

    assert done == ({} if kind == "earlier_analyses_retention_days" else {kind: 1})
    assert [
        row["analysis_id"] for row in world.database.transact(analyses_of, "v1") if row["is_current"]
    ] == ["a1"]
    assert {"analyses/a1/events.parquet", "detections/d1/frames.parquet"} <= set(world.objects.keys(""))
    [event] = world.database.transact(current_events)
    assert event["thumbnail_key"] == "detections/d1/1.jpg"


def test_runs_go_once_their_partition_is_not_listed(world: World) -> None:
    @dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="videos"))
    def seen(context: dg.AssetExecutionContext) -> None:
        context.log.info("a line")

    def run() -> str:
        return dg.materialize([seen], partition_key="v1", instance=world.instance).run_id

    first, second = run(), run()
    soon = datetime.now(UTC) + timedelta(days=2)
    lines = len(world.instance.all_logs(first))
    assert world.apply(event_log_retention_days=3, now=soon) == {}
    looked = world.apply(event_log_retention_days=1, now=soon, dry_run=True)
    assert world.apply(event_log_retention_days=1, now=soon) == looked
    assert looked["event_log_retention_days"] > 0
    left = world.instance.all_logs(first)
    assert 0 < len(left) < lines
    assert [each for each in left if each.is_dagster_event and each.dagster_event.is_step_materialization]
    assert not [each for each in left if not each.is_dagster_event]

    assert world.apply(run_retention_days=1, now=soon) == {}  # its partition is listed
    world.instance.delete_dynamic_partition("videos", "v1")
    assert world.apply(run_retention_days=3, now=soon) == {}
    assert world.apply(run_retention_days=1, now=soon, most=1) == {"run_retention_days": 1}
    assert [run.run_id for run in world.instance.get_runs()] == [second]
    assert not world.instance.all_logs(first)
    assert world.apply(run_retention_days=1, now=soon) == {"run_retention_days": 1}
    assert world.instance.get_runs() == []


def test_log_entries_younger_than_the_limit_stay(world: World) -> None:
    """Found by their ids, which have gaps."""
    storage = world.instance.event_log_storage
    now = time.time()
    table = SqlEventLogStorageTable
    with storage.index_connection() as connection:  # type: ignore[attr-defined]
        for number, age_days in ((3, 9), (4, 8), (9, 7), (20, 3), (21, 2), (40, 1)):
            at = datetime.fromtimestamp(now - age_days * 86400, UTC).replace(tzinfo=None)
            row = {"id": number, "run_id": "r", "event": "{}", "timestamp": at}
            connection.execute(sa.insert(table).values(row))
    assert world.apply(event_log_retention_days=5, now=datetime.fromtimestamp(now, UTC)) == {
        "event_log_retention_days": 3
    }
    with storage.index_connection() as connection:  # type: ignore[attr-defined]
        assert list(connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars()) == [20, 21, 40]


def test_the_command_says_what_goes(
    world: World, dagster_home: Path, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = world.database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", world.aws.resources.derived_url)
    monkeypatch.setenv("CAPSTONE_EVENTS_RETENTION_DAYS", "1")

    looked = json.loads(capstone("retention", "--dry-run", "--json").out)
    assert looked["dry_run"] is True
    numbers = {each["setting"]: each["number"] for each in looked["kinds"]}
    assert numbers["CAPSTONE_EVENTS_RETENTION_DAYS"] == 2
    table = capstone("retention").out
    assert "CAPSTONE_RAW_RETENTION_DAYS" in table
    assert "for ever" in table
    assert count(world.database, "events") == 0


def test_the_nightly_job_counts_in_its_metadata(world: World) -> None:
    from capstone_dagster.removal.retention import retention

    def run(**config: Any) -> dg.ExecuteInProcessResult:
        return retention.execute_in_process(
            run_config={"ops": {"remove_what_is_old": {"config": config}}},
            resources={"services": world.services(events_retention_days=1)},
            instance=world.instance,
        )

    for config, counted, left in (({"dry_run": True}, 2, 2), ({"most": 1}, 1, 1)):
        [output] = [each for each in run(**config).all_events if each.is_successful_output]
        assert output.step_output_data.metadata["analyses with events"].value == counted
        assert count(world.database, "events") == left
