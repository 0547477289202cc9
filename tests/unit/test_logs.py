"""One line for each event, whatever somebody else's text holds."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage

from dispatcher.policy.printable import printable
from dispatcher.telemetry import logs

EVIL = 'x"}\n{"event":"message.dispatched","request_id":"forged"}\r\n\x1b[2J\x07\u2028\ud800'


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = before, level


def test_whoever_listens_is_told_of_warnings_and_worse_and_of_nothing_else() -> None:
    heard: list[str] = []
    logs.configure("debug", "json")
    logs.tell_warnings_to(lambda event: heard.append(f"nobody: {event['event']}"))
    logs.tell_warnings_to(lambda event: heard.append(str(event["event"])))
    for level in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), level)(f"a.{level}")
    logs.tell_warnings_to(lambda _: None)
    assert heard == ["a.warning", "a.error"]


def test_nothing_in_a_json_line_begins_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().warning("message.rejected", reason=EVIL, message_id="m-1")
    logging.getLogger("botocore").warning("a library says %s", EVIL)
    lines = [json.loads(line) for line in capsys.readouterr().err.split("\n") if line]
    assert [line["event"] for line in lines] == ["message.rejected", f"a library says {EVIL}"]
    assert lines[0]["reason"] == EVIL
    assert lines[1]["logger"] == "botocore"


def test_nothing_on_a_console_commands_the_terminal_or_looks_like_a_line_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "console")
    structlog.get_logger().warning("message.rejected", reason=EVIL)
    logging.getLogger("botocore").warning("a library says %s", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        structlog.get_logger().exception("message.failed")
    text = capsys.readouterr().err
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\r" not in text
    assert not [line for line in text.splitlines() if line.startswith('{"event":"message.dispatched"')]
    (line,) = [line for line in text.splitlines() if "message.rejected" in line]
    assert "forged" in line, "spelt out, on the line where it belongs"


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_a_console_s_colours_are_for_terminals_and_for_who_wants_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool, no_color: str, coloured: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    logs.configure("info", "console")
    structlog.get_logger().warning("a.line")
    assert ("\x1b[" in capsys.readouterr().err) is coloured


@pytest.mark.parametrize("style", ["json", "console"])
def test_an_exception_of_a_library_stays_with_its_line(capsys: pytest.CaptureFixture[str], style: str) -> None:
    logs.configure("info", style)  # type: ignore[arg-type]  # a parameter is any text
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: why" in line


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_sdk_s_own_debugging_which_shows_signatures_is_never_heard(
    capsys: pytest.CaptureFixture[str], level: str
) -> None:
    logs.configure(level, "json")
    logging.getLogger("botocore.auth").debug("Signature: %s", "secret")
    logging.getLogger("botocore.credentials").info("Found credentials in %s", "secret")
    assert "secret" not in capsys.readouterr().err


def test_what_anybody_can_send_to_the_port_does_not_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise BadHttpMessage("garbage")
    except BadHttpMessage:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    assert capsys.readouterr().err == ""


def test_printable_text_is_left_alone() -> None:
    assert printable("réq/1 🦊") == "réq/1 🦊"
    assert printable("a\nb\x1b") == "a\\nb\\x1b"
