"""What is learnt of a Region's workers, and when it is believed; a Region whose queue stands still."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import Depth, Region
from dispatcher.policy.drain import BUSY_WINDOWS, Drain, estimates

A, B, C = Region("a"), Region("b"), Region("c")


class Queue:
    """A queue whose workers take `rate` messages per second while there are any; `drain` looks every 15 seconds."""

    def __init__(self, rate: float, *, waiting: int = 0, in_flight: int = 8, drain: Drain | None = None) -> None:
        self.rate = rate
        self.waiting = float(waiting)
        self.in_flight = in_flight
        self.drain = drain or Drain()

    def window(self, arriving: float, seconds: float = 15.0) -> None:
        before = Depth(round(self.waiting), self.in_flight, 0)
        expected = self.drain.estimate(0.0)
        projected = max(0.0, self.waiting + (arriving - expected) * seconds)
        self.waiting = max(0.0, self.waiting + (arriving - self.rate) * seconds)
        after = Depth(round(self.waiting), self.in_flight, 0)
        self.drain.learn(before, after, arriving * seconds, seconds, expected, projected)


def test_with_messages_waiting_the_drain_is_what_was_taken() -> None:
    queue = Queue(20.0, waiting=5000)
    for _ in range(BUSY_WINDOWS):
        assert not queue.drain.confident
        queue.window(15.0)
    assert queue.drain.confident
    assert queue.drain.estimate(99.0) == pytest.approx(20.0, rel=0.01)


def test_an_empty_queue_says_only_what_the_workers_can_do_at_least() -> None:
    queue = Queue(40.0)
    for _ in range(5):
        queue.window(10.0)
    assert not queue.drain.confident
    assert 7.0 < queue.drain.least <= 10.0, "luck left out"
    assert queue.drain.estimate(2.0) == pytest.approx(1.5 * queue.drain.least), "and it can do more"
    assert queue.drain.estimate(50.0) == 50.0


def test_the_operator_s_word_counts_until_it_was_observed() -> None:
    queue = Queue(5.0, waiting=500, drain=Drain(prior=30.0))
    assert queue.drain.estimate(2.0) == 30.0
    for _ in range(BUSY_WINDOWS):
        queue.window(5.0)
    assert queue.drain.estimate(2.0) == pytest.approx(5.0, rel=0.05)


def test_a_collapse_is_believed_at_the_first_reading_that_shows_it() -> None:
    queue = Queue(40.0, waiting=3000)
    for _ in range(4):
        queue.window(38.0)
    queue.rate = 4.0
    queue.window(38.0)
    assert queue.drain.estimate(99.0) == pytest.approx(4.0, rel=0.05)


def test_workers_that_fall_behind_an_empty_queue_were_busy() -> None:
    """Nothing waited at the first reading and a lot at the second, where nothing should."""
    queue = Queue(40.0)
    for _ in range(4):
        queue.window(20.0)
    queue.rate = 2.0
    queue.window(20.0)
    assert queue.drain.estimate(30.0) == pytest.approx(2.0, rel=0.1)


def test_a_region_that_recovers_is_found_out_by_what_it_takes() -> None:
    queue = Queue(4.0, waiting=400)
    for _ in range(4):
        queue.window(4.0)
    queue.rate, queue.waiting = 40.0, 0.0
    believed = [queue.drain.estimate(0.0)]
    for _ in range(25):
        queue.window(believed[-1])
        believed.append(queue.drain.estimate(0.0))
    assert believed[-1] > 25.0
    assert all(later >= sooner for sooner, later in pairwise(believed))


def test_messages_that_come_back_from_lost_workers_are_nothing_taken() -> None:
    drain = Drain()
    drain.learn(Depth(100, 50, 0), Depth(150, 0, 0), sent=0, seconds=15, expected=3.0, projected=55.0)
    assert drain.least == 0.0
    assert drain.estimate(1.0) < 1.0


def test_what_was_just_being_sent_at_a_reading_is_not_taken_by_anybody() -> None:
    """Ten messages are there before they count as sent: ten too few seem taken, and ten too many the next time."""
    drain = Drain()
    drain.learn(Depth(0, 0, 0), Depth(100, 0, 0), 90, 15.0, 0.0, 90.0)
    drain.learn(Depth(100, 0, 0), Depth(100, 0, 0), 10, 15.0, 0.0, 110.0)
    assert drain.least == 0.0
    assert drain.estimate(1.0) < 1.0


def test_messages_that_wait_and_nobody_holds_are_a_stall_at_once() -> None:
    drain = Drain()
    drain.look(Depth(50, 0, 0), Depth(50, 0, 0))
    assert drain.stalled
    assert drain.observed == 0.0
    drain.learn(Depth(50, 0, 0), Depth(60, 0, 0), 15, 15.0, 1.0, 0.0)
    assert drain.stalled, "what others sent is known badly: five taken by nobody are none"


def test_a_queue_that_stands_still_for_two_readings_is_stalled() -> None:
    drain = Drain()
    for stalled in (False, True):
        drain.learn(Depth(50, 8, 0), Depth(80, 8, 0), 30, 15.0, 1.0, 0.0)
        assert drain.stalled is stalled
    assert drain.observed == 0.0


@pytest.mark.parametrize(
    ("before", "after", "sent", "expected"),
    [
        (Depth(0, 0, 0), Depth(0, 0, 0), 0, 9.0),  # nothing to do
        (Depth(50, 8, 0), Depth(50, 8, 0), 0, 0.1),  # slow work: one or two were due, that may be chance
        (Depth(50, 8, 0), Depth(49, 8, 0), 0, 9.0),  # one was done
        (Depth(0, 0, 0), Depth(50, 0, 0), 50, 9.0),  # only just sent
    ],
)
def test_a_queue_that_has_nothing_to_do_or_does_something_is_not(
    before: Depth, after: Depth, sent: int, expected: float
) -> None:
    drain = Drain()
    drain.learn(before, after, sent, 15.0, expected, 0.0)
    assert not drain.stalled


def test_workers_that_are_back_from_a_stall_are_as_many_as_before_until_shown_otherwise() -> None:
    queue = Queue(16.0, waiting=500)
    for _ in range(4):
        queue.window(16.0)
    queue.rate, queue.in_flight = 0.0, 0
    for _ in range(3):
        queue.window(2.0)
        queue.drain.look(Depth(50, 0, 0), Depth(60, 0, 0))
    assert queue.drain.stalled
    assert queue.drain.estimate(0.0) < 2.0
    queue.rate, queue.in_flight, queue.waiting = 16.0, 2, 0.0
    queue.window(1.0)
    assert not queue.drain.stalled
    assert queue.drain.estimate(0.0) == pytest.approx(16.0, rel=0.1)


def test_slow_work_that_never_comes_is_a_stall_in_the_end_and_ends_with_the_first_message_taken() -> None:
    drain = Drain()
    for _ in range(4):
        drain.learn(Depth(50, 8, 0), Depth(50, 8, 0), 0, 15.0, 0.1, 0.0)
    assert drain.stalled
    drain.learn(Depth(50, 8, 0), Depth(0, 0, 0), -58, 15.0, 0.1, 0.0)
    assert drain.stalled, "moved out is not worked off"
    drain.learn(Depth(50, 8, 0), Depth(48, 8, 0), 0, 15.0, 0.1, 0.0, disturbed=True)
    assert drain.stalled, "while messages are moved out a few may look like work"
    drain.learn(Depth(50, 8, 0), Depth(48, 8, 0), 0, 15.0, 0.1, 0.0)
    assert not drain.stalled


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 50), st.integers(0, 2000)), max_size=30)
)
def test_no_readings_however_odd_make_an_estimate_negative_or_endless(
    windows: list[tuple[int, int, int, int]],
) -> None:
    drain = Drain()
    for old, new, in_flight, sent in windows:
        drain.learn(Depth(old, in_flight, 0), Depth(new, 0, 0), sent, 15.0, drain.estimate(1.0), 10.0)
        assert 0.0 <= drain.estimate(1.0) <= 1000.0
        assert 0.0 <= drain.observed <= 1000.0


def test_while_nothing_is_known_there_is_no_estimate() -> None:
    assert estimates({A: Drain(), B: Drain()}, {}) == {}


def test_what_others_believe_is_a_newcomer_s_first_guess() -> None:
    assert estimates({A: Drain(), B: Drain()}, {A: 30.0, B: 10.0}) == {A: 30.0, B: 10.0}


def test_a_region_of_which_too_little_is_known_is_taken_for_an_average_one() -> None:
    known = [Queue(rate, waiting=9000) for rate in (10.0, 20.0)]
    for queue in known:
        for _ in range(4):
            queue.window(5.0)
    found = estimates({A: known[0].drain, B: known[1].drain, C: Drain()}, {})
    assert found[C] == pytest.approx(15.0, rel=0.05)


def test_estimates_stay_within_bounds_of_their_median() -> None:
    drains = {Region(str(n)): Drain(busy_windows=9, busy=rate) for n, rate in enumerate((0.001, 10.0, 10.0, 90_000.0))}
    assert list(estimates(drains, {}).values()) == [0.5, 10.0, 10.0, 200.0]


def test_chance_moves_the_estimate_of_a_slow_region_little() -> None:
    """One message in four seconds: what a reading of 15 seconds shows is mostly luck."""
    random = Random(3)
    drain = Drain()
    rates = []
    for _ in range(200):
        taken = sum(random.random() < 0.025 for _ in range(150))
        drain.learn(Depth(500, 2, 0), Depth(500, 2, 0), taken, 15.0, drain.estimate(0.25), 500.0)
        rates.append(drain.estimate(0.25))
    late = rates[20:]
    assert sum(late) / len(late) == pytest.approx(0.25, rel=0.25)
