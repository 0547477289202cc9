"""SIGTERM: what is under way ends, what cannot end is handed back, and the exit status tells which."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import REGIONS, World, ids_sent, request, requests, until

LONG = {"visibility": "60", "lease": "40"}


async def test_sigterm_with_messages_in_flight_ends_them_all(world: World) -> None:
    """Regional sends are slow when the signal comes. The drain waits for them; what was not received stays."""
    bodies = requests(200)
    await world.send(bodies)
    with world.proxy.having(Fault(How.DELAY, "SendMessageBatch", seconds=2.0)) as fault:
        dispatcher = await world.start(
            VISIBILITY_SECONDS=LONG["visibility"], CLAIM_LEASE_SECONDS=LONG["lease"], MAX_IN_FLIGHT="60"
        )
        await until(lambda: fault.hits >= 2, "sends under way")
        assert await dispatcher.drain() == 0
    visible, in_flight = await world.master()
    assert in_flight == 0
    assert visible + await world.forwarded() == len(bodies)
    left = {arrival.body for arrival in await world.left_in_master()}
    assert len(left) == visible
    arrivals = await world.assert_each_once([body for body in bodies if body not in left])
    assert arrivals


async def test_a_message_that_arrives_during_an_idle_drain_is_not_stuck(world: World) -> None:
    """An open long poll cannot be taken back: what it still brings is dispatched. Nothing hangs for a visibility."""
    dispatcher = await world.start(
        POLL_WAIT_SECONDS="4", VISIBILITY_SECONDS=LONG["visibility"], CLAIM_LEASE_SECONDS=LONG["lease"]
    )
    await until(lambda: world.proxy.made("ReceiveMessage"), "polls open")
    dispatcher.signal(signal.SIGTERM)
    await until(lambda: dispatcher.logged("process.draining"), "draining")
    bodies = requests(5)
    await world.send(bodies)
    assert (await dispatcher.get("/readyz"))[0] == 503
    assert await dispatcher.exit_status(within=20) == 0
    visible, in_flight = await world.master()
    assert in_flight == 0
    assert visible + await world.forwarded() == len(bodies)


async def test_a_drain_of_an_empty_queue_exits_0(world: World) -> None:
    dispatcher = await world.start()
    assert await dispatcher.drain(within=20) == 0
    assert dispatcher.logged("process.stopped")


async def test_sigterm_before_anything_answered_exits_0(world: World) -> None:
    """Nothing was begun, so nothing is to be drained."""
    with world.proxy.having(Fault(How.ERROR)) as fault:
        dispatcher = await world.start(ready=False)
        await until(lambda: fault.hits >= 1, "asked")
        assert await dispatcher.drain(within=20) == 0


async def test_a_second_sigterm_stops_at_once_with_1(world: World) -> None:
    """The operator is in a hurry: no hand-back, exit 1; the messages come back by themselves."""
    bodies = requests(20)
    await world.send(bodies)
    with world.proxy.having(Fault(How.HANG, "SendMessageBatch")) as fault:
        dispatcher = await world.start()
        await until(lambda: fault.hits >= 1, "sends under way")
        dispatcher.signal(signal.SIGTERM)
        await until(lambda: dispatcher.logged("process.draining"), "draining")
        dispatcher.signal(signal.SIGTERM)
        assert await dispatcher.exit_status(within=5) == 1
    await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)


async def test_at_the_deadline_what_waits_for_a_region_is_handed_back_at_once(world: World) -> None:
    """Its Region is full, so it waits here. The drain ends at its deadline, and the message is visible right then."""
    others = {region: ["gpt-l-7b"] for region in REGIONS if region != "us-west-2"}
    dispatcher = await world.start(
        VISIBILITY_SECONDS=LONG["visibility"],
        CLAIM_LEASE_SECONDS=LONG["lease"],
        DRAIN_TIMEOUT_SECONDS="2",
        REGIONS=world.regions(models={**others, "us-west-2": ["rare"]}, thresholds={"us-west-2": 1}),
    )
    await world.send([request(f"rare-{n}", model_name="rare") for n in range(4)])

    async def parked() -> bool:
        return await world.depth("us-west-2") == 1 and await world.master() == (0, 3)

    await until(parked, "three wait for their Region")
    assert await dispatcher.drain(within=20) == 0
    assert await world.master() == (3, 0)


async def test_a_drain_ends_in_time_even_when_the_table_hangs(world: World) -> None:
    """ECS kills 20 s after the drain's deadline; until then everything must be over, whatever hangs."""
    bodies = requests(20)
    await world.send(bodies)
    with world.proxy.having(Fault(How.HANG, service="dynamodb", operation="BatchExecuteStatement")) as fault:
        dispatcher = await world.start(DRAIN_TIMEOUT_SECONDS="2", VISIBILITY_SECONDS="10", CLAIM_LEASE_SECONDS="8")
        await until(lambda: fault.hits >= 1, "claims under way")
        started = time.monotonic()
        assert await dispatcher.drain(within=22) == 0
        print(f"drained within {time.monotonic() - started:.1f} s of the signal")
    assert sum(await world.master()) == len(bodies)
    assert not await world.forwarded()


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_"))}
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", "run"], env=clean | environment, capture_output=True, text=True, timeout=30
    )


