import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from dispatcher.cli import main
from dispatcher.demo.cloud import Cloud

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(ministack: Cloud) -> Run:
    """Run `dispatcher …` on the emulator, with `settings` besides. In this process, or a third of CI would be imports;
    `tests/unit/test_cli.py` and `tests/docs` type commands into shells.
    """

    def command(
        *arguments: str, settings: Mapping[str, str] = {}, text: str = "", on: Cloud | None = ministack
    ) -> "subprocess.CompletedProcess[str]":
        environment = {**(on.environment if on else {}), **settings}
        if arguments[0] in ("demo", "dev"):  # many processes and threads, and signals
            argv = [sys.executable, "-m", "dispatcher", *arguments]
            environment = {**os.environ, **environment}
            return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True, timeout=100)
        with ThreadPoolExecutor(1) as thread:  # where no event loop runs
            ended = thread.submit(CliRunner().invoke, main, arguments, input=text, env=environment).result()
        if ended.exception and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return subprocess.CompletedProcess(arguments, ended.exit_code, ended.stdout, ended.stderr)

    return command
