"""Plays a schedule on a stage and brings home the history."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import psycopg
import sqlalchemy as sa
from dagster._core.storage.tags import RUN_KEY_TAG

from capstone_dagster.failures.run_steps import pass_config
from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.storage.schema import outbox, video_status, videos
from capstone_dagster.storage.sources import SourceObject, head_source
from tests.intake.soak.checker import Verdict, check
from tests.intake.soak.daemon import Daemon, daemon
from tests.intake.soak.history import DeadLetter, History, Run, Status
from tests.intake.soak.journal import Tick
from tests.intake.soak.ledger import Ledger
from tests.intake.soak.points import Point
from tests.intake.soak.schedule import Announcement, Life, Put, Schedule, Wave
from tests.intake.soak.stage import Stage

# SQS as deployed: longer than any tick.
VISIBILITY_S = 180
BRIEF_VISIBILITY_S = 1
BATCH = 10
# How many quiet lives the end may take; two or three do.
LAST_LIVES = 12


@dataclass(frozen=True)
class Campaign:
    """What a schedule led to."""

    history: History
    verdict: Verdict
    struck: tuple[Point, ...]
    ticks: tuple[Tick, ...]
    seconds: float


class OutOfTime(Exception):
    """The campaign was given up; it says nothing."""


def run_campaign(
    schedule: Schedule,
    stage: Stage,
    *,
    deadline: float | None = None,
    stop_when: Callable[[Verdict], bool] | None = None,
) -> Campaign:
    """Play the whole schedule, or as much as it takes for `stop_when` to be true of the verdict so far.

    Raises:
        OutOfTime: it is later than `deadline`, on the monotonic clock.
    """
    started = time.monotonic()
    with _players(stage, schedule, deadline) as player:
        verdict = player.play(stop_when)
        history = player.history()
        journal = player.daemon.journal
        return Campaign(
            history,
            verdict or check(history),
            tuple(journal.struck),
            tuple(journal.ticks),
            time.monotonic() - started,
        )


@contextmanager
def _players(stage: Stage, schedule: Schedule, deadline: float | None) -> Iterator["_Player"]:
    with daemon(stage) as worker:
        yield _Player(stage, schedule, worker, deadline)


class _Player:
    def __init__(self, stage: Stage, schedule: Schedule, worker: Daemon, deadline: float | None) -> None:
        self._stage = stage
        self._schedule = schedule
        self._deadline = deadline
        self.daemon = worker
        self._s3 = stage.client("s3")
        self._sqs = stage.client("sqs")
        self._ledger = Ledger(stage.resources.raw_bucket, schedule.forbidden)
        self._deleted: list[Run] = []
        self._missed: list[Point] = []
        self._dead_letters: list[DeadLetter] = []
        self._visibility_s: int | None = None

    def play(self, stop_when: Callable[[Verdict], bool] | None) -> Verdict | None:
        """Wave after wave, then until nothing is left to do."""
        for at, wave in enumerate(self._schedule.waves):
            self._forget_runs(wave.forgotten)
            self._end_runs()
            self._change_objects(wave)
            self._send(wave.sends)
            lives = [Life(point) for point in self._missed] + list(wave.lives)
            self._missed = []
            for life in lives:
                self._live(life, at)
            if stop_when and lives and lives[-1].point is None:
                verdict = check(self.history())
                if stop_when(verdict):
                    return verdict
        self._finish()
        self._read_dead_letters()
        return None

    def history(self) -> History:
        """Everything on record now."""
        journal = self.daemon.journal
        return History(
            messages=self._ledger.messages(),
            runs=[*self._deleted, *map(_run, self._stage.instance.get_run_records())],
            acknowledged=dict(journal.acknowledged),
            dead_letters=list(self._dead_letters),
            left=self._count_messages(),
            partitions=frozenset(self._stage.instance.get_dynamic_partitions(PARTITIONS_NAME)),
            uploads=self._ledger.uploads,
            **self._event_store(),
        )

    def _live(self, life: Life, wave: int | None) -> None:
        """One life in a wave, or after the last of them."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime
        self._set_visibility(BRIEF_VISIBILITY_S if life.brief_visibility else VISIBILITY_S)
        forbidden = [
            key
            for key, allowed_from in self._schedule.forbidden.items()
            if allowed_from is None or (wave is not None and wave < allowed_from)
        ]
        if not self.daemon.live(life, forbidden) and life.point is not None:
            self._missed.append(life.point)
        if life.long_outage:
            self._deliver_again()

    def _finish(self) -> None:
        """Let the daemon work undisturbed until only what S3 refuses is left, then have that given up."""
        refused = {each.message_id for each in self._ledger.messages() if each.forbidden}
        open_messages = {each.message_id for each in self._ledger.messages()} - refused
        for _ in range(LAST_LIVES):
            self._live(Life(), None)
            if open_messages <= self.daemon.journal.acknowledged.keys() and (
                self._count_messages() <= len(refused)
            ):
                break
        else:
            return  # what is left shows as left; giving it up now would only blur what went wrong
        self._stage.set_queue(patience=1)
        for _ in range(LAST_LIVES):
            self._live(Life(), None)
            if not self._count_messages():
                break

    def _change_objects(self, wave: Wave) -> None:
        """Uploads of one key in their order, those of different keys at the same time."""
        by_key: dict[str, list[Put]] = {}
        for put in wave.puts:
            by_key.setdefault(put.key, []).append(put)
        with ThreadPoolExecutor(8) as pool:
            for puts, sources in zip(by_key.values(), pool.map(self._upload, by_key.values()), strict=True):
                for put, source in zip(puts, sources, strict=True):
                    self._ledger.put(put, source)
        bucket = self._stage.resources.raw_bucket
        for removal in wave.removals:
            version = {}
            if removal.number is not None:
                version = {"VersionId": self._ledger.version(removal.number)}
            self._s3.delete_object(Bucket=bucket, Key=removal.key, **version)
            self._ledger.removed(removal)

    def _upload(self, puts: Sequence[Put]) -> list[SourceObject]:
        bucket = self._stage.resources.raw_bucket
        sources = []
        for put in puts:
            answer = self._s3.put_object(Bucket=bucket, Key=put.key, Body=f"video {put.content}".encode())
            sources.append(head_source(self._s3, bucket, put.key, answer["VersionId"]))
        return sources

    def _send(self, announcements: Sequence[Announcement]) -> None:
        for batch in _batches(announcements):
            bodies = [self._ledger.body(each) for each in batch]
            entries = [{"Id": str(at), "MessageBody": body} for at, body in enumerate(bodies)]
            answer = self._sqs.send_message_batch(QueueUrl=self._stage.resources.queue_url, Entries=entries)
            ids = {each["Id"]: each["MessageId"] for each in answer["Successful"]}
            for at, announcement in enumerate(batch):
                self._ledger.sent(ids[str(at)], announcement, bodies[at])

    def _forget_runs(self, uploads: Iterable[int]) -> None:
        """Delete the runs of some uploads, as an operator who cleans up does; what they were is kept."""
        wanted = [self._ledger.upload_id(number) for number in uploads]
        if not wanted:
            return
        filters = dg.RunsFilter(tags={".dagster/capstone.upload_id": wanted})
        for record in self._stage.instance.get_run_records(filters):
            self._deleted.append(replace(_run(record), deleted_at=time.time()))
            self._stage.instance.delete_run(record.dagster_run.run_id)

    def _end_runs(self) -> None:
        """What was queued is over, one way or another: no status but 'not started' re-opens a run key."""
        ended = "CASE id % 3 WHEN 0 THEN 'SUCCESS' WHEN 1 THEN 'FAILURE' ELSE 'CANCELED' END"
        with psycopg.connect(self._stage.dagster_database) as connection:
            connection.execute(f"UPDATE runs SET status = {ended} WHERE status = 'QUEUED'")

    def _set_visibility(self, seconds: int) -> None:
        if seconds != self._visibility_s:
            self._stage.set_queue(visibility_s=seconds)
            self._visibility_s = seconds

    def _deliver_again(self) -> None:
        """Time passes until SQS gives up on every delivery, without anybody waiting for it."""
        journal = self.daemon.journal
        receipts = [
            receipt for message, receipt in journal.receipts.items() if message not in journal.acknowledged
        ]
        for batch in _batches(receipts):
            entries = [
                {"Id": str(at), "ReceiptHandle": receipt, "VisibilityTimeout": 0}
                for at, receipt in enumerate(batch)
            ]
            self._sqs.change_message_visibility_batch(
                QueueUrl=self._stage.resources.queue_url, Entries=entries
            )

    def _count_messages(self) -> int:
        """Messages in the queue, whether visible, received or delayed."""
        answer = self._sqs.get_queue_attributes(
            QueueUrl=self._stage.resources.queue_url, AttributeNames=["All"]
        )
        return sum(
            int(value)
            for name, value in answer["Attributes"].items()
            if name.startswith("ApproximateNumberOfMessages")
        )

    def _read_dead_letters(self) -> None:
        url = self._stage.resources.dead_letter_queue_url
        while messages := self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=BATCH, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                source = message.get("MessageAttributes", {}).get("source_message_id", {})
                self._dead_letters.append(
                    DeadLetter(message["MessageId"], source.get("StringValue"), message["Body"])
                )
                self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def _event_store(self) -> dict[str, Any]:
        notices = (
            sa.select(outbox.c.upload_id, sa.func.count().label("notices"))
            .where(outbox.c.kind == "video.received")
            .group_by(outbox.c.upload_id)
            .subquery()
        )
        status = sa.select(
            video_status.c.upload_id, video_status.c.state, sa.func.coalesce(notices.c.notices, 0)
        ).outerjoin(notices, notices.c.upload_id == video_status.c.upload_id)
        with self._stage.events.engine.connect() as connection:
            statuses = {upload: Status(state, count) for upload, state, count in connection.execute(status)}
            external_ids = {
                row.video_id: row.external_id
                for row in connection.execute(sa.select(videos.c.video_id, videos.c.external_id))
            }
        return {"statuses": statuses, "external_ids": external_ids}


def _run(record: Any) -> Run:
    run: dg.DagsterRun = record.dagster_run
    return Run(
        run_id=run.run_id,
        run_key=run.tags.get(RUN_KEY_TAG),
        upload_id=run.tags[".dagster/capstone.upload_id"],
        partition=run.tags["dagster/partition"],
        work=_work(run.run_config),
        created_at=record.create_timestamp.timestamp(),
        submitted=run.status != dg.DagsterRunStatus.NOT_STARTED,
        root=run.root_run_id in (None, run.run_id),
    )


def _work(config: Any) -> str:
    """What of a run's configuration decides the detection id: the bytes, and what was asked of them."""
    wanted = pass_config(config)
    content = [wanted["upload"][name] for name in ("etag", "size_bytes")]
    return json.dumps(content + [wanted[name] for name in ("sample_fps", "model", "nonce")])


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
