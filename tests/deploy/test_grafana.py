"""Dashboards: as generated, each panel with unit and description, each query PromQL over series that exist.

`make e2e-prometheus` runs every query against a real Prometheus.
"""

import json
import runpy
from typing import Any

import pytest

from tests.deploy.conftest import ROOT, load, selectors, unknown

FOLDER = ROOT / "deploy/grafana/dashboards"
PAGES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
UNITS = {"bool_yes_no", "bytes", "none", "percentunit", "reqps", "s", "short"}  # of Grafana's own
pages = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def plain(expression: str) -> str:
    """The expression with Grafana's variables replaced."""
    for variable, value in {
        "$__rate_interval": "1m",
        "$job": "dispatcher",
        "$region": ".+",
        "$target_region": ".+",
    }.items():
        expression = expression.replace(variable, value)
    return expression


def queries(page: dict[str, Any]) -> list[str]:
    of_panels = [target["expr"] for panel in page["panels"] for target in panel["targets"]]
    return [plain(q) for q in (*of_panels, *(a["expr"] for a in page["annotations"]["list"]))]


def test_there_are_the_five_pages() -> None:
    assert set(PAGES) == {"overview", "flow", "regions", "ledger", "process"}
    assert len({page["uid"] for page in PAGES.values()}) == 5


def test_the_files_are_what_the_generator_writes() -> None:
    expected = runpy.run_path(str(ROOT / "deploy/grafana/generate.py"))["files"]()
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert found == expected, "run: python deploy/grafana/generate.py"


@pages
def test_every_panel_says_what_it_shows_and_in_which_unit(page: dict[str, Any]) -> None:
    assert page["editable"] is False
    panels = page["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["legendFormat"] for target in panel["targets"])


@pages
def test_units_are_those_of_the_series(page: dict[str, Any]) -> None:
    of_names = {"_seconds": "s", "_bytes": "bytes", "_ratio": "percentunit"}
    for panel in page["panels"]:
        for target in panel["targets"]:
            expression = plain(target["expr"])
            names = {str(found.name).removesuffix("_bucket") for found in selectors(expression)}
            units = {unit for name in names for end, unit in of_names.items() if name.endswith(end)}
            if " / " in expression or expression.startswith("rate(process_cpu"):
                units = {"percentunit", "none"} & {panel["fieldConfig"]["defaults"]["unit"]}
                assert units, panel["title"]
            if units:
                assert panel["fieldConfig"]["defaults"]["unit"] in units, panel["title"]


@pages
def test_what_is_told_by_colour_alone_has_colours_of_its_own(page: dict[str, Any]) -> None:
    for panel in page["panels"]:
        if panel["type"] in ("state-timeline", "stat"):
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["color"] == {"mode": "thresholds"}
            if panel["type"] == "state-timeline":
                steps = {step["value"]: step["color"] for step in defaults["thresholds"]["steps"]}
                assert set(steps) == {None, 1}
                assert (steps[1] == "green") == ("eligible" in panel["targets"][0]["expr"]), panel["title"]


@pages
def test_no_two_panels_lie_over_each_other(page: dict[str, Any]) -> None:
    taken = set[tuple[int, int]]()
    for panel in page["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pages
def test_every_query_asks_for_series_and_labels_that_there_are(
    page: dict[str, Any], catalogue: dict[str, set[str]]
) -> None:
    assert {query: wrong for query in queries(page) if (wrong := unknown(query, catalogue))} == {}


@pages
def test_no_query_sums_depths_that_every_task_reports(page: dict[str, Any]) -> None:
    for query in queries(page):
        assert not query.startswith("sum(dispatcher_queue_messages"), query
        assert "sum by (queue" not in query, query


def test_compose_shows_them_from_the_folder_where_they_are() -> None:
    volumes = load("docker-compose.yml")["services"]["grafana"]["volumes"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in volumes)
    (provider,) = load("deploy/grafana/provisioning/dashboards/dispatcher.yml")["providers"]
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["uid"] == "prometheus"  # the dashboards' default
