"""The README's pictures of the pages, and what a browser measures there.

    CAPSTONE_PICTURES=docs/pictures .venv/bin/pytest -s tests/web/test_pictures.py

Without that variable there is nothing to make.
"""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import Chrome

from capstone_dagster.local.clip import DEMO_CLIP
from capstone_dagster.local.detector import MODEL_PATH
from capstone_dagster.settings import Settings
from capstone_dagster.storage.zones import set_zones
from tests.support.waiting import wait_for
from tests.web.conftest import Pages
from tests.web.test_browse import find, playable, seek

FOLDER = os.environ.get("CAPSTONE_PICTURES")
ZONES = [
    {"name": "path", "kind": "polygon", "points": [[0.05, 0.5], [0.6, 0.5], [0.6, 0.97], [0.05, 0.97]]},
    {"name": "gate", "kind": "line", "points": [[0.7, 0.97], [0.7, 0.4]]},
]
MEASURED = """
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    const loaded = performance.getEntriesByType("resource");
    const bytes = [performance.getEntriesByType("navigation")[0], ...loaded].map((each) => each.transferSize);
    return {first_paint_ms: Math.round(paint.startTime), requests: bytes.length,
            bytes: bytes.reduce((sum, each) => sum + each, 0)};
"""


@pytest.fixture
def capstone_settings(capstone_settings: Settings) -> Settings:
    """With the model of the local stack, which knows people."""
    return capstone_settings.model_copy(update={"model": str(MODEL_PATH)})


@pytest.mark.skipif(FOLDER is None, reason="makes pictures, where CAPSTONE_PICTURES says")
def test_pictures_are_made(pages: Pages, browser: Chrome) -> None:
    pages.pipeline.services.database.transact(
        set_zones, "gate", [{**zone, "anchor": "BOTTOM_CENTER"} for zone in ZONES]
    )
    for hour in (9, 12, 14, 15):
        # Other bytes each, so that each is a video of its own.
        body = DEMO_CLIP.read_bytes() + bytes(hour)
        video = pages.pipeline.analyze(body, key=f"gate/20260122_{hour:02}2315.mp4")
    event = max(video.events, key=lambda each: each["best_score"])
    found = {}
    for name, path, size in (
        ("look-gallery", "/", (1300, 820)),
        ("look-event", f"/events/{event['event_id']}", (1300, 900)),
        ("look-zones", "/cameras/gate/zones", (1000, 900)),
        ("look-phone", "/", (400, 800)),
        ("look-phone-event", f"/events/{event['event_id']}", (400, 800)),
        ("look-video", f"/videos/{video.video_id}", (1300, 1200)),
        ("look-uploads", "/uploads", (1300, 700)),
    ):
        browser.set_window_size(*size)
        browser.get(pages.address + path)
        if find(browser, "video"):
            wait_for("the video", lambda: playable(browser))
            seek(browser, event["best_ms"])
        # What is below the window is loaded when somebody scrolls there.
        pictures = """return [...document.querySelectorAll('.card img')].every(
            (each) => each.complete || each.getBoundingClientRect().top > innerHeight)"""
        wait_for("the pictures", lambda script=pictures: browser.execute_script(script))
        painted = "return performance.getEntriesByName('first-contentful-paint').length"
        wait_for("the first paint", lambda script=painted: browser.execute_script(script))
        found[name] = browser.execute_script(MEASURED)
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        picture.save(Path(str(FOLDER)) / f"{name}.jpg", quality=80)
    print(json.dumps(found, indent=1))
