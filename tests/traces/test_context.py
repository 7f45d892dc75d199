"""The trace of a video is the same in every process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.traces.context import TraceContext, parse_traceparent, upload_context

UPLOAD = "0123456789abcdef" * 4
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        PARENT[:-1],
        PARENT.replace("00-", "01-", 1),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        PARENT + "-more",
    ],
)
def test_what_is_no_traceparent_is_none(text: str | None) -> None:
    assert parse_traceparent(text) is None
    assert upload_context(UPLOAD, text) == TraceContext(UPLOAD[:32], UPLOAD[32:48])


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True), ("02", False)])
def test_the_uploaders_trace_goes_on(flags: str, sampled: bool) -> None:
    context = upload_context(UPLOAD, PARENT[:-2] + flags)

    assert context.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert context.span_id != "00f067aa0ba902b7"  # a child of the uploader's span, not that span
    assert context.sampled is sampled


@given(st.text("0123456789abcdef", min_size=64, max_size=64).filter(lambda text: text[:32].strip("0")))
def test_a_context_survives_its_way_through_a_tag(upload_id: str) -> None:
    context = upload_context(upload_id)

    if context.span_id.strip("0"):
        assert parse_traceparent(str(context)) == context
    assert context.child("a") == context.child("a")
    assert context.child("a") != context.child("b")
    assert context.child("a", "b") != context.child("ab")
    assert context.child("a").trace_id == context.trace_id
