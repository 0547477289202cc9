"""DISPATCHER_PROCESSES: several dispatchers on one machine, started, shown and drained as one."""

import os
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dispatcher.settings import load
from dispatcher.supervisor import Supervisor, WorkerError
from tests.scenarios.world import Dispatcher, World, request, requests, until


def pids(status: dict[str, Any]) -> set[int]:
    return {process["pid"] for process in status["processes"] if process["pid"]}


def running(status: dict[str, Any]) -> bool:
    return [process["state"] for process in status["processes"]] == ["running", "running"]


async def two(world: World) -> Dispatcher:
    """Start a supervisor of two, and wait until both run."""
    both = await world.start(PROCESSES="2")

    async def are_running() -> bool:
        return running(await both.status())

    await until(are_running, "both running")
    return both


async def test_two_processes_work_are_shown_and_drained_as_one(world: World) -> None:
    both = await two(world)
    bodies = requests(200)
    await world.send(bodies)
    await world.until_master_is_empty()

    async def told() -> bool:
        return bool((await both.status())["totals"]["dispatched"] == 200)

    await until(told, "both have said what they did")
    metrics = await both.metrics()
    assert metrics.total("received_total") == metrics.total("messages_total", outcome="dispatched") == 200
    assert metrics.total("inflight_limit") == 2 * 1000
    assert metrics.total("build_info") == 1, "one dispatcher"
    text = (await both.get("/metrics"))[1]
    (memory,) = (line for line in text.splitlines() if line.startswith("process_resident_memory_bytes"))
    assert float(memory.split()[1]) > 100e6, "of all of them together"
    status = await both.status()
    assert len(pids(status)) == 2
    assert set(status["regions"]) == {"us-east-1", "us-west-2", "eu-west-1"}
    code, found = await both.get(f"/requests?id={quote('r-0007')}")
    assert code == 200
    assert "dispatched" in found
    assert (await both.get("/requests?id=nobody"))[0] == 404
    assert (await both.get("/healthz"))[0] == 200
    assert await both.drain() == 0
    assert {line["pid"] for line in both.logged("process.stopped")} == pids(status), "each line says whose it is"
    await world.assert_each_once(bodies)


async def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(world: World) -> None:
    both = await two(world)
    before = pids(await both.status())
    await world.send(requests(100))
    os.kill(min(before), signal.SIGKILL)

    async def is_back() -> bool:
        status = await both.status()
        return running(status) and pids(status) != before

    await until(is_back, "another in its place")
    assert len(both.logged("process.died")) == 1
    await world.send([request("after")])
    await world.until_master_is_empty()
    totals, metrics = (await both.status())["totals"], await both.metrics()
    assert totals["received"] == metrics.total("received_total") >= 101, "what the dead one did is not forgotten"
    assert totals["dispatched"] == metrics.total("messages_total", outcome="dispatched")
    arrived = {arrival.request_id for arrival in await world.arrivals()}
    assert arrived == {f"r-{number:04d}" for number in range(100)} | {"after"}
    assert await both.drain() == 0


async def test_a_process_that_hangs_is_shown_as_one(world: World) -> None:
    both = await two(world)
    hanging = min(pids(await both.status()))

    async def states() -> list[str]:
        return sorted(process["state"] for process in (await both.status())["processes"])

    async def is_silent() -> bool:
        return await states() == ["does not answer", "running"]

    async def answers() -> bool:
        return await states() == ["running", "running"]

    os.kill(hanging, signal.SIGSTOP)
    try:
        await until(is_silent, "seen")
        assert (await both.get("/healthz"))[0] == 503
        assert (await both.get("/readyz"))[0] == 200, "the other one works"
    finally:
        os.kill(hanging, signal.SIGCONT)
    await until(answers, "and seen again")
    assert await both.drain() == 0


async def test_when_the_supervisor_is_killed_its_processes_drain(world: World) -> None:
    """Or they would go on unseen beside those of the next one."""
    both = await two(world)
    orphans = pids(await both.status())
    await both.kill()

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    await until(lambda: not any(map(alive, orphans)), "both gone")


async def test_processes_that_cannot_start_end_the_supervisor_and_say_why(world: World) -> None:
    missing = world.resources.master_queue_url.rpartition("/")[0] + "/no-such-queue"
    both = await world.start(ready=False, PROCESSES="2", MASTER_QUEUE_URL=missing)
    assert await both.exit_status() == 1
    text = both.log.read_text()
    assert "cannot start" in text
    assert "the master queue does not exist" in text


STUB = """
import http.server, json, os, signal, sys
from pathlib import Path
folder = Path(sys.argv[1])
try:
    (folder / "first").touch(exist_ok=False)
except FileExistsError:
    sys.exit(1)  # every one but the first fails to start
def end(*_):
    (folder / "drained").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"reasons": [], "state": "running"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["DISPATCHER_HTTP_PORT"])), Handler).serve_forever()
"""


async def test_one_that_cannot_start_ends_all_and_those_that_work_are_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left behind unwatched, and the reason is one line."""
    for name, value in {
        "AWS_REGION": "us-east-1",
        "DISPATCHER_MASTER_QUEUE_URL": "http://localhost/1/master",
        "DISPATCHER_REGIONS": '{"us-east-1": "http://localhost/1/work"}',
        "DISPATCHER_LEDGER_TABLE": "t",
        "DISPATCHER_PROCESSES": "2",
        "DISPATCHER_HTTP_HOST": "127.0.0.1",
        "DISPATCHER_HTTP_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    supervisor = Supervisor(load(), [sys.executable, str(stub), str(tmp_path)])
    with pytest.raises(WorkerError, match="cannot start"):
        await supervisor.run()
    assert (tmp_path / "drained").exists()
    assert all(worker.process is None or worker.process.returncode == 0 for worker in supervisor._workers)
