"""The reference says what the code says."""

import re
import sys
from pathlib import Path

import pytest

from dispatcher.aws import ledger, master, regional

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from reference import pages  # noqa: E402  docs/ is no package


@pytest.mark.parametrize(("path", "text"), pages().items(), ids=lambda value: getattr(value, "stem", ""))
def test_the_reference_is_up_to_date(path: Path, text: str) -> None:
    assert path.read_text() == text, "run docs/reference.py (make docs)"


def test_the_pages_tell_the_lanes_lingers_as_they_are() -> None:
    lingers = {
        "claims": ledger.CLAIM_LINGER_S,
        "confirmations": ledger.CONFIRM_LINGER_S,
        "reads of duplicates": ledger.READ_LINGER_S,
        "sends, one lane a queue": regional.SEND_LINGER_S,
        "deletes": master.DELETE_LINGER_S,
        "visibility changes": master.EXTEND_LINGER_S,
    }
    rows = re.findall(r"^\| (.+) \| .+ \| (\d+) ms \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert {lane: int(ms) / 1000 for lane, ms in rows} == lingers
    window = f"| confirmations linger {1000 * ledger.CONFIRM_LINGER_S:.0f} ms;"
    assert window in (ROOT / "docs" / "guarantees.md").read_text()
