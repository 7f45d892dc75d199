"""The same bytes under two keys are not analysed twice at once."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import yaml
from dagster._utils.tags import TagConcurrencyLimitsCounter

from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.intake.queue import ReceivedMessage
from capstone_dagster.intake.runs import NewUpload, run_request
from capstone_dagster.storage.uploads import VideoUpload
from tests.storage.samples import UPLOAD

ROOT = Path(__file__).resolve().parents[2]


def run_of(upload: VideoUpload) -> dg.DagsterRun:
    request = AnalysisRequest(upload.bucket, upload.key)
    message = ReceivedMessage("m1", "", "", 0, 1)
    asked = run_request(NewUpload("k", upload, request, message))
    return dg.DagsterRun("analyze_upload", tags=dict(asked.tags))


def test_a_second_upload_of_the_same_bytes_waits_for_the_first() -> None:
    limits = yaml.safe_load((ROOT / "dagster.yaml").read_text())["concurrency"]["runs"]
    counter = TagConcurrencyLimitsCounter(limits["tag_concurrency_limits"], [run_of(UPLOAD)])

    assert counter.is_blocked(run_of(replace(UPLOAD, key="other/copy.mp4", upload_id="f" * 64)))
    assert not counter.is_blocked(run_of(replace(UPLOAD, etag="another")))
    assert not counter.is_blocked(run_of(replace(UPLOAD, size_bytes=UPLOAD.size_bytes + 1)))
