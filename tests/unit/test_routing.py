"""Decisions 3, 16, 23 and the contract's inverse depth: shares, budgets, and how a run of messages is split."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import Depth, Region
from dispatcher.policy.breaker import BreakerState
from dispatcher.policy.routing import PROBE_SHARE, Freshness, RegionView, pick, shares

A, B, C = Region("a"), Region("b"), Region("c")
VIEW = RegionView(
    depth=Depth(0, 0, 0),
    age_s=0.0,
    sent_since=0,
    under_way=0,
    breaker=BreakerState.CLOSED,
    weight=1.0,
    threshold=5000,
    ttl_s=60.0,
    under_way_max=500,
)


def at(visible: int, **changes: object) -> RegionView:
    return replace(VIEW, depth=Depth(visible, 9, 9), **changes)  # type: ignore[arg-type]  # any field of it


def test_inverse_depth_is_the_original_s_one_over_visible_plus_one() -> None:
    weights = {A: 1 / 1, B: 1 / 100, C: 1 / 1000}
    split = shares({A: at(0), B: at(99), C: at(999)})
    assert split == {region: pytest.approx(weight / sum(weights.values())) for region, weight in weights.items()}


def test_only_visible_messages_count_as_depth() -> None:
    split = shares({A: replace(VIEW, depth=Depth(5, 4000, 0)), B: replace(VIEW, depth=Depth(5, 0, 4000))})
    assert split[A] == split[B]


def test_own_sends_since_the_reading_do_not_change_the_weight() -> None:
    """They count in the budget only (decisions 23)."""
    assert shares({A: at(10, sent_since=400), B: at(10)}) == {A: 0.5, B: 0.5}


def test_twice_the_weight_is_twice_the_share() -> None:
    split = shares({A: at(10, weight=2.0), B: at(10)})
    assert split[A] == pytest.approx(2 * split[B])


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": Depth(5000, 0, 0)},
        {"depth": Depth(9000, 0, 0)},
        {"depth": Depth(4000, 0, 0), "sent_since": 1000},
        {"weight": 0.0},
        {"breaker": BreakerState.OPEN},
        {"under_way": 500, "sent_since": 500},
        {"breaker": BreakerState.HALF_OPEN, "under_way": 1, "sent_since": 1},
        {"threshold": 1, "depth": Depth(1, 0, 0)},
    ],
)
def test_a_region_that_may_get_nothing_has_no_share_and_no_budget(changes: dict[str, object]) -> None:
    out = replace(VIEW, **changes)  # type: ignore[arg-type]  # any field of it
    assert out.budget == 0
    assert shares({A: out, B: at(4999)}) == {B: 1.0}
    assert shares({A: out}) == {}
    assert out.health != "fresh"


def test_the_last_place_below_the_threshold_is_given_away() -> None:
    assert at(4999).budget == 1


@pytest.mark.parametrize(
    ("age_s", "freshness"),
    [
        (0, Freshness.FRESH),
        (60, Freshness.FRESH),
        (60.1, Freshness.STALE),
        (120, Freshness.STALE),
        (120.1, Freshness.UNKNOWN),
    ],
)
def test_a_reading_is_fresh_up_to_the_ttl_stale_up_to_twice_and_unknown_after(
    age_s: float, freshness: Freshness
) -> None:
    assert replace(VIEW, age_s=age_s).freshness is freshness


def test_a_region_that_was_never_read_is_unknown_however_young() -> None:
    assert replace(VIEW, depth=None).freshness is Freshness.UNKNOWN


def test_a_stale_region_s_weight_is_halved() -> None:
    split = shares({A: at(10, age_s=90), B: at(10)})
    assert split[A] == pytest.approx(split[B] / 2)


@pytest.mark.parametrize("unknown", [replace(VIEW, depth=None, age_s=50), at(0, age_s=200)])
def test_unknown_regions_get_the_probe_share_together(unknown: RegionView) -> None:
    split = shares({A: unknown, B: unknown, C: at(4000)})
    assert split[A] + split[B] == pytest.approx(PROBE_SHARE)
    assert split[A] == split[B]
    assert split[C] == pytest.approx(1 - PROBE_SHARE)
    assert PROBE_SHARE <= 0.05


@pytest.mark.parametrize("beside", [{}, {C: at(5000)}, {C: at(0, breaker=BreakerState.OPEN)}])
def test_nobody_gets_anything_while_no_depth_is_known(beside: dict[Region, RegionView]) -> None:
    """Unknown is not zero: with every depth unknown there is nothing to choose by."""
    assert shares({A: replace(VIEW, depth=None, age_s=50), B: at(0, age_s=200)} | beside) == {}


def test_an_unknown_region_s_last_reading_still_bounds_it() -> None:
    assert at(5000, age_s=10_000).budget == 0


VIEWS = st.dictionaries(
    st.sampled_from([A, B, C, Region("d"), Region("e")]),
    st.builds(
        RegionView,
        depth=st.none() | st.builds(Depth, st.integers(0, 10_000), st.integers(0, 9), st.integers(0, 9)),
        age_s=st.floats(0, 400),
        sent_since=st.integers(0, 6000),
        under_way=st.integers(0, 600),
        breaker=st.sampled_from(BreakerState),
        weight=st.sampled_from([0.0, 0.1, 1.0, 7.5]),
        threshold=st.integers(1, 10_000),
        ttl_s=st.just(60.0),
        under_way_max=st.integers(1, 500),
    ),
)


@given(VIEWS)
def test_shares_sum_to_one_or_there_are_none(views: dict[Region, RegionView]) -> None:
    split = shares(views)
    assert not split or sum(split.values()) == pytest.approx(1.0)
    for region, share in split.items():
        view = views[region]
        assert 0 < share <= 1
        assert view.budget > 0
        assert (view.depth.visible if view.depth else 0) + view.sent_since < view.threshold
        assert view.breaker is not BreakerState.OPEN
    unknown = sum(share for region, share in split.items() if views[region].freshness is Freshness.UNKNOWN)
    assert unknown <= PROBE_SHARE + 1e-9
    known = [r for r, v in views.items() if v.budget and v.freshness is not Freshness.UNKNOWN]
    assert bool(split) == bool(known)


SPLITS = st.lists(st.integers(1, 1000), min_size=1, max_size=8).map(
    lambda parts: {Region(str(n)): part / sum(parts) for n, part in enumerate(parts)}
)


@given(SPLITS, st.integers(), st.integers(0, 60), st.integers(1, 60))
def test_any_run_of_messages_is_split_as_the_shares_say_to_within_a_message_or_so(
    split: dict[Region, float], seed: int, before: int, run: int
) -> None:
    random = Random(seed)
    credit = {region: random.random() for region in split}
    for _ in range(before):
        pick(split, credit)
    got = Counter(pick(split, credit) for _ in range(run))
    assert all(abs(got[region] - run * share) < 2.5 for region, share in split.items())


def test_equal_regions_are_equal_within_two_percent() -> None:
    split = shares({A: at(100), B: at(100), C: at(100)})
    credit: dict[Region, float] = {}
    got = Counter(pick(split, credit) for _ in range(3000))
    assert max(got.values()) / min(got.values()) < 1.02


def test_a_region_that_was_away_does_not_get_a_burst_when_it_is_back() -> None:
    credit: dict[Region, float] = {}
    for _ in range(1000):
        pick({A: 0.5, B: 0.5}, credit)
        pick({A: 1.0}, credit)
    assert Counter(pick({A: 0.5, B: 0.5}, credit) for _ in range(20))[B] <= 12


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 40), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=5
    ),
    st.lists(st.integers(0, 25), max_size=12),
    st.integers(),
)
def test_nothing_is_sent_past_a_threshold_whatever_arrives_between_readings(
    regions: list[tuple[int, int, float]], bursts: list[int], seed: int
) -> None:
    """The budget is taken with each choice; a reading shows what was sent, less what the workers took."""
    random = Random(seed)
    views = {
        Region(str(n)): replace(VIEW, depth=Depth(visible, 0, 0), threshold=threshold, weight=weight)
        for n, (visible, threshold, weight) in enumerate(regions)
    }
    credit = {region: random.random() for region in views}
    for burst in bursts:
        for _ in range(burst):
            split = shares(views)
            if not split:
                assert not any(view.budget for view in views.values())
                break
            chosen = pick(split, credit)
            view = views[chosen] = replace(views[chosen], sent_since=views[chosen].sent_since + 1)
            assert view.depth is not None
            assert view.depth.visible + view.sent_since <= view.threshold
        for region, view in views.items():
            assert view.depth is not None
            here = view.depth.visible + view.sent_since
            views[region] = replace(view, depth=Depth(random.randint(0, here), 0, 0), sent_since=0)
