"""The whole stack on a throw-away Dagster project: it starts, survives, refuses, leaves nothing behind."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from capstone_dagster.catalog.log_groups import INTAKE
from capstone_dagster.local.aws import RAW_BUCKET, client
from capstone_dagster.local.errors import (
    CodeLocationError,
    PortInUseError,
    ProcessEndedError,
    StateInUseError,
)
from capstone_dagster.local.stack import (
    DagsterFiles,
    LocalStack,
    enter_environment,
    join_environment,
    local_stack,
)
from capstone_dagster.local.state import ENVIRONMENT_FILE, read_environment
from tests.support.waiting import scaled, wait_for

pytestmark = pytest.mark.live
Project = Callable[..., DagsterFiles]
LAUNCH = """
mutation Launch {
  launchRun(executionParams: {mode: "default", selector: {
    repositoryLocationName: "throw-away", repositoryName: "__repository__", jobName: "endless"}}) {
    __typename ... on PythonError { message } }
}
"""
RELOAD = (
    """mutation Reload { reloadRepositoryLocation(repositoryLocationName: "throw-away") { __typename } }"""
)
JOBS = """
{ repositoryOrError(repositorySelector: {
    repositoryLocationName: "throw-away", repositoryName: "__repository__"}) {
  ... on Repository { pipelines { name } } } }
"""
OWNER = """
import sys, time
from pathlib import Path
from capstone_dagster.local.stack import DagsterFiles, local_stack
state, project = map(Path, sys.argv[1:])
files = DagsterFiles(project / "workspace.yaml", project / "dagster.yaml")
try:
    with local_stack(state, webserver_port=None, dagster_files=files) as stack:
        print(stack.dagster.url, flush=True)
        while True:  # signal.pause() would miss a signal that comes just before it
            stack.check()
            time.sleep(0.1)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for one stack after the other, as in a checkout: the databases are made once."""
    return tmp_path_factory.mktemp("checkout") / "state with a blank"


def run_owner(state: Path, files: DagsterFiles, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state), str(files.workspace.parent)],
        env=os.environ | {"PYTHONPATH": os.getcwd()} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def post(url: str, query: str) -> Any:
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=scaled(60)) as answer:
        return json.load(answer)["data"]


def launched(url: str, pid_file: Path) -> int:
    """The pid of another endless run; 0 if the code server does not answer."""
    pid_file.unlink(missing_ok=True)
    try:
        answer = post(url, LAUNCH)["launchRun"]
    except urllib.error.HTTPError:
        return 0
    if answer["__typename"] != "LaunchRunSuccess":
        return 0
    return int(wait_for("the run", lambda: pid_file.read_text() if pid_file.exists() else None))


def jobs(url: str) -> list[str]:
    return [job["name"] for job in post(url, JOBS)["repositoryOrError"].get("pipelines", [])]


def code_servers(state: Path) -> list[int]:
    """Processes that serve code over gRPC, without their wardens."""
    users = [user for user in users_of(state) if "'grpc'" in user]
    return [int(user.split()[0]) for user in users]


def users_of(state: Path) -> list[str]:
    """Processes whose command line, working directory or environment names this state directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), process.environ().get("DAGSTER_HOME", "")]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(state) in each for each in words):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


def test_the_stack_starts_tells_its_environment_notices_a_death_and_leaves_nothing(
    state: Path, tmp_path: Path, dagster_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_SAMPLE_FPS", "2")
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "the-users-production-bucket")
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("RUN_PID_FILE", str(tmp_path / "run.pid"))
    files = dagster_project()
    steps: list[str] = []
    seen: list[bool] = []

    def migrate(stack: LocalStack) -> None:
        seen.append(stack.dagster is None and read_environment(state) == stack.environment)

    with local_stack(
        state,
        webserver_port=None,
        dagster_files=files,
        before_dagster=migrate,
        on_progress=steps.append,
    ) as stack:
        assert stack.dagster is not None
        stack.check()
        with urllib.request.urlopen(f"{stack.dagster.url}/server_info", timeout=scaled(30)) as answer:
            assert "dagster_version" in json.load(answer)
        assert seen == [True]
        assert [word in " ".join(steps) for word in ("PostgreSQL", "S3", "Dagster is ready")] == [True] * 3

        environment = read_environment(state)
        assert environment == stack.environment
        assert environment["CAPSTONE_RAW_BUCKET"] == RAW_BUCKET, "places are the stack's"
        assert environment["CAPSTONE_SAMPLE_FPS"] == "2", "tuning is the user's"
        assert "AWS_PROFILE" not in join_environment(environment)
        assert os.stat(state / ENVIRONMENT_FILE).st_mode & 0o777 == 0o600
        sourced = subprocess.check_output(
            ["sh", "-c", f'. {shlex.quote(str(state / ENVIRONMENT_FILE))}; printf %s "$DAGSTER_HOME"'],
            text=True,
        )
        assert sourced == environment["DAGSTER_HOME"] == str(state / "dagster")

        logs = client("logs", stack.aws.endpoint_url)
        with (stack.logs / "dagster-daemon.log").open("a") as output:
            output.write('{"component": "intake", "message": "a line"}\n')
        wait_for("a line", lambda: logs.filter_log_events(logGroupName=INTAKE.name)["events"])

        with pytest.raises(StateInUseError, match=str(os.getpid())), local_stack(state, with_dagster=False):
            pass
        assert len(users_of(state)) >= 4, "the check for left-overs must be able to fail"

        code = files.workspace.with_name("throw_away.py")
        for before, after in (("endless", "without_end"), ("without_end", "endless")):
            code.write_text(code.read_text().replace(before, after))
            post(stack.dagster.url, RELOAD)
            wait_for("the changed code", lambda job=after: jobs(stack.dagster.url) == [job])
        wait_for("the end of replaced code servers", lambda: len(code_servers(state)) == 1)

        run = launched(stack.dagster.url, tmp_path / "run.pid")
        [server] = code_servers(state)
        os.kill(server, signal.SIGKILL)
        assert psutil.pid_exists(run), "a run outlives the code server that it was launched by"
        wait_for("another code server", lambda: launched(stack.dagster.url, tmp_path / "run.pid"))
        assert len(code_servers(state)) == 1
        stack.check()

        daemon = stack.dagster.daemon
        os.kill(daemon.pid, signal.SIGKILL)
        wait_for("the daemon's end", lambda: not daemon.running)
        with pytest.raises(ProcessEndedError, match=r"(?s)Dagster daemon.*signal 9.*dagster-daemon\.log"):
            stack.check()

    assert users_of(state) == []
    assert read_environment(state) is None
    assert not (state / ENVIRONMENT_FILE).exists()


