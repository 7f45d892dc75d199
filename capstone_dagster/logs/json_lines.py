"""Log lines: one JSON object each, or one line for a person; into the spool, and to standard output.

Code logs by the standard library, on loggers `capstone.<component>`, with fields in `extra`; an op by
`context.log`. Levels mean: DEBUG, for developing; INFO, a normal step; WARNING, a retry, a degradation, a
duplicate prevented; ERROR, a failure that can be recovered from; CRITICAL, something that is needed to work
is not there.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from capstone_dagster.catalog.log_groups import INTAKE, VIDEO_ANALYSIS
from capstone_dagster.catalog.model import LogGroup
from capstone_dagster.logs.redaction import HIDDEN, Redaction, known_secrets
from capstone_dagster.logs.run_fields import ENDINGS, Fields, event_fields, run_fields, trace_id
from capstone_dagster.logs.spool import Spool
from capstone_dagster.logs.standard_output import standard_output
from capstone_dagster.settings import ConfigurationError, Settings, read_settings

Style = Literal["json", "text"]

# These stand first in a line, in this order, where they are known; whatever else there is, behind them.
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
# A whole traceback fits; a page of HTML that a proxy answered with is cut. A line may have 256 KiB.
_LONGEST_TEXT = 32_000
_DEEPEST = 6
_MOST_ITEMS = 200
# What the standard library puts on every record: the rest came in by `extra`.
_RECORD_ATTRIBUTES = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
# Dagster's own, which run_lines.py reads.
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
        """Everything that a record says, not yet redacted."""
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
        # A run of many videos, or from the UI, has no tag that would tell.
        if "trace_id" not in found and (trace := trace_id(found.get("upload_id"), None)):
            found["trace_id"] = trace
        if record.exc_info and record.exc_info[0] is not None:
            found["exception"] = "".join(traceback.format_exception(*record.exc_info))
        elif record.exc_text:
            found["exception"] = record.exc_text
        return found


class TerminalFormatter(logging.Formatter):
    """`[2026-01-22 14:23:15] INFO capstone.intake - message`, in the machine's own time."""

    def __init__(self, redaction: Redaction | None = None) -> None:
        super().__init__()
        self._redaction = redaction or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None)
        told = str(meta["orig_message"]) if isinstance(meta, Mapping) else _message(record)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"[{when}] {record.levelname} {record.name} - {told}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return self._redaction.text(line)


def json_line(fields: Mapping[str, Any], redaction: Redaction) -> str:
    """Fields as one line of JSON: the stable ones first, nothing that is None, nothing secret."""
    ordered = {name: fields[name] for name in STABLE_FIELDS if name in fields} | dict(fields)
    plain = {
        str(name): HIDDEN if redaction.is_secret(str(name)) else _plain(value, redaction, _DEEPEST)
        for name, value in ordered.items()
        if value is not None
    }
    return json.dumps(plain, ensure_ascii=False, separators=(", ", ": "))


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


def group_of(logger_name: str) -> LogGroup:
    """Which log group a logger's lines belong to."""
    return INTAKE if component_of(logger_name) == "intake" else VIDEO_ANALYSIS


class LineHandler(logging.Handler):
    """Writes each record into the spool and to a stream; whatever happens, no caller notices.

    Args:
        component: of records whose logger does not name one.
        settings: None where they cannot be read: then there is no spool.
        stream: where lines for people or awslogs go; None is the process's own standard output, which
            Dagster's capture of a step's output leaves alone.
        stream_style: None writes nothing to it.
    """

    def __init__(
        self,
        component: str,
        settings: Settings | None,
        *,
        stream: TextIO | None = None,
        stream_style: Style | None = "json",
        stream_level: int = logging.INFO,
    ) -> None:
        super().__init__(logging.DEBUG)
        redaction = Redaction(known_secrets(settings))
        self._json = JsonFormatter(component, redaction)
        self._text = TerminalFormatter(redaction)
        self._redaction = redaction
        self._spool = shared_spool(settings)
        # Now, not at the first line: that may be said when a step's output is already being captured.
        self._output = standard_output() if stream is None else None
        self._stream = stream
        self._stream_style = stream_style
        self._stream_level = stream_level

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(record)
        except Exception as error:  # law: a line is never worth a failure, whatever is wrong with it
            self._write_apology(record, error)

    def is_ours(self, record: logging.LogRecord) -> bool:
        """Whether nobody else writes this record."""
        if getattr(record, "dagster_meta", None) is not None:
            return False  # a run's or a sensor's own, with handlers of its own
        return not (component_of(record.name) == "dagster" and logging.getLogger("dagster").handlers)

    def _write(self, record: logging.LogRecord) -> None:
        if not self.is_ours(record):
            return
        group = group_of(record.name)
        spool = self._spool if record.levelno >= logging.getLevelName(group.level) else None
        streamed = self._stream_style if record.levelno >= self._stream_level else None
        if spool is None and streamed is None:
            return
        line = self._line(record)
        if spool is not None:
            spool.append(group.name, line)
        if streamed is not None:
            self._show(line if streamed == "json" else self._text.format(record))

    def _line(self, record: logging.LogRecord) -> str:
        return json_line({**_current_run(), **self._json.fields(record)}, self._redaction)

    def _show(self, line: str) -> None:
        if self._output is not None:
            self._output.write(line)
        elif self._stream is not None:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _write_apology(self, record: logging.LogRecord, error: Exception) -> None:
        try:
            fields = {
                "timestamp": utc(record.created),
                "level": record.levelname,
                "component": component_of(record.name) or "capstone",
                "action": "log.failed",
                "message": f"A line could not be written: {type(error).__name__} in {record.pathname}:"
                f"{record.lineno}.",
                **_current_run(),
            }
            line = json_line(fields, self._redaction)
            if self._spool is not None:
                self._spool.append(group_of(record.name).name, line)
            if self._stream_style == "json":
                self._show(line)
        except Exception:
            pass  # there is nobody left to tell


