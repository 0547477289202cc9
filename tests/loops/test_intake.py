"""Polls, slots, holding and drain, on fakes under virtual time. `Process._receive` checks what each poll asks for."""

import asyncio
from random import Random

import pytest

from dispatcher.errors import Cause
from tests.fakes.faults import Faults, bug, hangs, lost_answer, lost_request, refused, slow
from tests.fakes.world import A, B, C, world
from tests.virtual_time import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(("slots", "pollers"), [(1, 1), (3, 8), (15, 2), (100, 8)])
def test_it_never_asks_for_more_than_it_has_slots(slots: int, pollers: int) -> None:
    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.faults.always("send", slow(after_s=1.0))
            for number in range(150):
                here.submit(f"r{number}")
            process = here.start(slots=slots, pollers=pollers)
            most = 0
            while here.master.messages:
                most = max(most, len(process.in_flight))
                await asyncio.sleep(0.1)
            assert most <= slots
            assert all(1 <= asked <= 10 for asked in here.master.asked)

    run_virtual(story())


def test_after_thousands_of_random_failures_every_slot_is_free_again() -> None:
    async def story() -> None:
        random = Random(7)
        troubles = [refused(), refused(Cause.INVALID), lost_request(0.3), lost_answer(0.3), bug(), slow(after_s=2.0)]
        async with world(receives_max=100_000, wait_s=2, allows={"copies"}) as here:  # bugs and stale receipts
            everywhere: list[tuple[Faults, tuple[str, ...]]] = [(here.master.faults, ("acknowledge", "keep_invisible"))]
            everywhere += [(here.master.faults, ("receive", "received"))]
            everywhere += [(here.ledger.faults, ("claim", "confirm", "retarget", "release", "take_over", "renew"))]
            everywhere += [(queue.faults, ("send",)) for queue in here.regional.values()]
            for faults, operations in everywhere:
                for operation in operations:
                    usable = troubles if operation not in ("receive", "received") else troubles[:4]
                    for number in range(1, 4000):
                        if random.random() < 0.3:
                            faults.on(operation, random.choice(usable), number)
            process = here.start(slots=50, pollers=4)
            for number in range(1500):
                here.submit(f"r{number % 1000}")
                if number % 20 == 0:
                    await asyncio.sleep(0.5)
            await here.until(lambda: not here.master.messages, within_s=20_000)
            await here.until(lambda: not len(process.in_flight))
            process.drain()
            await process.ended()
            assert (len(process.in_flight), process.in_flight.asked) == (0, 0)
            assert process.in_flight.free == 50
            assert all(view.under_way == 0 for view in process.board.views().values()), "every place is given up"
            assert sum(process.outcomes().values()) == process.value("received_total") >= 1500

    run_virtual(story())


def test_while_no_region_may_get_more_nothing_is_received() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            for queue in here.regional.values():
                queue.visible = here.threshold
            process = here.start()
            await here.until(process.board.any_depth_read)
            await asyncio.sleep(1)
            asked = len(here.master.asked)
            for number in range(30):
                here.submit(f"r{number}")
            await asyncio.sleep(1800)
            assert len(here.master.asked) == asked == 0
            assert not here.master.spent
            assert process.gate.holding() == "no Region may get more"
            here.regional[B].visible = 0
            await here.empty(within_s=30)
            assert {arrival.region for arrival in here.arrivals} == {B}

    run_virtual(story())


def test_before_the_first_depth_is_read_nothing_is_received() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            for queue in here.regional.values():
                queue.faults.always("depth", refused())
            here.submit("r")
            here.start()
            await asyncio.sleep(600)
            assert not here.master.asked

    run_virtual(story())


def test_nothing_is_sent_past_the_projected_threshold_between_two_readings() -> None:
    async def story() -> None:
        async with world(A, B, threshold=20) as here:
            for queue in here.regional.values():
                queue.visible = 0  # the reading never shows what we send
                queue.faults.on("depth", hangs(), 2)
            for number in range(100):
                here.submit(f"r{number}")
            here.start()
            await asyncio.sleep(14)  # no second reading within it
            assert all(len(queue.arrivals) <= 20 for queue in here.regional.values())
            assert len(here.arrivals) == 40
            assert len(here.master.spent) <= 50, "the rest stays unreceived"

    run_virtual(story())


def test_one_hanging_region_holds_up_half_of_the_slots_at_most() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            here.regional[A].faults.always("send", slow(before_s=300.0))
            for number in range(400):
                here.submit(f"r{number}")
            process = here.start(slots=20, pollers=2)
            await asyncio.sleep(200)
            assert process.board.view(A).under_way <= 10
            assert len(here.regional[B].arrivals) > 300
            here.regional[A].faults.clear("send")
            await here.empty(within_s=2000)

    run_virtual(story())


def test_a_drain_carries_what_an_open_poll_still_brings() -> None:
    async def story() -> None:
        async with world() as here:
            process = here.start()
            await asyncio.sleep(3)
            process.drain()
            await asyncio.sleep(5)
            here.submit("late")
            await process.ended()
            assert process.outcomes() == {"dispatched": 1}
            assert now() < 25
            asked = len(here.master.asked)
            here.submit("too late")
            await asyncio.sleep(60)
            assert len(here.master.asked) == asked
            assert not len(process.in_flight)

    run_virtual(story())