def test_what_the_stack_remembers_outlives_it_until_a_fresh_start(tmp_path: Path) -> None:
    files = DagsterFiles(tmp_path / "workspace.yaml", tmp_path / "dagster.yaml")

    def objects(stack: LocalStack) -> int:
        answer = client("s3", stack.aws.endpoint_url).list_objects_v2(Bucket=RAW_BUCKET)
        return int(answer["KeyCount"])

    with local_stack(tmp_path / "state", with_dagster=False, dagster_files=files) as stack:
        client("s3", stack.aws.endpoint_url).put_object(Bucket=RAW_BUCKET, Key="a.mp4", Body=b"film")
    with local_stack(tmp_path / "state", with_dagster=False, dagster_files=files) as stack:
        assert objects(stack) == 1
    with local_stack(tmp_path / "state", with_dagster=False, dagster_files=files, fresh=True) as stack:
        assert objects(stack) == 0


def test_definitions_that_cannot_be_imported_are_told_with_the_reason(
    state: Path, dagster_project: Project
) -> None:
    files = dagster_project("import a_package_that_is_missing\n")
    with (
        pytest.raises(CodeLocationError, match="No module named 'a_package_that_is_missing'") as caught,
        local_stack(state, webserver_port=None, dagster_files=files),
    ):
        pass
    assert caught.value.location == "throw-away"
    assert "throw_away.py" in str(caught.value), "the user's own line is shown"
    assert users_of(state) == []


def test_a_taken_ui_port_is_refused_with_the_way_out(state: Path, dagster_project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(PortInUseError, match=rf"port {port}.*CAPSTONE_UI_PORT={port + 1}"),
            local_stack(state, webserver_port=port, dagster_files=dagster_project()),
        ):
            pass
    assert users_of(state) == []


def test_an_owner_killed_outright_leaves_no_process_not_even_a_run(
    state: Path, tmp_path: Path, dagster_project: Project
) -> None:
    """And the next stack on the same state waits until the last one is gone, instead of failing."""
    files, run_pid = dagster_project(), tmp_path / "run.pid"
    owner = run_owner(state, files, RUN_PID_FILE=str(run_pid))
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    pid = launched(url, run_pid)
    assert psutil.pid_exists(pid)

    owner.kill()
    owner.communicate()
    assert read_environment(state) is None, "a killed stack does not count as running"
    with local_stack(state, with_dagster=False, dagster_files=files) as stack:
        assert not psutil.pid_exists(pid)
        stack.check()
    assert users_of(state) == []


def test_ctrl_c_stops_the_stack_once_and_without_a_traceback(state: Path, dagster_project: Project) -> None:
    owner = run_owner(state, dagster_project())
    assert owner.stdout is not None
    assert owner.stdout.readline().startswith("http://")
    owner.send_signal(signal.SIGINT)
    output, errors = owner.communicate(timeout=scaled(90))
    assert (owner.returncode, output, errors) == (0, "interrupted\n", "")
    for log in (state / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log
    assert users_of(state) == []


def test_entering_the_environment_drops_what_belongs_to_the_real_aws() -> None:
    own = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "CAPSTONE_ENVIRONMENT": "local"}
    process = {
        "PATH": "/bin",
        "AWS_PROFILE": "production",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL_SQS": "https://elsewhere",
        "PGSSLMODE": "require",
        "POSTGRES_HOST": "production",
        "NO_PROXY": "intranet",
    }
    enter_environment(own, process)
    assert process == own | {
        "PATH": "/bin",
        "NO_PROXY": "intranet,127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
