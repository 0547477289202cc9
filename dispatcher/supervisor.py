"""Several dispatchers on one machine, one of each core: started, watched, drained and shown together.

Each is a whole dispatcher that knows nothing of the others but what the ledger tells any of them. They serve on the
loopback address; here their words are put together: `/metrics` by prometheus-client's multiprocess mode, `/status` and
the page by adding up.
"""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from dispatcher import __version__
from dispatcher.errors import DispatcherError
from dispatcher.lifecycle import Lifecycle, Phase, die_with_parent
from dispatcher.model import Outcome
from dispatcher.policy.backoff import backoff_s
from dispatcher.settings import PREFIX, Settings
from dispatcher.telemetry.live import WARNINGS, WINDOW, kind
from dispatcher.telemetry.probes import Probes

log = structlog.get_logger()

LOOK_S = 1.0
ANSWER_S = 3.0  # for a process to say how it is
START_S = 30.0  # a process that has said nothing for so long is ill
KILL_AFTER_S = 15.0  # a process that did not end this long after its drain's deadline
CONFIGURATION = 2  # exit status: starting again would not help


class WorkerError(DispatcherError):
    """A process cannot start, or cannot be asked."""


@dataclass(slots=True)
class Worker:
    """One process, and what it said last."""

    number: int
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    began_at: float = 0.0  # loop time
    was_ready: bool = False
    said: Mapping[str, Any] | None = None  # its /status
    silent: bool = False  # it was asked again since, and did not answer
    ill: list[str] = field(default_factory=list)  # what its /healthz complains of
    unready: list[str] = field(default_factory=lambda: ["it has not answered yet"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self, now: float, port: int) -> None:
        """Forget what was of the process before."""
        self.began_at, self.port, self.was_ready = now, port, False
        self.said, self.silent, self.ill, self.unready = None, False, [], ["it has not answered yet"]

    @property
    def state(self) -> str:
        if self.process is None:
            return "not running"
        if self.silent:
            return "does not answer"
        return str(self.said["state"]) if self.said else "starting"


class Supervisor:
    """`command`: what runs one dispatcher, which is told the rest by its environment."""

    def __init__(self, settings: Settings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = command
        self._random = Random()
        self._lifecycle = Lifecycle()
        self._workers = [Worker(number) for number in range(1, settings.processes + 1)]
        self._started_at = asyncio.get_running_loop().time()
        self._sampled = asyncio.Event()
        self._registry = CollectorRegistry()
        self._worst = 0  # exit status

    async def run(self) -> int:
        """Run until drained; return the exit status. Raises WorkerError."""
        fault: BaseException | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self._lifecycle.signals())
            self._folder = _shared_folder(stack)
            self._http = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S))
            )
            await self._listen(stack)
            try:
                async with asyncio.TaskGroup() as group:
                    looking = group.create_task(self._look())
                    keeping = [group.create_task(self._keep(worker)) for worker in self._workers]
                    await asyncio.wait(keeping)
                    looking.cancel()
            except* WorkerError as several:
                fault = several.exceptions[0]
            finally:
                await self._end()
            if fault:
                raise fault
        return self._worst

    async def _listen(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        MultiProcessCollector(self._registry, path=str(self._folder))  # type: ignore[no-untyped-call]  # untyped there
        self._registry.register(_Processes(self._workers))
        token = settings.http_token.get_secret_value() if settings.http_token else None
        probes = Probes(
            self._stuck,
            self._unready,
            self._status,
            self._registry,
            lambda: None,  # each process keeps its own gauges fresh
            token,
            partial(self._put_capacity, token or ""),
            next_sample=self._next_sample,
            find=self._find,
            holding=lambda: together(self._said())["holding"],
        )
        try:
            port = await stack.enter_async_context(probes.serve(settings.http_host, settings.http_port))
        except OSError as fault:
            raise WorkerError(
                f"cannot listen on {settings.http_host}:{settings.http_port} ({fault.strerror}); "
                "set DISPATCHER_HTTP_PORT or DISPATCHER_HTTP_HOST"
            ) from fault
        log.info("http.listening", host=settings.http_host, port=port)

    async def _next_sample(self) -> None:
        await self._sampled.wait()

    # --- processes ----------------------------------------------------------------------------------------------

    async def _keep(self, worker: Worker) -> None:
        """Keep one process running until the drain, then let it end."""
        failures = 0
        while not self._lifecycle.draining:
            status = await self._one_life(worker)
            if self._lifecycle.draining:
                early = status == -signal.SIGTERM and not worker.was_ready  # it had not begun
                self._worst = max(self._worst, 0 if early else min(abs(status), 1))
                return
            if status == CONFIGURATION or (status and not worker.was_ready and failures >= 2):
                raise WorkerError(f"process {worker.number} cannot start (exit status {status}); its log says why")
            failures = 0 if worker.was_ready else failures + 1
            log.error("process.died", number=worker.number, status=status, hint="it is started again")
            await asyncio.sleep(backoff_s(failures, self._random, most_s=30.0))

    async def _one_life(self, worker: Worker) -> int:
        worker.begin(asyncio.get_running_loop().time(), _free_port())
        environment = {
            **os.environ,
            f"{PREFIX}PROCESSES": "1",
            f"{PREFIX}HTTP_HOST": "127.0.0.1",
            f"{PREFIX}HTTP_PORT": str(worker.port),
            "PROMETHEUS_MULTIPROC_DIR": str(self._folder),
        }
        process = worker.process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, preexec_fn=die_with_parent, start_new_session=True
        )
        log.info("process.started", number=worker.number, pid=process.pid)
        draining = asyncio.create_task(self._drain(process))
        try:
            status = await process.wait()
        finally:
            draining.cancel()
            if process.returncode is not None:  # or it is still there, for `_end`
                worker.process = worker.said = None
                worker.unready = ["it is not running"]
                mark_process_dead(process.pid, path=str(self._folder))  # type: ignore[no-untyped-call]  # untyped there
        return status

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        """Pass the drain on; a second signal stops everything at once, here and there."""
        await self._lifecycle.until_draining()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            await asyncio.sleep(self._settings.drain_timeout_seconds + KILL_AFTER_S)
            process.kill()

    async def _end(self) -> None:
        """After a fault: let nobody go on unwatched."""
        left = [worker.process for worker in self._workers if worker.process]
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        ending = asyncio.gather(*(process.wait() for process in left))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_seconds + KILL_AFTER_S):
                await asyncio.shield(ending)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await ending

    # --- looking ------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            await asyncio.gather(*map(self._ask, self._workers))
            self._sampled.set()
            self._sampled = asyncio.Event()
            await asyncio.sleep(LOOK_S)

    async def _ask(self, worker: Worker) -> None:
        process = worker.process
        if process is None:
            return
        try:
            said, (health, readiness) = await self._get(worker, "/status"), await self._verdicts(worker)
        except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
            age_s = asyncio.get_running_loop().time() - worker.began_at
            if worker.process is process and (worker.was_ready or age_s > START_S):
                worker.silent = True
                worker.ill = [f"it does not answer ({type(fault).__name__})"]
            return
        if worker.process is process:
            worker.said, worker.silent, worker.ill, worker.unready = said, False, health, readiness
            worker.was_ready = worker.was_ready or not readiness

    async def _verdicts(self, worker: Worker) -> tuple[list[str], list[str]]:
        health, readiness = await self._get(worker, "/healthz"), await self._get(worker, "/readyz")
        return health["reasons"], readiness["reasons"]

    async def _get(self, worker: Worker, path: str) -> Any:
        async with self._http.get(worker.url + path) as answer:
            return await answer.json()

    def _stuck(self) -> list[str]:
        """A process that is being started again is no reason to stop the others."""
        return [f"process {w.number}: {why}" for w in self._workers if w.process for why in w.ill]

    def _unready(self) -> list[str]:
        """None while one of them is ready: it does all that is to be done."""
        if self._lifecycle.draining:
            return ["draining"]
        if any(not worker.unready for worker in self._workers):
            return []
        return [f"process {worker.number}: {why}" for worker in self._workers for why in worker.unready]

    def _said(self) -> list[Mapping[str, Any]]:
        return [worker.said for worker in self._workers if worker.said]

    def _status(self) -> Mapping[str, Any]:
        uptime_s = asyncio.get_running_loop().time() - self._started_at
        processes = [
            {
                "number": worker.number,
                "pid": worker.process.pid if worker.process else None,
                "state": worker.state,
            }
            for worker in self._workers
        ]
        policy = self._settings.routing_policy
        whole = {"policy": policy, "policy_in_force": policy} | together(self._said())
        whole |= {
            "uptime_seconds": round(uptime_s, 1),
            "processes": processes,
            "totals": totals(self._registry),
        }
        return whole | ({"draining": True, "state": Phase.DRAINING} if self._lifecycle.draining else {})

    async def _find(self, request_id: str) -> Mapping[str, Any] | None:
        for worker in self._workers:
            if worker.process and worker.said:
                try:
                    async with self._http.get(worker.url + "/requests", params={"id": request_id}) as answer:
                        found: Mapping[str, Any] = await answer.json()
                except (aiohttp.ClientError, TimeoutError) as fault:
                    raise WorkerError(f"process {worker.number} does not answer") from fault
                if answer.status == 404:
                    return None
                if answer.status != 200:
                    raise WorkerError(str(found.get("error")))
                return found
        raise WorkerError("no process has started yet")

    async def _put_capacity(self, token: str, region: str, left: float) -> float | None:
        """Tell all of them; return what is in force then. Raises WorkerError if none took it."""
        if region not in self._settings.regions:
            return None
        told = await asyncio.gather(*(self._pass_on(w, token, region, left) for w in self._workers if w.process))
        taken = [capacity for capacity in told if capacity is not None]
        if not taken:
            raise WorkerError("no process took it; try again")
        return min(taken)

    async def _pass_on(self, worker: Worker, token: str, region: str, left: float) -> float | None:
        """Return what is in force there then; None: it did not take it."""
        try:
            async with self._http.post(
                f"{worker.url}/regions/{region}/capacity",
                json={"capacity": left},
                headers={"Authorization": f"Bearer {token}"},
                raise_for_status=True,
            ) as answer:
                return float((await answer.json())["capacity"])
        except (aiohttp.ClientError, TimeoutError) as fault:
            log.warning("capacity.not_passed_on", number=worker.number, fault=repr(fault))
            return None


