"""What befalls the queue, the bucket and the daemon, drawn from a seed; pure, and the same every time.

A schedule is a list of waves. In each, objects change and messages are sent while no daemon runs; then one
daemon life follows another, most of them cut off. So what S3 could answer a life is known exactly.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from tests.intake.soak.points import MOST_PASSES, Point

# A life that has not met its point after so many ticks never will: a wave is taken in by one or two.
TICKS_OF_A_KILLED_LIFE = 6
TICKS_OF_A_QUIET_LIFE = 12
# Waves at the end in which nothing is planned, for points that were missed.
SPARE_WAVES = 2


class Shape(StrEnum):
    """How a message says what it asks for."""

    S3 = "S3's notification"
    SNS = "S3's notification in an SNS envelope"
    EVENTBRIDGE = "EventBridge's event"
    BACK_END = "the back end's request"


@dataclass(frozen=True, slots=True)
class Put:
    """One upload: `number` names it within the schedule, equal `content` means equal bytes."""

    number: int
    key: str
    content: int


@dataclass(frozen=True, slots=True)
class Removal:
    """An object goes: hidden by a delete marker, or its only version erased."""

    key: str
    number: int | None


@dataclass(frozen=True, slots=True)
class Want:
    """One thing that a message asks for.

    Attributes:
        number: the upload whose version is named; None asks for the latest.
        fields: what a back end's request says besides bucket and key.
    """

    key: str
    number: int | None = None
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Announcement:
    """One message to be sent, once or several times.

    Attributes:
        text: the body itself, of a message that asks for nothing or is malformed.
        malformed: `text` cannot be understood.
        bad_record: a record that cannot be understood is put beside the good ones.
    """

    number: int
    shape: Shape = Shape.S3
    wants: tuple[Want, ...] = ()
    text: str | None = None
    malformed: bool = False
    bad_record: bool = False


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the daemon.

    Attributes:
        point: where it ends or goes wrong; None lets it work until there is nothing to do.
        passes: how often it passes the point unharmed.
        ticks: how many it does at most.
        brief_visibility: SQS delivers again while the life still works.
        long_outage: when it is over, so much time passes that SQS delivers all of it again.
    """

    point: Point | None = None
    passes: int = 0
    ticks: int = TICKS_OF_A_QUIET_LIFE
    brief_visibility: bool = False
    long_outage: bool = True


