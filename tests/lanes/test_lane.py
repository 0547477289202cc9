"""The lane's contract: every submit ends, with its own answer, and batches depart when they should."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import AmbiguousError, Cause, RefusedError
from dispatcher.lanes.batch import BatchLimits
from dispatcher.lanes.lane import Lane, LaneClosedError, mates
from tests.virtual_time import run_virtual

LINGER_S = 1.0
Answers = Sequence[str | Exception]


@dataclass
class Far:
    """The far side of a lane: notes what came and when, and answers with each item's own name."""

    takes_s: float = 0.0
    answer: Callable[[list[str]], Answers] = lambda items: [f"done {item}" for item in items]
    calls: list[tuple[float, list[str]]] = field(default_factory=list)
    flying: int = 0
    flying_most: int = 0

    async def flush(self, items: Sequence[str]) -> Answers:
        self.calls.append((now(), list(items)))
        self.flying += 1
        self.flying_most = max(self.flying_most, self.flying)
        try:
            await asyncio.sleep(self.takes_s)
            return self.answer(list(items))
        finally:
            self.flying -= 1

    @property
    def batches(self) -> list[list[str]]:
        return [items for _, items in self.calls]

    def lane(
        self,
        *,
        items: int = 3,
        size: int | None = None,
        linger_s: float = LINGER_S,
        flushes_max: int = 10,
        by_key: bool = False,
        eager: bool = False,
        whole: bool = False,
    ) -> Lane[str, str]:
        """Items weigh as many bytes as they have characters; their key is their first character."""
        return Lane(
            self.flush,
            limits=BatchLimits(items, size),
            linger_s=linger_s,
            flushes_max=flushes_max,
            eager=eager,
            whole=whole,
            size_of=len,
            key_of=(lambda item: item[0]) if by_key else None,
        )


def now() -> float:
    return asyncio.get_running_loop().time()


async def settled(*calls: Awaitable[str]) -> list[str | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


def submit_all(lane: Lane[str, str], items: Sequence[str]) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(lane.submit(item)) for item in items]


def test_a_batch_departs_at_once_when_it_is_full_by_items() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3) as lane:
            assert await settled(*submit_all(lane, "abc")) == ["done a", "done b", "done c"]
        assert far.calls == [(0.0, ["a", "b", "c"])]

    run_virtual(main())


@pytest.mark.parametrize("items", [["aaaa", "bbbbbb"], ["aaaaaa", "bbbbbb"], ["a" * 50, "b" * 50]])
def test_a_batch_departs_at_once_when_it_is_full_by_bytes(items: list[str]) -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=10, size=10) as lane:
            tasks = submit_all(lane, items)
            await asyncio.sleep(0.5)
            assert far.calls[0][0] == 0.0
            await settled(*tasks)
        assert all(len(batch) == 1 or sum(map(len, batch)) <= 10 for batch in far.batches)

    run_virtual(main())


def test_items_submitted_together_are_answered_in_order_over_several_batches() -> None:
    async def main() -> None:
        broken = RefusedError(Cause.INVALID, "b")
        far = Far(answer=lambda items: [broken if item == "b" else f"done {item}" for item in items])
        async with far.lane(items=3) as lane:
            assert await lane.submit_all("abcdefg") == ["done a", broken, *(f"done {item}" for item in "cdefg")]
        assert far.calls == [(0.0, ["a", "b", "c"]), (0.0, ["d", "e", "f"]), (LINGER_S, ["g"])]

    run_virtual(main())


@pytest.mark.parametrize(
    ("whole", "batches"), [(False, ["abcd", "efg"]), (True, ["ab", "cde", "fg"])], ids=["cut", "whole"]
)
def test_in_a_whole_lane_items_together_depart_together(whole: bool, batches: list[str]) -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=4, whole=whole) as lane:
            await asyncio.gather(*(lane.submit_all(items) for items in ("ab", "cde", "fg")))
        assert far.batches == [list(batch) for batch in batches]

    run_virtual(main())


