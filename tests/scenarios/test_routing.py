"""Routing where it meets the world: dispatchers that share Regions, capacity that vanishes, priorities, reasons."""

import asyncio
import json
import signal
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import HOME, REGIONS, Arrival, Dispatcher, World, ids_sent, request, requests, until

A, B, C = REGIONS
TOKEN = "a-token-of-this-test"


async def projected(dispatcher: Dispatcher) -> int:
    """All messages that it takes to wait in the Regions now."""
    regions = (await dispatcher.status())["regions"].values()
    return sum(r["depth"] + r["sent_since_reading"] + r["sent_by_others_since_reading"] for r in regions)


async def knows(dispatcher: Dispatcher, others: int) -> bool:
    return bool((await dispatcher.status())["dispatchers"] == others + 1)


async def test_three_dispatchers_know_each_other_s_sends_within_5_percent(world: World) -> None:
    """A steady stream, nobody drains. Then one is killed and a new one comes: two readings later all know."""
    dispatchers = list(await asyncio.gather(*(world.start() for _ in range(3))))
    sent = 0
    stop = asyncio.Event()

    async def stream() -> None:
        nonlocal sent
        while not stop.is_set():
            await world.send(requests(10, f"s{sent}"))
            sent += 10
            await asyncio.sleep(0.25)

    streaming = asyncio.create_task(stream())
    try:
        await until(lambda: sent >= 300, "a few hundred sent")
        errors: list[float] = []
        for _ in range(12):
            await asyncio.sleep(0.5)
            before = await world.forwarded()
            expected = [await projected(dispatcher) for dispatcher in dispatchers]
            truth = (before + await world.forwarded()) / 2
            errors += [abs(one - truth) / truth for one in expected]
        errors.sort()
        print("relative errors:", [round(error, 3) for error in errors])
        assert errors[len(errors) // 2] <= 0.05
        assert errors[int(len(errors) * 0.9)] <= 0.1, "a poll of one dispatcher more or less is all that differs"

        await dispatchers.pop().kill()
        await until(lambda: knows(dispatchers[0], 1), "the dead one is counted out", within=10)
        newcomer = await world.start()
        for dispatcher in (newcomer, *dispatchers):

            async def knows_all(one: Dispatcher = dispatcher) -> bool:
                return await knows(one, 2)

            await until(knows_all, "the newcomer is known, and knows", within=10)
    finally:
        stop.set()
        await streaming


async def test_three_dispatchers_together_pass_no_threshold(world: World) -> None:
    """Three start at once and race for places; each Region takes 50."""
    await world.send(requests(400))
    dispatchers = await asyncio.gather(*(world.start(OVERLOAD_THRESHOLD="50") for _ in range(3)))
    deepest = 0

    async def full() -> bool:
        nonlocal deepest
        depths = [await world.depth(region) for region in REGIONS]
        deepest = max(deepest, *depths)
        return sum(depths) == 150

    await until(full, "every place taken")
    for _ in range(10):
        await asyncio.sleep(0.2)
        await full()
    assert deepest == 50
    assert [(await one.metrics()).total("fleet_dispatchers") for one in dispatchers] == [3, 3, 3]


async def test_who_drains_leaves_the_fleet_at_once(world: World) -> None:
    first, second = await asyncio.gather(world.start(), world.start())
    await until(lambda: knows(first, 1), "they know each other")
    assert await second.drain() == 0
    await until(lambda: knows(first, 0), "it has left", within=3)


async def test_a_failing_fleet_item_is_said_in_a_metric_and_stops_nothing(world: World) -> None:
    dispatcher = await world.start()
    with world.proxy.having(
        Fault(How.ERROR, "UpdateItem", containing="fleet", status=400, code="AccessDeniedException")
    ):

        async def unshared() -> bool:
            return (await dispatcher.metrics()).total("fleet_unshared") == 1

        await until(unshared, "said in the metric")
        await world.send(requests(50))
        await world.until_master_is_empty()
    await world.assert_each_once(requests(50))


# --- capacity that vanishes -------------------------------------------------------------------------------------


class Workers:
    """Take what comes in some Regions, at once; the rest is left alone."""

    def __init__(self, world: World, *regions: str) -> None:
        self.world = world
        self.regions = set(regions)
        self.arrivals: list[Arrival] = []

    async def run(self) -> None:
        while True:
            for region in list(self.regions):
                self.arrivals += await self.world.take(region)
            await asyncio.sleep(0.2)


async def share(dispatcher: Dispatcher, region: str) -> float:
    return float((await dispatcher.status())["regions"][region]["share"])


async def test_a_region_whose_workers_vanish_loses_its_share_and_gets_it_back(world: World) -> None:
    dispatcher = await world.start()
    workers = Workers(world, *REGIONS)
    working = asyncio.create_task(workers.run())
    stop = asyncio.Event()

    async def stream() -> None:
        while not stop.is_set():
            await world.send(requests(10, uuid4().hex))
            await asyncio.sleep(0.25)

    streaming = asyncio.create_task(stream())
    try:

        async def estimated() -> bool:
            return bool((await dispatcher.status())["policy_in_force"] == "projected-wait")

        await until(estimated, "drains are known")
        await until(lambda: _above(dispatcher, A, 0.2), "a fair share")
        workers.regions.discard(A)

        async def stalled() -> bool:
            region = (await dispatcher.status())["regions"][A]
            return bool(region["health"] == "stalled" and region["share"] < 0.15)

        await until(stalled, "stalled, with less than 15 %", within=10)
        workers.regions.add(A)
        await until(lambda: _above(dispatcher, A, 0.2), "its share is back", within=30)
    finally:
        stop.set()
        await streaming
        working.cancel()


async def _above(dispatcher: Dispatcher, region: str, least: float) -> bool:
    return await share(dispatcher, region) > least


async def test_reported_capacity_counts_at_once_here_and_soon_everywhere(world: World) -> None:
    first, second = await asyncio.gather(*(world.start(HTTP_TOKEN=TOKEN) for _ in range(2)))
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    async def post(body: object, region: str = A, headers: dict[str, str] = bearer) -> int:
        url = f"http://127.0.0.1:{first.port}/regions/{region}/capacity"
        async with world.session.post(url, data=json.dumps(body), headers=headers) as answer:
            said = await answer.json()
            assert TOKEN not in json.dumps(said)
            return answer.status

    assert await post({"capacity": 0.5}, headers={}) == 401
    assert await post({"capacity": 0.5}, headers={"Authorization": "Bearer é wrong"}) == 401
    wrong: list[object] = [{}, [], "x", {"capacity": "much"}, {"capacity": 7}, {"capacity": None}, {"capacity": True}]
    for bad in wrong:
        assert await post(bad) == 400, bad
    assert await post({"capacity": 0.5}, region="mars-1") == 404
    assert await post({"capacity": 0.2}) == 200
    assert (await first.status())["regions"][A]["capacity"] == pytest.approx(0.2, abs=0.02)

    async def heard() -> bool:
        return bool((await second.status())["regions"][A]["capacity"] < 0.3)

    await until(heard, "the other one heard", within=10)
    assert (await second.metrics()).total("region_capacity_ratio", target_region=A) < 0.3


async def test_without_a_token_nothing_can_be_reported(world: World) -> None:
    dispatcher = await world.start()
    url = f"http://127.0.0.1:{dispatcher.port}/regions/{A}/capacity"
    async with world.session.post(url, data='{"capacity": 0.5}', headers={"Authorization": "Bearer "}) as answer:
        assert answer.status == 403
        assert "DISPATCHER_HTTP_TOKEN" in await answer.text()


async def test_a_spot_interruption_warning_lowers_capacity(world: World) -> None:
    url = (await world.sqs[HOME].create_queue(QueueName=f"warnings-{uuid4().hex[:8]}"))["QueueUrl"]
    regions = json.loads(world.regions())
    regions[A]["instances"] = 4
    dispatcher = await world.start(INTERRUPTION_QUEUE_URL=url, REGIONS=json.dumps(regions))
    event: dict[str, Any] = {"detail-type": "EC2 Spot Instance Interruption Warning", "region": A}
    for instance in ("i-1", "i-2", "i-1"):
        event["detail"] = {"instance-id": instance, "instance-action": "terminate"}
        await world.sqs[HOME].send_message(QueueUrl=url, MessageBody=json.dumps(event))
    event["region"], event["detail"] = "mars-1", {"instance-id": "i-9", "instance-action": "terminate"}
    await world.sqs[HOME].send_message(QueueUrl=url, MessageBody=json.dumps(event))

    async def lower() -> bool:
        return bool((await dispatcher.status())["regions"][A]["capacity"] < 0.6)

    await until(lower, "two of four are going")
    assert (await dispatcher.status())["regions"][A]["capacity"] == pytest.approx(9 / 16, abs=0.02)

    async def read() -> bool:
        return await world.counts(HOME, url) == (0, 0)

    await until(read, "every event is read and deleted")


# --- rescue -----------------------------------------------------------------------------------------------------


async def strand(world: World, bodies: list[str]) -> None:
    """Dispatch them all to A, where nobody works."""
    regions = json.loads(world.regions())
    for region in (B, C):
        regions[region]["weight"] = 0
    first = await world.start(REGIONS=json.dumps(regions))
    await world.send(bodies)
    await world.until_master_is_empty()
    assert await first.drain() == 0
    assert await world.depth(A) == len(bodies)


def withdrawn(world: World) -> str:
    regions = json.loads(world.regions())
    regions[A]["weight"] = 0
    return json.dumps(regions)


async def test_what_waits_in_a_withdrawn_region_is_rescued_and_the_ledger_knows_where_it_is(world: World) -> None:
    bodies = requests(60)
    await strand(world, bodies)
    workers = Workers(world, B, C)
    working = asyncio.create_task(workers.run())
    dispatcher = await world.start(REGIONS=withdrawn(world), RESCUE="true")
    await until(lambda: len(workers.arrivals) >= len(bodies), "all of them rescued")
    working.cancel()
    assert Counter(arrival.body for arrival in workers.arrivals) == Counter(bodies)

    async def deleted() -> bool:
        return await world.counts(A, world.regional(A)) == (0, 0)

    await until(deleted, "nothing left where they were")
    for arrival in workers.arrivals:
        assert arrival.text("dispatcher.region") == arrival.region

    async def moved() -> float:
        return (await dispatcher.metrics()).total("rescued_total", outcome="moved")

    async def counted() -> bool:
        return await moved() >= len(bodies)

    await until(counted, "each counted, once its deletion is answered")
    assert await moved() == len(bodies)
    assert len(dispatcher.logged("message.rescued")) == len(bodies)
    again = requests(60)
    await world.send(again)
    await world.until_master_is_empty()
    assert (await dispatcher.metrics()).total("messages_total", outcome="duplicate") == len(again)


async def test_nothing_is_rescued_unless_the_operator_says_so(world: World) -> None:
    await strand(world, requests(5))
    await world.start(REGIONS=withdrawn(world))
    await asyncio.sleep(6)
    assert await world.counts(A, world.regional(A)) == (5, 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(How.HANG_DONE, "SendMessageBatch"),
        Fault(How.HANG, "DeleteMessageBatch", region=A),
    ],
    ids=["sent", "undeleted"],
)
async def test_a_rescue_that_is_killed_loses_nothing_and_repeats_only_what_was_being_sent(
    world: World, fault: Fault
) -> None:
    bodies = requests(8)
    await strand(world, bodies)
    before = len(world.proxy.made("SendMessageBatch"))
    workers = Workers(world, B, C)
    working = asyncio.create_task(workers.run())
    with world.proxy.having(fault):
        first = await world.start(REGIONS=withdrawn(world), RESCUE="true")
        await until(lambda: fault.hits, "the moment")
        await asyncio.sleep(0.5)
        await first.kill()
    sent = {i for call in world.proxy.made("SendMessageBatch")[before:] for i in ids_sent(call.body)}
    await world.start(REGIONS=withdrawn(world), RESCUE="true")

    async def empty() -> bool:
        return await world.counts(A, world.regional(A)) == (0, 0)

    await until(empty, "nothing left behind, once what was received is visible again", within=100)
    await asyncio.sleep(0.5)
    working.cancel()
    came = Counter(arrival.body for arrival in workers.arrivals)
    assert set(came) == set(bodies), "nothing is lost"
    assert {json.loads(body)["request_id"] for body, count in came.items() if count > 1} <= sent
    if fault.operation == "DeleteMessageBatch":
        assert max(came.values()) == 1, "the ledger knew: no copy"


