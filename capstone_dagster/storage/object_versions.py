"""Deleting objects of S3 for good: every version, and the delete markers that hide them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from capstone_dagster.clients import FORBIDDEN
from capstone_dagster.storage.errors import PermissionDenied, StorageUnavailable, explained

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Version = tuple[str, str]

# What DeleteObjects takes at once.
_AT_ONCE = 1000


def versions_below(
    client: S3Client, bucket: str, prefix: str, *, until: datetime | None = None
) -> list[Version]:
    """(key, version id) of every version and delete marker whose key begins with `prefix`.

    In a bucket without versions each object is its one version, `null`.

    Args:
        until: only those that came then or before; in whole seconds, as S3 tells the time of an upload.
    """
    with explained(f"s3://{bucket}/{prefix}"):
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        return [
            (item["Key"], item.get("VersionId") or "null")
            for page in pages
            for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if until is None or item["LastModified"].replace(microsecond=0) <= until
        ]


def versions_of(client: S3Client, bucket: str, key: str, *, until: datetime | None = None) -> list[Version]:
    """Of one object; takes and raises what :func:`versions_below` does."""
    return [found for found in versions_below(client, bucket, key, until=until) if found[0] == key]


def delete_versions(client: S3Client, bucket: str, found: Sequence[Version]) -> int:
    """Delete them for good; those that are gone already count too.

    Raises:
        PermissionDenied: the role may not, or a lock or a hold protects one of them.
    """
    for start in range(0, len(found), _AT_ONCE):
        batch = found[start : start + _AT_ONCE]
        with explained(f"s3://{bucket}/{batch[0][0]}"):
            answer = client.delete_objects(
                Bucket=bucket,
                Delete={
                    "Objects": [{"Key": key, "VersionId": version} for key, version in batch],
                    "Quiet": True,
                },
            )
        if errors := answer.get("Errors"):
            first = errors[0]
            message = f"s3://{bucket}/{first.get('Key')} could not be deleted (S3: {first.get('Code')}, "
            message += f"{first.get('Message')}), nor {len(errors) - 1} others."
            if first.get("Code") in FORBIDDEN:
                raise PermissionDenied(f"{message} Grant s3:DeleteObjectVersion, or see what locks it.")
            raise StorageUnavailable(f"{message} Try again.")
    return len(found)
