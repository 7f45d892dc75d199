"""Spans go to an OpenTelemetry collector where one is named, and nowhere otherwise.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) names it, as for every program that
speaks OTLP. A collector that is away, slow or refuses costs its spans and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator

from capstone_dagster.redaction import Redaction, known_secrets

from .context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

# An export that takes longer has lost its spans. A run's process, which waits for the last one before it
# ends, is held up by this at most.
_EXPORT_TIMEOUT_S = 3.0
# After one, the next are given up at once for so long: a process that ends with many spans waits for one.
_REST_S = 10.0
# How long spans wait for company.
_EXPORT_INTERVAL_MS = 2000

Attribute = str | int | float | bool
_log = logging.getLogger("capstone.traces")
_parent: ContextVar[TraceContext | None] = ContextVar("capstone_trace_parent", default=None)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while, as a value.

    Attributes:
        context: its own ids.
        parent: the span that it is part of, or follows from.
        began, ended: seconds since 1970.
        error: what went wrong; None where nothing did.
    """

    name: str
    context: TraceContext
    parent: TraceContext | None
    began: float
    ended: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str | None = None


class Tracer:
    """Records spans; none of its methods raises, or waits for the network.

    Args:
        service: the process's part, as `service.name`.
        environment: the deployment, as `deployment.environment.name`.
        lost: called with the number of dropped spans.
    """

    def __init__(
        self, service: str, environment: str, *, lost: Callable[[int], None] = lambda _: None
    ) -> None:
        self._service = service
        self._environment = environment
        self._lost = lost

    @property
    def enabled(self) -> bool:
        """Whether a collector is named."""
        return any(os.environ.get(name) for name in ENDPOINT_VARIABLES)

    def record(self, span: Span) -> None:
        """Send a span that is over."""
        if not self.enabled or not span.context.sampled:
            return
        try:
            self._send(span)
        except Exception as error:  # whatever it is: no work depends on it
            self._lost(1)
            _warn_once(f"{type(error).__name__}: {error}")

    @contextmanager
    def span(self, name: str, **attributes: Attribute) -> Iterator[None]:
        """Record what the block does as a child of the block around it; outside of any, record nothing."""
        parent = _parent.get()
        if parent is None:
            yield
            return
        with self.within(parent.child(name, str(time.time_ns()))) as context:
            began, error_text = time.time(), None
            try:
                yield
            except BaseException as error:
                error_text = f"{type(error).__name__}: {error}"
                raise
            finally:
                self.record(Span(name, context, parent, began, time.time(), attributes, error_text))

    @contextmanager
    def within(self, parent: TraceContext) -> Iterator[TraceContext]:
        """Have the spans of the block be children of `parent`, which is recorded elsewhere."""
        token = _parent.set(parent)
        try:
            yield parent
        finally:
            _parent.reset(token)

    def flush(self) -> None:
        """Send what waits, for some seconds at most."""
        if "_provider" in self.__dict__:
            self._provider.force_flush(int(_EXPORT_TIMEOUT_S * 1000))

    def _send(self, span: Span) -> None:
        from opentelemetry import trace
        from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

        def ids(context: TraceContext) -> SpanContext:
            flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
            return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), True, flags)

        around = trace.set_span_in_context(NonRecordingSpan(ids(span.parent))) if span.parent else None
        with _given_ids(span.context):
            made = self._provider.get_tracer("capstone").start_span(
                span.name,
                context=around,
                start_time=int(span.began * 1e9),
                attributes=dict(span.attributes),
            )
        if span.error is not None:
            # A library's message may quote an address with its password.
            made.set_status(Status(StatusCode.ERROR, self._redaction.text(span.error)))
        made.end(int(span.ended * 1e9))

    @cached_property
    def _redaction(self) -> Redaction:
        return Redaction(known_secrets(None))

    @cached_property
    def _provider(self) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # It would log each failed export; here one warning does.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        provider = TracerProvider(
            id_generator=_GivenIds(),
            resource=Resource.create(
                {"service.name": self._service, "deployment.environment.name": self._environment}
            ),
        )
        exporter = _CarefulExporter(OTLPSpanExporter(timeout=_EXPORT_TIMEOUT_S), self._lost)
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_INTERVAL_MS, max_queue_size=4096)
        )
        return provider


class _CarefulExporter(SpanExporter):
    """Counts what could not be exported, and logs the reason once until an export succeeds."""

    def __init__(self, exporter: SpanExporter, lost: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._lost = lost
        self._rests_until = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch, or count it as lost."""
        if time.monotonic() < self._rests_until:
            self._lost(len(spans))
            return SpanExportResult.FAILURE
        why = "the collector did not take them in time, or refused"
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result, why = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            _warned.clear()
            return result
        self._rests_until = time.monotonic() + _REST_S
        self._lost(len(spans))
        _warn_once(why)
        return result

    def shutdown(self) -> None:
        """Let the connection go."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing waits here."""
        return True


class _GivenIds(IdGenerator):
    """Ids that were decided before the span was made; see :func:`_given_ids`."""

    def generate_span_id(self) -> int:
        """The span id of the context at hand."""
        return int(_ids.get().span_id, 16)

    def generate_trace_id(self) -> int:
        """The trace id of the context at hand."""
        return int(_ids.get().trace_id, 16)


_ids: ContextVar[TraceContext] = ContextVar("capstone_span_ids")
_warned = threading.Event()


@contextmanager
def _given_ids(context: TraceContext) -> Iterator[None]:
    token = _ids.set(context)
    try:
        yield
    finally:
        _ids.reset(token)


def _warn_once(why: str) -> None:
    if _warned.is_set():
        return
    _warned.set()
    where = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), "nowhere")
    _log.warning(
        f"Traces do not reach {where}: {why}. The work goes on without them. Check the address and the "
        "collector, or unset OTEL_EXPORTER_OTLP_ENDPOINT.",
        extra={"action": "traces.lost"},
    )
