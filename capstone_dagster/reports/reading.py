"""Reads what reports are computed from: the event store, and Dagster's storage by SQL.

Importing Dagster takes a second, which a command should not spend. The columns are those of Dagster 1.13;
nothing here writes. Volumes are summed by PostgreSQL: a report over 100,000 runs reads some hundred rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from capstone_dagster.failures.cursors import Kept
from capstone_dagster.reports.records import (
    DayOfWork,
    EndedRuns,
    Failure,
    Journey,
    LostPass,
    Period,
    Statement,
    Step,
    TracedRun,
    Uploads,
)
from capstone_dagster.run_tags import (
    DETECTION_TAG,
    DUPLICATE_TAG,
    FAILURE_TAG,
    NO_FAILURE,
    STORED_TAG,
    UPLOAD_TAG,
)
from capstone_dagster.settings import NotConfigured
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.errors import DatabaseUnavailable

T = TypeVar("T")
Row = sa.RowMapping

_CONNECT_TIMEOUT_S = 5
# The step with the pass over the pixels (`failures/run_steps.py`, which imports Dagster).
PASS_STEP = "video_analysis.analyze_video"
_UNKNOWN = "internal"
# A longer sentence says no more about its cause.
_MOST_CHARACTERS = 400
_STEP_ENDS = {"STEP_SUCCESS": "done", "STEP_FAILURE": "failed", "STEP_UP_FOR_RETRY": "tried again"}
_STEP_EVENTS = ("STEP_START", "STEP_RESTARTED", *_STEP_ENDS)

_DATA = "dagster_event.event_specific_data"
# One value out of the metadata of a materialisation, whatever its type.
_METADATA = f"""jsonb_path_query_first(e.event::jsonb,
    '$.{_DATA}.materialization.metadata_entries[*] ? (@.label == "%s").entry_data.value')::text::float"""
_CAUSE = f"""jsonb_path_query_first(e.event::jsonb,
    '$.{_DATA}.user_failure_data.metadata_entries[*] ? (@.label == "cause").entry_data.text') #>> '{{}}'"""
_ERROR = """COALESCE(e.event::jsonb #>> '{dagster_event,event_specific_data,error,cause,message}',
                     e.event::jsonb #>> '{dagster_event,event_specific_data,error,message}')"""
_CLASS = "COALESCE(NULLIF(failure.value, :none), :unknown)"
_WITH_CLASS = "LEFT JOIN run_tags failure ON failure.run_id = r.run_id AND failure.key = :failure"

_UPLOADS = """
    SELECT state, failure_class, count(*) AS number FROM capstone.video_status
    WHERE state IN ('done', 'failed')
        AND updated_at >= to_timestamp(:since) AND updated_at < to_timestamp(:until) GROUP BY 1, 2"""
_JOURNEYS = """
    SELECT * FROM (
        SELECT DISTINCT ON (upload_id) run_id, video_id, extract(epoch FROM uploaded_at)::float AS uploaded,
               extract(epoch FROM published_at)::float AS published, gpu_seconds AS gpu_s
        FROM capstone.analyses
        WHERE uploaded_at >= to_timestamp(:since) AND uploaded_at < to_timestamp(:until)
            AND (video_id = :video_id OR CAST(:video_id AS text) IS NULL)
        ORDER BY upload_id, published_at
    ) AS first ORDER BY published DESC LIMIT :most"""
_RUN_TIMES = f"""
    SELECT r.run_id, extract(epoch FROM r.create_timestamp AT TIME ZONE 'UTC')::float AS requested,
           r.start_time AS started, {_METADATA % "first_frame_at"} AS first_frame,
           {_METADATA % "last_frame_at"} AS last_frame
    FROM runs r LEFT JOIN event_logs e
        ON e.run_id = r.run_id AND e.dagster_event_type = 'ASSET_MATERIALIZATION'
        AND e.asset_key = '["extracted_frames"]'
    WHERE r.run_id = ANY(:run_ids)"""
_WORK = """
    SELECT extract(epoch FROM date_trunc('day', first_published, 'UTC'))::float AS day, count(*) AS passes,
           sum(seconds) AS seconds, sum(gpu_seconds) AS gpu_s,
           COALESCE(sum(duration_ms), 0)::float / 1000 AS video_s
    FROM (
        SELECT DISTINCT ON (a.detection_id) a.seconds, a.gpu_seconds, a.published_at AS first_published,
               v.duration_ms
        FROM capstone.analyses a JOIN capstone.videos v ON v.video_id = a.video_id
        ORDER BY a.detection_id, a.published_at
    ) AS passes
    WHERE first_published >= to_timestamp(:since) AND first_published < to_timestamp(:until)
    GROUP BY 1 ORDER BY 1"""
