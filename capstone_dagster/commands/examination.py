"""The checks of `capstone doctor`: everything that an analysis needs, each with reason and remedy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from capstone_dagster.clients import aws_client
from capstone_dagster.commands import channels
from capstone_dagster.commands.channels import Wrong
from capstone_dagster.commands.joining import START_STACK
from capstone_dagster.services import Services
from capstone_dagster.settings import ConfigurationError, Settings, read_settings, unknown_variables
from capstone_dagster.traces.tracer import ENDPOINT_VARIABLES

State = Literal["pass", "warn", "fail"]
MARKS: Mapping[State, tuple[str, str]] = {
    "pass": ("green", "pass"),
    "warn": ("yellow", "warn"),
    "fail": ("red", "FAIL"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `remedy` is empty where nothing is to be done."""

    subject: str
    state: State
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Make all checks in turn; each finding is yielded as soon as it is known."""
    for name, nearest in unknown_variables(os.environ).items():
        remedy = f"Is {nearest} meant?" if nearest else "docs/reference.md lists the settings."
        yield Finding("settings", "warn", f"{name} is none of the settings and changes nothing", remedy)
    try:
        settings = read_settings()
    except ConfigurationError as error:
        yield Finding("settings", "fail", str(error), "Correct the variable; nothing else can be checked.")
        return
    yield Finding("settings", "pass", f"environment {settings.environment}, compute {settings.compute}")
    services = Services(settings)
    needed: list[tuple[str, Callable[[], str]]] = [
        ("model", lambda: _model(services)),
        ("decoder", _decoder),
        ("database", lambda: _database(services)),
        ("dagster", _dagster_storage),
        ("s3 raw", lambda: _bucket(services, settings.required("raw_bucket"))),
        ("s3 derived", lambda: _derived(services)),
        ("sqs", lambda: _queue(services)),
    ]
    # A named GPU is required; `auto` is satisfied without one.
    gpu_needed = settings.device.startswith("cuda")
    yield _look("gpu", lambda: _gpu(settings), otherwise="fail" if gpu_needed else "warn")
    for subject, check in needed:
        yield _look(subject, check, otherwise="fail")
    yield _look("sns", lambda: _topic(settings), otherwise="warn")
    yield _look("notices", channels.notices, otherwise="warn")
    yield _look("outbox", lambda: channels.outbox(services), otherwise="warn")
    yield _look("cloudwatch", channels.cloudwatch, otherwise="warn")
    yield _look("log groups", lambda: channels.log_groups(settings.job_log_group), otherwise="warn")
    yield _look("log lines", channels.log_lines, otherwise="warn")
    yield _look("traces", lambda: channels.traces(ENDPOINT_VARIABLES), otherwise="warn")


def _look(subject: str, check: Callable[[], str], *, otherwise: State) -> Finding:
    # A check may fail in any way its service can; whatever it is, the next check is still made.
    try:
        return Finding(subject, "pass", check())
    except Wrong as wrong:
        return Finding(subject, otherwise, str(wrong), wrong.remedy)
    except ConfigurationError as error:
        return Finding(subject, otherwise, str(error), START_STACK)
    except Exception as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "" if hasattr(error, "failure_class") else "Check the address, credentials and network."
        return Finding(subject, otherwise, detail, remedy)


def _model(services: Services) -> str:
    from capstone_dagster.analysis import PyTorchMissing, load_detector
    from capstone_dagster.model_files import analysis_settings

    settings = services.settings
    try:
        detector = load_detector(
            services.model_path(),
            analysis_settings(settings),
            device=settings.device,
            require_gpu=settings.require_gpu,
            cache=Path(settings.model_cache),
            expected_sha256=settings.model_sha256,
        )
    except PyTorchMissing:
        if settings.compute != "batch":
            raise
        return f"{settings.model} is not loaded here: jobs do it, and only their image has PyTorch"
    detail = (
        f"{detector.name} finds {', '.join(detector.labels)} on {detector.device} ({detector.backend}), "
        f"loaded in {detector.load_seconds:.1f} s, SHA-256 {detector.sha256[:12]}…"
    )
    if detector.cpu_fallback:
        detail += f"; on the CPU because {detector.cpu_fallback}"
    if detector.missing_labels:
        detail += f"; it has no {', '.join(detector.missing_labels)}"
    return detail


def _decoder() -> str:
    import av
    import numpy as np

    from capstone_dagster.analysis import probe

    with tempfile.TemporaryDirectory(prefix="capstone-") as folder:
        path = Path(folder) / "probe.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for shade in (0, 128, 255):
                picture = np.full((48, 64, 3), shade, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            container.mux(stream.encode())
        info = probe(path)
    return f"PyAV {av.__version__} writes and reads {info.codec}"


def _gpu(settings: Settings) -> str:
    from capstone_dagster.analysis.detection.device import ThisMachine

    found = ThisMachine().gpus()
    if found.count:
        import torch

        names = {torch.cuda.get_device_name(index) for index in range(found.count)}
        return f"{found.count} × {', '.join(sorted(names))}"
    if settings.device.startswith("cuda"):
        remedy = "Install NVIDIA's driver, or set CAPSTONE_DEVICE=auto."
        raise Wrong(f"CAPSTONE_DEVICE is {settings.device}, but there is no GPU: {found.problem}", remedy)
    raise Wrong(f"none ({found.problem}): analysis runs on the CPU, more slowly", "")


def _database(services: Services) -> str:
    import sqlalchemy as sa

    from capstone_dagster.storage.schema import SCHEMA

    with services.database.transaction() as connection:
        version = connection.execute(sa.text("SHOW server_version")).scalar_one()
        count = connection.execute(sa.text(f"SELECT count(*) FROM {SCHEMA}.videos")).scalar_one()
    return f"PostgreSQL {version}, tables in place, {count} videos"


def _dagster_storage() -> str:
    import sqlalchemy as sa

    url = os.environ.get("DAGSTER_POSTGRES_URL")
    if not url:
        raise Wrong("DAGSTER_POSTGRES_URL is not set: Dagster has nowhere to keep its runs.", START_STACK)
    engine = sa.create_engine(url, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    home = os.environ.get("DAGSTER_HOME")
    if not home or not (Path(home) / "dagster.yaml").exists():
        raise Wrong("DAGSTER_HOME does not hold a dagster.yaml.", "Point it to the directory that does.")
    return f"storage answers, home {home}"


def _bucket(services: Services, bucket: str) -> str:
    answer: Mapping[str, Any] = services.s3.get_bucket_location(Bucket=bucket)
    # S3 says nothing for its first region.
    found, configured = answer.get("LocationConstraint") or "us-east-1", services.s3.meta.region_name
    if found != configured:
        raise Wrong(
            f"bucket {bucket} is in {found}, but AWS_REGION is {configured}",
            f"Set AWS_REGION={found}, or use a bucket in {configured}.",
        )
    services.s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
    return f"bucket {bucket} in {found} can be read"


def _derived(services: Services) -> str:
    url = services.settings.required("derived_url")
    # Writing is what an analysis does; the object is as small as can be and always the same.
    services.objects.put_bytes("doctor.json", b"{}")
    services.objects.get_bytes("doctor.json")
    if url.startswith("s3://"):
        _bucket(services, urlsplit(url).netloc)
    return f"{url} can be written and read"


def _queue(services: Services) -> str:
    from capstone_dagster.intake.queue import UploadQueue

    url = services.settings.required("queue_url")
    region, host = services.sqs.meta.region_name, urlsplit(url).hostname or ""
    if host.startswith("sqs.") and host.split(".")[1] != region:
        raise Wrong(
            f"the queue is in {host.split('.')[1]}, but AWS_REGION is {region}",
            f"Set AWS_REGION={host.split('.')[1]}, or use a queue in {region}.",
        )
    attributes = services.sqs.get_queue_attributes(
        QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages", "VisibilityTimeout"]
    )["Attributes"]
    dead = UploadQueue(services.sqs, url).dead_letter_url
    return (
        f"{attributes['ApproximateNumberOfMessages']} messages wait, visibility "
        f"{attributes['VisibilityTimeout']} s, dead letters to {dead.rpartition('/')[2]}"
    )


def _topic(settings: Settings) -> str:
    arn = settings.alert_topic_arn
    if arn is None:
        raise Wrong("CAPSTONE_ALERT_TOPIC_ARN is not set: no alert is sent.", "Set it to an SNS topic's ARN.")
    client = aws_client("sns")
    region = arn.split(":")[3] if arn.count(":") == 5 else ""
    if region and region != client.meta.region_name:
        raise Wrong(
            f"the topic is in {region}, but AWS_REGION is {client.meta.region_name}",
            "Use a topic of the same region.",
        )
    client.get_topic_attributes(TopicArn=arn)
    return arn
