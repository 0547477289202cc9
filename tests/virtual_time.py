"""asyncio on a clock that jumps: an hour of sleeping costs nothing, and a hang fails at once."""

import asyncio
import selectors
from collections.abc import Coroutine


class _Jump(selectors.DefaultSelector):
    """Moves the clock instead of waiting; with no timer set, nothing can ever happen again."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("deadlock: every task waits and no timer is set")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


def virtual_runner() -> asyncio.Runner:
    """Return a runner in virtual time, which starts at 0 s and stands still between two runs."""

    def loop() -> asyncio.AbstractEventLoop:  # made when it is first used: what is not used is not closed
        jump = _Jump()
        made = asyncio.SelectorEventLoop(jump)
        made.time = lambda: jump.now_s  # type: ignore[method-assign]  # a loop's clock cannot be given otherwise
        return made

    return asyncio.Runner(loop_factory=loop)


def run_virtual[T](main: Coroutine[object, object, T]) -> T:
    """Run to the end in virtual time."""
    with virtual_runner() as runner:
        return runner.run(main)
