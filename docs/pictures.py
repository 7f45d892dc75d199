"""Makes the pictures of the README from a real run: the demo's output, and Dagster's pages in a browser.

Needs Chromium (`apt-get install chromium`). Run with `.venv/bin/python docs/pictures.py`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from browser import Browser
from rich.console import Console
from rich.text import Text

from capstone_dagster.local.clip import DEMO_CLIP

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
CAPSTONE = [sys.executable, "-m", "capstone_dagster.cli"]
PORT = 3999
# Some seconds for each video; on a machine that is busy with others it was minutes.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Page:
    """A page to take a picture of: what it must show first, and what is clicked then."""

    path: str
    shows: str
    clicks: tuple[str, ...] = ()
    width: int = 1400
    height: int = 760


# The name of a partition is made from bucket and key: these are always the same.
DEMO = "demo-clip-caaf8334"
CUT_OFF = "cut-off-61331322"
# Of videos that could all be analysed. A run that fails fails the checks that it never came to, and Dagster's
# summaries show the latest of each.
WELL = {
    "lineage": Page(
        "/assets/raw_videos?view=lineage&lineageScope=downstream&lineageDepth=5",
        "extracted_frames",
        height=720,
    ),
    "events": Page(
        f"/assets/events?view=partitions&partition={DEMO}", "published_at", ("[Show Markdown]",), height=860
    ),
    "detections": Page(
        f"/assets/detections?view=partitions&partition={DEMO}", "contact_sheet", ("[Show Markdown]",)
    ),
    "plots": Page("/assets/detections?view=overview", "detections_per_minute", ("Plots",), height=1500),
    "checks": Page("/assets/detections?view=checks&checkDetail=picture_visible", "Look at the picture"),
}
# With one among them that could not.
FAILED = {
    # Its address ends with the backfill's id. It comes to rest once the backfill is over.
    "backfill": Page("/runs/b/", "100% completed", height=560),
    "failed": Page("/assets/detections?view=events", CUT_OFF, (CUT_OFF,), height=660),
}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="capstone-pictures-") as folder, Browser() as browser:
        state = Path(folder) / "state"
        _terminal(state)
        _pages(state, browser)


def _terminal(state: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "100"}
    command = [*CAPSTONE, "demo", "--state", str(state), "--port", str(PORT)]
    demo = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    printed = demo.stdout.strip().replace(str(state), ".capstone").replace(str(PORT), "3000")
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(f"$ make demo\n{printed}"))
    picture = console.export_svg(title="make demo")
    # The viewer's own monospaced font will do; none is fetched from elsewhere for a picture.
    (PICTURES / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL))


def _pages(state: Path, browser: Browser) -> None:
    dev = subprocess.Popen(
        [*CAPSTONE, "dev", "--state", str(state), "--port", str(PORT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert dev.stdout is not None
        for line in dev.stdout:
            if "Ctrl-C" in line:
                break
        covered, cut_off, evening = _videos(state)
        # The last one that was judged is what the page of a check shows.
        _submit(state, evening, camera="gate")
        _submit(state, covered, camera="yard")
        for name, page in WELL.items():
            _take(browser, name, page)
        _submit(state, cut_off, camera="gate")
        backfill = str(_answer(state, "reanalyze", "--all", "--force")["backfill_id"])
        for name, page in FAILED.items():
            _take(browser, name, page, backfill if name == "backfill" else "")
    finally:
        dev.terminate()
        dev.wait(60)


def _take(browser: Browser, name: str, page: Page, address_ends: str = "") -> None:
    address = f"http://127.0.0.1:{PORT}{page.path}{address_ends}"
    browser.open(address, shows=page.shows, width=page.width, height=page.height)
    for text in page.clicks:
        browser.click(text)
    browser.picture(PICTURES / f"{name}.png")


def _videos(state: Path) -> tuple[Path, Path, Path]:
    """A video that is judged bad, one that is cut off, and the demo's once more, in other bytes."""
    covered, cut_off, evening = (state / f"{name}.mp4" for name in ("covered-lens", "cut-off", "evening"))
    _dark_video(covered)
    cut_off.write_bytes(DEMO_CLIP.read_bytes()[:1000])
    evening.write_bytes(DEMO_CLIP.read_bytes() + bytes(1))
    return covered, cut_off, evening


def _submit(state: Path, video: Path, *, camera: str) -> None:
    """Upload it, and wait until it is done or has failed."""
    options = ["--camera", camera, "--state", str(state)]
    subprocess.run([*CAPSTONE, "submit", str(video), *options], check=True)
    deadline = time.monotonic() + PATIENCE_S
    while (states := {row["state"] for row in _answer(state, "status")}) - {"done", "failed"}:
        if time.monotonic() > deadline:
            raise SystemExit(f"All videos were expected to be analysed by now, found {', '.join(states)}.")
        time.sleep(2)


def _answer(state: Path, *command: str) -> Any:
    answer = subprocess.run(
        [*CAPSTONE, *command, "--json", "--state", str(state)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def _dark_video(path: Path) -> None:
    """Twelve seconds of what a camera sees whose lens is covered."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        chance = np.random.default_rng(1)
        for _ in range(120):
            noise = chance.integers(0, 8, (360, 640, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="bgr24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
