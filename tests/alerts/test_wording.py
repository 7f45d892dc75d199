"""What alerts look like on a phone, whatever failed and however it was worded."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.alerts.incidents import Incident
from capstone_dagster.alerts.troubles import CONDITIONS
from capstone_dagster.alerts.wording import Place, compose, duration, first_sentence
from capstone_dagster.failures.classes import FailureClass

LOCAL = Place("local", None, "docs/runbook.md", None)
CLOUD = Place("prod", "https://dagster.example", "https://wiki.example/runbook", "ap-northeast-2")
AT = 1_767_225_600.0
RUN = {
    "run_id": "2f1c-run",
    "ended_at": AT,
    "video_id": "gate-1a2b3c4d",
    "external_id": "84",
    "attempt": 2,
    "outlook": "It is tried again at 2026-01-01 09:02:00+09:00 (attempt 2 of 3).",
    "job_id": "job-7",
    "log_stream": "capstone-gpu/default/42",
}
INCIDENT = Incident(
    "i1",
    "capacity",
    "capacity",
    "No machine came in time. It waited.",
    opened=AT,
    last=AT,
    failure="capacity",
    runs=1,
    example=RUN,
    videos=["gate-1a2b3c4d"],
)


def test_an_alert_leads_to_the_video_where_it_can_be_played() -> None:
    message = compose(INCIDENT, "failure", replace(CLOUD, browse_url="https://look.example/"))

    assert "Browse: https://look.example/videos/gate-1a2b3c4d" in message.body.splitlines()


def test_an_alert_of_the_cloud_in_full() -> None:
    message = compose(INCIDENT, "failure", CLOUD)

    assert message.subject == "[prod] FAILED capacity: No machine came in time"
    assert message.body.splitlines() == [
        "No machine came in time.",
        "Cause: No machine came in time.",
        "Class: capacity",
        "Since: 2026-01-01 09:00:00+09:00",
        "1 run has failed because of it.",
        "Video: gate-1a2b3c4d (external id 84)",
        "Attempt: 2. It is tried again at 2026-01-01 09:02:00+09:00 (attempt 2 of 3).",
        "What to do: Wait, or raise the quota of the compute environment.",
        "Run: https://dagster.example/runs/2f1c-run",
        "Job: https://ap-northeast-2.console.aws.amazon.com/batch/home?region=ap-northeast-2#jobs/detail/job-7",
        "Container's log: https://ap-northeast-2.console.aws.amazon.com/cloudwatch/home?region=ap-northeast-2"
        "#logsV2:log-groups/log-group/$252Fcapstone$252Fvideo-analysis/log-events/"
        "capstone-gpu$252Fdefault$252F42",
        "Logs at that time: https://ap-northeast-2.console.aws.amazon.com/cloudwatch/home?region=ap-northeast-2"
        "#logsV2:log-groups/log-group/$252Fcapstone$252Fvideo-analysis/log-events"
        "$3Fstart$3D1767225000000$26end$3D1767225720000$26filterPattern$3D$25222f1c-run$2522",
        "Runbook: https://wiki.example/runbook#capacity",
    ]


def test_the_alert_of_an_end_says_how_long_and_how_many() -> None:
    over = replace(INCIDENT, runs=37, closed=INCIDENT.opened + 754, videos=[f"v{n}" for n in range(9)])
    message = compose(over, "recovery", LOCAL, given_up=3)

    assert message.subject == "[local] OVER capacity: No machine came in time (37 runs)"
    assert message.body.splitlines() == [
        "Over: no machine came in time.",
        "It lasted 12 min, from 2026-01-01 09:00:00+09:00 to 2026-01-01 09:12:34+09:00.",
        "37 runs have failed because of it, of v0, v1, v2, v3, v4 and others.",
        "The cause was: No machine came in time.",
        "3 notices before this one were dropped: there were too many at once.",
        "Runbook: docs/runbook.md#capacity",
    ]


@pytest.mark.parametrize("page", [*FailureClass, *CONDITIONS])
def test_every_page_makes_an_alert_that_sns_takes(page: str) -> None:
    failure = page if page in {kind.value for kind in FailureClass} else None
    incident = replace(INCIDENT, page=page, failure=failure, runs=100_000)
    for kind in ("failure", "update", "recovery"):
        message = compose(incident, kind, CLOUD)  # type: ignore[arg-type]
        assert message.subject.isascii()
        assert len(message.subject) <= 100
        assert message.subject.endswith("(100000 runs)")
        assert f"#{page}" in message.body
        assert all(message.attributes.values())


@given(st.text(max_size=500), st.text(max_size=50))
def test_no_cause_and_no_name_breaks_an_alert(cause: str, video: str) -> None:
    example = RUN | {"cause": cause, "video_id": video}
    message = compose(replace(INCIDENT, cause=cause, example=example), "failure", LOCAL)

    assert all(letter.isprintable() or letter == "\n" for letter in message.body)
    assert "\n" not in message.subject


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It broke. And more.", "It broke."),
        ("No full stop", "No full stop"),
        ("host 10.0.0.1 is away. Check it.", "host 10.0.0.1 is away."),
        ("x" * 500, "x" * 239 + "…"),
    ],
)
def test_an_alert_has_the_cause_in_one_sentence(text: str, message: str) -> None:
    assert first_sentence(text) == message


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(-1, "0 s"), (59.6, "60 s"), (600, "10 min"), (9000, "2 h 30 min"), (200_000, "2 days")],
)
def test_durations_in_alerts(seconds: float, message: str) -> None:
    assert duration(seconds) == message