@dataclass(frozen=True, slots=True)
class Wave:
    """Changes, then lives; `forgotten` are the uploads whose old runs are deleted before anything else."""

    puts: tuple[Put, ...]
    removals: tuple[Removal, ...]
    sends: tuple[Announcement, ...]
    forgotten: tuple[int, ...]
    lives: tuple[Life, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All of it; `forbidden` maps keys that S3 refuses to the wave from which on it does not, or None."""

    seed: int
    waves: tuple[Wave, ...]
    forbidden: dict[str, int | None] = field(default_factory=dict)

    @property
    def messages(self) -> int:
        return sum(len(wave.sends) for wave in self.waves)


def make_schedule(
    seed: int, *, messages: int, duplicates: float = 0.5, points: Sequence[Point] = tuple(Point)
) -> Schedule:
    """Deal messages, mishaps and lives into waves; the share `duplicates` of messages are exact copies."""
    return _Dealer(random.Random(seed), seed, messages, duplicates, points).deal()


class _Dealer:
    def __init__(
        self, chance: random.Random, seed: int, messages: int, duplicates: float, points: Sequence[Point]
    ) -> None:
        self._chance = chance
        self._seed = seed
        self._duplicates = duplicates
        self._uploads = count()
        self._announcements = count()
        self._keys: list[str] = []
        self._puts: dict[str, list[Put]] = {}
        self._gone: set[str] = set()
        self._forbidden: dict[str, int | None] = {}
        self._sent: list[Announcement] = []
        self._late: list[Announcement] = []
        # Two points a wave, an early one and a late one: after a late one little would be left to meet.
        half = (len(points) + 1) // 2
        self._points = [points[at::half] for at in range(half)]
        waves = half + SPARE_WAVES
        self._sizes = [messages // waves + (at < messages % waves) for at in range(waves)]

    def deal(self) -> Schedule:
        waves = tuple(self._wave(at, size) for at, size in enumerate(self._sizes))
        return Schedule(self._seed, waves, self._forbidden)

    def _wave(self, at: int, size: int) -> Wave:
        chance = self._chance
        last = at == len(self._sizes) - 1
        copies = round(size * self._duplicates)
        puts: list[Put] = []
        removals: list[Removal] = []
        fresh: list[Announcement] = []
        removals += self._remove_old(at)
        while len(fresh) < size - copies:
            fresh += self._occurrence(at, puts, removals)
        # Each wave holds one of these, or its points of the dead letters could not be met.
        fresh[0] = self._broken()
        # What is too much, and some more, is announced later.
        late, self._late = self._late, []
        chance.shuffle(fresh)
        waiting = fresh + late
        hold = 0 if last else max(len(waiting) - (size - copies), 0)
        self._late, now = waiting[:hold], waiting[hold:]
        self._sent += now
        again = chance.choices(self._sent, k=max(size - len(now), 0))
        sends = now + again
        chance.shuffle(sends)
        numbers = [put.number for key in self._keys for put in self._puts[key] if put not in puts]
        forgotten = chance.sample(numbers, min(len(numbers), 4)) if at % 4 == 3 else []
        return Wave(tuple(puts), tuple(removals), tuple(sends), tuple(forgotten), self._lives(at))

    def _lives(self, at: int) -> tuple[Life, ...]:
        chance = self._chance
        lives = [
            Life(
                point,
                passes=chance.randrange(MOST_PASSES.get(point, 1)),
                ticks=TICKS_OF_A_KILLED_LIFE,
                brief_visibility=chance.random() < 0.2,
                long_outage=chance.random() < 0.7,
            )
            for point in (self._points[at] if at < len(self._points) else ())
        ]
        # Now and then the next wave meets a backlog.
        if at >= len(self._points) or chance.random() < 0.6:
            lives.append(Life(long_outage=chance.random() < 0.5))
        return tuple(lives)

    def _remove_old(self, at: int) -> list[Removal]:
        """An object of an earlier wave goes, its messages long read, still waiting, or yet to be repeated."""
        alive = [key for key in self._keys if key not in self._gone and key not in self._forbidden]
        return [self._removal(self._chance.choice(alive))] if at and alive else []

    def _removal(self, key: str) -> Removal:
        self._gone.add(key)
        # A key of several versions would show the one before; only the last one's end is simple.
        only = len(self._puts[key]) == 1 and self._chance.random() < 0.5
        return Removal(key, self._puts[key][0].number if only else None)

    def _occurrence(self, at: int, puts: list[Put], removals: list[Removal]) -> list[Announcement]:
        """Something happens to an object, or to nobody's knowledge a message goes wrong."""
        draw = self._chance.random()
        if draw < 0.08:
            return [self._broken()]
        if draw < 0.14:
            return [self._empty()]
        put = self._put(at)
        puts.append(put)
        announced = self._announce(put)
        if draw < 0.18 and put.key not in self._forbidden:
            # Deleted before anybody heard of it. Two puts of one wave cannot be distinguished from here.
            removals.append(self._removal(put.key))
        return announced

    def _put(self, at: int) -> Put:
        chance = self._chance
        number = next(self._uploads)
        again = [key for key in self._keys if key not in self._gone]
        if again and chance.random() < 0.2:
            key = chance.choice(again)
            content = chance.choice([self._puts[key][-1].content, number])
        else:
            key = f"cam {number % 5}/영상 {number:05}.mp4"
            content = number
            self._keys.append(key)
            if number % 16 in (7, 15):
                self._forbidden[key] = at + 3 if number % 16 == 7 else None
        put = Put(number, key, content)
        self._puts.setdefault(key, []).append(put)
        return put

    def _announce(self, put: Put) -> list[Announcement]:
        """S3's notifications of an upload, by one way or two, and what the back end has to say of it."""
        chance = self._chance
        announced = [self._notification(put)]
        if chance.random() < 0.8:
            announced.append(self._notification(put))
        if chance.random() < 0.9:
            announced.append(self._request(put.key))
        for fields in ({"sample_fps": 2.5}, {"model": "embedded"}, {"force": True}, {"priority": 5}):
            if chance.random() < 0.04:
                announced.append(self._request(put.key, **fields))
        return announced

    def _notification(self, put: Put) -> Announcement:
        chance = self._chance
        shape = chance.choice([Shape.S3, Shape.S3, Shape.SNS, Shape.EVENTBRIDGE])
        wants = [Want(put.key, put.number if chance.random() < 0.6 else None)]
        if shape is Shape.S3 and chance.random() < 0.15:
            wants.append(Want(chance.choice(self._keys)))
        bad_record = shape in (Shape.S3, Shape.SNS) and chance.random() < 0.08
        return Announcement(next(self._announcements), shape, tuple(wants), bad_record=bad_record)

    def _request(self, key: str, **fields: object) -> Announcement:
        fields = {"video_id": external_id(key), **fields}
        return Announcement(
            next(self._announcements), Shape.BACK_END, (Want(key, None, tuple(fields.items())),)
        )

    def _broken(self) -> Announcement:
        number = next(self._announcements)
        text = self._chance.choice(
            [
                f"not JSON {number}",
                f'["a list", {number}]',
                f'{{"neither": {number}}}',
                f'{{"bucket": "capstone-raw", "key": "a.mp4", "colour": {number}}}',
                f'{{"Records": {number}}}',
                f'{{"Records": [{{"eventSource": "aws:sns", "number": {number}}}]}}',
            ]
        )
        return Announcement(number, text=text, malformed=True)

    def _empty(self) -> Announcement:
        number = next(self._announcements)
        text = self._chance.choice(
            [
                f'{{"Event": "s3:TestEvent", "RequestId": "{number}"}}',
                f'{{"bucket": "capstone-raw", "key": "notes {number}.txt"}}',
                f'{{"bucket": "capstone-raw", "key": "never uploaded {number}.mp4"}}',
                f'{{"source": "aws.s3", "detail-type": "Object Deleted", "id": "{number}"}}',
            ]
        )
        return Announcement(number, text=text)


def external_id(key: str) -> int:
    """The back end's id of the video at a key; part of the key's name, so that nobody keeps a list."""
    return 10_000 + int(key.rpartition(" ")[2].removesuffix(".mp4"))
