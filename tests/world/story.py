"""A story from a seed: who starts, what is sent, what the weather does, who dies, and when. Then all must be well.

`python -m tests.world SEED` plays one and tells it.
"""

import asyncio
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.virtual_time import run_virtual
from tests.world.wire import Kind, Spell
from tests.world.world import REGIONS, World

LASTS_S = 7.0  # of traffic, weather and deaths
OPERATIONS = (
    "receive_message", "send_message_batch", "delete_message_batch", "change_message_visibility_batch",
    "batch_execute_statement", "batch_get_item", "put_item", "update_item", "get_item", "get_queue_attributes",
)  # fmt: skip
PATH = OPERATIONS[:5]  # struck more often
POISON = (
    "", "{", "[]", '{"request_id": ""}', '{"request_id": "p", "request_id": "p"}', '"\\ud800"', "[" * 5000, "1" * 5000,
    '{"request_id": "p\\u0000", "model_name": "m", "input_data_url": "s3://b/k"}', "null", '{"request_id": 7}',
)  # fmt: skip


@dataclass(slots=True)
class Told:
    """What came of a story."""

    seed: int
    plan: list[object] = field(default_factory=list)  # spells among it: what they struck is known in the end
    requests: int = 0
    messages: int = 0
    copies: int = 0
    calls: int = 0
    struck: int = 0
    kills: int = 0
    drains: int = 0
    seconds: float = 0.0


async def _play(seed: int, told: Told) -> None:
    random = Random(f"story {seed}")
    choose = random.random
    settings: dict[str, Any] = {"ledger_batching": choose() < 0.8}
    if choose() < 0.1:  # the defaults
        settings |= {"visibility_seconds": 120, "claim_lease_seconds": 90, "poll_wait_seconds": 20}
        settings |= {"depth_ttl_seconds": 60, "drain_timeout_seconds": 100}
    if choose() < 0.2:
        settings |= {"drain_timeout_seconds": 1}
    if choose() < 0.3:
        settings |= {"overload_threshold": random.randint(3, 8)}
    if choose() < 0.3:
        settings |= {"rules": {REGIONS[0]: {"models": ["m"]}}}
    if choose() < 0.2:
        settings |= {"max_in_flight": random.randint(2, 6)}
    retention_s = 12.0 if choose() < 0.1 else 21 * 86400.0
    world = World(seed, retention_s=retention_s, **settings)
    told.plan.append(f"settings {settings}, retention {retention_s:g} s")
    try:
        if "overload_threshold" in settings or choose() < 0.2:
            for region in REGIONS:
                world.work(region, random.choice((0.5, 2.0, 10.0)))
        await asyncio.gather(_traffic(world, random, told), _weather(world, random, told), _deaths(world, random, told))
        await world.settle()
        told.requests = len(world.requests)
        told.messages = sum(len(request.message_ids) for request in world.requests.values())
        told.copies = len(world.arrived) - len(world.requests)
        told.calls, told.struck = world.wire.calls, world.wire.struck
        told.kills = sum(process.life.dead for process in world.processes)
        told.drains = sum(process.drained_at is not None for process in world.processes) - 1
        told.seconds = world.aws.now()
        world.check()
    finally:
        await world.end()


async def _traffic(world: World, random: Random, told: Told) -> None:
    count = random.randint(3, 20)
    ids = [f"r{n}" for n in range(count)]
    told.plan.append(f"{count} requests")
    for request_id in ids:
        model = "other" if random.random() < 0.1 else "m"
        world.submit(request_id, model_name=model, priority=random.choice(("high", "normal", "low")))
        if random.random() < 0.3:
            twin_of = random.choice(ids[: ids.index(request_id) + 1])
            first = world.requests[twin_of]
            again = random.random() < 0.2
            world.submit(twin_of, generation=first.generation + 1 if again else 0, **first.fields)
        if random.random() < 0.1:
            world.submit_raw(random.choice(POISON))
        if random.random() < 0.05:
            world.submit_raw(
                json.dumps({"request_id": request_id, "model_name": "m", "input_data_url": "s3://else/where"})
            )
        if random.random() < 0.5:
            await asyncio.sleep(random.uniform(0, 2 * LASTS_S / count))


async def _weather(world: World, random: Random, told: Told) -> None:
    for _ in range(random.choice((0, 1, 3, 6, 10, 15))):
        begins = random.uniform(0, LASTS_S * 0.8)
        lasts = random.choice((0.3, 1.0, 3.0, 8.0))
        spell = Spell(
            random.choice(list(Kind)),
            begins,
            min(begins + lasts, LASTS_S),
            random.choice((*OPERATIONS, *PATH, *PATH, "")),
            random.choice(("", "", *REGIONS)),
            most=random.choice((1, 2, 5, 1000)),
            chance=random.choice((0.2, 0.5, 1.0, 1.0)),
        )
        told.plan.append(spell)
        world.weather(spell)


async def _deaths(world: World, random: Random, told: Told) -> None:
    def start() -> None:
        skew_s = random.choice((0.0, 0.0, 300.0, -300.0, random.uniform(-300, 300)))
        process = world.start(skew_s=skew_s)
        told.plan.append(f"{world.aws.now():.2f} s: {process.life.name} starts, its clock {skew_s:+.0f} s off")
        if random.random() < 0.3:
            last = random.randint(1, 60)
            process.life.dies = lambda point, number: number >= last
            told.plan.append(f"{process.life.name} dies at its step {last}")

    for _ in range(random.choice((1, 1, 2, 2, 2, 3))):
        start()
    until = world.aws.now() + LASTS_S
    while True:
        await asyncio.sleep(random.uniform(0.2, 6.0))
        if world.aws.now() >= until:
            return
        alive = world.alive
        match random.randrange(4):
            case 0 if alive:
                process = random.choice(alive)
                told.plan.append(f"{world.aws.now():.2f} s: {process.life.name} is killed")
                process.kill()
            case 1 if alive:
                process = random.choice(alive)
                told.plan.append(f"{world.aws.now():.2f} s: {process.life.name} is told to drain")
                process.drain()
            case 2 if len(alive) < 3:
                start()
            case 3:
                world.redrive()
        if not world.alive:
            start()


def play(seed: int) -> Told:
    """Play the story of a seed in virtual time. Raises AssertionError whose first line says how to play it again."""
    told = Told(seed)
    try:
        run_virtual(_play(seed, told))
    except AssertionError as fault:
        plan = "\n".join(map(str, told.plan))
        raise AssertionError(f"again: .venv/bin/python -m tests.world {seed}\n{plan}\n{fault}") from None
    return told
