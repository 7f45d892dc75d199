"""What queue messages mean: a table of the forms understood, and that nothing else gets through."""

import json
import string
from datetime import UTC, datetime
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.intake.messages import AnalysisRequest, KeyFilter, parse_message

VIDEOS = KeyFilter(prefix="", suffixes=(".mp4", ".MKV"))


def record(
    key: str, *, event: str = "ObjectCreated:Put", bucket: str = "raw", **item: object
) -> dict[str, object]:
    content = {"bucket": {"name": bucket}, "object": {"key": quote_plus(key, safe="/"), **item}}
    return {"eventSource": "aws:s3", "eventName": event, "s3": content}


def s3_event(*records: dict[str, object]) -> str:
    return json.dumps({"Records": list(records)})


def sns(body: str) -> str:
    return json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:x:1:t", "Message": body})


EVENTBRIDGE = {
    "source": "aws.s3",
    "detail-type": "Object Created",
    "detail": {"bucket": {"name": "raw"}, "object": {"key": "a b+c.mp4", "version-id": "v9", "size": 5}},
}
CLOUDTRAIL = {
    "source": "aws.s3",
    "detail-type": "AWS API Call via CloudTrail",
    "detail": {"eventName": "PutObject", "requestParameters": {"bucketName": "raw", "key": "a b.mp4"}},
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(s3_event(record("cam/a.mp4")), AnalysisRequest("raw", "cam/a.mp4"), id="s3"),
        pytest.param(
            s3_event(record("a.mp4", versionId="v1")),
            AnalysisRequest("raw", "a.mp4", version_id="v1"),
            id="version",
        ),
        pytest.param(
            s3_event(record("정문/휴게실 1+2%.mp4")),
            AnalysisRequest("raw", "정문/휴게실 1+2%.mp4"),
            id="encoded-key",
        ),
        pytest.param(
            s3_event(record("a.mp4", event="ObjectCreated:CompleteMultipartUpload")),
            AnalysisRequest("raw", "a.mp4"),
            id="multipart",
        ),
        pytest.param(
            s3_event(record("a.mp4", event="s3:ObjectCreated:Copy")),
            AnalysisRequest("raw", "a.mp4"),
            id="s3-prefix",
        ),
        pytest.param(s3_event(record("A.mkv")), AnalysisRequest("raw", "A.mkv"), id="suffix-of-any-case"),
        pytest.param(sns(s3_event(record("a.mp4"))), AnalysisRequest("raw", "a.mp4"), id="sns"),
        pytest.param(
            json.dumps(EVENTBRIDGE),
            AnalysisRequest("raw", "a b+c.mp4", version_id="v9"),
            id="eventbridge-key-as-is",
        ),
        pytest.param(
            sns(json.dumps(EVENTBRIDGE)), AnalysisRequest("raw", "a b+c.mp4", version_id="v9"), id="sns-eb"
        ),
        pytest.param(
            s3_event(record("a.mp4", event="ObjectRestore:Completed")),
            AnalysisRequest("raw", "a.mp4", restored=True),
            id="restored",
        ),
        pytest.param(
            json.dumps({**EVENTBRIDGE, "detail-type": "Object Restore Completed"}),
            AnalysisRequest("raw", "a b+c.mp4", version_id="v9", restored=True),
            id="eventbridge-restored",
        ),
        pytest.param(json.dumps(CLOUDTRAIL), AnalysisRequest("raw", "a b.mp4"), id="cloudtrail"),
        pytest.param(
            json.dumps({"bucket": "raw", "key": "a+b.mp4"}),
            AnalysisRequest("raw", "a+b.mp4"),
            id="request-minimal",
        ),
        pytest.param(
            json.dumps(
                {
                    "bucket": "raw",
                    "key": "a.mp4",
                    "video_id": 84,
                    "recorded_at": "2026-01-22T14:23:15Z",
                    "camera": "gate",
                    "priority": 3,
                    "sample_fps": 2,
                    "model": "yolov8x.pt",
                    "force": True,
                    "traceparent": TRACE,
                }
            ),
            AnalysisRequest(
                "raw",
                "a.mp4",
                external_id="84",
                recorded_at=datetime(2026, 1, 22, 14, 23, 15, tzinfo=UTC),
                camera="gate",
                priority=3,
                sample_fps=2.0,
                model="yolov8x.pt",
                force=True,
                traceparent=TRACE,
            ),
            id="request-full",
        ),
    ],
)
def test_understood(body: str, expected: AnalysisRequest) -> None:
    parsed = parse_message(body, VIDEOS)

    assert parsed.requests == (expected,)
    assert not parsed.ignored
    assert not parsed.malformed


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}), "test event", id="test-event"
        ),
        pytest.param(sns(json.dumps({"Event": "s3:TestEvent"})), "test event", id="test-event-by-sns"),
        pytest.param(s3_event(record("a.mp4", event="ObjectRemoved:Delete")), "not an upload", id="removed"),
        pytest.param(s3_event(record("a.txt")), "does not end in", id="suffix"),
        pytest.param(
            json.dumps({"bucket": "raw", "key": "notes.txt"}), "does not end in", id="request-suffix"
        ),
        pytest.param(
            json.dumps({**EVENTBRIDGE, "detail-type": "Object Deleted"}), "not an upload", id="eb-deleted"
        ),
    ],
)
def test_ignored_on_purpose(body: str, reason: str) -> None:
    parsed = parse_message(body, VIDEOS)

    assert len(parsed.ignored) == 1
    assert reason in parsed.ignored[0]
    assert not parsed.requests
    assert not parsed.malformed


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("", "not JSON", id="empty"),
        pytest.param("hello", "not JSON", id="text"),
        pytest.param("[" * 100_000, "not JSON", id="deeply-nested"),
        pytest.param("9" * 5000, "not JSON", id="integer-beyond-python"),
        pytest.param(
            '{"bucket": "b", "key": "a.mp4", "video_id": "' + "x" * 300 + '"}', "video_id", id="long-id"
        ),
        pytest.param(
            '{"bucket": "b", "key": "a.mp4", "video_id": 1' + "0" * 30 + "}", "video_id", id="huge-id"
        ),
        pytest.param(
            '{"bucket": "b", "key": "a.mp4", "camera": "' + "x" * 300 + '"}', "camera", id="long-camera"
        ),
        pytest.param(
            '{"bucket": "b", "key": "a.mp4", "recorded_at": "0001-01-01T00:00:00+09:00"}',
            "1970",
            id="ancient",
        ),
        pytest.param("[]", "found a list", id="list"),
        pytest.param("{}", "no fields", id="empty-object"),
        pytest.param('{"Records": []}', "list of records", id="no-records"),
        pytest.param('{"Records": "x"}', "found a text", id="records-text"),
        pytest.param(sns("not json"), "Message is not JSON", id="sns-text"),
        pytest.param(sns(sns(s3_event(record("a.mp4")))), "found an object", id="sns-in-sns"),
        pytest.param(
            json.dumps({"source": "aws.s3", "detail-type": "Object Created"}), "'detail'", id="eb-empty"
        ),
        pytest.param('{"key": "a.mp4"}', "bucket: Field required", id="no-bucket"),
        pytest.param('{"bucket": "b", "key": ""}', "key:", id="empty-key"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "kee": 1}', "kee: Extra inputs", id="unknown-field"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "video_id": true}', "video_id", id="flag-as-id"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "priority": 5000}', "priority", id="priority-range"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "sample_fps": -1}', "sample_fps", id="negative-rate"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "recorded_at": "soon"}', "recorded_at", id="no-date"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "recorded_at": 5}', "recorded_at", id="number-as-date"),
        pytest.param(
            json.dumps({**CLOUDTRAIL, "detail": {"eventName": "PutObject"}}), "CloudTrail", id="trail"
        ),
        pytest.param(json.dumps({**EVENTBRIDGE, "detail-type": "Bucket"}), "detail-type", id="detail-type"),
        pytest.param('{"bucket": "Raw", "key": "a.mp4"}', "bucket name", id="bucket-upper-case"),
        pytest.param('{"bucket": "a..b", "key": "a.mp4"}', "bucket name", id="bucket-dots"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "force": "yes"}', "force", id="text-as-flag"),
        pytest.param('{"bucket": "b", "key": "a.mp4", "traceparent": "x"}', "traceparent", id="traceparent"),
        pytest.param(json.dumps({"bucket": "b", "key": "a\0.mp4"}), "without NUL", id="nul"),
        pytest.param(json.dumps({"bucket": "raw", "key": "k" * 1100 + ".mp4"}), "1,024 bytes", id="long-key"),
    ],
)
def test_malformed_says_why(body: str, reason: str) -> None:
    parsed = parse_message(body, VIDEOS)

    assert len(parsed.malformed) == 1
    assert reason in parsed.malformed[0].reason
    assert not parsed.requests


