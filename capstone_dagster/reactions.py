"""The sensor `ended_runs`: reads each ended run once, judges it once, and lets everything follow from that.

Consumers take verdicts: metrics, intake's pause, retries, log lines, traces, alerts. One that fails is owed
its runs, and holds up no other. Then the tick acts: it sends notices, brings `video_status` up to date,
starts runs again. An action that fails is tried again later, and holds up no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import dagster as dg

from batch_gpu.errors import BatchGpuError
from batch_gpu.sensor import settle_ended
from capstone_dagster.alerts import alerting
from capstone_dagster.alerts.incidents import Trouble
from capstone_dagster.failures import ended_runs, recent
from capstone_dagster.failures.backoff import Backoff
from capstone_dagster.failures.breaker_state import BREAKER, BreakerState
from capstone_dagster.failures.classes import FailureClass, classify, sentence
from capstone_dagster.failures.cursors import read_cursor, to_json
from capstone_dagster.failures.ended_runs import SENSOR_NAME, Position
from capstone_dagster.failures.verdicts import Outcome, Verdict, is_explained, keep_class, verdict_of
from capstone_dagster.logs.run_records import write_run_records
from capstone_dagster.metrics import runs as run_metrics
from capstone_dagster.reports.deployments import note_deployment
from capstone_dagster.runs import reexecution, video_status
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.traces.runs import record_runs

_log = logging.getLogger("capstone.reactions")

# Of the 60 s that a tick may take: judging a run takes some 10 ms.
_JUDGE_BUDGET_S = 10.0
# Beyond this many, the oldest runs that a consumer is owed are given up.
_MOST_OWED = 500
# One failure may be a moment's loss of connection; the second is trouble.
_FAILURES_OF_TROUBLE = 2
# For how long after a run's end its job of AWS Batch is looked at: stopping takes a container half a minute.
_JOB_S = 600.0


@dataclass(slots=True)
class Cursor:
    """What one tick leaves to the next: the sensor's cursor.

    Attributes:
        owed: consumer → ids of the runs whose verdicts it could not take.
        failing: action → how it fails.
        jobs: run id → when it ended, of ended runs whose job of AWS Batch is to be asked again.
        version: the version of the program that was noted as deployed.
    """

    position: Position
    alerts: alerting.AlertState = field(default_factory=alerting.AlertState)
    retries: reexecution.WaitingRuns = field(default_factory=reexecution.WaitingRuns)
    owed: dict[str, list[str]] = field(default_factory=dict)
    failing: dict[str, Backoff] = field(default_factory=dict)
    jobs: dict[str, float] = field(default_factory=dict)
    version: str | None = None


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reads each ended run once: publishes its metrics, trace and log lines, sends notices of "
    "what failed and when it is over, brings the uploads' status up to date, and starts failed runs again.",
)
def ended_runs_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult:
    """See the module."""
    assert context.repository_def is not None
    cursor = read_cursor(
        Cursor, context.cursor, lambda: Cursor(Position.beginning(context.instance, time.time()))
    )
    account = react(context.instance, context.repository_def, services, cursor)
    return dg.SensorResult(skip_reason=dg.SkipReason(account), cursor=to_json(cursor))


def react(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, services: Services, cursor: Cursor
) -> str:
    """One tick; returns the account in sentences.

    Raises:
        Exception: Dagster's storage does not answer. Nothing is lost by that: the cursor is not kept.
    """
    return _Tick(instance, repository, services, cursor, BREAKER.read(instance), time.time()).run()


@dataclass
class _Tick:
    _instance: dg.DagsterInstance
    _repository: dg.RepositoryDefinition
    _services: Services
    _cursor: Cursor
    _breaker: BreakerState
    _now: float

    def run(self) -> str:
        instance, services, cursor = self._instance, self._services, self._cursor
        started = ended_runs.read(instance, cursor.position, now=self._now)
        self._settle_jobs()
        records, verdicts = self._judge()
        self._give("metrics", verdicts, partial(run_metrics.publish, services.metrics, started))
        self._give("pause", verdicts, partial(recent.remember, instance))
        self._give("retries", verdicts, partial(cursor.retries.enter, instance))
        self._give("logs", verdicts, partial(write_run_records, instance, services.settings))
        self._give("traces", verdicts, lambda _: record_runs(instance, services.tracer, records))
        self._give("alerts", verdicts, self._enter_incidents)
        account = [f"{len(verdicts)} runs ended."]
        account.append(
            self._act(
                "notices", partial(alerting.send_due, services.settings, services.metrics, cursor.alerts)
            )
        )
        self._act("history", self._keep_history)
        account.append(self._act("status", partial(video_status.reconcile, instance, services)))
        account.append(self._act("retries", self._retry))
        return " ".join(account)

    def _keep_history(self) -> str:
        alerting.keep_history(self._instance, self._cursor.alerts.record)
        if self._cursor.version != self._services.settings.version:
            note_deployment(self._instance, self._services.settings, self._now)
            self._cursor.version = self._services.settings.version
        return ""

    def _retry(self) -> str:
        return reexecution.RetryTick(
            self._instance,
            self._repository,
            self._services,
            self._cursor.retries,
            self._breaker,
            store_answers="status" not in self._cursor.failing,
        ).decide()

    def _judge(self) -> tuple[list[dg.RunRecord], list[Verdict]]:
        """The runs that ended since, each with its verdict."""
        position, over = self._cursor.position, time.monotonic() + _JUDGE_BUDGET_S
        records, verdicts = [], []
        for record in ended_runs.take_ready(self._instance, position, now=self._now, is_ready=is_explained):
            if time.monotonic() > over:
                break
            try:
                verdict = self._verdict(record)
            except Exception as error:  # one run that cannot be judged must not hold up the others
                run_id = record.dagster_run.run_id
                extra = {"action": "verdict.failed", "run_id": run_id}
                _log.exception(f"Run {run_id} cannot be judged: {sentence(error)}", extra=extra)
                continue
            ended_runs.done(position, verdict.run_id)
            records.append(record)
            verdicts.append(verdict)
            _report(verdict)
        return records, verdicts

    def _verdict(self, record: dg.RunRecord) -> Verdict:
        budget = reexecution.budget_of(self._services.settings, self._cursor.retries.started)
        verdict = verdict_of(self._instance, record, breaker=self._breaker, budget=budget, now=self._now)
        keep_class(self._instance, verdict)
        return verdict

    def _give(
        self, consumer: str, verdicts: Sequence[Verdict], consume: Callable[[Sequence[Verdict]], object]
    ) -> None:
        """Give a consumer these verdicts, and those that it could not take before."""
        owed = self._cursor.owed.pop(consumer, [])
        try:
            late = self._instance.get_run_records(dg.RunsFilter(run_ids=owed)) if owed else []
            consume([*(self._verdict(record) for record in late), *verdicts])
        except Exception as error:  # a consumer's trouble is its own
            ids = [*owed, *(verdict.run_id for verdict in verdicts)]
            self._cursor.owed[consumer] = ids[-_MOST_OWED:]
            _log.warning(
                f"{consumer.capitalize()} could not take {len(ids)} ended runs: {sentence(error)}",
                extra={"action": "verdicts.owed", "consumer": consumer, "failure_class": classify(error)},
            )

    def _act(self, action: str, act: Callable[[], str]) -> str:
        """Do something that may fail; it is tried again, ever more seldom."""
        failing = self._cursor.failing.get(action)
        if failing is not None and not failing.is_due:
            return f"{action.capitalize()} failed last: {failing.reason}"
        try:
            account = act()
        except Exception as error:
            failure = classify(error).value
            self._cursor.failing.setdefault(action, Backoff()).failed(sentence(error), failure)
            level = logging.WARNING if isinstance(error, StorageError) else logging.ERROR
            message = f"{action.capitalize()} failed: {sentence(error)}"
            extra = {"action": "reaction.failed", "reaction": action, "failure_class": failure}
            _log.log(level, message, extra=extra, exc_info=not isinstance(error, StorageError))
            return message
        self._cursor.failing.pop(action, None)
        return account

    def _enter_incidents(self, verdicts: Sequence[Verdict]) -> None:
        troubles = [
            Trouble(f"reaction {action}", each.reason, each.failure, FailureClass(each.failure))
            for action, each in self._cursor.failing.items()
            if each.times >= _FAILURES_OF_TROUBLE
        ]
        alerting.enter(self._instance, self._services.settings, self._cursor.alerts, verdicts, troubles)

    def _settle_jobs(self) -> None:
        """Settle the jobs of ended runs at AWS Batch; those without an answer are asked again."""
        jobs = {run_id: at for run_id, at in self._cursor.jobs.items() if self._now - at < _JOB_S}
        jobs |= {run_id: at for run_id, at in self._cursor.position.waiting.items() if run_id not in jobs}
        self._cursor.jobs = {}
        if not jobs:
            return
        for run in self._instance.get_runs(dg.RunsFilter(run_ids=list(jobs))):
            if not run.is_finished:
                continue
            try:
                waits = settle_ended(self._instance, run) == "waiting"
            except BatchGpuError as error:
                waits = True
                extra = {
                    "action": "job.unanswered",
                    "run_id": run.run_id,
                    "failure_class": error.failure_class,
                }
                _log.warning(f"Run {run.run_id}: {error}", extra=extra)
            if waits:
                self._cursor.jobs[run.run_id] = jobs[run.run_id]


def _report(verdict: Verdict) -> None:
    """The line about a run that did not end well."""
    if verdict.outcome == Outcome.SUCCEEDED:
        return
    fields = {
        "action": "run.judged",
        "run_id": verdict.run_id,
        "job": verdict.job,
        "video_id": verdict.video_id,
        "upload_id": verdict.upload_id,
        "attempt": verdict.attempt,
        "gpu_s": round(verdict.gpu_s, 3),
        "wasted_s": round(verdict.wasted_s, 3),
    }
    if verdict.cause is None:
        _log.info(f"Run {verdict.run_id} was cancelled.", extra=fields)
        return
    fields |= {"failure_class": verdict.cause.failure.value, "cause": verdict.cause.sentence}
    fields |= {"remedy": verdict.remedy, "outlook": verdict.outlook}
    message = (
        f"Run {verdict.run_id} failed: {verdict.cause.failure}: {verdict.cause.sentence} {verdict.outlook}"
    )
    _log.error(message, extra=fields)
