"""The Dockerfile's supply chain, from the file alone; `make image` builds it and runs it."""

import re

from tests.deploy.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, frozenset[str]]:
    """Package and version to its hashes, of a requirement file."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    return {line[0]: frozenset(word for word in line if word.startswith("--hash=")) for line in lines}


def test_pip_installs_nothing_that_is_not_pinned_by_hash() -> None:
    installs = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if re.search(r"pip\b.* install", line)]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


def test_what_is_tested_is_what_the_image_holds() -> None:
    """The hashes of the image's requirements are those that this environment was installed by."""
    tested = pins("dev.txt")
    image = pins("runtime.txt") | pins("tracing.txt") | pins("build.txt")
    assert len(image) > 20
    assert {name for name, hashes in image.items() if not hashes or tested.get(name) != hashes} == set()


def test_the_image_is_not_root_and_starts_nothing_by_a_shell() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    for word in ("ENTRYPOINT", "CMD"):
        (command,) = re.findall(rf"^{word} (.+)$", DOCKERFILE, re.MULTILINE)
        assert command.startswith("[")
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_nothing_but_what_the_image_is_made_of_is_sent_to_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    sent = {line[1:] for line in ignored if line.startswith("!")}
    names = {name for line in copied for name in line.split()}
    either = "requirements/${REQUIREMENTS}.txt"
    assert either in names
    assert (names - {either}) | {either.replace("${REQUIREMENTS}", kind) for kind in ("runtime", "tracing")} == sent
