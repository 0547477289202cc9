"""The extension of every delivery in flight, on fakes under virtual time."""

import asyncio

import pytest

from dispatcher.errors import Cause
from dispatcher.pipeline import Terms
from tests.fakes.faults import Trouble, hangs, lost_answer, lost_request, refused, slow
from tests.fakes.world import EPOCH_S, A, Process, World, world
from tests.virtual_time import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def _receives(here: World) -> set[int]:
    return set(here.master.spent.values())


@pytest.mark.parametrize("terms", [Terms(120, 90), Terms(10, 9), Terms(2, 1)], ids=["usual", "ten", "tiny"])
def test_a_message_is_kept_for_as_long_as_its_carrying_lasts(terms: Terms) -> None:
    async def story() -> None:
        async with world(A, terms=terms, receives_max=1000) as here:
            here.ledger.faults.always("confirm", refused(Cause.THROTTLED))
            message_ids = [here.submit(f"r{number}") for number in range(5)]
            process = here.start()
            await here.until(lambda: len(here.arrivals) == 5)
            until = now() + 3600
            while now() < until:
                assert all(here.master.messages[m].visible_at > now() for m in message_ids)
                await asyncio.sleep(terms.visibility_s / 10)
            here.ledger.faults.clear("confirm")
            await here.empty()
            await here.until(lambda: sum(process.outcomes().values()) == 5)
            assert process.outcomes() == {"dispatched": 5}
            assert _receives(here) == {1}

    run_virtual(story())


def test_it_is_kept_through_the_whole_drain() -> None:
    async def story() -> None:
        async with world(A, terms=Terms(20, 10), wait_s=1) as here:
            here.ledger.faults.always("confirm", refused(Cause.THROTTLED))
            message_id = here.submit("r")
            process = here.start(drain_s=100.0)
            await here.until(lambda: here.arrivals)
            process.drain()
            for _ in range(90):
                await asyncio.sleep(1)
                assert here.master.messages[message_id].visible_at > now()
            here.ledger.faults.clear("confirm")
            await process.ended()
            assert process.outcomes() == {"dispatched": 1}
            assert _receives(here) == {1}

    run_virtual(story())


@pytest.mark.parametrize(
    "trouble",
    [refused(Cause.THROTTLED), refused(Cause.DENIED), lost_request(2.0), lost_answer(2.0)],
    ids=["throttled", "denied", "request lost", "answer lost"],
)
def test_a_failed_extension_is_tried_again_while_there_is_time(trouble: Trouble) -> None:
    async def story() -> None:
        async with world(A) as here:
            here.ledger.faults.always("confirm", refused())
            here.master.faults.on("keep_invisible", trouble, *range(1, 11))
            message_id = here.submit("r")
            here.start()
            await asyncio.sleep(400)
            assert here.master.messages[message_id].visible_at > now()
            assert _receives(here) == {1}
            here.ledger.faults.clear("confirm")
            await here.empty()

    run_virtual(story())


@pytest.mark.parametrize("trouble", [hangs(), slow(before_s=40.0)], ids=["for ever", "forty seconds"])
def test_one_hanging_extension_delays_no_other(trouble: Trouble) -> None:
    async def story() -> None:
        async with world(A) as here:
            here.ledger.faults.always("confirm", refused())
            here.master.faults.on("keep_invisible", trouble, 1)
            for number in range(20):
                here.submit(f"r{number}")
            here.start()
            await asyncio.sleep(110)
            extended = {message_id for _, message_id, seconds in here.master.changes if seconds == 120}
            assert len(extended) >= 19
            here.ledger.faults.clear("confirm")
            await here.empty()

    run_virtual(story())


def test_a_receipt_that_sqs_calls_invalid_marks_the_delivery_as_lost() -> None:
    async def story() -> None:
        async with world(A, receives_max=100) as here:
            here.ledger.faults.always("claim", refused())
            here.master.faults.on("keep_invisible", refused(Cause.INVALID))
            here.submit("r")
            process = here.start()
            await here.until(process.outcomes, within_s=100)
            assert process.outcomes() == {"failed": 1}
            calls = here.master.faults.calls["keep_invisible"]
            assert calls == 1, "who has lost it asks no more"
            here.ledger.faults.clear("claim")
            await here.empty()

    run_virtual(story())


def test_after_hiding_there_is_no_extension() -> None:
    async def story() -> None:
        async with world(A, terms=Terms(20, 15)) as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = lambda point, _: point == "claim:done"
            await here.until(lambda: first.life.dead)
            twin = here.submit("r")
            second = here.start("second")
            await here.until(second.outcomes)
            hidden_at = now()
            lease_end = here.ledger.items["r"].lease_end - EPOCH_S
            assert lease_end < here.master.messages[twin].visible_at < lease_end + 3
            await here.empty()
            later = [seconds for at, m, seconds in here.master.changes if m == twin and hidden_at < at < lease_end]
            assert later == []

    run_virtual(story())


def test_a_hide_waits_for_the_extension_under_way_and_has_the_last_word() -> None:
    """The extension leaves first and takes long; arriving second it would overwrite the hide."""

    async def story() -> None:
        async with world(A, terms=Terms(20, 15)) as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = lambda point, _: point == "claim:done"
            await here.until(lambda: first.life.dead)
            lease_end = here.ledger.items["r"].lease_end - EPOCH_S
            twin = here.submit("r")
            here.master.faults.on("keep_invisible", slow(before_s=2.0), 1)
            here.ledger.faults.on("claim", slow(after_s=10.5), 1)  # long enough for an extension to start meanwhile
            second = here.start("second")
            await here.until(second.outcomes)
            if second.outcomes() == {"held": 1}:
                assert here.master.messages[twin].visible_at < lease_end + 4
            await here.empty()

    run_virtual(story())


def test_after_handing_back_there_is_no_extension() -> None:
    async def story() -> None:
        async with world(A, terms=Terms(20, 15), wait_s=1) as here:
            here.ledger.faults.always("claim", hangs())
            message_id = here.submit("r")
            process = here.start(drain_s=3.0)
            await here.until(lambda: here.master.spent)
            process.drain()
            await process.ended()
            assert here.master.changes[-1][1:] == (message_id, 0)
            changes = len(here.master.changes)
            await asyncio.sleep(60)
            assert len(here.master.changes) == changes

    run_virtual(story())


def test_a_message_parked_for_a_region_is_kept_by_extension_for_an_hour() -> None:
    async def story() -> None:
        async with world(A) as here:
            here.regional[A].visible = 0
            here.regional[A].faults.always("send", refused(Cause.MISSING))
            here.submit("r")
            here.start()
            await asyncio.sleep(3600)
            assert _receives(here) == {1}
            here.regional[A].faults.clear("send")
            await here.empty(within_s=60)
            assert _receives(here) == {1}

    run_virtual(story())


def test_after_twelve_hours_sqs_s_own_limit_ends_it_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour stands for the twelve: even virtual seconds cost a little each."""
    monkeypatch.setattr("dispatcher.pipeline.RECEIVE_MAX_S", 1800)

    async def story() -> None:
        async with world(A) as here:
            here.regional[A].faults.always("send", refused(Cause.MISSING))
            here.submit("r")
            process: Process = here.start()
            await asyncio.sleep(1800 + 200)
            assert process.outcomes().get("failed") == 1
            assert process.value("errors_total", stage="route", error="unexpected") == 0
            here.regional[A].faults.clear("send")
            await here.empty(within_s=300)

    run_virtual(story())
