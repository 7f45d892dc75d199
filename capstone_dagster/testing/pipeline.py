"""Fixtures: the assets run in this process on a clip, over a real event store and S3; no queue, no daemon."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.videos import record_upload
from capstone_dagster.testing.scenes import MakeClip, Square, SquareDetector
from capstone_dagster.testing.servers import Aws

if TYPE_CHECKING:  # Dagster takes seconds, which a test of a rule need not wait
    import dagster as dg
    import pyarrow as pa

    from capstone_dagster.services import Services
    from capstone_dagster.settings import Settings
    from capstone_dagster.storage.database import Database
    from capstone_dagster.storage.uploads import VideoUpload

KEY = "gate/20260122_142315.mp4"
"""Where `analyzed` lies: by the default patterns, camera and wall clock follow from it."""


@dataclass(frozen=True)
class Analyzed:
    """A video whose events are published.

    Attributes:
        result: of the run that did it; `result.asset_materializations_for_node` has what it showed.
    """

    upload: VideoUpload
    result: dg.ExecuteInProcessResult
    services: Services

    @property
    def video_id(self) -> str:
        """The video's id, which is its partition key."""
        return self.upload.video_id

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """Rows of `capstone.current_events`, by start."""
        return self.services.database.transact(current_events, self.video_id)

    @property
    def analysis(self) -> Mapping[str, Any]:
        """The current analysis: a row of `capstone.analyses`."""
        [current] = [
            row for row in self.services.database.transact(analyses_of, self.video_id) if row["is_current"]
        ]
        return current

    @property
    def detections(self) -> pa.Table:
        """Every single detection: `DETECTIONS_SCHEMA`."""
        from capstone_dagster.analysis import read_detections

        with TemporaryDirectory(prefix="capstone-test-") as folder:
            path = Path(folder) / "detections.parquet"
            name = f"detections/{self.analysis['detection_id']}/detections.parquet"
            self.services.objects.get_file(name, path)
            return read_detections(path)