def test_a_drain_before_anything_was_received_ends_with_the_open_polls() -> None:
    async def story() -> None:
        async with world() as here:
            process = here.start()
            await asyncio.sleep(1)
            process.drain()
            await process.ended()
            assert now() < 25
            assert process.outcomes() == {}

    run_virtual(story())


def test_what_is_not_finished_at_the_deadline_is_handed_back_and_counted() -> None:
    async def story() -> None:
        async with world(wait_s=1) as here:
            here.ledger.faults.always("claim", hangs())
            message_ids = [here.submit(f"r{number}") for number in range(7)]
            process = here.start(drain_s=10.0)
            await here.until(lambda: len(here.master.spent) == 7)
            process.drain()
            drained_at = now()
            await process.ended()
            assert 10 <= now() - drained_at < 12
            assert process.outcomes() == {"released": 7}
            assert all(here.master.messages[m].visible_at <= now() for m in message_ids)

    run_virtual(story())


def test_a_hand_back_that_hangs_does_not_keep_the_process() -> None:
    async def story() -> None:
        async with world(wait_s=1, allows={"uncounted"}) as here:
            here.ledger.faults.always("claim", hangs())
            here.ledger.faults.always("release", hangs())
            here.submit("r")
            process = here.start(drain_s=10.0)
            await here.until(lambda: here.master.spent)
            process.drain()
            drained_at = now()
            await process.ended()
            assert now() - drained_at <= 21

    run_virtual(story())


def test_a_poll_that_hangs_is_cut_off_at_the_deadline() -> None:
    async def story() -> None:
        async with world() as here:
            here.master.faults.always("receive", hangs())
            process = here.start(drain_s=10.0)
            await asyncio.sleep(3)
            process.drain()
            await process.ended()
            assert now() < 15
            assert process.in_flight.asked == 0

    run_virtual(story())


def test_a_bug_in_carrying_one_message_costs_that_message_alone() -> None:
    async def story() -> None:
        async with world(receives_max=10) as here:
            here.ledger.faults.on("claim", bug(), 2, 6)  # together with the others, and then alone
            for number in range(5):
                here.submit(f"r{number}")
            process = here.start()
            await here.until(lambda: sum(process.outcomes().values()) == 5)
            assert process.outcomes() == {"dispatched": 4, "failed": 1}
            assert process.value("errors_total", stage="route", error="unexpected") == 1
            await here.empty(within_s=200)  # its visibility lapses, and it comes again
            assert len(here.arrivals) == 5

    run_virtual(story())


@pytest.mark.parametrize("cause", [Cause.DENIED, Cause.THROTTLED, Cause.UNREACHABLE, Cause.MISSING])
def test_failed_receives_back_off_are_counted_and_recover(cause: Cause) -> None:
    async def story() -> None:
        async with world() as here:
            here.master.faults.always("receive", refused(cause))
            process = here.start(pollers=1)
            here.submit("r")
            await asyncio.sleep(600)
            tries = here.master.faults.calls["receive"]
            assert 100 <= tries <= 300, "every few seconds: neither a storm nor a halt"
            assert process.value("errors_total", stage="receive", error=cause) == tries
            assert process.in_flight.asked == 0
            here.master.faults.clear("receive")
            await here.empty(within_s=10)

    run_virtual(story())


def test_a_slow_call_delays_those_that_came_together_and_no_other() -> None:
    async def story() -> None:
        async with world(A, B, C) as here:
            here.ledger.faults.on("claim", slow(after_s=80.0), 1)
            for number in range(300):
                here.submit(f"r{number}")
            here.start()
            await here.until(lambda: len(here.arrivals) >= 290, within_s=20)
            await here.empty()

    run_virtual(story())


def test_a_poison_message_goes_to_the_dead_letters_and_its_mates_go_on() -> None:
    async def story() -> None:
        async with world() as here:
            for text in ("", "not json", "[]", "{}", '{"request_id": ""}', '{"request_id": 1e999}', "[" * 100_000):
                here.master.send(text)
            for number in range(3):
                here.submit(f"r{number}")
            process = here.start()
            await here.until(lambda: sum(process.outcomes().values()) == 10)
            assert process.outcomes() == {"dispatched": 3, "rejected": 7}
            assert len(here.dead_letters.arrivals) == 7
            assert all(a.out.attributes["dispatcher.rejected_because"].value for a in here.dead_letters.arrivals)

    run_virtual(story())


def test_polls_that_return_empty_at_once_are_not_repeated_at_once() -> None:
    """With a wait of 0, or with 120,000 messages in flight, SQS answers empty at once; each answer is paid for."""

    async def story() -> None:
        async with world(wait_s=0.0) as here:
            here.start(pollers=4)
            await asyncio.sleep(60)
            assert 50 <= len(here.master.asked) <= 90, "one poll is open where nothing comes"
            here.submit("r")
            await here.empty(within_s=5)

    run_virtual(story())
