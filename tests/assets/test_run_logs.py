"""In the logs of each video's run are its five steps, in order, with counts and times, done or found done."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.analysis.detection import openvino_detector
from capstone_dagster.analysis.detection.device import GpuState
from capstone_dagster.assets.declared.jobs import analyze_videos
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.uploads import VideoUpload
from tests.assets import recovery_job
from tests.assets.conftest import Pipeline
from tests.support.dagster_home import dagster_home
from tests.support.lines import of_runs, python_logs

# One emulator is enough: what S3 does is not asked for here.
pytestmark = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)

STEPS = ["model-loading", "frame-extraction", "person-detection", "database-saving", "cleanup"]
NOWHERE = {"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
Line = dict[str, Any]


@dataclass
class Logged:
    """The pipeline with the log handlers that dagster.yaml names."""

    pipeline: Pipeline

    def lines(self, run_id: str) -> list[Line]:
        """Every line of a run; each line is JSON and names its run."""
        found = of_runs.fields()
        assert all(line["run_id"] for line in found)
        return [line for line in found if line["run_id"] == run_id]

    def execute(
        self,
        upload: VideoUpload,
        services: Services | None = None,
        *,
        repairs: str | None = None,
        **configured: Any,
    ) -> list[Line]:
        """One run as a worker executes it, and what it said."""
        recovery_job.services.append(services or self.pipeline.services)
        instance = self.pipeline.instance
        options = dg.ReexecutionOptions.from_failure(repairs, instance) if repairs else None
        result = dg.execute_job(
            dg.reconstructable(recovery_job.recoverable_job),
            instance=instance,
            run_config=self.pipeline.configured(upload, **configured),
            tags={"dagster/partition": upload.video_id, ".dagster/capstone.upload_id": upload.upload_id},
            reexecution_options=options,
        )
        return self.lines(result.run_id)


@pytest.fixture
def logged(pipeline: Pipeline, tmp_path: Path) -> Iterator[Logged]:
    overrides = {"python_logs": python_logs()}
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path), overrides=overrides) as instance:
        pipeline.instance = instance
        yield Logged(pipeline)


def five(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["action"] == "step.completed"]


def test_the_logs_tell_five_steps_whether_they_are_done_or_found_done(logged: Logged, clip: Path) -> None:
    upload = logged.pipeline.upload("gate/20250526_193726.mp4", clip.read_bytes())

    lines = logged.execute(upload)

    steps = five(lines)
    assert [line["step"] for line in steps] == STEPS
    assert [line["message"].partition(":")[0] for line in steps] == [
        "[1/5] Model loading",
        "[2/5] Frame extraction",
        "[3/5] Person detection",
        "[4/5] Database saving",
        "[5/5] Cleanup",
    ]
    [analysis] = logged.pipeline.services.database.transact(analyses_of, upload.video_id)
    _, frames, detections, saving, cleanup = steps
    assert frames["frame_count"] == analysis["frames_decoded"] > 0
    assert detections["frame_count"] == analysis["frames_analyzed"] > 0
    assert detections["detections"] == analysis["detections"] > 0
    assert saving["rows"] == saving["events"] == analysis["events"] > 0
    assert cleanup["files"] > 3
    assert cleanup["bytes"] > len(clip.read_bytes())
    assert all(line["elapsed_s"] >= 0 for line in steps)
    assert sum(line["elapsed_s"] for line in steps[:3]) > 0
    times = [line["timestamp"] for line in lines]
    assert times == sorted(times)

    last = [line for line in lines if line["component"] != "dagster"][-1]
    assert last["message"] == f"Video analysis completed successfully in {last['elapsed_s']:.1f} seconds"
    assert last["action"] == "analysis.completed"
    for name in ("events", "detections", "frames_analyzed", "tracks"):
        assert last[name] == analysis[name]
    assert last["frame_count"] == analysis["frames_decoded"]
    assert last["rows"] == analysis["events"]
    for line in steps:
        assert (line["video_id"], line["upload_id"]) == (upload.video_id, upload.upload_id)
        assert (line["bucket"], line["key"]) == ("capstone-raw", "gate/20250526_193726.mp4")
        assert line["trace_id"] == upload.upload_id[:32]
    assert not [line for line in lines if line["level"] in ("ERROR", "CRITICAL")]

    # The same again: everything is on record, and it tells the same five.
    again = logged.execute(upload)

    assert [line["step"] for line in five(again)] == STEPS
    for line in five(again)[:3]:
        assert line["reused"] is True
        assert line["elapsed_s"] == 0
    assert [line.get("frame_count") for line in five(again)[:3]] == [
        None,
        frames["frame_count"],
        detections["frame_count"],
    ]
    assert (five(again)[3]["events"], five(again)[3]["rows"]) == (analysis["events"], 0)
    assert again[-1]["action"] == "run.succeeded"
    assert again[-1]["elapsed_s"] > 0


def test_the_logs_of_an_outage_and_of_the_run_that_goes_on_after_it(logged: Logged, clip: Path) -> None:
    upload = logged.pipeline.upload("gate/a.mp4", clip.read_bytes())
    cut_off = Services(logged.pipeline.services.settings.model_copy(update=NOWHERE))

    lines = logged.execute(upload, cut_off)

    assert [line["step"] for line in five(lines)] == STEPS[:3]
    [lost] = [line for line in lines if line["action"] == "progress.lost"]
    retries = [line for line in lines if line["action"] == "database.retry"]
    [failed] = [line for line in lines if line["action"] == "analysis.failed"]
    assert [line["attempt"] for line in retries] == [1, 2, 3]
    assert {line["level"] for line in [lost, *retries]} == {"WARNING"}
    assert failed["level"] == "ERROR"
    for line in [lost, *retries, failed, lines[-1]]:
        assert line["failure_class"] == "database-unavailable"
    assert failed["remedy"] in failed["message"]
    assert failed["cause"] in failed["message"]
    assert lines[-1]["action"] == "run.failed"

    again = logged.execute(upload, repairs=lines[0]["run_id"])

    assert [line["step"] for line in five(again)] == STEPS
    assert [line.get("reused") for line in five(again)] == [True, True, True, None, None]
    assert five(again)[3]["rows"] > 0
    assert again[-1]["action"] == "run.succeeded"


def test_the_logs_of_what_cannot_be_analysed_say_class_cause_and_remedy(logged: Logged, clip: Path) -> None:
    broken = logged.pipeline.upload("gate/bad.mp4", b"this is no video")

    [failed] = [line for line in logged.execute(broken) if line["action"] == "analysis.failed"]

    assert (failed["level"], failed["failure_class"]) == ("ERROR", "undecodable-video")
    assert failed["remedy"].startswith("Play the file locally")
    assert failed["key"] == "gate/bad.mp4"

    # Without a model nothing can be analysed at all.
    upload = logged.pipeline.upload("gate/a.mp4", clip.read_bytes())
    settings = logged.pipeline.services.settings.model_copy(update={"model": "/nowhere/model.pt"})
    lines = logged.execute(upload, Services(settings))

    [failed] = [line for line in lines if line["action"] == "analysis.failed"]
    assert (failed["level"], failed["failure_class"]) == ("CRITICAL", "model-unavailable")
    assert "/nowhere/model.pt" in failed["cause"]


def test_the_logs_tell_how_full_a_gpu_is(logged: Logged, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [detector] = [
        kind
        for kind in vars(openvino_detector).values()
        if isinstance(kind, type) and "gpu_state" in vars(kind)
    ]
    monkeypatch.setattr(detector, "gpu_state", lambda self: GpuState(3174.4, 81920.0, 50.0))
    upload = logged.pipeline.upload("gate/a.mp4", clip.read_bytes())

    lines = logged.execute(upload)

    memory = [line for line in lines if line["action"] == "gpu.memory"]
    assert {line["message"] for line in memory} == {"CUDA memory: 3.1GB / 80.0GB"}
    assert [(line["used_gb"], line["total_gb"]) for line in memory] == [(3.1, 80.0)] * 2
    [last] = [line for line in lines if line["action"] == "analysis.completed"]
    assert (last["gpu_memory_used_gb"], last["gpu_memory_total_gb"]) == (3.1, 80.0)


def test_the_logs_of_a_run_over_many_videos_tell_each_its_own_story(logged: Logged, clip: Path) -> None:
    one = logged.pipeline.upload("gate/a.mp4", clip.read_bytes())
    broken = logged.pipeline.upload("gate/bad.mp4", b"this is no video")
    other = logged.pipeline.upload("yard/b.mp4", clip.read_bytes())
    asked = {"videos": [one.video_id, broken.video_id, other.video_id]}

    result = analyze_videos.execute_in_process(
        run_config={"ops": {"analyze_each": {"config": asked}}},
        resources={"services": logged.pipeline.services},
        instance=logged.pipeline.instance,
        raise_on_error=False,
    )

    lines = logged.lines(result.run_id)
    for upload, reused in ((one, None), (other, True)):
        own = [line for line in lines if line.get("video_id") == upload.video_id]
        assert [(line["step"], line.get("reused")) for line in five(own)] == [
            *((step, reused) for step in STEPS[:3]),
            *((step, None) for step in STEPS[3:]),
        ]
        [last] = [line for line in own if line["action"] == "analysis.completed"]
        assert (last["upload_id"], last["trace_id"]) == (upload.upload_id, upload.upload_id[:32])
    [failed] = [line for line in lines if line["action"] == "analysis.failed"]
    assert (failed["video_id"], failed["failure_class"]) == (broken.video_id, "undecodable-video")
