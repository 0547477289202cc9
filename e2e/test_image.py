"""The image as an orchestrator runs it: read-only, no capabilities, not root; it dispatches, and drains on SIGTERM.

`make image` builds it and says by ENGINE, IMAGE and IMAGE_BASE what to try.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.demo.cloud import Cloud, embedded, free_port

ENGINE, IMAGE, BASE = (os.environ.get(name, "") for name in ("ENGINE", "IMAGE", "IMAGE_BASE"))
pytestmark = pytest.mark.skipif(not ENGINE, reason="NOT RUN: 'make image' builds the image and runs this")

LOCKED = ["--network", "host", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
MOST_MB = 250
REQUESTS = 200


def engine(*arguments: str) -> str:
    done = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{ENGINE} {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout


def inspect(what: str, kind: str = "container") -> dict[str, Any]:
    said: list[dict[str, Any]] = json.loads(engine("inspect", "--type", kind, what))
    return said[0]


def until(condition: Callable[[], object], what: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"after {within:g} s still not: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with embedded("ministack") as running:
        yield running


@pytest.fixture(scope="module")
def environment(cloud: Cloud) -> list[str]:
    """The options that give a container its settings: `dispatcher init`, in the image, made the resources."""
    said = engine("run", "--rm", *LOCKED, *options(cloud.environment), IMAGE, "init", "--json")
    return options(cloud.environment | json.loads(said))


def options(environment: dict[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in environment.items()]


def test_the_image_says_what_it_is_and_holds_nothing_to_build_with() -> None:
    config = inspect(IMAGE, "image")["Config"]
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["dispatcher"], ["run"])
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert labels[f"org.opencontainers.image.{name}"] not in ("", "unknown"), name
    inside = "import sys, pathlib; print(*sorted(p.name for p in pathlib.Path(sys.prefix, 'bin').iterdir()))"
    programs = engine("run", "--rm", *LOCKED, "--entrypoint", "python", IMAGE, "-c", inside).split()
    assert "dispatcher" in programs
    assert not {"pip", "pip3", "uv"} & set(programs)
    assert engine("run", "--rm", *LOCKED, IMAGE, "--version").split()[-1] == labels["org.opencontainers.image.version"]


def test_the_image_is_small() -> None:
    over = (inspect(IMAGE, "image")["Size"] - inspect(BASE, "image")["Size"]) / 1e6
    print(f"{over:.0f} MB over the base")
    assert over <= MOST_MB


def test_it_dispatches_with_nothing_allowed_and_ends_well_on_sigterm(environment: list[str]) -> None:
    port, name = free_port(), f"dispatcher-{uuid4().hex[:8]}"
    http = options({"DISPATCHER_HTTP_HOST": "127.0.0.1", "DISPATCHER_HTTP_PORT": str(port)})
    engine("run", "--detach", "--name", name, *LOCKED, *environment, *http, IMAGE)
    try:
        until(lambda: get(port, "/readyz"), "ready")
        engine("run", "--rm", *LOCKED, *environment, IMAGE, "submit", "--count", str(REQUESTS))
        until(lambda: dispatched(port) == REQUESTS, "all dispatched")
        until(lambda: healthy(name), "healthy, as the image's own check says")

        assert engine("exec", name, "id", "-u").strip() == "10001"
        own = dict(line.split(":", 1) for line in engine("exec", name, "cat", "/proc/1/status").splitlines())
        assert int(own["CapEff"].strip(), 16) == 0
        assert own["NoNewPrivs"].strip() == "1"
        written = subprocess.run([ENGINE, "exec", name, "touch", "/app/x"], capture_output=True, text=True, check=False)
        assert "Read-only file system" in written.stderr

        engine("stop", "--time", "120", name)
        state = inspect(name)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), engine("logs", name)[-2000:]
    finally:
        subprocess.run([ENGINE, "rm", "--force", name], capture_output=True, check=False)


def test_settings_that_are_wrong_end_it_with_status_2() -> None:
    done = subprocess.run([ENGINE, "run", "--rm", *LOCKED, IMAGE], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "DISPATCHER_MASTER_QUEUE_URL" in done.stderr


def get(port: int, path: str) -> str | None:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return str(answer.read().decode())
    except (URLError, OSError):
        return None


def dispatched(port: int) -> float:
    families = text_string_to_metric_families(get(port, "/metrics") or "")
    return sum(s.value for f in families for s in f.samples if s.name == "dispatcher_dispatched_total")


def healthy(name: str) -> bool:
    if ENGINE == "podman":  # without systemd nobody else runs the check
        return subprocess.run([ENGINE, "healthcheck", "run", name], capture_output=True, check=False).returncode == 0
    return bool(inspect(name)["State"]["Health"]["Status"] == "healthy")
