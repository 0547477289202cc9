"""The path of one message on fakes: cut at every await, refused, answered late or never."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher import pipeline
from dispatcher.errors import Cause, RefusedError
from dispatcher.inflight import Flight
from dispatcher.model import Attribute, Choice, Claimed, Delivery, Message, Region
from dispatcher.pipeline import LOST_ANSWERS_MAX, Terms
from dispatcher.policy import envelope
from tests.fakes.faults import Trouble, freeze, hangs, lost_answer, lost_request, refused, slow
from tests.fakes.world import EPOCH_S, A, B, BreakingLedger, C, Process, World, body, world
from tests.virtual_time import run_virtual

TINY = Terms(visibility_s=2, lease_s=1)
USUAL = Terms(visibility_s=120, lease_s=90)
STEPS = ("claim", "send", "confirm", "acknowledge")


def now() -> float:
    return asyncio.get_running_loop().time()


def after(*points: str) -> Callable[[str, int], bool]:
    """Die at the first of these points."""
    return lambda point, _: point in points


# --- together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("trouble", "cause"),
    [(refused(Cause.THROTTLED), "throttled"), (lost_request(), "ambiguous"), (lost_answer(), "ambiguous")],
    ids=["refused", "lost_request", "lost_answer"],
)
def test_what_one_of_those_that_came_together_meets_is_its_own_matter(step: str, trouble: Trouble, cause: str) -> None:
    async def story() -> None:
        async with world(A) as here:
            faults = {"send": here.regional[A].faults, "acknowledge": here.master.faults}.get(step, here.ledger.faults)
            faults.on(step, trouble, 4)
            for number in range(10):
                here.submit(f"r{number}")
            process = here.start(pollers=1)
            await here.until(lambda: process.outcomes() == {"dispatched": 10})
            assert not here.master.messages
            assert {arrival.request_id for arrival in here.arrivals} == {f"r{number}" for number in range(10)}
            assert len(here.arrivals) == 10 + (step == "send" and trouble.worked)
            again = step == "claim" or (step == "send" and cause == "throttled")  # with one Region it is released first
            assert here.ledger.faults.calls["claim"] == 10 + again, "nobody else claims again"
            assert here.ledger.faults.calls["confirm"] == 10 + (step == "confirm"), "nobody else confirms again"
            assert here.regional[A].faults.calls["send"] == 10 + (step == "send")
            stage = {"claim": "ledger", "confirm": "ledger", "acknowledge": "delete"}.get(step, step)
            assert process.value("errors_total", stage=stage, error=cause) == 1
            assert process.in_flight.placed == 0

    run_virtual(story())


def test_what_was_refused_together_is_not_tried_again_together() -> None:
    """A table that says "throttled" must not hear all of them once more at once."""

    async def story() -> None:
        async with world(A) as here:
            here.ledger.faults.on("claim", refused(Cause.THROTTLED), *range(1, 11))
            for number in range(10):
                here.submit(f"r{number}")
            here.start(pollers=1)
            await here.until(lambda: len(here.arrivals) == 10)
            claimed_at = {w.at for w in here.ledger.writes if w.operation == "claim"}
            assert len(claimed_at) == 10
            assert min(claimed_at) - EPOCH_S > 0.1

    run_virtual(story())


def test_a_duplicate_is_claimed_once_and_then_looked_up() -> None:
    async def story() -> None:
        async with world(A) as here:
            for number in range(5):
                here.submit(f"r{number}")
            first = here.start("first")
            await here.until(lambda: first.outcomes() == {"dispatched": 5})
            for number in range(5):
                here.submit(f"r{number}")
            await here.until(lambda: first.outcomes() == {"dispatched": 5, "duplicate": 5})
            assert (here.ledger.faults.calls["claim"], here.ledger.faults.calls["look"]) == (10, 5)

    run_virtual(story())


def test_a_twin_does_not_hold_up_those_that_came_with_it() -> None:
    async def story() -> None:
        async with world(A) as here:
            here.ledger.faults.on("claim", hangs(), 1)  # the twin's, which goes alone
            for name in ("r0", "r0", *(f"r{number}" for number in range(1, 9))):
                here.submit(name)
            here.start(pollers=1)
            await here.until(lambda: len(here.arrivals) == 9, within_s=1)

    run_virtual(story())


def test_a_bug_in_one_message_s_attributes_costs_that_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = envelope.forwarded

    def wrong(body: str, *rest: Any, **more: Any) -> dict[str, Attribute]:
        if '"r3"' in body:
            raise ZeroDivisionError
        return right(body, *rest, **more)

    monkeypatch.setattr(pipeline, "forwarded", wrong)

    async def story() -> None:
        async with world(A, receives_max=1, allows=("losses",)) as here:
            for number in range(10):
                here.submit(f"r{number}")
            process = here.start(pollers=1)
            await here.until(lambda: process.outcomes() == {"dispatched": 9, "failed": 1})
            assert process.value("errors_total", stage="route", error="unexpected") == 1
            monkeypatch.undo()

    run_virtual(story())


def test_a_bug_in_telling_of_one_choice_leaves_those_that_came_with_it_no_places() -> None:
    """Each is chosen for anew, alone: with the places kept there would be room for none, and nothing to wait for."""

    def tells(found: Sequence[tuple[Message, Choice]]) -> None:
        if any(message.request_id == "r3" for message, _ in found):
            raise ZeroDivisionError

    async def story() -> None:
        async with world(A, threshold=10, receives_max=1, allows=("losses",)) as here:
            for number in range(10):
                here.submit(f"r{number}")
            process = here.start(pollers=1)
            object.__setattr__(process.pipeline, "chose", tells)  # it is frozen
            await here.until(lambda: process.outcomes() == {"dispatched": 9, "failed": 1}, within_s=1)
            assert process.in_flight.placed == 0

    run_virtual(story())


def test_a_message_that_parts_in_the_very_turn_of_the_deadline_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its carrier is cut off before its first step. It was accepted: it is acknowledged, and nobody sends it again."""
    deadline = [math.inf]
    right = BreakingLedger.confirm

    async def busy(self: BreakingLedger, claim: Claimed, sqs_message_id: str) -> None:
        try:
            await right(self, claim, sqs_message_id)
        except RefusedError:
            freeze(deadline[0] - now() + 0.001)  # the turn of the loop that hears of it lasts past the deadline
            raise

    monkeypatch.setattr(BreakingLedger, "confirm", busy)

    async def story() -> None:
        async with world(A, wait_s=1) as here:
            here.ledger.faults.on("confirm", replace(refused(Cause.THROTTLED), before_s=8.0), 10)
            process = here.start(pollers=1, drain_s=5)
            for number in range(10):
                here.submit(f"r{number}")
            await here.until(lambda: len(here.arrivals) == 10)
            await asyncio.sleep(3.05)
            process.drain()
            deadline[0] = now() + 5
            await process.ended()
            assert process.outcomes() == {"dispatched": 10}
            assert len(process.in_flight) == 0
            assert not here.master.messages

    run_virtual(story())


