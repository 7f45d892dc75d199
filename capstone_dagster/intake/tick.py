"""One look at the upload queue: what it received, what it asks of Dagster, and what it keeps for the next."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice

import dagster as dg

from capstone_dagster.catalog.metrics import (
    DUPLICATES_PREVENTED,
    LEG_DURATION,
    MESSAGES_MALFORMED,
    QUEUE_AGE,
    RECEIVED,
    UPLOADS_IGNORED,
    UPLOADS_RECEIVED,
    UPLOADS_VANISHED,
)
from capstone_dagster.catalog.model import Metric
from capstone_dagster.dagster_private import RUN_KEY_TAG
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.left_messages import LEFT_MESSAGES, LeftMessages
from capstone_dagster.failures.prevented_duplicates import count_prevented
from capstone_dagster.intake.gate import Gate
from capstone_dagster.intake.identity import run_key
from capstone_dagster.intake.lines import log_line, of_message, of_request, of_upload, warn
from capstone_dagster.intake.lookup import look_up
from capstone_dagster.intake.messages import AnalysisRequest, KeyFilter, parse_message
from capstone_dagster.intake.pending import Counts, Pending, write_cursor
from capstone_dagster.intake.queue import QueueUnavailable, ReceivedMessage, UploadQueue
from capstone_dagster.intake.runs import JOB_NAME, PARTITIONS_NAME, NewUpload, materialization, run_request
from capstone_dagster.intake.tracing import record_uploads
from capstone_dagster.services import Services
from capstone_dagster.storage.database import RefusedByDatabase
from capstone_dagster.storage.errors import (
    DatabaseUnavailable,
    PermissionDenied,
    SourceArchived,
    SourceForbidden,
    SourceMissing,
    StorageError,
    StorageUnavailable,
)
from capstone_dagster.storage.video_status import mark_archived, mark_queued
from capstone_dagster.storage.videos import record_upload

# Dagster cuts a tick off after 60 s. Receiving ends after this long, asking S3 after that long; what follows
# is bounded by the number of messages and takes a few seconds.
_RECEIVE_BUDGET_S = 25.0
_IDENTIFY_BUDGET_S = 32.0
# The queue's visibility time-out is 180 s: a receipt older than this is not worth keeping.
_RECEIPT_LIFE_S = 170.0


class Tick:
    """One evaluation: what it received, what it asks for, and what it keeps for the next one."""

    def __init__(self, context: dg.SensorEvaluationContext, services: Services) -> None:
        self._context = context
        self._services = services
        self._queue = UploadQueue(services.sqs, services.settings.required("queue_url"))
        self._gate = Gate(context.instance, services)
        self._began = time.time()
        self._started = time.monotonic()
        self._waiting_runs: int | None = None
        self._oldest_s: float | None = None
        self.counts = Counts()
        self._pending: list[Pending] = []
        self._new: dict[str, NewUpload] = {}
        self._why_left: StorageError | None = None

    def acknowledge_recorded(self, pending: Sequence[Pending]) -> None:
        """Delete the messages of earlier ticks whose runs are on record by now, also while intake is paused.

        Raises:
            DatabaseUnavailable: their uploads cannot be said to be queued, and intake is not paused; if it
                is, those messages are kept for the next tick.
        """
        recorded = self._runs_on_record(key for item in pending for key in item.run_keys.values())
        done = []
        for item in pending:
            if all(key in recorded for key in item.run_keys.values()):
                done.append(item)
            elif item.expires > time.time():
                self._pending.append(item)
        try:
            self._finish(done, recorded)
        except DatabaseUnavailable:
            if not self._gate.paused:
                raise
            self._pending += [item for item in done if item.expires > time.time()]

    def may_take_more(self) -> bool:
        """Whether intake is not paused and the run queue has room; else messages wait in SQS, at no cost.

        A database that is away ends the tick here: each message received in vain is a step towards the
        dead-letter queue.
        """
        if self._gate.paused and not self._gate.wants_probe:
            return False
        self._services.database.ping()
        waiting = dg.RunsFilter(job_name=JOB_NAME, statuses=[dg.DagsterRunStatus.QUEUED])
        queued = self._context.instance.get_runs_count(waiting)
        if queued <= self._services.settings.max_queued_runs:
            return True
        self._waiting_runs = queued
        return False

    def receive(self) -> list[ReceivedMessage]:
        """Take what is in the queue, waiting for a first message, bounded in number and time.

        One message is enough for a probe; more of them would only be a delivery nearer to the dead letters.
        """
        settings = self._services.settings
        left_s = max(0.0, settings.poll_wait_s - (time.monotonic() - self._started))
        most = 1 if self._gate.wants_probe else settings.messages_per_tick
        # With messages to acknowledge there is no time to lose: their receipts run out.
        messages = self._queue.receive(wait_s=min(1.0, left_s) if self._pending else left_s, most=most)
        while messages and len(messages) < most and self._within(_RECEIVE_BUDGET_S):
            more = self._queue.receive(wait_s=0)
            if not more:
                break
            messages += more
        # One that came again meanwhile is the same message; its latest receipt is the one that works.
        messages = list({message.message_id: message for message in messages}.values())
        self.counts.received += len(messages)
        self._oldest_s = max(
            [self._oldest_s or 0.0, *(time.time() - item.sent_ms / 1000 for item in messages)]
        )
        return messages

    def may_wait_on(self) -> bool:
        """Whether what came so far asks for nothing, so that the tick may go on waiting for an upload.

        Dagster begins the next tick only after some seconds: S3's test event, or a duplicate, should not
        make the upload behind it wait for that.
        """
        return not self._new and not self._pending and self._within(self._services.settings.poll_wait_s)

    def understand(self, messages: Sequence[ReceivedMessage]) -> None:
        """Sort messages into: acknowledged at once, left in the queue, and waiting for a run."""
        settings = self._services.settings
        buckets = settings.source_buckets or filter(None, (settings.raw_bucket,))
        keys = KeyFilter(settings.key_prefix, settings.key_suffixes, frozenset(buckets))
        parsed = [(message, parse_message(message.body, keys)) for message in messages]
        asked = [request for _, content in parsed for request in content.requests]
        answers = look_up(asked, self._services, self._started + _IDENTIFY_BUDGET_S)

        waiting: list[Pending] = []
        for message, content in parsed:
            self.counts.ignored += len(content.ignored)
            for ignored in content.ignored:
                log_line(
                    logging.INFO, f"Ignored: {ignored}.", action="message.ignored", **of_message(message)
                )
            item = Pending(
                message.message_id,
                message.receipt,
                {},
                time.time() + _RECEIPT_LIFE_S,
                request_id=message.request_id,
            )
            item.rejected += [(part.reason, part.body) for part in content.malformed]
            complete, before = True, self.counts.awaited
            for request in content.requests:
                answer = next(answers)
                if reason := settings.unwanted_model(request.model):
                    item.rejected.append((reason, message.body))
                    continue
                try:
                    upload, archived = answer()
                    self._services.database.transact(record_upload, upload, stated=_stated(request))
                    if archived:
                        self._services.database.transact(mark_archived, upload.upload_id)
                except SourceMissing as error:
                    # It may come before its object: the message stays for the upload, whose id, camera and
                    # time it has.
                    age_s = time.time() - message.sent_ms / 1000
                    if request.may_precede and age_s < settings.request_patience_s:
                        complete = False
                        self.counts.awaited += 1
                        awaited = f"{error} Its request stays in the queue for the upload to come."
                        log_line(logging.INFO, awaited, action="upload.awaited", **of_message(message))
                        continue
                    self.counts.vanished += 1
                    left = f"{error} Its message is acknowledged."
                    self._warn(left, "upload.vanished", error, request, message)
                except RefusedByDatabase as error:
                    # The database answers and will not have this upload, now or ever.
                    item.rejected.append((str(error), message.body))
                except (SourceForbidden, SourceArchived, PermissionDenied, StorageUnavailable) as error:
                    complete = False
                    self._why_left = error
                    left = f"{error} Its message stays in the queue."
                    self._warn(left, "message.left", error, request, message, level=logging.ERROR)
                else:
                    if archived:  # no GPU waits for what cannot be read; its restore is a message of its own
                        self.counts.archived += 1
                        text = f"{upload.url} is in an archive: it is analysed once it is restored."
                        about = of_upload(upload, request)
                        log_line(logging.WARNING, text, action="upload.archived", **about)
                        continue
                    key = run_key(upload.upload_id, request, message.message_id)
                    item.run_keys[upload.upload_id] = key
                    self._note(NewUpload(key, upload, request, message))
            self.counts.malformed += len(item.rejected)
            if complete:
                waiting.append(item)
            elif self.counts.awaited == before:
                self.counts.left += 1
        self._settle(waiting)

    def result(self) -> dg.SensorResult:
        """What Dagster stores and does, and the account of this tick."""
        self._measure()
        if (why := self._why_left) is not None:
            left = LeftMessages(self.counts.left, FailureClass(why.failure_class), str(why), time.time())
            LEFT_MESSAGES.write(self._context.instance, left)
        cursor = write_cursor(self._pending)
        if self._waiting_runs is not None:
            limit = self._services.settings.max_queued_runs
            text = (
                f"{self._waiting_runs} runs wait, more than CAPSTONE_MAX_QUEUED_RUNS ({limit}): messages "
                f"stay in the queue until some have run. {self.counts}."
            )
            warn(self._context, text, action="intake.full", queued_runs=self._waiting_runs)
            return dg.SensorResult(skip_reason=dg.SkipReason(text), cursor=cursor)
        if self.counts.received or self.counts.acknowledged:
            took = round(time.monotonic() - self._started, 3)
            fields = asdict(self.counts) | {"elapsed_s": took}
            log_line(logging.INFO, f"Uploads: {self.counts}.", action="tick.completed", **fields)
        if not self._new:
            text = f"{self._gate if self._gate.paused else 'Nothing to analyse'}: {self.counts}."
            return dg.SensorResult(skip_reason=dg.SkipReason(text), cursor=cursor)
        # In Dagster's own log of the tick, which is stored in S3: a tick with runs has no other word.
        self._context.log.info(f"Uploads: {self.counts}.")
        if self._gate.paused:
            self._gate.let_through(next(iter(self._new)))
        for new in self._new.values():
            log_line(
                logging.INFO,
                f"A run is asked for: {new.upload.url}",
                action="run.requested",
                run_key=new.key,
                waited_s=round(max(0.0, time.time() - new.message.sent_ms / 1000), 3),
                **of_message(new.message),
                **of_upload(new.upload, new.request),
            )
        record_uploads(self._services.tracer, self._new.values(), self._began)
        # Those that exist already are sorted out by Dagster, at a cost of the new ones only.
        videos = sorted({new.upload.video_id for new in self._new.values()})
        return dg.SensorResult(
            run_requests=[run_request(new, probe=self._gate.paused) for new in self._new.values()],
            dynamic_partitions_requests=[
                dg.DynamicPartitionsDefinition(name=PARTITIONS_NAME).build_add_request(videos)
            ],
            asset_events=[materialization(new) for new in self._new.values()],
            cursor=cursor,
        )

    def _measure(self) -> None:
        """Zeros too: a rate needs them, and they say that somebody looked.

        The messages of a tick that fails are those of a later one, which counts them.
        """
        counts = self.counts
        values: dict[Metric, float] = {
            UPLOADS_RECEIVED: counts.new + counts.duplicate,
            DUPLICATES_PREVENTED: counts.duplicate,
            UPLOADS_IGNORED: counts.ignored,
            UPLOADS_VANISHED: counts.vanished,
            MESSAGES_MALFORMED: counts.malformed,
        }
        if self._oldest_s is not None:
            values[QUEUE_AGE] = self._oldest_s
        self._services.metrics.add_all(values)
        now = time.time()
        for new in self._new.values():
            waited_s = max(0.0, now - new.upload.uploaded_at.timestamp())
            self._services.metrics.add(LEG_DURATION, waited_s, leg=RECEIVED)
        if counts.duplicate:
            count_prevented(self._context.instance, counts.duplicate, now)

    def _within(self, budget_s: float) -> bool:
        return time.monotonic() - self._started < budget_s

    def _note(self, new: NewUpload) -> None:
        """Remember a request once, however many messages make it."""
        if new.key in self._new:
            self.counts.duplicate += 1
            self._log_duplicate(new, "another message of this tick asks for the same")
        else:
            self._new[new.key] = new

    def _warn(
        self,
        text: str,
        action: str,
        error: Exception,
        request: AnalysisRequest,
        message: ReceivedMessage,
        level: int = logging.WARNING,
    ) -> None:
        about = of_message(message) | of_request(request)
        warn(self._context, text, action=action, level=level, error=error, **about)

    def _log_duplicate(self, new: NewUpload, why: str, **fields: str) -> None:
        log_line(
            logging.WARNING,
            f"Duplicate prevented: {new.upload.url}: {why}.",
            action="duplicate.prevented",
            run_key=new.key,
            **of_message(new.message),
            **of_upload(new.upload, new.request),
            **fields,
        )

    def _settle(self, waiting: Sequence[Pending]) -> None:
        """Requests whose run is on record are duplicates; messages that wait for nothing end here."""
        recorded = self._runs_on_record(self._new)
        for key, run_id in recorded.items():
            self._log_duplicate(self._new.pop(key), f"run {run_id} is on record", run_id=run_id)
        self.counts.duplicate += len(recorded)
        done: list[Pending] = []
        for item in waiting:
            asks = any(key in self._new for key in item.run_keys.values())
            (self._pending if asks else done).append(item)
        if self._gate.paused:
            # Of a message with several uploads the others come when it is delivered again.
            self._new = dict(islice(self._new.items(), 1))
        self.counts.new = len(self._new)
        self._finish(done, recorded)

    def _finish(self, done: Sequence[Pending], recorded: dict[str, str]) -> None:
        """Say that uploads are queued, copy malformed parts to the dead-letter queue, delete the messages."""
        self._services.database.transact(
            mark_queued, {upload: recorded[key] for item in done for upload, key in item.run_keys.items()}
        )
        kept = [item for item in done if self._rejected_parts_are_kept(item)]
        self.counts.left += len(done) - len(kept)
        if not kept:
            return
        self.counts.acknowledged += self._queue.acknowledge([item.receipt for item in kept])
        for item in kept:
            ids = {"message_id": item.message_id, "request_id": item.request_id}
            for upload_id, key in item.run_keys.items():
                text = f"Acknowledged: run {recorded[key]} is on record."
                fields = {"upload_id": upload_id, "run_id": recorded[key], "run_key": key}
                log_line(logging.INFO, text, action="message.acknowledged", **ids, **fields)

    def _rejected_parts_are_kept(self, item: Pending) -> bool:
        """Copy a message's malformed parts to the dead-letter queue; False leaves the message where it is."""
        try:
            for reason, body in item.rejected:
                warn(
                    self._context,
                    f"Message {item.message_id} is malformed: {reason}.",
                    action="message.malformed",
                    message_id=item.message_id,
                    request_id=item.request_id,
                    reason=reason,
                )
                self._queue.reject(body, reason, item.message_id)
        except QueueUnavailable as error:
            # One that cannot be copied must not keep its neighbours from being acknowledged.
            warn(
                self._context,
                f"Message {item.message_id} stays in the queue: {error}",
                action="message.left",
                level=logging.ERROR,
                error=error,
                message_id=item.message_id,
                request_id=item.request_id,
            )
            return False
        return True

    def _runs_on_record(self, keys: Iterable[str]) -> dict[str, str]:
        """Run key → run id, for those keys that have a run which Dagster will not create again."""
        wanted = sorted(set(keys))
        if not wanted:
            return {}
        records = self._context.instance.get_run_records(dg.RunsFilter(tags={RUN_KEY_TAG: wanted}))
        return {
            record.dagster_run.tags[RUN_KEY_TAG]: record.dagster_run.run_id
            for record in records
            if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED
        }


def _stated(request: AnalysisRequest) -> set[str]:
    """What the message itself says of the video: it goes before what is derived."""
    return {name for name in ("external_id", "camera", "recorded_at") if getattr(request, name) is not None}
