"""The metrics that this system publishes: a value of this file is the only way to name one."""

from __future__ import annotations

from functools import partial

from .model import Kind, Metric, Unit


def _metric(kind: Kind, name: str, meaning: str, *dimensions: str, unit: Unit = "Count") -> Metric:
    return Metric(name, unit, kind, meaning, dimensions)


_counter = partial(_metric, "counter")
_gauge = partial(_metric, "gauge")
_measure = partial(_metric, "measure")

# --- intake ---
UPLOADS_RECEIVED = _counter("UploadsReceived", "Messages that asked for an analysis, duplicates included.")
DUPLICATES_PREVENTED = _counter(
    "DuplicatesPrevented", "Requests whose run was on record already: nothing was started."
)
DUPLICATE_JOBS = _counter(
    "DuplicateJobs", "Second passes over the same detections that really started: a fence has failed."
)
UPLOADS_IGNORED = _counter("UploadsIgnored", "Keys that are no videos, and test events.")
UPLOADS_VANISHED = _counter("UploadsVanished", "Announced objects that are gone.")
MESSAGES_MALFORMED = _counter(
    "MessagesMalformed", "Messages, or parts of them, that were put with the dead letters."
)
QUEUE_AGE = _gauge("QueueAge", "How long the oldest message of a tick had waited in SQS.", unit="Seconds")
DEAD_LETTERS = _gauge("DeadLetters", "Messages in the dead-letter queue.")
INTAKE_PAUSED = _gauge(
    "IntakePaused",
    "1 while intake takes no messages because runs fail for one reason, which the class names; else 0. "
    "The class is `duplicate-job` where it paused because of a second pass over the same detections.",
    "FailureClass",
)

# --- runs ---
RUNS_QUEUED = _gauge("RunsQueued", "Runs that wait for their turn.")
RUNS_STARTED = _counter("RunsStarted", "Runs whose worker began.")
RUNS_SUCCEEDED = _counter("RunsSucceeded", "Runs that ended well.")
RUNS_FAILED = _counter(
    "RunsFailed", "Runs that failed, each later try of a request included.", "FailureClass"
)
RUN_DURATION = _measure("RunDuration", "From a run's start to its end.", unit="Seconds")
LONGEST_RUN_OVER_LIMIT = _gauge(
    "LongestRunOverLimit",
    "Of the running runs, the greatest ratio of age to the limit of its own video; above 1 it is overdue. "
    "0 while none runs.",
    unit="None",
)
UPLOAD_TO_PERSISTED = _measure(
    "UploadToPersisted", "From the object's upload to its events in PostgreSQL.", unit="Seconds"
)
# An upload's way, leg by leg; a value of `Leg` is named by the leg's end.
RECEIVED, STARTED, FIRST_FRAME, PUBLISHED = LEGS = ("received", "started", "first-frame", "published")
LEG_DURATION = _measure(
    "LegDuration",
    "Legs of an upload's way: `received`, from the upload to intake; `started`, from the run's request to "
    "its worker; `first-frame`, from the begin of the analysis to its first frame; `published`, from the "
    "worker's begin to events in PostgreSQL.",
    "Leg",
    unit="Seconds",
)
SECONDS_WITHOUT_SUCCESS = _gauge(
    "SecondsWithoutSuccess",
    "While uploads wait or run: time since a run last ended well. 0 when nothing is to be done.",
    unit="Seconds",
)
REEXECUTIONS = _counter("Reexecutions", "Failed runs started again by the system.", "FailureClass")
REEXECUTIONS_REFUSED = _counter(
    "ReexecutionsRefused", "Failed runs left alone because the budget is used up."
)