@pytest.mark.parametrize("number", [1, 3])
def test_bodies_of_more_than_one_call_are_lots_of_their_own(number: int) -> None:
    """A lot's sends are one call: whoever is accepted is confirmed at once."""

    async def story() -> None:
        async with world(A) as here:
            process = here.start()
            await here.until(lambda: process.board.any_depth_read())
            bodies = [body(f"big-{n}", filling="x" * 900_000) for n in range(number)] + [
                body(f"r{n}") for n in range(5)
            ]
            flights = [
                Flight(Delivery(f"m{n}", "r", text, {}, None, 0.0, 1), 0.0, 1000.0) for n, text in enumerate(bodies)
            ]
            lots, alone = process.pipeline.sort(flights)
            assert not alone
            assert len(lots) == number
            assert all(sum(len(flight.delivery.body) for flight, _, _ in lot) < 1_048_576 for lot in lots)
            for flight in flights:
                process.board.unbook(flight)

    run_virtual(story())


def test_a_duplicate_a_late_one_and_poison_leave_those_that_they_came_with() -> None:
    async def story() -> None:
        async with world(A) as here:
            here.submit("twin")
            first = here.start("first")
            await here.until(lambda: first.outcomes() == {"dispatched": 1})
            first.kill()
            here.submit("twin")
            here.submit("late", metadata={"deadline": "2020-01-01T00:00:00Z"})
            here.master.send("poison")
            for number in range(5):
                here.submit(f"r{number}")
            second = here.start("second")
            ends = {"dispatched": 5, "duplicate": 1, "rejected": 2}
            await here.until(lambda: second.outcomes() == ends)
            assert sorted(arrival.request_id for arrival in here.arrivals) == ["r0", "r1", "r2", "r3", "r4", "twin"]
            assert second.in_flight.placed == 0

    run_virtual(story())


def test_those_that_came_together_are_each_handed_back_when_the_drain_is_over() -> None:
    async def story() -> None:
        async with world(A) as here:
            here.ledger.faults.always("claim", hangs())
            for number in range(10):
                here.submit(f"r{number}")
            process = here.start(drain_s=5.0)
            await asyncio.sleep(1)
            process.drain()
            await process.ended()
            assert process.outcomes() == {"released": 10}
            assert len(process.in_flight) == 0
            here.ledger.faults.clear("claim")
            here.start("next")
            await here.until(lambda: len(here.arrivals) == 10, within_s=30)
            await here.empty()

    run_virtual(story())


# --- order and crashes --------------------------------------------------------------------------------------


def test_the_steps_happen_in_the_order_that_is_the_guarantee() -> None:
    async def story() -> None:
        async with world() as here:
            here.submit("r")
            process = here.start()
            await here.empty()
            order = [p for p in process.life.passed if p.endswith(":done") and p.startswith(STEPS)]
            assert order == [f"{step}:done" for step in STEPS]
            assert process.outcomes() == {"dispatched": 1}

    run_virtual(story())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["asked", "arrives", "done"])
@pytest.mark.parametrize("terms", [USUAL, TINY], ids=["usual", "tiny"])
def test_a_crash_around_any_step_loses_nothing_and_copies_only_inside_the_window(
    step: str, moment: str, terms: Terms
) -> None:
    async def story() -> None:
        async with world(terms=terms, wait_s=1) as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = after(f"{step}:{moment}")
            await here.until(lambda: first.life.dead)
            first_copies = len(here.arrivals)
            died_at = now()
            second = here.start("second")
            await here.empty()
            in_window = first_copies and not [
                w for w in here.ledger.writes if w.at - EPOCH_S <= died_at and w.operation == "confirm"
            ]
            assert len(here.arrivals) == (2 if in_window else 1)
            assert len({arrival.region for arrival in here.arrivals}) == 1, "a takeover goes where a copy may be"
            assert here.ledger.items["r"].state == "dispatched" or step == "acknowledge"
            assert now() - died_at <= terms.visibility_s + 5
            assert second.value("received_total") <= 1

    run_virtual(story())


