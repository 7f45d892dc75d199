"""Estimates what analysing videos again would take: passes, duration of video, hours of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capstone_dagster.services import Services
    from capstone_dagster.storage.analysis_statistics import Pace


@dataclass(frozen=True, slots=True)
class Estimate:
    """The work of a backfill.

    Attributes:
        passes: videos that need a pass; the others have finished detections.
        video_s: their total known duration.
        unknown: number of them with unknown duration.
        pace: of the latest passes; None without any.
        alike: those passes used the configured model and settings.
    """

    passes: int
    video_s: float
    unknown: int
    pace: Pace | None
    alike: bool

    @property
    def gpu_hours(self) -> float | None:
        """Hours on a GPU; None if unknown."""
        if not self.passes:
            return 0.0
        return None if self.pace is None else self.video_s * self.pace.gpu_seconds / 3600

    @property
    def hours(self) -> float | None:
        """Pace of passes, with their device."""
        if not self.passes:
            return 0.0
        return None if self.pace is None else self.video_s * self.pace.seconds / 3600

    def as_fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passes": self.passes,
            "video_hours": round(self.video_s / 3600, 3),
            "of_unknown_length": self.unknown,
            "hours": None if self.hours is None else round(self.hours, 3),
            "gpu_hours": None if self.gpu_hours is None else round(self.gpu_hours, 3),
            "measured_on_passes": self.pace.passes if self.pace else 0,
            "measured_with_todays_model": self.alike,
        }

    def described(self, videos: int) -> str:
        """The estimate in sentences.

        Args:
            videos: number of chosen videos.
        """
        if not self.passes:
            return "No pixel is looked at: no GPU is needed."
        ready = videos - self.passes
        lengths = [f"{_hours(self.video_s)} of video"] if self.passes > self.unknown else []
        lengths += [f"{_count(self.unknown, 'video')} of unknown length"] if self.unknown else []
        description = f"{_count(self.passes, 'pass', 'es')} over {' and '.join(lengths)}"
        if ready:
            description += f"; of {_count(ready, 'video')} finished detections are reused"
        if self.pace is None or self.hours is None or self.gpu_hours is None:
            return f"{description}. No earlier pass says how long that takes."
        which = f"{_count(self.pace.passes, 'recent pass', 'es')} with "
        which += "this model and settings" if self.alike else "another model or other settings"
        rate = self.pace.gpu_seconds or self.pace.seconds
        on = "GPU" if self.pace.gpu_seconds else "CPU"
        hours = self.gpu_hours if self.pace.gpu_seconds else self.hours
        rate_text = f"{rate:.2g} s for each second of video, measured on {which}"
        return f"{description}. About {hours:,.2f} {on} hours: {rate_text}."


def estimate(
    services: Services, chosen: Sequence[dict[str, Any]], *, model_sha256: str, events_only: bool, force: bool
) -> Estimate:
    """Estimate from recent measurements.

    Args:
        chosen: rows of `videos_with_models`.
        model_sha256: SHA-256 of the configured model.
    """
    from capstone_dagster.analysis import detection_id
    from capstone_dagster.model_files import analysis_settings
    from capstone_dagster.storage.analysis_statistics import finished_detections, recent_pace

    if events_only:
        return Estimate(0, 0.0, 0, None, alike=False)
    settings = analysis_settings(services.settings)
    ids = {
        row["video_id"]: detection_id(
            etag=row["etag"], size_bytes=row["size_bytes"], model_sha256=model_sha256, settings=settings
        )
        for row in chosen
    }
    finished = set() if force else services.database.transact(finished_detections, set(ids.values()))
    # The same bytes under two keys are passed over once.
    todo = {ids[row["video_id"]]: row for row in chosen if ids[row["video_id"]] not in finished}
    lengths = [row["duration_ms"] for row in todo.values()]
    pace = services.database.transact(
        recent_pace, model_sha256=model_sha256, settings=settings.detection_fields()
    )
    return Estimate(
        passes=len(todo),
        video_s=sum(length for length in lengths if length is not None) / 1000,
        unknown=lengths.count(None),
        pace=pace or services.database.transact(recent_pace),
        alike=pace is not None,
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


def _count(count: int, one: str, plural: str = "s") -> str:
    return f"{count:,} {one}{'' if count == 1 else plural}"