_ENDED = f"""
    SELECT width_bucket(r.end_time, CAST(:edges AS float[])) AS stretch, r.status,
           CASE WHEN r.status = 'FAILURE' THEN {_CLASS} END AS class, count(*) AS number
    FROM runs r {_WITH_CLASS}
    WHERE r.status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND r.end_time >= :since AND r.end_time < :until
    GROUP BY 1, 2, 3"""
_LOST = """
    SELECT r.run_id, r.end_time, COALESCE(again.value = r.run_id, false) AS doubled,
           e.dagster_event_type AS type, e.step_key,
           extract(epoch FROM e.timestamp AT TIME ZONE 'UTC')::float AS at
    FROM runs r
    LEFT JOIN run_tags again ON again.run_id = r.run_id AND again.key = :duplicate
    LEFT JOIN run_tags work ON work.run_id = r.run_id AND work.key = :detection
    LEFT JOIN run_tags stored ON stored.run_id = r.run_id AND stored.key = :stored
    JOIN event_logs e ON e.run_id = r.run_id AND e.step_key = :step AND e.dagster_event_type = ANY(:kinds)
    WHERE r.end_time >= :since AND r.end_time < :until AND (
        again.value = r.run_id
        OR (r.status IN ('FAILURE', 'CANCELED')
            AND stored.value IS DISTINCT FROM COALESCE(work.value, :none)))
    ORDER BY r.run_id, e.id"""
_FAILURES = f"""
    SELECT r.run_id, r.end_time AS at, {_CLASS} AS failure, COALESCE(
        (SELECT {_CAUSE} FROM event_logs e WHERE e.run_id = r.run_id
             AND e.dagster_event_type = 'STEP_FAILURE' ORDER BY e.id DESC LIMIT 1),
        NULLIF(cause.value, :none),
        (SELECT {_ERROR} FROM event_logs e WHERE e.run_id = r.run_id
             AND e.dagster_event_type IN ('STEP_FAILURE', 'PIPELINE_FAILURE')
             AND {_ERROR} IS NOT NULL ORDER BY e.id LIMIT 1),
        (SELECT e.event::jsonb #>> '{{dagster_event,message}}' FROM event_logs e WHERE e.run_id = r.run_id
             AND e.dagster_event_type = 'PIPELINE_FAILURE' ORDER BY e.id LIMIT 1),
        'No reason is on record.') AS sentence
    FROM runs r {_WITH_CLASS}
    LEFT JOIN run_tags cause ON cause.run_id = r.run_id AND cause.key = 'batch_gpu/cause'
    WHERE r.status = 'FAILURE' AND r.end_time >= :since AND r.end_time < :until
    ORDER BY r.end_time DESC LIMIT :most"""
_FAILED_AT = f"""
    SELECT r.end_time AS at FROM runs r {_WITH_CLASS}
    WHERE r.status = 'FAILURE' AND r.end_time >= :since AND r.end_time < :until AND {_CLASS} = ANY(:classes)
    ORDER BY r.end_time"""
_TRACED = f"""
    SELECT r.run_id, r.pipeline_name AS job, r.status, NULLIF(failure.value, :none) AS failure,
           extract(epoch FROM r.create_timestamp AT TIME ZONE 'UTC')::float AS created,
           r.start_time AS started, r.end_time AS ended
    FROM runs r JOIN run_tags upload ON upload.run_id = r.run_id AND upload.key = :upload
    {_WITH_CLASS} WHERE upload.value = :upload_id ORDER BY r.id"""
_RUN_EVENTS = f"""
    SELECT e.run_id, e.dagster_event_type AS type, e.step_key,
           extract(epoch FROM e.timestamp AT TIME ZONE 'UTC')::float AS at,
           CASE e.asset_key WHEN '["extracted_frames"]' THEN {_METADATA % "first_frame_at"} END
               AS first_frame,
           CASE e.asset_key WHEN '["extracted_frames"]' THEN {_METADATA % "last_frame_at"} END AS last_frame,
           CASE e.asset_key WHEN '["detections"]' THEN {_METADATA % "model_load_seconds"} END AS model_s
    FROM event_logs e WHERE e.run_id = ANY(:run_ids) AND e.dagster_event_type = ANY(:kinds) ORDER BY e.id"""
_STATEMENTS = """
    SELECT query AS text, calls, mean_exec_time AS mean_ms, total_exec_time / 1000 AS total_s
    FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT :most"""


