"""What `observability/` holds: dashboards that parse, pinned images, no passwords, loopback alone."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstone_dagster.catalog.dashboard import DASHBOARDS, OPERATIONS
from capstone_dagster.catalog.model import Graph
from capstone_dagster.catalog.render.grafana import dashboard_file, targets
from tests.catalog.open.test_rules import PROMTOOL, needs_promtool

FOLDER = Path(__file__).parents[3] / "observability"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What nothing beside Prometheus measures; `Host: CPU` and `Host: memory` stand in their place.
NOT_MEASURED = {"Database: CPU", "Web server and daemon: CPU", "Web server and daemon: memory"}


def panels() -> list[dict[str, Any]]:
    return [panel for each in DASHBOARDS for panel in json.loads(dashboard_file(each))["panels"]]


@needs_promtool
def test_every_panels_promql_parses(tmp_path: Path) -> None:
    found = [
        target["expr"]
        for panel in panels()
        if panel.get("datasource", {}).get("type") == "prometheus"
        for target in panel["targets"]
    ]
    assert len(found) > 60
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(found)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    said = subprocess.run([str(PROMTOOL), "check", "rules", file], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_dashboard_has_every_graph_that_is_measured() -> None:
    graphs = {widget.title for widget in OPERATIONS.widgets if isinstance(widget, Graph)}
    shown = {panel["title"] for panel in panels()}
    assert graphs - shown == NOT_MEASURED
    assert {"Host: CPU", "Host: memory", "Recent errors"} <= shown


def test_a_graph_keeps_its_lines_and_draws_expressions_in_place_of_their_series() -> None:
    [graph] = [
        each for each in OPERATIONS.widgets if isinstance(each, Graph) and each.title == "Error rate of runs"
    ]
    assert [label for _, label in targets(graph)] == ["failed runs of those that ended"]
    [panel] = [each for each in panels() if each["title"] == graph.title]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in steps[1:]] == sorted(line.value for line in graph.lines)


def test_panels_fill_rows_without_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & places, panel["title"]
        assert all(x < 24 for x, _ in mine)
        places |= mine


def test_dashboards_read_the_provisioned_data_sources() -> None:
    file = FOLDER / "grafana" / "provisioning" / "datasources" / "capstone.yaml"
    provisioned = {each["uid"] for each in yaml.safe_load(file.read_text())["datasources"]}
    assert {panel["datasource"]["uid"] for panel in panels() if "datasource" in panel} <= provisioned


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_are_loopback(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+}?$", service["image"]), service["image"]
    assert service["network_mode"] == "host"
    assert "ports" not in service
    told = json.dumps([service.get("command", []), service.get("environment", {})])
    if name != "loki":  # its file says it
        assert "127.0.0.1" in told
    assert "0.0.0.0" not in told
    assert not re.search(r"=:\d", told)


def test_there_are_no_default_passwords() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    secrets = re.findall(r"\$\{(GRAFANA_PASSWORD|DATA_SOURCE_NAME)(:[-?])", text)
    assert dict(secrets) == {"GRAFANA_PASSWORD": ":?", "DATA_SOURCE_NAME": ":?"}
    loki = yaml.safe_load((FOLDER / "loki.yaml").read_text())["server"]
    assert loki["http_listen_address"] == loki["grpc_listen_address"] == "127.0.0.1"


def test_prometheus_scrapes_the_addresses_at_which_services_listen() -> None:
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    addresses = {job["job_name"]: job["static_configs"][0]["targets"][0] for job in scraped}
    for name in ("node", "postgres"):
        assert f"--web.listen-address={addresses[name]}" in SERVICES[name]["command"]
    assert addresses["capstone"] == "127.0.0.1:3000"
