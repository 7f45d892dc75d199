"""What the reports are computed from: typed values of what both databases have on record.

Times are seconds since 1970. A time that is not on record is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The stages of an upload, in their order; what lies between two of them is a leg.
STAGES = ("uploaded", "requested", "started", "first_frame", "last_frame", "published")
LEGS = (
    "upload → run on record",
    "run on record → run started",
    "run started → first frame",
    "first frame → last frame",
    "last frame → published",
)


@dataclass(frozen=True, slots=True)
class Period:
    """The time that a report is about."""

    since: float
    until: float

    @property
    def days(self) -> float:
        return max(0.0, self.until - self.since) / 86_400

    def holds(self, moment: float | None) -> bool:
        return moment is not None and self.since <= moment < self.until


@dataclass(frozen=True, slots=True)
class Journey:
    """One upload's way to its first published analysis, by this run.

    Attributes:
        gpu_s: how long its pass held a GPU.
    """

    run_id: str
    video_id: str
    uploaded: float | None
    requested: float | None = None
    started: float | None = None
    first_frame: float | None = None
    last_frame: float | None = None
    published: float | None = None
    gpu_s: float = 0.0

    def legs(self) -> Mapping[str, float]:
        """Seconds of each leg whose two ends are on record; negative where a clock was set back."""
        times = [getattr(self, stage) for stage in STAGES]
        return {
            leg: after - before
            for leg, before, after in zip(LEGS, times, times[1:], strict=False)
            if before is not None and after is not None
        }

    @property
    def whole_s(self) -> float | None:
        if self.uploaded is None or self.published is None:
            return None
        return self.published - self.uploaded


@dataclass(frozen=True, slots=True)
class Uploads:
    """How uploads ended.

    Attributes:
        done: analysed and published.
        failed: failure class → how many.
    """

    done: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DayOfWork:
    """The passes over pixels whose results were published on one day.

    Attributes:
        day: its beginning.
        seconds: of the passes; `gpu_s` the part on a GPU, `video_s` the length of what they passed over.
    """

    day: float
    passes: int
    seconds: float
    gpu_s: float
    video_s: float


@dataclass(frozen=True, slots=True)
class EndedRuns:
    """How the runs of one stretch of time ended.

    Attributes:
        failed: failure class → how many.
    """

    succeeded: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    canceled: int = 0

    @property
    def count(self) -> int:
        return self.succeeded + sum(self.failed.values()) + self.canceled


@dataclass(frozen=True, slots=True)
class LostPass:
    """A pass over pixels whose results nobody can use, or the repetition of one.

    Attributes:
        seconds: how long it held its place on the GPU.
        doubled: it repeated work that another run had done or was doing.
    """

    run_id: str
    seconds: float
    doubled: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed run.

    Attributes:
        failure: its class; `internal` where none is on record.
        sentence: what an operator reads.
    """

    run_id: str
    at: float
    failure: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt at a step of a run.

    Attributes:
        ended: None where it died with its worker.
        outcome: `done`, `failed` or `tried again`; empty where it has none yet.
    """

    name: str
    began: float
    ended: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A run with everything that its events say about its time.

    Attributes:
        enqueued, launched, started, ended: when it entered Dagster's queue, left it, began in its worker, and
            ended.
        model_s: how long loading the model took.
    """

    run_id: str
    job: str
    status: str
    failure: str | None
    created: float
    enqueued: float | None = None
    launched: float | None = None
    started: float | None = None
    ended: float | None = None
    steps: tuple[Step, ...] = ()
    first_frame: float | None = None
    last_frame: float | None = None
    model_s: float | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """A kind of SQL statement, as `pg_stat_statements` counts it."""

    text: str
    calls: int
    mean_ms: float
    total_s: float
