"""Pictures and videos for the browser, by short-lived addresses of the object store; and a pass's boxes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capstone_dagster.storage.objects import ObjectStore
from capstone_dagster.submit import Destination

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3 import S3Client

# Long enough to load a page of pictures over a slow line. A video asks for a new address when one expires.
EXPIRES_S = 300
UPLOAD_EXPIRES_S = 900
# Parquet files kept in memory: the player of a video asks for its boxes in many small portions.
_FILES_KEPT = 8


class Media:
    """Addresses that a browser loads directly, and what the pages draw over a video."""

    def __init__(self, s3: S3Client, objects: ObjectStore) -> None:
        self._s3 = s3
        self._objects = objects
        self._file = lru_cache(maxsize=_FILES_KEPT)(objects.get_bytes)

    def derived_address(self, key: str) -> str | None:
        """Where a browser finds a derived object; None where the object store is a directory."""
        parts = urlsplit(self._objects.url(key))
        return self._address(parts.netloc, parts.path.lstrip("/")) if parts.scheme == "s3" else None

    def derived_bytes(self, key: str) -> bytes:
        """A whole derived object.

        Raises:
            ObjectNotFound: there is none.
        """
        return self._objects.get_bytes(key)

    def video_address(self, bucket: str, key: str, version_id: str | None) -> str:
        """Where a browser finds exactly the upload that was analysed."""
        return self._address(bucket, key, **({"VersionId": version_id} if version_id else {}))

    def upload_address(self, target: Destination) -> str:
        """Where a browser puts a file; it has to send the metadata as headers."""
        return self._s3.generate_presigned_url(
            "put_object",
            Params={"Bucket": target.bucket, "Key": target.key, "Metadata": dict(target.metadata)},
            ExpiresIn=UPLOAD_EXPIRES_S,
        )

    def origins(self, raw_bucket: str | None) -> set[str]:
        """The origins that pages load from and upload to, for the content security policy."""
        addresses = [
            self.derived_address("x"),
            self.video_address(raw_bucket, "x", None) if raw_bucket else None,
        ]
        split = [urlsplit(address) for address in addresses if address is not None]
        return {f"{parts.scheme}://{parts.netloc}" for parts in split}

    def boxes(self, analysis: Mapping[str, Any], start_ms: int, end_ms: int) -> dict[str, Any]:
        """The detections of a time window, by track, and the times of its frames.

        Coordinates are shares of the frame's width and height, so that they fit whatever size is shown.

        Raises:
            ObjectNotFound: the files are gone.
        """
        prefix = f"detections/{analysis['detection_id']}/"
        detections = self._window(f"{prefix}detections.parquet", start_ms, end_ms)
        frames = self._window(f"{prefix}frames.parquet", start_ms, end_ms, ["pts_ms"])
        width, height = float(analysis["width"]), float(analysis["height"])
        sides = {"x1": width, "y1": height, "x2": width, "y2": height}
        corners = [
            pc.round(pc.divide(detections[name], side), ndigits=5).to_pylist() for name, side in sides.items()
        ]
        scores = pc.round(detections["score"], ndigits=3).to_pylist()
        tracks: dict[tuple[int | None, str], list[list[float]]] = {}
        for track, label, *box in zip(
            *(detections[name].to_pylist() for name in ("track_id", "label", "pts_ms")),
            scores,
            *corners,
            strict=True,
        ):
            tracks.setdefault((track, label), []).append(box)
        return {
            "frames": frames["pts_ms"].to_pylist(),
            "tracks": [{"track": track, "label": label, "at": at} for (track, label), at in tracks.items()],
        }

    def _window(self, key: str, start_ms: int, end_ms: int, columns: list[str] | None = None) -> pa.Table:
        window = (pc.field("pts_ms") >= start_ms) & (pc.field("pts_ms") < end_ms)
        return pq.read_table(pa.BufferReader(self._file(key)), columns=columns, filters=window)

    def _address(self, bucket: str, key: str, **version: str) -> str:
        return self._s3.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key, **version}, ExpiresIn=EXPIRES_S
        )
