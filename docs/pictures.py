"""Makes the pictures of the README from a real run: the demo's output, and Dagster's pages in a browser.

Needs Chromium (`apt-get install chromium`). Run with `.venv/bin/python docs/pictures.py`.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from browser import Browser
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
CAPSTONE = [sys.executable, "-m", "capstone_dagster.cli"]
PORT = 3999


@dataclass(frozen=True)
class Page:
    """A page to take a picture of: what it must show first, and what is clicked then."""

    path: str
    shows: str
    clicks: tuple[str, ...] = ()
    width: int = 1400
    height: int = 760


# The name of a partition is made from bucket and key: that of the demo is always the same.
DEMO = "demo-clip-caaf8334"
PAGES = {
    "lineage": Page(
        "/assets/raw_videos?view=lineage&lineageScope=downstream&lineageDepth=5",
        "extracted_frames",
        height=720,
    ),
    "events": Page(
        f"/assets/events?view=partitions&partition={DEMO}", "published_at", ("[Show Markdown]",), height=800
    ),
    "detections": Page(
        f"/assets/detections?view=partitions&partition={DEMO}", "contact_sheet", ("[Show Markdown]",)
    ),
    "checks": Page("/assets/detections?view=checks&checkDetail=picture_visible", "Look at the picture"),
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
    told = demo.stdout.strip().replace(str(state), ".capstone").replace(str(PORT), "3000")
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(f"$ make demo\n{told}"))
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
        covered = state / "covered-lens.mp4"
        _dark_video(covered)
        subprocess.run(
            [*CAPSTONE, "submit", str(covered), "--camera", "yard", "--state", str(state)], check=True
        )
        for name, page in PAGES.items():
            browser.open(
                f"http://127.0.0.1:{PORT}{page.path}", shows=page.shows, width=page.width, height=page.height
            )
            for text in page.clicks:
                browser.click(text)
            browser.picture(PICTURES / f"{name}.png")
    finally:
        dev.terminate()
        dev.wait(60)


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
