"""Log lines: one JSON object each, or one line of text for people, on standard output.

Code logs by the standard library, on loggers `capstone.<component>`, with fields in `extra`; an op by
`context.log`. DEBUG is for development; INFO a normal step; WARNING a retry, a degradation or a duplicate
prevented; ERROR a failure that the system recovers from; CRITICAL something missing that work depends on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import numbers
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, Literal, TextIO

from capstone_dagster.logs.run_fields import ENDINGS, Fields, event_fields, run_fields, trace_id
from capstone_dagster.outside_text import visible
from capstone_dagster.redaction import HIDDEN, Redaction, known_secrets
from capstone_dagster.settings import ConfigurationError, Settings, read_settings
from capstone_dagster.standard_output import standard_output
from capstone_dagster.wall_clock import wall_clock

Style = Literal["json", "text"]

# These come first in a line, in this order, where they are known; other fields follow.
STABLE_FIELDS = (
    "timestamp",
    "level",
    "component",
    "action",
    "message",
    "video_id",
    "external_id",
    "bucket",
    "key",
    "upload_id",
    "message_id",
    "request_id",
    "run_id",
    "step",
    "elapsed_s",
    "trace_id",
)
# Docker splits what is longer than 16 KiB into several events, of which none is JSON (moby,
# daemon/logger/copier.go). Bytes of UTF-8, with room for the line break.
MAX_LINE_BYTES = 16_000
# A field that is no longer than this is never cut.
_ALWAYS_KEPT = 400
_DEEPEST = 6
_MOST_ITEMS = 200
# What the standard library puts on every record; everything else came by `extra`.
_RECORD_ATTRIBUTES = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
# Dagster's own, which run_fields.py reads.
_DAGSTER_ATTRIBUTES = {"dagster_meta", "dagster_event", "dagster_event_batch_metadata"}
_COMPONENTS = {"dagster": "dagster", "batch_gpu": "launcher"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Args:
        component: of records whose logger does not name one.
        redaction: what is hidden.
    """

    def __init__(self, component: str = "capstone", redaction: Redaction | None = None) -> None:
        super().__init__()
        self._component = component
        self._redaction = redaction or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        return json_line(self.fields(record), self._redaction)

    def fields(self, record: logging.LogRecord) -> Fields:
        """Everything that a record carries, not yet redacted."""
        found: Fields = {
            "timestamp": utc(record.created),
            "level": record.levelname,
            "component": component_of(record.name) or self._component,
        }
        if component_of(record.name) is None:
            found["logger"] = record.name
        meta = getattr(record, "dagster_meta", None)
        if isinstance(meta, Mapping) and "run_id" in meta:
            found |= _of_run(record, meta)
        else:
            found |= {"action": "log", "message": _message(record)}
        found |= {
            name: value
            for name, value in record.__dict__.items()
            if name not in _RECORD_ATTRIBUTES and name not in _DAGSTER_ATTRIBUTES
        }
        # A run of many videos, or from the UI, has no tag that names it.
        if "trace_id" not in found and (trace := trace_id(found.get("upload_id"), None)):
            found["trace_id"] = trace
        if record.exc_info and record.exc_info[0] is not None:
            found["exception"] = "".join(traceback.format_exception(*record.exc_info))
        elif record.exc_text:
            found["exception"] = record.exc_text
        return found


class TerminalFormatter(logging.Formatter):
    """`[2026-01-22 14:23:15+09:00] INFO capstone.intake - message`."""

    def __init__(self, redaction: Redaction | None = None) -> None:
        super().__init__()
        self._redaction = redaction or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None)
        message = str(meta["orig_message"]) if isinstance(meta, Mapping) else _message(record)
        line = f"[{wall_clock(record.created)}] {record.levelname} {record.name} - {message}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return visible(self._redaction.text(line))


def json_line(fields: Mapping[str, Any], redaction: Redaction) -> str:
    """Fields as one line of JSON, of at most MAX_LINE_BYTES: stable ones first, no None, no secret."""
    ordered = {name: fields[name] for name in STABLE_FIELDS if name in fields} | dict(fields)
    plain = {
        str(name): HIDDEN if redaction.is_secret(str(name)) else _plain(value, redaction, _DEEPEST)
        for name, value in ordered.items()
        if value is not None
    }
    line = _dump(plain)
    while (size := len(line.encode())) > MAX_LINE_BYTES:
        plain = _shorter(plain, size - MAX_LINE_BYTES)
        line = _dump(plain)
    return line


