"""Rules ask for series that exist, alerts have a page that helps, and each alert fires when it should, and only then.

What promtool has to be there for is run by `make check-deploy`.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import ROOT, load, rules, unknown

ALERTS = [rule for rule in rules() if "alert" in rule]
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Escalate"]
names = pytest.mark.parametrize("alert", ALERTS, ids=[rule["alert"] for rule in ALERTS])


def test_every_rule_asks_for_series_and_labels_that_there_are(catalogue: dict[str, set[str]]) -> None:
    asked = {rule.get("alert") or rule["record"]: unknown(rule["expr"], catalogue) for rule in rules()}
    assert {name: wrong for name, wrong in asked.items() if wrong} == {}


def test_a_series_that_is_nobodys_is_found(catalogue: dict[str, set[str]]) -> None:
    assert unknown('sum(rate(dispatcher_no_such_total{outcome="x"}[5m]))', catalogue) == ["dispatcher_no_such_total"]
    assert unknown('dispatcher_queue_messages{colour="red", job="x"}', catalogue) == [
        "dispatcher_queue_messages{colour}"
    ]


@names
def test_every_alert_says_how_bad_it_is_and_what_it_means(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket", "none"}
    for annotation in ("summary", "description", "runbook_url"):
        assert alert["annotations"][annotation]


@names
def test_every_alert_has_a_runbook_with_every_heading(alert: dict[str, Any]) -> None:
    page = ROOT / alert["annotations"]["runbook_url"]
    assert page.stem == alert["alert"]
    text = page.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    for heading in HEADINGS:
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert section.strip(), f"nothing under {heading}"


def test_no_runbook_is_for_an_alert_that_is_gone() -> None:
    pages = {page.stem for page in (ROOT / "docs/runbooks").glob("Dispatcher*.md")}
    assert pages == {str(alert["alert"]) for alert in ALERTS}
    index = (ROOT / "docs/runbooks/README.md").read_text()
    assert set(re.findall(r"\((Dispatcher\w+)\.md\)", index)) == pages


def test_runbooks_ask_for_series_that_there_are(catalogue: dict[str, set[str]]) -> None:
    wrong = {
        f"{page.stem}: {query}": missing
        for page in (ROOT / "docs/runbooks").glob("*.md")
        for query in re.findall(r"```promql\n(.+?)\n```", page.read_text(), re.DOTALL)
        if (missing := unknown(query, catalogue))
    }
    assert wrong == {}


def test_alerts_are_tested_with_a_case_that_fires_and_one_that_does_not() -> None:
    """promtool runs them; here only: none was forgotten."""
    fires, quiet = set[str](), set[str]()
    for case in load("deploy/prometheus/tests/alerts.test.yml")["tests"]:
        for expected in case.get("alert_rule_test", []):
            (fires if expected.get("exp_alerts") else quiet).add(expected["alertname"])
    every = {str(alert["alert"]) for alert in ALERTS}
    assert fires == every
    assert quiet == every - {"DispatcherWatchdog"}  # it always fires


@pytest.mark.parametrize("name", ["prometheus", "prometheus-ecs", "prometheus-cloudmap"])
def test_every_scrape_gives_what_the_rules_expect(name: str) -> None:
    config = load(f"deploy/prometheus/{name}.yml")
    assert config["rule_files"] == ["*.rules.yml"]
    (scrape,) = config["scrape_configs"]
    assert scrape["job_name"] == "dispatcher"
    assert "region" in {relabel.get("target_label") for relabel in scrape["relabel_configs"]}


def test_inhibitions_name_alerts_that_there_are() -> None:
    text = (ROOT / "deploy/alertmanager/alertmanager.yml").read_text()
    assert set(re.findall(r"Dispatcher\w+", text)) <= {str(alert["alert"]) for alert in ALERTS}


def test_terraforms_alarms_name_runbooks_that_there_are() -> None:
    for path in Path(ROOT / "deploy/terraform/modules").rglob("*.tf"):
        for name in re.findall(r"\bDispatcher[A-Z]\w+", path.read_text()):
            assert (ROOT / f"docs/runbooks/{name}.md").exists(), f"{path}: {name}"


def test_every_prometheus_with_alerts_knows_an_alertmanager() -> None:
    for path in (ROOT / "deploy/prometheus").glob("prometheus*.yml"):
        assert load(str(path))["alerting"]["alertmanagers"], path


def test_ecs_is_asked_for_running_tasks_by_fields_that_there_are() -> None:
    """promtool before 3.8 cannot read this file; the fields are of Prometheus's documentation."""
    (scrape,) = load("deploy/prometheus/prometheus-ecs.yml")["scrape_configs"]
    for found in scrape["aws_sd_configs"]:
        assert set(found) <= {"role", "region", "clusters", "port", "refresh_interval"}
        assert found["role"] == "ecs"
        assert found["clusters"][0].split(":")[3] == found["region"]
    kept = [relabel for relabel in scrape["relabel_configs"] if relabel.get("action") == "keep"]
    assert kept == [{"source_labels": ["__meta_ecs_last_status"], "regex": "RUNNING", "action": "keep"}]


def test_pages_go_to_the_pager_and_all_but_the_watchdog_to_somebody() -> None:
    route = load("deploy/alertmanager/alertmanager.yml")["route"]
    taken = {child["matchers"][0]: child["receiver"] for child in route["routes"]}
    assert taken == {'severity="none"': "nobody", 'severity="page"': "pager"}
    assert route["receiver"] == "tickets"
