"""A started process never outlives its owner, whatever ends either of them, and its end is noticed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from capstone_dagster.local.errors import (
    LocalStackError,
    NotReadyError,
    PortInUseError,
    ProcessEndedError,
)
from capstone_dagster.local.processes import ChildProcess, Command, free_port, require_free_port, start
from tests.support.waiting import wait_for

# A process with a child in a session of its own, both deaf to SIGTERM and SIGINT: the worst to stop.
STUBBORN_FAMILY = """
import os, signal, subprocess, sys
from pathlib import Path
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]], start_new_session=True)
path = Path(sys.argv[1]) / str(os.getpid())
path.touch()
while True:
    signal.pause()
"""
OWNER = """
import signal, sys
from pathlib import Path
from capstone_dagster.local.processes import ChildProcess, Command, start
folder = Path(sys.argv[1])
start(Command("family", [sys.executable, str(folder / "family.py"), str(folder / "pids"), "parent"],
              folder / "family.log", {}, grace_s=0.2))
signal.pause()
"""


def command(tmp_path: Path, program: str, *arguments: str, grace_s: float = 0.2) -> Command:
    return Command(
        "worker", [sys.executable, "-c", program, *arguments], tmp_path / "worker.log", {}, grace_s=grace_s
    )


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The stubborn program, and beside it the folder where each of its two processes leaves its pid."""
    (tmp_path / "pids").mkdir()
    (tmp_path / "family.py").write_text(STUBBORN_FAMILY)
    return tmp_path / "pids"


def both_pids(folder: Path) -> list[int]:
    return wait_for(
        "both processes",
        lambda: (
            [int(path.name) for path in folder.iterdir()][1:]
            and [int(path.name) for path in folder.iterdir()]
        ),
    )


def ended_after(process: ChildProcess) -> ChildProcess:
    wait_for("the process's end", lambda: not process.running)
    return process


def test_stop_ends_the_grandchildren_too(tmp_path: Path, family: Path) -> None:
    argv = [sys.executable, str(tmp_path / "family.py"), str(family), "parent"]
    process = start(Command("family", argv, tmp_path / "family.log", {}, grace_s=0.2))
    pids = both_pids(family)
    process.stop()
    assert process.pid in pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_nothing_survives_an_owner_killed_outright(tmp_path: Path, family: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    pids = both_pids(family)
    owner.kill()
    owner.wait()
    wait_for("the end of both", lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_the_grandchildren_of_a_process_that_ended_by_itself_end_too(tmp_path: Path, family: Path) -> None:
    argv = [sys.executable, str(tmp_path / "family.py"), str(family), "parent"]
    process = start(Command("family", argv, tmp_path / "family.log", {}, grace_s=0.2))
    pids = both_pids(family)
    os.kill(process.pid, signal.SIGKILL)
    wait_for("the end of both", lambda: not any(psutil.pid_exists(pid) for pid in pids))
    wait_for("the notice of it", lambda: not process.running)
    process.stop()


def test_a_process_that_is_to_be_restarted_leaves_its_children_running(tmp_path: Path, family: Path) -> None:
    argv = [sys.executable, str(tmp_path / "family.py"), str(family), "parent"]
    log = tmp_path / "family.log"
    process = start(Command("family", argv, log, {}, grace_s=0.2, restart_after_s=0.1))
    [child] = set(both_pids(family)) - {process.pid}
    os.kill(process.pid, signal.SIGKILL)
    # The second parent has a child of its own.
    pids = wait_for("another parent", lambda: pids if len(pids := os.listdir(family)) == 4 else None)
    assert psutil.pid_exists(child)
    process.check()
    process.stop()
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)


def test_the_end_of_a_process_is_told_with_its_last_lines(tmp_path: Path) -> None:
    process = ended_after(start(command(tmp_path, "import sys; print('the disk is full'); sys.exit(3)")))
    with pytest.raises(ProcessEndedError, match=r"(?s)exit code 3.*worker\.log.*the disk is full"):
        process.check()
    process.stop()


def test_a_process_that_never_becomes_ready_is_told_with_what_is_missing(tmp_path: Path) -> None:
    process = start(command(tmp_path, "import signal; signal.pause()"))
    with pytest.raises(NotReadyError, match="no answer yet"):
        process.wait_until(lambda: "no answer yet", deadline_s=0)
    process.stop()
    assert not psutil.pid_exists(process.pid)


def test_a_program_that_does_not_exist_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="no-such-program"):
        start(Command("worker", [str(tmp_path / "no-such-program")], tmp_path / "worker.log", {}))


def test_the_log_of_the_last_start_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    for number in ("first", "second"):
        ended_after(start(command(tmp_path, f"print('{number}')")))
    assert (tmp_path / "worker.log").read_text() == "second\n"
    assert (tmp_path / "worker.log.previous").read_text() == "first\n"


def test_a_taken_port_is_refused_with_its_number_its_holder_and_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port}.*process {os.getpid()}.*Do this"):
            require_free_port(port, "worker", "Do this.")
        assert free_port(preferred=port) != port
    assert free_port(preferred=port) == port
