"""Starts dispatchers without importing everything anew for each, which was most of what a start costs.

A process that has imported everything forks them. Each is a process of its own: its environment, its log, its signals,
its exit status. `python -m dispatcher run` itself is started by tests/docs and e2e/.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn


class Forked:
    """What a test needs of a process that is not its own child."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self._status = status

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit status, less than 0 for a signal; None while it runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("dispatcher run", timeout)
            time.sleep(0.02)
        return status


class Zygote:
    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="zygote-"))
        self._started = 0
        argv = [sys.executable, "-m", "tests.scenarios.zygote"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self._end)

    def start(self, environment: Mapping[str, str], log: Path) -> Forked:
        """Start `dispatcher run` with this environment alone, both outputs going to `log`."""
        self._started += 1
        status = self._folder / str(self._started)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        asked = {"environment": dict(environment), "log": str(log), "status": str(status)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), status)

    def _end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(10)


@cache
def zygote() -> Zygote:
    """The one of this test process."""
    return Zygote()


# --- in the zygote ----------------------------------------------------------------------------------------------------


def _serve() -> None:
    import uvloop  # noqa: F401  imported here, so that nobody else has to

    from dispatcher import app, cli  # noqa: F401  imported here, so that nobody else has to

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # minders are forgotten by themselves
    with open(0, "rb", buffering=0) as asked:
        while line := asked.readline():
            if os.fork() == 0:
                _mind(json.loads(line))


def _mind(asked: Mapping[str, str]) -> NoReturn:
    """Start it, tell its number, wait for its end, and write down how that was."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _run(asked)
    os.write(1, f"{pid}\n".encode())
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    _, status = os.waitpid(pid, 0)
    written = Path(f"{asked['status']}.part")
    written.write_text(str(os.waitstatus_to_exitcode(status)))
    written.rename(asked["status"])
    os._exit(0)


def _run(asked: Mapping[str, str]) -> NoReturn:
    from dispatcher.cli import main

    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[arg-type]  # it is a mapping itself
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        main(["run"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
