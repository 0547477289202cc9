"""Fixtures that several folders use, and no others."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from dispatcher.demo.cloud import Cloud, embedded
from tests.scenarios.world import World, provisioned, world_of

# A deadline is an assertion on elapsed time, and these machines are shared.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

REAL_TIME = {"chaos", "contracts", "docs", "page", "scenarios"}
"""Folders whose tests wait on the machine's own clock, for processes and emulators that share two cores with others.

One that fails runs once more, and the summary says why it had to. A fault of the code fails twice; one that is a matter
of luck is looked for where luck is seeded: tests/world, which gets no second chance.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REAL_TIME & set(item.path.relative_to(item.config.rootpath).parts):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell why a test ran twice: pytest-rerunfailures keeps it to itself once the second run passes."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed, and ran once more: {report.nodeid}")
        terminalreporter.line(report.longreprtext)
        for title, content in report.sections:
            terminalreporter.section(title, sep="-")
            terminalreporter.line(content)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings and credentials of their own; no test sees them."""
    import os

    for name in list(os.environ):
        if name.startswith(("DISPATCHER_", "AWS_")) and name != "DISPATCHER_EMULATOR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def ministack() -> Iterator[Cloud]:
    """One MiniStack for this test process; tests take names of their own on it."""
    with embedded("ministack") as cloud:
        yield cloud


@pytest.fixture(scope="session")
def moto() -> Iterator[Cloud]:
    """One moto server for this test process: for the single-write ledger, since it knows no PartiQL."""
    with embedded("moto") as cloud:
        yield cloud


@pytest.fixture
async def world(ministack: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with monkeypatch.context() as patch:
        for name, value in ministack.environment.items():
            patch.setenv(name, value)
        resources = await provisioned()
    async with world_of(ministack, resources, tmp_path) as world:
        yield world
