"""Two routing policies side by side: real dispatchers, real queues of an emulator, pools of simulated GPUs.

    make duel          or: .venv/bin/python -m benchmarks.duel [--seed N] [--seconds N] [--json]

Each side has queues and a table of its own on one emulator, three dispatchers, and pools of 8, 4 and 2 GPUs. The same
requests arrive at the same moments; half-way one pool is killed for 30 seconds. What counts is the time from a
request's arrival in the master queue until a worker takes it. With `projected-wait` rescue is enabled, which the
original does not know.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from urllib.request import urlopen

from rich.console import Console
from rich.progress import Progress

from dispatcher.aws.clients import Clients
from dispatcher.aws.provision import Resources, provision
from dispatcher.aws.regional import SendingQueue
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud, embedded, free_port
from dispatcher.demo.gpus import Gpus
from dispatcher.demo.worker import Job
from dispatcher.model import Outgoing, Policy, Region
from dispatcher.telemetry.metrics import Metrics

POOLS = {Region("us-east-1"): 8, Region("us-west-2"): 4, Region("eu-west-1"): 2}
SERVICE_S = 0.5
LOAD = 0.6  # of what all pools can do
KILLED = Region("us-west-2")  # the others can carry its part
KILLED_S = 30.0
TTL_S = 8.0  # a reading every two seconds, so that what takes minutes in production fits into one
DISPATCHERS = 3
PATIENCE_S = 240.0
HOME = Region("us-east-1")


class Side:
    """One policy's system. `waits`: seconds from a request's arrival to a worker, by request."""

    def __init__(self, policy: Policy, cloud: Cloud, folder: Path, stack: AsyncExitStack, seed: int) -> None:
        self.policy = policy
        self.cloud = cloud
        self.folder = folder
        self.stack = stack
        self.random = Random(seed)
        self.sent_at: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        self.pools: list[Gpus] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.ports: list[int] = []

    async def open(self, clients: Clients) -> None:
        steps = provision(clients, name=f"duel-{self.policy}", home=HOME, regions=list(POOLS))
        made = [step async for step in steps][-1]
        if not isinstance(made, Resources):
            raise TypeError("provision ends with its resources")
        for region, workers in POOLS.items():
            pool = Gpus(region, made.regional_queue_urls[region], SERVICE_S, self.random, self, _nobody, each=2)
            self.pools.append(await self.stack.enter_async_context(pool))
            pool.add(workers)
        sender = await clients.open("sqs", HOME, pool=10, attempts=1)
        self.master = await self.stack.enter_async_context(SendingQueue(made.master_queue_url, sender))
        for number in range(DISPATCHERS):
            port = free_port()
            self.ports.append(port)
            environment = {
                **os.environ,
                **made.environment(),
                "DISPATCHER_ROUTING_POLICY": self.policy,
                "DISPATCHER_POLL_WAIT_SECONDS": "2",
                "DISPATCHER_DEPTH_TTL_SECONDS": str(TTL_S),
                "DISPATCHER_RESCUE": str(self.policy is Policy.PROJECTED_WAIT),
                "DISPATCHER_HTTP_HOST": "127.0.0.1",
                "DISPATCHER_HTTP_PORT": str(port),
            }
            with (self.folder / f"{self.policy}-{number}.log").open("wb") as log:
                self.processes.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "dispatcher", "run", env=environment, stdout=log, stderr=log
                    )
                )

    async def ready(self) -> None:
        for port in self.ports:
            for _ in range(300):
                if await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}/readyz"):
                    break
                await asyncio.sleep(0.1)

    def find(self, job: Job) -> str | None:
        """A worker took it; its threads tell."""
        self.waits.setdefault(job.request_id, time.time() - self.sent_at[job.request_id])
        return None

    def keep(self, _: Job, result: str) -> str:
        return result

    async def send(self, request_id: str) -> None:
        body = {"request_id": request_id, "model_name": "m", "input_data_url": f"s3://inputs/{request_id}"}
        self.sent_at[request_id] = time.time()
        await self.master.send(Outgoing(json.dumps(body), {}, None))

    async def kill_pool(self) -> None:
        pool = next(pool for pool in self.pools if pool.region == KILLED)
        pool.interrupt(0)
        await asyncio.sleep(KILLED_S)
        pool.add(POOLS[KILLED])

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in self.processes))

    def summary(self, requests: int) -> dict[str, float]:
        waits = sorted(self.waits.values())
        at = len(waits) - 1
        return {
            "requests": requests,
            "served": len(waits),
            "mean_s": round(sum(waits) / len(waits), 2),
            "p50_s": round(waits[int(at * 0.5)], 2),
            "p99_s": round(waits[int(at * 0.99)], 2),
            "max_s": round(waits[-1], 2),
        }


async def duel(seed: int, seconds: float, policies: list[Policy]) -> dict[str, Mapping[str, float]]:
    """Return each policy's summary."""
    random = Random(seed)
    rate = LOAD * sum(POOLS.values()) / SERVICE_S
    arrivals = [0.0]
    while arrivals[-1] < seconds:
        arrivals.append(arrivals[-1] + random.expovariate(rate))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(embedded("ministack"))
        os.environ.update(cloud.environment)
        clients = await stack.enter_async_context(Clients(Clock(), Metrics.unread()))
        sides = [Side(policy, cloud, folder, stack, seed) for policy in policies]
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        bars = [progress.add_task(side.policy, total=len(arrivals)) for side in sides]
        try:
            for side in sides:
                await side.open(clients)
            for side in sides:
                await side.ready()
            async with asyncio.TaskGroup() as group:
                began = time.monotonic()
                killed = False
                for number, at in enumerate(arrivals):
                    await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                    for side, bar in zip(sides, bars, strict=True):
                        group.create_task(side.send(f"r-{number}"))
                        progress.update(bar, completed=len(side.waits))
                    if not killed and at > seconds / 2:
                        killed = True
                        for side in sides:
                            group.create_task(side.kill_pool())
                deadline = time.monotonic() + PATIENCE_S
                while any(len(side.waits) < len(arrivals) for side in sides) and time.monotonic() < deadline:
                    await asyncio.sleep(0.5)
                    for side, bar in zip(sides, bars, strict=True):
                        progress.update(bar, completed=len(side.waits))
        finally:
            for side in sides:
                await side.close()
        return {side.policy: side.summary(len(arrivals)) for side in sides}


def _nobody(_topic: str, _request_id: str, _result: str) -> None:
    """The duel's requests name no topic."""


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def main() -> None:
    reading = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reading.add_argument("--seed", type=int, default=1)
    reading.add_argument("--seconds", type=float, default=90.0, help="of arrivals; the pool is killed half-way")
    reading.add_argument("--json", action="store_true")
    asked = reading.parse_args()
    found = asyncio.run(duel(asked.seed, asked.seconds, [Policy.PROJECTED_WAIT, Policy.INVERSE_DEPTH]))
    ratio = found[Policy.PROJECTED_WAIT]["p99_s"] / found[Policy.INVERSE_DEPTH]["p99_s"]
    if asked.json:
        print(json.dumps({"seed": asked.seed, "policies": found, "p99_ratio": round(ratio, 3)}, indent=2))
    else:
        for policy, summary in found.items():
            print(f"{policy:16}", "  ".join(f"{name} {value:g}" for name, value in summary.items()))
        print(f"p99 with projected-wait is {ratio:.2f} of that with inverse-depth")
    sys.exit(0 if ratio <= 0.5 and all(s["served"] == s["requests"] for s in found.values()) else 1)


if __name__ == "__main__":
    main()