class RunLogHandler(LineHandler):
    """What dagster.yaml gives each run: everything that the run says and Dagster says of it.

    Into the spool from DEBUG up; as JSON to standard output from INFO up, if that is JSON: text is what
    Dagster's own console writes, which then keeps silent. Dagster makes one of these at least twice a run.
    """

    def __init__(self) -> None:
        settings: Settings | None = None
        style: Style | None = "json"
        try:
            settings = read_settings()
            style = "json" if style_of(settings, sys.stdout) == "json" else None
        except ConfigurationError:
            pass  # the code location tells of it, by name; what it says goes to standard output
        super().__init__("analysis", settings, stream_style=style)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self._stream_style == "json":
            # Dagster hands the record to its console next, which would write it once more, as text: what has
            # no level is below every console's.
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
            _forget_run()
        return line


def configure_logging(
    settings: Settings | None,
    component: str,
    *,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    style: Style | None = None,
) -> None:
    """Give this process its log lines: of `capstone` and `batch_gpu` all, of libraries warnings.

    A process is configured once; what calls this later changes nothing.

    Args:
        settings: None where they cannot be read.
        component: of lines whose logger does not name one: `code-location`, `shipper`.
        level: the least that goes to the stream; the spool's levels are its groups'.
        stream: None is standard output, which a command whose output is its result must not choose.
        style: what CAPSTONE_LOG_FORMAT says, unless it is given.
    """
    root = logging.getLogger()
    with _configuring:
        if any(isinstance(handler, LineHandler) for handler in root.handlers):
            return
        style = style or (style_of(settings, stream or sys.stdout) if settings is not None else "json")
        root.addHandler(
            LineHandler(component, settings, stream=stream, stream_style=style, stream_level=level)
        )
        for name in ("capstone", "batch_gpu"):
            logging.getLogger(name).setLevel(logging.DEBUG)


def style_of(settings: Settings, stream: TextIO) -> Style:
    """`json` or `text`, as CAPSTONE_LOG_FORMAT says, or as the stream asks for."""
    if settings.log_format != "auto":
        return settings.log_format
    try:
        return "text" if stream.isatty() else "json"
    except (AttributeError, ValueError):
        return "json"  # closed, or none


def shared_spool(settings: Settings | None) -> Spool | None:
    """This process's spool, where CAPSTONE_LOG_SPOOL names one: handlers and metrics share its files."""
    if settings is None or settings.log_spool is None:
        return None
    key = (str(Path(settings.log_spool).expanduser()), settings.log_spool_mb * 1024 * 1024)
    with _configuring:
        if key not in _spools:
            _spools[key] = Spool(Path(key[0]), key[1])
        return _spools[key]


_configuring = threading.RLock()
_spools: dict[tuple[str, int], Spool] = {}
# The run that this process executes, if it does: lines of libraries and threads are the run's, too.
_run: Fields = {}
_run_started: dict[str, float] = {}


def _remember_run(run_id: str, tags: Mapping[str, str], now: float) -> None:
    if run_id not in _run_started:
        _run_started.clear()
        _run_started[run_id] = now
    if _run.get("run_id") != run_id:
        _run.clear()
        _run.update(run_fields(run_id, tags))


def _forget_run() -> None:
    _run.clear()


def _current_run() -> Fields:
    return dict(_run)


def _of_run(record: logging.LogRecord, meta: Mapping[str, Any]) -> Fields:
    found: Fields = run_fields(meta["run_id"], meta["job_tags"])
    found |= {"job": meta.get("job_name"), "step": meta.get("step_key"), "action": "log"}
    found["message"] = meta["orig_message"]
    event = meta.get("dagster_event")
    if event is None:
        # An op's own words; those of no step are Dagster's, and a library's its component's.
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
    """The value as JSON can hold it, without its secrets and of bounded size."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _short(redaction.text(value))
    if depth == 0:
        return _short(redaction.text(str(value)))
    if isinstance(value, Mapping):
        return {
            _short(redaction.text(str(name))): HIDDEN
            if redaction.is_secret(str(name))
            else _plain(item, redaction, depth - 1)
            for name, item in list(value.items())[:_MOST_ITEMS]
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, redaction, depth - 1) for item in list(value)[:_MOST_ITEMS]]
    return _short(redaction.text(str(value)))


def _short(text: str) -> str:
    # Half a surrogate pair is no text that UTF-8 can hold.
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… [cut, {len(text):,} characters in all]"