# --- models, priorities, tenants, deadlines ---------------------------------------------------------------------


async def test_a_priority_may_have_a_queue_of_its_own(world: World) -> None:
    name = f"fast-{uuid4().hex[:8]}"
    url = (await world.sqs[A].create_queue(QueueName=name))["QueueUrl"]
    regions = {A: {"queue_url": world.regional(A), "queues": {"high": url}}}
    dispatcher = await world.start(REGIONS=json.dumps(regions))
    high = [request(f"h{n}", priority="high") for n in range(5)]
    other = [request(f"o{n}", priority="low" if n % 2 else "normal") for n in range(6)]
    await world.send(high + other)
    await world.until_master_is_empty()
    assert sorted(arrival.body for arrival in await world._take(A, url)) == high
    assert sorted(arrival.body for arrival in await world.take(A)) == other
    assert (await dispatcher.metrics()).total("dispatched_total", priority="high") == 5


async def test_a_tenant_is_the_message_group_when_fair_queues_are_on(world: World) -> None:
    odd = "tenant with spaces"
    bodies = [
        request("one", metadata={"user_id": "user123"}),
        request("two", metadata={"user_id": odd}),
        request("three", metadata={"user_id": 7}),
    ]
    await world.start(FAIR_QUEUES="true")
    await world.send(bodies)
    await world.until_master_is_empty()
    groups = {}
    for call in world.proxy.made("SendMessageBatch"):
        for entry in json.loads(call.body)["Entries"]:
            groups[json.loads(entry["MessageBody"])["request_id"]] = entry.get("MessageGroupId")
    assert groups["one"] == "user123"
    assert groups["two"] is not None
    assert len(groups["two"]) == 64, "a digest, of what SQS would refuse"
    assert groups["three"] is None
    await world.assert_each_once(bodies)


