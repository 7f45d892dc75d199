"""The local stack's code server: `dagster code-server start`, which also ends when the process below it does.

That command keeps the imported code in a process of its own and replaces it when a user presses *Reload*. It
does not replace one that was killed: then this process ends, and the stack starts it again. A program of its
own; its arguments are the command's.
"""

import os
import runpy
import sys
import threading
import time

import psutil  # type: ignore[import-untyped]

_LOOK_EVERY_S = 1.0


def end_without_code(process: psutil.Process) -> None:
    """End this process when it has had a child and none is left alive.

    A reload starts the new child before it ends the old one.
    """
    had_one = False
    while True:
        time.sleep(_LOOK_EVERY_S)
        alive = any(child.status() != psutil.STATUS_ZOMBIE for child in process.children())
        if had_one and not alive:
            os._exit(1)
        had_one = alive


if __name__ == "__main__":
    threading.Thread(target=end_without_code, args=(psutil.Process(),), daemon=True).start()
    sys.argv = ["dagster", "code-server", "start", *sys.argv[1:]]
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
