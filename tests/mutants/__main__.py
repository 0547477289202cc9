"""`make mutants`: puts each bug into a copy of the tree and asks the tests for it. Exit status 0: all were found."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.bugs import BUGS, ROOT, Bug

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".uv", "build", "*_cache", ".hypothesis", "__pycache__", "*.egg-info"
)


_CRASH = re.compile(r"^E +((?:Type|Name|Attribute)Error.*)", re.MULTILINE)


def tried(bug: Bug, folder: Path) -> str | None:
    """Return the test that found the bug, None if none did."""
    place = folder / bug.file
    right = place.read_text(encoding="utf-8")
    place.write_text(right.replace(bug.before, bug.after), encoding="utf-8")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "-p", "no:cacheprovider", *bug.tests],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        place.write_text(right, encoding="utf-8")
    if crash := _CRASH.search(run.stdout):
        raise SystemExit(f"{bug.name!r} is no bug but a crash ({crash[1]}): bring it up to date")
    found = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    if run.returncode in (1, 2) and found:  # 2: the others were stopped at the first one
        return found[0].split(" - ")[0].removeprefix("FAILED ")
    if run.returncode != 0:
        raise SystemExit(f"pytest could not run for {bug.name!r}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return None


def main() -> int:
    names = sys.argv[1:]
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / ".venv-emulator").symlink_to(ROOT / ".venv-emulator")
        for bug in BUGS:
            if names and not any(name in bug.name for name in names):
                continue
            if not bug.stands(folder):
                raise SystemExit(f"{bug.file}: the place of {bug.name!r} is not there any more: bring it up to date")
            started = time.monotonic()
            by = tried(bug, folder)
            verdict = f"found by {by}" if by else "NOT FOUND"
            print(f"{bug.name:42} {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
            missed += [] if by else [bug.name]
    print(f"{len(missed)} not found: {', '.join(missed)}" if missed else "every bug was found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