def test_in_a_whole_lane_more_items_than_a_batch_has_room_for_are_cut() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3, whole=True) as lane:
            assert await lane.submit_all("abcde") == [f"done {item}" for item in "abcde"]
        assert far.batches == [["a", "b", "c"], ["d", "e"]]

    run_virtual(main())


def test_items_that_fill_a_batch_by_themselves_wait_for_nobody_and_leave_the_others_waiting() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3) as lane:
            tasks = submit_all(lane, "ab")
            await asyncio.sleep(0.1)
            assert await lane.submit_all("cde") == ["done c", "done d", "done e"]
            await settled(*tasks)
        assert far.calls == [(0.1, ["c", "d", "e"]), (LINGER_S, ["a", "b"])]

    run_virtual(main())


def test_items_that_fill_a_batch_by_themselves_wait_while_as_many_fly_as_may() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=3, flushes_max=2) as lane:
            assert await asyncio.gather(*(lane.submit_all(items) for items in ("abc", "def", "ghi"))) == [
                [f"done {item}" for item in items] for items in ("abc", "def", "ghi")
            ]
        assert far.calls == [(0.0, ["a", "b", "c"]), (0.0, ["d", "e", "f"]), (5.0, ["g", "h", "i"])]
        assert far.flying_most == 2

    run_virtual(main())


def test_items_too_large_for_one_batch_are_not_sent_in_one() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3, size=5) as lane:
            assert await lane.submit_all(["aa", "bb", "cc"]) == ["done aa", "done bb", "done cc"]
        assert far.batches == [["aa", "bb"], ["cc"]]

    run_virtual(main())


def test_a_caller_that_flies_its_batch_itself_cuts_it_off_and_makes_room_when_cancelled() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=3, flushes_max=1) as lane:
            gone = asyncio.create_task(lane.submit_all("abc"))
            await asyncio.sleep(0.1)
            others = submit_all(lane, "de")
            await asyncio.sleep(1.9)
            gone.cancel()
            assert await settled(*others) == ["done d", "done e"]
            with pytest.raises(asyncio.CancelledError):
                await gone
        assert far.calls == [(0.0, ["a", "b", "c"]), (2.0, ["d", "e"])]

    run_virtual(main())


def test_closing_waits_for_a_batch_that_its_caller_flies() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=3) as lane:
            together = asyncio.create_task(lane.submit_all("abc"))
            await asyncio.sleep(0)
        assert now() == 5.0
        assert await together == ["done a", "done b", "done c"]

    run_virtual(main())


@pytest.mark.parametrize(
    ("answer", "heard"),
    [(asyncio.CancelledError, AmbiguousError), (OSError, OSError), (None, TypeError), (["a", "b"], AmbiguousError)],
    ids=["cut off", "raises", "nonsense", "one is missing"],
)
def test_a_caller_that_flies_its_batch_itself_hears_of_each_item(answer: object, heard: type[Exception]) -> None:
    def answers(_: list[str]) -> Answers:
        if isinstance(answer, type) and issubclass(answer, BaseException):
            raise answer
        return cast(Answers, answer)

    async def main() -> None:
        async with Far(answer=answers).lane(items=3, flushes_max=1) as lane:
            for _ in "twice":  # the first leaves room
                *_, last = await lane.submit_all("abc")
                assert type(last) is heard

    run_virtual(main())


def test_inside_a_flush_the_contexts_of_those_who_wait_are_known_and_forgotten_after_it() -> None:
    colour: ContextVar[str] = ContextVar("colour")
    seen: list[list[str]] = []

    async def flush(items: Sequence[str]) -> Answers:
        seen.append([context[colour] for context in mates.get()])
        return [*items]

    async def submit(lane: Lane[str, str], items: str) -> None:
        colour.set(items)
        await lane.submit_all(items)
        assert mates.get() == ()

    async def main() -> None:
        async with Lane(flush, limits=BatchLimits(3), linger_s=LINGER_S, flushes_max=10) as lane:
            await asyncio.gather(*(submit(lane, items) for items in ("a", "bc", "def")))
        assert seen == [["def"], ["a", "bc", "bc"]] or seen == [["a", "bc", "bc"], ["def"]]

    run_virtual(main())


