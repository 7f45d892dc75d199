"""Uploaded videos in S3: what HeadObject says of one, and a local copy of exactly that upload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.errors import HeaderParseError
from email.header import Header, decode_header, make_header
from typing import TYPE_CHECKING

from capstone_dagster.storage.errors import explained

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One uploaded object as HeadObject describes it.

    Attributes:
        version_id: S3's version, None in a bucket without versions.
        etag: without its quotes.
        size_bytes: length of the object.
        last_modified: when S3 took the upload, timezone-aware.
        archived: S3 holds it, but hands it out only after it was restored.
        metadata: the uploader's own key-value pairs, keys in lower case, values decoded.
    """

    bucket: str
    key: str
    version_id: str | None
    etag: str
    size_bytes: int
    last_modified: datetime
    archived: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """`s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self.key}"


def head_source(client: S3Client, bucket: str, key: str, version_id: str | None = None) -> SourceObject:
    """Ask S3 about an upload: the version named, else the latest.

    Raises:
        SourceMissing, SourceForbidden, StorageUnavailable: as S3 answers.
    """
    with explained(f"s3://{bucket}/{key}", source=True):
        if version_id is None:
            answer = client.head_object(Bucket=bucket, Key=key)
        else:
            answer = client.head_object(Bucket=bucket, Key=key, VersionId=version_id)
    # S3 says "null" for objects that are older than the bucket's versioning.
    version = answer.get("VersionId")
    return SourceObject(
        bucket=bucket,
        key=key,
        version_id=None if version in (None, "null") else version,
        etag=answer["ETag"].strip('"'),
        size_bytes=answer["ContentLength"],
        last_modified=answer["LastModified"],
        archived=_is_archived(answer),
        metadata={
            name.lower(): decoded_metadata(value) for name, value in answer.get("Metadata", {}).items()
        },
    )


def _is_archived(answer: HeadObjectOutputTypeDef) -> bool:
    # S3 API reference, "HeadObject": StorageClass, ArchiveStatus (of Intelligent-Tiering), Restore.
    away = answer.get("StorageClass") in ("GLACIER", "DEEP_ARCHIVE") or "ArchiveStatus" in answer
    return away and 'ongoing-request="false"' not in answer.get("Restore", "")


def encoded_metadata(value: str) -> str:
    """A metadata value as an HTTP header carries it: text beyond ASCII as one RFC 2047 word.

    >>> encoded_metadata("gate"), encoded_metadata("현관")
    ('gate', '=?utf-8?b?7ZiE6rSA?=')
    """
    plain = value.isascii() and "=?" not in value
    return value if plain else Header(value, "utf-8").encode(maxlinelen=0)


def decoded_metadata(value: str) -> str:
    """The text that an uploader meant: S3 answers RFC 2047 words, other object stores the raw UTF-8 bytes.

    A value that cannot be decoded to printable text stays as it came.

    >>> decoded_metadata("=?UTF-8?Q?=ED=98=84=EA=B4=80?=")
    '현관'
    """
    try:
        if value.isascii():
            decoded = str(make_header(decode_header(value))) if "=?" in value else value
        else:
            # HTTP libraries read the bytes of a header as Latin-1.
            decoded = value.encode("latin-1").decode("utf-8")
    except (HeaderParseError, LookupError, ValueError):
        return value
    return decoded if decoded.isprintable() else value


def download_source(
    client: S3Client, *, bucket: str, key: str, version_id: str | None, etag: str, path: Path
) -> None:
    """Copy an upload to a local file; its bytes are those of `etag`, or the call fails.

    Raises:
        SourceChanged: the object was overwritten since.
        SourceMissing, SourceForbidden, StorageUnavailable: as S3 answers.
    """
    with explained(f"s3://{bucket}/{key}", source=True):
        if version_id is None:
            answer = client.get_object(Bucket=bucket, Key=key, IfMatch=etag)
        else:
            answer = client.get_object(Bucket=bucket, Key=key, VersionId=version_id, IfMatch=etag)
        with path.open("wb") as file:
            for chunk in answer["Body"].iter_chunks(1 << 20):
                file.write(chunk)
