"""docker-compose.yml, really started: it becomes healthy, dispatches, is watched, and goes down in order.

`make compose` says by COMPOSE and LEFT_OUT how.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from e2e.test_image import until
from tests.deploy.conftest import ROOT, load, rules

COMPOSE = shlex.split(os.environ.get("COMPOSE", ""))
LEFT_OUT = set(os.environ.get("LEFT_OUT", "").split())
pytestmark = pytest.mark.skipif(not COMPOSE, reason="NOT RUN: 'make compose' starts it and runs this")
SERVICES = set(load("docker-compose.yml")["services"]) - LEFT_OUT
PROMETHEUS = "http://127.0.0.1:9090"


def compose(*arguments: str, within: float = 300) -> str:
    argv = [*COMPOSE, "--profile", "demo", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=within, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr[-3000:]}{done.stdout[-1000:]}"
    return done.stdout


def containers() -> list[dict[str, Any]]:
    return [json.loads(line) for line in compose("ps", "--all", "--format", "json").splitlines()]


def get(path: str, **parameters: str) -> Any:
    with urlopen(f"{PROMETHEUS}{path}?{urlencode(parameters)}", timeout=5) as answer:
        return json.load(answer)["data"]


def asked(expression: str) -> float:
    """The one value of a query; 0 for none yet."""
    result: list[Mapping[str, Any]] = get("/api/v1/query", query=expression)["result"]
    return float(result[0]["value"][1]) if result else 0.0


@pytest.fixture(scope="module", autouse=True)
def up() -> Iterator[None]:
    compose("down", "--timeout", "5")
    try:
        # init ends, and `--wait` takes an ended container for a failed one in some versions: it is waited for below
        compose("up", "--wait", "--no-build", *sorted(SERVICES))
        yield
    finally:
        compose("down", "--timeout", "5")


@pytest.mark.timeout(600)
def test_the_whole_of_it() -> None:
    states = {c["Name"]: (c["Service"], c["State"], c["Health"]) for c in containers()}
    assert {service for service, state, _ in states.values() if state == "exited"} == {"init"}
    assert {health for service, _, health in states.values() if service != "init"} == {"healthy"}
    assert sum(c["Service"] == "dispatcher" for c in containers()) == 2
    (init,) = [c for c in containers() if c["Service"] == "init"]
    assert init["ExitCode"] == 0

    for container in containers():
        for port in container.get("Publishers") or []:
            assert port["URL"] in ("", "127.0.0.1"), f"{container['Name']} listens on {port['URL']}"

    until(lambda: asked('sum(up{job="dispatcher"})') == 2, "Prometheus found both by name")
    until(lambda: asked("sum(dispatcher_dispatched_total)") > 100, "requests are dispatched")
    until(lambda: "served: " in compose("logs", "--no-log-prefix", "workers"), "workers serve them")
    assert sum(len(group["rules"]) for group in get("/api/v1/rules")["groups"]) == len(rules())
    assert len(get("/api/v1/alertmanagers")["activeAlertmanagers"]) == 1
    print(f"{asked('sum(dispatcher_dispatched_total)'):.0f} dispatched by two, watched")

    compose("stop", "dispatcher", within=150)
    assert {c["ExitCode"] for c in containers() if c["Service"] == "dispatcher"} == {0}