@dataclass
class Pipeline:
    """Uploads, and the runs that analyse them.

    Attributes:
        results: of every run so far.
    """

    aws: Aws
    services: Services
    instance: dg.DagsterInstance
    results: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    def analyze(self, video: Path | bytes, key: str = KEY, **asked: Any) -> Analyzed:
        """Upload a video and analyse it, as the sensor would have it done.

        Args:
            asked: what a request may ask for (`sample_fps`, `force`, `external_id` …).

        Raises:
            AssertionError: the run failed; with what the failed step said.
        """
        body = video if isinstance(video, bytes) else video.read_bytes()
        upload = self.upload(key, body, **asked)
        result = self.run(upload, **asked)
        return Analyzed(upload, _succeeded(result), self.services)

    def materialize(
        self,
        asset: dg.AssetsDefinition,
        video: Analyzed | VideoUpload,
        *,
        resources: Mapping[str, object] | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialise one asset of your own for a video; what it depends on is there already.

        It finds the resource `services`, and as inputs the references that the project's assets leave.

        Raises:
            AssertionError: the run failed; with what the failed step said.
        """
        import dagster as dg

        from capstone_dagster.assets.declared.videos import events, raw_videos, video_analysis

        result = dg.materialize(
            [raw_videos, video_analysis, events, asset],
            selection=[asset],
            partition_key=video.video_id,
            instance=self.instance,
            resources={**self._resources(self.services), **(resources or {})},
            run_config=run_config,
            raise_on_error=False,
        )
        return _succeeded(result)

    def upload(self, key: str, body: bytes, **asked: Any) -> VideoUpload:
        """Put a video into the raw bucket and on record, with its partition; nothing runs yet."""
        from capstone_dagster.intake.identity import identify
        from capstone_dagster.intake.messages import AnalysisRequest
        from capstone_dagster.storage.sources import head_source

        bucket, s3 = self.aws.resources.raw_bucket, self.aws.client("s3")
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        source = head_source(s3, bucket, key)
        upload = identify(AnalysisRequest(bucket, key, **asked), source, self.services.settings)
        stated = {"external_id", "camera", "recorded_at"} & set(asked)
        self.services.database.transact(record_upload, upload, stated)
        self.instance.add_dynamic_partitions("videos", [upload.video_id])
        return upload

    def configured(self, upload: VideoUpload, **asked: Any) -> dict[str, Any]:
        """The run configuration that the sensor gives a request for this upload."""
        return copy.deepcopy(dict(self._request(upload, **asked).run_config))

    def run(
        self,
        upload: VideoUpload,
        *,
        configured: bool = True,
        services: Services | None = None,
        **asked: Any,
    ) -> dg.ExecuteInProcessResult:
        """One run, configured as the sensor does it, or empty as from the UI; it may fail."""
        request = self._request(upload, **asked)
        result = self.job(services or self.services).execute_in_process(
            partition_key=upload.video_id,
            run_config=dict(request.run_config) if configured else {},
            tags=dict(request.tags) if configured else {},
            instance=self.instance,
            raise_on_error=False,
        )
        self.results.append(result)
        return result

    def job(self, services: Services) -> dg.JobDefinition:
        """`analyze_upload` over these services."""
        import dagster as dg

        from capstone_dagster.assets.declared.checks import detections_checks, events_checks
        from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis

        definitions = dg.Definitions(
            assets=[raw_videos, video_analysis, events],
            asset_checks=[detections_checks, events_checks],
            jobs=[analyze_upload],
            resources=self._resources(services),
            executor=dg.in_process_executor,
        )
        return definitions.resolve_job_def("analyze_upload")

    def _resources(self, services: Services) -> dict[str, object]:
        from capstone_dagster.assets.steps.references import ReferenceIOManager

        return {"services": services, "io_manager": ReferenceIOManager(services.objects)}

    def _request(self, upload: VideoUpload, **asked: Any) -> dg.RunRequest:
        from capstone_dagster.intake.messages import AnalysisRequest
        from capstone_dagster.intake.queue import ReceivedMessage
        from capstone_dagster.intake.runs import NewUpload, run_request

        message = ReceivedMessage("m1", "", "", 0, 1)
        return run_request(
            NewUpload("k", upload, AnalysisRequest(upload.bucket, upload.key, **asked), message)
        )


def _succeeded(result: dg.ExecuteInProcessResult) -> dg.ExecuteInProcessResult:
    said = [str(event.event_specific_data) for event in result.all_events if event.is_failure]
    if not result.success:
        raise AssertionError("\n".join(said))
    return result


@pytest.fixture
def capstone_settings(aws: Aws, database: Database) -> Settings:
    """Settings that name the test's own servers; override it to test with others."""
    from capstone_dagster.settings import read_settings

    return read_settings(
        database_url=database.engine.url.render_as_string(hide_password=False),
        derived_url=aws.resources.derived_url,
        raw_bucket=aws.resources.raw_bucket,
        queue_url=aws.resources.queue_url,
    )


@pytest.fixture
def services(capstone_settings: Settings) -> Services:
    """What assets, ops and sensors get as the resource `services`."""
    from capstone_dagster.services import Services

    return Services(capstone_settings)


@pytest.fixture
def pipeline(aws: Aws, services: Services) -> Iterator[Pipeline]:
    """Uploads videos and runs the assets on them, in this process."""
    import dagster as dg

    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(aws, services, instance)


@pytest.fixture
def stand_in_detector(monkeypatch: pytest.MonkeyPatch) -> SquareDetector:
    """Analyses of this test use a `SquareDetector` in place of the model, which takes no time to load."""
    from capstone_dagster.assets.steps import detection

    detector = SquareDetector()

    def load(model: Path, settings: object, *, expected_sha256: str, **options: object) -> SquareDetector:
        # The id of the work is made from the configured model, which the results must therefore name.
        stand_in = replace(detector, sha256=expected_sha256)
        stand_in.batches = detector.batches
        return stand_in

    monkeypatch.setattr(detection, "load_detector", load)
    # The detector that this process keeps for later runs: neither is taken for the other.
    monkeypatch.setattr(detection, "_loaded", None)
    return detector


@pytest.fixture
def analyzed(pipeline: Pipeline, make_clip: MakeClip, stand_in_detector: SquareDetector) -> Analyzed:
    """Six seconds at the gate: one person walks through from second 1 to second 4, then nobody."""
    return pipeline.analyze(make_clip("crossing.mp4", range(0, 6000, 40), _crossing))


def _crossing(frame: int) -> Sequence[Square]:
    if not 25 <= frame <= 100:  # at 25 frames a second
        return ()
    left = 10 + (frame - 25)
    return [("person", left, 24, left + 40, 120)]
