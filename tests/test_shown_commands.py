"""Every command that the documentation shows is run, in its page's order, on what its reader has by then.

Each page has an event store, an AWS emulator and Dagster's records of its own. What the daemon does between
two commands is done here, step by step, so that nothing has to be waited for.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import dagster as dg
import pytest

from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis
from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
from capstone_dagster.commands import alerts, operating, reanalysis
from capstone_dagster.commands import intake as intake_commands
from capstone_dagster.local.detector import MODEL_PATH
from capstone_dagster.run_tags import FAILURE_TAG
from capstone_dagster.services import Services
from capstone_dagster.storage.video_status import current_status, mark_failed, mark_queued, mark_running
from capstone_dagster.testing import Analyzed, Aws, MakeClip, Pipeline, SquareDetector
from capstone_dagster.topics import Message, Topic
from capstone_dagster.traces.tracer import ENDPOINT_VARIABLES
from tests.intake.conftest import Intake
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home
from tests.support.origin import CODE_ORIGIN, REMOTE_ORIGIN
from tests.test_docs import PAGES, ROOT, blocks, commands

PROGRAM = ".venv/bin/capstone"
# Commands that are shown and not run here, and the file that runs them.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "make demo VIDEO=path/to/video.mp4": "tests/test_demo.py",
    "CAPSTONE_MODEL=models/ours.pt make dev": "tests/test_demo.py",
    ".venv/bin/dagster dev": "tests/local/test_by_habit.py",
    "make examples": "tests/test_docs.py",
    # Need root, buildah and 30 GB, or a registry: run by hand, with figures in bench/RESULTS.md.
    "make image": "tests/image/__main__.py",
    "make image IMAGE=$REGISTRY/capstone:$TAG MODEL=yolov8x.pt "
    "MODEL_SHA256=$(sha256sum yolov8x.pt | cut -c1-64)": "tests/image/__main__.py",
    "make image-test RECORD=1": "tests/image/__main__.py",
}
# Blocks for a shell with AWS's own command line, which is not installed here.
BASH = {
    "deploy.md": "tests/infra/test_deploy_page.py",  # bash reads them; AWS's models, templates and parameters
    "restore.md": "tests/infra/test_deploy_page.py",
    # Needs root, or Docker, which is not installed here.
    "observability_local.md": "tests/catalog/open/test_dashboards.py",
    "consume.md": "test_a_back_ends_queue_subscribes_as_shown",
    "tracing.md": "test_the_collectors_variable_is_read",
}
RUN = [page for page in PAGES if any(PROGRAM in line for line in commands([page]))]
_definitions = dg.Definitions(
    assets=[raw_videos, video_analysis, events],
    jobs=[analyze_upload],
    resources={"services": object(), "io_manager": dg.mem_io_manager},
    executor=dg.in_process_executor,
)


@dataclass
class Desk:
    """Where a reader sits: his folder, the stack that he works with, and what has become of video 84."""

    pipeline: Pipeline
    intake: Intake
    make_clip: MakeClip
    first: Analyzed | None = None

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.pipeline.instance

    def prepare(self, command: str, words: list[str]) -> list[str]:
        """Have what this command is about; returns its words with the names that things have here."""
        for word in words:
            if word.endswith(".mp4") and command in ("submit", "analyze"):
                self._clip(word)
            if word.endswith(".pt"):
                Path(word).parent.mkdir(exist_ok=True)
                shutil.copy(MODEL_PATH, word)
        if {"84", "--model-not"} & set(words) and command != "submit" and not self._status("84"):
            self.first = self.pipeline.analyze(self._clip("84.mp4"), "yard/84.mp4", external_id="84")
        if command in ("analyses", "compare", "rollback") and self.first is not None:
            again = self.pipeline.run(self.first.upload, force=True)  # as by a new model
            failures = [str(event.event_specific_data) for event in again.all_events if event.is_failure]
            assert again.success, failures
            self.first = None
        if command in ("prioritize", "cancel") and self._status("84")[0]["state"] != "queued":
            [row] = self._status("84")
            self.pipeline.upload(row["key"], b"newer", external_id="84")
            run = self._run("84", dg.DagsterRunStatus.NOT_STARTED)
            self.instance.submit_run(run.run_id, workspace=None)  # type: ignore[arg-type]
        if command == "retry" and "84" in words:
            self._fail("84", "undecodable-video")
        if command == "retry" and "--class" in words:
            other = self.pipeline.upload("gate/85.mp4", b"any", external_id="85")
            self._fail(other.video_id, words[words.index("--class") + 1])
        if "--model-not" in words:
            with self.pipeline.services.database.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE capstone.analyses SET model_sha256 = repeat('0', 64)")
        if command == "reanalyze":
            self.pipeline.upload("gate/86.mp4", b"any", external_id="86")
        if command == "logs":
            self._log("84")
        if command == "alerts":
            attributes = {"kind": "failure", "class": "internal", "severity": "ticket", "incident": "i"}
            topic = Topic(self.pipeline.aws.resources.alert_topic_arn, "CAPSTONE_ALERT_TOPIC_ARN")
            topic.publish([Message("1", "i", "It broke.", attributes, "FAILED")])
        if command == "dlq" and not self.intake.messages(self.pipeline.aws.resources.dead_letter_queue_url):
            self.intake.send("not what was expected")
            url = self.pipeline.aws.resources.dead_letter_queue_url
            self.intake.ticks_until("the dead letter", lambda: self.intake.messages(url))
        return words

    def follow(self, command: str) -> None:
        """What the daemon does next."""
        if command == "submit":
            asked = len(self.intake.requests)
            self.intake.ticks_until("the upload", lambda: len(self.intake.requests) > asked)
            for request in self.intake.requests[asked:]:
                ended = self.pipeline.job(self.pipeline.services).execute_in_process(
                    partition_key=request.partition_key,
                    run_config=dict(request.run_config),
                    tags=dict(request.tags),
                    instance=self.instance,
                )
                assert ended.success

    def _clip(self, name: str) -> Path:
        path: Path = self.make_clip(name, range(0, 3000, 40), lambda _: [("person", 20, 20, 60, 120)])
        with suppress(shutil.SameFileError):
            shutil.copy(path, name)
        return path

    def _status(self, video: str) -> list[dict[str, Any]]:
        return self.pipeline.services.database.transact(current_status, video)

    def _run(self, video: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """One more run of a video's latest upload."""
        [row] = self._status(video)
        tags = {".dagster/capstone.upload_id": row["upload_id"], "dagster/partition": row["video_id"]}
        run = self.instance.create_run_for_job(
            _definitions.resolve_job_def("analyze_upload"),
            status=status,
            tags=tags,
            remote_job_origin=REMOTE_ORIGIN,
            job_code_origin=CODE_ORIGIN,
        )
        self.pipeline.services.database.transact(mark_queued, {row["upload_id"]: run.run_id})
        return run

    def _fail(self, video: str, failure: str) -> None:
        run = self._run(video, dg.DagsterRunStatus.STARTED)
        [row] = self._status(video)
        database = self.pipeline.services.database
        database.transact(mark_running, row["upload_id"], run.run_id)
        database.transact(
            mark_failed, row["upload_id"], run.run_id, failure_class=failure, message="It failed."
        )
        self.instance.add_run_tags(run.run_id, {FAILURE_TAG: failure})
        self.instance.report_run_failed(run)

    def _log(self, video: str) -> None:
        [row] = self._status(video)
        logs = self.pipeline.aws.client("logs")
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_stream(logGroupName=VIDEO_ANALYSIS.name, logStreamName="shown")
        for level in ("INFO", "WARNING"):
            line = {
                "timestamp": datetime.now(UTC).isoformat(), "level": level, "component": "analysis",
                "message": "Something was seen.", "video_id": row["video_id"],
            }  # fmt: skip
            event: Any = {"timestamp": round(time.time() * 1000), "message": json.dumps(line)}
            logs.put_log_events(logGroupName=VIDEO_ANALYSIS.name, logStreamName="shown", logEvents=[event])


