"""A real Prometheus scrapes real dispatchers: rules load, every query of the dashboards answers, outages ring.

`make e2e-prometheus` fetches Prometheus and Alertmanager where apt can. The rules are the repository's; only their
patience (`for`) is divided by sixty, so that a test need not wait for minutes.
"""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import yaml

from dispatcher.demo.cloud import embedded, free_port
from tests.deploy.conftest import ROOT, rules
from tests.deploy.test_grafana import PAGES, queries
from tests.scenarios.proxy import HOST, Fault, How
from tests.scenarios.world import World, provisioned, requests, until, world_of

TOOLS = ROOT / "build/tools/bin"
PATIENCE = 60
FASTER = {"DEPTH_TTL_SECONDS": "4", "VISIBILITY_SECONDS": "30", "CLAIM_LEASE_SECONDS": "20"}
EMPTY_IN_HEALTH = {"Errors", "Calls that failed", "Firing alerts", "Capacity left, and stalls", "Rescued"}
"""Panels with queries that show only what is wrong."""


def program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name, path=f"{TOOLS}:{os.environ['PATH']}"):
            return found
    raise AssertionError(f"NOT RUN: there is no {names[0]}: '.ci/tools' fetches it on Debian, else install it")


@contextmanager
def running(log: Path, *argv: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, f"{argv[0]} ended by itself: {log.read_text()[-2000:]}"
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Watch:
    """What a person at Prometheus's and Alertmanager's own pages could ask."""

    session: aiohttp.ClientSession
    prometheus: str
    alertmanager: str

    async def get(self, path: str, **parameters: str) -> Any:
        async with self.session.get(f"{self.prometheus}{path}?{urlencode(parameters)}") as answer:
            said = await answer.json()
            assert said["status"] == "success", f"{parameters}: {said}"
            return said["data"]

    async def query(self, expression: str) -> list[Mapping[str, Any]]:
        result: list[Mapping[str, Any]] = (await self.get("/api/v1/query", query=expression))["result"]
        return result

    async def firing(self) -> set[str]:
        alerts = (await self.get("/api/v1/alerts"))["alerts"]
        return {a["labels"]["alertname"].removeprefix("Dispatcher") for a in alerts if a["state"] == "firing"}

    async def routed(self) -> set[str]:
        """What Alertmanager holds and does not inhibit."""
        async with self.session.get(f"{self.alertmanager}/api/v2/alerts?active=true&inhibited=false") as answer:
            return {a["labels"]["alertname"].removeprefix("Dispatcher") for a in await answer.json()}


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with embedded("ministack") as cloud:
        for name, value in (cloud.environment | {"AWS_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        async with world_of(cloud, await provisioned(), tmp_path) as opened:
            opened.quiet = True
            yield opened


@contextmanager
def watching(folder: Path, targets: list[str]) -> Iterator[tuple[str, str]]:
    """Prometheus and Alertmanager with the repository's files; give their addresses."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = config["scrape_configs"]
    del scrape["dns_sd_configs"]  # there is no name server here
    scrape["static_configs"] = [{"targets": targets}]
    ports = [free_port(), free_port()]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"{HOST}:{ports[1]}"]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for path in (ROOT / "deploy/prometheus").glob("*.rules.yml"):
        text = re.sub(r"for: (\d+)m", lambda m: f"for: {int(m[1]) * 60 // PATIENCE}s", path.read_text())
        text = text.replace("for: 1h", f"for: {3600 // PATIENCE}s").replace("interval: 30s", "interval: 1s")
        (folder / path.name).write_text(text)
    with ExitStack() as stack:
        alertmanager = [
            program("alertmanager", "prometheus-alertmanager"),
            f"--config.file={ROOT}/deploy/alertmanager/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address={HOST}:{ports[1]}",
            "--cluster.listen-address=",
        ]
        prometheus = [
            program("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address={HOST}:{ports[0]}",
        ]
        stack.enter_context(running(folder / "alertmanager.log", *alertmanager))
        stack.enter_context(running(folder / "prometheus.log", *prometheus))
        yield f"http://{HOST}:{ports[0]}", f"http://{HOST}:{ports[1]}"


async def test_rules_dashboards_and_alerts_on_a_real_prometheus(world: World, tmp_path: Path) -> None:
    first, second = [await world.start(ready=True, **FASTER) for _ in range(2)]
    with watching(tmp_path, [f"{HOST}:{first.port}", f"{HOST}:{second.port}"]) as (prometheus, alertmanager):
        watch = Watch(world.session, prometheus, alertmanager)

        async def scraped() -> bool:
            try:
                return await watch.routed() is not None and len(await watch.query('up{job="dispatcher"} == 1')) == 2
            except aiohttp.ClientError:
                return False

        await until(scraped, "both are scraped")
        await world.send([*requests(300), *requests(30)])
        await world.until_master_is_empty()
        await asyncio.sleep(5)  # scrapes of what was counted

        loaded = [rule for group in (await watch.get("/api/v1/rules"))["groups"] for rule in group["rules"]]
        assert len(loaded) == len(rules())
        assert {rule["name"] for rule in loaded if rule["health"] not in ("ok", "unknown")} == set()

        silent = set[str]()
        asked = 0
        for page in PAGES.values():
            for panel in page["panels"]:
                for expression in queries({"panels": [panel], "annotations": {"list": []}}):
                    asked += 1
                    if not await watch.query(expression):
                        silent.add(panel["title"])
            for expression in queries({"panels": [], "annotations": page["annotations"]}):
                await watch.query(expression)
        print(f"{asked} queries of {len(PAGES)} dashboards answered")
        assert silent <= EMPTY_IN_HEALTH
        assert await watch.firing() == {"Watchdog"}

        lint = await asyncio.to_thread(linted, (await first.get("/metrics"))[1])
        assert lint.returncode == 0, lint.stdout + lint.stderr

        # the table goes away: that, and nothing else, wakes somebody
        with world.proxy.having(Fault(How.ERROR, service="dynamodb", status=500, code="InternalServerError")):
            await world.send(requests(50, "during"))
            await until(lambda: rings(watch, "LedgerErrors"), "DispatcherLedgerErrors fires", within=120)
            assert await paging(watch) == {"LedgerErrors"}
        await world.until_master_is_empty()

        # Regions refuse every send and cannot be read
        with world.proxy.having(Fault(How.ERROR, operation="GetQueueAttributes", status=500, code="InternalError")):
            await until(lambda: rings(watch, "NoEligibleRegion"), "DispatcherNoEligibleRegion fires", within=120)
            assert "NoEligibleRegion" in await paging(watch)

        await first.kill()
        await until(lambda: rings(watch, "TaskDown"), "DispatcherTaskDown fires", within=120)
        assert "Absent" not in await watch.firing()
        await second.drain()
        await until(lambda: rings(watch, "Absent"), "DispatcherAbsent fires", within=120)

        async def inhibited() -> bool:
            return "Absent" in (routed := await watch.routed()) and "TaskDown" not in routed

        await until(inhibited, "Alertmanager tells of the one and not of what follows from it")


def linted(exposition: str) -> "subprocess.CompletedProcess[str]":
    argv = [program("promtool"), "check", "metrics"]
    return subprocess.run(argv, input=exposition, capture_output=True, text=True, check=False)


async def rings(watch: Watch, alert: str) -> bool:
    return alert in await watch.firing()


async def paging(watch: Watch) -> set[str]:
    pages = {
        rule["alert"].removeprefix("Dispatcher") for rule in rules() if rule.get("labels", {}).get("severity") == "page"
    }
    return await watch.firing() & pages