def _points(terms: Terms) -> int:
    """Return how many points a process passes from its start until a message is dispatched."""

    async def story() -> int:
        async with world(terms=terms, wait_s=1) as here:
            here.submit("r")
            process = here.start()
            await here.empty()
            return len(process.life.passed)

    return run_virtual(story())


@pytest.mark.parametrize("terms", [USUAL, TINY], ids=["usual", "tiny"])
def test_a_crash_at_any_await_loses_nothing(terms: Terms) -> None:
    async def story(fatal: int) -> None:
        async with world(terms=terms, wait_s=1) as here:
            here.submit("r")
            here.submit("s")
            first = here.start("first")
            first.life.dies = lambda _, number: number == fatal
            await here.until(lambda: first.life.dead or not here.master.messages)
            here.start("second")
            await here.empty()
            assert not here.master.dead
            assert all(receives <= 2 for receives in here.master.spent.values())

    for fatal in range(1, _points(terms) + 20):
        run_virtual(story(fatal))


def test_two_crashes_at_any_awaits_lose_nothing_and_spend_no_third_receive_in_vain() -> None:
    async def story(fatal: int, second_fatal: int) -> None:
        async with world(wait_s=1) as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = lambda _, number: number == fatal
            await here.until(lambda: first.life.dead or not here.master.messages)
            second = here.start("second")
            second.life.dies = lambda _, number: number == second_fatal
            await here.until(lambda: second.life.dead or not here.master.messages)
            here.start("third")
            await here.empty()
            assert not here.master.dead
            assert len({arrival.region for arrival in here.arrivals}) == 1

    points = _points(USUAL) + 4
    for fatal in range(4, points, 4):  # the world's stories (tests/world) have all the others
        for second_fatal in range(4, points, 3):
            run_virtual(story(fatal, second_fatal))


def _troubles(part_s: float) -> dict[str, Trouble]:
    """No call lasts longer than its client allows; a send's time limit is the shortest."""
    return {
        "refused": refused(),
        "throttled": refused(Cause.THROTTLED),
        "lost request": lost_request(0.3 * part_s),
        "lost answer": lost_answer(0.3 * part_s),
        "slow there": slow(before_s=0.7 * part_s),
        "slow back": slow(after_s=0.7 * part_s),
    }


OPERATIONS = ("claim", "take_over", "confirm", "retarget", "renew", "release", "send", "acknowledge", "keep_invisible")
FAULT = st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(sorted(_troubles(1.0))), st.integers(1, 3))
CRASH = st.one_of(st.integers(1, 60), st.floats(0.0, 200.0), st.floats(0.0, 4.0))


def _plan(here: World, operation: str, trouble: str, number: int) -> None:
    targets = {"send": [queue.faults for queue in here.regional.values()]}
    targets |= {name: [here.master.faults] for name in ("acknowledge", "keep_invisible")}
    for faults in targets.get(operation, [here.ledger.faults]):
        faults.on(operation, _troubles(here.terms.send_timeout_s)[trouble], number)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    crashes=st.lists(CRASH, max_size=4),
    faults=st.lists(FAULT, max_size=6),
    messages=st.integers(1, 4),
    overlap=st.booleans(),
    terms=st.sampled_from([USUAL, TINY, Terms(visibility_s=10, lease_s=9.9)]),
    drains=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_a_message_survives_any_run_of_crashes_and_faults(
    crashes: list[int | float],
    faults: list[tuple[str, str, int]],
    messages: int,
    overlap: bool,
    terms: Terms,
    drains: list[bool],
) -> None:
    """Processes die after so many awaits (int) or at some time (float), or drain with no time for it at all.

    Each is followed by the next.
    With `overlap` another dispatcher runs beside them from the start. The world's own checks are the property.
    """

    async def story() -> None:
        async with world(terms=terms, receives_max=1000, wait_s=2, allows={"uncounted"}) as here:
            for number in range(messages):
                here.submit(f"r{number % 3}")  # the fourth is a twin of the first
            for fault in faults:
                _plan(here, *fault)
            if overlap:
                here.start("beside")
            for crash, drain in zip(crashes, drains, strict=False):
                process = here.start(drain_s=0.0)
                if drain:
                    await asyncio.sleep(crash / 20)  # cut off wherever it is, down to a few milliseconds
                    process.drain()
                    await process.ended()
                    continue
                if isinstance(crash, int):
                    process.life.dies = lambda _, number, crash=crash: number >= crash  # type: ignore[misc]  # mypy cannot type a default of a lambda
                    await here.until(lambda p=process: p.life.dead)  # type: ignore[misc]  # mypy cannot type a default of a lambda
                else:
                    await asyncio.sleep(crash)
                    process.kill()
            here.start("last")
            await here.empty(within_s=3000)
            assert {item.state for item in here.ledger.items.values()} <= {"dispatched", "claimed"}
            assert not here.dead_letters.arrivals
            for request_id in {f"r{n % 3}" for n in range(messages)}:
                assert here.arrivals_of(request_id)

    run_virtual(story())


