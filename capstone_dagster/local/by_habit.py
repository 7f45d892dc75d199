"""The local stack behind Dagster's own commands: PostgreSQL and the AWS emulator, found or started.

`dagster dev`, `dg dev` and their like open an instance, whose storage (dagster_storage.py) calls this where
nothing is set. `capstone dev` starts the same stack, and Dagster with it.
"""

import atexit
import logging
from contextlib import ExitStack
from pathlib import Path

from capstone_dagster.local.demo import prepare
from capstone_dagster.local.stack import (
    STATE_FOLDER,
    DagsterFiles,
    enter_environment,
    local_stack,
    ready_storage,
)
from capstone_dagster.local.state import read_environment


def enter_local_stack() -> None:
    """Make this process and its children clients of the stack that runs in this checkout.

    If none runs, one is started, which stops when this process ends, however that ends.

    Raises:
        LocalStackError: it could not be started; the message says what to do.
    """
    files = DagsterFiles(Path("workspace.yaml").resolve(), Path("dagster.yaml").resolve())
    environment = read_environment(files.instance.parent / STATE_FOLDER)
    if environment is None:
        running = ExitStack()
        atexit.register(running.close)
        log = logging.getLogger("dagster").info
        stack = running.enter_context(local_stack(with_dagster=False, dagster_files=files, on_progress=log))
        prepare(stack)
        ready_storage(stack, files, log)
        environment = stack.environment
    enter_environment(environment)
