"""The reference says what the code says."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from reference import pages  # noqa: E402  docs/ is no package


@pytest.mark.parametrize(("path", "text"), pages().items(), ids=lambda value: getattr(value, "stem", ""))
def test_the_reference_is_up_to_date(path: Path, text: str) -> None:
    assert path.read_text() == text, "run docs/reference.py (make docs)"