class _Processes(Collector):
    """The usual metrics of a process, of all of them together."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        pids = [os.getpid(), *(worker.process.pid for worker in self._workers if worker.process)]
        sums: dict[str, Metric] = {}
        for pid in pids:
            for metric in ProcessCollector(registry=None, pid=partial(int, pid)).collect():
                known = sums.setdefault(metric.name, metric)
                if known is not metric and metric.name != "process_start_time_seconds":
                    known.samples = [
                        ours._replace(value=ours.value + theirs.value)
                        for ours, theirs in zip(known.samples, metric.samples, strict=True)
                    ]
        return sums.values()


# --- what several say, in one word ----------------------------------------------------------------------------------

_SUMMED = ("in_flight", "in_flight_limit", "received_per_second", "dispatched_per_second")
_SUMMED_OF_REGIONS = ("sent_since_reading", "budget")
_NOTHING_SAID: Mapping[str, Any] = {  # the rest of a status is known without asking
    "version": __version__,
    "state": Phase.STARTING,
    "holding": None,
    "draining": False,
    "model_error": 0.0,
    "dispatchers": 0,
    "regions": {},
    "in_flight": 0,
    "in_flight_limit": 0,
    "ledger": "unknown",
    "troubles": {},
    "queues": {"master": {}, "master_dlq": {}, "regional_dlq": {}},
    "received_per_second": None,
    "dispatched_per_second": None,
    "message_age_seconds": None,
    "window_seconds": WINDOW,
    "history": {"dispatched_per_second": [], "master": []},
    "choices": [],
    "warnings": [],
}
_STATES = [Phase.STARTING, Phase.DRAINING, Phase.RUNNING, Phase.STOPPED]  # the first that any of them is in


def together(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one status of several processes' statuses: sums where they add up, else the word of the first."""
    if not said:
        return dict(_NOTHING_SAID)
    said = sorted(said, key=lambda each: bool(each["state"] == Phase.STARTING))  # those that know something first
    whole = dict(said[0])
    for name in _SUMMED:
        whole[name] = _sum(each.get(name) for each in said)
    whole["holding"] = said[0]["holding"] if all(each["holding"] for each in said) else None
    whole["draining"] = any(each["draining"] for each in said)
    whole["state"] = min((each["state"] for each in said), key=_STATES.index)
    whole["troubles"] = {what: why for each in reversed(said) for what, why in each["troubles"].items()}
    whole["choices"] = _newest([each["choices"] for each in said], "at")[: max(len(each["choices"]) for each in said)]
    whole["warnings"] = _merged(_newest([each["warnings"] for each in said], "last_at"))[:WARNINGS]
    whole["history"] = whole["history"] | {
        "dispatched_per_second": _added([each["history"]["dispatched_per_second"] for each in said])
    }
    whole["regions"] = {
        region: dict(view) | {name: _sum(each["regions"][region][name] for each in said) for name in _SUMMED_OF_REGIONS}
        for region, view in whole["regions"].items()
    }
    return whole


