"""The saved queries, asked of what the pipeline really wrote: an outage, a broken upload and a good one."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from capstone_dagster.catalog import queries
from capstone_dagster.catalog.log_groups import INTAKE, LOG_GROUPS, VIDEO_ANALYSIS
from capstone_dagster.catalog.model import SavedQuery
from capstone_dagster.catalog.queries import QUERIES, VIDEO_PLACEHOLDER
from tests.catalog import insights
from tests.catalog.insights import Row
from tests.support import pipeline_run
from tests.support.pipeline_run import BROKEN, EXTERNAL_ID, FORBIDDEN, GOOD, MONITORING, Written

pytestmark = pytest.mark.timeout(300)  # the first test of all waits for the pipeline

# What CloudWatch adds to each line.
DISCOVERED = {"@timestamp", "@message", "@log", "@logStream"}
STEPS = ["model-loading", "frame-extraction", "person-detection", "database-saving", "cleanup"]


@pytest.fixture(scope="module")
def written(clip: Path, model_cache: Path) -> list[Written]:
    return pipeline_run.record(clip, model_cache)


def rows_of(written: Sequence[Written], query: SavedQuery) -> list[Row]:
    """The lines of a query's groups as CloudWatch knows them: fields, and fields of fields by dots."""
    return [_row(line) for line in written if line.group in query.groups]


def ask(written: Sequence[Written], query: SavedQuery, text: str | None = None) -> list[Row]:
    return insights.run(text or query.text, rows_of(written, query))


def _row(line: Written) -> Row:
    at = datetime.fromisoformat(line.fields["timestamp"]).timestamp()
    found: Row = {"@timestamp": round(at * 1000), "@message": line.text, "@log": f"000000000000:{line.group}"}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}{name}.", inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                add(f"{prefix}{number}.", inner)
        else:
            found[prefix.removesuffix(".")] = value

    add("", line.fields)
    return found


def asked_for(text: str, video: str) -> str:
    return text.replace(VIDEO_PLACEHOLDER, video)


# --- every query ---


def test_query_names_are_unique_and_their_groups_exist() -> None:
    assert len({query.name for query in QUERIES}) == len(QUERIES)
    known = {group.name for group in LOG_GROUPS}
    for query in QUERIES:
        assert query.groups
        assert set(query.groups) <= known
        assert query.meaning.endswith(".")
    assert {value for value in vars(queries).values() if isinstance(value, SavedQuery)} == set(QUERIES)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_field_that_a_query_reads_is_emitted_in_logs_of_its_groups(
    written: list[Written], query: SavedQuery
) -> None:
    commands = insights.parse(query.text)
    rows = rows_of(written, query)
    text = asked_for(query.text, EXTERNAL_ID)
    # Among the lines that it is about, not just anywhere.
    filters = [part for part in text.split("\n| ") if part.startswith("filter")]
    about = insights.run(" | ".join(filters), rows)
    emitted = {name for row in about for name, value in row.items() if value is not None}

    missing = insights.fields_read(commands) - emitted - DISCOVERED

    # A filter may ask for a field that is to be absent.
    absent = set(re.findall(r"not ispresent\((\w+)\)", query.text))
    assert absent <= {name for row in rows for name in row}
    assert missing == absent
    assert about


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_query_answers_and_within_its_limit(written: list[Written], query: SavedQuery) -> None:
    answer = ask(written, query, asked_for(query.text, EXTERNAL_ID))

    assert answer
    if limit := re.search(r"limit (\d+)", query.text):
        assert len(answer) <= int(limit[1])


# --- what they answer ---


def test_one_videos_story_is_whole_in_order_and_without_repetition(written: list[Written]) -> None:
    query = queries.ONE_VIDEO
    by_external_id = ask(written, query, asked_for(query.text, EXTERNAL_ID))
    [video_id] = {
        line.fields["video_id"] for line in written if line.fields.get("external_id") == EXTERNAL_ID
    }

    by_id = ask(written, query, asked_for(query.text, video_id))

    times = [row["timestamp"] for row in by_external_id]
    assert times == sorted(times)
    done = [row["step"] for row in by_external_id if row["action"] == "step.completed"]
    assert done[:5] == STEPS
    assert "Video analysis completed successfully" in " ".join(row["message"] for row in by_external_id)
    assert by_external_id[0]["component"] == "intake"
    assert [row["message"] for row in by_external_id].count(MONITORING) == 1
    # Nobody else's, everything of its own.
    assert {row["run_id"] for row in by_id} == {row["run_id"] for row in by_external_id}
    own = {
        (line.fields["timestamp"], line.fields["message"])
        for line in written
        if line.fields.get("video_id") == video_id and line.group in query.groups
    }
    assert {(row["timestamp"], row["message"]) for row in by_id} == own


