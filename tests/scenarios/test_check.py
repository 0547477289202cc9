"""What `dispatcher check` says of everything that can be wrong, and that it says what to do."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.commands.check import Level, check
from dispatcher.model import Region
from dispatcher.settings import load
from dispatcher.telemetry.metrics import Metrics
from tests.scenarios.conftest import Run
from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import World


def _set(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def looked(run: Run, world: World, **settings: str) -> dict[str, dict[str, Any]]:
    environment = {**world.resources.environment(), "AWS_ENDPOINT_URL": world.proxy.endpoint, **settings}
    checked = run("check", "--json", settings=environment)
    findings = {finding["what"]: finding for finding in json.loads(checked.stdout)}
    assert checked.returncode == (0 if all(finding["ok"] for finding in findings.values()) else 1)
    assert all(finding["todo"] for finding in findings.values() if finding["level"] != "ok"), "each says what to do"
    return findings


async def test_each_missing_permission_is_named_as_iam_names_it(world: World, run: Run) -> None:
    for operation, region, containing in [
        ("SendMessageBatch", "us-west-2", ""),
        ("GetQueueAttributes", "eu-west-1", ""),
        ("BatchExecuteStatement", "", "INSERT"),
        ("DescribeTimeToLive", "", ""),
    ]:
        denied = Fault(How.ERROR, operation, region, containing=containing, status=400, code="AccessDeniedException")
        world.proxy.add(denied)
    found = await asyncio.to_thread(looked, run, world)
    failed = {what: finding for what, finding in found.items() if finding["level"] == "fail"}
    allow = {
        "regional queue us-west-2: send_message_batch": "sqs:SendMessage",
        "regional queue eu-west-1": "sqs:GetQueueAttributes",
        "ledger: PartiQLInsert": "dynamodb:PartiQLInsert",
        "ledger: TTL": "dynamodb:DescribeTimeToLive",
    }
    assert failed.keys() == allow.keys()
    for what, action in allow.items():
        assert f"{action} is not allowed" in failed[what]["detail"]
        assert f"allow {action} on it" in failed[what]["todo"]
    assert "DISPATCHER_LEDGER_BATCHING=false" in failed["ledger: PartiQLInsert"]["todo"]
    assert found["regional queue eu-west-1: send_message_batch"]["ok"], "the others are tried all the same"


async def test_what_cannot_be_told_is_not_said_to_be_allowed(world: World, run: Run) -> None:
    world.proxy.add(Fault(How.ERROR, "SendMessageBatch", "us-west-2", status=400, code="ThrottlingException"))
    world.proxy.add(Fault(How.ERROR, "PutItem", status=400, code="SomethingNew"))
    found = await asyncio.to_thread(looked, run, world)
    doubtful = {what for what, finding in found.items() if finding["level"] == "warn"}
    assert doubtful == {"regional queue us-west-2: send_message_batch", "ledger: put_item"}
    assert "it cannot be told" in found["ledger: put_item"]["detail"]


async def test_queues_and_tables_whose_settings_will_hurt_are_named(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, world.cloud.environment)
    home, away = world.sqs["us-east-1"], world.sqs["us-west-2"]
    master = world.resources.master_queue_url
    policy = (await home.get_queue_attributes(QueueUrl=master, AttributeNames=["RedrivePolicy"]))["Attributes"]
    once = json.dumps({**json.loads(policy["RedrivePolicy"]), "maxReceiveCount": "1"})
    await home.set_queue_attributes(QueueUrl=master, Attributes={"VisibilityTimeout": "30", "RedrivePolicy": once})
    await away.set_queue_attributes(QueueUrl=world.regional("us-west-2"), Attributes={"RedrivePolicy": ""})
    async with Clients(Clock(), Metrics.unread()) as clients:
        table = await clients.open("dynamodb", Region("us-east-1"), pool=1, attempts=1)
        off = {"Enabled": False, "AttributeName": "expires_at"}
        await table("update_time_to_live", TableName=world.resources.ledger_table, TimeToLiveSpecification=off)
    found = await asyncio.to_thread(looked, run, world, DISPATCHER_LEDGER_RETENTION_SECONDS="86400")
    levels = {what: finding["level"] for what, finding in found.items() if finding["level"] != "ok"}
    assert levels == {
        "master queue: visibility": "fail",
        "master queue: redrive": "warn",
        "regional queue us-west-2: redrive": "warn",
        "ledger: TTL": "fail",
        "ledger: retention": "warn",
    }
    assert "30 s, is shorter than a claim's lease, 90 s" in found["master queue: visibility"]["detail"]
    assert "enable TTL on expires_at" in found["ledger: TTL"]["todo"]


async def test_a_master_queue_without_a_redrive_policy_fails(world: World, run: Run) -> None:
    policy = {"RedrivePolicy": ""}
    await world.sqs["us-east-1"].set_queue_attributes(QueueUrl=world.resources.master_queue_url, Attributes=policy)
    found = await asyncio.to_thread(looked, run, world)
    assert [what for what, finding in found.items() if not finding["ok"]] == ["master queue: redrive"]
    alone = await asyncio.to_thread(looked, run, world, DISPATCHER_DEAD_LETTER_QUEUE_URL="")
    assert not alone["dead-letter queue"]["ok"]


async def test_a_clock_that_is_wrong_is_told_from_one_that_is_right(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, {**world.cloud.environment, **world.resources.environment()})
    settings = load()

    async def said(ahead_s: float) -> tuple[Level, str]:
        async with Clients(Clock(lambda: time.time() + ahead_s), Metrics.unread()) as clients:
            findings = [finding async for finding in check(settings, clients)]
        return findings[-1].level, findings[-1].detail

    assert (await said(0))[0] is Level.OK
    level, detail = await said(120)
    assert level is Level.WARN
    assert re.search(r"this machine's is 1(19|20) s ahead of AWS's", detail)
    assert (await said(-600))[0] is Level.FAIL


async def test_an_endpoint_that_is_not_there_is_said_once_for_each_resource(world: World, run: Run) -> None:
    found = await asyncio.to_thread(looked, run, world, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    failed = [finding for finding in found.values() if not finding["ok"]]
    assert len(failed) == 5
    assert all("it cannot be reached" in f["detail"] and "AWS_ENDPOINT_URL" in f["todo"] for f in failed)
    assert found["clock"]["level"] == "warn"
