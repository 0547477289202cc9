"""The command line as such: help, colours, completion, and what becomes of a user's mistake."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import click
import pytest
from click.testing import CliRunner

from dispatcher import __version__
from dispatcher.__main__ import main as started
from dispatcher.cli import main

CONTRACT = {"run", "demo", "healthcheck", "init", "check", "submit", "status", "dlq", "simulate"}


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands())


def test_every_command_of_the_contract_is_there() -> None:
    assert main.commands.keys() >= CONTRACT
    assert {("dlq", "list"), ("dlq", "redrive"), ("dlq", "purge")} <= ALL.keys()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself_with_an_example_and_each_option_with_a_word(path: tuple[str, ...]) -> None:
    said = CliRunner().invoke(main, [*path, "--help"])
    assert said.exit_code == 0
    assert "Example: " in said.output
    assert f"dispatcher {' '.join(path)}" in said.output.split("Example: ", 1)[1]
    for option in ALL[path].params:
        assert not isinstance(option, click.Option) or option.help, f"{option.opts} has no help"


@pytest.mark.parametrize("path", [*ALL, (), ("dlq",), ("dev",)], ids=" ".join)
def test_help_fits_a_narrow_terminal_and_no_summary_is_cut(path: tuple[str, ...]) -> None:
    said = CliRunner().invoke(main, [*path, "--help"], env={"COLUMNS": "80"})
    assert [line for line in said.output.splitlines()[1:] if len(line) > 80 or line.endswith("...")] == []


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_that_prints_a_result_can_print_it_as_json(path: tuple[str, ...]) -> None:
    without = {("run",), ("dev", "produce"), ("dev", "workers"), ("completion",)}  # they print no result
    assert ("--json" in {name for p in ALL[path].params for name in p.opts}) is (path not in without)


def test_the_version_comes_from_one_place() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"dispatcher, version {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str) -> None:
    said = CliRunner().invoke(main, ["completion", shell])
    assert said.exit_code == 0
    assert "_DISPATCHER_COMPLETE" in said.output


def test_completion_completes() -> None:
    asked = {**os.environ, "_DISPATCHER_COMPLETE": "bash_complete", "COMP_WORDS": "dispatcher dl", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("dispatcher")
    said = subprocess.run([program], env=asked, capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "plain,dlq"


SETTINGS = {
    "DISPATCHER_HOME_REGION": "us-east-1",
    "DISPATCHER_MASTER_QUEUE_URL": "http://127.0.0.1:9/000000000000/m",
    "DISPATCHER_REGIONS": json.dumps({"us-east-1": "http://127.0.0.1:9/000000000000/r"}),
    "DISPATCHER_LEDGER_TABLE": "t",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
}
MISTAKES: list[tuple[list[str], dict[str, str], int, str]] = [
    (["nonsense"], {}, 2, "No such command"),
    (["run", "--nonsense"], {}, 2, "No such option"),
    (["run"], {"DISPATCHER_REGIONS": "{"}, 2, "DISPATCHER_REGIONS: must be JSON"),
    (["check", "--config", "/"], {}, 2, "is a directory"),
    (["check", "--config", "/nowhere.toml"], {}, 2, "/nowhere.toml: cannot be read"),
    (["check"], {"DISPATCHER_LEDGER_TABLE": ""}, 2, "DISPATCHER_LEDGER_TABLE: is required"),
    (["healthcheck"], {"DISPATCHER_HTTP_PORT": "x"}, 1, "DISPATCHER_HTTP_PORT: "),
    (["check"], {"DISPATCHER_POLERS": "9"}, 1, "DISPATCHER_POLERS is not a setting; it is ignored"),
    (["submit"], {}, 2, "say what to send"),
    (["submit", "-", "--count", "3"], {}, 2, "exclude each other"),
    (["submit", "/nowhere.jsonl"], {}, 2, "does not exist"),
    (["submit", "/"], {}, 2, "is a directory"),
    (["submit", "--count", "0"], {}, 2, "0 is not in the range"),
    (["submit", "--count", "1", "--journal", "x"], {}, 2, "--journal is for"),
    (["submit", "-", "--journal", "/nowhere/journal"], {}, 1, "the journal /nowhere/journal cannot be written"),
    (["status", ""], {}, 2, "a request id has"),
    (["status", "x"], {}, 1, "the table t: it cannot be reached (unreachable: "),
    (["status", "x"], {"AWS_ENDPOINT_URL": "nonsense"}, 1, "AWS_ENDPOINT_URL is no URL (refused: "),
    (["status", "x"], {"AWS_ENDPOINT_URL": "localhost:4566"}, 1, "begin it with http:// or https://"),
    (["run"], {"AWS_ENDPOINT_URL": "localhost:4566"}, 1, "AWS_ENDPOINT_URL is no URL"),
    (["init"], {}, 1, "check AWS_ENDPOINT_URL, DNS, proxy"),
    (
        ["submit", "--count", "1"],
        {},
        1,
        "dispatcher: line 1: the master queue http://127.0.0.1:9",
    ),
    (["submit", "--count", "25"], {}, 1, "18, 19, 20 and 5 more: the master queue"),
    (["dlq", "list"], {}, 1, "the master queue http://127.0.0.1:9/000000000000/m: it cannot be reached"),
    (["status", "x"], {"AWS_PROFILE": "nobody", "AWS_CONFIG_FILE": "/nowhere"}, 1, "profile (nobody)"),
    (["dlq", "redrive", "--rate", "nan"], {}, 2, "--rate"),
    (["dlq", "list", "--id", ""], {}, 2, "is empty"),
    (["simulate", "nothing"], {}, 2, "no scenario 'nothing'"),
    (["simulate", "recorded", "--file", "/nowhere"], {}, 1, "/nowhere"),
    (["simulate", "--plot", "/nowhere/x.svg"], {}, 2, "there is no folder /nowhere"),
    (["record", "/nowhere/x.jsonl"], {}, 1, "/nowhere/x.jsonl"),
    (["init", "--regions", "mars"], {}, 2, "'mars' is not the name of an AWS Region"),
    (["completion", "tcsh"], {}, 2, "'tcsh' is not one of"),
]


@pytest.mark.parametrize(("arguments", "settings", "status", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_user_s_mistake_ends_with_a_line_that_says_so_and_never_a_traceback(
    arguments: list[str], settings: dict[str, str], status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SETTINGS | settings).items():
        monkeypatch.setenv(name, value)
    ended = CliRunner().invoke(main, arguments, input="")
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    assert (ended.exit_code, said in ended.stderr) == (status, True), ended.output
    assert "Traceback" not in ended.output
    assert ended.stderr.count("unreachable: ") <= 1


@contextmanager
def answering(host: str, answer: bytes) -> Iterator[int]:
    """Give the port where something answers `answer` to whoever comes."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:

        def answer_all() -> None:
            with suppress(OSError):  # closed
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = Thread(target=answer_all)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("listening", "host", "answer", "status", "said"),
    [
        ("127.0.0.1", "0.0.0.0", b"HTTP/1.0 200 OK\r\n\r\n", 0, "healthy: http://127.0.0.1:"),
        ("::1", "::", b"HTTP/1.0 200 OK\r\n\r\n", 0, "healthy: http://[::1]:"),
        ("127.0.0.1", "127.0.0.1", b"HTTP/1.0 503 No\r\n\r\nstuck", 1, "answered 503: stuck"),
        ("127.0.0.1", "127.0.0.1", b"SSH-2.0-OpenSSH\r\n", 1, "does not answer in HTTP"),
    ],
)
def test_the_health_check_asks_the_daemon_where_it_listens_and_no_proxy(
    listening: str, host: str, answer: bytes, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(listening, answer) as port:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("DISPATCHER_HTTP_HOST", host)
        monkeypatch.setenv("DISPATCHER_HTTP_PORT", str(port))
        ended = CliRunner().invoke(main, ["healthcheck"])
    assert (ended.exit_code, said in ended.output) == (status, True), ended.output


@pytest.mark.parametrize(("no_color", "expected"), [("", True), ("1", False)])
def test_colours_are_for_terminals_and_only_for_who_wants_them(no_color: str, expected: bool) -> None:
    """On a pseudo-terminal; everywhere else nobody sees an escape, as every other test of output shows."""
    import pty

    theirs, ours = pty.openpty()
    environment = {**os.environ, **SETTINGS, "TERM": "xterm", "NO_COLOR": no_color}
    subprocess.run(
        [sys.executable, "-m", "dispatcher", "check"], env=environment, stdout=ours, stderr=ours, timeout=100
    )
    os.close(ours)
    seen = b""
    try:
        while chunk := os.read(theirs, 65536):
            seen += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(theirs)
    assert b"cannot be reached" in seen
    assert (b"\x1b[31mFAIL" in seen) is expected


def test_a_submission_typed_in_says_what_it_waits_for() -> None:
    import pty

    theirs, ours = pty.openpty()
    os.write(theirs, b'{\n"request_id": "r"}\n\x04')
    argv = [sys.executable, "-m", "dispatcher", "submit", "-"]
    ended = subprocess.run(
        argv, env={**os.environ, **SETTINGS}, stdin=ours, capture_output=True, text=True, timeout=100
    )
    os.close(ours)
    os.close(theirs)
    assert "type one JSON object a line" in ended.stderr
    assert "none was sent; each line must be one JSON object" in ended.stderr


def test_an_interrupt_while_it_is_imported_ends_it_as_any_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "dispatcher.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dispatcher.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit, match="Aborted!"):
        started()


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    environment = {**os.environ, **SETTINGS}
    program = f"{sys.executable} -m dispatcher check | head -n 1"
    ended = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert ended.stdout.startswith("ok   configuration")
    assert ended.stderr == ""
