"""What was done and what came of it, as plain values: the checker's only input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that a message asked for.

    Attributes:
        run_keys: upload id → the key of the run that answers, of every upload that S3 could have announced.
        gone_from: since when S3 could have answered that there is no such object; None if never.
        forbidden: S3 refused all along.
        external_id: the back end's id that came with it, if one did.
    """

    video_id: str
    run_keys: Mapping[str, str]
    gone_from: float | None = None
    forbidden: bool = False
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was sent.

    Attributes:
        malformed: the texts of its malformed parts, which may be all of it.
    """

    message_id: str
    body: str
    asks: tuple[Ask, ...] = ()
    malformed: tuple[str, ...] = ()

    @property
    def forbidden(self) -> bool:
        return any(ask.forbidden for ask in self.asks)


@dataclass(frozen=True, slots=True)
class Run:
    """One run in Dagster's storage, or one that was there; times in seconds since 1970.

    Attributes:
        upload_id: the upload that it works on, as its tag says.
        work: what it had to do; two runs of equal work find each other's detections.
        submitted: it got further than being created.
        root: it is nobody's retry.
    """

    run_id: str
    run_key: str | None
    upload_id: str
    partition: str
    work: str
    created_at: float
    deleted_at: float | None = None
    submitted: bool = True
    root: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message in the dead-letter queue.

    Attributes:
        source_message_id: of the message that it was copied from; None if SQS moved it.
    """

    message_id: str
    source_message_id: str | None
    body: str


@dataclass(frozen=True, slots=True)
class Status:
    """What the event store says of an upload; `notices` counts those that tell of its arrival."""

    state: str
    notices: int = 1


@dataclass(frozen=True, slots=True)
class History:
    """Everything that is known when it is over.

    Attributes:
        acknowledged: message id → when it was first deleted from the queue.
        left: messages that are still in the queue.
        partitions: the video ids that Dagster lists.
        statuses: upload id → what the event store says.
        external_ids: video id → the back end's id on record.
        uploads: how many objects were uploaded.
    """

    messages: Sequence[Message]
    runs: Sequence[Run]
    acknowledged: Mapping[str, float]
    dead_letters: Sequence[DeadLetter]
    left: int = 0
    partitions: frozenset[str] = frozenset()
    statuses: Mapping[str, Status] = field(default_factory=dict)
    external_ids: Mapping[str, str | None] = field(default_factory=dict)
    uploads: int = 0
