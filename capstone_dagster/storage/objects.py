"""Derived objects (Parquet, pictures, references) behind one small interface: S3, or local files.

Objects are immutable and written whole: a reader sees all of an object or none of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.errors import ObjectNotFound, PermissionDenied, StorageUnavailable, explained
from capstone_dagster.storage.object_versions import delete_versions, versions_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3 import S3Client

_CONTENT_TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".parquet": "application/vnd.apache.parquet",
}


class ObjectStore(Protocol):
    """Objects under one URL, addressed by relative keys such as `detections/ab12/frames.parquet`.

    Every method raises :class:`StorageUnavailable` or :class:`PermissionDenied`; those that read raise
    :class:`ObjectNotFound`.
    """

    def url(self, key: str) -> str:
        """The full address of a key, for people and links."""

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write an object, replacing one of that name."""

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content as an object."""

    def get_bytes(self, key: str) -> bytes:
        """A whole small object."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file, whole or not at all."""

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix, sorted."""

    def delete(self, prefix: str) -> int:
        """Delete every object whose key begins with a prefix, for good, and say how many versions went.

        Raises:
            ValueError: the prefix is empty, which would be everything.
        """


def open_object_store(url: str, s3: Callable[[], S3Client]) -> ObjectStore:
    """The store at `s3://bucket/prefix` or `file:///directory`.

    Args:
        s3: makes the client, called only for `s3://` addresses.

    Raises:
        ConfigurationError: another scheme.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return S3Objects(s3(), parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and parts.path:
        return FileObjects(Path(unquote(parts.path)))
    raise ConfigurationError(
        f"CAPSTONE_DERIVED_URL is {url!r}; expected s3://bucket/prefix or file:///directory."
    )


class S3Objects:
    """Objects in a bucket, under a prefix."""

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def put_bytes(self, key: str, data: bytes) -> None:
        with explained(self.url(key)):
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=data, ContentType=_content_type(key)
            )

    def put_file(self, key: str, path: Path) -> None:
        with explained(self.url(key)):
            self._client.upload_file(
                str(path), self._bucket, self._prefix + key, ExtraArgs={"ContentType": _content_type(key)}
            )

    def get_bytes(self, key: str) -> bytes:
        with explained(self.url(key)):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            return answer["Body"].read()

    def get_file(self, key: str, path: Path) -> None:
        # boto3 downloads beside the target and renames, so a broken transfer leaves nothing behind.
        with explained(self.url(key)):
            self._client.download_file(self._bucket, self._prefix + key, str(path))

    def exists(self, key: str) -> bool:
        try:
            with explained(self.url(key)):
                self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ObjectNotFound:
            return False
        return True

    def keys(self, prefix: str) -> list[str]:
        with explained(self.url(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self._prefix) for key in found)

    def delete(self, prefix: str) -> int:
        _refuse_everything(prefix)
        found = versions_below(self._client, self._bucket, self._prefix + prefix)
        return delete_versions(self._client, self._bucket, found)


class FileObjects:
    """Objects as files below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def url(self, key: str) -> str:
        return (self._root / key).as_uri()

    def put_bytes(self, key: str, data: bytes) -> None:
        self._put(key, lambda temporary: temporary.write_bytes(data))

    def put_file(self, key: str, path: Path) -> None:
        self._put(key, lambda temporary: shutil.copyfile(path, temporary))

    def _put(self, key: str, write: Callable[[Path], object]) -> None:
        target = self._root / key
        with self._explained(key, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
            os.close(handle)
            try:
                write(Path(name))
                os.replace(name, target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def get_bytes(self, key: str) -> bytes:
        with self._explained(key, "read"):
            return (self._root / key).read_bytes()

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get_bytes(key))

    def exists(self, key: str) -> bool:
        return (self._root / key).is_file()

    def keys(self, prefix: str) -> list[str]:
        files = (path for path in self._root.rglob("*") if path.is_file() and path.name[0] != ".")
        found = (path.relative_to(self._root).as_posix() for path in files)
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, prefix: str) -> int:
        _refuse_everything(prefix)
        found = self.keys(prefix)
        for key in found:
            path = self._root / key
            with self._explained(key, "deleted"):
                path.unlink(missing_ok=True)
            # Buckets have no directories: neither does what stands in for one, once they are empty.
            with suppress(OSError):
                for folder in path.relative_to(self._root).parents[:-1]:
                    (self._root / folder).rmdir()
        return len(found)

    @contextmanager
    def _explained(self, key: str, done: str) -> Iterator[None]:
        url = self.url(key)
        try:
            yield
        except PermissionError as error:
            raise PermissionDenied(f"{url} may not be {done}: {error}.") from error
        except OSError as error:
            if done == "read" and isinstance(error, FileNotFoundError):
                raise ObjectNotFound(f"There is no object {url}.") from error
            raise StorageUnavailable(f"{url} cannot be {done}: {error}.") from error


def _refuse_everything(prefix: str) -> None:
    if not prefix.strip("/"):
        raise ValueError(f"expected a prefix of what is to be deleted, found {prefix!r}")


def _content_type(key: str) -> str:
    return _CONTENT_TYPES.get(Path(key).suffix, "application/octet-stream")
