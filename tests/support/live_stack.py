"""The whole local stack for the tests of a module: real daemon, launcher, PostgreSQL, AWS emulator."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import dagster as dg
import psycopg
import pytest

from capstone_dagster.local.aws import client
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.postgres import EVENT_DATABASE
from capstone_dagster.local.stack import LocalStack, local_stack
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import current_status
from tests.support.waiting import scaled, wait_for

# Everything waited for takes some seconds on an idle machine; a busy one may take this long.
DEADLINE_S = 300.0
# Settings of the stacks that tests share: one leaves failures alone, the other pauses and retries.
PASSIVE = {"CAPSTONE_REEXECUTIONS_PER_VIDEO": "0"}
RECOVERING = {"CAPSTONE_REEXECUTIONS_PER_VIDEO": "1", "CAPSTONE_PAUSE_AFTER_FAILURES": "1"}


@dataclass
class LiveStack:
    """A stack that works by itself, as its users see it: objects, rows, runs, Dagster's pages."""

    local: LocalStack
    uploaded: int = field(default=0, init=False)

    @cached_property
    def database(self) -> Database:
        """The event store."""
        return Database(self.local.environment["CAPSTONE_DATABASE_URL"])

    def client(self, service: str) -> Any:
        """A boto3 client of the emulator."""
        return client(service, self.local.aws.endpoint_url)

    def upload(self, key: str, video: Path | bytes) -> str:
        """Put a video into the raw bucket, other bytes each time; its id, once the sensor has seen it."""
        body = video if isinstance(video, bytes) else video.read_bytes()
        self.uploaded += 1
        # Zeros behind the last box are no part of the film.
        self.client("s3").put_object(
            Bucket=self.local.resources.raw_bucket, Key=key, Body=body + bytes(self.uploaded)
        )
        return str(wait_for(f"intake of {key}", lambda: self._by_key().get(key), DEADLINE_S)["video_id"])

    def row(self, video_id: str) -> Mapping[str, Any]:
        """The video's row of `current_status`."""
        [row] = self.database.transact(current_status, video_id)
        return row

    def until(self, video_id: str, *states: str) -> Mapping[str, Any]:
        """Wait until the video's state is one of these; its row then."""
        expected = " or ".join(states)

        def reached() -> Mapping[str, Any] | None:
            self.local.check()
            row = self.row(video_id)
            return row if row["state"] in states else None

        return wait_for(f"{video_id} to be {expected}", reached, DEADLINE_S)

    def take_no_writes(self, state: str) -> None:
        """A failover as those who write see it: the event store alone, not Dagster's storage.

        Args:
            state: on, or off to end it.
        """
        admin = self.local.postgres.url("postgres", "psycopg").replace("+psycopg", "")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {EVENT_DATABASE} SET default_transaction_read_only = {state}")
            # Settings of a database hold for new connections.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [EVENT_DATABASE]
            )

    @contextmanager
    def held_back(self, video_id: str) -> Iterator[None]:
        """During the block, no worker can publish the video, however fast the machine is."""
        url = self.local.environment["CAPSTONE_DATABASE_URL"].replace("+psycopg", "")
        with closing(psycopg.connect(url)) as connection:
            connection.execute("SELECT FROM capstone.videos WHERE video_id = %s FOR UPDATE", [video_id])
            yield

    def runs(self, video_id: str, **filters: Any) -> list[dg.DagsterRun]:
        """The runs of one video, latest first."""
        with dg.DagsterInstance.get() as instance:
            return list(instance.get_runs(dg.RunsFilter(tags={"dagster/partition": video_id}, **filters)))

    def ask(self, query: str, **variables: Any) -> Any:
        """What the web server answers to one of its pages."""
        assert self.local.dagster is not None
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.local.dagster.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=scaled(60)) as answer:
            answered = json.load(answer)
        assert "errors" not in answered, answered["errors"]
        [result] = answered["data"].values()
        return result

    def _by_key(self) -> Mapping[str, Mapping[str, Any]]:
        return {row["key"]: row for row in self.database.transact(current_status)}


@dataclass
class SharedStack:
    """At most one live stack, started when a test first asks for it and kept for the next one.

    Every frame is analysed, so that a run can be met in the middle of its pass.
    """

    folder: Path
    model_cache: Path
    _stack: LiveStack | None = field(default=None, init=False)
    _settings: Mapping[str, str] = field(default_factory=dict, init=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False)

    def running(self, settings: Mapping[str, str]) -> LiveStack:
        """The stack, which is started if none runs.

        Args:
            settings: environment variables of its own; others than before restart the stack.
        """
        if settings != self._settings:
            self.stop()
        if self._stack is None:
            self._settings = settings
            own = {"CAPSTONE_MODEL_CACHE": str(self.model_cache), "CAPSTONE_SAMPLE_FPS": "0"}
            with pytest.MonkeyPatch.context() as environment:
                for name, value in {**own, **settings}.items():
                    environment.setenv(name, value)
                local = local_stack(self.folder / "state", webserver_port=None, before_dagster=prepare)
                self._stack = LiveStack(self._open.enter_context(local))
        return self._stack

    def stop(self) -> None:
        """Stop the stack, if one runs."""
        self._stack = None
        self._open.close()


def repeated(video: Path, times: int, path: Path) -> Path:
    """A video over and over: its packets, copied, with their timestamps moved on."""
    with av.open(str(path), "w") as container:
        stream = None
        for number in range(times):
            with av.open(str(video)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(template)
                assert template.duration is not None
                moved = number * template.duration
                for packet in source.demux(template):
                    if packet.dts is None or packet.pts is None:
                        continue  # the empty one at the end
                    packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
                    packet.stream = stream
                    container.mux(packet)
    return path