# --- sends that fail ----------------------------------------------------------------------------------------


def _only(here: World, *regions: Region) -> None:
    """Leave room in these Regions alone."""
    for region, queue in here.regional.items():
        queue.visible = 0 if region in regions else here.threshold


def test_a_definite_refusal_is_retargeted_in_the_ledger_before_the_second_region_is_tried() -> None:
    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.faults.on("send", refused(Cause.THROTTLED))
            here.submit("r")
            process = here.start()
            await here.empty()
            tried = sorted((at, queue.region) for queue in here.regional.values() for at, _ in queue.departures)
            assert len(tried) >= 3
            for at, region in tried:
                said = [w.item.region for w in here.ledger.writes if w.at - EPOCH_S <= at]
                assert said[-1] == region, "no send starts to a Region that the ledger does not name"
            assert process.outcomes() == {"dispatched": 1}
            assert len(here.arrivals) == 1

    run_virtual(story())


def test_refused_by_every_region_it_is_released_and_goes_on_when_one_opens() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            here.wall(refused(Cause.MISSING))
            here.submit("r")
            process = here.start()
            await here.until(lambda: "r" in here.ledger.items and here.ledger.items["r"].state == "released")
            released = here.ledger.items["r"]
            assert (released.region, released.lease_end) == (None, 0.0)
            await asyncio.sleep(400)
            assert here.master.messages
            here.regional[B].faults.clear("send")
            await here.empty(within_s=30)
            assert [arrival.region for arrival in here.arrivals] == [B]
            assert list(here.master.spent.values()) == [1], "it was kept by extension, not by receiving it again"
            assert process.outcomes() == {"dispatched": 1}

    run_virtual(story())


def test_a_body_that_every_region_refuses_is_rejected_with_the_reason() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            here.wall(refused(Cause.INVALID))
            here.submit("r")
            process = here.start()
            await here.until(process.outcomes)
            assert process.outcomes() == {"rejected": 1}
            (reject,) = here.dead_letters.arrivals
            assert "refused by the script" in str(reject.out.attributes["dispatcher.rejected_because"].value)
            assert here.ledger.items["r"].state == "rejected"

    run_virtual(story())


def test_a_body_that_one_region_refuses_is_not_rejected_while_another_is_only_full() -> None:
    """Refused by all means all that serve its model: a Region without room today has not been asked."""

    async def story() -> None:
        async with world(A, B) as here:
            _only(here, A)
            here.regional[A].faults.always("send", refused(Cause.INVALID))
            here.submit("r")
            process = here.start()
            await asyncio.sleep(60)
            assert process.outcomes() == {}, "B was never asked"
            _only(here, A, B)
            await here.empty(within_s=60)
            assert [arrival.region for arrival in here.arrivals] == [B]

    run_virtual(story())


def test_a_body_refused_by_one_region_while_another_is_held_off_is_not_rejected() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            here.regional[A].faults.always("send", refused(Cause.INVALID))
            here.regional[B].faults.always("send", refused(Cause.DENIED))
            here.submit("r")
            process = here.start()
            await asyncio.sleep(60)
            assert process.outcomes() == {}
            here.regional[B].faults.clear("send")
            await here.empty(within_s=60)
            assert [arrival.region for arrival in here.arrivals] == [B]

    run_virtual(story())


@pytest.mark.parametrize("trouble", [lost_request(), lost_answer()], ids=["request lost", "answer lost"])
def test_after_a_lost_answer_it_is_the_same_region_again(trouble: Trouble) -> None:
    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.faults.on("send", trouble, 1, 2)
            here.submit("r")
            process = here.start()
            await here.empty()
            assert len([queue for queue in here.regional.values() if queue.departures]) == 1
            assert [w.operation for w in here.ledger.writes] == ["claim", "confirm"]
            assert process.value("errors_total", stage="send", error="ambiguous") == 2
            assert process.outcomes() == {"dispatched": 1}

    run_virtual(story())


@pytest.mark.parametrize(
    "second", [refused(), refused(Cause.INVALID), lost_request()], ids=["refused", "invalid", "lost"]
)
def test_after_a_lost_answer_nobody_sends_it_elsewhere_before_the_lease_is_over(second: Trouble) -> None:
    """The claim lapses and the visibility does not: then the same delivery does what the next one would."""

    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.faults.on("send", lost_answer(), 1)
                queue.faults.on("send", second, *range(2, 2000))
            here.submit("r")
            process = here.start()
            await here.until(lambda: any(queue.departures for queue in here.regional.values()))
            await asyncio.sleep(60)
            (claim,) = here.ledger.writes
            assert claim.operation == "claim"
            assert len([queue for queue in here.regional.values() if queue.departures]) == 1
            for queue in here.regional.values():
                queue.faults.clear("send")
            await here.empty()
            takeovers = [write.at for write in here.ledger.writes if write.operation == "take_over"]
            assert all(at > claim.item.lease_end - EPOCH_S for at in takeovers), "not before the lease is over"
            await here.until(process.outcomes)
            assert process.outcomes() == {"dispatched": 1}
            assert list(here.master.spent.values()) == [1], "and no receive was spent on it"

    run_virtual(story())