def test_recent_errors_come_newest_first_and_once(written: list[Written]) -> None:
    answer = ask(written, queries.RECENT_ERRORS)

    times = [row["timestamp"] for row in answer]
    assert times == sorted(times, reverse=True)
    texts = Counter((row["timestamp"], row["component"], row["message"]) for row in answer)
    assert set(texts.values()) == {1}
    assert {"undecodable-video", "database-unavailable"} <= {row["failure_class"] for row in answer}


def test_errors_by_component_are_counted_once_each(written: list[Written]) -> None:
    answer = ask(written, queries.ERRORS_BY_COMPONENT)

    errors: Counter[str] = Counter()
    for row in answer:
        errors[row["component"]] += row["errors"]
        assert row["since"] % (15 * 60 * 1000) == 0
    assert errors == Counter(
        line.fields["component"] for line in written if line.fields["level"] in ("ERROR", "CRITICAL")
    )
    assert {"analysis", "dagster", "intake"} <= set(errors)


def test_error_rate_is_of_the_runs_that_ended(written: list[Written]) -> None:
    answer = ask(written, queries.ERROR_RATE)

    assert sum(row["runs"] for row in answer) == 3
    assert sum(row["failed"] for row in answer) == 2
    for row in answer:
        assert row["failed_percent"] == pytest.approx(100 * row["failed"] / row["runs"])


def test_failures_by_class_are_those_of_the_runs(written: list[Written]) -> None:
    answer = ask(written, queries.FAILURES_BY_CLASS)

    assert {row["failure_class"]: row["failed"] for row in answer} == {
        "undecodable-video": 1,
        "database-unavailable": 1,
    }


def test_run_durations_are_those_of_runs_that_ended_well(written: list[Written]) -> None:
    [ended] = [
        line.fields
        for line in written
        if line.group == VIDEO_ANALYSIS.name and line.fields["action"] == "run.succeeded"
    ]

    [row] = ask(written, queries.RUN_DURATIONS)

    assert row["runs"] == 1
    assert row["average_s"] == row["p95_s"] == row["longest_s"] == ended["elapsed_s"] > 0


def test_slowest_steps_are_the_five_of_a_video_and_leave_out_what_was_not_done_again(
    written: list[Written],
) -> None:
    answer = ask(written, queries.SLOWEST_STEPS)

    assert {row["step"] for row in answer} == set(STEPS)
    averages = [row["average_s"] for row in answer]
    assert averages == sorted(averages, reverse=True)
    times = {row["step"]: row["times"] for row in answer}
    # The broken upload got as far as loading the model; the run of the outage found the detections there.
    assert times["model-loading"] == 2
    assert times["frame-extraction"] == times["person-detection"] == times["cleanup"] == 1
    for row in answer:
        assert row["average_s"] <= row["longest_s"]
        assert row["p95_s"] <= row["longest_s"]


def test_slowest_statements_are_told_without_values(written: list[Written]) -> None:
    answer = ask(written, queries.SLOWEST_STATEMENTS)

    slow = [row for row in answer if row["statement"].startswith("SELECT pg_sleep(")]
    assert [row["times"] for row in slow] == [1]
    assert slow[0]["longest_s"] >= 0.2
    assert "0.2" not in slow[0]["statement"]


def test_database_failures_say_when_and_whose(written: list[Written]) -> None:
    answer = ask(written, queries.DATABASE_FAILURES)

    assert {row["component"] for row in answer} >= {"analysis", "dagster", "intake"}
    assert any("does not answer" in row["message"] for row in answer)
    assert "database.retry" in {row["action"] for row in answer}
    assert len({row["run_id"] for row in answer if row["run_id"]}) == 1


