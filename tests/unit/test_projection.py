"""The projected depth: a reading that is old, sends that are known, workers that are estimated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import Depth
from dispatcher.policy.drain import Drain
from dispatcher.policy.projection import ERRORS, Projection, Sends


class World:
    def __init__(self, *, lag_s: float = 0.0, others: float = 0.0, drain: float = 0.0) -> None:
        self.own = Sends(0.0)
        self.drain = Drain(busy_windows=9, busy=drain)
        self.projection = Projection(self.drain, self.own, lambda at: others * at, lag_s=lag_s, interval_s=15.0)
        self.projection.expect(drain, 0.0)

    def read(self, now: float, visible: int) -> None:
        self.own.cut()
        self.projection.post(Depth(visible, 3, 0), now)
        self.projection.learn(now)
        self.projection.rebuild(now)

    def send(self, now: float, count: int) -> None:
        self.own.add(count, now)
        self.projection.sent(count, now)


def test_projected_depth_is_the_reading_and_sends_less_what_was_taken() -> None:
    world = World(others=2.0, drain=5.0)
    world.read(100, 300)
    world.send(110, 40)
    assert world.projection.level(120) == pytest.approx(300 + 40 + 2 * 20 - 5 * 20)


def test_a_queue_that_is_empty_stays_empty_and_saves_no_work_up() -> None:
    """Plain depth + sent - taken would credit the idle time: 100 - 200 × 5 is nothing, but all came at the end."""
    world = World(drain=5.0)
    world.read(0, 0)
    world.send(200, 100)
    assert world.projection.level(202) == pytest.approx(90)
    world.projection.rebuild(202)
    assert world.projection.level(202) == pytest.approx(90), "alike when it is projected anew"


def test_a_late_reading_is_brought_up_to_date_with_what_was_sent_before_it_was_asked_for() -> None:
    world = World(lag_s=30.0)
    world.send(60, 7)  # too early: in the reading
    world.send(75, 10)  # later than what the reading of 100 shows
    world.read(100, 50)
    assert world.projection.level(100) == 60


def test_delayed_messages_count_as_waiting() -> None:
    world = World()
    world.projection.post(Depth(5, 90, 3), 10)
    world.projection.rebuild(10)
    assert world.projection.level(10) == 8


def test_sends_of_one_grain_are_kept_together_and_never_count_too_early() -> None:
    sends = Sends(0.0)
    for n in range(10):
        sends.add(1, n / 10)
    assert sends.at(0.95) == 10
    assert sends.at(0.5) <= 6
    assert sum(count for _, count in sends.between(-1.0, 5.0)) == 10


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(-3, 20)), max_size=40), st.floats(0, 100), st.floats(0, 100))
def test_the_history_is_complete_and_monotone_in_time(
    steps: list[tuple[float, int]], first: float, second: float
) -> None:
    sends, now = Sends(0.0), 0.0
    for seconds, count in steps:
        now += seconds
        sends.add(count, now)
    after, until = sorted((first, second))
    assert sends.at(until) - sends.at(after) == sum(count for _, count in sends.between(after, until))
    assert sends.at(now + 1) == sends.total
    sends.forget(after)
    assert sends.at(now + 1) == sends.total


def test_an_error_to_one_side_is_an_error_and_chance_is_none() -> None:
    wrong, lucky = World(drain=20.0), World(drain=20.0)
    depth = 5000
    for n in range(ERRORS + 2):
        wrong.drain.busy = lucky.drain.busy = 20.0
        wrong.read(n * 15.0, depth - n * 15 * 5)  # a quarter of what was expected
        lucky.read(n * 15.0, depth - n * 15 * 20 + (60 if n % 2 else -60))
    assert wrong.projection.error is not None
    assert wrong.projection.error > 0.2
    assert lucky.projection.error is not None
    assert lucky.projection.error < 0.25


def test_nothing_is_judged_by_readings_close_together() -> None:
    world = World(drain=5.0)
    for n in range(50):
        world.read(float(n), 1000)
    assert world.drain.busy_windows < 9 + 6