# --- analysis ---
MODEL_LOAD_TIME = _measure("ModelLoadTime", "Loading the detection model.", unit="Seconds")
FRAMES_DECODED_PER_SECOND = _measure(
    "FramesDecodedPerSecond", "Frames decoded a second of the pass.", unit="Count/Second"
)
FRAMES_ANALYZED_PER_SECOND = _measure(
    "FramesAnalyzedPerSecond", "Frames given to the model a second of the pass.", unit="Count/Second"
)
DETECTIONS_PER_VIDEO = _measure("DetectionsPerVideo", "Single detections of a video.")
EVENTS_PER_VIDEO = _measure("EventsPerVideo", "Events of a video.")
BATCH_SIZE = _measure("BatchSize", "Pictures given to the model at once, at the end.")
OUT_OF_MEMORY_BACKOFFS = _counter(
    "OutOfMemoryBackoffs", "Times a batch was halved because the GPU had no room."
)
CPU_FALLBACKS = _counter("CpuFallbacks", "Passes on the CPU although a GPU could be expected.")
GPU_MEMORY_USED = _gauge("GpuMemoryUsed", "Most of the GPU's memory that a pass held.", unit="Percent")
GPU_UTILIZATION = _gauge("GpuUtilization", "How busy the GPU was, as its driver says.", unit="Percent")
GPU_SECONDS = _counter("GpuSeconds", "Time that passes held a GPU.", unit="Seconds")
WASTED_GPU_SECONDS = _counter(
    "WastedGpuSeconds",
    "Time that passes held a place on the GPU for results that nobody can use: they failed, were "
    "cancelled, or repeated another run's work.",
    unit="Seconds",
)
ESTIMATED_COST = _counter(
    "EstimatedCost", "US dollars of those seconds, at CAPSTONE_GPU_USD_PER_HOUR.", unit="None"
)

# --- storage ---
DATABASE_CONNECTION_FAILURES = _counter("DatabaseConnectionFailures", "Times the event store did not answer.")
DATABASE_RETRIES = _counter("DatabaseRetries", "Statements tried once more.")
S3_ACCESS_DENIED = _counter("S3AccessDenied", "Requests that S3 answered with 403.")
ROWS_PERSISTED = _counter("RowsPersisted", "Event rows published.")
PERSIST_TIME = _measure("PersistTime", "Time that publishing an analysis took.", unit="Seconds")
PERSIST_ERRORS = _counter("PersistErrors", "Analyses whose publishing failed.")

# --- the system itself ---
HEARTBEAT = _counter(
    "Heartbeat",
    "At least 1 a minute from each service that works: by the web server's health check, and by the "
    "sensor vital_signs for the daemon.",
    "Service",
)
SENSOR_TICK_DURATION = _measure(
    "SensorTickDuration", "How long a sensor's tick took.", "Sensor", unit="Seconds"
)
SENSOR_TICK_ERRORS = _counter("SensorTickErrors", "Ticks that failed.", "Sensor")
NOTICES_SENT = _counter("NoticesSent", "Notices that SNS accepted.")
NOTICES_FAILED = _counter("NoticesFailed", "Attempts to send a notice that failed.")
OUTBOX_SENT = _counter("OutboxSent", "Notices to other systems that SNS accepted.")
OUTBOX_REFUSED = _counter(
    "OutboxRefused",
    "Notices to other systems that SNS refused, and ticks in which it could not be used at all.",
)
OUTBOX_AGE = _gauge(
    "OutboxAge", "How old the oldest notice is that waits in the outbox; 0 if none does.", unit="Seconds"
)
TELEMETRY_DROPPED = _counter(
    "TelemetryDropped",
    "Lines of standard output that found no reader, and spans that found no collector.",
    "Channel",
)

# --- software delivery: once a day, of the last 90 days (docs/reports.md) ---
DEPLOYMENTS_A_WEEK = _gauge("DeploymentsPerWeek", "How often a version was deployed.")
LEAD_TIME = _gauge("LeadTime", "From a commit to its deployment, median.", unit="Seconds")
CHANGE_FAILURE_RATE = _gauge("ChangeFailureRate", "Deployments that failed.", unit="Percent")
TIME_TO_RESTORE = _gauge("TimeToRestore", "From a deployment's failure to its end, median.", unit="Seconds")
REWORK_RATE = _gauge("ReworkRate", "Deployments that followed one that failed.", unit="Percent")

METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
