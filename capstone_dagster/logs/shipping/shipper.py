"""Sends what waits in the spool to CloudWatch: lines to their log groups, metrics by PutMetricData.

At least once, and in order within a stream: an offset moves on when CloudWatch has answered. A stream is one
writer's day. What cannot be sent waits on disk; each log group, and the metrics, have troubles of their own,
so that a group that may not be written to does not hold up the others.

    python -m capstone_dagster.logs.shipping.shipper --spool DIR   one process for a machine's spool
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from capstone_dagster.catalog.metrics import TELEMETRY_DROPPED
from capstone_dagster.logs.json_lines import configure_logging
from capstone_dagster.logs.shipping.heartbeats import health_check_of, send_heartbeats
from capstone_dagster.logs.shipping.log_events import (
    MOST_EVENTS,
    event_time,
    first_batch,
    refused_events,
    stream_name,
)
from capstone_dagster.logs.shipping.metric_data import (
    MalformedMetrics,
    MetricRequest,
    embedded_metrics,
    values_of,
)
from capstone_dagster.logs.shipping.outlets import Outlet, Pace, Service
from capstone_dagster.logs.shipping.refusals import Refusal, refusal_of
from capstone_dagster.logs.shipping.shipper_status import (
    ChannelStatus,
    ShipperStatus,
    read_status,
    replace_file,
    write_status,
)
from capstone_dagster.logs.spool import (
    Record,
    Segment,
    losses,
    remove_unborn,
    segments,
    used_bytes,
)
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.settings import Settings, read_settings

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import InputLogEventTypeDef

log = logging.getLogger("capstone.shipper")

METRICS_CHANNEL = "metrics"
_READ_BYTES = 1024 * 1024
# So many seconds one group is served before the other groups and the metrics have their turn.
_TURN_S = 3.0
# Of the spool's limit: from here on, what cannot be sent makes room for what can, down to the second.
_SHED_ABOVE, _SHED_TO = 0.75, 0.5


class Shipper:
    """Sends one spool's lines; one at a time works on a folder, others wait for it to end.

    Args:
        settings: CAPSTONE_METRICS says whether lines that carry metrics become PutMetricData, and
            CAPSTONE_ENVIRONMENT whether missing log groups are made: only locally; in AWS a stack has them.
        client: makes the client of a service; boto3's by default.
        metrics: where it counts what it gave up.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        pace: Pace = Pace(),
        client: Callable[[Service], Any] | None = None,
        host: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._limit_bytes = settings.log_spool_mb * 1024 * 1024
        self._puts_metrics = settings.metrics == "put"
        self._makes_groups = settings.environment == "local"
        self._pace = pace
        self._host = re.sub(r"[^\w.-]", "-", host or socket.gethostname())
        self._logs = Outlet("logs", pace, client)
        self._cloudwatch = Outlet("cloudwatch", pace, client)
        self._metrics = metrics or Metrics(settings)
        self._channels: dict[str, _Channel] = {}
        self._marks: dict[Path, _Marks] = {}
        self._streams: set[tuple[str, str]] = set()
        self._metrics_due = 0.0
        self._report_due = 0.0
        self._room_due = 0.0
        self._give_up: float | None = None
        self._lock: int | None = None
        self._status = ShipperStatus()
        self._written = ""
        self._stumbled: set[str] = set()

    def run(self, stop: threading.Event, drain_s: float) -> None:
        """Send until `stop`, then what is left, for `drain_s` seconds at most. Never raises."""
        while not stop.is_set():
            if not self._safely(self.ship):
                stop.wait(self._pace.idle)
        self._safely(lambda: self.drain(drain_s))

    def drain(self, most_s: float) -> bool:
        """Send what is left, at once and whatever was wrong before, and leave the folder to the next one.

        Returns:
            whether everything is sent.
        """
        self._give_up = time.monotonic() + most_s
        try:
            for channel in self._channels.values():
                channel.retry_at = 0.0
            self._logs.retry_at = self._cloudwatch.retry_at = self._report_due = 0.0
            more = True
            while more and not self._out_of_time():
                self._metrics_due = 0.0
                more = self.ship()
            self._metrics_due = 0.0
            self.ship()  # what the turn before has reported of itself
            owned = self._lock is not None
            left = sum(self._unsent_lines(each) for each in segments(self._folder)) if owned else 0
            if left:
                log.warning(
                    "%d lines for CloudWatch are left in %s.",
                    left,
                    self._folder,
                    extra={"action": "shipper.undrained", "lines": left},
                )
            return left == 0
        finally:
            self._give_up = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def ship(self) -> bool:
        """Send what there is, as far as it is its turn; whether more could be sent at once."""
        if not self._owns_folder():
            return False
        found = segments(self._folder)
        more = self._ship_lines(found)
        if self._puts_metrics and time.monotonic() >= self._metrics_due:
            self._metrics_due = time.monotonic() + self._pace.metrics
            more = self._ship_metrics(found) or more
        self._tidy(found)
        self._count_losses()
        if time.monotonic() >= self._room_due:
            self._room_due = time.monotonic() + self._pace.idle * 10
            self._make_room()
        self._report()
        self._write_status()
        return more

    # --- log lines ---

    def _ship_lines(self, found: Sequence[Segment]) -> bool:
        more = False
        turn: dict[str, float] = {}
        for segment in found:
            channel = self._channel(segment.group_name)
            until = turn.setdefault(segment.group_name, time.monotonic() + _TURN_S)
            if channel.rests() or self._logs.rests() or self._out_of_time():
                continue
            if time.monotonic() > until or not self._ship_segment(segment, channel, until):
                turn[segment.group_name] = 0.0  # its writer's later segments must not overtake it
                more = True
        return more

    def _ship_segment(self, segment: Segment, channel: _Channel, until: float) -> bool:
        """Send a segment's lines; whether all that are there now have been."""
        marks = self._marks_of(segment)
        while (read := self._read(segment, marks.lines)) is not None:
            records, end = read
            lines = [each for each in records if not (self._puts_metrics and embedded_metrics(each.text))]
            while lines:
                if time.monotonic() > until or self._out_of_time():
                    return False
                count = min(first_batch(lines), channel.most)
                if self._put_lines(segment, channel, lines[:count]):
                    marks.lines = lines[count - 1].end
                    self._save(segment, marks)
                    lines = lines[count:]
                if channel.rests() or self._logs.rests():
                    return False
            marks.lines = end
            self._save(segment, marks)
        return True

    def _put_lines(self, segment: Segment, channel: _Channel, lines: Sequence[Record]) -> bool:
        """Whether these lines are done with: sent, or refused for ever; if not, now or after a rest again."""
        group, stream = segment.group_name, stream_name(self._host, segment.writer, event_time(lines[0]))
        timed = sorted(((event_time(line), line.text) for line in lines), key=lambda each: each[0])
        events: list[InputLogEventTypeDef] = [{"timestamp": at, "message": text} for at, text in timed]
        known = (group, stream) in self._streams
        try:
            client: CloudWatchLogsClient = self._logs.client()
            if not known:
                self._make_stream(client, group, stream)
            answer = client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
        except Exception as error:  # law: whatever CloudWatch does, nobody else notices
            refusal = refusal_of(error)
            if refusal.kind == "missing":
                self._streams.discard((group, stream))
                if known:
                    return False  # deleted behind our back
            if refusal.kind == "invalid":
                return self._narrow(channel, self._logs, len(lines), refusal)
            self._fail(channel, self._logs, refusal)
            return False
        refused = refused_events(answer.get("rejectedLogEventsInfo") or {}, len(events))
        if refused:
            self._drop(channel, refused, "CloudWatch takes no lines older than 14 days or of the future")
        self._succeed(channel, self._logs, len(events) - refused)
        return True

    def _make_stream(self, client: CloudWatchLogsClient, group: str, stream: str) -> None:
        if len(self._streams) > 10_000:
            self._streams.clear()
        exceptions = client.exceptions
        try:
            with contextlib.suppress(exceptions.ResourceAlreadyExistsException):
                client.create_log_stream(logGroupName=group, logStreamName=stream)
        except exceptions.ResourceNotFoundException:
            if not self._makes_groups:
                raise
            with contextlib.suppress(exceptions.ResourceAlreadyExistsException):
                client.create_log_group(logGroupName=group)
            client.create_log_stream(logGroupName=group, logStreamName=stream)
        self._streams.add((group, stream))

    # --- metrics ---

    def _ship_metrics(self, found: Sequence[Segment]) -> bool:
        """Send one request's worth; whether there is more."""
        channel = self._channel(METRICS_CHANNEL)
        if channel.rests() or self._cloudwatch.rests() or self._out_of_time():
            return False
        request = MetricRequest(channel.most)
        reached: list[tuple[Segment, int]] = []
        unfit: list[str] = []
        more = False
        for segment in found:
            offset, more = self._gather(segment, request, unfit)
            reached.append((segment, offset))
            if more:
                break
        if len(request) and not self._put_metrics(channel, request):
            return not (channel.rests() or self._cloudwatch.rests())
        for reason in unfit:
            self._drop(channel, 1, reason)
        for segment, offset in reached:
            marks = self._marks_of(segment)
            if marks.metrics != offset:
                marks.metrics = offset
                self._save(segment, marks)
        return more

    def _gather(self, segment: Segment, request: MetricRequest, unfit: list[str]) -> tuple[int, bool]:
        """Take a segment's metrics into the request: up to where, and whether the request was full there."""
        offset = self._marks_of(segment).metrics
        while (read := self._read(segment, offset)) is not None:
            records, end = read
            for record in records:
                fields = embedded_metrics(record.text)
                if fields is not None:
                    try:
                        if not request.add(values_of(fields, time.time_ns() // 1_000_000)):
                            return offset, True
                    except MalformedMetrics as error:
                        unfit.append(str(error))
                offset = record.end
            offset = end
        return offset, False

    def _put_metrics(self, channel: _Channel, request: MetricRequest) -> bool:
        """Whether these values are done with: sent, or refused for ever."""
        try:
            client: CloudWatchClient = self._cloudwatch.client()
            for namespace, data in request.requests():
                client.put_metric_data(Namespace=namespace, MetricData=data)  # type: ignore[arg-type]
        except Exception as error:  # law: whatever CloudWatch does, nobody else notices
            refusal = refusal_of(error)
            if refusal.kind == "invalid":
                return self._narrow(channel, self._cloudwatch, request.lines, refusal)
            self._fail(channel, self._cloudwatch, refusal)
            return False
        self._succeed(channel, self._cloudwatch, request.lines)
        return True

    # --- what became of it ---

    def _narrow(self, channel: _Channel, outlet: Outlet, size: int, refusal: Refusal) -> bool:
        """Something in a request is invalid to CloudWatch: halve it until that stands alone, drop that."""
        if size > 1:
            channel.most = size // 2
            return False
        self._drop(channel, 1, refusal.sentence)
        channel.refused_alone += 1
        if channel.refused_alone > 3:  # nothing is to its liking: no hurry to throw away the rest
            self._fail(channel, outlet, refusal)
        return True

    def _succeed(self, channel: _Channel, outlet: Outlet, count: int) -> None:
        for place in (outlet, channel):
            if place.trouble is not None:
                place.trouble = None
                log.info(
                    "%s takes lines again.",
                    place.words,
                    extra={"action": "shipper.recovered", "channel": channel.name},
                )
        outlet.succeed()
        status = channel.status
        status.last_success, status.last_error, status.remedy = time.time(), None, None
        status.sent += count
        channel.most = min(MOST_EVENTS, channel.most * 4)
        channel.refused_alone = 0

    def _fail(self, channel: _Channel, outlet: Outlet, refusal: Refusal) -> None:
        of_all = refusal.kind in ("outage", "unusable")
        place: _Channel | Outlet = outlet if of_all else channel
        if place.trouble != refusal.remedy:
            place.trouble = refusal.remedy
            log.warning(
                "%s takes no lines, which wait in %s meanwhile: %s %s",
                place.words,
                self._folder,
                refusal.sentence,
                refusal.remedy,
                extra={"action": "shipper.refused", "channel": channel.name},
            )
        status = channel.status
        status.last_failure, status.last_error = time.time(), refusal.sentence
        status.remedy = refusal.remedy
        if of_all:
            outlet.fail(refusal)
        else:
            channel.retry_at = time.monotonic() + self._pace.refused * random.uniform(0.8, 1.2)

    def _drop(self, channel: _Channel, count: int, reason: str) -> None:
        channel.status.dropped += count
        if count and reason not in channel.reasons and len(channel.reasons) < 10:
            channel.reasons.add(reason)
            log.warning(
                "Dropped %d of %s: %s. Later ones are only counted.",
                count,
                channel.words,
                reason,
                extra={"action": "shipper.dropped", "channel": channel.name, "lines": count},
            )

    def _count_losses(self) -> None:
        """Add what writers have lost, and tidy the counts of those that are gone."""
        counted = self._status.counted
        present = set()
        for loss in losses(self._folder):
            name = f"{loss.group_name}/{loss.path.name}"
            finished = loss.is_finished()
            lines = loss.read()
            self._status.lost += max(0, lines - counted.get(name, 0))
            counted[name] = lines
            present.add(name)
            if finished:
                self._write_status()
                loss.path.unlink(missing_ok=True)
        for name in set(counted) - present:
            del counted[name]

    def _report(self) -> None:
        """Publish what was given up, by the same way as everything else."""
        if time.monotonic() < self._report_due:
            return
        self._report_due = time.monotonic() + self._pace.report
        totals = {
            "spool": self._status.lost,
            "metrics": self._channel(METRICS_CHANNEL).status.dropped,
            "logs": sum(
                each.dropped for name, each in self._status.channels.items() if name != METRICS_CHANNEL
            ),
        }
        for channel, total in totals.items():
            news = total - self._status.told.get(channel, 0)
            if news > 0:
                self._status.told[channel] = total
                self._metrics.add(TELEMETRY_DROPPED, news, channel=channel)

    # --- the spool ---

    def _read(self, segment: Segment, offset: int) -> tuple[list[Record], int] | None:
        """The next records of a segment, and where they end; None when there are none (yet)."""
        try:
            if segment.path.stat().st_size <= offset:
                return None
            records, end = segment.read(offset, _READ_BYTES, segment.is_finished())
        except OSError:  # gone, or not for us to read: the others are
            return None
        return (records, end) if end > offset else None

    def _marks_of(self, segment: Segment) -> _Marks:
        if segment.path not in self._marks:
            marks = _Marks()
            with contextlib.suppress(OSError, ValueError, TypeError):
                marks = _Marks(**json.loads(_marks_path(segment).read_text()))
            self._marks[segment.path] = marks
        return self._marks[segment.path]

    def _save(self, segment: Segment, marks: _Marks) -> None:
        replace_file(_marks_path(segment), json.dumps(asdict(marks)))

    def _tidy(self, found: Sequence[Segment]) -> None:
        """Remove what is sent and will not grow, and what was left of files that are gone."""
        for segment in found:
            # Asked twice: between the first look at its size and the second it may have grown and ended.
            if self._is_sent(segment) and segment.is_finished() and self._is_sent(segment):
                self._remove(segment)
        present = {each.path for each in found}
        for path in [path for path in self._marks if path not in present]:
            del self._marks[path]

    def _is_sent(self, segment: Segment) -> bool:
        return not self._unsent(segment, "lines") and not (
            self._puts_metrics and self._unsent(segment, "metrics")
        )

    def _remove(self, segment: Segment) -> None:
        segment.remove()
        _marks_path(segment).unlink(missing_ok=True)
        self._marks.pop(segment.path, None)

    def _make_room(self) -> None:
        """Before the spool is full, give up the oldest of what cannot be sent: it would keep out all else."""
        remove_unborn(self._folder)
        for orphan in self._folder.glob("*/*.sent"):
            if not orphan.with_suffix(".lines").exists():
                orphan.unlink(missing_ok=True)
        self._status.waiting_bytes = used = used_bytes(self._folder)
        if used <= _SHED_ABOVE * self._limit_bytes:
            return
        for segment in sorted(segments(self._folder), key=_age):
            stuck, outlet = self._channel(segment.group_name), self._logs
            if not self._unsent(segment, "lines"):
                stuck, outlet = self._channel(METRICS_CHANNEL), self._cloudwatch
            if (stuck.trouble or outlet.trouble) and segment.is_finished():
                lines = self._unsent_lines(segment)
                self._drop(stuck, lines, "they could not be sent, and the spool is nearly full")
                with contextlib.suppress(OSError):
                    used -= segment.path.stat().st_size
                self._remove(segment)
                if used <= _SHED_TO * self._limit_bytes:
                    return

    def _unsent(self, segment: Segment, what: Literal["lines", "metrics"]) -> bool:
        marks = self._marks_of(segment)
        try:
            return segment.path.stat().st_size > (marks.lines if what == "lines" else marks.metrics)
        except OSError:
            return False

    def _unsent_lines(self, segment: Segment) -> int:
        """How many of a segment's lines CloudWatch does not have."""
        marks = self._marks_of(segment)
        count = 0
        offset = min(marks.lines, marks.metrics) if self._puts_metrics else marks.lines
        while (read := self._read(segment, offset)) is not None:
            records, offset = read
            for record in records:
                carries = self._puts_metrics and embedded_metrics(record.text) is not None
                count += record.end > (marks.metrics if carries else marks.lines)
        return count

    def _owns_folder(self) -> bool:
        if self._lock is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._folder / "shipper.lock", os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                return False  # nobody can write to it either; who tries says so
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._lock = descriptor
            self._channels.clear()
            self._marks.clear()
            self._status = read_status(self._folder) or ShipperStatus()
            self._status.pid = os.getpid()
        return True

    def _channel(self, name: str) -> _Channel:
        if name not in self._channels:
            status = self._status.channels.setdefault(name, ChannelStatus())
            # What was wrong for an earlier shipper is told again if it is wrong for this one.
            status.last_error = status.remedy = None
            self._channels[name] = _Channel(name, status)
        return self._channels[name]

    def _write_status(self) -> None:
        known = json.dumps(asdict(self._status) | {"updated": 0.0})
        # An unchanged one is renewed now and then: its age tells whether there is a shipper.
        if known != self._written or time.time() - self._status.updated > 10:
            self._written = known
            self._status.updated = time.time()
            write_status(self._folder, self._status)

    def _out_of_time(self) -> bool:
        return self._give_up is not None and time.monotonic() > self._give_up

    def _safely(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception as error:  # law: a fault in here must not end the sending for ever
            if repr(error) not in self._stumbled:
                self._stumbled.add(repr(error))
                log.exception("The shipper stumbled, and goes on.", extra={"action": "shipper.failed"})
            return False


@dataclass(slots=True)
class _Marks:
    """How far a segment is sent, in bytes: its lines, and its metrics where those go another way."""

    lines: int = 0
    metrics: int = 0


@dataclass(slots=True)
class _Channel:
    """One log group, or the metrics.

    Attributes:
        most: lines that a request may have; fewer while one is looked for that CloudWatch does not take.
        trouble: the remedy that was told, until it works again.
    """

    name: str
    status: ChannelStatus
    most: int = MOST_EVENTS
    refused_alone: int = 0
    retry_at: float = 0.0
    trouble: str | None = None
    reasons: set[str] = field(default_factory=set)

    @property
    def words(self) -> str:
        return "Metrics in CloudWatch" if self.name == METRICS_CHANNEL else f"Log group {self.name}"

    def rests(self) -> bool:
        return time.monotonic() < self.retry_at


def _age(segment: Segment) -> float:
    try:
        return segment.path.stat().st_mtime
    except OSError:
        return 0.0


def _marks_path(segment: Segment) -> Path:
    return segment.path.with_suffix(".sent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Ship a spool until SIGTERM or SIGINT, then what is left of it."""
    parser = argparse.ArgumentParser(prog="shipper", description="Send a spool's lines to CloudWatch.")
    parser.add_argument("--spool", type=Path, help="the folder; CAPSTONE_LOG_SPOOL by default")
    parser.add_argument("--drain", type=float, default=8.0, help="seconds for what is left at the end")
    parser.add_argument(
        "--health-check",
        action="append",
        default=[],
        metavar="SERVICE=HOW",
        help="a service whose heartbeat to send, and its web address, or `daemon`",
    )
    options = parser.parse_args(arguments)
    settings = read_settings()
    folder = options.spool or Path(settings.required("log_spool")).expanduser()
    configure_logging(settings, "shipper")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    shipping = threading.Thread(
        target=Shipper(folder, settings).run, args=(stop, options.drain), daemon=True, name="shipper"
    )
    shipping.start()
    named = [each.partition("=") for each in options.health_check]
    checks = {service: health_check_of(how) for service, _, how in named}
    beating = (checks, Metrics(settings), stop)
    threading.Thread(target=send_heartbeats, args=beating, daemon=True, name="heartbeat").start()
    stop.wait()
    # A call of AWS's library that does not come back must not hold up the end.
    shipping.join(options.drain + 1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
