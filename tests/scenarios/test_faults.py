"""Calls that fail: before their work, after it, half-way through the answer, or never ending."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.scenarios.proxy import HOST, Fault, How
from tests.scenarios.world import HOME, REGIONS, Dispatcher, World, ids_sent, requests, until

CLAIM, CONFIRM = "INSERT INTO", "UPDATE "
LOST_CALLS = {
    "receive": Fault(How.LOST, "ReceiveMessage"),
    "claim": Fault(How.LOST, "BatchExecuteStatement", containing=CLAIM),
    "confirm": Fault(How.LOST, "BatchExecuteStatement", containing=CONFIRM),
    "read-of-a-refused-claim": Fault(How.LOST, "BatchGetItem"),
    "send": Fault(How.LOST, "SendMessageBatch"),
    "delete": Fault(How.LOST, "DeleteMessageBatch"),
    "depth": Fault(How.LOST, "GetQueueAttributes"),
    "single-claim": Fault(How.LOST, "PutItem"),
    "single-confirm": Fault(How.LOST, "UpdateItem"),
}
IN_A_ROW = 4  # more than the SDK's own tries


def sent_by(fault: Fault) -> set[str]:
    """The requests whose copies a fault at a send may have caused."""
    return {request_id for body in fault.bodies if b'"MessageBody"' in body for request_id in ids_sent(body)}


@pytest.mark.parametrize("call", LOST_CALLS)
async def test_a_lost_answer_loses_nothing_and_repeats_only_sends(world: World, call: str) -> None:
    """The call was done and nobody heard of it, four times in a row; a third of the requests comes twice."""
    bodies = requests(60)
    await world.send(bodies + bodies[::3])
    pattern = LOST_CALLS[call]
    fault = Fault(pattern.how, pattern.operation, containing=pattern.containing, times=IN_A_ROW)
    world.proxy.add(fault)
    # a lease of 5 s gives a send 1.7 s: on a busy machine that alone makes one ambiguous, and a copy
    times: dict[str, str] = (
        {} if call in ("receive", "send") else {"VISIBILITY_SECONDS": "20", "CLAIM_LEASE_SECONDS": "15"}
    )
    batching = "false" if call.startswith("single") else "true"
    dispatcher = await world.start(ready=True, LEDGER_BATCHING=batching, **times)
    await world.until_master_is_empty()
    assert fault.hits == IN_A_ROW
    await world.assert_each_once(bodies, extra=sent_by(fault))
    await world.assert_accounted_for(dispatcher)


@pytest.mark.parametrize("how", [How.CUT, How.GARBAGE], ids=["cut-off", "not-json"])
async def test_a_broken_answer_of_every_kind_stops_nothing(world: World, how: How) -> None:
    """Half an answer, or a proxy's error page with status 200: each kind of call meets it once."""
    bodies = requests(60)
    await world.send(bodies + bodies[::3])
    faults = [
        world.proxy.add(Fault(how, pattern.operation, containing=pattern.containing, times=1))
        for name, pattern in LOST_CALLS.items()
        if not name.startswith("single")
    ]
    dispatcher = await world.start()
    await world.until_master_is_empty()
    assert all(fault.hits for fault in faults)
    await world.assert_each_once(bodies, extra={i for fault in faults for i in sent_by(fault)})
    await world.assert_accounted_for(dispatcher)


async def test_lost_answers_of_extensions_let_nothing_lapse(world: World) -> None:
    """Claims are refused for longer than a visibility lasts; every other extension's answer is lost."""
    bodies = requests(30)
    await world.send(bodies)
    refused = Fault(How.ERROR, "BatchExecuteStatement", code="ThrottlingException", status=400, containing=CLAIM)
    world.proxy.add(refused)
    lost = world.proxy.add(Fault(How.LOST, "ChangeMessageVisibilityBatch", times=4))
    await world.start()
    await until(lambda: len(world.proxy.made("ChangeMessageVisibilityBatch")) >= 8, "extended over and over")
    assert lost.hits == 4
    refused.lift()
    await world.until_master_is_empty()
    for arrival in await world.assert_each_once(bodies):
        assert arrival.text("dispatcher.attempt") == "1"


async def test_a_refused_send_goes_to_another_region_even_if_that_answer_of_the_ledger_is_lost(world: World) -> None:
    """A Region denies access, definitely: each message moves on, in the ledger first; that write's answer is lost."""
    bodies = requests(60)
    await world.send(bodies)
    denied = Fault(How.ERROR, "SendMessageBatch", region="us-west-2", status=403, code="AccessDeniedException")
    lost = Fault(How.LOST, "UpdateItem", times=IN_A_ROW)
    world.proxy.add(denied)
    world.proxy.add(lost)
    await world.start()
    await world.until_master_is_empty()
    assert denied.hits
    assert lost.hits == IN_A_ROW
    arrivals = await world.assert_each_once(bodies)
    assert "us-west-2" not in {arrival.region for arrival in arrivals}


