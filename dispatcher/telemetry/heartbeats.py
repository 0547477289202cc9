"""Liveness that means something: each supervised loop beats, and one that stopped beating is named."""

from collections.abc import Callable


class Heartbeats:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: dict[str, tuple[float, float]] = {}

    def expect(self, name: str, every_s: float) -> None:
        """From now on `name` must beat at least this often (seconds)."""
        self._last[name] = (self._now(), every_s)

    def beat(self, name: str) -> None:
        _, every_s = self._last[name]
        self._last[name] = (self._now(), every_s)

    def forget(self, name: str) -> None:
        """The loop ended as it should."""
        self._last.pop(name, None)

    def stuck(self) -> list[str]:
        """Return the loops that are overdue, with how long."""
        now = self._now()
        overdue = ((name, now - last, every_s) for name, (last, every_s) in sorted(self._last.items()))
        return [f"{name}: no beat for {age:.0f} s" for name, age, every_s in overdue if age > every_s]
