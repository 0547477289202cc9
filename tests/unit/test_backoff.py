from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.policy.backoff import backoff_s


@given(st.integers(0, 10**6), st.integers())
def test_a_wait_is_positive_and_bounded_however_many_failures_came_before(attempt: int, seed: int) -> None:
    assert 0 < backoff_s(attempt, Random(seed), first_s=0.2, most_s=5.0) <= 5.0


@pytest.mark.parametrize(("attempt", "ceiling"), [(0, 0.2), (1, 0.4), (2, 0.8), (3, 1.6), (5, 5.0), (60, 5.0)])
def test_the_ceiling_doubles_and_half_of_it_is_jitter(attempt: int, ceiling: float) -> None:
    waits = [backoff_s(attempt, Random(seed), first_s=0.2, most_s=5.0) for seed in range(300)]
    assert ceiling / 2 <= min(waits) < ceiling * 0.55
    assert ceiling * 0.95 < max(waits) <= ceiling
