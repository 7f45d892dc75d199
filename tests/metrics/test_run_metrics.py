"""The metrics of ended runs, from their verdicts."""

from pathlib import Path

from capstone_dagster.catalog import metrics as declared
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.verdicts import Cause, Outcome, Verdict
from capstone_dagster.metrics.runs import publish
from capstone_dagster.settings import read_settings
from tests.support.published import Published


def ended(outcome: Outcome, failure: FailureClass | None = None, wasted_s: float = 0.0) -> Verdict:
    cause = None if failure is None else Cause(failure, "It broke.")
    times = {"gpu_s": wasted_s, "wasted_s": wasted_s, "waited_s": None if cause is None else 3.0}
    return Verdict("r", "analyze_upload", outcome, 100.0, 112.5, cause, **times)


def test_metrics_count_runs_by_outcome_and_class_and_what_was_wasted(tmp_path: Path) -> None:
    published = Published(tmp_path / "standard-output")
    metrics = published.metrics(read_settings())

    publish(metrics, 0, [])
    publish(
        metrics,
        4,
        [
            ended(Outcome.SUCCEEDED),
            ended(Outcome.FAILED, FailureClass.WORKER_LOST, wasted_s=7.0),
            ended(Outcome.FAILED, FailureClass.UNDECODABLE_VIDEO),
            ended(Outcome.CANCELED),
        ],
    )

    assert published.values(declared.RUNS_STARTED) == [0, 4]
    assert published.values(declared.RUNS_SUCCEEDED) == [0, 1]
    # The zeros are the total's: a rate needs them.
    assert published.values(declared.RUNS_FAILED) == [0, 0, 1, 1]
    for failure in ("worker-lost", "undecodable-video"):
        assert published.values(declared.RUNS_FAILED, FailureClass=failure) == [1]
    assert published.values(declared.RUN_DURATION) == [12.5] * 3
    # Of runs whose worker began.
    assert published.values(declared.LEG_DURATION, Leg=declared.STARTED) == [3.0, 3.0]
    assert published.values(declared.WASTED_GPU_SECONDS) == [7.0]
