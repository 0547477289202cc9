"""`dispatcher dlq`, killed anywhere, with any call failing: nothing is lost, nothing that was dispatched goes again."""

import asyncio
import json
from collections import Counter
from functools import partial
from typing import Any

import pytest

from dispatcher.commands.advice import UnusableError
from dispatcher.commands.dlq import (
    BY_SQS,
    Fate,
    Letter,
    NoDeadLetterQueueError,
    Wanted,
    look,
    opened,
    purge,
    redriving,
)
from dispatcher.errors import AwsError
from dispatcher.model import Delivery
from dispatcher.settings import Settings
from tests.fakes.faults import Life
from tests.virtual_time import run_virtual
from tests.world.wire import FakeClients, Kind, Spell
from tests.world.world import REGIONS, TABLE, World, story

ALL = Wanted()
WHY = {"dispatcher.rejected_because": {"DataType": "String", "StringValue": "model_name: no Region serves 'x'"}}
POISON = '{"request_id": "poison"}'


def body(request_id: str, url: str = "s3://bucket/key") -> str:
    return json.dumps({"request_id": request_id, "model_name": "m", "input_data_url": url})


def letter(world: World, text: str, attributes: dict[str, dict[str, str]] | None = None) -> str:
    """Put something on the dead-letter queue as if it had been sent to the master once."""
    message_id = world.dead_letters.put(text, attributes or {})
    request_id = json.loads(text)["request_id"]
    if request_id in world.requests:
        world.requests[request_id].message_ids.append(message_id)
    return message_id


async def fill(world: World) -> None:
    """Two that were never dispatched, two that were, one that stands for other work, and poison."""
    for request_id in ("done", "twice"):
        world.submit(request_id)
    process = world.start()
    assert await world.until(lambda: not world.master.messages, 20)
    process.drain()
    await process.ended.wait()
    for request_id in ("new", "left"):
        world.submit(request_id)  # so that its fate is checked
        world.master.clear()
    item = world.aws.tables[TABLE]["done"]
    lapsed = {"state": {"S": "claimed"}, "request_id": {"S": "left"}, "lease_end": {"N": f"{world.epoch() - 1:.3f}"}}
    world.aws.tables[TABLE]["left"] = item | lapsed
    for text in (body("new"), body("left"), body("done"), body("twice")):
        letter(world, text)
    letter(world, body("done", "s3://other/work"), WHY)
    letter(world, POISON, WHY)


async def redrive(
    settings: Settings, clients: FakeClients, *, wanted: Wanted = ALL, again: bool = False
) -> Counter[Fate]:
    async with redriving(settings, clients, wanted, again=again, per_second=1000) as command:
        return await command.run(lambda _: None)


def left_in(world: World) -> list[str]:
    return sorted(message.body for message in world.dead_letters.messages.values())


KEPT = sorted([body("done", "s3://other/work"), POISON])


def test_a_redrive_sends_what_was_not_dispatched_drops_what_was_and_leaves_what_would_be_rejected() -> None:
    async def main() -> None:
        async with story() as here:
            await fill(here)
            fates = await here.command(Life("operator"), redrive)
            assert fates == {Fate.REDRIVEN: 2, Fate.DISPATCHED: 2, Fate.OTHER_WORK: 1, Fate.INVALID: 1}
            assert left_in(here) == KEPT
            here.start()
            assert await here.until(lambda: not here.master.messages, 30)
            assert Counter(send.request_id for send in here.arrived) == {"done": 1, "twice": 1, "new": 1, "left": 1}

    run_virtual(main())


def test_a_redrive_again_sends_what_was_dispatched_once_more_on_purpose() -> None:
    async def main() -> None:
        async with story() as here:
            await fill(here)
            wanted = Wanted(request_ids=frozenset({"done"}))
            fates = await here.command(Life("operator"), partial(redrive, wanted=wanted, again=True))
            assert fates is not None
            assert fates[Fate.REDRIVEN] == 2, "the one with other work, too"
            here.start()
            assert await here.until(lambda: not here.master.messages, 30)
            assert Counter(send.request_id for send in here.arrived)["done"] in (2, 3)
            assert Counter(send.request_id for send in here.arrived)["twice"] == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("wanted", "redriven", "not_meant"),
    [
        (Wanted(reason="NO REGION"), 0, 4),
        (Wanted(reason="received too often"), 2, 2),
        (Wanted(request_ids=frozenset({"new"})), 1, 5),
        (Wanted(request_ids=frozenset({"nobody"})), 0, 6),
    ],
)
def test_only_what_is_meant_is_redriven(wanted: Wanted, redriven: int, not_meant: int) -> None:
    async def main() -> None:
        async with story() as here:
            await fill(here)
            fates = await here.command(Life("operator"), partial(redrive, wanted=wanted))
            assert fates is not None
            assert (fates[Fate.REDRIVEN], fates[Fate.NOT_MEANT]) == (redriven, not_meant)
            assert len(here.master.messages) == redriven
            assert all(m.visible_at <= here.aws.now() for m in here.dead_letters.messages.values()), "visible again"

    run_virtual(main())


