"""`python -m tests.image`: builds both images without a registry, works in them, and says what they weigh.

An image's commands run in its own file system, as its user; PostgreSQL and AWS are the local stack's, on
this machine's loopback. There is no GPU, no registry and no ECS in it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.stack import local_stack
from tests.image.builder import BASE, SERVICES, WORKER, Builder, ImageTestError, PipSettings, pip_settings
from tests.image.checks import Inside, nothing_of_the_builder
from tests.image.container import Image
from tests.image.report import Figures, sizes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Not /tmp, which is memory on many machines: this takes some 30 GB.
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="in which to build")
    parser.add_argument("--keep", action="store_true", help="leave what was built there, for the next time")
    parser.add_argument("--base", default="", help="BASE_IMAGE; made by debootstrap where none is named")
    parser.add_argument("--model", default="", help="MODEL, a .pt file to bake in")
    parser.add_argument("--record", action="store_true", help="write the figures into bench/RESULTS.md")
    asked = parser.parse_args()
    if asked.keep:
        folder = asked.folder.resolve() / "capstone-image"
    else:
        folder = Path(tempfile.mkdtemp(prefix="capstone-image-", dir=asked.folder)).resolve()
    try:
        builder = Builder.prepare(folder)
        figures = test(builder, base=asked.base, model=asked.model)
    except ImageTestError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if not asked.keep:
            Builder(folder, layered=True).clear()
    print(f"\n{figures.shown()}")
    if asked.record:
        figures.record()
    return 0


def test(builder: Builder, *, base: str, model: str) -> Figures:
    """Everything in turn; raises `ImageTestError` at the first fault."""
    figures = Figures()
    pip = pip_settings()
    if not base:
        with step("Debian by debootstrap"):
            builder.make_base()
    with step("The Dockerfile by buildah"):
        sha256 = hashlib.sha256(Path(model).read_bytes()).hexdigest() if model else ""
        builder.build(pip, model=model, sha256=sha256, base=base or BASE)
    services, worker = _opened(builder, SERVICES, pip), _opened(builder, WORKER, pip)
    if any(services.root.glob("opt/venv/lib/python3*/site-packages/torch")):
        raise ImageTestError("The image for webserver and daemon holds PyTorch, which neither needs.")
    figures.parts = {"services": sizes(services.root), "worker": sizes(worker.root)}
    with (
        step("The stack of this machine beside them"),
        tempfile.TemporaryDirectory(prefix="capstone-stack-", dir="/var/tmp") as state,
    ):
        os.chmod(state, 0o755)  # PostgreSQL runs as a user of its own
        with local_stack(Path(state), with_dagster=False) as stack:
            for image in (services, worker):
                shutil.copy(DEMO_CLIP, image.root / "home/capstone/clip.mp4")
            inside = Inside(services, stack)
            with step("Databases made ready"):
                inside.prepare()
            with step("The webserver and its health"):
                figures.webserver = inside.webserver()
            with step("The daemon, its health, and an upload's way to events"):
                figures.daemon = inside.daemon()
            inside = Inside(worker, stack)
            with step("The worker's user, and what it may write"):
                inside.user()
            with step("Bytecode that is used as it is"):
                inside.bytecode()
            with step("Starts, from a cold disk and again"):
                figures.starts = inside.starts()
            with step("capstone doctor"):
                figures.doctor = inside.doctor()
            with step("capstone analyze"):
                figures.analysis = inside.analyze()
            with step("An analysis by PyTorch"):
                inside.pytorch()
            with step("capstone analyze, nothing writable but /tmp"):
                inside.analyze(read_only=True)
            with step("The model, compiled before and not"):
                figures.model = inside.model_load()
    with step("Compressed as a registry would keep them"):
        figures.layers = {name: builder.compressed_layers(name) for name in (SERVICES, WORKER)}
    return figures


def _opened(builder: Builder, name: str, pip: PipSettings) -> Image:
    inspected = builder.inspect(name)
    image = Image.of(builder.mount(name), inspected)
    with step(f"What is in {name}, and what is not"):
        nothing_of_the_builder(image, inspected, pip)
    return image


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    print(f"{what} …", flush=True)
    started = time.monotonic()
    yield
    print(f"  ok, {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
