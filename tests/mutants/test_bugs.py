"""The bugs of `make mutants` must have a place to stand, or it proves nothing."""

import pytest

from tests.mutants.bugs import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_deliberate_bug_fits_the_code_of_today(bug: Bug) -> None:
    assert bug.stands(), f"{bug.file} has changed: bring tests/mutants/bugs.py up to date"
    assert bug.before != bug.after
    compile((ROOT / bug.file).read_text(encoding="utf-8").replace(bug.before, bug.after), bug.file, "exec")
