"""While no Region may get more, messages stay in the master queue, unreceived."""

import asyncio
import json

from tests.scenarios.world import REGIONS, Arrival, Dispatcher, World, request, requests, until

THRESHOLD = 20


async def holding(dispatcher: Dispatcher) -> bool:
    return (await dispatcher.metrics()).total("holding") == 1


async def test_overload_is_held_in_the_master_and_never_dumped(world: World) -> None:
    """150 requests, three Regions without workers that take 20 each. Then workers come, and everything arrives."""
    bodies = requests(150)
    await world.send(bodies)
    deepest = dict.fromkeys(REGIONS, 0)

    async def watch() -> None:
        while True:
            for region in REGIONS:
                deepest[region] = max(deepest[region], await world.depth(region))
            await asyncio.sleep(0.05)

    watcher = asyncio.create_task(watch())
    dispatcher = await world.start(OVERLOAD_THRESHOLD=str(THRESHOLD))
    try:

        async def full() -> bool:
            return await world.forwarded() == THRESHOLD * len(REGIONS)

        await until(full, "every Region full")
        await until(lambda: holding(dispatcher), "holding")

        async def nothing_received() -> bool:
            return await world.master() == (len(bodies) - THRESHOLD * len(REGIONS), 0)

        await until(nothing_received, "the rest stays in the master, none of it received", within=20)
        assert (await dispatcher.status())["holding"]
        code, said = await dispatcher.get("/readyz")
        assert (code, json.loads(said)["holding"]) == (200, "no Region may get more")
        # from here on workers take in bursts: what they were seen to take makes room, and may be more than they do take
        watcher.cancel()
        assert max(deepest.values()) <= THRESHOLD, deepest

        arrived: list[Arrival] = []

        async def all_arrived() -> bool:
            arrived.extend(await world.arrivals())
            return len(arrived) >= len(bodies)

        await until(all_arrived, "everything arrived", every=0.5)
    finally:
        watcher.cancel()
    await world.until_master_is_empty()
    assert sorted(arrival.body for arrival in arrived) == bodies
    assert {arrival.text("dispatcher.attempt") for arrival in arrived} == {"1"}
    assert not await world.dead_letters()


async def test_a_full_region_of_its_own_parks_few_messages_and_stops_no_others(world: World) -> None:
    """One model's only Region is full. Its messages wait, kept by extension; the other models flow past them."""
    common = {region: ["gpt-l-7b"] for region in REGIONS if region != "us-west-2"}
    regions = world.regions(models={**common, "us-west-2": ["rare"]}, thresholds={"us-west-2": 2})
    dispatcher = await world.start(REGIONS=regions, MAX_IN_FLIGHT="40")
    rare = [request(f"rare-{n}", model_name="rare") for n in range(10)]
    others = requests(100)
    await world.send(rare)

    async def parked() -> bool:
        return await world.depth("us-west-2") == 2 and (await world.master()) == (0, 8)

    await until(parked, "the rest is held")
    await world.send(others)

    async def others_flowed() -> bool:
        return await world.depth("us-east-1") + await world.depth("eu-west-1") == len(others)

    await until(others_flowed, "the others flowed past")

    async def extended() -> int:
        return len(world.proxy.made("ChangeMessageVisibilityBatch")) >= 2

    await until(extended, "kept by extension, twice")
    arrived: list[Arrival] = []

    async def all_arrived() -> bool:
        arrived.extend(await world.take("us-west-2"))
        return len(arrived) >= len(rare)

    await until(all_arrived, "the rare ones arrived", every=0.5)
    await world.until_master_is_empty()
    assert sorted(arrival.body for arrival in arrived) == sorted(rare)
    assert {arrival.text("dispatcher.attempt") for arrival in arrived} == {"1"}
    await world.assert_each_once(others)
    await world.assert_accounted_for(dispatcher)