VALID = {
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # nothing may be contacted
    "DISPATCHER_MASTER_QUEUE_URL": "http://127.0.0.1:9/1/master",
    "DISPATCHER_REGIONS": '{"us-east-1": "http://127.0.0.1:9/1/regional"}',
    "DISPATCHER_LEDGER_TABLE": "ledger",
}


def test_bad_configuration_exits_2_with_a_line_for_each_fault() -> None:
    """Nothing set: every required variable is named, on standard error, one a line."""
    done = run()
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    for name in ("HOME_REGION", "MASTER_QUEUE_URL", "REGIONS", "LEDGER_TABLE"):
        assert sum(f"DISPATCHER_{name}" in line for line in lines) == 1, (name, lines)
    assert not done.stdout


def test_every_wrong_value_is_named_at_once() -> None:
    """An operator fixes all of them in one go, the JSON that is not JSON included."""
    wrong = {
        "DISPATCHER_MASTER_QUEUE_URL": "master",
        "DISPATCHER_REGIONS": "{us-east-1}",
        "DISPATCHER_POLLERS": "many",
        "DISPATCHER_POLL_WAIT_SECONDS": "21",
        "DISPATCHER_ROUTING_POLICY": "best",
    }
    done = run(**VALID | wrong)
    assert done.returncode == 2
    for name in wrong:
        assert sum(name in line for line in done.stderr.splitlines()) == 1, (name, done.stderr)


def test_numbers_that_contradict_each_other_are_refused() -> None:
    done = run(**VALID, DISPATCHER_VISIBILITY_SECONDS="60", DISPATCHER_CLAIM_LEASE_SECONDS="60")
    assert done.returncode == 2
    assert "DISPATCHER_CLAIM_LEASE_SECONDS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["MASTER_QUEUE_URL", "DEAD_LETTER_QUEUE_URL", "LEDGER_TABLE", "REGIONS"])
async def test_a_misspelt_name_ends_the_start_with_what_to_do_and_creates_nothing(world: World, what: str) -> None:
    regions = {region: world.regional(region) for region in REGIONS}
    value = {
        "MASTER_QUEUE_URL": world.resources.master_queue_url + "-gone",
        "DEAD_LETTER_QUEUE_URL": world.resources.dead_letter_queue_url + "-gone",
        "LEDGER_TABLE": world.resources.ledger_table + "-gone",
        "REGIONS": json.dumps(regions | {"us-west-2": regions["us-west-2"] + "-gone"}),
    }[what]
    dispatcher = await world.start(ready=False, **{what: value})
    assert await dispatcher.exit_status() == 1
    (line,) = [line for line in dispatcher.log.read_text().splitlines() if line.startswith("dispatcher: ")]
    assert "does not exist" in line
    assert f"check DISPATCHER_{what}" in line
    made = {call.operation for call in world.proxy.calls}
    assert not [operation for operation in made if operation.startswith(("Create", "Put", "Send"))]


async def test_sends_that_hang_while_draining_end_with_the_deadline_and_are_carried_by_the_next(world: World) -> None:
    bodies = requests(30)
    await world.send(bodies)
    with world.proxy.having(Fault(How.HANG, "SendMessageBatch")) as fault:
        dispatcher = await world.start(DRAIN_TIMEOUT_SECONDS="2", CLAIM_LEASE_SECONDS="7")
        await until(lambda: fault.hits, "sends hang")
        assert await dispatcher.drain(within=22) == 0
    (cut,) = dispatcher.logged("intake.cut_off")
    assert 0 < cut["unfinished"] <= len(bodies)
    sent = {request_id for body in fault.bodies for request_id in ids_sent(body)}
    await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once(bodies, extra=sent, anywhere=True)
