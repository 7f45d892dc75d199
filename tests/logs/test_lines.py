"""Log lines: one JSON object each, whatever is logged; and no caller notices."""

import json
import logging
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.logs.json_lines import (
    MAX_LINE_BYTES,
    STABLE_FIELDS,
    JsonFormatter,
    LineHandler,
    TerminalFormatter,
    json_line,
    utc,
)
from capstone_dagster.redaction import Redaction
from capstone_dagster.settings import read_settings
from capstone_dagster.standard_output import StandardOutput
from tests.support.lines import Lines
from tests.support.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]


def record(name: str, level: int, message: Any, *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, level, __file__, 1, message, args, None, extra=extra)


def test_a_line_of_the_logs_names_what_it_knows_in_a_stable_order() -> None:
    said = record(
        "capstone.intake",
        logging.WARNING,
        "Duplicate of %s",
        "gate/a.mp4",
        frame_count=3,
        action="duplicate.prevented",
        run_id="r",
        message_id="m",
        upload_id="ab" * 32,
        external_id=None,
    )
    said.created = 1769091795.1239

    line = JsonFormatter().format(said)

    fields = json.loads(line)
    assert list(fields) == [name for name in STABLE_FIELDS if name in fields] + ["frame_count"]
    assert fields == {
        "timestamp": "2026-01-22T14:23:15.123Z",
        "level": "WARNING",
        "component": "intake",
        "action": "duplicate.prevented",
        "message": "Duplicate of gate/a.mp4",
        "upload_id": "ab" * 32,
        "message_id": "m",
        "run_id": "r",
        "trace_id": "ab" * 16,
        "frame_count": 3,
    }


def test_a_line_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_TIMEZONE", "Asia/Seoul")
    said = record("capstone.intake", logging.INFO, "message")
    said.created = 1769091795.5

    assert TerminalFormatter().format(said) == "[2026-01-22 23:23:15+09:00] INFO capstone.intake - message"


def test_the_fields_of_the_logs_are_documented() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)

    assert tuple(name for row in rows for name in re.findall(r"`(\w+)`", row)) == STABLE_FIELDS


@pytest.mark.parametrize(
    ("logger", "component"),
    [
        ("capstone.intake", "intake"),
        ("capstone.storage.events", "storage"),
        ("batch_gpu.launcher", "launcher"),
        ("dagster.daemon", "dagster"),
        ("botocore.retries", "code-location"),
        ("capstone", "code-location"),
    ],
)
def test_the_component_of_a_line_of_the_logs(logger: str, component: str) -> None:
    fields = json.loads(JsonFormatter("code-location").format(record(logger, logging.INFO, "x")))

    assert fields["component"] == component
    assert fields.get("logger", component) in (logger, component)


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([Path("/a"), ValueError("x"), object(), np.float32(1.5), np.int64(7), np.nan]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=6))
def test_whatever_is_logged_is_one_json_object_a_line(fields: dict[str, Any]) -> None:
    line = json_line(fields, Redaction())

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    shown = json.loads(line.encode().decode(), parse_constant=refuse)
    assert isinstance(shown, dict)
    assert shown.keys() == {name for name, value in fields.items() if value is not None}
    assert "\n" not in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.int64(7), 7),
        (np.float32(1.5), 1.5),
        (math.inf, "inf"),
        (Path("/a/b"), "/a/b"),
        ({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}),
        ("half \ud83d of a pair", "half \\ud83d of a pair"),
    ],
)
def test_values_in_the_logs(value: Any, shown: Any) -> None:
    assert json.loads(json_line({"x": value}, Redaction()))["x"] == shown


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "x" * 1_000_000},
        {"message": "x", "exception": "é\n" * 40_000},
        {"message": "\0" * 20_000, "exception": "\0" * 20_000},
        {"message": "x", "rows": [{"id": number, "text": "y" * 100} for number in range(200)]},
        {"message": "x", **{f"field_{number}": "y" * 90 for number in range(500)}},
        {"message": "x", "k" * 50_000: "y"},
    ],
    ids=["endless", "multibyte", "escaped", "nested", "many-fields", "long-name"],
)
def test_a_line_is_short_enough_to_arrive_in_one_piece(fields: dict[str, Any]) -> None:
    line = json_line({"level": "INFO", **fields}, Redaction())

    assert len(line.encode()) <= MAX_LINE_BYTES < 16 * 1024
    assert json.loads(line)["level"] == "INFO"


def test_of_a_long_text_beginning_and_end_are_kept() -> None:
    traceback = "Traceback:\n" + "  a frame\n" * 10_000 + "ValueError: the reason"

    shown = json.loads(json_line({"message": "It failed.", "exception": traceback}, Redaction()))

    assert shown["message"] == "It failed."
    assert shown["exception"].startswith("Traceback:\n")
    assert shown["exception"].endswith("ValueError: the reason")
    assert "of 100,033 characters left out]" in shown["exception"]