def test_an_error_is_let_go_when_its_caller_is_done_with_it() -> None:
    """It knows the frames that it came through, and so the batch. Until the collector looks, that would be a leak."""

    async def main() -> None:
        errors: list[weakref.ref[Exception]] = []

        async def flush(_: Sequence[str]) -> Answers:
            fault = RefusedError(Cause.THROTTLED, "all of them")
            errors.append(weakref.ref(fault))
            try:
                raise fault
            finally:
                del fault

        lane: Lane[str, str] = Lane(flush, limits=BatchLimits(3), linger_s=LINGER_S, flushes_max=10)
        async with lane:
            with pytest.raises(RefusedError):
                await lane.submit("a")
            assert all(isinstance(answer, RefusedError) for answer in await lane.submit_all("abc"))
            await asyncio.sleep(0)
        assert [error() for error in errors] == [None, None]

    gc.collect()
    gc.disable()
    try:
        run_virtual(main())
    finally:
        gc.enable()


def test_no_items_together_are_answered_without_a_call() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane() as lane:
            assert await lane.submit_all([]) == []
        assert far.calls == []

    run_virtual(main())


def test_of_items_together_a_cancellation_withdraws_what_has_not_departed_and_no_others() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=3, size=100) as lane:
            together = asyncio.create_task(lane.submit_all("abcd"))
            await asyncio.sleep(0.1)
            single = asyncio.create_task(lane.submit("e"))
            await asyncio.sleep(0.1)
            together.cancel()
            assert await single == "done e"
            with pytest.raises(asyncio.CancelledError):
                await together
        assert far.batches == [["a", "b", "c"], ["e"]]

    run_virtual(main())


def test_of_items_together_those_that_never_departed_hear_that_the_lane_has_ended() -> None:
    async def main() -> None:
        far = Far(takes_s=100.0)
        answers: list[Answers] = []

        async def submit(lane: Lane[str, str]) -> None:
            answers.append(await lane.submit_all("abcd"))

        with suppress(ZeroDivisionError):
            async with far.lane(items=3, linger_s=50.0, flushes_max=1) as lane:
                waiting = asyncio.create_task(submit(lane))
                await asyncio.sleep(0.1)
                raise ZeroDivisionError  # the process ends by a fault: nobody waits for what is under way
        await waiting
        assert [type(answer) for answer in answers[0]] == [AmbiguousError] * 3 + [LaneClosedError]

    run_virtual(main())


def test_a_batch_lingers_from_its_first_item_and_not_from_its_last() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane() as lane:
            first = submit_all(lane, "a")
            await asyncio.sleep(0.9)
            await settled(*first, *submit_all(lane, "b"))
        assert far.calls == [(LINGER_S, ["a", "b"])]

    run_virtual(main())


def test_what_stays_behind_a_full_batch_lingers_from_its_own_first_item() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=2) as lane:
            tasks = submit_all(lane, "a")
            await asyncio.sleep(0.5)
            tasks += submit_all(lane, "bc")
            await settled(*tasks)
        assert far.calls == [(0.5, ["a", "b"]), (1.5, ["c"])]

    run_virtual(main())


def test_when_the_first_item_is_withdrawn_the_next_one_lingers_from_its_own_start() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane() as lane:
            (first,) = submit_all(lane, "a")
            await asyncio.sleep(0.5)
            (second,) = submit_all(lane, "b")
            await asyncio.sleep(0.1)
            first.cancel()
            await settled(second)
        assert far.calls == [(1.5, ["b"])]

    run_virtual(main())


