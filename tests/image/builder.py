"""The image, built on a machine without a registry: Debian by debootstrap, the Dockerfile by buildah.

Everything that is made lies below one folder, buildah's storage too, and goes with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERVICES = "localhost/capstone:test"
WORKER = f"{SERVICES}-worker"
BASE = "localhost/capstone-base:test"
# What the official image has beyond Debian's minimum, as far as anything here needs it.
_PACKAGES = "python3,python3-venv,ca-certificates"
# Where pip's sources of packages are configured: none of it may be found in the image.
_PLACES = ("index-url", "extra-index-url", "find-links", "proxy", "trusted-host")


class ImageTestError(Exception):
    """The test cannot be made here, or found a fault; the sentence says which."""


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """A command on this machine; raises `ImageTestError` with the end of what it said."""
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, **more)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise ImageTestError(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return done


@dataclass(frozen=True)
class PipSettings:
    """This machine's pip configuration, as a file for the build, and the local folders that it points to."""

    config: str
    places: tuple[str, ...]
    folders: tuple[Path, ...]


def pip_settings() -> PipSettings:
    """Files and variables together, as pip itself joins them."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    options: dict[str, str] = {}
    # Variables come first in the list and win over the files.
    for name, value in re.findall(r"^[^.\n]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
        options.setdefault(name, value)
    config = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())
    places = tuple(place for name in _PLACES for place in options.get(name, "").split())
    local = [Path(place) for place in places if place.startswith("/")]
    # An index lists files that lie beside it.
    local += [Path(place.removeprefix("file://")).parent for place in places if place.startswith("file://")]
    certificate = [Path(options["cert"]).parent] if "cert" in options else []
    folders = tuple(dict.fromkeys(folder for folder in [*local, *certificate] if folder.is_dir()))
    return PipSettings(config, places, folders)


@dataclass(frozen=True)
class Builder:
    """buildah with a storage of its own below `folder`."""

    folder: Path
    layered: bool

    @classmethod
    def prepare(cls, folder: Path) -> Builder:
        """Raises `ImageTestError` where something is missing that this takes."""
        if os.geteuid() != 0:
            raise ImageTestError("Root was expected, because debootstrap and chroot take it; run it by sudo.")
        missing = [program for program in ("buildah", "debootstrap", "unshare") if not shutil.which(program)]
        if missing:
            raise ImageTestError(
                f"{' and '.join(missing)} are not installed; on Debian, apt-get install them."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, layered=_overlay_works(folder))

    @property
    def buildah(self) -> tuple[str, ...]:
        driver = "overlay" if self.layered else "vfs"
        storage = self.folder / "storage"
        return (
            *("buildah", "--root", str(storage), "--runroot", str(self.folder / "run")),
            *("--storage-driver", driver),
        )

    def make_base(self) -> None:
        """Debian's release of this machine with its Python, as `BASE`, unless it is there."""
        if subprocess.run([*self.buildah, "inspect", BASE], capture_output=True).returncode == 0:
            return
        release = run("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"').stdout.strip()
        system = self.folder / "base"
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, system)
        _unmount(system)
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(system / leftover, ignore_errors=True)
        container = run(*self.buildah, "from", "scratch").stdout.strip()
        run(*self.buildah, "add", container, system, "/")
        run(*self.buildah, "commit", "--rm", container, BASE)
        shutil.rmtree(system)

    def build(self, pip: PipSettings, *, model: str, sha256: str, base: str) -> None:
        """The Dockerfile as `SERVICES` and `WORKER`, by what `make image` runs."""
        config = self.folder / "pip.conf"
        config.touch(mode=0o600)
        config.write_text(pip.config)
        volumes = [f"--volume {folder}:{folder}:ro" for folder in pip.folders]
        # Copies of all layers are what the simple driver makes: one layer for each stage is enough of them.
        layers = f"--layers={str(self.layered).lower()}"
        environment = {
            "IMAGE": SERVICES,
            "BASE_IMAGE": base,
            "MODEL": model,
            "MODEL_SHA256": sha256,
            "PIP_CONFIG": str(config),
            "BUILDER": shlex.join(self.buildah),
            "BUILD_OPTIONS": " ".join(["--isolation chroot", layers, *volumes]),
        }
        with (self.folder / "build.log").open("w") as log:
            done = subprocess.run(
                [ROOT / "infra" / "image" / "build"],
                env={**os.environ, **environment, "TMPDIR": str(self.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        config.unlink()
        if done.returncode != 0:
            said = (self.folder / "build.log").read_text()[-3000:]
            raise ImageTestError(f"The image was not built:\n{said}")

    def inspect(self, image: str) -> dict[str, Any]:
        """All that buildah knows of an image: configuration, history, layers."""
        found: dict[str, Any] = json.loads(run(*self.buildah, "inspect", "--type", "image", image).stdout)
        return found

    def mount(self, image: str) -> Path:
        """An image's file system, with a layer of its own on top for what is written into it."""
        container = run(*self.buildah, "from", "--pull-never", image).stdout.strip()
        return Path(run(*self.buildah, "mount", container).stdout.strip())

    def compressed_layers(self, image: str) -> list[int]:
        """Bytes of each of its layers as a registry would keep it, compressed by gzip."""
        folder = self.folder / "pushed"
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        run(*self.buildah, "push", "--disable-compression=false", image, f"dir:{folder}", env=environment)
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = [int(layer["size"]) for layer in manifest["layers"]]
        shutil.rmtree(folder)
        return sizes

    def clear(self) -> None:
        """Everything that was made, images included."""
        subprocess.run([*self.buildah, "rm", "--all"], capture_output=True)
        subprocess.run([*self.buildah, "rmi", "--all", "--force"], capture_output=True)
        _unmount(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _unmount(folder: Path) -> None:
    """Everything below: what is deleted must not be /proc or /dev."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mounted in sorted((each for each in mounts if Path(each).is_relative_to(folder)), reverse=True):
        run("umount", mounted)


def _overlay_works(folder: Path) -> bool:
    """Layers by the kernel, which not every file system and container has; the way without copies each."""
    parts = {part: folder / f"overlay-{part}" for part in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(exist_ok=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    works = (
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["merged"])], capture_output=True
        ).returncode
        == 0
    )
    if works:
        run("umount", parts["merged"])
    for part in parts.values():
        shutil.rmtree(part)
    return works