@pytest.mark.parametrize("trouble", [lost_request(), lost_answer()], ids=["nothing arrives", "all arrives"])
def test_ten_minutes_of_lost_answers_everywhere_spend_one_receive_and_few_copies(trouble: Trouble) -> None:
    """Depths are read all the time, so breakers half-open and let one message through to see, again and again."""

    async def story() -> None:
        async with world() as here:
            for number in range(30):
                here.submit(f"r{number}")
            here.wall(trouble)
            here.start()
            await asyncio.sleep(600)
            for queue in here.regional.values():
                queue.faults.clear("send")
            await here.empty(within_s=300)
            assert set(here.master.spent.values()) == {1}
            departures = sum(len(queue.departures) for queue in here.regional.values())
            assert departures <= 30 * LOST_ANSWERS_MAX * (600 / 90 + 2), "no more than the leases allow"
            assert departures >= 30

    run_virtual(story())


def test_the_region_of_a_lapsed_claim_is_taken_while_it_may_get_more() -> None:
    async def story() -> None:
        async with world() as here:
            _only(here, B)
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("send:done")
            await here.until(lambda: first.life.dead)
            for region, visible in ((A, 0), (B, 4000), (C, 0)):  # B would hardly be chosen
                here.regional[region].visible = visible
            second = here.start("second")
            await here.empty()
            assert [arrival.region for arrival in here.arrivals] == [B, B]
            assert second.value("claims_total", outcome="held") == 0

    run_virtual(story())


def test_the_region_of_a_lapsed_claim_is_left_when_it_may_get_nothing() -> None:
    async def story() -> None:
        async with world(A, B) as here:
            _only(here, B)
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("claim:done")
            await here.until(lambda: first.life.dead)
            _only(here, A)
            here.start("second")
            await here.empty()
            assert [arrival.region for arrival in here.arrivals] == [A]
            assert [(w.operation, w.item.region) for w in here.ledger.writes][:2] == [("claim", B), ("take_over", A)]

    run_virtual(story())


def test_a_lost_answer_to_a_takeover_is_recognised_as_our_own() -> None:
    async def story() -> None:
        async with world() as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("claim:done")
            await here.until(lambda: first.life.dead)
            here.ledger.faults.on("take_over", lost_answer())
            second = here.start("second")
            await here.until(second.outcomes)
            assert second.outcomes() == {"dispatched": 1}
            assert len(here.arrivals) == 1

    run_virtual(story())


@pytest.mark.parametrize("operation", ["claim", "confirm", "acknowledge"])
@pytest.mark.parametrize(
    "trouble",
    [lost_request(), lost_answer(), refused(Cause.THROTTLED)],
    ids=["lost request", "lost answer", "throttled"],
)
def test_a_fault_of_a_repeatable_step_is_tried_again(operation: str, trouble: Trouble) -> None:
    async def story() -> None:
        async with world() as here:
            faults = here.master.faults if operation == "acknowledge" else here.ledger.faults
            faults.on(operation, trouble, 1, 2, 3)
            here.submit("r")
            process = here.start()
            await here.empty()
            await here.until(process.outcomes)
            assert process.outcomes() == {"dispatched": 1}
            assert len(here.arrivals) == 1

    run_virtual(story())


# --- held, twins, other work --------------------------------------------------------------------------------


def test_a_held_message_is_visible_again_after_the_lease_not_before_and_one_receive_is_spent() -> None:
    async def story() -> None:
        async with world() as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("claim:done")
            await here.until(lambda: first.life.dead)
            lease_end = here.ledger.items["r"].lease_end - EPOCH_S
            twin = here.submit("r")
            second = here.start("second")
            await here.until(second.outcomes)
            assert second.outcomes() == {"held": 1}
            assert here.master.messages[twin].visible_at > lease_end
            assert here.master.messages[twin].visible_at < lease_end + 3
            await here.empty()
            assert here.master.spent[twin] <= 2
            assert len(here.arrivals) == 1

    run_virtual(story())


def test_twins_in_one_process_are_sent_once_and_the_second_is_a_duplicate() -> None:
    async def story() -> None:
        async with world() as here:
            for _ in range(3):
                here.submit("r")
            process = here.start()
            await here.empty()
            await here.until(lambda: sum(process.outcomes().values()) == 3)
            assert process.outcomes() == {"dispatched": 1, "duplicate": 2}
            assert len(here.arrivals) == 1
            assert set(here.master.spent.values()) == {1}

    run_virtual(story())


def test_a_twin_of_a_slow_send_is_not_lost_and_not_sent() -> None:
    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.faults.on("send", slow(after_s=9))
            here.submit("r")
            twin = here.submit("r")
            here.start()
            await here.empty()
            assert len(here.arrivals) == 1
            assert here.master.spent[twin] <= 2

    run_virtual(story())


def test_other_work_under_a_known_id_is_rejected() -> None:
    async def story() -> None:
        async with world() as here:
            here.submit("r")
            process = here.start()
            await here.empty()
            here.submit("r", model_name="another")
            await here.empty()
            await here.until(lambda: len(process.outcomes()) == 2)
            assert process.outcomes() == {"dispatched": 1, "rejected": 1}
            assert len(here.arrivals) == 1

    run_virtual(story())