def test_hurried_a_lane_sends_what_waits_and_keeps_nothing_waiting_after_that() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane() as lane:
            waiting = submit_all(lane, "a")
            await asyncio.sleep(0.25)
            lane.hurry()
            await settled(*waiting)
            await lane.submit("b")
        assert far.calls == [(0.25, ["a"]), (0.25, ["b"])]

    run_virtual(main())


def test_no_more_than_flushes_max_fly_together_and_what_waits_fills_the_next_batch() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=3, linger_s=0.0, flushes_max=2) as lane:
            tasks = submit_all(lane, "a")
            await asyncio.sleep(1)
            tasks += submit_all(lane, "b")
            await asyncio.sleep(1)
            tasks += submit_all(lane, "cdefg")
            await settled(*tasks)
        assert far.flying_most == 2
        assert far.calls == [(0.0, ["a"]), (1.0, ["b"]), (5.0, ["c", "d", "e"]), (6.0, ["f", "g"])]

    run_virtual(main())


def test_when_the_flush_raises_each_of_its_items_gets_that_error() -> None:
    def refuse(items: list[str]) -> Answers:
        raise OSError("down")

    async def main() -> None:
        far = Far(answer=refuse)
        async with far.lane() as lane:
            ends = await settled(*submit_all(lane, "abc"))
            assert [str(end) for end in ends] == ["down"] * 3
            assert all(isinstance(end, OSError) for end in ends)
            far.answer = list
            assert await lane.submit("d") == "d"  # and the lane goes on

    run_virtual(main())


def test_a_partial_failure_touches_only_its_own_items() -> None:
    async def main() -> None:
        bad = ValueError("b is bad")
        far = Far(answer=lambda items: ["one", bad, "three"])
        async with far.lane() as lane:
            assert await settled(*submit_all(lane, "abc")) == ["one", bad, "three"]

    run_virtual(main())


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_items_left_without_an_answer_may_have_been_done(answered: int) -> None:
    async def main() -> None:
        far = Far(answer=lambda items: items[:answered])
        async with far.lane() as lane:
            ends = await settled(*submit_all(lane, "abc"))
        assert ends[:answered] == list("abc")[:answered]
        assert all(isinstance(end, AmbiguousError) for end in ends[answered:])

    run_virtual(main())


def test_answers_that_nobody_asked_for_are_ignored() -> None:
    async def main() -> None:
        far = Far(answer=lambda items: [*items, "x", ValueError("y")])
        async with far.lane() as lane:
            assert await settled(*submit_all(lane, "abc")) == ["a", "b", "c"]

    run_virtual(main())


def test_a_caller_that_is_cancelled_before_departure_withdraws_its_item() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(size=10) as lane:
            first, second = submit_all(lane, ["aaaaaaa", "bb"])
            await asyncio.sleep(0.5)
            first.cancel()
            await asyncio.sleep(0)
            await settled(second, *submit_all(lane, ["ccccc"]))  # fits only beside b
        assert far.calls == [(LINGER_S, ["bb", "ccccc"])]

    run_virtual(main())


def test_a_caller_that_is_cancelled_after_departure_harms_nobody() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane() as lane:
            tasks = submit_all(lane, "abc")
            await asyncio.sleep(1)
            tasks[1].cancel()
            ends = await settled(*tasks)
        assert (ends[0], ends[2]) == ("done a", "done c")
        assert isinstance(ends[1], asyncio.CancelledError)
        assert far.batches == [["a", "b", "c"]]

    run_virtual(main())


def test_a_caller_cancelled_in_the_moment_that_its_batch_fills_has_withdrawn_its_item() -> None:
    """At the drain's deadline all carriers are cancelled in one go. Each then hands its message back, since no send
    has started; an item that departs all the same goes to a Region though its claim is being released.
    """

    async def main() -> None:
        far = Far()
        async with far.lane(items=3) as lane:
            (gone,) = submit_all(lane, "a")
            await asyncio.sleep(0.1)
            others = submit_all(lane, "bc")  # ready to run, before the cancelled one is
            gone.cancel()
            ends = await settled(gone, *others)
        assert isinstance(ends[0], asyncio.CancelledError)
        assert ends[1:] == ["done b", "done c"]
        assert sorted(item for batch in far.batches for item in batch) == ["b", "c"]

    run_virtual(main())


