"""Upload a video the way a camera or back end does: the object, its metadata, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capstone_dagster.intake.identity import upload_id, video_id
from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.errors import ObjectNotFound, explained
from capstone_dagster.storage.sources import encoded_metadata, head_source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from capstone_dagster.settings import Settings


class NotSubmitted(Exception):
    """The file is not fit to be uploaded; nothing was."""

    failure_class = "undecodable-video"


@dataclass(frozen=True, slots=True)
class Submission:
    """An upload that S3 has taken."""

    url: str
    video_id: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an upload goes; `metadata` is what intake reads of it, encoded for S3."""

    bucket: str
    key: str
    metadata: Mapping[str, str]

    @property
    def video_id(self) -> str:
        """The id that intake gives the video."""
        return video_id(self.bucket, self.key)


def submit_video(
    path: Path,
    s3: S3Client,
    settings: Settings,
    *,
    external_id: str | None = None,
    camera: str | None = None,
    recorded_at: str | None = None,
    sent: Callable[[float], None] = lambda _: None,
) -> Submission:
    """Upload a file to the raw bucket; S3's own notification does the rest.

    Args:
        external_id, camera, recorded_at: stored as the object's metadata, which intake reads.
        sent: called with the share that is sent, 0–1, as it goes.

    Raises:
        NotSubmitted: there is no such file, it is empty, or its name is not one of a video.
        ConfigurationError: the bucket is not set, or metadata that S3 cannot carry.
        StorageError: S3 does not take it.
    """
    if not path.is_file():
        raise NotSubmitted(
            f"Expected a video file, but {path} is {'a directory' if path.is_dir() else 'not there'}."
        )
    size = path.stat().st_size
    if size == 0:
        raise NotSubmitted(f"{path} is empty: there is nothing to analyse.")
    target = destination(path.name, settings, external_id=external_id, camera=camera, recorded_at=recorded_at)
    bucket, key = target.bucket, target.key
    done = 0

    def count(part: int) -> None:
        nonlocal done
        done += part
        sent(min(done / size, 1.0))

    try:
        with explained(f"s3://{bucket}/{key}"):
            # put_object for what fits one request, parts for the rest: upload_file chooses.
            metadata = {"Metadata": dict(target.metadata)}
            s3.upload_file(str(path), bucket, key, ExtraArgs=metadata, Callback=count)
    except ObjectNotFound as error:
        raise ConfigurationError(
            f"CAPSTONE_RAW_BUCKET is {bucket!r}, and S3 has no such bucket. Create it, or correct the name."
        ) from error
    source = head_source(s3, bucket, key)
    return Submission(source.url, target.video_id, upload_id(source))


def destination(
    name: str,
    settings: Settings,
    *,
    external_id: str | None = None,
    camera: str | None = None,
    recorded_at: str | None = None,
) -> Destination:
    """Where a file of this name is uploaded to, and what its object says of the video.

    Raises:
        NotSubmitted: its name is not one of a video.
        ConfigurationError: the bucket is not set, or text that S3's metadata cannot carry.
    """
    if not name.lower().endswith(tuple(suffix.lower() for suffix in settings.key_suffixes)):
        raise NotSubmitted(
            f"{name} does not end in one of {', '.join(settings.key_suffixes)} (CAPSTONE_KEY_SUFFIXES), "
            "so its upload would be ignored. Rename the file or widen the setting."
        )
    metadata = {"video-id": external_id, "camera": camera, "recorded-at": recorded_at}
    given = {field: value for field, value in metadata.items() if value is not None}
    for field, value in given.items():
        if not value.isprintable():
            raise ConfigurationError(
                f"{field} is {value!r}: S3's metadata carries no line breaks or control characters."
            )
    return Destination(
        bucket=settings.required("raw_bucket"),
        key=f"{settings.key_prefix}{camera or 'uploads'}/{name}",
        metadata={field: encoded_metadata(value) for field, value in given.items()},
    )
