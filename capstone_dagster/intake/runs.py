"""What a new upload asks of Dagster: one run of its partition, and the account of its raw video."""

from dataclasses import dataclass

import dagster as dg

from capstone_dagster.dagster_private import PRIORITY_TAG
from capstone_dagster.failures.breaker_state import PROBE_TAGS
from capstone_dagster.failures.run_steps import configured_pass
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.intake.queue import ReceivedMessage
from capstone_dagster.run_tags import (
    CAMERA_TAG,
    CONTENT_TAG,
    EXTERNAL_ID_TAG,
    S3_URI_TAG,
    TRACEPARENT_TAG,
    UPLOAD_TAG,
    VIDEO_TAG,
)
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.traces.context import upload_context

JOB_NAME = "analyze_upload"
PARTITIONS_NAME = "videos"


@dataclass(frozen=True, slots=True)
class NewUpload:
    """A request that has no run yet."""

    key: str
    upload: VideoUpload
    request: AnalysisRequest
    message: ReceivedMessage


def run_request(new: NewUpload, *, probe: bool = False) -> dg.RunRequest:
    """The one run of a request, as Dagster creates it unless its key has one.

    Args:
        probe: it is to show whether a systemic failure is over, and goes before all that wait.
    """
    upload, request = new.upload, new.request
    config = {
        "upload": upload.to_json(),
        "sample_fps": request.sample_fps,
        "model": request.model,
        # The nonce makes other ids than before, so that nothing finished is taken for the answer.
        "nonce": new.message.message_id if request.force else None,
    }
    tags = {
        VIDEO_TAG: upload.video_id,
        UPLOAD_TAG: upload.upload_id,
        S3_URI_TAG: upload.url,
        # dagster.yaml lets one run at a time work on the same bytes.
        CONTENT_TAG: f"{upload.etag}-{upload.size_bytes}",
        EXTERNAL_ID_TAG: upload.external_id,
        CAMERA_TAG: upload.camera,
        TRACEPARENT_TAG: str(upload_context(upload.upload_id, upload.traceparent)),
        PRIORITY_TAG: str(request.priority) if request.priority else None,
        **(PROBE_TAGS if probe else {}),
    }
    return dg.RunRequest(
        run_key=new.key,
        partition_key=upload.video_id,
        run_config=configured_pass(config),
        tags={name: value for name, value in tags.items() if value is not None},
    )


def materialization(new: NewUpload) -> dg.AssetMaterialization:
    """The raw video as its asset's history lists it."""
    upload = new.upload
    return dg.AssetMaterialization(
        "raw_videos",
        partition=upload.video_id,
        metadata={
            "object": dg.MetadataValue.path(upload.url),
            "size_bytes": upload.size_bytes,
            "uploaded_at": dg.MetadataValue.timestamp(upload.uploaded_at),
            "announced_at": dg.MetadataValue.timestamp(new.message.sent_ms / 1000),
            "camera": upload.camera,
            **({"external_id": upload.external_id} if upload.external_id else {}),
            "upload_id": upload.upload_id,
        },
    )
