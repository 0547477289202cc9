"""The phase of the process, and the signals that move it.

The first SIGTERM or SIGINT drains; a second one stops at once, whatever is under way.
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import structlog

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self._drain = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._drain.is_set()

    def drain(self) -> None:
        """Take nothing new."""
        self.phase = Phase.DRAINING
        self._drain.set()

    async def until_draining(self) -> None:
        await self._drain.wait()

    @contextmanager
    def signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self.draining:
            log.error("process.stopped_at_once", hint="what was in flight returns when its visibility ends")
            os._exit(1)
        log.info("process.draining", hint="a second signal stops at once")
        self.drain()


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """In a new process: on Linux it gets this signal when its parent is killed; elsewhere it goes on, until somebody
    ends it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
