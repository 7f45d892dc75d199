"""The sensor `ended_runs` as Dagster's daemon runs it, with the cursor that its last tick left."""

from __future__ import annotations

import time
from dataclasses import dataclass

import dagster as dg

from capstone_dagster.failures.breaker_state import BREAKER
from capstone_dagster.failures.recent import remember
from capstone_dagster.failures.retry_policy import Budget
from capstone_dagster.failures.verdicts import Verdict, verdict_of
from capstone_dagster.reactions import ended_runs_sensor


@dataclass
class Reader:
    """The sensor over an instance."""

    instance: dg.DagsterInstance
    services: object
    repository: dg.RepositoryDefinition
    cursor: str | None = None

    def tick(self) -> str:
        """One tick; its account."""
        with dg.build_sensor_context(
            self.instance,
            cursor=self.cursor,
            resources={"services": self.services},
            repository_def=self.repository,
        ) as context:
            result = ended_runs_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)


def judge(instance: dg.DagsterInstance, run_id: str) -> Verdict:
    """The verdict on an ended run, remembered as the sensor does."""
    record = instance.get_run_record_by_id(run_id)
    assert record is not None
    verdict = verdict_of(
        instance, record, breaker=BREAKER.read(instance), budget=Budget(3, 60), now=time.time()
    )
    remember(instance, [verdict])
    return verdict
