"""An embedded AWS for the demo and the tests: MiniStack from an environment of its own, or moto.

MiniStack pins a botocore that the dispatcher cannot share, so it lives beside it: `make setup` makes
`.venv-emulator`. Without it moto serves (`pip install regional-dispatcher[demo]`), slower and without PartiQL.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from dispatcher.lifecycle import die_with_parent
from dispatcher.settings import EMULATOR

START_S = 30.0


class NoEmulatorError(Exception):
    """No emulator can be had; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """A running emulator. `environment` points any AWS SDK at it."""

    kind: Literal["ministack", "moto"]
    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "emulator",
            "AWS_SECRET_ACCESS_KEY": "emulator",
            "AWS_EC2_METADATA_DISABLED": "true",
            **dict.fromkeys(["NO_PROXY", "no_proxy"], "127.0.0.1,localhost"),
            # moto knows no PartiQL with parameters
            "DISPATCHER_LEDGER_BATCHING": "true" if self.kind == "ministack" else "false",
        }


def ministack() -> Path | None:
    """Return MiniStack's command: DISPATCHER_EMULATOR, or in `.venv-emulator` beside this environment."""
    named = os.environ.get(EMULATOR)
    found = Path(named) if named else Path(sys.prefix).parent / ".venv-emulator" / "bin" / "ministack"
    return found if found.exists() else None


@contextmanager
def embedded(kind: Literal["ministack", "moto"] | None = None) -> Iterator[Cloud]:
    """Start an emulator on a free port of 127.0.0.1 and stop it again. None: the best one there is."""
    command = ministack()
    if kind is None:
        kind = "ministack" if command else "moto"
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    if kind == "ministack":
        if command is None:
            raise NoEmulatorError("MiniStack is not installed: run 'make setup', or set DISPATCHER_EMULATOR")
        argv = [str(command)]
    else:
        if importlib.util.find_spec("moto") is None:
            raise NoEmulatorError("no emulator: run 'make setup', or pip install 'regional-dispatcher[demo]'")
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_"))},
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen(  # noqa: S603  the command is ours or the operator's own
        argv,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, signal.SIGKILL),  # what it would drain to goes too
    )
    try:
        _wait_for(process, endpoint, kind)
        yield Cloud(kind, endpoint)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", endpoint: str, kind: str) -> None:
    health = f"{endpoint}/_ministack/health" if kind == "ministack" else f"{endpoint}/moto-api/"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NoEmulatorError(f"{kind} ended at once with status {process.returncode}")
        try:
            with build_opener(ProxyHandler({})).open(health, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise NoEmulatorError(f"{kind} did not answer within {START_S:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
