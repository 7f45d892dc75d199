"""People look at events in a browser: a real Chromium, real PostgreSQL and S3, no daemon."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By

from capstone_dagster.commands.zones import read_zones
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.zones import set_zones
from capstone_dagster.testing import Analyzed, MakeClip, SquareDetector
from tests.support.waiting import wait_for
from tests.web.conftest import Pages

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
HOSTILE = "<img src=x onerror=alert(1)>"


def find(browser: Chrome, selector: str) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def playable(browser: Chrome) -> bool:
    return bool(browser.execute_script("return document.querySelector('video').readyState > 1"))


def seek(browser: Chrome, ms: int) -> None:
    """Show the frame of a time, and wait until it is there with its boxes."""
    browser.execute_script(f"document.querySelector('video').currentTime = {(ms + 1) / 1000}")
    shown = "const v = document.querySelector('video'); return !v.seeking && v.readyState >= 2"
    wait_for(f"the frame at {ms} ms", lambda: browser.execute_script(shown))


def drawn(browser: Chrome) -> list[float] | None:
    """Left, right and bottom of what is drawn over the video, as shares of it; None while nothing is."""
    found: list[float] | None = browser.execute_script("""
        const canvas = document.querySelector('canvas');
        const { width, height } = canvas;
        if (!width || !height) return null;
        const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
        let [left, right, bottom] = [1, 0, 0];
        for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
            if (data[4 * (y * width + x) + 3] < 128) continue;
            left = Math.min(left, x / width);
            right = Math.max(right, x / width);
            bottom = Math.max(bottom, y / height);
        }
        return right ? [left, right, bottom] : null;
    """)
    return found


def assert_accessible(browser: Chrome) -> None:
    browser.execute_script(AXE)
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []


def console(browser: Chrome) -> list[Mapping[str, Any]]:
    """What the browser complained about."""
    return [each for each in browser.get_log("browser") if each["level"] == "SEVERE"]


def test_an_event_is_found_and_played_with_its_box_where_the_person_is(
    pages: Pages, analyzed: Analyzed, browser: Chrome
) -> None:
    browser.set_window_size(700, 1000)  # narrow: the picture fills the player
    browser.get(pages.address)
    picture = "return document.querySelector('.card img').naturalWidth"
    wait_for("the picture", lambda: browser.execute_script(picture))
    assert_accessible(browser)

    find(browser, ".card")[0].click()
    wait_for("the video", lambda: playable(browser))
    assert_accessible(browser)
    for ms in (1600, 3200):
        seek(browser, ms)
        # The square is at 10 + a pixel for each frame since second 1, and 40 pixels wide.
        left = 10 + (ms - 1000) / 40
        expected = [left / 192, (left + 40) / 192, 120 / 128]

        def near(expected: list[float] = expected) -> bool:
            found = drawn(browser)
            # The label above the box may be wider than the box.
            return found is not None and all(
                abs(a - b) < 0.04
                for a, b in zip([found[0], found[2]], [expected[0], expected[2]], strict=True)
            )

        wait_for(f"the box at {expected}, found {drawn(browser)}", near, 15)
    assert console(browser) == []


def test_stepping_goes_from_frame_to_frame_and_slow_is_slow(
    pages: Pages, analyzed: Analyzed, browser: Chrome
) -> None:
    browser.get(f"{pages.address}/events/{analyzed.events[0]['event_id']}")
    wait_for("the video", lambda: playable(browser))
    seek(browser, 2000)
    wait_for("the boxes, with the times of frames", lambda: drawn(browser))
    now = "return Math.floor(document.querySelector('video').currentTime * 1000)"

    find(browser, "[data-do=forward]")[0].click()
    wait_for("the next frame", lambda: browser.execute_script(now) // 40 == 51)
    find(browser, "body")[0].send_keys(",,")
    wait_for("the frame before", lambda: browser.execute_script(now) // 40 == 49)
    find(browser, "[data-do=slow]")[0].click()
    assert browser.execute_script("return document.querySelector('video').playbackRate") == 0.25


def test_a_video_has_lanes_to_jump_by_and_downloads(
    pages: Pages, analyzed: Analyzed, browser: Chrome
) -> None:
    browser.get(f"{pages.address}/videos/{analyzed.video_id}")
    wait_for("the video", lambda: playable(browser))
    assert_accessible(browser)
    find(browser, "[data-seek] rect")[0].click()
    place = "return document.querySelector('video').currentTime * 1000"
    start_ms = analyzed.events[0]["start_ms"]
    wait_for("the jump", lambda: browser.execute_script(place) >= start_ms)

    fetch = "return await (await fetch(arguments[0])).text()"
    links = [link.get_attribute("href") for link in find(browser, "a[download]")]
    csv, _, coco, mot = (browser.execute_script(fetch, link) for link in links)
    assert analyzed.events[0]["event_id"] in csv
    assert len(json.loads(coco)["annotations"]) == len(mot.splitlines()) == analyzed.analysis["detections"]


def test_an_earlier_analysis_is_compared_with_the_current_one(
    pages: Pages, analyzed: Analyzed, browser: Chrome
) -> None:
    assert pages.pipeline.run(analyzed.upload, sample_fps=1).success
    browser.get(f"{pages.address}/videos/{analyzed.video_id}")
    find(browser, "a[href*=compare]")[0].click()
    assert [cell.text for cell in find(browser, "tbody td:nth-child(4)")] == [
        "5 frames/s, score ≥ 0.25",
        "1 frames/s, score ≥ 0.25",
    ]
    # The same presence, or the same shifted by what a frame a second misses.
    moved = find(browser, ".pairs li")
    same = int(find(browser, "main > p:last-child")[0].text.split(":")[1])
    assert len(moved) + same == len(analyzed.events) == 1
    assert_accessible(browser)


def test_zones_are_drawn_on_a_frame_and_the_next_events_are_in_them(
    pages: Pages, analyzed: Analyzed, browser: Chrome, tmp_path: Path
) -> None:
    browser.set_window_size(700, 1000)  # the whole picture is in view, from which offsets are counted
    browser.get(f"{pages.address}/videos/{analyzed.video_id}")
    find(browser, "a[href$='/zones']")[0].click()
    wait_for("the video", lambda: playable(browser))
    assert_accessible(browser)
    picture = find(browser, ".draw svg")[0]

    def click(x: float, y: float) -> None:
        width, height = picture.size["width"], picture.size["height"]
        place = ActionChains(browser).move_to_element_with_offset(
            picture, round((x - 0.5) * width), round((y - 0.5) * height)
        )
        place.click().perform()

    find(browser, "[name=name]")[0].send_keys("<b>문</b>")
    find(browser, "[data-draw=polygon]")[0].click()
    for x, y in ((0.02, 0.5), (0.98, 0.5), (0.98, 0.98), (0.02, 0.98)):
        click(x, y)
    wait_for("the corners", find(browser, "[data-done]")[0].is_displayed)
    find(browser, "[data-done]")[0].click()
    find(browser, "[data-draw=line]")[0].click()
    for x, y in ((0.3, 0.98), (0.3, 0.3)):  # upwards: to the right is out
        click(x, y)
    text = find(browser, "textarea")[0].get_attribute("value")
    area, line = read_zones(text)
    assert (area["name"], area["kind"], line["name"], line["kind"]) == (
        "<b>문</b>",
        "polygon",
        "line",
        "line",
    )
    corners = [each for point in area["points"] for each in point]
    assert corners == pytest.approx([0.02, 0.5, 0.98, 0.5, 0.98, 0.98, 0.02, 0.98], abs=0.01)
    assert_accessible(browser)
    find(browser, "textarea")[0].send_keys("x")
    assert find(browser, "[data-wrong]")[0].is_displayed()
    assert console(browser) == []

    pages.pipeline.services.database.transact(set_zones, analyzed.upload.camera, [area, line])
    assert pages.pipeline.run(analyzed.upload).success
    browser.get(f"{pages.address}/videos/{analyzed.video_id}")
    [found] = pages.pipeline.services.database.transact(current_events, analyzed.video_id)
    [visit], [crossing] = found["zones"], found["crossings"]
    assert (visit["zone"], visit["entered_ms"]) == ("<b>문</b>", found["start_ms"])
    # The square's lower middle, at 30 + a pixel for each frame since second 1, is at 0.3 of 192 pixels.
    assert crossing["direction"] == "out"
    assert abs(crossing["at_ms"] - (1000 + 40 * (0.3 * 192 - 30))) <= 200
    browser.get(f"{pages.address}/events/{found['event_id']}")
    assert "<b>문</b>" in find(browser, ".facts")[0].text
    assert_accessible(browser)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_name_that_looks_like_markup_stays_a_name_at_phone_width(
    pages: Pages, make_clip: MakeClip, stand_in_detector: SquareDetector, browser: Chrome, language: str
) -> None:
    clip = make_clip("a.mp4", range(0, 2000, 40), lambda frame: [("person", 10, 24, 50, 120)])
    video = pages.pipeline.analyze(clip, key=f"gate/{HOSTILE}.mp4", camera=HOSTILE)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Accept-Language": language}})
    phone = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    dark = [{"name": "prefers-color-scheme", "value": "dark" if language == "ko" else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        for path in ("/", f"/events/{video.events[0]['event_id']}", f"/videos/{video.video_id}", "/uploads"):
            browser.get(pages.address + path)
            assert find(browser, "html")[0].get_attribute("lang") == language
            assert find(browser, "img[src=x]") == []
            assert HOSTILE in browser.page_source.replace("&lt;", "<").replace("&gt;", ">")
            width = "return document.documentElement.scrollWidth"
            assert browser.execute_script(width) <= 375, path
            assert_accessible(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {}})


def drop(browser: Chrome, file: Path) -> None:
    """Drop a file onto the page: what a hand does with a mouse, by the events that the page then gets."""
    browser.execute_script(
        """
        const file = new File([Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0))], arguments[1]);
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(file);
        for (const kind of ["dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true }));
        """,
        base64.b64encode(file.read_bytes()).decode(),
        file.name,
    )


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_file_is_uploaded_past_the_server_and_followed_to_its_events(
    pages: Pages, make_clip: MakeClip, stand_in_detector: SquareDetector, browser: Chrome, way: str
) -> None:
    clip = make_clip("문.mp4", range(0, 2000, 40), lambda frame: [("person", 10, 24, 50, 120)])
    browser.get(f"{pages.address}/uploads")
    console(browser)  # of pages of earlier tests, whose servers have stopped
    find(browser, "[name=camera]")[0].send_keys("현관")
    if way == "chosen":
        find(browser, "[type=file]")[0].send_keys(str(clip))
    else:
        drop(browser, clip)
    s3, bucket = pages.pipeline.aws.client("s3"), pages.pipeline.aws.resources.raw_bucket
    key = f"현관/{clip.name}"
    wait_for(
        "the object", lambda: key in [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    )
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == clip.read_bytes()

    pages.pipeline.analyze(clip, key=key)  # as intake does, with a daemon
    link = wait_for(
        "the link to its events",
        lambda: next((a for a in find(browser, ".followed a") if a.is_displayed()), None),
    )
    link.click()
    wait_for("the lanes", lambda: find(browser, "[data-seek]"))
    assert console(browser) == []