def test_one_bad_record_does_not_spoil_the_others() -> None:
    body = s3_event(record("a.mp4"), {"eventSource": "aws:s3"}, record("b.mp4"), record("c.txt"))

    parsed = parse_message(body, VIDEOS)

    assert [request.key for request in parsed.requests] == ["a.mp4", "b.mp4"]
    assert len(parsed.ignored) == 1
    assert [json.loads(part.body) for part in parsed.malformed] == [{"Records": [{"eventSource": "aws:s3"}]}]


def test_half_a_surrogate_pair_is_malformed_and_can_be_copied() -> None:
    parsed = parse_message(
        '{"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": '
        '{"bucket": {"name": "b"}, "object": {"key": "\\ud800.mp4"}}}]}',
        VIDEOS,
    )

    [part] = parsed.malformed
    part.body.encode()  # a queue takes it
    assert "\\ud800" in part.body


def test_prefix_is_respected() -> None:
    parsed = parse_message(s3_event(record("in/a.mp4"), record("out/a.mp4")), KeyFilter("in/", (".mp4",)))

    assert [request.key for request in parsed.requests] == ["in/a.mp4"]
    assert "outside 'in/'" in parsed.ignored[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["Records", "s3", "object", "bucket", "key", "name", "eventName", "source", "detail", "Type"]
            )
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(st.text() | json_values.map(json.dumps))
def test_any_body_is_accounted_for(body: str) -> None:
    parsed = parse_message(body, VIDEOS)

    assert parsed.requests or parsed.ignored or parsed.malformed


@given(
    st.text(string.printable + "äß휴게실😀", min_size=1, max_size=60), st.text("ab", min_size=3, max_size=9)
)
def test_any_key_survives_s3s_encoding(stem: str, bucket: str) -> None:
    key = f"{stem}.mp4"

    parsed = parse_message(s3_event(record(key, bucket=bucket)), VIDEOS)

    assert parsed.requests == (AnalysisRequest(bucket, key),)
