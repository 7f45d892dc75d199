"""A command under the supervisor runs as if alone; what it says arrives as JSON, and what it left is sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from capstone_dagster.local.aws import aws_environment
from capstone_dagster.logs.shipping.heartbeats import DaemonCheck, send_heartbeats, webserver
from capstone_dagster.logs.shipping.supervisor import Output, level_of
from capstone_dagster.metrics.emission import Metrics
from capstone_dagster.settings import read_settings
from tests.support.cloudwatch import Answer, ScriptedCloudWatch, scripted_cloudwatch
from tests.support.waiting import wait_for

GROUP = "/capstone/video-analysis"


@pytest.fixture
def cloudwatch() -> Iterator[ScriptedCloudWatch]:
    with scripted_cloudwatch() as endpoint:
        yield endpoint


def supervise(
    program: str, *options: str, cloudwatch: ScriptedCloudWatch | None = None, spool: Path | None = None
) -> subprocess.Popen[str]:
    """Start a Python program under the supervisor."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "NO_PROXY": "127.0.0.1"}
    if cloudwatch is not None:
        environment |= aws_environment(cloudwatch.endpoint_url)
    if spool is not None:
        environment |= {"CAPSTONE_LOG_SPOOL": str(spool)}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "capstone_dagster.logs.shipping.supervisor", "--service", "job"),
            *(*options, "--", sys.executable, "-u", "-c", textwrap.dedent(program)),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and lines, which are objects all of them; without the supervisor's own two."""
    out, err = process.communicate(timeout=60)
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    return process.returncode, [
        line for line in lines if not str(line.get("action")).startswith("container.")
    ]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("import os; os.abort()", 134),
    ],
)
def test_the_commands_exit_code_is_the_supervisors(program: str, code: int) -> None:
    assert ended(supervise(program))[0] == code


@pytest.mark.parametrize(("command", "code"), [("/no/such/program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_executed_has_a_shells_exit_code(command: str, code: int) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "capstone_dagster.logs.shipping.supervisor",
            "--service",
            "job",
            "--",
            command,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert command in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(number: signal.Signals) -> None:
    process = supervise(
        f"""
        import signal, sys
        signal.signal({int(number)}, lambda received, frame: sys.exit(received))
        print("ready")
        while True:
            signal.pause()
        """
    )
    assert process.stdout is not None
    wait_for("the command", lambda: process.stdout and "ready" in process.stdout.readline())
    process.send_signal(number)
    assert ended(process)[0] == number


def test_logs_tell_of_the_commands_start_and_end() -> None:
    process = supervise("import os, signal; print('working'); os.kill(os.getpid(), signal.SIGKILL)")
    out, _ = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["action"]: line["level"] for line in lines} == {
        "container.started": "INFO",
        "output": "INFO",
        "container.ended": "ERROR",
    }
    assert "processors" in lines[0]["message"]
    assert "exit code 137 (SIGKILL)" in lines[-1]["message"]


def test_the_command_does_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    process = supervise(
        f"""
        import os, signal
        from pathlib import Path
        Path({str(told)!r}).with_suffix(".new").write_text(str(os.getpid()))
        Path({str(told)!r}).with_suffix(".new").rename({str(told)!r})
        while True:
            signal.pause()
        """
    )
    wait_for("the command", told.exists)
    process.kill()
    process.communicate()
    wait_for("its end", lambda: not psutil.pid_exists(int(told.read_text())))


def test_a_command_gets_back_what_python_ignores() -> None:
    """Whoever writes to a pipe that nobody reads must end by it, as outside."""
    supervisor = [
        sys.executable,
        "-m",
        "capstone_dagster.logs.shipping.supervisor",
        "--service",
        "job",
        "--",
    ]
    assert subprocess.run([*supervisor, "sh", "-c", "kill -PIPE $$"]).returncode == 128 + signal.SIGPIPE


def test_logs_in_json_pass_as_they_are_and_all_else_becomes_json() -> None:
    code, lines = ended(
        supervise(
            """
            import os, sys
            print('{"level": "INFO", "message": "ours", "video_id": "v"}')
            print('{"level": "DEBUG", "message": "too fine"}')
            print('{"_aws": {}, "RunsFailed": 1}')
            print("2026-11-21 17:00:00 +0000 - dagster.daemon - ERROR - cannot go on")
            print('{"no": "line of ours"}')
            print("\\x1b[32mgreen\\x1b[0m words ü")
            print()
            sys.stderr.write("a warning of some library\\n")
            sys.stderr.flush()
            os.write(2, b"Fatal Python error: Segmentation fault")
            """
        )
    )
    assert code == 0
    by_message = {line.get("message"): line for line in lines}
    assert {"level": "INFO", "message": "ours", "video_id": "v"} in lines
    assert {"_aws": {}, "RunsFailed": 1} in lines
    assert "too fine" not in by_message
    wrapped = {message: line["level"] for message, line in by_message.items() if "stream" in line}
    assert wrapped == {
        "2026-11-21 17:00:00 +0000 - dagster.daemon - ERROR - cannot go on": "ERROR",
        '{"no": "line of ours"}': "INFO",
        "green words ü": "INFO",
        "a warning of some library": "WARNING",
        "Fatal Python error: Segmentation fault": "CRITICAL",
    }
    assert all(line["component"] == "job" for line in lines if "stream" in line)


def test_a_traceback_is_one_line_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "the secret of the house")
    _, lines = ended(
        supervise(
            """
            import os
            def connect():
                raise OSError("refused: " + os.environ["POSTGRES_PASSWORD"])
            connect()
            """
        )
    )
    [line] = lines
    assert line["level"] == "ERROR"
    assert line["message"].startswith("Traceback (most recent call last):")
    assert line["message"].endswith("OSError: refused: ***")


def test_what_is_below_the_level_is_dropped() -> None:
    _, lines = ended(
        supervise(
            'print("plain"); print(\'{"level": "INFO"}\'); print(\'{"level": "WARNING"}\')',
            "--level",
            "WARNING",
        )
    )
    assert lines == [{"level": "WARNING"}]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("2026-11-21 17:00:00 +0000 - dagster.code_server - INFO - Started", "INFO"),
        ("INFO:     Uvicorn running", "INFO"),
        ("INFO  [alembic.runtime.migration] Context impl", "INFO"),
        ("[WARNING] low", "WARNING"),
        ("warning: low", "WARNING"),
        ("FATAL:  password authentication failed", "CRITICAL"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "CRITICAL"),
        ("no information", None),
        ("the error is elsewhere", None),
    ],
)
def test_the_level_of_a_console_line(text: str, level: str | None) -> None:
    assert level_of(text) == level


