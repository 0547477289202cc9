"""One measured run: the fake, one contender, some load; what it took."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.fake import HOME, MASTER, REGIONS, TABLE
from dispatcher.demo.cloud import free_port

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 30.0
LIMIT_S = 240.0
SETTLE_S = 1.0


class BenchError(Exception):
    """A run that measured nothing: the message says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured: a process that moves messages. `count`: how many it gets, a few seconds of its work."""

    name: str
    command: Sequence[str]
    count: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """`per_second`: 0 for all at once. `size`: bytes of a body. `twice`: part of the messages that repeat a request."""

    count: int
    per_second: float = 0.0
    size: int = 500
    twice: float = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one run. Times in seconds, memory in MB; `took_s` by Region, sorted."""

    messages: int
    seconds: float
    middle_per_s: float
    cpu_s: float
    peak_mb: float
    calls: Mapping[str, int]
    took_s: Mapping[str, Sequence[float]]
    start_cpu_s: float
    idle_mb: float

    @property
    def cpu_s_per_1k(self) -> float:
        return self.cpu_s / self.messages * 1000

    @property
    def calls_per_1k(self) -> float:
        return sum(self.calls.values()) / self.messages * 1000

    @property
    def messages_per_s(self) -> float:
        """While it runs: its first messages fill the path, and its last are repeated ones that wait, or stragglers."""
        return self.middle_per_s or self.whole_messages_per_s

    @property
    def whole_messages_per_s(self) -> float:
        """From idle to an empty master queue."""
        return self.messages / self.seconds

    @property
    def messages_per_cpu_s(self) -> float:
        return self.messages / self.cpu_s


class Fake:
    """The fake AWS in a process of its own."""

    def __init__(self, regions: int, latency_ms: str = "10,80,150", table_ms: float = 5.0) -> None:
        self.port = free_port()
        self.regions = REGIONS[:regions]
        options = ["--port", str(self.port), "--regions", str(regions)]
        options += ["--latency-ms", latency_ms, "--table-latency-ms", str(table_ms)]
        argv = [sys.executable, "-m", "benchmarks.fake", *options]
        self.process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout
        if self.process.stdout.readline() != b"ready\n":
            raise BenchError("the fake did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def queue_url(self, name: str) -> str:
        return f"{self.url}/000000000000/{name}"

    def tell(self, **what: Any) -> dict[str, Any]:
        said: dict[str, Any] = json.load(urlopen(Request(f"{self.url}/bench", json.dumps(what).encode()), timeout=60))
        return said

    def fill(self, load: "Load") -> None:
        """Begin anew: empty everything, and put the load on the master queue."""
        self.tell(reset=True, count=load.count, per_second=load.per_second, size=load.size, twice=load.twice)

    def result(self) -> dict[str, Any]:
        said: dict[str, Any] = json.load(urlopen(f"{self.url}/bench", timeout=60))
        return said

    def environment(self) -> dict[str, str]:
        """What a contender is told. A session token as long as those that ECS hands out."""
        regions = {region: self.queue_url(f"work-{region}") for region in self.regions}
        return {
            "PATH": os.environ["PATH"],
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": HOME,
            "AWS_DEFAULT_REGION": HOME,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_SESSION_TOKEN": "t" * 900,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MASTER_QUEUE_URL": self.queue_url(MASTER),
            "LEDGER_TABLE": TABLE,
            "REGIONS": json.dumps(regions),
            "DISPATCHER_MASTER_QUEUE_URL": self.queue_url(MASTER),
            "DISPATCHER_LEDGER_TABLE": TABLE,
            "DISPATCHER_REGIONS": json.dumps(regions),
            "DISPATCHER_OVERLOAD_THRESHOLD": "1000000",  # more than comes between two depth readings
            "DISPATCHER_HTTP_HOST": "127.0.0.1",
            "DISPATCHER_HTTP_PORT": str(free_port()),
        }


@contextmanager
def fake_aws(regions: int = 3, latency_ms: str = "10,80,150", table_ms: float = 5.0) -> Iterator[Fake]:
    fake = Fake(regions, latency_ms, table_ms)
    try:
        yield fake
    finally:
        fake.process.kill()
        fake.process.communicate()


@contextmanager
def running(contender: Contender, fake: Fake) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a contender from before its first poll until the end of the block."""
    environment = {**fake.environment(), **contender.environment}
    log = ROOT / "build" / "bench" / f"{contender.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(contender.command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        ends = time.monotonic() + START_S
        while not fake.tell()["polls"]:
            if process.poll() is not None or time.monotonic() > ends:
                raise BenchError(f"{contender.name} does not poll the master queue; see {log}")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def measure(contender: Contender, load: Load, *, regions: int = 3, latency_ms: str = "10,80,150") -> Measured:
    """Run one contender under one load, from idle to an empty master queue. Raises BenchError."""
    with fake_aws(regions, latency_ms) as fake, running(contender, fake) as process:
        start_cpu_s = cpu_s(process.pid)
        time.sleep(SETTLE_S)
        idle_mb = memory_mb(process.pid, "VmRSS")
        before, started = cpu_s(process.pid), time.monotonic()
        fake.fill(load)
        if load.per_second:
            time.sleep(load.count / load.per_second)
        while fake.tell()["left"]:
            if time.monotonic() > started + LIMIT_S or process.poll() is not None:
                raise BenchError(f"{contender.name} left {fake.tell()['left']} of {load.count} messages")
            time.sleep(0.02)
        seconds, used = time.monotonic() - started, cpu_s(process.pid) - before
        said = fake.result()
        if said["missing"] or said["unknown"] or said["copies"] or said["dead"]:
            facts = {name: said[name] for name in ("missing", "unknown", "copies", "dead")}
            raise BenchError(f"{contender.name} did not move each request once: {facts}")
        took = {region: sorted(times) for region, times in said["took_s"].items()}
        return Measured(
            messages=load.count,
            seconds=seconds,
            middle_per_s=said["middle_per_s"],
            cpu_s=used,
            peak_mb=memory_mb(process.pid, "VmHWM"),
            calls=said["calls"],
            took_s=took,
            start_cpu_s=start_cpu_s,
            idle_mb=idle_mb,
        )


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its children so far, in seconds."""
    total = 0.0
    for one in _with_children(pid):
        fields = (one / "stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def _with_children(pid: int) -> list[Path]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{one}") for one in [pid, *children]]


def memory_mb(pid: int, name: str) -> float:
    """Return a line of /proc/PID/status, of a process and its children together, in MB."""
    lines = [line for one in _with_children(pid) for line in (one / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def idle(contender: Contender, seconds: float) -> tuple[float, float, dict[str, int]]:
    """Return what a contender does while nothing comes: processor seconds, of how many, and its calls."""
    with fake_aws() as fake, running(contender, fake) as process:
        time.sleep(SETTLE_S)
        fake.tell(reset=True)
        before, started = cpu_s(process.pid), time.monotonic()
        time.sleep(seconds)
        used = cpu_s(process.pid) - before
        return used, time.monotonic() - started, fake.result()["calls"]
