from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.policy.breaker import CALLS_IN_WINDOW_MIN, FAILURES_IN_A_ROW, WINDOW_S, Breaker, BreakerState


def after(ends: Iterable[bool], *, every_s: float = 1.0, breaker: Breaker | None = None) -> Breaker:
    breaker = breaker or Breaker()
    for n, succeeded in enumerate(ends):
        breaker.record(succeeded, n * every_s)
    return breaker


def opened() -> Breaker:
    breaker = after([False] * FAILURES_IN_A_ROW)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_calls_flow_while_all_is_well() -> None:
    assert after([True] * 100).admits(1)


@pytest.mark.parametrize(("failures", "opens"), [(FAILURES_IN_A_ROW - 1, False), (FAILURES_IN_A_ROW, True)])
def test_failures_in_a_row_open_it(failures: int, opens: bool) -> None:
    breaker = after([True] * 100 + [False] * failures)
    assert (breaker.state is BreakerState.OPEN) is opens
    assert bool(breaker.admits(1)) is not opens


def test_half_of_a_window_failing_opens_it_though_never_many_in_a_row() -> None:
    assert after([True, False] * CALLS_IN_WINDOW_MIN).state is BreakerState.OPEN


def test_a_third_of_a_window_failing_does_not() -> None:
    assert after([True, True, False] * 20).state is BreakerState.CLOSED


def test_too_few_calls_are_no_ground_to_judge_by() -> None:
    assert after([True, False] * ((CALLS_IN_WINDOW_MIN - 1) // 2)).state is BreakerState.CLOSED


def test_what_is_older_than_the_window_is_not_held_against_it() -> None:
    assert after([True, False] * 20, every_s=WINDOW_S / 4).state is BreakerState.CLOSED


def test_a_success_never_opens_it() -> None:
    breaker = after([False] * (FAILURES_IN_A_ROW - 1))
    for n in range(3):
        breaker.record(True, 10.0 + n)
        assert breaker.state is BreakerState.CLOSED


def test_open_it_stays_open_until_the_dependency_answers_a_probe() -> None:
    breaker = opened()
    breaker.record(True, 1e6)  # a call that started before it opened
    assert not breaker.admits(1)
    breaker.answered()
    assert breaker.state is BreakerState.HALF_OPEN


def test_half_open_it_lets_one_call_through_at_a_time() -> None:
    breaker = opened()
    breaker.answered()
    assert [breaker.admits(1) for _ in range(3)] == [1, 0, 0]


def test_a_trial_that_succeeds_closes_it_and_the_old_failures_are_forgotten() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.admits(1)
    breaker.record(True, 6.0)
    assert breaker.state is BreakerState.CLOSED
    for n in range(FAILURES_IN_A_ROW - 1):
        breaker.record(False, 7.0 + n)
    assert breaker.state is BreakerState.CLOSED


def test_a_trial_that_fails_opens_it_again_at_once() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.admits(1)
    breaker.record(False, 1e6)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.admits(1)


def test_a_probe_that_answers_while_closed_or_on_trial_changes_nothing() -> None:
    breaker = Breaker()
    breaker.answered()
    assert breaker.state is BreakerState.CLOSED
    breaker = opened()
    breaker.answered()
    assert breaker.admits(1)
    breaker.answered()
    assert not breaker.admits(1)


@given(st.lists(st.sampled_from(["ok", "no", "probe", "admit"])))
def test_it_never_gets_stuck(events: list[str]) -> None:
    """From anywhere: the calls under way end, a probe answers, one trial succeeds, and calls flow again."""
    breaker = Breaker()
    for n, event in enumerate(events):
        match event:
            case "ok" | "no":
                breaker.record(event == "ok", float(n))
            case "probe":
                breaker.answered()
            case _:
                breaker.admits(1)
    breaker.record(False, 1e3)
    breaker.answered()
    assert breaker.admits(1)
    breaker.record(True, 1e3)
    assert breaker.state is BreakerState.CLOSED


def test_a_busy_dependency_costs_no_more_per_call_than_a_quiet_one() -> None:
    """A thousand calls a second fill the window with thirty thousand: looked through at each call, this never ends."""
    breaker = Breaker()
    for n in range(300_000):
        breaker.record(True, n / 1000)
    assert breaker.state is BreakerState.CLOSED


def test_half_open_a_call_may_carry_one_item_closed_all_of_them() -> None:
    breaker = after([False] * 5)
    assert breaker.admits(10) == 0
    breaker.answered()
    assert breaker.admits(10) == 1
    breaker.record(True, 10.0)
    assert breaker.admits(10) == 10


def test_one_failure_costs_the_trust_and_one_success_brings_it_back() -> None:
    breaker = after([True, False])
    assert not breaker.trusted
    breaker.record(True, 10.0)
    assert breaker.trusted
