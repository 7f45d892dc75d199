"""From stored detections to published events: derive, check, and one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from capstone_dagster.analysis import (
    EVENTS_VERSION,
    DetectionSummary,
    Event,
    EventRules,
    Zone,
    analysis_id,
    build_events,
    read_detections,
    read_events,
    write_events,
)
from capstone_dagster.assets.steps.analysis_log import AnalysisLog, damage
from capstone_dagster.assets.steps.measurements import gpu_cost, measure_publication, numbers
from capstone_dagster.assets.steps.references import (
    DetectionsReference,
    EventsReference,
    PublishedAnalysis,
    recording_start,
)
from capstone_dagster.assets.steps.temporary_files import read_object, take_removed, temporary_folder
from capstone_dagster.catalog.metrics import DATABASE_RETRIES, PERSIST_ERRORS
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import Analysis, Publication, publish_analysis
from capstone_dagster.storage.errors import DatabaseUnavailable
from capstone_dagster.storage.uploads import VideoFacts
from capstone_dagster.storage.video_status import UploadCancelled
from capstone_dagster.storage.zones import zones_of

EVENTS_FILE = "events.parquet"


class IntegrityViolation(Exception):
    """Events contradict the detections or themselves: nothing was published."""

    failure_class = "internal"


def derive(
    detections: DetectionsReference, services: Services, rules: EventRules, log: AnalysisLog
) -> EventsReference:
    """Build the events of stored detections and write them beside; touches no pixel and no GPU.

    The zones of the camera are rules, too: other zones make another analysis of the same detections.

    Raises:
        DatabaseUnavailable: it did not answer; it is tried for as long as by :func:`publish`.
    """
    summary, video_id = detections.summary, detections.upload.video_id
    try:
        for attempt in _tries(log, services):
            with attempt:
                zones = services.database.transact(zones_of, detections.upload.camera)
    except DatabaseUnavailable:
        # The alarm on this metric is how an event store that is away is noticed; publishing would fail next.
        services.metrics.add(PERSIST_ERRORS)
        raise
    rules = replace(rules, zones=tuple(Zone(**zone) for zone in zones))
    identity = analysis_id(video_id=video_id, detection_id=detections.detection_id, rules=rules)
    prefix = f"analyses/{identity}/"
    table = read_object(services.objects, detections.prefix + "detections.parquet", read_detections)
    events = build_events(table, summary.coverage, analysis_id=identity, rules=rules)
    with temporary_folder() as folder:
        path = folder / EVENTS_FILE
        write_events(path, events)
        services.objects.put_file(prefix + EVENTS_FILE, path)
    log.derived(len(events), summary.detections)
    recorded_at, source = recording_start(detections)
    return EventsReference(identity, prefix, len(events), recorded_at, source, detections)


def publish(
    derived: EventsReference,
    services: Services,
    *,
    run_id: str,
    requested_at: datetime,
    began_at: float,
    log: AnalysisLog,
) -> tuple[PublishedAnalysis, list[Event]]:
    """Check the events and make them current, in one transaction; again changes nothing.

    A database that does not answer is tried for some ten seconds and no longer, because the caller may hold
    a machine meanwhile.

    Args:
        began_at: when the work on the video began, seconds since 1970.
        log: gets each retry, the step when it is done, and the end of the analysis.

    Raises:
        IntegrityViolation: events and detections contradict each other.
        DatabaseUnavailable: it did not answer.
        UploadCancelled: an operator was quicker; nothing is published.
    """
    started = time.monotonic()
    try:
        publication, events = _publish(derived, services, run_id, requested_at, log)
    except UploadCancelled:
        raise
    except Exception:
        services.metrics.add(PERSIST_ERRORS)
        raise
    seconds = time.monotonic() - started
    upload = derived.detections.upload
    measure_publication(
        publication,
        events=len(events),
        seconds=seconds,
        uploaded_at=upload.uploaded_at,
        began_at=began_at,
        services=services,
    )
    published = PublishedAnalysis(
        analysis_id=derived.analysis_id,
        video_id=upload.video_id,
        events=len(events),
        published_at=publication.published_at,
        current=publication.current,
        rows=len(events) if publication.inserted else 0,
        first=publication.first,
    )
    log.saved(published.events, published.rows, seconds)
    if not published.current:
        log.warn(
            "An analysis of a newer upload, or one that was asked for later, is current; this one is stored "
            "beside it.",
            action="analysis.outdated",
        )
    log.cleaned_up(take_removed())
    elapsed_s = time.time() - began_at
    log.completed(derived.detections.summary, published.events, published.rows, elapsed_s)
    return published, events


def _publish(
    derived: EventsReference, services: Services, run_id: str, requested_at: datetime, log: AnalysisLog
) -> tuple[Publication, list[Event]]:
    detections, summary = derived.detections, derived.detections.summary
    upload = detections.upload
    events = read_object(services.objects, derived.prefix + EVENTS_FILE, read_events)
    check_integrity(events, expected=derived.events, summary=summary)
    analysis = Analysis(
        analysis_id=derived.analysis_id,
        detection_id=detections.detection_id,
        video_id=upload.video_id,
        upload_id=upload.upload_id,
        settings=detections.settings,
        detection_version=detections.detection_version,
        events_version=EVENTS_VERSION,
        run_id=run_id,
        events=len(events),
        gpu_seconds=gpu_cost(summary.device, summary.seconds, services)[0],
        **numbers(summary, "frames_decoded", "frames_analyzed", "detections", "tracks", "seconds"),
        **numbers(summary, "model", "model_sha256", "device", "backend"),
        objects_prefix=services.objects.url(detections.prefix),
        requested_at=requested_at,
    )
    facts = VideoFacts(
        **numbers(summary, "duration_ms", "width", "height", "fps", "codec"),
        recorded_at=derived.recorded_at,
        recorded_at_source=derived.recorded_at_source,
    )
    rows = [_row(event, derived) for event in events]
    for attempt in _tries(log, services):
        with attempt, services.tracer.span("publish", database="postgresql", rows=len(rows)):
            publication = services.database.transact(publish_analysis, analysis, rows, facts, damage(summary))
    return publication, events


def check_integrity(events: Sequence[Event], *, expected: int, summary: DetectionSummary) -> None:
    """Refuse events that cannot be true of the detections they come from.

    Raises:
        IntegrityViolation: naming each contradiction.
    """
    wrong = []
    if len(events) != expected:
        wrong.append(f"{expected} events were derived and {len(events)} read back")
    if len({event.event_id for event in events}) != len(events):
        wrong.append("event ids repeat")
    if sum(event.detections for event in events) > summary.detections:
        wrong.append(f"events count more detections than the {summary.detections} there are")
    first, last = summary.first_pts_ms, summary.last_pts_ms
    for event in events:
        if not first <= event.start_ms <= event.best_ms <= event.end_ms <= last:
            wrong.append(f"event {event.event_id} lies outside the video's {first}–{last} ms")
        boxes = [event.best_box] + ([event.face_box] if event.face_box else [])
        if not all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes):
            wrong.append(f"event {event.event_id} has a box outside the frame")
    if wrong:
        raise IntegrityViolation("Nothing was published: " + "; ".join(wrong[:10]) + ".")


def _tries(log: AnalysisLog, services: Services) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(DatabaseUnavailable),
        wait=wait_random_exponential(multiplier=1, max=4),
        stop=stop_after_attempt(4),
        before_sleep=lambda state: _log_retry(log, services, state),
        reraise=True,
    )


def _log_retry(log: AnalysisLog, services: Services, state: RetryCallState) -> None:
    services.metrics.add(DATABASE_RETRIES)
    error = state.outcome.exception() if state.outcome else None
    log.warn(
        f"The event store did not answer, attempt {state.attempt_number}: {error}",
        action="database.retry",
        attempt=state.attempt_number,
        failure_class=DatabaseUnavailable.failure_class,
    )


def _row(event: Event, derived: EventsReference) -> dict[str, Any]:
    def clock(offset_ms: int) -> datetime | None:
        return derived.recorded_at + timedelta(milliseconds=offset_ms) if derived.recorded_at else None

    upload, prefix = derived.detections.upload, derived.detections.prefix
    return {
        **asdict(event),
        "camera": upload.camera,
        "started_at": clock(event.start_ms),
        "ended_at": clock(event.end_ms),
        "thumbnail_key": prefix + event.thumbnail_key if event.thumbnail_key else None,
        "zones": json.dumps([asdict(each) for each in event.zones], ensure_ascii=False),
        "crossings": json.dumps([asdict(each) for each in event.crossings], ensure_ascii=False),
    }