def utc(timestamp: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, with milliseconds."""
    milliseconds = math.floor(timestamp * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def component_of(logger_name: str) -> str | None:
    """`capstone.intake.tick` is of the component `intake`; None where the name says nothing."""
    first, _, rest = logger_name.partition(".")
    if first == "capstone":
        return rest.partition(".")[0] or None
    return _COMPONENTS.get(first)


class LineHandler(logging.Handler):
    """Writes each record as one line; no failure reaches the caller.

    Args:
        component: of records whose logger does not name one.
        settings: None where they cannot be read.
        stream: None is the process's own standard output, which Dagster's capture of a step's output leaves
            alone.
        style: `json`, `text`, or None to write nothing.
        least: the level below which a record outside of a run is dropped; a run's are all written.
    """

    def __init__(
        self,
        component: str,
        settings: Settings | None,
        *,
        stream: TextIO | None = None,
        style: Style | None = "json",
        least: int = logging.INFO,
    ) -> None:
        super().__init__(logging.DEBUG)
        self._redaction = Redaction(known_secrets(settings))
        self._json = JsonFormatter(component, self._redaction)
        self._text = TerminalFormatter(self._redaction)
        # Duplicated now: at the first line, a step's output may be captured already.
        self._output = standard_output() if stream is None else None
        self._stream = stream
        self._style = style
        self._least = least

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._style is not None and self.is_ours(record) and record.levelno >= self._level_now():
                self._show(self._line(record) if self._style == "json" else self._text.format(record))
        except Exception as error:  # law: a line is never worth a failure, whatever is wrong with it
            self._write_apology(record, error)

    def is_ours(self, record: logging.LogRecord) -> bool:
        """Whether no other handler writes this record."""
        if getattr(record, "dagster_meta", None) is not None:
            return False  # a run's or a sensor's own, with handlers of its own
        return not (component_of(record.name) == "dagster" and logging.getLogger("dagster").handlers)

    def _level_now(self) -> int:
        return logging.DEBUG if _run and self._style == "json" else self._least

    def _line(self, record: logging.LogRecord) -> str:
        return json_line({**_run, **self._json.fields(record)}, self._redaction)

    def _show(self, line: str) -> None:
        if self._output is not None:
            self._output.write(line)
        elif self._stream is not None:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _write_apology(self, record: logging.LogRecord, error: Exception) -> None:
        if self._style != "json":
            return
        fields = {
            "timestamp": utc(record.created),
            "level": record.levelname,
            "component": component_of(record.name) or "capstone",
            "action": "log.failed",
            "message": f"A line could not be written: {type(error).__name__} in {record.pathname}:"
            f"{record.lineno}.",
            **_run,
        }
        with contextlib.suppress(Exception):
            self._show(json_line(fields, self._redaction))


class RunLogHandler(LineHandler):
    """What dagster.yaml gives each run: everything that a run logs and that Dagster logs about it.

    From DEBUG up and as JSON. Where text is asked for, Dagster's own console writes it, and this handler
    writes nothing. Dagster makes at least two of these in each run.

    Args:
        stream: in place of the process's own standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        settings: Settings | None = None
        style: Style = "json"
        with contextlib.suppress(ConfigurationError):  # the code location reports it, by the variable's name
            settings = read_settings()
            style = style_of(settings, stream or sys.stdout)
        super().__init__(
            "analysis",
            settings,
            stream=stream,
            style="json" if style == "json" else None,
            least=logging.DEBUG,
        )

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self._style == "json":
            # Dagster hands the record to its console next, which would write it once more, as text: a record
            # without a level is below every console's.
            record.levelno = logging.NOTSET

    def is_ours(self, record: logging.LogRecord) -> bool:
        return True

    def _line(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None)
        event = meta.get("dagster_event") if isinstance(meta, Mapping) else None
        if isinstance(meta, Mapping) and meta.get("run_id"):
            _remember_run(meta["run_id"], meta["job_tags"], record.created)
        line = super()._line(record)
        if event is not None and event.event_type_value in ENDINGS:
            _run.clear()
        return line


def configure_logging(
    settings: Settings | None,
    component: str,
    *,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    style: Style | None = None,
) -> None:
    """Give this process its log lines: all of `capstone` and `batch_gpu`, warnings of libraries.

    A process is configured once; a later call changes nothing.

    Args:
        settings: None where they cannot be read.
        component: of lines whose logger does not name one, as in `code-location`.
        level: the least that is written outside of runs.
        stream: None is standard output, which a command whose output is its result must not choose.
        style: what CAPSTONE_LOG_FORMAT says, unless it is given.
    """
    root = logging.getLogger()
    with _configuring:
        if any(isinstance(handler, LineHandler) for handler in root.handlers):
            return
        style = style or (style_of(settings, stream or sys.stdout) if settings is not None else "json")
        root.addHandler(LineHandler(component, settings, stream=stream, style=style, least=level))
        for name in ("capstone", "batch_gpu"):
            logging.getLogger(name).setLevel(logging.DEBUG)


def style_of(settings: Settings, stream: TextIO) -> Style:
    """`json` or `text`: what CAPSTONE_LOG_FORMAT says, or what suits the stream."""
    if settings.log_format != "auto":
        return settings.log_format
    try:
        return "text" if stream.isatty() else "json"
    except (AttributeError, ValueError):
        return "json"  # closed, or none


_configuring = threading.RLock()
# The run that this process executes, if any: lines of libraries and threads are the run's, too.
_run: Fields = {}
_run_started: dict[str, float] = {}


def _remember_run(run_id: str, tags: Mapping[str, str], now: float) -> None:
    if run_id not in _run_started:
        _run_started.clear()
        _run_started[run_id] = now
    if _run.get("run_id") != run_id:
        _run.clear()
        _run.update(run_fields(run_id, tags))


def _of_run(record: logging.LogRecord, meta: Mapping[str, Any]) -> Fields:
    found: Fields = run_fields(meta["run_id"], meta["job_tags"])
    found |= {"job": meta.get("job_name"), "step": meta.get("step_key"), "action": "log"}
    found["message"] = meta["orig_message"]
    event = meta.get("dagster_event")
    if event is None:
        # An op's own line; a line of no step is Dagster's, and a library's is its component's.
        if component_of(record.name) == "dagster" and meta.get("step_key") is not None:
            found["component"] = "analysis"
        return found
    found |= {"component": "dagster", **event_fields(event)}
    if event.event_type_value in ENDINGS and meta["run_id"] in _run_started:
        found["elapsed_s"] = round(record.created - _run_started[meta["run_id"]], 3)
    return found


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit; what was meant is still worth having
        return f"{record.msg} {record.args!r}"


def _plain(value: Any, redaction: Redaction, depth: int) -> Any:
    """The value as JSON can hold it, without its secrets."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _utf8(redaction.text(value))
    if depth == 0:
        return _utf8(redaction.text(str(value)))
    if isinstance(value, Mapping):
        return {
            _utf8(redaction.text(str(name))): HIDDEN
            if redaction.is_secret(str(name))
            else _plain(item, redaction, depth - 1)
            for name, item in list(value.items())[:_MOST_ITEMS]
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, redaction, depth - 1) for item in list(value)[:_MOST_ITEMS]]
    return _utf8(redaction.text(str(value)))


def _utf8(text: str) -> str:
    # Half a surrogate pair is no text that UTF-8 can hold.
    return text.encode(errors="backslashreplace").decode()


def _shorter(fields: Mapping[str, Any], excess: int) -> dict[str, Any]:
    """The fields with the middle of the longest one left out; where all are short, fewer fields."""
    texts = {name: value if isinstance(value, str) else _dump(value) for name, value in fields.items()}
    longest = max(texts, key=lambda name: len(texts[name]))
    length = len(texts[longest])
    if length <= _ALWAYS_KEPT:
        return {name: fields[name] for name in list(fields)[: len(fields) // 2]}
    # Escapes and other alphabets take several bytes a character; what is still too long comes here again.
    bytes_each = len(_dump(texts[longest]).encode()) / length
    kept = max(_ALWAYS_KEPT // 2, int(length - (excess + _ALWAYS_KEPT // 2) / bytes_each))
    return {**fields, longest: _without_middle(texts[longest], kept)}


def _without_middle(text: str, most: int) -> str:
    """At most `most` characters and a mark. More of the end stays: there a traceback names its error."""
    if len(text) <= most:
        return text
    head = most // 4
    return (
        f"{text[:head]} … [{len(text) - most:,} of {len(text):,} characters left out] … {text[head - most :]}"
    )


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
