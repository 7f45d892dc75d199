"""The local stack behind Dagster's own commands: PostgreSQL and the AWS emulator, found or started.

`dagster dev`, `dg dev` and similar commands open an instance. Where nothing is set, its storage
(dagster_storage.py) calls this. `capstone dev` starts the same stack, and Dagster with it.
"""

import argparse
import atexit
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from capstone_dagster.local.dagster_services import UI_PORT
from capstone_dagster.local.demo import prepare
from capstone_dagster.local.errors import StateInUseError
from capstone_dagster.local.stack import (
    STATE_FOLDER,
    DagsterFiles,
    enter_environment,
    local_stack,
    ready_storage,
)
from capstone_dagster.local.state import owner, read_environment


def enter_local_stack() -> None:
    """Make this process and its children clients of the stack that runs in this checkout.

    If none runs, one is started, which stops when this process ends, however that ends.

    Raises:
        StateInUseError: this process is `dagster dev` or `dg dev`, and the running stack has a daemon.
        LocalStackError: it could not be started; the message says what to do.
    """
    files = DagsterFiles(Path("workspace.yaml").resolve(), Path("dagster.yaml").resolve())
    state = files.instance.parent / STATE_FOLDER
    environment = read_environment(state)
    # Two daemons on one storage start the same runs and sensor ticks twice.
    if environment is not None and "dev" in sys.argv[1:2]:
        raise StateInUseError(state, owner(state))
    if environment is None:
        running = ExitStack()
        atexit.register(running.close)
        log = logging.getLogger("dagster").info
        stack = running.enter_context(
            local_stack(
                with_dagster=False,
                webserver_port=_ui_port(sys.argv[1:]),
                dagster_files=files,
                on_progress=log,
            )
        )
        prepare(stack)
        ready_storage(stack, files, log)
        # After Ctrl-C, Dagster waits for the tick under way. Without this it may be a long poll of 20 s.
        environment = {"CAPSTONE_POLL_WAIT_S": "2", **stack.environment}
    enter_environment(environment)


def _ui_port(arguments: list[str]) -> int:
    """The port that `dagster dev` and `dg dev` give their webserver, for links to it."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-p", "--port", type=int, default=UI_PORT)
    return int(options.parse_known_args(arguments)[0].port)