@contextmanager
def dagster_connection() -> Iterator[sa.Connection]:
    """A connection to Dagster's storage.

    Raises:
        NotConfigured: DAGSTER_POSTGRES_URL is not set.
        DatabaseUnavailable: nothing answers there.
    """
    address = os.environ.get("DAGSTER_POSTGRES_URL")
    if not address:
        raise NotConfigured(
            "DAGSTER_POSTGRES_URL is not set: where Dagster keeps its runs and intake its state. Set it as "
            "dagster.yaml names it."
        )
    url = sa.make_url(address)
    if url.get_backend_name() == "postgresql":
        # The driver that the event store has loaded already, whichever one Dagster itself takes.
        url = url.set(drivername="postgresql+psycopg").update_query_dict(
            {"connect_timeout": str(_CONNECT_TIMEOUT_S)}
        )
    try:
        connection = sa.create_engine(url, poolclass=sa.NullPool).connect()
    except OperationalError as error:
        why = str(error.orig).strip().partition("\n")[0]
        raise DatabaseUnavailable(
            f"Dagster's storage at {url.render_as_string()} does not answer: {why}. Check "
            "DAGSTER_POSTGRES_URL, and that PostgreSQL runs."
        ) from error
    with connection:
        yield connection


@contextmanager
def open_records(database: Database) -> Iterator[Records]:
    """Both databases, for the time of the block.

    Raises:
        NotConfigured, StorageError: one of them is not named, or does not answer.
    """
    with database.transaction() as store, dagster_connection() as dagster:
        yield Records(store, dagster)


