"""No upload is lost and none is analysed twice, wherever the daemon dies; and who says so can be wrong."""

from pathlib import Path

import pytest

from capstone_dagster.local.aws import create_resources, ministack_server
from capstone_dagster.local.postgres import PostgresServer
from tests.conftest import Aws
from tests.intake.soak.campaign import Campaign, run_campaign
from tests.intake.soak.checker import Fault
from tests.intake.soak.points import Point
from tests.intake.soak.schedule import make_schedule
from tests.intake.soak.stage import set_stage
from tests.intake.soak.variants import NAIVE, RACY, REAL

# `make soak` plays 10,000 messages with many seeds.
MESSAGES = 1200
SCHEDULE = make_schedule(seed=3, messages=MESSAGES, duplicates=0.5)


# What can go wrong here is the intake's own; that both emulators agree, test_sensor.py shows at less cost.
@pytest.mark.timeout(600)
def test_every_upload_has_one_run_wherever_the_daemon_dies(
    aws: Aws, postgres: PostgresServer, tmp_path: Path
) -> None:
    with set_stage(aws.endpoint_url, aws.resources, postgres, tmp_path / "home", REAL) as stage:
        campaign = run_campaign(SCHEDULE, stage)

    assert [str(violation) for violation in campaign.verdict.violations] == []
    assert set(campaign.struck) == set(Point), "points that no life met"
    assert len(campaign.history.messages) == MESSAGES
    assert len({message.body for message in campaign.history.messages}) <= MESSAGES / 2
    # What the checker was shown: of each kind enough that it could have gone wrong.
    assert sum(run.deleted_at is not None for run in campaign.history.runs) >= 3
    assert sum(message.forbidden for message in campaign.history.messages) >= 12
    assert len(campaign.history.dead_letters) >= 60


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("variant", "fault"), [(NAIVE, Fault.LOST), (RACY, Fault.DUPLICATED)])
def test_the_checker_catches_naive_and_racy_intake(
    variant: str, fault: Fault, postgres: PostgresServer, tmp_path: Path
) -> None:
    """The same schedule, as far as it takes until it is caught."""
    campaign = play(variant, fault, postgres, tmp_path)

    assert campaign.verdict.count(fault), f"{variant} intake went unnoticed"


def play(variant: str, fault: Fault, postgres: PostgresServer, folder: Path) -> Campaign:
    with (
        ministack_server(folder / "aws") as emulator,
        set_stage(
            emulator.endpoint_url,
            create_resources(emulator.endpoint_url),
            postgres,
            folder / "home",
            variant,
        ) as stage,
    ):
        return run_campaign(SCHEDULE, stage, stop_when=lambda verdict: verdict.count(fault) > 0)