async def test_a_request_past_its_deadline_is_rejected_unless_it_was_dispatched_in_time(world: World) -> None:
    late = request("late", metadata={"deadline": "2020-01-01T00:00:00Z"})
    fine = request("fine", metadata={"deadline": "2999-01-01T00:00:00+01:00"})
    opaque = request("opaque", metadata={"deadline": "when I am old"})
    await world.start()
    await world.send([late, fine, opaque])
    await world.until_master_is_empty()
    (letter,) = await world.dead_letters()
    assert letter.body == late
    assert letter.text("dispatcher.rejected_because") == "metadata.deadline: 2020-01-01T00:00:00.000Z has passed"
    await world.assert_each_once([fine, opaque])


async def test_a_redelivery_after_the_deadline_of_what_was_dispatched_is_a_duplicate_and_no_reject(
    world: World,
) -> None:
    """Dispatched in time, deleted too late: it is nobody's failure."""
    from datetime import UTC, datetime, timedelta

    with world.proxy.having(Fault(How.HANG, "DeleteMessageBatch")):
        first = await world.start(LOG_LEVEL="debug")
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        body = request("r", metadata={"deadline": deadline.isoformat()})
        await world.send([body])
        await until(lambda: first.logged("message.dispatched"), "dispatched")
        await first.kill()
    await asyncio.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds()))
    second = await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once([body])
    assert (await second.metrics()).total("messages_total", outcome="duplicate") == 1


