"""What sensors remember of a video is found and redacted, also where Dagster keeps it compressed."""

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.asset_daemon import (
    asset_daemon_cursor_from_instigator_serialized_cursor,
    asset_daemon_cursor_to_instigator_serialized_cursor,
)

from capstone_dagster.removal import cursors
from capstone_dagster.removal.dagster_records import DagsterRecords
from capstone_dagster.removal.names import Names
from tests.support.dagster_home import dagster_home
from tests.support.sensors import record_sensor

VIDEO, OTHER = "휴게실-9a37a4bd", "gate-a-11111111"
NAMES = Names(VIDEO, ("s3://raw/휴게실.mp4",), "84")


def automation_cursor(instance: dg.DagsterInstance) -> str:
    """That of a sensor of automation conditions, as `summaries`, just after events were published."""
    published = dg.AutomationCondition.any_deps_updated()

    @dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="videos"))
    def events() -> None: ...

    @dg.asset(
        deps=[events],
        automation_condition=published.since(dg.AutomationCondition.newly_requested())
        & ~dg.AutomationCondition.in_progress(),
    )
    def summary() -> None: ...

    definitions = dg.Definitions(assets=[events, summary])
    first = dg.evaluate_automation_conditions(definitions, instance)
    for video in (VIDEO, OTHER):
        instance.add_dynamic_partitions("videos", [video])
        instance.report_runless_asset_event(dg.AssetMaterialization("events", partition=video))
    result = dg.evaluate_automation_conditions(definitions, instance, cursor=first.cursor)
    return asset_daemon_cursor_to_instigator_serialized_cursor(result.cursor)


def test_cursors_that_keep_a_video_for_long_forget_it(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        open_incidents = json.dumps({"videos": [VIDEO, OTHER], "external_id": "84", "runs": 84})
        record_sensor(instance, "ended_runs", open_incidents)
        record_sensor(instance, "summaries", automation_cursor(instance))
        record_sensor(instance, "upload_sensor", VIDEO)
        records = DagsterRecords(instance)
        assert records.sensors_that_remember(NAMES) == ["ended_runs", "summaries", "upload_sensor"]

        assert records.forget_in_sensors(NAMES, dry_run=True)["cursors of sensors"] == 2
        assert records.forget_in_sensors(NAMES, dry_run=False)["cursors of sensors"] == 2

        # Its next tick writes that one anew; nobody else reads it.
        assert records.sensors_that_remember(NAMES) == ["upload_sensor"]
        assert records.forget_in_sensors(NAMES, dry_run=False)["cursors of sensors"] == 0
        left = {
            state.instigator_name: state.sensor_instigator_data.cursor
            for state in instance.all_instigator_state()
            if state.sensor_instigator_data is not None
        }
        kept = {"videos": ["deleted-video", OTHER], "external_id": None, "runs": 84}
        assert json.loads(left["ended_runs"] or "") == kept
        assert asset_daemon_cursor_from_instigator_serialized_cursor(left["summaries"], None) is not None
        assert cursors.remembers(left["summaries"] or "", Names(OTHER))
        # Dagster keeps each state in two tables.
        assert instance.schedule_storage is not None
        with instance.schedule_storage.connect() as connection:  # type: ignore[attr-defined]
            for body in connection.exec_driver_sql("SELECT job_body FROM jobs").scalars():
                cursor = json.loads(body)["job_specific_data"]["cursor"]
                assert cursor == VIDEO or not cursors.remembers(cursor, NAMES)


@pytest.mark.parametrize("cursor", ["", "0", "0123", "1795296371.16", "0!", "0eJwrSS0uAQAEXQHB"])
def test_what_is_no_compressed_cursor_is_text(cursor: str) -> None:
    assert not cursors.remembers(cursor, NAMES)
    if not cursors.is_compressed(cursor):
        assert cursors.without(cursor, NAMES) == cursor