def test_a_caller_cancelled_between_its_batch_filling_and_the_call_has_withdrawn_its_item() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=2) as lane:
            (gone,) = submit_all(lane, "a")
            await asyncio.sleep(0.1)
            other = asyncio.ensure_future(lane.submit("b"))

            async def cut_off() -> None:
                gone.cancel()

            cutting = asyncio.create_task(cut_off())  # runs after b filled the batch, before the flush starts
            ends = await settled(gone, other)
            await cutting
        assert isinstance(ends[0], asyncio.CancelledError)
        assert ends[1] == "done b"
        assert [item for batch in far.batches for item in batch] == ["b"]

    run_virtual(main())


def test_twins_by_key_go_in_different_batches() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3, by_key=True) as lane:
            ends = await settled(*submit_all(lane, ["a1", "a2", "b1", "a3", "c1"]))
        assert all(isinstance(end, str) for end in ends)
        assert all(len({item[0] for item in batch}) == len(batch) for batch in far.batches)
        assert [item for batch in far.batches for item in batch if item[0] == "a"] == ["a1", "a2", "a3"]

    run_virtual(main())


def test_without_keys_items_that_are_equal_go_in_one_batch() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=3) as lane:
            await settled(*submit_all(lane, "aaa"))
        assert far.batches == [["a", "a", "a"]]

    run_virtual(main())


def test_a_twin_that_stays_behind_waits_no_longer_than_its_own_linger() -> None:
    async def main() -> None:
        far = Far()
        async with far.lane(items=2, by_key=True) as lane:
            tasks = submit_all(lane, ["a1"])
            await asyncio.sleep(0.5)
            await settled(*tasks, *submit_all(lane, ["a2"]))
        assert {item: at for at, batch in far.calls for item in batch}["a2"] <= 1.5

    run_virtual(main())


def test_closing_lets_everything_that_was_submitted_end() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        async with far.lane(items=2, flushes_max=1) as lane:
            tasks = submit_all(lane, "abcde")
            await asyncio.sleep(0)
        assert [task.result() for task in tasks] == [f"done {item}" for item in "abcde"]
        assert far.calls[-1][0] == 10.0  # one after the other, and nothing lingered

    run_virtual(main())


def test_a_submit_to_a_closed_lane_fails_and_does_nothing() -> None:
    async def main() -> None:
        far = Far()
        lane = far.lane()
        with pytest.raises(LaneClosedError):
            await lane.submit("early")
        async with lane:
            pass
        with pytest.raises(LaneClosedError):
            await lane.submit("late")
        assert far.calls == []

    run_virtual(main())


def test_a_submit_while_the_lane_closes_fails_and_the_ones_before_it_end() -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        lane = far.lane()
        async with lane:
            (before,) = submit_all(lane, "a")
            await asyncio.sleep(0)

            async def late() -> str:
                await asyncio.sleep(1)
                return await lane.submit("b")

            trying = asyncio.create_task(late())
        assert await before == "done a"
        with pytest.raises(LaneClosedError):
            await trying

    run_virtual(main())


@pytest.mark.parametrize("waited_s", [0.0, 0.5, 1.0, 1.5, 7.0])
def test_when_the_lane_s_owner_fails_every_submit_still_ends(waited_s: float) -> None:
    """Lingering, just departed, flying or waiting for a flight: whoever awaits an answer must not wait for ever."""

    async def main() -> None:
        far = Far(takes_s=5.0)
        tasks: list[asyncio.Task[str]] = []
        with suppress(RuntimeError):
            async with far.lane(items=2, flushes_max=1) as lane:
                tasks += submit_all(lane, "abcde")
                await asyncio.sleep(waited_s)
                raise RuntimeError("a fault elsewhere")
        assert await left_waiting(tasks) == []

    run_virtual(main())


