"""What passes and publications are measured by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from capstone_dagster.analysis import DetectionSummary
from capstone_dagster.catalog import metrics as declared
from capstone_dagster.catalog.model import Metric
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import Publication


def numbers(summary: DetectionSummary, *names: str) -> dict[str, Any]:
    """Fields of a summary by their names, as logs, Dagster's pages and tables show them."""
    return {name: getattr(summary, name) for name in names}


def measure_pass(done: DetectionSummary, services: Services) -> None:
    """Publish what a pass over the pixels found, how fast, and what it took."""
    seconds = max(done.seconds, 1e-9)
    values: dict[Metric, float] = {
        declared.FRAMES_DECODED_PER_SECOND: done.frames_decoded / seconds,
        declared.FRAMES_ANALYZED_PER_SECOND: done.frames_analyzed / seconds,
        declared.DETECTIONS_PER_VIDEO: done.detections,
        declared.BATCH_SIZE: done.batch_size,
        declared.OUT_OF_MEMORY_BACKOFFS: done.out_of_memory_backoffs,
        declared.CPU_FALLBACKS: done.cpu_fallback is not None,
        **_cost(done.device, done.seconds, services),
    }
    if done.gpu_memory_used_mb is not None and done.gpu_memory_total_mb:
        values[declared.GPU_MEMORY_USED] = 100 * done.gpu_memory_used_mb / done.gpu_memory_total_mb
    if done.gpu_utilization_percent is not None:
        values[declared.GPU_UTILIZATION] = done.gpu_utilization_percent
    services.metrics.add_all(values)


@contextmanager
def failed_pass_measured(device: str, services: Services) -> Iterator[None]:
    """Publish what a pass cost that comes to nothing."""
    started = time.monotonic()
    try:
        yield
    except Exception:
        services.metrics.add_all(_cost(device, time.monotonic() - started, services))
        raise


def gpu_cost(device: str, seconds: float, services: Services) -> tuple[float, float | None]:
    """Seconds of a GPU that a pass took, and what they cost in US dollars; None where no price is set."""
    gpu_seconds = seconds if device.startswith("cuda") else 0.0
    usd_per_hour = services.settings.gpu_usd_per_hour
    return gpu_seconds, None if usd_per_hour is None else gpu_seconds / 3600 * usd_per_hour


def _cost(device: str, seconds: float, services: Services) -> dict[Metric, float]:
    gpu_seconds, usd = gpu_cost(device, seconds, services)
    return {declared.GPU_SECONDS: gpu_seconds, **({} if usd is None else {declared.ESTIMATED_COST: usd})}


def measure_publication(
    publication: Publication,
    *,
    events: int,
    seconds: float,
    uploaded_at: datetime,
    began_at: float,
    services: Services,
) -> None:
    """Publish what a publication wrote, and how long it and everything before it took.

    Args:
        events: of the analysis; they are written only if it was not published before.
        seconds: that publishing took.
        began_at: when the work on the video began, seconds since 1970.
    """
    values: dict[Metric, float] = {
        declared.ROWS_PERSISTED: events if publication.inserted else 0,
        declared.PERSIST_TIME: seconds,
        declared.PERSIST_ERRORS: 0,
    }
    if publication.inserted:
        values[declared.EVENTS_PER_VIDEO] = events
    if publication.first:
        # Of an upload that is analysed again the way from upload to rows tells nothing.
        values[declared.UPLOAD_TO_PERSISTED] = (publication.published_at - uploaded_at).total_seconds()
        measure_leg(declared.PUBLISHED, began_at, publication.published_at.timestamp(), services)
    services.metrics.add_all(values)


def measure_leg(leg: str, began_at: float, ended_at: float, services: Services) -> None:
    """Publish how long a leg of an upload's way took; 0 where the two clocks contradict each other."""
    services.metrics.add(declared.LEG_DURATION, max(0.0, ended_at - began_at), leg=leg)
