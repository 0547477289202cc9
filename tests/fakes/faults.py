"""Trouble on request: what the far side of a call, the wire or the power supply can do to a caller."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dispatcher.errors import AmbiguousError, Cause, RefusedError


class KilledError(BaseException):
    """The process is gone. No `except Exception` sees it, and nothing that it still wants to call happens."""


class Life:
    """Of one simulated process. Every call passes two points where it can die: before the work and after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.died_at: float | None = None
        self.passed: list[str] = []
        self.dies: Callable[[str, int], bool] = lambda point, number: False

    @property
    def dead(self) -> bool:
        return self.died_at is not None

    def kill(self) -> None:
        """Like `kill -9`: no task of it takes another step that anybody else could see."""
        if self.dead:
            return
        self.died_at = asyncio.get_running_loop().time()
        for task in asyncio.all_tasks():
            if task.get_context().get(LIFE) is self and task is not asyncio.current_task():
                task.cancel()

    def passes(self, point: str) -> None:
        if self.dead:
            raise KilledError
        self.passed.append(point)
        if self.dies(point, len(self.passed)):
            self.kill()
            raise KilledError


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to one call."""

    raises: Callable[[], Exception] | None = None
    worked: bool = False  # the fault comes after the work was done: only the answer is lost
    before_s: float = 0.0  # on the way there
    after_s: float = 0.0  # on the way back


def refused(cause: Cause = Cause.REFUSED) -> Trouble:
    return Trouble(lambda: RefusedError(cause, "refused by the script"))


def lost_request(after_s: float = 0.0) -> Trouble:
    return Trouble(lambda: AmbiguousError("lost on its way there"), before_s=after_s)


def lost_answer(after_s: float = 0.0) -> Trouble:
    return Trouble(lambda: AmbiguousError("lost on its way back"), worked=True, after_s=after_s)


def hangs(*, worked: bool = False) -> Trouble:
    """For ever: no time limit saves the caller."""
    return Trouble(after_s=math.inf) if worked else Trouble(before_s=math.inf)


def slow(*, before_s: float = 0.0, after_s: float = 0.0) -> Trouble:
    return Trouble(before_s=before_s, after_s=after_s)


def bug() -> Trouble:
    return Trouble(lambda: ZeroDivisionError("a bug, by the script"))


class Faults:
    """Of one fake. A call takes `latency_s` each way; the work is done at one instant between the two."""

    def __init__(self, latency_s: float = 0.005) -> None:
        self.latency_s = latency_s
        self.calls: Counter[str] = Counter()
        self._planned: dict[tuple[str, int], Trouble] = {}
        self._standing: dict[str, Trouble] = {}
        self._flying: set[asyncio.Task[object]] = set()

    def on(self, operation: str, trouble: Trouble, *numbers: int) -> None:
        """Plan trouble for the n-th calls from now on (the next is 1; none given: the next)."""
        for number in numbers or (1,):
            self._planned[operation, self.calls[operation] + number] = trouble

    def always(self, operation: str, trouble: Trouble) -> None:
        self._standing[operation] = trouble

    def clear(self, operation: str) -> None:
        """From now on nothing is planned for it."""
        self._standing.pop(operation, None)
        self._planned = {key: trouble for key, trouble in self._planned.items() if key[0] != operation}

    async def call[T](self, operation: str, work: Callable[[], T], answered: Callable[[T], None] | None = None) -> T:
        """Do `work` as a lane would: a caller that is cancelled loses the answer, not the call."""
        self.calls[operation] += 1
        number = self.calls[operation]
        trouble = self._planned.pop((operation, number), None) or self._standing.get(operation) or Trouble()
        _passes(f"{operation}:asked")
        task = asyncio.create_task(self._call(operation, work, trouble, answered))
        self._flying.add(task)
        task.add_done_callback(self._landed)
        return await asyncio.shield(task)

    def _landed(self, task: asyncio.Task[object]) -> None:
        self._flying.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone: then nobody else hears of it

    async def _call[T](
        self, operation: str, work: Callable[[], T], trouble: Trouble, answered: Callable[[T], None] | None
    ) -> T:
        await _rest(self.latency_s + trouble.before_s)
        if trouble.raises and not trouble.worked:
            raise trouble.raises()
        _passes(f"{operation}:arrives")
        result = work()
        _passes(f"{operation}:done")
        await _rest(self.latency_s + trouble.after_s)
        if trouble.raises:
            raise trouble.raises()
        if answered:
            answered(result)
        return result


def _passes(point: str) -> None:
    if life := LIFE.get():
        life.passes(point)


async def each[T](calls: Iterable[Coroutine[Any, Any, T]]) -> list[T | Exception]:
    """Make several calls at once, as a lane does; return each one's own answer or error."""
    answers: list[T | Exception] = []
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers


async def _rest(seconds: float) -> None:
    if math.isinf(seconds):
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(seconds)


def freeze(seconds: float) -> None:
    """Stop the process while the world goes on. For `run_virtual` only."""
    vars(asyncio.get_running_loop())["_selector"].now_s += seconds
