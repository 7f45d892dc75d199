"""`python -m tests.intake.soak`: many seeds on the local emulator, ended by one line for scripts."""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from capstone_dagster.local.aws import create_resources, ministack_server
from capstone_dagster.local.postgres import postgres_server
from tests.intake.soak.campaign import Campaign, OutOfTime, run_campaign
from tests.intake.soak.checker import Fault
from tests.intake.soak.schedule import make_schedule
from tests.intake.soak.stage import set_stage
from tests.intake.soak.variants import NAIVE, RACY, REAL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="in all, dealt evenly to the seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--minutes", type=float, default=20.0, help="give up the seed at work after these")
    parser.add_argument("--logs", type=Path, help="folder to keep journals and logs in")
    parser.add_argument("--variant", choices=[REAL, NAIVE, RACY], default=REAL)
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.minutes * 60

    campaigns: list[Campaign] = []
    with (
        # Not below a folder of this user's alone: run as root, PostgreSQL is another user.
        tempfile.TemporaryDirectory(prefix="capstone-soak-") as folder,
        postgres_server(Path(folder) / "data", Path(folder) / "postgres.log") as postgres,
    ):
        for at, seed in enumerate(asked.seeds):
            share = asked.messages // len(asked.seeds) + (at < asked.messages % len(asked.seeds))
            home = Path(folder) / f"seed-{at}"
            with (
                ministack_server(home / "aws") as emulator,
                set_stage(
                    emulator.endpoint_url,
                    create_resources(emulator.endpoint_url),
                    postgres,
                    home / "dagster",
                    asked.variant,
                ) as stage,
            ):
                try:
                    campaign = run_campaign(make_schedule(seed, messages=share), stage, deadline=deadline)
                except OutOfTime:
                    print(f"seed {seed}: given up, the {asked.minutes:g} minutes are over")
                    break
                finally:
                    if asked.logs:
                        shutil.copytree(home / "dagster", asked.logs / f"seed-{seed}", dirs_exist_ok=True)
            print(f"seed {seed}: {describe(campaign)}", flush=True)
            for violation in campaign.verdict.violations[:20]:
                print(f"  {violation}")
            campaigns.append(campaign)
    print(last_line(campaigns))
    sound = campaigns and not any(campaign.verdict.violations for campaign in campaigns)
    return 0 if sound and len(campaigns) == len(asked.seeds) else 1


def describe(campaign: Campaign) -> str:
    """One campaign's figures."""
    busy = [tick for tick in campaign.ticks if tick.received or tick.runs]
    seconds = [tick.seconds for tick in busy] or [0.0]
    drained = len(campaign.history.acknowledged) / sum(tick.seconds for tick in campaign.ticks)
    return (
        f"{len(campaign.history.messages)} messages, {campaign.history.uploads} uploads, "
        f"{len(campaign.history.runs)} runs, {len(campaign.struck)} crashes and faults in "
        f"{campaign.seconds:.0f} s; {drained:.0f} messages/s drained, tick p50 "
        f"{statistics.median(seconds):.2f} s, p99 {_percentile(seconds, 99):.2f} s; "
        f"{campaign.verdict.dead_letter_copies} second copies of dead letters; "
        f"{len(campaign.verdict.violations)} violations"
    )


def last_line(campaigns: Sequence[Campaign]) -> str:
    """The line that scripts read."""
    messages = sum(len(campaign.history.messages) for campaign in campaigns)
    uploads = sum(campaign.history.uploads for campaign in campaigns)
    # A run that stays behind unsubmitted analyses as little as one that is missing.
    lost = sum(campaign.verdict.count(Fault.LOST, Fault.NEVER_SUBMITTED) for campaign in campaigns)
    duplicated = sum(campaign.verdict.count(Fault.DUPLICATED) for campaign in campaigns)
    exact = all(campaign.verdict.dead_letters_exact for campaign in campaigns)
    return (
        f"soak: {messages} messages, {uploads} uploads, {lost} lost, {duplicated} duplicated, "
        f"dead letters exact: {'yes' if exact else 'no'}"
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


if __name__ == "__main__":
    sys.exit(main())
