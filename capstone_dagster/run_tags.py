"""The tags of runs: every name once, with its meaning.

Dagster's own are in `dagster._core.storage.tags`, the launcher's in `batch_gpu.jobs` and `batch_gpu.compute`.
Dagster's pages hide tags with the prefix `.dagster/`: a run shows only what people search by. A run that is
started again takes its parent's tags along, so one that is true of a single run alone holds that run's id, or
is taken off on the way (`runs/lineage.py`).
"""

# Dagster's own, named here for what must not import it.
PRIORITY_TAG = "dagster/priority"

# The video's id in the back end, and its camera.
EXTERNAL_ID_TAG = "capstone/external_id"
CAMERA_TAG = "capstone/camera"
# The video, which people see as the run's partition; the upload that announced it; its object.
VIDEO_TAG = ".dagster/capstone.video_id"
UPLOAD_TAG = ".dagster/capstone.upload_id"
S3_URI_TAG = ".dagster/capstone.s3_uri"
# ETag and size of the object: dagster.yaml lets one run at a time work on the same bytes.
CONTENT_TAG = ".dagster/capstone.content"
# The span of the upload, from which the run's follow.
TRACEPARENT_TAG = ".dagster/capstone.traceparent"

# "true": analyse again, whatever is finished; what `force` is in a configuration. A backfill's dialog has a
# field for tags.
FORCE_TAG = "capstone/force"
# A run that tests whether a systemic failure is over.
PROBE_TAG = ".dagster/capstone.probe"

# The class of the failure that ended it.
FAILURE_TAG = "capstone/failure"
# Replaces a failure that a retry inherited from its parent.
NO_FAILURE = "none"

# What it tries a step again for (`failures/step_retries.py`).
RETRYING_TAG = ".dagster/capstone.retrying"

# The number of automatic retries of this request; valid on a run whose parent the second tag names.
REEXECUTION_TAG = ".dagster/capstone.reexecution"
REEXECUTION_OF_TAG = ".dagster/capstone.reexecution_of"
# The classes by which earlier tries of this request failed in their pass, separated by commas; not those
# whose machine was taken away.
FAILED_BEFORE_TAG = ".dagster/capstone.failed_before"
# The requested run, of which this one is a retry.
REQUEST_RUN_TAG = ".dagster/capstone.request_run_id"
# On a failed run whose verdict is made: its own id, because retries inherit its tags.
SETTLED_TAG = ".dagster/capstone.reexecution_settled"

# The detections that its events are or will be derived from, made by it or found finished.
USED_TAG = ".dagster/capstone.detections_used"
# The detections that it passes over pixels for, or did last, and those that it stored last.
DETECTION_TAG = ".dagster/capstone.detection_id"
STORED_TAG = ".dagster/capstone.detections_stored"
# Seconds of video that it analyses, as far as is known.
VIDEO_SECONDS_TAG = ".dagster/capstone.video_s"
# How it waits for a device of this machine, if that takes long: its own id, because later runs take its tags
# along, and `waiting` or, since its turn, when that began in seconds since 1970.
TURN_TAG = ".dagster/capstone.turn"
# The run that repeated another one's GPU work, and that other run.
DUPLICATE_TAG = ".dagster/capstone.duplicate"
DUPLICATE_OF_TAG = ".dagster/capstone.duplicate_of"
