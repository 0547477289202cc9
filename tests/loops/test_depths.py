"""Depth readings and what becomes of a Region whose readings fail, on fakes under virtual time."""

import asyncio
from itertools import pairwise

import pytest

from dispatcher.errors import Cause
from dispatcher.model import Policy
from dispatcher.policy.breaker import BreakerState
from dispatcher.policy.routing import Freshness
from tests.fakes.faults import hangs, refused, slow
from tests.fakes.world import A, B, C, Process, World, world
from tests.virtual_time import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def _watch(here: World) -> dict[str, list[float]]:
    """Return, by Region, the times at which its depth is asked for; fills while the world turns."""
    asked: dict[str, list[float]] = {region: [] for region in here.regional}
    for region, queue in here.regional.items():
        queue.reads = asked[region]
    return asked


def _freshness(process: Process) -> dict[str, Freshness]:
    return {region: view.freshness for region, view in process.board.views().items()}


def test_every_region_is_read_four_times_in_a_ttl_each_on_a_beat_of_its_own() -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            asked = _watch(here)
            here.start()
            await asyncio.sleep(600)
            for times in asked.values():
                gaps = [later - sooner for sooner, later in pairwise(times)]
                assert all(11.9 <= gap <= 19.6 for gap in gaps)
                assert max(gaps) - min(gaps) > 1, "jittered"
            assert len({tuple(times) for times in asked.values()}) == 3, "not in step"

    run_virtual(story())


def test_a_reading_goes_stale_after_the_ttl_and_unknown_after_two() -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            process = here.start()
            await here.until(process.board.any_depth_read)
            await asyncio.sleep(1)
            here.regional[A].faults.always("depth", refused(Cause.DENIED))
            read_at = now() - process.board.view(A).age_s
            await asyncio.sleep(read_at + 59 - now())
            assert set(_freshness(process).values()) == {Freshness.FRESH}
            fair = process.board.shares()[A]
            await asyncio.sleep(2)
            assert _freshness(process)[A] is Freshness.STALE
            assert process.board.shares()[A] < fair * 0.75
            await asyncio.sleep(60)
            assert _freshness(process)[A] is Freshness.UNKNOWN
            assert process.board.shares()[A] == pytest.approx(0.02)
            assert process.value("errors_total", stage="depth", error="denied") >= 4
            here.regional[A].faults.clear("depth")
            await asyncio.sleep(20)
            assert _freshness(process)[A] is Freshness.FRESH
            assert process.board.shares()[A] == pytest.approx(fair, abs=0.05)

    run_virtual(story())


def test_a_region_that_cannot_be_read_keeps_its_last_depth_and_is_never_zero() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            here.regional[A].visible, here.regional[B].visible = 4000, 10
            process = here.start(policy=Policy.INVERSE_DEPTH)
            await here.until(lambda: len(process.board.shares()) == 2)
            here.regional[A].faults.always("depth", refused())
            await asyncio.sleep(110)
            view = process.board.view(A)
            assert view.depth is not None
            assert view.depth.visible == 4000
            assert process.board.shares()[A] < 0.01

    run_virtual(story())


@pytest.mark.parametrize("trouble", [hangs(), slow(before_s=40.0)], ids=["hangs", "slow"])
def test_a_slow_region_delays_no_other(trouble: object) -> None:
    async def story() -> None:
        async with world(ttl_s=60) as here:
            here.regional[B].faults.always("depth", trouble)  # type: ignore[arg-type]  # any fault of the fake
            asked = _watch(here)
            process = here.start()
            await asyncio.sleep(300)
            for region in (A, C):
                assert all(later - sooner <= 19.6 for sooner, later in pairwise(asked[region]))
                assert _freshness(process)[region] is Freshness.FRESH

    run_virtual(story())


def test_a_reading_counts_from_when_it_was_asked_for() -> None:
    """What was accepted while it was under way may not be in it: it counts on top, and the age includes the wait."""

    async def story() -> None:
        async with world(A, B, ttl_s=60) as here:
            process = here.start()
            await here.until(lambda: len(process.board.shares()) == 2)
            here.regional[A].visible = here.regional[B].visible = 0
            for queue in here.regional.values():
                queue.faults.always("depth", slow(after_s=30.0))
            await asyncio.sleep(20)  # the next readings are under way
            for number in range(40):
                here.submit(f"r{number}")
            await here.empty()
            await here.until(lambda: all(20 < view.age_s < 40 for view in process.board.views().values()))
            await asyncio.sleep(20)
            assert sum(view.own_since for view in process.board.views().values()) == 40

    run_virtual(story())


def _broken(process: Process) -> bool:
    return process.board.view(A).breaker is BreakerState.OPEN


def test_a_good_reading_half_opens_a_breaker_and_one_send_closes_it() -> None:
    async def story() -> None:
        async with world(A, B, ttl_s=60) as here:
            for queue in here.regional.values():
                queue.faults.always("depth", slow(before_s=3.0))
            here.regional[A].faults.always("send", refused(Cause.DENIED))
            process = here.start()
            await here.until(lambda: len(process.board.shares()) == 2)
            for number in range(40):
                here.submit(f"r{number}")
            await here.until(lambda: _broken(process))
            here.regional[A].faults.clear("send")
            before = len(here.regional[A].departures)
            await here.until(lambda: process.board.view(A).breaker is BreakerState.HALF_OPEN, within_s=15)
            assert process.board.view(A).budget() <= 1, "one at a time, to see"
            for number in range(100, 140):
                here.submit(f"r{number}")
            await here.until(lambda: process.board.view(A).breaker is BreakerState.CLOSED, within_s=10)
            assert len(here.regional[A].departures) > before
            await here.empty()

    run_virtual(story())


@pytest.mark.parametrize("why", ["full", "broken"])
def test_a_region_out_of_play_is_read_within_every_five_seconds(why: str) -> None:
    """At least this often, says the constant, so that it is back within fifteen."""

    async def story() -> None:
        async with world(A, B, ttl_s=60) as here:
            asked = _watch(here)
            process = here.start()
            await here.until(lambda: len(process.board.shares()) == 2)
            if why == "full":
                here.regional[A].visible = here.threshold
            else:
                here.regional[A].faults.always("send", refused(Cause.DENIED))
                for number in range(40):
                    here.submit(f"r{number}")
            await here.until(lambda: process.board.out_of_play(A), within_s=30)
            out_at = now()
            while now() < out_at + 120:
                if why == "broken" and process.board.view(A).breaker is BreakerState.HALF_OPEN:
                    here.submit(f"s{now()}")  # tried and found broken again
                await asyncio.sleep(1)
            gaps = [later - sooner for sooner, later in pairwise(t for t in asked[A] if t > out_at)]
            assert max(gaps) <= 5.1, f"{max(gaps):.1f} s"

    run_virtual(story())


def test_a_region_that_opens_gets_messages_within_fifteen_seconds() -> None:
    async def story() -> None:
        async with world(A, ttl_s=60) as here:
            here.regional[A].visible = here.threshold
            here.start()
            here.submit("r")
            await asyncio.sleep(200)
            assert not here.arrivals
            here.regional[A].visible = 0
            opened_at = now()
            await here.empty(within_s=20)
            assert here.arrivals[0].at - opened_at <= 15

    run_virtual(story())