@pytest.mark.parametrize("waited_s", [0.0, 0.5, 1.0, 1.5, 7.0])
def test_when_closing_is_cut_off_every_submit_still_ends(waited_s: float) -> None:
    async def main() -> None:
        far = Far(takes_s=5.0)
        tasks: list[asyncio.Task[str]] = []

        async def own() -> None:
            async with far.lane(items=2, flushes_max=1) as lane:
                tasks.extend(submit_all(lane, "abcde"))
                await asyncio.sleep(0)

        owner = asyncio.create_task(own())
        await asyncio.sleep(waited_s)
        owner.cancel()
        await asyncio.wait([owner])
        assert await left_waiting(tasks) == []

    run_virtual(main())


def test_a_flush_that_ends_as_cancelled_keeps_nobody_waiting() -> None:
    """A client can pass on the cancellation of something of its own; the lane itself goes on."""

    def cut(items: list[str]) -> Answers:
        if "a" in items:
            raise asyncio.CancelledError
        return items

    async def main() -> None:
        far = Far(takes_s=1.0, answer=cut)
        async with far.lane(items=1, flushes_max=1) as lane:
            tasks = submit_all(lane, "ab")
            assert await left_waiting(tasks) == []
            assert isinstance(tasks[0].exception(), AmbiguousError)
            assert tasks[1].result() == "b"

    run_virtual(main())


def test_a_flush_that_answers_nonsense_keeps_nobody_waiting() -> None:
    """It is a bug of ours, and a caller that waits for ever holds its slot and extends its message for ever."""

    async def main() -> None:
        far = Far(answer=lambda items: cast(Answers, None))
        async with far.lane(items=1, flushes_max=1) as lane:
            assert await left_waiting(submit_all(lane, "ab")) == []

    run_virtual(main())


async def left_waiting[T](tasks: Sequence[asyncio.Task[T]]) -> list[asyncio.Task[T]]:
    """Give the tasks an hour; return those that are not done by then and never will be."""
    if not tasks:
        return []
    done, waiting = await asyncio.wait(tasks, timeout=3600)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*done, *waiting, return_exceptions=True)
    return [task for task in tasks if task in waiting]


STEPS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(["a", "bb", "ccc", "dddd"])),
    st.tuples(st.just("together"), st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=4)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.sampled_from([0, 0, 1, 2, 7])),
    st.tuples(st.just("hurry"), st.none()),
)
FLIGHTS = st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from(["well", "well", "few", "some", "raise", "cut"]))