class Records:
    """What is on record.

    Attributes:
        rows: how many rows were read so far; `queries`, by how many statements.
    """

    def __init__(self, store: sa.Connection, dagster: sa.Connection) -> None:
        self._store = store
        # Before Dagster has started it has no tables: nothing is on record.
        self._dagster = dagster if sa.inspect(dagster).has_table("event_logs") else None
        self.rows = self.queries = 0

    def uploads(self, period: Period) -> Uploads:
        """How the uploads ended whose state changed last in the period."""
        found = self._ask(self._store, _UPLOADS, since=period.since, until=period.until)
        done = sum(row["number"] for row in found if row["state"] == "done")
        failed = {
            row["failure_class"] or _UNKNOWN: row["number"] for row in found if row["state"] == "failed"
        }
        return Uploads(done, failed)

    def journeys(self, period: Period, *, most: int, video_id: str | None = None) -> list[Journey]:
        """The uploads of the period that were analysed, latest first, up to a number; or of one video."""
        chosen = {"since": period.since, "until": period.until, "most": most, "video_id": video_id}
        first = self._ask(self._store, _JOURNEYS, **chosen)
        run_ids = [row["run_id"] for row in first]
        times = {row["run_id"]: dict(row) for row in self._ask(self._dagster, _RUN_TIMES, run_ids=run_ids)}
        return [Journey(**{**row, **times.get(row["run_id"], {})}) for row in first]

    def work(self, period: Period) -> list[DayOfWork]:
        """The passes of each day; a pass counts once, however many analyses were made of it."""
        found = self._ask(self._store, _WORK, since=period.since, until=period.until)
        return [DayOfWork(**row) for row in found]

    def ended_runs(self, period: Period, edges: Sequence[float] = ()) -> list[EndedRuns]:
        """How runs ended, in each stretch that the edges, in their order, cut the period into."""
        counts: list[dict[str, Any]] = [{"failed": {}} for _ in range(len(edges) + 1)]
        # PostgreSQL refuses an array without an edge.
        cut = list(edges) or [period.until]
        found = self._ask(
            self._dagster, _ENDED, edges=cut, since=period.since, until=period.until, **_CLASSES
        )
        for row in found:
            stretch = counts[row["stretch"]]
            if row["status"] == "FAILURE":
                stretch["failed"][row["class"]] = row["number"]
            else:
                stretch["succeeded" if row["status"] == "SUCCESS" else "canceled"] = row["number"]
        return [EndedRuns(**each) for each in counts]

    def lost_passes(self, period: Period) -> list[LostPass]:
        """Passes whose results nobody can use: of runs that failed or were cancelled before they stored them,
        and those that repeated another run's work.
        """
        found = self._ask(
            self._dagster,
            _LOST,
            since=period.since,
            until=period.until,
            step=PASS_STEP,
            kinds=list(_STEP_EVENTS),
            duplicate=DUPLICATE_TAG,
            detection=DETECTION_TAG,
            stored=STORED_TAG,
            none=NO_FAILURE,
        )
        lost = []
        for run_id, rows in groupby(found, key=lambda row: row["run_id"]):
            events = list(rows)
            ended = events[0]["end_time"]
            seconds = sum(max(0.0, (step.ended or ended) - step.began) for step in attempts(events))
            lost.append(LostPass(run_id, seconds, events[0]["doubled"]))
        return lost

    def failures(self, period: Period, *, most: int) -> list[Failure]:
        """Failed runs with the sentence that says why, latest first, up to a number."""
        found = self._ask(
            self._dagster, _FAILURES, since=period.since, until=period.until, most=most, **_CLASSES
        )
        return [
            Failure(**{**row, "sentence": " ".join(row["sentence"].split())[:_MOST_CHARACTERS]})
            for row in found
        ]

    def failed_at(self, period: Period, classes: Collection[str]) -> list[float]:
        """When runs failed for one of these classes."""
        found = self._ask(
            self._dagster,
            _FAILED_AT,
            since=period.since,
            until=period.until,
            classes=[str(each) for each in classes],
            **_CLASSES,
        )
        return [row["at"] for row in found]

    def traced(self, upload_id: str) -> list[TracedRun]:
        """An upload's runs in their order, with the times of their events."""
        runs = self._ask(self._dagster, _TRACED, upload=UPLOAD_TAG, upload_id=upload_id, **_CLASSES)
        kinds = ["PIPELINE_ENQUEUED", "PIPELINE_STARTING", "ASSET_MATERIALIZATION", *_STEP_EVENTS]
        run_ids = [run["run_id"] for run in runs]
        events = self._ask(self._dagster, _RUN_EVENTS, run_ids=run_ids, kinds=kinds)
        return [_traced(run, [row for row in events if row["run_id"] == run["run_id"]]) for run in runs]

    def first_success_after(self, moment: float) -> float | None:
        """When a run ended well for the first time after a moment."""
        query = "SELECT min(end_time) AS at FROM runs WHERE status = 'SUCCESS' AND end_time > :moment"
        found = self._ask(self._dagster, query, moment=moment)
        return found[0]["at"] if found else None

    def kept(self, value: Kept[T]) -> T:
        """A value that a sensor keeps."""
        found = self._ask(self._dagster, "SELECT value FROM kvs WHERE key = :key", key=value.key)
        return value.parse(found[0]["value"] if found else None)

    def statements(self, *, most: int) -> list[Statement] | None:
        """The kinds of statement that took PostgreSQL longest; None where it does not count them."""
        [row] = self._ask(self._store, "SELECT to_regclass('pg_stat_statements') IS NOT NULL AS counts")
        if not row["counts"]:
            return None
        found = self._ask(self._store, _STATEMENTS, most=most)
        return [Statement(**{**row, "text": " ".join(row["text"].split())}) for row in found]

    def _ask(self, connection: sa.Connection | None, query: str, **parameters: Any) -> Sequence[Row]:
        if connection is None:
            return []
        found = connection.execute(sa.text(query), parameters).mappings().all()
        self.queries += 1
        self.rows += len(found)
        return found


_CLASSES = {"failure": FAILURE_TAG, "none": NO_FAILURE, "unknown": _UNKNOWN}


def attempts(events: Iterable[Row]) -> list[Step]:
    """The attempts at steps, from a run's step events in their order."""
    under_way: dict[str, float] = {}
    found = []
    for event in events:
        name, at = event["step_key"], event["at"]
        if event["type"] in ("STEP_START", "STEP_RESTARTED"):
            # Both are on record where a step is tried again: the first of them counts.
            under_way.setdefault(name, at)
        elif event["type"] in _STEP_ENDS and name in under_way:
            found.append(Step(_short(name), under_way.pop(name), at, _STEP_ENDS[event["type"]]))
    found += [Step(_short(name), began, None, "") for name, began in under_way.items()]
    return sorted(found, key=lambda step: step.began)


def _short(step_key: str) -> str:
    return step_key.rsplit(".", 1)[-1]


def _traced(run: Row, events: Sequence[Row]) -> TracedRun:
    def first(name: str, kind: str = "ASSET_MATERIALIZATION") -> float | None:
        values = (event[name] for event in events if event["type"] == kind)
        return next((value for value in values if value is not None), None)

    return TracedRun(
        **run,
        enqueued=first("at", "PIPELINE_ENQUEUED"),
        launched=first("at", "PIPELINE_STARTING"),
        steps=tuple(attempts(events)),
        first_frame=first("first_frame"),
        last_frame=first("last_frame"),
        model_s=first("model_s"),
    )