def test_logs_of_a_killed_command_arrive(cloudwatch: ScriptedCloudWatch, tmp_path: Path) -> None:
    process = supervise(
        f"""
        import itertools, os
        from pathlib import Path
        from capstone_dagster.logs.spool import Spool
        spool = Spool(Path(os.environ["CAPSTONE_LOG_SPOOL"]), 10**8)
        for number in itertools.count():
            if spool.append("{GROUP}", '{{"number": %d}}' % number):
                os.write(1, b"%d\\n" % number)
            if number == 500:
                os.kill(os.getpid(), 9)
        """,
        cloudwatch=cloudwatch,
        spool=tmp_path / "spool",
    )
    code, lines = ended(process)
    assert code == 137
    assert [int(line["message"]) for line in lines] == list(range(501))
    assert [json.loads(message)["number"] for message in cloudwatch.messages(GROUP)] == list(range(501))


def test_a_cloudwatch_that_hangs_does_not_hold_the_end(
    cloudwatch: ScriptedCloudWatch, tmp_path: Path
) -> None:
    release = threading.Event()

    def script(call: Any) -> Answer:
        release.wait(120)
        return Answer(drop=True)

    cloudwatch.script = script
    process = supervise(
        f"""
        import os
        from pathlib import Path
        from capstone_dagster.logs.spool import Spool
        Spool(Path(os.environ["CAPSTONE_LOG_SPOOL"]), 10**8).append("{GROUP}", "line")
        """,
        cloudwatch=cloudwatch,
        spool=tmp_path / "spool",
    )
    try:
        process.communicate(timeout=45)
        assert process.returncode == 0
    finally:
        release.set()
        process.kill()


def test_a_standard_output_that_nobody_reads_does_not_hold_the_command(tmp_path: Path) -> None:
    done = tmp_path / "done"
    process = supervise(
        f"""
        from pathlib import Path
        for _ in range(12_000):
            print("x" * 1000)
        Path({str(done)!r}).touch()
        """
    )
    try:
        wait_for("the command's end", done.exists, deadline_s=60)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_what_waits_for_a_reader_is_bounded_and_the_rest_is_counted() -> None:
    reading, writing = os.pipe()
    told: list[int] = []
    output = Output(writing)
    os.close(writing)
    output.on_loss = told.append
    taken = sum(output.write("x" * 1000) for _ in range(12_000))
    assert 8_000 < taken < 9_000
    with os.fdopen(reading, "rb") as reader:
        for _ in range(taken):
            assert len(reader.readline()) == 1001
    wait_for("the count of the rest", lambda: told)
    assert told == [12_000 - taken]