def test_killed_at_any_step_and_run_again_a_redrive_loses_and_repeats_nothing() -> None:
    async def main(last: int) -> bool:
        async with story(seed=last) as here:
            await fill(here)
            life = Life("operator")
            life.dies = lambda point, number: number >= last
            finished = await here.command(life, redrive) is not None
            await asyncio.sleep(61)  # what it had in hand is visible again
            await here.command(Life("operator again"), redrive)
            assert left_in(here) == KEPT
            here.start()
            assert await here.until(lambda: not here.master.messages, 30)
            assert Counter(send.request_id for send in here.arrived) == {"done": 1, "twice": 1, "new": 1, "left": 1}
        return finished

    steps = 1
    while not run_virtual(main(steps)):
        steps += 1
    assert steps > 20, "it makes many calls"


@pytest.mark.parametrize("kind", list(Kind))
def test_whatever_fails_meanwhile_a_redrive_loses_nothing_and_finishes_when_run_again(kind: Kind) -> None:
    async def main() -> None:
        async with story(seed=list(Kind).index(kind)) as here:
            await fill(here)
            now = here.aws.now()
            here.weather(Spell(kind, now, now + 600, chance=0.3))
            for _ in range(3):
                try:
                    await here.command(Life("operator"), redrive)
                except Exception as fault:
                    # an answer that leaves the policy out is a lie that cannot be told from the truth
                    lied = kind is Kind.MANGLED and isinstance(fault, NoDeadLetterQueueError)
                    assert lied or isinstance(fault, AwsError | UnusableError), repr(fault)
            here.wire.clear()
            await asyncio.sleep(700)
            await here.command(Life("operator again"), redrive)
            assert left_in(here) == KEPT
            here.start()
            assert await here.until(lambda: not here.master.messages, 60)
            assert Counter(send.request_id for send in here.arrived) == {"done": 1, "twice": 1, "new": 1, "left": 1}

    run_virtual(main())


def test_a_dispatch_that_the_ledger_has_forgotten_is_no_reason_to_drop_a_letter() -> None:
    async def main() -> None:
        async with story() as here:
            await fill(here)
            here.aws.tables[TABLE]["done"]["expires_at"] = {"N": f"{here.epoch() - 1:.0f}"}
            fates = await here.command(
                Life("operator"), partial(redrive, wanted=Wanted(request_ids=frozenset({"done"})))
            )
            assert fates is not None
            assert fates[Fate.REDRIVEN] == 2, "as absent: it may be dispatched, whatever work it is"
            assert fates[Fate.DISPATCHED] == 0
            await here.command(Life("operator"), redrive)

    run_virtual(main())


def test_a_redrive_against_a_dispatcher_at_work_ends_and_meets_no_letter_twice() -> None:
    """What the dispatcher rejects comes back under a new message id."""

    async def main() -> None:
        known: Any = {region: {"models": ["m"]} for region in REGIONS}
        async with story(rules=known) as here:
            here.start()
            for number in range(5):
                letter(here, json.dumps({**json.loads(body(f"r{number}")), "model_name": "new"}))
            here.settings["rules"] = {region: {"models": ["m", "new"]} for region in REGIONS}  # to the operator only
            started = here.aws.now()
            assert await here.command(Life("operator"), redrive) == {Fate.REDRIVEN: 5, Fate.BACK: 5}
            assert here.aws.now() - started < 60
            assert await here.until(lambda: not here.master.messages, 60)
            assert len(here.dead_letters.messages) == 5
            here.settings["rules"] = known
            assert await here.command(Life("operator"), redrive) == {Fate.INVALID: 5}

    run_virtual(main())


def test_what_is_left_is_looked_at_once_however_slow_the_rest_goes() -> None:
    async def main() -> None:
        async with story() as here:
            for number in range(60):
                letter(here, body(f"r{number}") if number % 2 else POISON, None if number % 2 else WHY)

            async def slowly(settings: Settings, clients: FakeClients) -> Counter[Fate]:
                async with redriving(settings, clients, ALL, again=False, per_second=0.1) as command:
                    return await command.run(lambda _: None)

            assert await here.command(Life("operator"), slowly) == {Fate.REDRIVEN: 30, Fate.INVALID: 30}
            met = max(message.receives for message in here.dead_letters.messages.values())
            assert met <= 2, "hidden for long, once it was met again"

    run_virtual(main())


