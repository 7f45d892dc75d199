"""What the daemon's sensors keep for the reports: incidents, deployments, prevented duplicates."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest

from capstone_dagster.alerts.alerting import keep_history
from capstone_dagster.alerts.incidents import Incident, Record
from capstone_dagster.failures.past_incidents import PAST_INCIDENTS
from capstone_dagster.failures.prevented_duplicates import PREVENTED, count_prevented
from capstone_dagster.reports.deployments import DEPLOYMENTS, Deployment, note_deployment
from capstone_dagster.settings import read_settings


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_an_incident_is_kept_when_the_alerts_have_forgotten_it(instance: dg.DagsterInstance) -> None:
    incident = Incident(
        "i", "internal", "internal", "IndexError in gate/84.mp4", opened=10.0, last=10.0, runs=2
    )
    for change in ({}, {"announced_at": 20.0}, {"announced_at": 80.0, "closed": 90.0}):
        for name, value in change.items():
            setattr(incident, name, value)
        keep_history(instance, Record([incident]))
    keep_history(instance, Record())

    [kept] = PAST_INCIDENTS.read(instance)
    assert (kept.opened, kept.announced, kept.closed, kept.extent) == (10.0, 20.0, 90.0, 2)
    assert "84" not in str(kept)  # a video's name would have to be found and removed with the video


def test_a_version_is_noted_when_it_replaces_another(instance: dg.DagsterInstance) -> None:
    commit = datetime(2026, 1, 1, tzinfo=UTC)
    note_deployment(instance, read_settings(), 1.0)  # a checkout that nobody named a version of
    for version, now in [("a", 10.0), ("a", 20.0), ("b", 30.0), ("a", 40.0)]:
        note_deployment(instance, read_settings(version=version, committed_at=commit), now)

    stamp = commit.timestamp()
    assert DEPLOYMENTS.read(instance) == [
        Deployment("a", stamp, 10.0), Deployment("b", stamp, 30.0), Deployment("a", stamp, 40.0)
    ]  # fmt: skip


def test_prevented_duplicates_are_counted_by_day(instance: dg.DagsterInstance) -> None:
    for number, now in [(3, 0.0), (2, 86_399.0), (4, 86_400.0)]:
        count_prevented(instance, number, now)

    assert PREVENTED.read(instance) == {"1970-01-01": 5, "1970-01-02": 4}
