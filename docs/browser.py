"""A headless Chromium that clicks like a person, for pictures of pages: no more of its protocol than that."""

import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from PIL import Image
from websockets.sync.client import connect

# Pages load in a second or two; on a machine that is busy with others it was minutes.
_PATIENCE_S = 300.0
# A page that lost an answer of a busy server waits for it for ever: it is opened anew.
_RELOAD_AFTER_S = 60.0


class Browser:
    """One page of one browser.

    Raises:
        SystemExit: there is no Chromium.
        TimeoutError: a page does not show what it should.
    """

    def __init__(self) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            raise SystemExit("Chromium is needed for Dagster's pages: apt-get install chromium")
        self._profile = tempfile.mkdtemp(prefix="capstone-browser-")
        self._calls = 0
        self._process = subprocess.Popen(
            [
                program,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"),
                *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
                *("--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={self._profile}"),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = (line for line in self._process.stderr if "DevTools listening on" in line)
        address = next((line.split("ws://")[1].split("/")[0] for line in said), None)
        if address is None:
            raise SystemExit("Chromium ended before it could be spoken to.")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pages = json.load(opener.open(f"http://{address}/json", timeout=_PATIENCE_S))
        [page] = [page for page in pages if page["type"] == "page"][:1]
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        self._call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(_PATIENCE_S)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str, *, shows: str, width: int, height: int) -> None:
        """Open a page and wait until it shows a text."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)
        script = f"document.body && document.body.innerText.includes({json.dumps(shows)})"
        self._wait(script, shows, reload=True)

    def click(self, text: str) -> None:
        """Click the first thing that has this text and no other."""
        script = f"""(() => {{
            const found = [...document.querySelectorAll('a, button, span, div')]
                .find(each => each.innerText?.trim() === {json.dumps(text)} && !each.children.length);
            found?.click();
            return Boolean(found);
        }})()"""
        self._wait(script, text)

    def picture(self, path: Path) -> None:
        """Write what is seen as a PNG, once nothing moves any more, as what turns while it loads does."""
        deadline = time.monotonic() + _PATIENCE_S
        before = b""
        while True:
            time.sleep(0.5)
            seen = base64.b64decode(self._call("Page.captureScreenshot")["data"])
            if seen == before:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page was expected to come to rest before {path.name} is made.")
            before = seen
        # 256 colours are enough for a page, also with photographs on it, and take a third of the bytes.
        with Image.open(io.BytesIO(seen)) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)

    def _wait(self, script: str, text: str, *, reload: bool = False) -> None:
        began = opened = time.monotonic()
        while not self._evaluate(script):
            now = time.monotonic()
            if now > began + _PATIENCE_S:
                raise TimeoutError(f"The page was expected to show {text!r}.")
            if reload and now > opened + _RELOAD_AFTER_S:
                self._call("Page.reload")
                opened = now
            time.sleep(0.3)

    def _evaluate(self, script: str) -> Any:
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=_PATIENCE_S))
            if answer.get("id") == self._calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