def test_a_higher_generation_is_dispatched_again_on_purpose() -> None:
    async def story() -> None:
        async with world(allows={"copies"}) as here:
            here.submit("r")
            here.start()
            await here.empty()
            here.submit("r", {"dispatcher.generation": Attribute("Number", "1")})
            here.submit("r", {"dispatcher.generation": Attribute("Number", "1")})
            await here.empty()
            assert len(here.arrivals) == 2

    run_virtual(story())


# --- time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [USUAL, TINY], ids=["usual", "tiny"])
def test_the_lease_ends_before_the_visibility_however_slow_the_calls(terms: Terms) -> None:
    """The world compares the two at every claim, takeover and renewal."""

    async def story(operation: str, seconds: float) -> None:
        async with world(terms=terms, receives_max=1000, wait_s=1) as here:
            for faults in (here.ledger.faults, here.master.faults, *(q.faults for q in here.regional.values())):
                faults.on(operation, slow(before_s=seconds), 1, 2)
                faults.on(operation, slow(after_s=seconds), 3, 4)
            for number in range(5):
                here.submit(f"r{number}")
            here.start()
            await here.empty()

    for operation in ("claim", "renew", "send", "keep_invisible", "confirm"):
        for part in (0.1, 0.3, 0.49, 0.6, 0.9, 1.5):
            run_virtual(story(operation, terms.visibility_s * part))


def test_an_answer_that_comes_late_shortens_what_is_left_of_the_visibility() -> None:
    """SQS counts the visibility from when it hands the message out, not from when we hear of it.

    A receive whose answer takes seven seconds: a lease computed from the hearing outlasts the visibility.
    """

    async def story() -> None:
        async with world(terms=Terms(visibility_s=120, lease_s=119)) as here:
            here.master.faults.on("received", slow(after_s=7.0))
            here.submit("r")
            here.start(pollers=1)
            await here.empty()

    run_virtual(story())


@pytest.mark.parametrize("frozen_s", [30, 81, 89, 95, 130])
def test_a_process_frozen_between_check_and_send_renews_or_leaves(frozen_s: float) -> None:
    """While the message waits in the lane the whole process stands still; then it looks at the clock again."""

    async def story() -> None:
        async with world() as here:
            for queue in here.regional.values():
                queue.linger_s = 1.0
            here.submit("r")
            process = here.start()
            await here.until(lambda: here.ledger.items.get("r"))
            assert not any(queue.departures for queue in here.regional.values()), "claimed, and not departed"
            freeze(frozen_s)
            await here.empty()
            (departure,) = [at for queue in here.regional.values() for at, _ in queue.departures]
            leases = [w for w in here.ledger.writes if w.at - EPOCH_S <= departure and w.operation != "confirm"]
            assert leases[-1].item.lease_end - EPOCH_S - departure > here.terms.send_timeout_s
            await here.until(process.outcomes)

    run_virtual(story())


def test_a_process_that_slept_past_its_lease_cannot_touch_the_next_owner_s_claim() -> None:
    """A sleeps in mid-claim past lease and visibility; B takes over, and only B sends."""

    async def story() -> None:
        async with world() as here:
            here.submit("r")
            here.ledger.faults.on("claim", slow(after_s=300))
            first = here.start("first", extends=False, slots=1)  # which are taken: it cannot be its own successor
            await here.until(lambda: here.ledger.items.get("r"))
            second = here.start("second")
            await here.until(second.outcomes)
            assert second.outcomes() == {"dispatched": 1}
            await here.until(first.outcomes)
            assert first.outcomes() == {"failed": 1}
            assert len(here.arrivals) == 1
            assert here.ledger.items["r"].state == "dispatched"

    run_virtual(story())


def test_a_receipt_gone_stale_is_a_lease_lost_not_a_bug() -> None:
    """The process stands still past its visibility while a message waits for a Region; then SQS says no."""

    async def story() -> None:
        async with world(A) as here:
            here.regional[A].faults.always("send", refused())
            here.submit("r")
            process = here.start("first", extends=False)
            await here.until(lambda: here.ledger.items.get("r") and here.ledger.items["r"].state == "released")
            freeze(130)
            here.regional[A].faults.clear("send")
            await here.empty()
            await here.until(lambda: not len(process.in_flight))
            assert process.value("errors_total", stage="route", error="unexpected") == 0

    run_virtual(story())


def test_ten_minutes_without_the_table_cost_no_receive_and_send_nothing_unclaimed() -> None:
    async def story() -> None:
        async with world() as here:
            process = here.start()
            await asyncio.sleep(2)
            for operation in ("claim", "take_over", "confirm", "retarget", "renew", "release", "ping"):
                here.ledger.faults.always(operation, refused(Cause.DENIED))
            for number in range(200):
                here.submit(f"r{number}")
            await asyncio.sleep(600)
            assert not here.arrivals
            assert len(here.master.spent) < 60, "intake stops: the rest was never received"
            assert set(here.master.spent.values()) == {1}
            for operation in ("claim", "take_over", "confirm", "retarget", "renew", "release", "ping"):
                here.ledger.faults.clear(operation)
            await here.empty(within_s=120)
            assert set(here.master.spent.values()) == {1}
            assert len(here.arrivals) == 200
            await here.until(lambda: sum(process.outcomes().values()) == 200)
            assert process.outcomes() == {"dispatched": 200}

    run_virtual(story())