def totals(registry: CollectorRegistry) -> dict[str, int]:
    """Return what was received since the start and how it ended, by processes that are no more too."""
    found = dict.fromkeys(["received", *Outcome], 0)
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "dispatcher_received_total":
                found["received"] = int(sample.value)
            elif sample.name == "dispatcher_messages_total":
                found[sample.labels["outcome"]] = int(sample.value)
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None


def _added(series: Sequence[Sequence[float]]) -> list[float]:
    """Second by second, the last ones beside each other."""
    shortest = min(map(len, series))
    return [round(sum(values), 1) for values in zip(*(one[len(one) - shortest :] for one in series), strict=True)]


def _newest(lists: Iterable[Iterable[dict[str, Any]]], at: str) -> list[dict[str, Any]]:
    return sorted(chain.from_iterable(lists), key=lambda one: -float(one[at]))


def _merged(warnings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of a kind: the newest, which comes first, with the times of all."""
    kinds: dict[object, dict[str, Any]] = {}
    for warning in warnings:
        first = kinds.setdefault(kind(warning["event"], warning["what"]), warning | {"times": 0})
        first["times"] += warning["times"]
    return list(kinds.values())


def _shared_folder(stack: AsyncExitStack) -> Path:
    """Where the processes share their metrics: in memory where there is such a place, also with a read-only root."""
    memory = "/dev/shm"  # noqa: S108  a folder of our own is made there
    folder = memory if os.access(memory, os.W_OK) else None
    try:
        made = tempfile.TemporaryDirectory(prefix="dispatcher-metrics-", dir=folder)
    except OSError as fault:
        raise WorkerError(f"several processes need a folder to share their metrics in: {fault}; set TMPDIR") from fault
    return Path(stack.enter_context(made))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
