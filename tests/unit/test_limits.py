"""A client's calls each end in time, whichever others are under way."""

import asyncio
from typing import Any

import pytest

from dispatcher.aws.clients import Caller
from dispatcher.clock import Clock
from dispatcher.errors import AmbiguousError
from dispatcher.model import Region
from dispatcher.telemetry.metrics import Metrics
from tests.virtual_time import run_virtual

LIMIT_S = 10.0


class Slow:
    async def answer(self, *, after: float) -> dict[str, Any]:
        await asyncio.sleep(after)
        return {}


def caller() -> Caller:
    return Caller(Slow(), "sqs", Region("r"), Clock(), Metrics.unread(), LIMIT_S)


async def ends(call: Caller, *, begins: float, takes: float) -> tuple[bool, float]:
    """Return whether the call was answered, and when (loop time) it ended."""
    await asyncio.sleep(begins)
    try:
        await call("answer", after=takes)
    except AmbiguousError:
        return False, asyncio.get_running_loop().time()
    return True, asyncio.get_running_loop().time()


def test_each_call_ends_when_its_own_time_is_over_and_no_other() -> None:
    async def main() -> None:
        call = caller()
        calls = [(0.0, 100.0), (0.0, 9.9), (4.0, 3.0), (6.0, 100.0), (6.0, 9.9), (16.0, 9.9), (40.0, 100.0)]
        heard = await asyncio.gather(*(ends(call, begins=begins, takes=takes) for begins, takes in calls))
        assert [answered for answered, _ in heard] == [takes < LIMIT_S for _, takes in calls]
        assert [at for _, at in heard] == pytest.approx([begins + min(takes, LIMIT_S) for begins, takes in calls])

    run_virtual(main())


def test_a_call_that_its_caller_gave_up_is_nobody_s_any_more() -> None:
    async def main() -> None:
        call = caller()
        given_up = asyncio.create_task(ends(call, begins=0.0, takes=100.0))
        await asyncio.sleep(9.0)
        given_up.cancel()
        assert await ends(call, begins=0.0, takes=5.0) == (True, 14.0)
        assert given_up.cancelled()

    run_virtual(main())