def test_a_process_that_outlives_the_command_does_not_hold_the_end() -> None:
    code, lines = ended(
        supervise(
            """
            import os, subprocess
            sleeper = subprocess.Popen(["sleep", "30"])
            print(sleeper.pid)
            """
        )
    )
    assert code == 0
    os.kill(int(lines[0]["message"]), signal.SIGKILL)


def test_a_heartbeat_is_a_metric_while_the_service_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capstone_dagster.logs.spool import segments

    monkeypatch.setenv("CAPSTONE_METRICS", "put")
    monkeypatch.setenv("CAPSTONE_LOG_SPOOL", str(tmp_path))
    answers = iter([None, None, "it does not", None, None])
    stop = threading.Event()

    def check() -> str | None:
        try:
            return next(answers)
        except StopIteration:
            stop.set()
            return "over"

    send_heartbeats({"daemon": check}, Metrics(read_settings()), stop, seconds_to_next=lambda: 0.0)

    [segment] = segments(tmp_path)
    records, _ = segment.read(0, 10**6, finished=False)
    beats = [json.loads(record.text) for record in records]
    assert [beat["Heartbeat"] for beat in beats] == [1, 1, 1, 1]
    assert {beat["Service"] for beat in beats} == {"daemon"}


def test_a_webserver_that_does_not_answer_is_told() -> None:
    with scripted_cloudwatch() as anything:  # it answers POST alone
        assert "does not answer" in str(webserver(anything.endpoint_url)())
    assert "does not answer" in str(webserver("http://127.0.0.1:9")())


def test_the_daemons_heartbeats_are_read_as_dagster_writes_them(database_url: str, tmp_path: Path) -> None:
    """Real storage: the table is Dagster's own affair."""
    import dagster as dg
    from dagster._core.instance import InstanceRef
    from dagster._daemon.types import DaemonHeartbeat

    url = database_url.replace("+psycopg:", "+psycopg2:")
    (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: {url!r}}}}}\n")
    check = DaemonCheck(url)
    assert "storage does not answer" in str(check())
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        import time

        assert check() == "no heartbeat of the daemon yet"
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 5000, "A_FORMER_DAEMON", "id", []))
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "id", []))
        assert check() is None
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 400, "SENSOR", "id", []))
        assert "SENSOR" in str(check())


def test_logs_of_a_dagster_run_arrive_though_its_worker_is_killed(
    cloudwatch: ScriptedCloudWatch, tmp_path: Path
) -> None:
    """With the handler of dagster.yaml, and a CloudWatch that was hanging when the run began."""
    release = threading.Event()

    def script(call: Any) -> Answer:
        return Answer() if release.wait(60) else Answer(drop=True)

    cloudwatch.script = script
    handler = {"class": "capstone_dagster.logs.json_lines.RunLogHandler", "level": "DEBUG"}
    settings = {"python_logs": {"dagster_handler_config": {"handlers": {"lines": handler}}}}
    process = supervise(
        f"""
        import os, sys
        import dagster as dg

        @dg.op
        def talk(context):
            for number in range(100):
                context.log.info(f"line {{number}}")
            sys.__stdout__.write("half of a word")  # which the killed worker never ends
            sys.__stdout__.flush()
            os.kill(os.getpid(), 9)

        @dg.job(executor_def=dg.in_process_executor)
        def talking():
            talk()

        with dg.DagsterInstance.ephemeral(settings={settings!r}) as instance:
            talking.execute_in_process(instance=instance)
        """,
        cloudwatch=cloudwatch,
        spool=tmp_path / "spool",
    )
    wait_for("the call that hangs", lambda: cloudwatch.calls)
    release.set()
    code, _ = ended(process)
    assert code == 137
    told = [json.loads(message) for message in cloudwatch.messages(GROUP)]
    said = [fields["message"] for fields in told if fields["message"].startswith("line ")]
    assert said == [f"line {number}" for number in range(100)]
    assert len({fields["run_id"] for fields in told}) == 1