# --- reasons ----------------------------------------------------------------------------------------------------


async def test_a_shadow_policy_is_compared_and_obeyed_by_nobody(world: World) -> None:
    regions = json.loads(world.regions())
    regions[A]["weight"] = 8
    for n in range(20):  # the original would rather send elsewhere
        await world.sqs[A].send_message(QueueUrl=world.regional(A), MessageBody=f"waiting {n}")
    dispatcher = await world.start(ROUTING_POLICY="fixed", SHADOW_POLICY="inverse-depth", REGIONS=json.dumps(regions))
    bodies = requests(100)
    await world.send(bodies)
    await world.until_master_is_empty()
    metrics = await dispatcher.metrics()
    assert metrics.total("dispatched_total", target_region=A) == pytest.approx(80, abs=2)
    assert metrics.total("shadow_choices_total") == 100
    assert metrics.total("shadow_choices_total", target_region=A) < 50
    assert metrics.total("shadow_differences_total") >= 30
    assert sum(metrics.total("shadow_region_share", target_region=region) for region in REGIONS) == pytest.approx(1)


async def test_every_choice_is_explained_in_the_ledger_and_on_the_status_page(world: World) -> None:
    dispatcher = await world.start(LOG_LEVEL="debug")
    await world.send([request("why")])
    await world.until_master_is_empty()
    (dispatched,) = dispatcher.logged("message.dispatched")
    item = await world.item("why")
    assert item["policy"] in ("projected-wait", "inverse-depth-smoothed")
    assert float(item["projected_wait_s"]) >= 0
    assert item["region"] == dispatched["region"]
    for values in (await dispatcher.status())["regions"].values():
        assert values.keys() >= {
            "depth", "reading_age_seconds", "sent_since_reading", "sent_by_others_since_reading", "drain_per_second",
            "projected_wait_seconds", "capacity", "share", "budget", "breaker", "health",
        }  # fmt: skip
    dispatcher.signal(signal.SIGTERM)
