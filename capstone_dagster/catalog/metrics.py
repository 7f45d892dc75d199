"""The metrics that this system publishes: a value of this file is the only way to name one."""

from __future__ import annotations

from .model import Metric

# --- intake ---
UPLOADS_RECEIVED = Metric(
    "UploadsReceived", "Count", "counter", "Messages that asked for an analysis, duplicates included."
)
DUPLICATES_PREVENTED = Metric(
    "DuplicatesPrevented",
    "Count",
    "counter",
    "Requests whose run was on record already: nothing was started.",
)
DUPLICATE_JOBS = Metric(
    "DuplicateJobs",
    "Count",
    "counter",
    "Second passes over the same detections that really started: a fence has failed.",
)
UPLOADS_IGNORED = Metric("UploadsIgnored", "Count", "counter", "Keys that are no videos, and test events.")
UPLOADS_VANISHED = Metric("UploadsVanished", "Count", "counter", "Announced objects that are gone.")
MESSAGES_MALFORMED = Metric(
    "MessagesMalformed",
    "Count",
    "counter",
    "Messages, or parts of them, that were put with the dead letters.",
)
QUEUE_AGE = Metric("QueueAge", "Seconds", "gauge", "How long the oldest message of a tick had waited in SQS.")
DEAD_LETTERS = Metric("DeadLetters", "Count", "gauge", "Messages in the dead-letter queue.")
INTAKE_PAUSED = Metric(
    "IntakePaused",
    "Count",
    "gauge",
    "1 while intake takes no messages because runs fail for one reason, which the class names; else 0. "
    "The class is `duplicate-job` where it paused because of a second pass over the same detections.",
    ("FailureClass",),
)

# --- runs ---
RUNS_QUEUED = Metric("RunsQueued", "Count", "gauge", "Runs that wait for their turn.")
RUNS_STARTED = Metric("RunsStarted", "Count", "counter", "Runs whose worker began.")
RUNS_SUCCEEDED = Metric("RunsSucceeded", "Count", "counter", "Runs that ended well.")
RUNS_FAILED = Metric(
    "RunsFailed",
    "Count",
    "counter",
    "Runs that failed, each later try of a request included.",
    ("FailureClass",),
)
RUN_DURATION = Metric("RunDuration", "Seconds", "measure", "From a run's start to its end.")
LONGEST_RUN_OVER_LIMIT = Metric(
    "LongestRunOverLimit",
    "None",
    "gauge",
    "Of the running runs, the greatest ratio of age to the limit of its own video; above 1 it is overdue. "
    "0 while none runs.",
)
UPLOAD_TO_PERSISTED = Metric(
    "UploadToPersisted", "Seconds", "measure", "From the object's upload to its events in PostgreSQL."
)
SECONDS_WITHOUT_SUCCESS = Metric(
    "SecondsWithoutSuccess",
    "Seconds",
    "gauge",
    "While uploads wait or run: time since a run last ended well. 0 when nothing is to be done.",
)
REEXECUTIONS = Metric(
    "Reexecutions", "Count", "counter", "Failed runs started again by the system.", ("FailureClass",)
)
REEXECUTIONS_REFUSED = Metric(
    "ReexecutionsRefused", "Count", "counter", "Failed runs left alone because the budget is used up."
)

# --- analysis ---
MODEL_LOAD_TIME = Metric("ModelLoadTime", "Seconds", "measure", "Loading the detection model.")
FRAMES_DECODED_PER_SECOND = Metric(
    "FramesDecodedPerSecond", "Count/Second", "measure", "Frames decoded a second of the pass."
)
FRAMES_ANALYZED_PER_SECOND = Metric(
    "FramesAnalyzedPerSecond", "Count/Second", "measure", "Frames given to the model a second of the pass."
)
DETECTIONS_PER_VIDEO = Metric("DetectionsPerVideo", "Count", "measure", "Single detections of a video.")
EVENTS_PER_VIDEO = Metric("EventsPerVideo", "Count", "measure", "Events of a video.")
BATCH_SIZE = Metric("BatchSize", "Count", "measure", "Pictures given to the model at once, at the end.")
OUT_OF_MEMORY_BACKOFFS = Metric(
    "OutOfMemoryBackoffs", "Count", "counter", "Times a batch was halved because the GPU had no room."
)
CPU_FALLBACKS = Metric(
    "CpuFallbacks", "Count", "counter", "Passes on the CPU although a GPU could be expected."
)
GPU_MEMORY_USED = Metric("GpuMemoryUsed", "Percent", "gauge", "Most of the GPU's memory that a pass held.")
GPU_UTILIZATION = Metric("GpuUtilization", "Percent", "gauge", "How busy the GPU was, as its driver says.")
GPU_SECONDS = Metric("GpuSeconds", "Seconds", "counter", "Time that passes held a GPU.")
WASTED_GPU_SECONDS = Metric(
    "WastedGpuSeconds",
    "Seconds",
    "counter",
    "Time that passes held a place on the GPU for results that nobody can use: they failed, were "
    "cancelled, or repeated another run's work.",
)
ESTIMATED_COST = Metric(
    "EstimatedCost", "None", "counter", "US dollars of those seconds, at CAPSTONE_GPU_USD_PER_HOUR."
)

# --- storage ---
DATABASE_CONNECTION_FAILURES = Metric(
    "DatabaseConnectionFailures", "Count", "counter", "Times the event store did not answer."
)
DATABASE_RETRIES = Metric("DatabaseRetries", "Count", "counter", "Statements tried once more.")
S3_ACCESS_DENIED = Metric("S3AccessDenied", "Count", "counter", "Requests that S3 answered with 403.")
ROWS_PERSISTED = Metric("RowsPersisted", "Count", "counter", "Event rows published.")
PERSIST_TIME = Metric("PersistTime", "Seconds", "measure", "Time that publishing an analysis took.")
PERSIST_ERRORS = Metric("PersistErrors", "Count", "counter", "Analyses whose publishing failed.")

# --- the system itself ---
HEARTBEAT = Metric(
    "Heartbeat",
    "Count",
    "counter",
    "At least 1 a minute from each service that works: by the web server's health check, and by the sensor "
    "vital_signs for the daemon.",
    ("Service",),
)
SENSOR_TICK_DURATION = Metric(
    "SensorTickDuration", "Seconds", "measure", "How long a sensor's tick took.", ("Sensor",)
)
SENSOR_TICK_ERRORS = Metric("SensorTickErrors", "Count", "counter", "Ticks that failed.", ("Sensor",))
NOTICES_SENT = Metric("NoticesSent", "Count", "counter", "Notices that SNS accepted.")
NOTICES_FAILED = Metric("NoticesFailed", "Count", "counter", "Attempts to send a notice that failed.")
OUTBOX_SENT = Metric("OutboxSent", "Count", "counter", "Notices to other systems that SNS accepted.")
OUTBOX_REFUSED = Metric(
    "OutboxRefused",
    "Count",
    "counter",
    "Notices to other systems that SNS refused, and ticks in which it could not be used at all.",
)
OUTBOX_AGE = Metric(
    "OutboxAge", "Seconds", "gauge", "How old the oldest notice is that waits in the outbox; 0 if none does."
)
TELEMETRY_DROPPED = Metric(
    "TelemetryDropped",
    "Count",
    "counter",
    "Lines of standard output that found no reader, and spans that found no collector.",
    ("Channel",),
)

METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