def test_a_table_lost_between_send_and_confirm_costs_no_copy() -> None:
    async def story() -> None:
        async with world() as here:
            here.ledger.faults.always("confirm", lost_request(1.0))
            here.submit("r")
            process = here.start()
            await asyncio.sleep(600)
            here.ledger.faults.clear("confirm")
            await here.empty(within_s=30)
            await here.until(process.outcomes)
            assert process.outcomes() == {"dispatched": 1}
            assert len(here.arrivals) == 1
            assert list(here.master.spent.values()) == [1]

    run_virtual(story())


# --- handing back -------------------------------------------------------------------------------------------


async def _cut_off_at_deadline(here: World, **settings: float) -> Process:
    """Start a process, let it take what there is, and drain it with five seconds to go."""
    process = here.start("draining", drain_s=5.0, **settings)
    await here.until(lambda: here.master.spent)
    await asyncio.sleep(1)
    process.drain()
    await process.ended()
    return process


def test_at_the_deadline_what_was_accepted_but_not_confirmed_is_acknowledged() -> None:
    async def story() -> None:
        async with world(wait_s=1) as here:
            here.ledger.faults.always("confirm", hangs())
            here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert process.outcomes() == {"dispatched": 1}
            assert not here.master.messages
            assert len(here.arrivals) == 1

    run_virtual(story())


def test_at_the_deadline_what_was_claimed_and_not_sent_is_released_then_visible_at_once() -> None:
    async def story() -> None:
        async with world(A, B, wait_s=1) as here:
            here.wall(refused())
            here.ledger.faults.always("retarget", hangs())
            message_id = here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert process.outcomes() == {"released": 1}
            assert here.ledger.items["r"].state == "released"
            assert here.master.messages[message_id].visible_at <= now()
            released_at = here.ledger.writes[-1].at - EPOCH_S
            assert here.master.changes[-1][0] >= released_at and here.master.changes[-1][2] == 0
            for queue in here.regional.values():
                queue.faults.clear("send")
            here.start("next")
            await here.empty(within_s=10)

    run_virtual(story())


def test_at_the_deadline_what_was_never_claimed_is_visible_at_once() -> None:
    async def story() -> None:
        async with world(wait_s=1) as here:
            here.ledger.faults.always("claim", hangs())
            message_id = here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert process.outcomes() == {"released": 1}
            assert here.master.messages[message_id].visible_at <= now()

    run_virtual(story())


@pytest.mark.parametrize("worked", [False, True])
def test_at_the_deadline_what_may_have_been_sent_is_left(worked: bool) -> None:
    async def story() -> None:
        async with world(wait_s=1) as here:
            here.wall(hangs(worked=worked))
            message_id = here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert process.outcomes() == {"failed": 1}
            item = here.ledger.items["r"]
            assert item.state == "claimed"
            assert here.master.messages[message_id].visible_at > item.lease_end - EPOCH_S

    run_virtual(story())


def test_an_ambiguous_send_is_not_released_when_the_deadline_comes_while_it_is_being_left() -> None:
    """Three answers were lost; the last word on the visibility is on its way when the deadline cuts it off.

    What was true of the claim then is still true: a Region may have the message.
    """

    async def story() -> None:
        async with world(wait_s=1) as here:
            here.wall(lost_answer())
            here.master.faults.always("keep_invisible", slow(before_s=20))
            message_id = here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert sum(len(queue.departures) for queue in here.regional.values()) == 3
            assert [w.operation for w in here.ledger.writes] == ["claim"], "never released after an ambiguous send"
            assert process.outcomes() == {"failed": 1}
            assert here.master.messages[message_id].visible_at > now()

    run_virtual(story())


def test_a_held_message_that_is_being_hidden_is_not_made_visible_by_the_deadline() -> None:
    """The last word on its visibility was given; a zero after it would spend a receive on a live claim."""

    async def story() -> None:
        async with world(wait_s=1) as here:
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("claim:done")
            await here.until(lambda: first.life.dead)
            twin = here.submit("r")
            here.master.faults.on("keep_invisible", slow(after_s=20), 1)
            await _cut_off_at_deadline(here)
            assert here.master.messages[twin].visible_at > here.ledger.items["r"].lease_end - EPOCH_S

    run_virtual(story())


def test_a_message_that_could_not_be_handed_back_is_not_counted_as_released() -> None:
    async def story() -> None:
        async with world(wait_s=1) as here:
            here.ledger.faults.always("claim", hangs())
            here.master.faults.always("keep_invisible", refused(Cause.DENIED))
            here.submit("r")
            process = await _cut_off_at_deadline(here)
            assert process.outcomes() == {"failed": 1}

    run_virtual(story())


# --- what a review found ------------------------------------------------------------------------------------


def test_a_takeover_that_is_cut_off_keeps_the_region_where_a_copy_is() -> None:
    """A dies after its send to B; the next dispatcher's takeover is written but slow, and its drain ends.

    The claim still says where the copy is, so the third sends its own there too, not elsewhere.
    """

    async def story() -> None:
        async with world(wait_s=1) as here:
            _only(here, B)
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("send:done")
            await here.until(lambda: first.life.dead)
            _only(here, A, B, C)
            here.ledger.faults.on("take_over", slow(after_s=60), 1)
            second = here.start("second", drain_s=5)
            await here.until(lambda: any(w.operation == "take_over" for w in here.ledger.writes))
            second.drain()
            await second.ended()
            assert "release" not in {w.operation for w in here.ledger.writes}
            here.start("third")
            await here.empty()
            assert [arrival.region for arrival in here.arrivals] == [B, B]

    run_virtual(story())