def test_a_traceback_is_a_field_and_has_no_secret() -> None:
    try:
        raise ValueError("postgresql://u:hidden-password@db/x")
    except ValueError:
        said = logging.getLogger("capstone.x").makeRecord(
            "capstone.x", logging.ERROR, __file__, 1, "It failed.", (), sys.exc_info()
        )

    fields = json.loads(JsonFormatter().format(said))

    assert fields["message"] == "It failed."
    assert "Traceback" in fields["exception"]
    assert "ValueError: postgresql://u:***@db/x" in fields["exception"]
    assert "hidden" not in TerminalFormatter().format(said)


@pytest.mark.parametrize(
    ("timestamp", "shown"), [(0.0, "1970-01-01T00:00:00.000Z"), (1.9999, "1970-01-01T00:00:01.999Z")]
)
def test_timestamps_are_utc_with_milliseconds(timestamp: float, shown: str) -> None:
    assert utc(timestamp) == shown


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def handler(lines: Lines) -> LineHandler:
    return LineHandler("test", read_settings(), stream=lines)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        record("capstone.x", logging.INFO, "%d frames", "many"),
        record("capstone.x", logging.INFO, "too few %s %s", 1),
        record("capstone.x", logging.INFO, "a value that cannot be shown", value=Unspeakable()),
        record("capstone.x", logging.INFO, Unspeakable()),
        record("capstone.x", logging.INFO, "m", number=10**5000),
    ],
    ids=["wrong-type", "too-few", "unspeakable-field", "unspeakable-message", "endless-number"],
)
def test_nothing_that_is_logged_raises_and_each_leaves_a_line(
    handler: LineHandler, lines: Lines, said: logging.LogRecord
) -> None:
    handler.handle(said)

    [fields] = lines.fields()
    assert fields["level"] == "INFO"
    assert fields["message"]


# --- standard output ---


@pytest.fixture
def pipe() -> Iterator[tuple[int, StandardOutput]]:
    reader, writer = os.pipe()
    output = StandardOutput(writer)
    os.close(writer)
    yield reader, output
    os.close(reader)


def test_lines_of_many_threads_arrive_whole(pipe: tuple[int, StandardOutput]) -> None:
    reader, output = pipe
    lines = {f"{name}{number}" * 700 for name in "abcd" for number in range(20)}
    read: list[bytes] = []

    def drain() -> None:
        while sum(map(len, read)) < sum(len(line) + 1 for line in lines):
            read.append(os.read(reader, 65536))

    draining = threading.Thread(target=drain)
    writing = [
        threading.Thread(target=lambda name=name: [output.write(line) for line in lines if line[0] == name])
        for name in "abcd"
    ]
    for thread in (draining, *writing):
        thread.start()
    for thread in (*writing, draining):
        thread.join(timeout=30)
        assert not thread.is_alive()

    assert set(b"".join(read).decode().splitlines()) == lines
    assert output.lost == 0


def test_a_reader_that_stops_costs_lines_and_hardly_any_time(pipe: tuple[int, StandardOutput]) -> None:
    reader, output = pipe
    began = time.monotonic()
    for _ in range(1000):
        output.write("x" * 10_000)

    # Half a second once, not for each of those that have no room.
    assert time.monotonic() - began < 5
    assert output.lost > 500
    lost = output.lost
    os.set_blocking(reader, False)
    rest = b""
    while True:
        try:
            rest += os.read(reader, 1 << 20)
        except BlockingIOError:
            break
    assert output.write("here again")
    assert output.lost == lost
    assert (rest + os.read(reader, 65536)).decode().splitlines()[-1] == "here again"


def test_a_reader_that_is_gone_costs_nothing() -> None:
    reader, writer = os.pipe()
    output = StandardOutput(writer)
    os.close(writer)
    os.close(reader)

    assert not output.write("said")


def test_a_full_disk_costs_lines_only() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        output = StandardOutput(full.fileno())

    assert not output.write("said")
    assert output.lost == 1


