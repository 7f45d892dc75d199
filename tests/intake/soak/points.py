"""The named points at which a daemon's life ends, or goes wrong, in the order in which a tick meets them."""

from enum import StrEnum


class Point(StrEnum):
    """Where a life is cut off by SIGKILL; the last ones are faults that the daemon survives.

    "Before" and "after" speak of the call's effect: after a commit it is done, before it is lost.
    """

    BEFORE_RECEIVE = "before receiving from SQS"
    AFTER_RECEIVE = "after receiving from SQS"
    AFTER_HEAD = "after a HeadObject"
    BEFORE_RECORDING_UPLOAD = "while an upload is written to the event store"
    AFTER_RECORDING_UPLOAD = "after an upload is written to the event store"
    AFTER_EVALUATION = "after the sensor's function returned, before the tick is stored"
    AFTER_ASSET_EVENT = "after an asset event is stored"
    BEFORE_PARTITIONS = "before partitions are added"
    AFTER_PARTITIONS = "after partitions are added, before the tick is stored"
    AFTER_TICK_STORED = "after the tick is stored, before its first run is created"
    BEFORE_RUN_CREATED = "before a run is created"
    AFTER_RUN_CREATED = "after a run is created, before it is submitted"
    INSIDE_SUBMIT = "while a run is submitted"
    AFTER_RUN_SUBMITTED = "after a run is submitted, before the next one"
    BEFORE_TICK_FINISHED = "after all runs are submitted, before the tick is finished"
    BEFORE_CURSOR = "after the tick is finished, before the cursor is written"
    AFTER_CURSOR = "after the cursor is written"
    BEFORE_DEAD_LETTER = "before a malformed message is copied to the dead letters"
    AFTER_DEAD_LETTER = "after the copy to the dead letters, before the message is deleted"
    BEFORE_MARKING_QUEUED = "while uploads are marked as queued"
    BEFORE_ACKNOWLEDGE = "before messages are acknowledged"
    AFTER_ACKNOWLEDGE = "after messages are acknowledged"
    ANY_STATEMENT = "before a database statement, whichever it is"

    TIME_OUT = "fault: the code server answers too late, its result is lost"
    LINGERING = "fault: the code server times out and goes on working beside the next tick"
    EVENT_STORE_DOWN = "fault: the event store breaks off"
    RUN_STORAGE_DOWN = "fault: Dagster's database breaks off while runs are created"
    SUBMIT_DOWN = "fault: runs are created, and submitting them fails"
    QUEUE_DOWN = "fault: SQS fails while messages are acknowledged"

    @property
    def kills(self) -> bool:
        """Whether the process dies there."""
        return not self.value.startswith("fault: ")


# How often a point may be passed before it strikes; for the others the first time is like any other.
MOST_PASSES = {
    Point.AFTER_RECEIVE: 6,
    Point.AFTER_HEAD: 40,
    Point.BEFORE_RECORDING_UPLOAD: 20,
    Point.AFTER_RECORDING_UPLOAD: 20,
    Point.AFTER_ASSET_EVENT: 10,
    Point.BEFORE_RUN_CREATED: 8,
    Point.AFTER_RUN_CREATED: 8,
    Point.INSIDE_SUBMIT: 8,
    Point.AFTER_RUN_SUBMITTED: 8,
    Point.BEFORE_ACKNOWLEDGE: 2,
    Point.AFTER_ACKNOWLEDGE: 2,
    Point.ANY_STATEMENT: 300,
    Point.EVENT_STORE_DOWN: 20,
    Point.RUN_STORAGE_DOWN: 8,
    Point.SUBMIT_DOWN: 4,
}
