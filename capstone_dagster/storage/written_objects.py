"""An object store that keeps what this process has written, so that nothing is fetched back.

A run's steps share one process: the checks, the metadata and the events read the files that the pass has just
stored. Only immutable objects are kept, within a bound. S3 verifies a checksum of every upload, so reading an
object back would prove nothing more.
"""

from __future__ import annotations

from pathlib import Path

from capstone_dagster.storage.objects import ObjectStore

# Named by the hash of what they are made from, or by the run that made them: no other content ever follows.
_IMMUTABLE = ("detections/", "analyses/", "references/runs/")
# An hour of busy video has some 10 MB of detections and thumbnails.
_MOST_BYTES = 64_000_000


class WrittenObjects(ObjectStore):
    """Answers reads of recently written objects from memory, the rest from the store beneath."""

    def __init__(self, store: ObjectStore, most_bytes: int = _MOST_BYTES) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._kept: dict[str, bytes] = {}
        self._bytes = 0

    def url(self, key: str) -> str:
        return self._store.url(key)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._store.put_bytes(key, data)
        self._keep(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._store.put_file(key, path)
        if key.startswith(_IMMUTABLE) and path.stat().st_size <= self._most_bytes:
            self._keep(key, path.read_bytes())

    def get_bytes(self, key: str) -> bytes:
        kept = self._kept.get(key)
        return self._store.get_bytes(key) if kept is None else kept

    def get_file(self, key: str, path: Path) -> None:
        kept = self._kept.get(key)
        if kept is None:
            self._store.get_file(key, path)
        else:
            path.write_bytes(kept)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def keys(self, prefix: str) -> list[str]:
        return self._store.keys(prefix)

    def delete(self, prefix: str) -> int:
        for key in [key for key in self._kept if key.startswith(prefix)]:
            self._forget(key)
        return self._store.delete(prefix)

    def _keep(self, key: str, data: bytes) -> None:
        self._forget(key)
        if not key.startswith(_IMMUTABLE) or len(data) > self._most_bytes:
            return
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: str) -> None:
        self._bytes -= len(self._kept.pop(key, b""))
