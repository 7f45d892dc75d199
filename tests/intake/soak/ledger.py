"""What was done to the bucket and the queue, kept in order, so that what must follow from it can be said."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_plus

from capstone_dagster.intake.identity import run_key, upload_id, video_id
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.storage.sources import SourceObject
from tests.intake.soak.history import Ask, Message
from tests.intake.soak.schedule import Announcement, Put, Removal, Shape, Want

# Put beside good records; it cannot be understood and is copied to the dead letters alone.
BAD_RECORD = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"object": {}}}


@dataclass(frozen=True, slots=True)
class _Sent:
    message_id: str
    announcement: Announcement
    body: str
    step: int


@dataclass(slots=True)
class _Key:
    """An object's life: at which step which upload was the latest (None: there was none)."""

    video_id: str
    latest: list[tuple[int, float, int | None]] = field(default_factory=list)


class Ledger:
    """Every upload, removal and message, numbered in the order in which they happened."""

    def __init__(self, bucket: str, forbidden: Mapping[str, int | None]) -> None:
        self._bucket = bucket
        self._forbidden = {key for key, allowed_from in forbidden.items() if allowed_from is None}
        self._step = 0
        self._keys: dict[str, _Key] = {}
        self._sources: dict[int, SourceObject] = {}
        self._erased: dict[int, tuple[int, float]] = {}
        self._sent: list[_Sent] = []

    def put(self, put: Put, source: SourceObject) -> None:
        """An object was uploaded, and this is what S3 says of it."""
        self._sources[put.number] = source
        self._note_latest(put.key, put.number)

    def removed(self, removal: Removal) -> None:
        """An object was hidden or erased."""
        self._note_latest(removal.key, None)
        if removal.number is not None:
            self._erased[removal.number] = (self._step, time.time())

    def sent(self, message_id: str, announcement: Announcement, body: str) -> None:
        """A message is in the queue."""
        self._step += 1
        self._sent.append(_Sent(message_id, announcement, body, self._step))

    def upload_id(self, number: int) -> str:
        return upload_id(self._sources[number])

    def version(self, number: int) -> str:
        version = self._sources[number].version_id
        assert version is not None, "the bucket keeps versions"
        return version

    @property
    def uploads(self) -> int:
        return len(self._sources)

    def body(self, announcement: Announcement) -> str:
        """The message's text, with the ids that S3 gave."""
        if announcement.text is not None:
            return announcement.text
        want = announcement.wants[0]
        if announcement.shape is Shape.BACK_END:
            return json.dumps({"bucket": self._bucket, "key": want.key, **dict(want.fields)})
        if announcement.shape is Shape.EVENTBRIDGE:
            item = {"key": want.key, **self._version(want, "version-id")}
            detail = {"bucket": {"name": self._bucket}, "object": item}
            return json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})
        records = [self._record(want) for want in announcement.wants]
        if announcement.bad_record:
            records.insert(announcement.number % (len(records) + 1), BAD_RECORD)
        # The number keeps messages about one object apart, as a request id would.
        notification = json.dumps({"Records": records, "number": announcement.number}, ensure_ascii=False)
        if announcement.shape is Shape.SNS:
            return json.dumps({"Type": "Notification", "Message": notification})
        return notification

    def messages(self) -> list[Message]:
        """All messages with what must come of each."""
        return [self._message(sent) for sent in self._sent]

    def _message(self, sent: _Sent) -> Message:
        announcement = sent.announcement
        malformed: tuple[str, ...] = ()
        if announcement.malformed:
            malformed = (sent.body,)
        elif announcement.bad_record:
            malformed = (json.dumps({"Records": [BAD_RECORD]}),)
        asks = tuple(self._ask(sent, want) for want in announcement.wants)
        return Message(sent.message_id, sent.body, asks, malformed)

    def _ask(self, sent: _Sent, want: Want) -> Ask:
        uploads, gone_from = self._possible(want, sent.step)
        fields = dict(want.fields)
        request = AnalysisRequest(
            bucket=self._bucket,
            key=want.key,
            sample_fps=fields.get("sample_fps"),  # type: ignore[arg-type]
            model=fields.get("model"),  # type: ignore[arg-type]
            force=bool(fields.get("force")),
        )
        number = fields.get("video_id")
        return Ask(
            video_id=self._keys[want.key].video_id,
            run_keys={upload: run_key(upload, request, sent.message_id) for upload in uploads},
            gone_from=gone_from,
            forbidden=want.key in self._forbidden,
            external_id=None if number is None else str(number),
        )

    def _possible(self, want: Want, step: int) -> tuple[list[str], float | None]:
        """The uploads that S3 could tell of from this step on, and since when it could tell of none."""
        if want.number is not None:
            erased = self._erased.get(want.number)
            return [self.upload_id(want.number)], erased[1] if erased else None
        history = self._keys[want.key].latest
        before = [state for state in history if state[0] <= step][-1:]
        states = before + [state for state in history if state[0] > step]
        gone = [at for _, at, number in states if number is None]
        return [self.upload_id(number) for _, _, number in states if number is not None], min(
            gone, default=None
        )

    def _note_latest(self, key: str, number: int | None) -> None:
        self._step += 1
        history = self._keys.setdefault(key, _Key(video_id(self._bucket, key)))
        history.latest.append((self._step, time.time(), number))

    def _record(self, want: Want) -> dict[str, object]:
        item = {"key": quote_plus(want.key, safe="/"), **self._version(want, "versionId")}
        return {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": self._bucket}, "object": item},
        }

    def _version(self, want: Want, name: str) -> dict[str, str]:
        if want.number is None:
            return {}
        return {name: self.version(want.number)}
