"""The endpoints, over real HTTP."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dispatcher.errors import Cause, RefusedError
from dispatcher.supervisor import WorkerError
from dispatcher.telemetry.probes import CONNECTIONS_MAX, WRITES_BURST, Limit, Probes


class Host:
    def __init__(self) -> None:
        self.stuck: list[str] = []
        self.unready: list[str] = []
        self.holding: str | None = None
        self.registry = CollectorRegistry()
        self.gauge = Gauge("dispatcher_seen", "…", registry=self.registry)
        self.session: aiohttp.ClientSession
        self.url = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        async with self.session.get(self.url + path, headers=headers) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    probes = Probes(
        stuck=lambda: host.stuck,
        unready=lambda: host.unready,
        status=lambda: {"state": "running"},
        registry=host.registry,
        refresh=lambda: host.gauge.set(42),
        holding=lambda: host.holding,
    )
    async with probes.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        host.session, host.url = session, f"http://127.0.0.1:{port}"
        yield host


async def test_healthz_names_the_loop_that_is_stuck(host: Host) -> None:
    assert (await host.get("/healthz"))[0] == 200
    host.stuck = ["visibility: no beat for 61 s"]
    status, _, text = await host.get("/healthz")
    assert status == 503
    assert "visibility" in text


async def test_readyz_gives_its_reasons_as_json_and_leaves_healthz_alone(host: Host) -> None:
    assert (await host.get("/readyz"))[::2] == (200, '{"ok": true, "reasons": [], "holding": null}')
    host.holding = "the ledger does not answer"
    assert (await host.get("/readyz"))[::2] == (200, f'{{"ok": true, "reasons": [], "holding": "{host.holding}"}}')
    host.unready = ["draining"]
    status, kind, text = await host.get("/readyz")
    assert (status, kind) == (503, "application/json; charset=utf-8")
    assert '"draining"' in text
    assert (await host.get("/healthz"))[0] == 200


async def test_metrics_are_fresh_and_in_the_form_asked_for(host: Host) -> None:
    status, kind, text = await host.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "dispatcher_seen 42.0" in text
    _, kind, text = await host.get("/metrics", Accept="application/openmetrics-text")
    assert kind.startswith("application/openmetrics-text")
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # the library has no types
    assert [family.name for family in families] == ["dispatcher_seen"]


async def test_status_is_json_and_other_paths_are_not_there(host: Host) -> None:
    assert (await host.get("/status"))[::2] == (200, '{"state": "running"}')
    assert (await host.get("/nothing"))[0] == 404


async def test_a_page_hears_something_also_while_nothing_is_sampled(host: Host) -> None:
    async with asyncio.timeout(5.0), host.session.get(host.url + "/events") as stream:
        said = [await stream.content.readuntil(b"\n\n") for _ in range(3)]
    assert said[1:] == [b'data: {"state": "running"}\n\n'] * 2


async def test_the_page_for_people_asks_for_nothing_from_elsewhere(host: Host) -> None:
    status, kind, text = await host.get("/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert not re.search(r"<(script|style)>|\son\w+=|style=|//", text.replace("<!doctype", "")), "nothing inline"
    for path, kind in (("/page.js", "text/javascript"), ("/page.css", "text/css")):
        assert (await host.get(path))[:2] == (200, f"{kind}; charset=utf-8")


async def test_every_answer_forbids_what_is_not_ours_also_one_that_says_no(host: Host) -> None:
    for path, status in [("/", 200), ("/page.js", 200), ("/status", 200), ("/healthz", 200), ("/nothing", 404)]:
        async with host.session.get(host.url + path) as answer:
            assert answer.status == status
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Server"] == "dispatcher"
    async with host.session.head(host.url + "/events") as answer:
        assert answer.status == 405, "a stream without an end has no head"


async def test_a_request_is_looked_up_a_few_times_a_second_and_never_by_an_id_that_is_none() -> None:
    async def find(request_id: str) -> Mapping[str, Any] | None:
        asked.append(request_id)
        if request_id == "fault":
            raise RefusedError(Cause.DENIED, "AccessDenied")
        return {"request_id": request_id} if request_id == "known" else None

    asked: list[str] = []
    time = Time()
    probes = Probes(list, list, dict, CollectorRegistry(), lambda: None, find=find, look_ups=Limit(lambda: time.now))
    async with probes.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

        async def look(query: str) -> int:
            async with session.get(f"http://127.0.0.1:{port}/requests{query}") as answer:
                return answer.status

        refused = [await look(query) for query in ("", "?id=", "?id=%00fleet", "?id=" + "x" * 257, "?id=%0A")]
        assert refused == [400] * 5
        assert asked == []
        assert [await look("?id=known"), await look("?id=unknown"), await look("?id=fault")] == [200, 404, 503]
        assert [await look("?id=known") for _ in range(WRITES_BURST - 2)][-2:] == [200, 429]
        time.now += 1.0
        assert [await look("?id=known"), await look("?id=known")] == [200, 429]
        assert len(asked) == WRITES_BURST + 1


TOKEN = "a-token-of-some-length"


class Time:
    now = 0.0


async def test_writes_are_few_a_second_and_guesses_use_up_nobody_else_s() -> None:
    time = Time()
    taken: list[float] = []

    async def take(_: str, left: float) -> float:
        taken.append(left)
        return left

    limits = [Limit(lambda: time.now) for _ in range(2)]
    probes = Probes(
        list, list, dict, CollectorRegistry(), lambda: None, TOKEN, take, writes=limits[0], guesses=limits[1]
    )
    async with probes.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

        async def post(token: str = TOKEN, body: str = '{"capacity": 1}') -> int:
            url, headers = f"http://127.0.0.1:{port}/regions/r/capacity", {"Authorization": f"Bearer {token}"}
            async with session.post(url, data=body, headers=headers) as answer:
                return answer.status

        assert [await post("wrong") for _ in range(WRITES_BURST + 1)] == [401] * WRITES_BURST + [429]
        assert [await post() for _ in range(WRITES_BURST + 1)] == [200] * WRITES_BURST + [429]
        time.now += 1.0
        assert [await post(), await post()] == [200, 429]
        time.now += 1.0
        assert await post(body="x" * 10_000) == 413
        assert len(taken) == WRITES_BURST + 1


async def test_a_capacity_that_nobody_took_is_no_success() -> None:
    async def take(_: str, left: float) -> float:
        raise WorkerError("no process took it")

    probes = Probes(list, list, dict, CollectorRegistry(), lambda: None, TOKEN, take)
    async with probes.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        url, headers = f"http://127.0.0.1:{port}/regions/r/capacity", {"Authorization": f"Bearer {TOKEN}"}
        async with session.post(url, data='{"capacity": 1}', headers=headers) as answer:
            assert (answer.status, await answer.json()) == (503, {"error": "no process took it"})


async def test_half_requests_without_end_keep_no_health_check_out(host: Host) -> None:
    port = int(host.url.rpartition(":")[2])
    halves = []
    for _ in range(3 * CONNECTIONS_MAX):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost:")
        halves.append((reader, writer))
    assert (await host.get("/healthz"))[0] == 200
    still_open = 0
    for reader, writer in halves:
        try:
            async with asyncio.timeout(0.01):
                assert await reader.read(1) == b""
        except TimeoutError:
            still_open += 1
        except ConnectionError:
            pass
        writer.close()
    assert still_open <= CONNECTIONS_MAX


async def test_a_port_that_is_taken_is_an_os_error(host: Host) -> None:
    taken = int(host.url.rpartition(":")[2])
    probes = Probes(list, list, dict, host.registry, lambda: None)
    with pytest.raises(OSError, match="address already in use"):
        async with probes.serve("127.0.0.1", taken):
            pass
