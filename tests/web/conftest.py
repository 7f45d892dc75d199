"""The pages on a loopback port over a real event store and S3, and one browser that looks at them."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn

from capstone_dagster.clients import signing_client
from capstone_dagster.local.aws import ministack_server
from capstone_dagster.local.processes import free_port
from capstone_dagster.storage.database import Database
from capstone_dagster.testing import Pipeline
from capstone_dagster.web.application import create_app
from capstone_dagster.web.site import Site
from tests.support.waiting import wait_for

pytest.importorskip("selenium", reason="needs the extra dev: selenium")
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


@pytest.fixture(scope="module")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One emulator will do: it answers browsers' preflights, as S3 does."""
    with ministack_server(tmp_path_factory.mktemp("aws")) as emulator:
        yield emulator.endpoint_url


@pytest.fixture
def aws_reset_path() -> str:
    return "/_ministack/reset"


@dataclass(frozen=True)
class Pages:
    """A running server of the pages.

    Attributes:
        pipeline: uploads and analyses what they show.
    """

    address: str
    site: Site
    pipeline: Pipeline


@contextmanager
def serving(site: Site) -> Iterator[str]:
    """Serve the pages on a free port of loopback; their address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(site), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for("the pages to be served", lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    site.database.close()


@pytest.fixture
def pages(pipeline: Pipeline, database: Database) -> Iterator[Pages]:
    services = pipeline.services
    url = database.engine.url.render_as_string(hide_password=False)
    site = Site(services.settings, Database(url, reader=True), services.objects, signing_client())
    with serving(site) as address:
        yield Pages(address, site, pipeline)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """A real Chromium, for all tests of a file."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-proxy-server"):
        options.add_argument(f"--{argument}")
    options.add_argument("--autoplay-policy=no-user-gesture-required")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, Service(driver)) as chrome:
        yield chrome