def test_a_deadline_that_passes_after_a_region_may_have_it_rejects_nothing() -> None:
    """Rejected, it would be in the dead-letter queue and in a Region; whoever redrives it makes a copy."""

    async def story() -> None:
        async with world() as here:
            deadline = datetime.fromtimestamp(EPOCH_S + 60, UTC).isoformat()
            here.submit("r", metadata={"deadline": deadline})
            first = here.start("first")
            first.life.dies = after("send:done")
            await here.until(lambda: first.life.dead)
            second = here.start("second")
            await here.empty(within_s=300)
            assert asyncio.get_running_loop().time() > 60
            await here.until(second.outcomes)
            assert second.outcomes() == {"dispatched": 1}
            assert not here.dead_letters.arrivals

    run_virtual(story())


def test_a_takeover_whose_send_is_throttled_once_stays_with_the_region_where_a_copy_is() -> None:
    async def story() -> None:
        async with world() as here:
            _only(here, B)
            here.submit("r")
            first = here.start("first")
            first.life.dies = after("send:done")
            await here.until(lambda: first.life.dead)
            _only(here, A, B, C)
            here.regional[B].faults.on("send", refused(Cause.THROTTLED), 2)
            here.start("second")
            await here.empty()
            assert [arrival.region for arrival in here.arrivals] == [B, B]

    run_virtual(story())


def test_what_a_region_may_have_is_never_written_down_as_in_none() -> None:
    """A's send may have gone through; then every Region refuses, the process dies, and the deadline passes."""

    async def story() -> None:
        async with world(receives_max=10) as here:
            deadline = datetime.fromtimestamp(EPOCH_S + 900, UTC).isoformat()
            here.submit("r", metadata={"deadline": deadline})
            first = here.start("first")
            first.life.dies = after("send:done")
            await here.until(lambda: first.life.dead)
            here.wall(refused(Cause.THROTTLED))
            second = here.start("second")
            await asyncio.sleep(500)
            assert {w.operation for w in here.ledger.writes_of("r")} & {"take_over"}
            second.kill()
            for queue in here.regional.values():
                queue.faults.clear("send")
            await asyncio.sleep(500)
            third = here.start("third")
            await here.until(third.outcomes)
            assert "release" not in {w.operation for w in here.ledger.writes_of("r")}
            assert third.outcomes() == {"dispatched": 1}
            assert not here.dead_letters.arrivals

    run_virtual(story())


def test_a_message_whose_claim_lapses_leaves_its_slot_to_others_that_have_where_to_go() -> None:
    """One Region lost every send of it. There is one slot, and its lease has 90 s to go."""

    async def story() -> None:
        async with world(A, B) as here:
            _only(here, A)
            here.regional[A].faults.always("send", lost_request())
            here.submit("one")
            process = here.start(slots=1, pollers=1)
            await here.until(lambda: here.regional[A].faults.calls["send"] == LOST_ANSWERS_MAX)
            _only(here, B)
            await here.until(lambda: process.board.view(A).budget() == 0 and process.board.view(B).budget() > 0)
            here.submit("two")
            await here.until(lambda: here.arrivals_of("two"), within_s=30)
            assert process.outcomes()["held"] == 1
            await here.empty()

    run_virtual(story())


@pytest.mark.parametrize(("slots", "messages"), [(4, 12), (10, 40)])
def test_ten_minutes_of_lost_answers_with_few_slots_send_nothing_to_the_dead_letters(slots: int, messages: int) -> None:
    async def story() -> None:
        async with world(A, B, C) as here:
            here.start(slots=slots)
            here.wall(lost_request(after_s=2.0))
            for number in range(messages):
                here.submit(f"r{number}")
            await asyncio.sleep(600)
            assert max(message.receives for message in here.master.messages.values()) <= 2
            for queue in here.regional.values():
                queue.faults.clear("send")
            await here.empty()
            assert not here.master.dead
            assert len({arrival.request_id for arrival in here.arrivals}) == messages

    run_virtual(story())


def test_bad_messages_that_no_dead_letter_queue_takes_leave_room_for_good_ones() -> None:
    async def story() -> None:
        async with world() as here:
            here.dead_letters.faults.always("send", refused(Cause.DENIED))
            for _ in range(10):
                here.master.send("not JSON")
            process = here.start(slots=50)
            await asyncio.sleep(30)
            for number in range(20):
                here.submit(f"r{number}")
            await here.until(lambda: process.outcomes().get("dispatched") == 20, within_s=30)
            here.dead_letters.faults.clear("send")
            await here.empty()
            assert process.outcomes() == {"dispatched": 20, "rejected": 10}

    run_virtual(story())


def test_a_lost_answer_and_then_a_refusal_of_the_contents_by_the_only_region_is_rejected_in_the_end() -> None:
    async def story() -> None:
        async with world(A) as here:
            here.regional[A].faults.on("send", lost_request(), 1)
            here.regional[A].faults.on("send", refused(Cause.INVALID), *range(2, 100))
            here.submit("r")
            process = here.start()
            await here.until(process.outcomes, within_s=600)
            assert process.outcomes() == {"rejected": 1}

    run_virtual(story())
