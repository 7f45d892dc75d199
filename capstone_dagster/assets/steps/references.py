"""What travels between ops: small, durable references to immutable objects, never pixels.

A reference holds everything that the next step needs to find and understand the objects, so a step can be
re-executed in any container.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg
from pydantic import TypeAdapter

from capstone_dagster.analysis import DetectionSummary
from capstone_dagster.assets.failing import as_failure
from capstone_dagster.dagster_private import RUN_ID_PLACEHOLDER
from capstone_dagster.storage.errors import AnalysisMissing, ObjectNotFound, StorageError
from capstone_dagster.storage.objects import ObjectStore
from capstone_dagster.storage.uploads import VideoUpload


@dataclass(frozen=True, slots=True)
class FramesReference:
    """Frames of an upload: `frames.parquet`, the contact sheet and thumbnails below `prefix`."""

    detection_id: str
    prefix: str


@dataclass(frozen=True, slots=True)
class DetectionsReference:
    """Finished detections: the objects below `prefix`, and what was found out on the way.

    Attributes:
        upload: whose bytes they are.
        prefix: key prefix in the object store, ending in a slash.
        summary: the pass over the pixels in numbers, as `manifest.json` holds them too.
        settings: what they were made with, as `analyses.settings` holds it.
        reused: they existed before this run.
        requested_model: the one that the request named in place of the configured one; None if it named none.
    """

    detection_id: str
    upload: VideoUpload
    prefix: str
    summary: DetectionSummary
    settings: Mapping[str, Any]
    detection_version: int
    reused: bool
    requested_model: str | None = None

    @property
    def video_id(self) -> str:
        """Its video."""
        return self.upload.video_id


@dataclass(frozen=True, slots=True)
class EventsReference:
    """Events derived and written to `events.parquet` below `prefix`, not yet published."""

    analysis_id: str
    prefix: str
    events: int
    recorded_at: datetime | None
    recorded_at_source: str | None
    detections: DetectionsReference


@dataclass(frozen=True, slots=True)
class PublishedAnalysis:
    """An analysis that is in the event store.

    Attributes:
        rows: of its events, those that this publication wrote: none, if it was published before.
        first: it is new, and the first analysis of its upload.
    """

    analysis_id: str
    video_id: str
    events: int
    published_at: datetime
    current: bool
    rows: int = 0
    first: bool = False


def recording_start(detections: DetectionsReference) -> tuple[datetime | None, str | None]:
    """When a recording began and how that is known: what intake found, else a tag of the container."""
    upload, tag = detections.upload, detections.summary.creation_time
    if upload.recorded_at is not None:
        return upload.recorded_at, upload.recorded_at_source
    rule = detections.summary.creation_time_rule
    return (
        (datetime.fromisoformat(tag), f"container:{rule}" if rule else "container") if tag else (None, None)
    )


Reference = FramesReference | DetectionsReference | EventsReference | PublishedAnalysis

# Made once a process: building one takes up to 5 ms, and a run uses ten.
_KINDS: Mapping[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (FramesReference, DetectionsReference, EventsReference, PublishedAnalysis)
}


class LatestReferences(Mapping[str, Reference]):
    """An asset's latest references of several partitions, each read when it is asked for.

    One that is missing, or a store that does not answer, raises a `StorageError` then, so that what is wrong
    with one video does not keep the others from their turn.
    """

    def __init__(self, objects: ObjectStore, asset: str, partitions: Sequence[str]) -> None:
        self._objects = objects
        self._asset = asset
        self._partitions = dict.fromkeys(partitions)

    def __getitem__(self, partition: str) -> Reference:
        if partition not in self._partitions:
            raise KeyError(partition)
        return _opened(_latest(self._objects, self._asset, partition))

    def __iter__(self) -> Iterator[str]:
        return iter(self._partitions)

    def __len__(self) -> int:
        return len(self._partitions)


class ReferenceIOManager(dg.IOManager):
    """Keeps references as JSON beside the objects they name.

    A step of a run gets what that run (or the run it re-executes) made; only a run that starts from a
    finished asset gets the partition's latest. Dagster's own IO managers keep one value a partition, which
    two runs of one video would overwrite for each other.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Store a reference for the steps of this run's lineage, and as its asset's latest.

        Raises:
            Failure: the object store does not take it; with the class, as ops raise it.
        """
        data = _envelope(obj)
        with _explained():
            self._objects.put_bytes(_run_key(context), data)
            if context.has_asset_key:
                self._objects.put_bytes(_asset_key(_name(context), context.asset_partition_key), data)

    def load_input(self, context: dg.InputContext) -> object:
        """The reference that this run's lineage made, else the asset's latest.

        A run for several partitions gets :class:`LatestReferences`.

        Raises:
            Failure: there is none, or the object store does not answer; with the class, as ops raise it.
        """
        upstream = context.upstream_output
        # An asset that is not made in this run comes with a context of which the run is a placeholder.
        own = upstream is not None and upstream.run_id != RUN_ID_PLACEHOLDER
        if not own and context.has_asset_partitions and len(context.asset_partition_keys) > 1:
            return LatestReferences(self._objects, _name(context), context.asset_partition_keys)
        with _explained():
            if upstream is not None and own:
                data = self._objects.get_bytes(_run_key(upstream))
            else:
                data = _latest(self._objects, _name(context), context.asset_partition_key)
        return _opened(data)


def keep_latest(objects: ObjectStore, asset: str, partition: str, reference: Reference) -> None:
    """Store a reference as an asset's latest for a partition, where no step's output does it.

    Raises:
        StorageError: the object store does not take it.
    """
    objects.put_bytes(_asset_key(asset, partition), _envelope(reference))


def _latest(objects: ObjectStore, asset: str, partition: str) -> bytes:
    try:
        return objects.get_bytes(_asset_key(asset, partition))
    except ObjectNotFound as error:
        raise AnalysisMissing(
            f"Video {partition} has no {asset}: it was never analysed, or its results were deleted."
        ) from error


def _envelope(reference: object) -> bytes:
    kind = type(reference).__name__
    if kind not in _KINDS:
        raise TypeError(f"expected one of {', '.join(_KINDS)} between ops, found {kind}")
    value = _KINDS[kind].dump_python(reference, mode="json")
    return json.dumps({"kind": kind, "value": value}, ensure_ascii=False).encode()


def _opened(data: bytes) -> Reference:
    envelope = json.loads(data)
    reference: Reference = _KINDS[envelope["kind"]].validate_python(envelope["value"])
    return reference


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise as_failure(error) from error


def _run_key(context: dg.OutputContext) -> str:
    return f"references/runs/{context.run_id}/{context.step_key}.{context.name}.json"


def _name(context: dg.OutputContext | dg.InputContext) -> str:
    return context.asset_key.to_python_identifier()


def _asset_key(asset: str, partition: str) -> str:
    return f"references/assets/{asset}/{partition}.json"
