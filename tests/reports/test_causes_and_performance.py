"""Recurring causes, and the bottleneck, of records made up here."""

import pytest

from capstone_dagster.reports.causes import causes_report, recurring
from capstone_dagster.reports.performance import performance, performance_report
from capstone_dagster.reports.records import LEGS, Failure, Journey, Period, Statement
from capstone_dagster.reports.shown import as_text

PERIOD = Period(0.0, 86_400.0)
S3 = "S3 failed GetObject on s3://raw/gate/{}.mp4: An error occurred (503): Slow Down. It is tried again."
FAILURES = [
    *(Failure(f"a{n}", 1000.0 + n, "storage-unavailable", S3.format(n)) for n in range(60)),
    *(
        Failure(f"b{n}", 50.0 + n, "worker-lost", f"Its worker on i-0{n:07x} was killed: exit code 137.")
        for n in range(37)
    ),
    Failure("c", 5.0, "internal", "IndexError: list index out of range"),
    Failure("d", 6.0, "internal", "KeyError: 'frames'"),
    Failure("e", 7.0, "configuration", "CAPSTONE_MODEL is not set."),
]


def test_causes_are_told_apart_and_counted() -> None:
    causes = recurring(FAILURES)

    assert [(cause.failure, cause.count) for cause in causes] == [
        ("storage-unavailable", 60), ("worker-lost", 37),
        ("configuration", 1), ("internal", 1), ("internal", 1),
    ]  # fmt: skip
    first = causes[0]
    assert (first.first, first.last, first.example) == (1000.0, 1059.0, S3.format(59))
    assert "<address>" in first.template


def test_the_first_sentence_says_what_explains_most() -> None:
    text = as_text(causes_report(FAILURES, PERIOD, runbook="docs/runbook.md", most=5000))

    assert "2 causes explain 97 % of 100 failures." in text
    assert "docs/runbook.md#worker-lost" in text


def test_names_from_outside_do_not_control_the_terminal() -> None:
    failure = Failure("r", 1.0, "undecodable-video", "A video was expected in \x1b[2Jx.mp4")

    assert "\x1b" not in as_text(causes_report([failure], PERIOD, runbook="r", most=1))


@pytest.mark.parametrize(
    ("period", "said"), [(PERIOD, "No run failed"), (Period(1.0, 1.0), "The period is empty")]
)
def test_without_failures_a_sentence_says_so(period: Period, said: str) -> None:
    assert said in as_text(causes_report([], period, runbook="r", most=1))


@pytest.mark.parametrize("slow", range(5))
def test_the_leg_that_takes_longest_is_the_bottleneck(slow: int) -> None:
    """Each leg takes a second, and one of them ten."""
    times = [0.0]
    for leg in range(5):
        times.append(times[-1] + (10.0 if leg == slow else 1.0))

    found = performance([Journey("r", "v", *times)])

    assert found.bottleneck == LEGS[slow]
    assert found.legs[LEGS[slow]]["share"] == pytest.approx(10 / 14)
    assert found.remedy


def test_a_gpu_is_idle_while_its_worker_does_something_else() -> None:
    gpu = Journey("r", "v", 0.0, 0.0, 10.0, 12.0, 18.0, 20.0, gpu_s=6.0)
    cpu = Journey("r", "w", 0.0, 0.0, 10.0, 12.0, 18.0, 900.0)

    assert performance([gpu, cpu]).gpu_idle == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("journeys", "statements", "said"),
    [
        ([], None, "No upload was analysed in this period."),
        ([Journey("r", "v", 0.0, 1.0)], None, "this database has no pg_stat_statements"),
        ([Journey("r", "v", 0.0, 1.0)], [Statement("SELECT slow", 7, 1500.0, 10.5)], "1500.0"),
        ([Journey("r", "v", 9.0, 1.0)], [], "No pass used a GPU"),
    ],
)
def test_what_is_missing_is_said(
    journeys: list[Journey], statements: list[Statement] | None, said: str
) -> None:
    assert said in as_text(performance_report(journeys, statements, PERIOD, most=5))
