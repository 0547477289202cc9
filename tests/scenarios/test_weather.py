"""Everything at once: faults of every kind, at random, while duplicates flow through two dispatchers."""

import asyncio
import os
from random import Random

from tests.chaos.run import OPERATIONS
from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import REGIONS, World, ids_sent, requests, until

WEATHER_S = 12.0
HOWS = (How.ERROR, How.LOST, How.CUT, How.GARBAGE, How.RESET, How.HANG, How.HANG_DONE, How.DELAY)


async def test_random_faults_lose_nothing_and_repeat_only_sends_that_they_struck(world: World) -> None:
    """A seed makes the weather; TEST_WEATHER_SEED asks for another one."""
    seed = int(os.environ.get("TEST_WEATHER_SEED", "1"))
    random = Random(seed)
    # receives are spent by lost answers of receives; a dead letter would hide what this is about
    await world.allow_receives(100)
    dispatchers = await asyncio.gather(world.start(), world.start())
    bodies = requests(400)
    struck: list[Fault] = []

    async def weather() -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WEATHER_S
        while loop.time() < until_s:
            fault = Fault(
                random.choice(HOWS),
                random.choice(OPERATIONS),
                region=random.choice(("", *REGIONS)),
                times=random.randint(1, 6),
                seconds=random.uniform(0.5, 2.5),
                status=random.choice((500, 503)),
            )
            struck.append(world.proxy.add(fault))
            await asyncio.sleep(random.uniform(0.05, 0.4))
            if len(struck) > 8:
                struck[-8].lift()
        for fault in struck:
            fault.lift()

    async def traffic() -> None:
        for at in range(0, len(bodies), 20):
            some = bodies[at : at + 20]
            await world.send(some + random.sample(bodies[: at + 20], 5))
            await asyncio.sleep(WEATHER_S / (len(bodies) / 20))

    await asyncio.gather(weather(), traffic())
    await world.until_master_is_empty()
    sends = {i for fault in struck for body in fault.bodies if b'"MessageBody"' in body for i in ids_sent(body)}
    await world.assert_each_once(bodies, extra=sends, anywhere=True)
    for dispatcher in dispatchers:
        assert dispatcher.running
        await world.assert_accounted_for(dispatcher)
    await until(lambda: all(not d.logged("message.failed") for d in dispatchers), "no bug met on the way", within=1)