def test_a_descriptor_that_does_not_block_costs_lines_only(pipe: tuple[int, StandardOutput]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    output = StandardOutput(writer)
    os.close(writer)

    while output.write("x" * 5000):
        pass

    assert output.lost == 1
    os.close(reader)


def test_what_several_processes_append_to_one_file_stays_in_whole_lines(tmp_path: Path) -> None:
    program = "from capstone_dagster.standard_output import standard_output\n" + (
        "for _ in range(300): standard_output().write('{}' * 9000)\n"
    )
    with (tmp_path / "log").open("ab") as log:
        writers = [
            subprocess.Popen([sys.executable, "-c", program.format(letter)], stdout=log, cwd=ROOT)
            for letter in "ab"
        ]
        assert [writer.wait(timeout=scaled(60)) for writer in writers] == [0, 0]

    assert {line[:1] * 9000 == line for line in (tmp_path / "log").read_text().splitlines()} == {True}


# --- whole processes ---


def run_program(body: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(body))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAPSTONE_")}
    return subprocess.run(
        [sys.executable, str(program)],
        env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


CONFIGURED = """
    import logging
    from capstone_dagster.logs.json_lines import configure_logging
    from capstone_dagster.settings import read_settings
    configure_logging(read_settings(), "code-location")
    configure_logging(read_settings(), "somebody-else")
    logging.getLogger("capstone.intake").info("one", extra={"action": "message.ignored"})
    logging.getLogger("capstone.storage").debug("two")
    logging.getLogger("botocore").warning("three")
    logging.getLogger("botocore").info("not said")
    try:
        raise ValueError("four")
    except ValueError:
        logging.getLogger("capstone").exception("failed")
"""


def test_a_process_s_logs_are_json_where_nobody_watches(tmp_path: Path) -> None:
    done = run_program(CONFIGURED, tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["component"], line["level"], line["message"]) for line in shown] == [
        ("intake", "INFO", "one"),
        ("code-location", "WARNING", "three"),
        ("code-location", "ERROR", "failed"),
    ]


def test_a_process_s_logs_are_text_where_that_is_asked_for(tmp_path: Path) -> None:
    done = run_program(CONFIGURED, tmp_path, CAPSTONE_LOG_FORMAT="text")

    lines = done.stdout.splitlines()
    shape = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+09:00\] INFO capstone\.intake - one"
    assert re.fullmatch(shape, lines[0])
    assert lines[-1] == "ValueError: four"


RUN = """
    import logging
    import sys
    import dagster as dg
    from capstone_dagster.logs.json_lines import configure_logging
    from capstone_dagster.settings import read_settings
    configure_logging(read_settings(), "code-location")

    @dg.op
    def work(context):
        context.log.info("At work.", extra={"action": "step.completed", "frame_count": 3})
        logging.getLogger("capstone.storage").warning("Tried again.")
        statement = {"action": "database.statement"}
        logging.getLogger("capstone.storage").debug("A statement took 0.2 s.", extra=statement)
        logging.getLogger("botocore").warning("A library's word.")
        known = {"failure_class": "timeout", "cause": "It took long.", "remedy": "Wait."}
        raise dg.Failure("d", metadata=known)

    @dg.job
    def working():
        work()

    with dg.DagsterInstance.get() as instance:
        working.execute_in_process(
            instance=instance,
            raise_on_error=False,
            tags={
                ".dagster/capstone.video_id": "v",
                ".dagster/capstone.upload_id": "ab" * 32,
                ".dagster/capstone.s3_uri": "s3://b/k/x.mp4",
            },
        )
"""


def python_logs() -> str:
    """An instance as shipped, but for the storage; Dagster captures each step's output by redirecting it."""
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    return yaml.safe_dump({name: shipped[name] for name in ("python_logs", "telemetry")})


def test_a_run_s_logs_are_complete_from_debug_up_on_standard_output(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(python_logs())

    done = run_program(RUN, tmp_path, DAGSTER_HOME=str(tmp_path), CAPSTONE_LOG_FORMAT="json")

    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({fields["run_id"] for fields in shown}) == 1
    for fields in shown:
        assert (fields["video_id"], fields["bucket"], fields["key"]) == ("v", "b", "k/x.mp4")
        assert fields["trace_id"] == "ab" * 16
    found = [(fields["component"], fields["action"]) for fields in shown]
    for line in [
        ("dagster", "run.started"),
        ("dagster", "step.started"),
        ("analysis", "step.completed"),
        ("storage", "log"),
        ("storage", "database.statement"),
        ("code-location", "log"),
        ("dagster", "step.failed"),
        ("dagster", "run.failed"),
    ]:
        assert found.count(line) == 1, line
    by_action = {fields["action"]: fields for fields in shown}
    assert by_action["run.failed"]["failure_class"] == "timeout"
    assert by_action["run.failed"]["remedy"] == "Wait."
    assert 0 <= by_action["run.failed"]["elapsed_s"] < 60
    assert by_action["step.completed"]["frame_count"] == 3
    assert shown[-1]["action"] == "run.failed"
    # Dagster's console would write all of it once more.
    assert done.stderr == ""


@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_run_succeeds_whatever_becomes_of_its_logs(output: str, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(python_logs())
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(RUN + "    print('ended', file=sys.stderr)\n"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(tmp_path)}
    with open("/dev/full", "wb") as full:
        run = subprocess.Popen(
            [sys.executable, str(program)],
            env=environment | {"CAPSTONE_LOG_FORMAT": "json", "CAPSTONE_METRICS": "emf"},
            stdout=full if output == "full" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    if run.stdout is not None:
        run.stdout.close()
    assert run.stderr is not None
    said = run.stderr.read()

    assert run.wait(timeout=scaled(120)) == 0, said
    assert said.endswith("ended\n")


def test_a_run_s_logs_are_left_to_dagster_s_console_where_text_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(python_logs())

    done = run_program(RUN, tmp_path, DAGSTER_HOME=str(tmp_path), CAPSTONE_LOG_FORMAT="text")

    assert " - At work." in done.stderr
    assert "At work." not in done.stdout