@given(
    st.lists(STEPS, max_size=30),
    st.lists(FLIGHTS, max_size=10),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([None, 5]),
    st.booleans(),
    st.sampled_from(["close", "fail", "cancel"]),
)
def test_every_submit_ends_whatever_happens_in_whatever_order(
    steps: list[tuple[str, object]],
    flights: list[tuple[int, str]],
    items: int,
    flushes_max: int,
    size: int | None,
    by_key: bool,
    end: str,
) -> None:
    """Submits, cancellations, waits, failing calls, and three ways to leave: each caller hears something."""
    fates = iter(flights)
    numbers: dict[str, list[int]] = {}
    flying = 0

    async def flush(batch: Sequence[tuple[int, str]]) -> Sequence[int | Exception]:
        nonlocal flying
        assert 1 <= len(batch) <= items
        assert size is None or len(batch) == 1 or sum(len(text) for _, text in batch) <= size
        assert not by_key or len({text for _, text in batch}) == len(batch)
        flying += 1
        assert flying <= flushes_max
        try:
            seconds, fate = next(fates, (1, "well"))
            await asyncio.sleep(seconds)
        finally:
            flying -= 1
        numbers.setdefault(fate, []).extend(number for number, _ in batch)
        match fate:
            case "raise":
                raise OSError("down")
            case "cut":
                raise asyncio.CancelledError
            case "few":
                return [number for number, _ in batch[:-1]]
            case "some":
                return [ValueError(number) if number % 2 else number for number, _ in batch]
        return [number for number, _ in batch]

    async def main() -> None:
        numbered = count()
        tasks: list[asyncio.Task[Sequence[int | Exception]]] = []
        numbers_of: list[list[int]] = []
        lane = Lane(
            flush,
            limits=BatchLimits(items, size),
            linger_s=2.0,
            flushes_max=flushes_max,
            size_of=lambda item: len(item[1]),
            key_of=(lambda item: item[1]) if by_key else None,
        )

        def start(texts: Sequence[str]) -> None:
            items = [(next(numbered), text) for text in texts]
            numbers_of.append([number for number, _ in items])
            tasks.append(asyncio.create_task(submit(items)))

        async def submit(items: list[tuple[int, str]]) -> Sequence[int | Exception]:
            try:
                return await lane.submit_all(items) if len(items) != 1 else [await lane.submit(items[0])]
            except Exception as fault:
                return [fault] * len(items)

        async def own() -> None:
            with suppress(RuntimeError):
                await leave_in_the_end()

        async def leave_in_the_end() -> None:
            async with lane:
                for step, value in steps:
                    match value:
                        case str():
                            start([value])
                        case list():
                            start(value)
                        case int() if step == "cancel" and value < len(tasks):
                            tasks[value].cancel()
                        case int() if step == "wait":
                            await asyncio.sleep(value)
                        case None:
                            lane.hurry()
                await asyncio.sleep(0)
                if end == "fail":
                    raise RuntimeError("a fault elsewhere")

        owner = asyncio.create_task(own())
        if end == "cancel":
            await asyncio.sleep(4)
            owner.cancel()
        await asyncio.wait([owner], timeout=3600)
        assert owner.done()
        assert await left_waiting(tasks) == []
        for task, submitted in zip(tasks, numbers_of, strict=True):
            if task.cancelled():
                continue
            for answer, number in zip(task.result(), submitted, strict=True):
                match answer:
                    case int():
                        assert answer == number
                    case ValueError():
                        assert answer.args == (number,)
                    case OSError():
                        assert number in numbers["raise"]
                    case _:
                        assert isinstance(answer, AmbiguousError | LaneClosedError)

    run_virtual(main())


def test_an_eager_lane_takes_what_comes_in_the_same_turn_and_waits_for_nobody_else() -> None:
    async def main() -> None:
        far = Far(takes_s=0.5)
        async with far.lane(items=10, eager=True) as lane:
            await settled(*submit_all(lane, "abc"))
        assert far.calls == [(0.0, ["a", "b", "c"])]

    run_virtual(main())


def test_behind_a_batch_in_the_air_an_eager_lane_lingers_and_departs_when_that_lands() -> None:
    async def main() -> None:
        far = Far(takes_s=0.5)
        async with far.lane(items=10, eager=True) as lane:
            tasks = submit_all(lane, "a")
            await asyncio.sleep(0.1)
            tasks += submit_all(lane, "b")
            await asyncio.sleep(0.1)
            tasks += submit_all(lane, "c")
            await settled(*tasks)
        assert far.calls == [(0.0, ["a"]), (0.5, ["b", "c"])], "not a second later"

    run_virtual(main())


def test_an_eager_lane_that_is_idle_again_waits_for_no_timer_of_before() -> None:
    async def main() -> None:
        far = Far(takes_s=0.5)
        async with far.lane(items=10, eager=True) as lane:
            tasks = submit_all(lane, "a")
            await asyncio.sleep(0.4)
            tasks += submit_all(lane, "b")  # a timer for 1.4 s; it goes at 0.5, and lands at 1.0
            await settled(*tasks)
            await settled(*submit_all(lane, "c"))
        assert far.calls[-1] == (1.0, ["c"])

    run_virtual(main())
