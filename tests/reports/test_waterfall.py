"""`capstone trace`: the spans of an upload, from what Dagster has on record."""

import json

import pytest

from capstone_dagster.reports.records import Step, TracedRun
from capstone_dagster.reports.shown import as_text
from capstone_dagster.reports.waterfall import bars_of, waterfall

PASS = Step("analyze_video", 112.0, 118.0, "done")
RUN = TracedRun(
    "0123456789", "analyze_upload", "SUCCESS", None, created=102.0, enqueued=102.0, launched=106.0,
    started=110.0, ended=120.0, steps=(PASS, Step("persist_events", 118.0, 119.0, "done")),
    first_frame=115.0, last_frame=117.0, model_s=2.0,
)  # fmt: skip


def test_the_spans_of_a_run_follow_one_another() -> None:
    assert [(bar.name, bar.depth, bar.began, bar.ended) for bar in bars_of(100.0, [RUN])] == [
        ("upload", 0, 100.0, 102.0),
        ("run 01234567 analyze_upload", 0, 102.0, 120.0),
        ("wait for a place", 1, 102.0, 106.0),
        ("launch the worker", 1, 106.0, 110.0),
        ("analyze_video", 1, 112.0, 118.0),
        ("load the model", 2, 113.0, 115.0),
        ("decode, detect, track", 2, 115.0, 117.0),
        ("persist_events", 1, 118.0, 119.0),
    ]


def test_the_longest_part_is_named_and_bars_stand_at_their_time() -> None:
    text = as_text(waterfall("84-abc", 100.0, [RUN]))

    assert "20.0 s from the upload to the end of its last run." in text
    assert "`wait for a place`, with 20 % of it" in text
    upload, *_, last = (line for line in text.splitlines() if "█" in line)
    assert upload.count("█") == 4  # two of twenty seconds, of forty characters
    assert last.index("█") > upload.index("█")


@pytest.mark.parametrize(
    ("uploaded", "run", "said"),
    [
        (100.0, None, "No run of this upload is on record"),
        (
            100.0,
            TracedRun("r", "j", "FAILURE", "worker-lost", 101.0, steps=(Step("s", 102.0, None, ""),)),
            "…",
        ),
        (
            105.0,
            TracedRun("r", "j", "SUCCESS", None, 105.0, started=105.0, ended=103.0),
            "1 span ended before it began: a clock was set back",
        ),
        # S3's clock is ahead of Dagster's.
        (109.0, RUN, "18.0 s from the upload"),
    ],
    ids=["no run", "killed worker", "clock set back", "upload after its run"],
)
def test_what_is_missing_or_wrong_is_said(uploaded: float, run: TracedRun | None, said: str) -> None:
    report = waterfall("v", uploaded, [run] if run else [])

    assert said in as_text(report)
    assert json.dumps(report.figures)
