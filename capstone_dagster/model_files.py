"""The detection model: its file, found locally, fetched once from S3 or left to Ultralytics by name, and the
analysis that the settings ask of it. Needs neither Dagster nor a database."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from capstone_dagster.analysis import AnalysisSettings
from capstone_dagster.storage.errors import ObjectNotFound, StorageError, explained

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

    from capstone_dagster.settings import Settings

EMBEDDED_MODEL = "embedded"
POOR_RESULTS = (
    "The embedded demo detector knows the demo's own scenes and little else: "
    "expect poor results on your video."
)
# Package data beside the scripts that made it; none of their code is needed to use it.
_EMBEDDED_FILE = Path(__file__).with_name("local") / "detector" / "person_face.pt"

# Who names a model is not known where it is looked for.
_ASKED_BY = "CAPSTONE_MODEL, --model or the request names it"


class ModelUnavailable(StorageError):
    """The configured model cannot be had."""

    failure_class = "model-unavailable"


def analysis_settings(settings: Settings, sample_fps: float | None = None) -> AnalysisSettings:
    """The analysis library's settings out of the environment's."""
    return AnalysisSettings(
        labels=settings.labels,
        sample_fps=settings.sample_fps if sample_fps is None else sample_fps,
        motion_gate=settings.motion_gate,
        min_score=settings.min_score,
        tracker=settings.tracker,
        precision=settings.precision,
    )


def locate_model(model: str, *, cache: Path, s3: Callable[[], S3Client]) -> Path:
    """The model as a local file or directory, fetched first where that is needed.

    Args:
        model: `CAPSTONE_MODEL`: `embedded`, a path, an `s3://` address of a file, or an Ultralytics name.
        cache: directory for fetched models, made when needed.
        s3: makes the client, called only for `s3://` addresses.

    Raises:
        ModelUnavailable: there is no such file, or it cannot be fetched.
    """
    if model == EMBEDDED_MODEL:
        return _EMBEDDED_FILE
    if model.startswith("s3://"):
        return _from_s3(model, cache, s3())
    path = Path(model).expanduser()
    if path.exists():
        return path
    # A bare file name is one of Ultralytics' published models; anything with a folder is meant as a path.
    if path.name == model and path.suffix == ".pt":
        return _from_ultralytics(model, cache)
    raise ModelUnavailable(
        f"The model is {model!r} ({_ASKED_BY}), and there is no such file or directory. Expected a .pt file, "
        "an exported model's directory, an s3:// address, an Ultralytics name such as yolov8x.pt, or "
        "embedded."
    )


def _from_s3(url: str, cache: Path, client: S3Client) -> Path:
    parts = urlsplit(url)
    bucket, key = parts.netloc, parts.path.lstrip("/")
    try:
        with explained(url):
            # The ETag names the cached copy: a model replaced under the same key is another model.
            etag = client.head_object(Bucket=bucket, Key=key)["ETag"].strip('"')
            target = cache / etag / Path(key).name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".fetching-")
                os.close(handle)
                client.download_file(bucket, key, temporary)
                os.replace(temporary, target)
    except ObjectNotFound as error:
        raise ModelUnavailable(f"The model is {url} ({_ASKED_BY}), and S3 has no such object.") from error
    return target


def _from_ultralytics(name: str, cache: Path) -> Path:
    target = cache / name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Ultralytics asks the network nothing by itself here; this one download is meant.
    from capstone_dagster.analysis.detection.checkpoint import import_ultralytics, require_pytorch

    require_pytorch(f"The model {name}, which Ultralytics downloads,")
    import_ultralytics()
    from ultralytics.utils.downloads import attempt_download_asset

    # Ultralytics writes to the path it is given, in place; a killed download must not pass for a model.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as folder:
        fetched = Path(folder) / name
        try:
            attempt_download_asset(fetched)
        except (OSError, RuntimeError) as error:
            raise ModelUnavailable(
                f"The model is {name!r} ({_ASKED_BY}); Ultralytics could not download it: {error}. Give a "
                "local path or an s3:// address on machines without a way to the internet."
            ) from error
        if not fetched.exists():
            raise ModelUnavailable(
                f"The model is {name!r} ({_ASKED_BY}), which is no file here and none that Ultralytics "
                "publishes. Give a local path, an s3:// address, or a published name such as yolov8x.pt."
            )
        os.replace(fetched, target)
    return target