def test_a_letter_that_is_delivered_after_its_delete_is_not_sent_again() -> None:
    """SQS may do so, rarely."""

    async def main() -> None:
        async with story() as here:
            message_id = letter(here, body("r"))
            ghost = here.dead_letters.messages[message_id]

            def back(_: int) -> None:
                here.dead_letters.show(ghost)

            async def work(settings: Settings, clients: FakeClients) -> Counter[Fate]:
                async with redriving(settings, clients, ALL, again=False, per_second=1000) as command:
                    return await command.run(back)

            assert await here.command(Life("operator"), work) == {Fate.REDRIVEN: 1, Fate.BACK: 1}
            assert len(here.master.messages) == 1
            here.dead_letters.clear()

    run_virtual(main())


def test_a_redrive_goes_no_faster_than_it_is_told() -> None:
    async def main() -> None:
        async with story() as here:
            for number in range(100):
                letter(here, body(f"r{number}"))

            async def slowly(settings: Settings, clients: FakeClients) -> Counter[Fate]:
                async with redriving(settings, clients, Wanted(), again=False, per_second=0.5) as command:
                    return await command.run(lambda _: None)

            started = here.aws.now()
            assert await here.command(Life("operator"), slowly) == {Fate.REDRIVEN: 100}
            assert here.aws.now() - started > 195, "longer than what it holds stays hidden, and each is sent once"
            assert len(here.master.messages) == 100

    run_virtual(main())


def test_ten_attributes_of_the_client_s_leave_no_room_to_dispatch_again() -> None:
    async def main() -> None:
        async with story() as here:
            here.submit("done")
            here.start()
            assert await here.until(lambda: not here.master.messages, 20)
            letter(here, body("done"), {f"a{n}": {"DataType": "String", "StringValue": "x"} for n in range(10)})
            fates = await here.command(Life("operator"), partial(redrive, again=True))
            assert fates == {Fate.NO_ROOM: 1}
            assert len(here.dead_letters.messages) == 1
            here.dead_letters.clear()

    run_virtual(main())


async def _looked(here: World, most: int = 1000) -> list[Letter]:
    async def work(settings: Settings, clients: FakeClients) -> list[Letter]:
        async with opened(settings, clients) as mailbox:
            return await look(mailbox, ALL, most=most, seen=lambda _: None)

    return await here.command(Life("operator"), work) or []


def test_looking_tells_reason_age_receives_and_id_and_leaves_everything_visible() -> None:
    async def main() -> None:
        async with story() as here:
            await fill(here)
            await asyncio.sleep(100)
            found: list[Letter] = []
            for _ in range(2):
                found = await _looked(here)
                assert len(found) == 6
                reasons = Counter(one.reason for one in found)
                assert reasons == {BY_SQS: 4, "model_name: no Region serves 'x'": 2}
                assert {one.request_id for one in found} == {"new", "left", "done", "twice", "poison"}
            assert {one.delivery.receives for one in found} == {2}
            few = await _looked(here, most=2)
            assert len(few) == 2
            assert all(m.visible_at <= here.aws.now() for m in here.dead_letters.messages.values())
            await here.command(Life("operator"), redrive)

    run_virtual(main())


def test_a_purge_drops_what_was_looked_at_and_nothing_that_came_later() -> None:
    async def main() -> None:
        async with story() as here:
            first = letter(here, POISON, WHY)
            found = await _looked(here)
            later = letter(here, POISON, WHY)

            async def drop(settings: Settings, clients: FakeClients) -> int:
                async with opened(settings, clients) as mailbox:
                    return await purge(mailbox, found, lambda _: None)

            assert await here.command(Life("operator"), drop) == 1
            assert list(here.dead_letters.messages) == [later] != [first]

    run_virtual(main())


def test_a_letter_of_any_kind_can_be_shown() -> None:
    """Whatever a client put into it."""
    from dispatcher.commands.dlq import _letter

    for text in ("", "{", "[" * 100000, '"\ud800"', '{"request_id": 7}', '{"request_id": "\\u001b[31m"}', "1" * 5000):
        values = _letter(Delivery("m", "r", text, {}, None, 900.0, 1), 1000.0).values
        assert values["age_seconds"] == 100
        assert values["request_id"] in (None, "\x1b[31m")