def test_s3_access_denied_names_the_object(written: list[Written]) -> None:
    answer = ask(written, queries.S3_ACCESS_DENIED)

    denied = {(row["component"], row["bucket"], row["key"]) for row in answer}
    assert denied == {("intake", "capstone-raw", FORBIDDEN)}
    assert all(FORBIDDEN in row["last_message"] and row["times"] >= 1 for row in answer)


def test_gpu_memory_is_what_the_driver_said(written: list[Written]) -> None:
    [row] = ask(written, queries.GPU_MEMORY)

    assert (row["used"], row["total"]) == (3.1, 80.0)
    assert row["used_percent"] == pytest.approx(100 * 3.1 / 80)
    assert any(
        line.fields["message"] == "CUDA memory: 3.1GB / 80.0GB"
        for line in written
        if line.group == VIDEO_ANALYSIS.name
    )


def test_requests_by_component_count_uploads_and_lines(written: list[Written]) -> None:
    answer = ask(written, queries.REQUESTS_BY_COMPONENT)

    uploads: Counter[str] = Counter()
    for row in answer:
        uploads[row["component"]] = max(uploads[row["component"]], row["uploads"])
        assert row["lines"] >= row["uploads"]
    assert uploads["analysis"] == 2
    assert uploads["intake"] >= 2


def test_what_was_written_is_what_these_tests_need(written: list[Written]) -> None:
    groups = {line.group for line in written}
    assert groups == {INTAKE.name, VIDEO_ANALYSIS.name}
    keys = {line.fields.get("key") for line in written}
    assert {GOOD, BROKEN} <= keys


# --- the language itself ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("select level", "no command"),
        ('filter level = "a" level', "no expression"),
        ('filter (level = "a"', "no expression"),
        ("stats median(elapsed_s)", "no function"),
        ("sort timestamp down", "expected asc or desc"),
        ("sort timestamp desc | limit many", "whole number"),
        ("display message | | limit 1", "no command"),
        ('stats count(*) as n by component | filter level = "x"', "'level'] is not among"),
    ],
)
def test_what_is_no_query_is_refused(text: str, problem: str) -> None:
    with pytest.raises(insights.NotInsights, match=problem):
        insights.fields_read(insights.parse(text))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("stats count(*) as n by component, bin(5m) as t | sort n desc", {"component", "@timestamp"}),
        ('filter ispresent(a) or not b in ["x | y"] | limit 1', {"a", "b"}),
        ('stats sum(strcontains(action, "f")) as failed', {"action"}),
    ],
)
def test_fields_that_a_query_reads(text: str, fields: set[str]) -> None:
    assert insights.fields_read(insights.parse(text)) == fields


LINES: list[Row] = [
    {"@timestamp": 0, "c": "a", "s": 1.0},
    {"@timestamp": 59_000, "c": "a", "s": 3.0},
    {"@timestamp": 61_000, "c": "b", "s": None},
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("stats count(*) as n by c | sort n desc", [{"c": "a", "n": 2}, {"c": "b", "n": 1}]),
        ("stats count(s) as n, avg(s) as m", [{"n": 2, "m": 2.0}]),
        ("stats count(*) as n by bin(1m) as t", [{"t": 0, "n": 2}, {"t": 60_000, "n": 1}]),
        ("stats pct(s, 50) as p, max(s) as q, sum(s) / count(*) as r", [{"p": 1.0, "q": 3.0, "r": 4 / 3}]),
        ('stats 100 * sum(strcontains(c, "a")) / count(*) as p', [{"p": 200 / 3}]),
        ("filter s > 1 | display c, s", [{"c": "a", "s": 3.0}]),  # of what is not there nothing is said
        ("filter not ispresent(s) | display c", [{"c": "b"}]),
        ('filter c in ["b", "x"] or s = 1 | display c', [{"c": "a"}, {"c": "b"}]),
        ("stats latest(c) as l, count_distinct(c) as d", [{"l": "b", "d": 2}]),
        ("sort s desc | display c, s | limit 1", [{"c": "a", "s": 3.0}]),
    ],
)
def test_queries_are_evaluated(text: str, answer: list[Row]) -> None:
    assert insights.run(text, LINES) == answer