@pytest.mark.parametrize("code", ["RequestThrottled", "InternalError"])
async def test_a_batch_that_half_fails_is_finished(world: World, code: str) -> None:
    """Calls succeed, and every other entry in them fails: each message has its own fate."""
    bodies = requests(120)
    await world.send(bodies + bodies[::4])
    faults = [
        world.proxy.add(
            Fault(How.HALF, operation, times=6, code="ThrottlingError" if "Statement" in operation else code)
        )
        for operation in ("BatchExecuteStatement", "SendMessageBatch", "DeleteMessageBatch")
    ]
    dispatcher = await world.start()
    await world.until_master_is_empty()
    assert all(fault.hits for fault in faults)
    await world.assert_each_once(bodies)
    await world.assert_accounted_for(dispatcher)


async def flows_there(world: World, region: str, within: float) -> None:
    """Keep sending new requests until the Region gets some."""
    turn = 0

    async def some() -> bool:
        nonlocal turn
        turn += 1
        await world.send(requests(6, f"again-{turn}"))
        return await world.depth(region) > 0

    await until(some, f"traffic in {region}", within=within, every=0.5)


async def test_a_region_that_answers_503_is_left_alone_and_comes_back_within_15_s(world: World) -> None:
    """Everything of one Region fails: others take its traffic, nothing is lost; when it is back it gets some again."""
    bodies = requests(150)
    dispatcher = await world.start()
    with world.proxy.having(Fault(How.ERROR, region="us-west-2", service="sqs")) as fault:
        await world.send(bodies)
        await world.until_master_is_empty()
        assert fault.hits
        arrivals = await world.assert_each_once(bodies)
        assert {arrival.region for arrival in arrivals} <= {"us-east-1", "eu-west-1"}
    await flows_there(world, "us-west-2", within=15)
    await world.until_master_is_empty()
    await world.assert_accounted_for(dispatcher)


async def test_an_outage_of_every_region_s_sends_makes_no_dead_letters(world: World) -> None:
    """Every send is answered 503 for 25 s while depths can be read. A probe must not cost a message its receives."""
    bodies = requests(3)
    await world.start()
    with world.proxy.having(Fault(How.ERROR, "SendMessageBatch")) as fault:
        await world.send(bodies)
        await until(lambda: fault.hits >= 1, "sends fail")
        await asyncio.sleep(25)  # the outage itself: three leases and more
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)


async def test_one_region_s_failing_sends_dead_letter_nothing_while_others_work(world: World) -> None:
    """Little traffic, one Region whose sends fail while its depths can be read: what it cannot take goes elsewhere."""
    bodies = requests(3)
    await world.start()
    with world.proxy.having(Fault(How.ERROR, "SendMessageBatch", region="us-west-2")) as fault:
        await world.send(bodies)
        await until(lambda: fault.hits >= 1, "a send fails")
        await world.until_master_is_empty()
        await world.assert_each_once(bodies)


def endpoints(folder: Path, ports: dict[str, int]) -> Path:
    """Endpoint rules for the SDK under which each Region's SQS has an address of its own."""
    parameter = {"builtIn": "AWS::Region", "required": False, "documentation": "", "type": "String"}
    rules = [
        {
            "conditions": [{"fn": "stringEquals", "argv": [{"ref": "Region"}, region]}],
            "endpoint": {"url": f"http://{HOST}:{port}", "properties": {}, "headers": {}},
            "type": "endpoint",
        }
        for region, port in ports.items()
    ]
    rest = {"conditions": [], "error": "no such Region", "type": "error"}
    model = {"version": "1.0", "parameters": {"Region": parameter}, "rules": [*rules, rest]}
    path = folder / "models" / "sqs" / "2012-11-05"
    path.mkdir(parents=True)
    (path / "endpoint-rule-set-1.json").write_text(json.dumps(model))
    return folder / "models"


async def test_a_region_that_refuses_connections_is_left_alone_and_comes_back(world: World, tmp_path: Path) -> None:
    """Nobody listens there: a definite failure. Each message goes on to another Region at once."""
    ports = {}
    runners = {}
    for region in REGIONS:
        runners[region], ports[region] = await world.proxy.listen()
    dispatcher = await world.start(
        AWS_ENDPOINT_URL="",
        AWS_ENDPOINT_URL_DYNAMODB=world.proxy.endpoint,
        AWS_DATA_PATH=str(endpoints(tmp_path, ports)),
    )
    await runners["us-west-2"].cleanup()
    bodies = requests(150)
    await world.send(bodies)
    await world.until_master_is_empty()
    arrivals = await world.assert_each_once(bodies)
    assert {arrival.region for arrival in arrivals} <= {"us-east-1", "eu-west-1"}
    assert all(arrival.text("dispatcher.attempt") == "1" for arrival in arrivals)
    await world.proxy.listen(ports["us-west-2"])
    await flows_there(world, "us-west-2", within=15)
    await world.until_master_is_empty()
    metrics = await world.assert_accounted_for(dispatcher)
    assert metrics.total("errors_total", stage="send", error="unreachable") > 0


