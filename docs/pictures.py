"""Makes the pictures of the README from a real run: the demo's output, and Dagster's pages in a browser.

Needs Chromium (`apt-get install chromium`). Run with `.venv/bin/python docs/pictures.py`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
CAPSTONE = [sys.executable, "-m", "capstone_dagster.cli"]
PORT = 3999
PAGES = {
    "lineage": ("/asset-groups/capstone_dagster.definitions/videos", 1400, 720),
    "events": ("/assets/events?view=partitions&partition=demo-clip-caaf8334", 1400, 760),
}


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is needed for Dagster's pages: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="capstone-pictures-") as folder:
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


def _pages(state: Path, browser: str) -> None:
    dev = subprocess.Popen(
        [*CAPSTONE, "dev", "--state", str(state), "--port", str(PORT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert dev.stdout is not None
        for line in dev.stdout:
            if "Ctrl-C" in line:
                break
        for name, (path, width, height) in PAGES.items():
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [
                        browser,
                        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run"),
                        *("--disable-background-networking", "--disable-component-update"),
                        f"--user-data-dir={profile}",
                        f"--window-size={width},{height}",
                        "--virtual-time-budget=20000",
                        f"--screenshot={PICTURES / name}.png",
                        f"http://127.0.0.1:{PORT}{path}",
                    ],
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
    finally:
        dev.terminate()
        dev.wait(60)


if __name__ == "__main__":
    main()
