import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.clock import Clock


def test_before_any_answer_the_local_clock_counts() -> None:
    assert Clock(lambda: 5.0).now() == 5.0


@pytest.mark.parametrize("wrong_by_s", [-86_400.0, -3.0, 0.0, 0.4, 7.0, 86_400.0])
def test_one_answer_brings_a_wrong_clock_to_within_a_second_of_aws_s(wrong_by_s: float) -> None:
    true = 1_000_000.3
    clock = Clock(lambda: true + wrong_by_s)
    clock.observe(float(int(true)), asked_at=clock.local(), answered_at=clock.local())
    assert abs(clock.now() - true) <= 1.0


@given(
    st.floats(-1e5, 1e5),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30), st.floats(0, 1)), min_size=1, max_size=30),
)
def test_the_offset_never_leaves_what_the_answers_allow(
    wrong_by_s: float, calls: list[tuple[float, float, float]]
) -> None:
    """AWS stamped each answer somewhere within its call: the error is at most a second and the fastest call's time."""
    true = 1.7e9
    clock = Clock(lambda: true + wrong_by_s)
    fastest = float("inf")
    for pause, took, stamped_after in calls:
        true += pause
        asked_at = clock.local()
        stamped = true + took * stamped_after
        true += took
        clock.observe(float(int(stamped)), asked_at, clock.local())
        fastest = min(fastest, took)
        assert abs(clock.now() - true) <= 1.0 + fastest + 1e-3


def test_a_consistent_answer_moves_nothing() -> None:
    """A clock that jittered with each answer's whole second would make leases lapse early now and then."""
    clock = Clock(lambda: 100.0)
    clock.observe(100.0, 100.0, 100.0)
    assert clock.offset_s == 0.0


def test_a_step_of_the_local_clock_is_corrected_by_the_next_answer() -> None:
    local = 100.0
    clock = Clock(lambda: local)
    clock.observe(100.0, 100.0, 100.1)
    local = 40.0  # set back by a minute
    clock.observe(100.0, 40.4, 40.5)
    assert abs(clock.now() - 100.0) <= 1.0
