"""Every command of the documentation: run here as it stands, or run elsewhere and known to be a command there is.

What an emulator suffices for is run, block by block, beside a daemon at work. The rest (Terraform, containers, an AWS
account) is run by e2e/ or by nobody but a user: of that every `make` target, every `dispatcher` option and every `aws`
operation and option must exist, and every block must be shell.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import botocore.session
import click
import pytest

from dispatcher.cli import main
from dispatcher.demo.cloud import Cloud, free_port

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TOKEN = "a-token-of-some-length"
ELSEWHERE = {  # programs that are not run here, and what of this repository runs them
    "make": "CI, or by hand: test_every_make_target_of_the_pages_exists",
    "docker": "e2e/test_image.py and e2e/test_compose.py",
    "terraform": "e2e/test_terraform.py",
    "aws": "nobody without an account: test_every_aws_command_is_one_that_aws_has",
    "jq": "beside terraform and aws",
    "pip": "tests/packaging",
    "git": "a user, once",
    "npm": "docs/diagrams/draw.py",
}


FOR_A_WHILE = """
for_a_while() {  # until it has said that it is at work, however slow the machine is; then it is stopped, and ends well
    DISPATCHER_HTTP_PORT=0 "$@" >said.log 2>&1 & local pid=$!
    until grep -qE 'process.running|served:|sent [0-9]' said.log || ! kill -0 $pid 2>/dev/null; do sleep 0.2; done
    kill -TERM $pid 2>/dev/null || cat said.log >&2
    wait $pid
}
"""


@dataclass(frozen=True)
class Block:
    page: Path
    number: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}#{self.number}"

    @property
    def commands(self) -> list[list[str]]:
        """The simple commands, without what they are piped into or substituted for."""
        joined = re.sub(r"'[^']*'", "'quoted'", self.text.replace("\\\n", " "))
        found = []
        for line in joined.splitlines():
            for part in re.split(r"\$\(|\||&&|;|\bdo\b|\bdone\b", line.split(" #")[0]):
                words = [word for word in re.split(r"\s+", part.strip(' )"&')) if word]
                while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("eval", "do")):
                    words = words[1:]
                if words and not words[0].startswith("#"):
                    found.append(words)
        return found


BLOCKS = [
    Block(page, number, text)
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), 1)
]
PROSE = {page: re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL) for page in PAGES}
HERE = ("dispatcher", ".venv/bin/dispatcher", "curl", "echo", "export", "BIND_HOST=127.0.0.1")


def run_here(block: Block) -> bool:
    """It is about the dispatcher, and needs no more than an emulator."""
    programs = {words[0] for words in block.commands}
    ours = programs & {"dispatcher", ".venv/bin/dispatcher", "curl"}
    return bool(ours) and not programs & {"terraform", "aws", "docker", "jq", "git"}


RUN = [block for block in BLOCKS if run_here(block)]


def test_the_blocks_that_show_commands_say_that_they_do() -> None:
    kinds = {kind for page in PAGES for kind in re.findall(r"^```([^\n]*)\n", page.read_text(), re.MULTILINE) if kind}
    assert kinds <= {"sh", "text", "json", "python", "hcl", "promql", "mermaid", "{toctree}"} | {
        kind for kind in kinds if kind.startswith("{include}")
    }
    assert len(RUN) >= 10


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_is_shell_and_every_program_of_it_is_run_here_or_elsewhere(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    known = {*HERE, *ELSEWHERE, "cd", "date", "for", "generate", ".venv/bin/python", ".venv-emulator/bin/ministack"}
    assert {words[0] for words in block.commands if not words[0].startswith(("-", "'", '"'))} <= known


@pytest.fixture(scope="module")
def shell(ministack: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user's terminal, with a daemon at work in another one."""
    folder = tmp_path_factory.mktemp("shell")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_"))},
        **ministack.environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DISPATCHER_HTTP_HOST": "127.0.0.1",
        "DISPATCHER_HTTP_PORT": str(port),
        "DISPATCHER_HTTP_TOKEN": TOKEN,
        "DISPATCHER_DEPTH_TTL_SECONDS": "4",
        "DISPATCHER_POLL_WAIT_SECONDS": "1",
    }
    made = subprocess.run(["dispatcher", "init", "--json"], env=environment, capture_output=True, check=True)
    environment |= json.loads(made.stdout)
    with (folder / "run.log").open("wb") as log:
        daemon = subprocess.Popen(["dispatcher", "run"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(port):
            assert time.monotonic() < deadline, (folder / "run.log").read_text()
            time.sleep(0.1)
        yield environment
    finally:
        daemon.terminate()
        daemon.wait(30)


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_what_the_pages_tell_a_user_to_type_works(block: Block, shell: dict[str, str], tmp_path: Path) -> None:
    script = block.text
    for pattern, replacement in [
        (r"make setup|pip install .*|.*bin/ministack", ":"),  # done already; tried elsewhere
        (r"http://127\.0\.0\.1:4566", shell["AWS_ENDPOINT_URL"]),
        (r"http://127\.0\.0\.1:8080", f"http://127.0.0.1:{shell['DISPATCHER_HTTP_PORT']}"),
        (r"\.venv/bin/dispatcher", "dispatcher"),
        # what runs until it is stopped is stopped, beside the daemon that has the port
        (r"dispatcher (run|dev \w+)", r"for_a_while dispatcher \1"),
        (r"dispatcher status first-1", "sleep 3; dispatcher status first-1"),
        (r"simulate spot-loss", "simulate spot-loss --minutes 2"),  # the whole of it is played in tests/simulation
        (r"--watch", "--help"),
    ]:
        script = re.sub(pattern, replacement, script)
    (tmp_path / "requests.jsonl").write_text(
        "".join(
            json.dumps({"request_id": f"{block.name}-{n}", "model_name": "m", "input_data_url": "s3://b/k"}) + "\n"
            for n in range(20)
        )
    )
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", FOR_A_WHILE + script + "\nwait"],
        env=shell, cwd=tmp_path, input="y\n", capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert ended.returncode == 0, f"{script}\n{ended.stdout}\n{ended.stderr}"
    assert "Traceback" not in ended.stderr


# --- what is not run here is there ------------------------------------------------------------------------------------


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in PROSE.values() for name in re.findall(r"`make\s+([a-z0-9-]+)", text)}
    named |= {words[1] for block in BLOCKS for words in block.commands if words[0] == "make" and len(words) > 1}
    assert named - targets == set()
    assert {"demo", "test", "check", "docs"} <= named


def invocations() -> list[str]:
    inline = [text for page in PROSE.values() for text in re.findall(r"`dispatcher\s+([a-z][^`]*)`", page)]
    blocks = [
        " ".join(words[1:])
        for block in BLOCKS
        for words in block.commands
        if words[0].endswith("dispatcher") and words[1:]
    ]
    return sorted({" ".join(text.split()) for text in [*inline, *blocks]})


@pytest.mark.parametrize("said", invocations())
def test_every_dispatcher_command_of_the_pages_has_that_command_and_those_options(said: str) -> None:
    said = re.sub(r"\bbash\|zsh\|fish\b", "bash", said)
    arguments = [word for word in shlex.split(re.sub(r"(?<=\w)'(?=\w)", "", said)) if word not in ("…", "&", "[", "]")]
    if arguments in (["dlq"], ["--version"]):
        return
    group: click.Command = main
    while isinstance(group, click.Group) and arguments:
        name, *arguments = arguments
        assert name in group.commands, f"there is no {name!r}"
        group = group.commands[name]
    options = {opt for param in group.params for opt in param.opts} | {"--help"}
    assert {word for word in arguments if word.startswith("--")} <= options


AWS = [words[1:] for block in BLOCKS for words in block.commands if words[0] == "aws"]
CUSTOM = {("ecr", "get-login-password"), ("logs", "tail")}  # of the CLI itself, not of the service
GLOBAL = {"--region", "--query", "--output", "--profile"}


@pytest.mark.parametrize("words", AWS, ids=lambda words: " ".join(words[:2]))
def test_every_aws_command_is_one_that_aws_has(words: list[str]) -> None:
    service, operation, *rest = words
    if (service, operation) in CUSTOM:
        return
    model = botocore.session.get_session().get_service_model(service)
    camel = "".join(part.capitalize() for part in operation.split("-"))
    assert camel in model.operation_names
    shape = model.operation_model(camel).input_shape
    options = {"--" + re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in (shape.members if shape else ())}
    switches = {"--force"}
    assert {word for word in rest if word.startswith("--")} <= options | GLOBAL | switches