@pytest.fixture
def desk(
    aws: Aws,
    services: Services,
    make_clip: MakeClip,
    stand_in_detector: SquareDetector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    folder = tmp_path / "reader"
    folder.mkdir()
    coordinator = "run_coordinator: {module: dagster._core.run_coordinator, class: QueuedRunCoordinator}"
    settings = services.settings
    for name, value in {
        "DAGSTER_HOME": dagster_home(tmp_path / "dagster", coordinator),
        "DAGSTER_POSTGRES_URL": settings.event_store_url(),  # only the doctor asks it: SQLite is made sooner
        "CAPSTONE_DATABASE_URL": settings.event_store_url(),
        "CAPSTONE_DERIVED_URL": settings.required("derived_url"),
        "CAPSTONE_QUEUE_URL": settings.required("queue_url"),
        "CAPSTONE_RAW_BUCKET": settings.required("raw_bucket"),
        "CAPSTONE_ALERT_TOPIC_ARN": aws.resources.alert_topic_arn,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(folder)
    for module in (operating, reanalysis):
        monkeypatch.setattr(module, "repository", _definitions.get_repository_def)
    with dg.DagsterInstance.get() as instance:
        intake = Intake(aws, Services(settings.model_copy(update={"poll_wait_s": 0.0})), instance)
        monkeypatch.setattr(intake, "record_run", lambda request: None)
        # Ctrl-C ends what follows; the daemon's sensors tick while a command waits for them.
        monkeypatch.setattr(alerts, "time", SimpleNamespace(sleep=_interrupt))
        monkeypatch.setattr(
            intake_commands, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: intake.tick())
        )
        yield Desk(Pipeline(aws, services, instance), intake, make_clip)


def _interrupt(_: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.timeout(400)  # beside a busy suite
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_they_show(
    desk: Desk, capstone: Capstone, monkeypatch: pytest.MonkeyPatch, page: Path
) -> None:
    for line in commands([page]):
        variables, words = _parsed(line)
        if words[0] != PROGRAM:
            continue
        command = words[1]
        words = desk.prepare(command, words[1:])
        with monkeypatch.context() as typed:
            for name, value in variables.items():
                typed.setenv(name, value)
            if words[:2] == ["dlq", "show"]:
                [letter] = json.loads(capstone("dlq", "list", "--json").out)
                words[2] = letter["message_id"][: len(words[2])]
            typed.setattr("sys.stdin", io.StringIO("y\n"))
            # It would serve until Ctrl-C. tests/web asks for its pages, tests/test_demo.py runs its process.
            typed.setattr("uvicorn.run", lambda application, **options: None)
            outcome = capstone(*words)
        assert outcome.code == 0, f"{line}: {outcome.err}{outcome.out}"
        assert outcome.out + outcome.err, f"{line} said nothing"
        assert "Traceback" not in outcome.err
        desk.follow(command)


def test_every_command_that_is_shown_is_run_here_or_there() -> None:
    left = [line for line in commands() if _parsed(line)[1][0] != PROGRAM]
    assert set(left) == set(ELSEWHERE)
    assert [file for file in ELSEWHERE.values() if not (ROOT / file).exists()] == []
    assert {page.name for page in PAGES if blocks("bash", [page])} == set(BASH)


@pytest.mark.parametrize("line", [line for line in ELSEWHERE if "make " in line])
def test_make_knows_its_targets_and_variables(line: str) -> None:
    """`make -n` says what it would do."""
    words = re.sub(r"\$\(.*?\)", "0" * 64, line)
    shown = subprocess.run(
        ["bash", "-c", words.replace("make ", "make --dry-run LOCAL= DEV= TORCH= ")],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "REGISTRY": "registry", "TAG": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    for name, value in re.findall(r"([A-Z_]+)=([^ ]+)", words.partition("make ")[2]):
        expected = value.replace("$REGISTRY", "registry").replace("$TAG", "1")
        assert expected in shown.stdout or (name == "RECORD" and "--record" in shown.stdout), name


def test_a_back_ends_queue_subscribes_as_shown(aws: Aws) -> None:
    [block] = blocks("bash", [ROOT / "docs" / "consume.md"])
    words = shlex.split(block.replace("$TOPIC", aws.resources.notice_topic_arn))
    assert words[:3] == ["aws", "sns", "subscribe"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    attributes = json.loads(options["--attributes"])
    assert set(json.loads(attributes["FilterPolicy"])) <= {"kind", "video_id", "external_id", "camera"}
    queue = "arn:aws:sqs:ap-northeast-2:000000000000:back-end"
    subscribed = boto3.client("sns").subscribe(
        TopicArn=options["--topic-arn"],
        Protocol=options["--protocol"],
        Endpoint=options["--notification-endpoint"].replace("$QUEUE_ARN", queue),
        Attributes=attributes,
    )
    assert subscribed["SubscriptionArn"].startswith("arn:")


def test_the_collectors_variable_is_read() -> None:
    [block] = blocks("bash", [ROOT / "docs" / "tracing.md"])
    [(name, _)] = re.findall(r"export (\w+)=(\S+)", block)
    assert name in ENDPOINT_VARIABLES


def _parsed(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables before a command, and its words."""
    words = shlex.split(line)
    variables = {}
    while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words
