"""The roots of `per-region-state` applied for real, to an emulator; then the daemon runs with what Terraform printed.

`make e2e-terraform`. The provider that lies on some machines is 5.100.0, which knows no `region` on a resource. Each of
these roots has its own Region as the provider's, so the tree is copied and those lines are dropped; nothing else of it
changes but what is said below. TF_PLUGIN_DIR names the folder of plugins that has the provider.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from dispatcher.demo.cloud import Cloud, embedded, free_port
from tests.deploy.conftest import ROOT
from tests.scenarios.proxy import HOST
from tests.scenarios.world import Dispatcher, until

PROVIDER = "5.100.0"
REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
REQUESTS = 60


PLUGINS = os.environ.get("TF_PLUGIN_DIR") if shutil.which("terraform") else None
pytestmark = pytest.mark.skipif(
    not PLUGINS, reason=f"NOT RUN: terraform and the AWS provider {PROVIDER} are needed; TF_PLUGIN_DIR says where"
)


def without_regions(tree: Path) -> int:
    """Make the copy one for provider 5.100.0; return how many lines that took."""
    dropped = 0
    for path in tree.rglob("*.tf"):
        lines, inside = list[str](), False
        for line in path.read_text().splitlines():
            inside = bool(re.match(r'(resource|data) "aws_', line)) or (inside and line != "}")
            if inside and re.match(r"  region +=", line):
                dropped += 1
            else:
                lines.append(line)
        text = "\n".join(lines).replace(">= 6.8, < 7.0", PROVIDER)
        text = text.replace("= 1048576", "= 262144")  # the provider does not know SQS's larger messages yet
        text = text.replace('provider "aws" {', 'provider "aws" {\n  skip_credentials_validation = true')
        path.write_text(text + "\n")
    return dropped


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    with embedded("ministack") as running:
        yield running


async def run(*argv: str, environment: dict[str, str], within: float = 900.0) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), within)
    assert process.returncode == 0, f"{argv}: {err.decode()[-4000:]}{out.decode()[-2000:]}"
    return out.decode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of deploy/terraform for the provider that is here."""
    copy = tmp_path / "terraform"
    shutil.copytree(ROOT / "deploy/terraform", copy, ignore=shutil.ignore_patterns("states", ".terraform"))
    assert without_regions(copy) > 40
    return copy


def on(cloud: Cloud) -> dict[str, str]:
    """The environment of Terraform and of the commands."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_", "TF_"))}
    return {
        **outside,
        **cloud.environment,
        "AWS_ACCESS_KEY_ID": "000000000000",
        "CHECKPOINT_DISABLE": "1",
        "TF_CLI_ARGS_init": f"-plugin-dir={PLUGINS}",
    }


@pytest.mark.parametrize("example", ["single-region", "three-regions", "existing-vpc"])
async def test_the_provider_plans_every_resource_of_a_first_apply(cloud: Cloud, tree: Path, example: str) -> None:
    """Services and all: it refuses values that a schema does not know, and what must be known before the apply."""
    folder = f"-chdir={tree}/examples/{example}"
    environment = on(cloud) | {
        "TF_VAR_image": "123456789012.dkr.ecr.{region}.amazonaws.com/dispatcher@sha256:" + 64 * "0",
        "TF_VAR_vpc_id": "vpc-1",
        "TF_VAR_subnet_ids": '["subnet-1", "subnet-2"]',
    }
    await run("terraform", folder, "init", "-input=false", environment=environment)
    planned = await run("terraform", folder, "plan", "-input=false", "-no-color", environment=environment)
    (line,) = re.findall(r"^Plan: (\d+) to add, 0 to change, 0 to destroy", planned, re.MULTILINE)
    print(f"{example}: {line} resources")
    assert "aws_ecs_service.this" in planned


@pytest.mark.timeout(1200)
async def test_what_terraform_applies_is_what_the_daemon_runs_on(cloud: Cloud, tree: Path, tmp_path: Path) -> None:
    roots = tree / "examples/per-region-state"
    environment = on(cloud) | {
        "TERRAFORM_ARGS": "-auto-approve -no-color",
        "TF_VAR_replicate_images": "false",  # the emulator knows no replication
        "TF_VAR_spot_warnings": "true",
    }
    print("applying four roots: some five minutes, most of it the provider's waiting for SQS")
    printed = await run(str(roots / "apply"), REGIONS[0], *REGIONS, environment=environment)
    settings: dict[str, str] = json.loads(printed)

    # again, as after a Region was lost: it is left alone and stays in the fleet
    shutil.rmtree(roots / "states" / REGIONS[2])
    (roots / f"{REGIONS[2]}.tfbackend").write_text('path = "/nowhere/to/be/found"\n')
    again = await run(str(roots / "apply"), REGIONS[0], *REGIONS, environment=environment | {"SKIP": REGIONS[2]})
    assert json.loads(again) == settings
    assert set(json.loads(settings["DISPATCHER_REGIONS"])) == set(REGIONS)

    dispatcher = [sys.executable, "-m", "dispatcher"]
    port = free_port()
    environment |= settings | {"DISPATCHER_HTTP_HOST": HOST, "DISPATCHER_HTTP_PORT": str(port)}
    findings = json.loads(await run(*dispatcher, "check", "--json", environment=environment))
    assert [finding for finding in findings if not finding["ok"]] == []
    print(f"dispatcher check: {len(findings)} lines, all ok")

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        log = tmp_path / "dispatcher.log"
        process = await asyncio.to_thread(started, [*dispatcher, "run"], environment, log)
        stack.callback(process.kill)
        daemon = Dispatcher(process, port, log, session)
        await daemon.ready()
        await run(*dispatcher, "submit", "--count", str(REQUESTS), environment=environment)

        async def all_dispatched() -> bool:
            return (await daemon.metrics()).total("dispatched_total") == REQUESTS

        await until(all_dispatched, "all dispatched")
        assert await daemon.drain() == 0


def started(argv: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(argv, env=environment, stdout=out, stderr=subprocess.STDOUT)
