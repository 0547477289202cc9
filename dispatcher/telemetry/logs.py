"""structlog, set up once: one line for each thing that happened, never a message body."""

import logging
import sys
from typing import Literal

import structlog

log = structlog.get_logger()


def configure(level: str, style: Literal["json", "console"] | None) -> None:
    """Send log lines to standard error; style None: console on a terminal, JSON otherwise."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = sys.stderr.isatty() if style is None else style == "console"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # The SDK's and the HTTP server's own words go the same way, from warning up.
    logging.basicConfig(
        stream=sys.stderr, level=max(threshold, logging.WARNING), format='{"logger":"%(name)s","event":"%(message)s"}'
    )
