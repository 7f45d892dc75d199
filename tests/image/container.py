"""A command in the image's file system, as a container runtime would start it: process 1, the image's user,
environment and directory, its root read-only if asked. Only the network is this machine's.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Run by sh in namespaces of its own, which take these mounts with them when they end; $2 is `ro` or `rw`.
_ENTER = r"""
root=$1 mode=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
for file in hosts resolv.conf; do touch "$root/etc/$file"; mount --bind "/etc/$file" "$root/etc/$file"; done
if [ "$mode" = ro ]; then
  mount -o remount,bind,ro "$root"
  mount -t tmpfs tmpfs "$root/tmp"
fi
exec /usr/sbin/chroot --userspec="$user" "$root" \
  /usr/bin/env -C "$WORKING_DIRECTORY" -u WORKING_DIRECTORY "$@"
"""
_PATIENCE_S = 30


@dataclass(frozen=True)
class Image:
    """A mounted image and how it says that it is run."""

    root: Path
    user: str
    directory: str
    environment: Mapping[str, str]
    health: tuple[str, ...]
    command: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, inspected: Mapping[str, Any]) -> Image:
        """From what `buildah inspect` answers."""
        config = inspected["Docker"]["config"]
        kind, *health = config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return cls(
            root=root,
            user=config["User"],
            directory=config["WorkingDir"],
            environment=dict(entry.split("=", 1) for entry in config["Env"]),
            health=tuple(health),
            command=tuple(config["Cmd"]),
        )

    def run(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        read_only: bool = False,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """A container that runs a command to its end."""
        words, variables = self._start(command, environment or {}, read_only=read_only)
        return subprocess.run(words, env=variables, text=True, capture_output=True, timeout=timeout_s)

    @contextmanager
    def service(self, *command: str, environment: Mapping[str, str], log: Path) -> Iterator[Service]:
        """A container that runs a command for the length of the block."""
        words, variables = self._start(command, environment, read_only=False)
        with log.open("w") as output:
            process = psutil.Popen(words, env=variables, stdout=output, stderr=subprocess.STDOUT)
        service = Service(self, process, log)
        try:
            yield service
        finally:
            if process.poll() is None:
                process.kill()  # and its child, process 1, and with that everything in there
            process.wait(timeout=_PATIENCE_S)

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], *, read_only: bool
    ) -> tuple[list[str], dict[str, str]]:
        enter = ["/bin/sh", "-ec", _ENTER, "enter", str(self.root)]
        words = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", *enter]
        words += ["ro" if read_only else "rw", self.user, *command]
        return words, {**self.environment, **environment, "WORKING_DIRECTORY": self.directory}


@dataclass(frozen=True)
class Service:
    """A running container."""

    image: Image
    process: psutil.Popen
    log: Path

    def healthy(self) -> bool:
        """What the image's own health check says, run inside as a container runtime does."""
        first = self._first()
        if first is None:
            return False
        user, group = self.image.user.split(":")
        entered = ["/usr/bin/nsenter", "--target", str(first.pid), "--mount", "--pid", "--root", "--wd"]
        entered += ["--setuid", user, "--setgid", group, "/usr/bin/env", *self.image.health]
        return subprocess.run(entered, env=first.environ(), capture_output=True).returncode == 0

    def stop(self) -> float | None:
        """Asks it to end as a container runtime does; the seconds it took, None if it did not."""
        first = self._first()
        assert first is not None
        asked = time.monotonic()
        first.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=_PATIENCE_S)
        except psutil.TimeoutExpired:
            return None
        return time.monotonic() - asked

    def _first(self) -> psutil.Process | None:
        """Process 1 of the container, once it runs the command."""
        if self.process.poll() is not None:
            raise AssertionError(f"It ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
        children = self.process.children()
        return children[0] if children and children[0].name() != "sh" else None
