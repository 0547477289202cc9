"""Where the files are, and which series the code has."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from promql_parser import Expr, VectorSelector, parse, walk

from dispatcher.model import Policy, Region
from dispatcher.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
OF_THE_SCRAPER = {"job", "instance", "region"}
PROMETHEUS_OWN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def rules() -> list[dict[str, Any]]:
    """Every recording rule and alert."""
    paths = sorted((ROOT / "deploy/prometheus").glob("*.rules.yml"))
    return [rule for path in paths for group in load(str(path))["groups"] for rule in group["rules"]]


@pytest.fixture(scope="session")
def catalogue() -> dict[str, set[str]]:
    """Every series that a dispatcher may have, with its labels; histograms by the names that they are stored under."""
    registry = CollectorRegistry()
    regions = [Region("us-east-1"), Region("eu-west-1")]
    metrics = Metrics(
        registry, home=regions[0], regions=regions, policy=Policy.PROJECTED_WAIT, version="1", revision="1",
        in_flight_limit=1,
    )  # fmt: skip
    metrics.of_call("sqs", "send_message_batch", regions[0])
    metrics.of_call("dynamodb", "put_item", regions[0])
    ProcessCollector(registry=registry)
    series: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    recorded = {rule["record"]: labels_of(rule["expr"]) for rule in rules() if "record" in rule}
    return series | recorded | PROMETHEUS_OWN


def labels_of(expression: str) -> set[str]:
    """The labels that a recorded expression keeps: what it aggregates by."""
    by = re.search(r"by \(([\w, ]+)\)", expression)
    return {label.strip() for label in by[1].split(",")} - {"le"} if by else set()


def selectors(expression: str) -> list[VectorSelector]:
    """Every selector in an expression; raises ValueError if it is no PromQL."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    walk(parse(expression), visit)
    return found


def unknown(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What an expression asks for that nobody has: series, or labels of a series."""
    wrong = []
    for selector in selectors(expression):
        name = selector.name or ""
        labels = {matcher.name for matcher in selector.matchers.matchers}
        if name not in known:
            wrong.append(name)
        else:
            wrong += [f"{name}{{{label}}}" for label in labels - known[name] - OF_THE_SCRAPER]
    return wrong
