"""structlog, set up once: one line for each thing that happened, never a message body."""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from dispatcher.policy.printable import printable

log = structlog.get_logger()

_told: list[Callable[[Mapping[str, Any]], None]] = []


def tell_warnings_to(hears: Callable[[Mapping[str, Any]], None]) -> None:
    """From now on `hears` is told of each line from warning up, and nobody else."""
    _told[:] = [hears]


def configure(level: str, style: Literal["json", "console"] | None) -> None:
    """Send log lines to standard error; style None: console on a terminal, JSON otherwise."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    terminal = sys.stderr.isatty()
    console = terminal if style is None else style == "console"
    shown = structlog.dev.ConsoleRenderer(colors=terminal and not os.environ.get("NO_COLOR"))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _tell,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *([_printable, shown] if console else [structlog.processors.JSONRenderer()]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # The SDK's and the HTTP server's own words go the same way, from warning up: below that they would tell of
    # signatures and bodies.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(console=console))
    handler.addFilter(_is_news)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def sign(**who: Any) -> None:
    """From now on each line says who wrote it."""
    structlog.contextvars.bind_contextvars(**who)


def _tell(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if level not in ("debug", "info"):
        for hears in _told:
            hears(event)
    return event


def _is_news(record: logging.LogRecord) -> bool:
    """What anybody can send to a port is none, and would fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class _Lines(logging.Formatter):
    """One line for each record of a library, whatever is in it."""

    def __init__(self, *, console: bool) -> None:
        super().__init__()
        self._console = console

    def format(self, record: logging.LogRecord) -> str:
        said = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if self._console:
            return printable(" ".join(f"{name}={value}" for name, value in said.items()))
        return json.dumps(said)


def _printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A terminal obeys some characters; somebody else's text must not command it, nor look like a line of ours."""

    def shown(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if name == "exception":
            return "\n".join(f"    {printable(line)}" for line in value.splitlines())
        return printable(value)

    return {name: shown(name, value) for name, value in event.items()}