@pytest.mark.parametrize("how", [How.HANG, How.HANG_DONE], ids=["undone", "done"])
async def test_a_region_that_hangs_holds_up_no_other(world: World, how: How) -> None:
    """Its calls never end. What is sent meanwhile flows to the others; when it is back, what hung arrives, too."""
    dispatcher = await world.start(MAX_IN_FLIGHT="60")
    early, late = requests(60, "early"), requests(300, "late")
    with world.proxy.having(Fault(how, region="us-west-2", service="sqs")) as fault:
        await world.send(early)
        await until(lambda: any(b"MessageBody" in body for body in fault.bodies), "a send hangs")
        await world.send(late)

        async def most_flowed() -> bool:
            return await world.depth("us-east-1") + await world.depth("eu-west-1") >= 300

        await until(most_flowed, "the others get nearly everything", within=20)
    await world.until_master_is_empty()
    # anywhere: a machine slow enough lets leases lapse meanwhile, and a takeover passes over a Region that is out
    await world.assert_each_once(early + late, extra=sent_by(fault), anywhere=True)
    await world.assert_accounted_for(dispatcher)


async def claimed_before_sent(world: World) -> None:
    """Every send's requests were in a claim that was answered before."""
    claimed: set[str] = set()
    for call in world.proxy.calls:
        if call.operation == "BatchExecuteStatement" and CLAIM.encode() in call.body and call.answer:
            for statement in json.loads(call.body)["Statements"]:
                claimed |= {value["S"] for value in statement["Parameters"] if "S" in value}
        if call.operation == "SendMessageBatch":
            assert ids_sent(call.body) <= claimed


@pytest.mark.parametrize("hows", [(How.ERROR, How.RESET), (How.HANG,)], ids=["errors-and-resets", "hangs"])
async def test_a_table_outage_of_10_s_forwards_nothing_unclaimed_and_burns_no_receives(
    world: World, hows: tuple[How, ...]
) -> None:
    """Messages arrive while the table is away. Intake stops, what is held is kept, and it goes on by itself."""
    dispatcher = await world.start(VISIBILITY_SECONDS="30", CLAIM_LEASE_SECONDS="20")  # none lapses on a busy machine
    before, during, after = requests(20, "before"), requests(200, "during"), requests(20, "after")
    await world.send(before)
    await world.until_master_is_empty()
    sends = len(world.proxy.made("SendMessageBatch"))
    for how in hows:
        with world.proxy.having(Fault(how, service="dynamodb", status=500, code="InternalServerError")) as fault:
            await world.send(during if how is hows[0] else [])
            await until(lambda: fault.hits >= 1, "the table is asked")
            await asyncio.sleep(10 / len(hows))  # the outage itself
            assert len(world.proxy.made("SendMessageBatch")) == sends
            assert (await dispatcher.get("/healthz"))[0] == 200
    await world.send(after)
    await world.until_master_is_empty()
    await claimed_before_sent(world)
    arrivals = await world.assert_each_once(before + during + after)
    assert max(int(arrival.text("dispatcher.attempt")) for arrival in arrivals) <= 2
    await world.assert_accounted_for(dispatcher)


async def test_a_table_that_throttles_half_of_its_calls_delays_and_loses_nothing(world: World) -> None:
    bodies = requests(200)
    await world.send(bodies)
    throttled = {"status": 400, "code": "ProvisionedThroughputExceededException"}

    async def every_other_second() -> None:
        while True:
            with world.proxy.having(Fault(How.ERROR, service="dynamodb", **throttled)):  # type: ignore[arg-type]  # any field of a fault
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)

    weather = asyncio.create_task(every_other_second())
    try:
        await world.start()
        await world.until_master_is_empty()
    finally:
        weather.cancel()
    await world.assert_each_once(bodies)


async def test_a_master_queue_that_cannot_be_asked_is_waited_for(world: World) -> None:
    """Receives and deletes are denied for a while: the process stays alive, says so, and goes on afterwards."""
    dispatcher: Dispatcher = await world.start()
    bodies = requests(30)
    with world.proxy.having(
        Fault(How.ERROR, "ReceiveMessage", region=HOME, status=403, code="AccessDeniedException")
    ) as fault:
        await world.send(bodies)
        await until(lambda: fault.hits >= 10, "asked over and over")
        assert dispatcher.running
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)
    metrics = await world.assert_accounted_for(dispatcher)
    assert metrics.total("errors_total", stage="receive", error="denied") >= 10
