"""Inverse depth and projected wait: shares, budgets, and how a run of messages is split."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import Depth, Policy, Priority, Region
from dispatcher.policy.breaker import BreakerState
from dispatcher.policy.routing import PROBE_SHARE, Freshness, RegionView, allot, shares, weights

INVERSE = Policy.INVERSE_DEPTH
A, B, C = Region("a"), Region("b"), Region("c")
VIEW = RegionView(
    depth=Depth(0, 0, 0),
    age_s=0.0,
    own_since=0,
    others_since=0.0,
    under_way=0,
    projected=0.0,
    drain=0.0,
    capacity=1.0,
    stalled=False,
    breaker=BreakerState.CLOSED,
    weight=1.0,
    threshold=5000,
    allowance=10**9,
    overloaded=False,
    credited=0.0,
    ttl_s=60.0,
    under_way_max=500,
)


def pick(split: dict[Region, float], credit: dict[Region, float]) -> Region:
    (region,) = allot(split, credit, 1, dict.fromkeys(split, 1_000_000))
    return region


def at(visible: int, **changes: object) -> RegionView:
    return replace(VIEW, depth=Depth(visible, 9, 9), **changes)  # type: ignore[arg-type]  # any field of it


def test_inverse_depth_is_the_original_s_one_over_visible_plus_one() -> None:
    weights = {A: 1 / 1, B: 1 / 100, C: 1 / 1000}
    split = shares({A: at(0), B: at(99), C: at(999)}, INVERSE)
    assert split == {region: pytest.approx(weight / sum(weights.values())) for region, weight in weights.items()}


def test_only_visible_messages_count_as_depth() -> None:
    split = shares({A: replace(VIEW, depth=Depth(5, 4000, 0)), B: replace(VIEW, depth=Depth(5, 0, 4000))}, INVERSE)
    assert split[A] == split[B]


def test_own_sends_since_the_reading_do_not_change_the_weight() -> None:
    """They count in the budget only."""
    assert shares({A: at(10, own_since=400), B: at(10)}, INVERSE) == {A: 0.5, B: 0.5}


def test_twice_the_weight_is_twice_the_share() -> None:
    split = shares({A: at(10, weight=2.0), B: at(10)}, INVERSE)
    assert split[A] == pytest.approx(2 * split[B])


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": Depth(5000, 0, 0)},
        {"depth": Depth(9000, 0, 0)},
        {"depth": Depth(4000, 0, 0), "own_since": 1000},
        {"weight": 0.0},
        {"breaker": BreakerState.OPEN},
        {"under_way": 500, "own_since": 500},
        {"breaker": BreakerState.HALF_OPEN, "under_way": 1, "own_since": 1},
        {"threshold": 1, "depth": Depth(1, 0, 0)},
    ],
)
def test_a_region_that_may_get_nothing_has_no_share_and_no_budget(changes: dict[str, object]) -> None:
    out = replace(VIEW, **changes)  # type: ignore[arg-type]  # any field of it
    assert out.budget() == 0
    assert shares({A: out, B: at(4999)}, INVERSE) == {B: 1.0}
    assert shares({A: out}, INVERSE) == {}
    assert out.health != "fresh"


def test_the_last_place_below_the_threshold_is_given_away() -> None:
    assert at(4999).budget() == 1


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
    split = shares({A: at(10, age_s=90), B: at(10)}, INVERSE)
    assert split[A] == pytest.approx(split[B] / 2)


@pytest.mark.parametrize("unknown", [replace(VIEW, depth=None, age_s=50), at(0, age_s=200)])
def test_unknown_regions_get_the_probe_share_together(unknown: RegionView) -> None:
    split = shares({A: unknown, B: unknown, C: at(4000)}, INVERSE)
    assert split[A] + split[B] == pytest.approx(PROBE_SHARE)
    assert split[A] == split[B]
    assert split[C] == pytest.approx(1 - PROBE_SHARE)
    assert PROBE_SHARE <= 0.05


@pytest.mark.parametrize("beside", [{}, {C: at(5000)}, {C: at(0, breaker=BreakerState.OPEN)}])
def test_nobody_gets_anything_while_no_depth_is_known(beside: dict[Region, RegionView]) -> None:
    """Unknown is not zero: with every depth unknown there is nothing to choose by."""
    assert shares({A: replace(VIEW, depth=None, age_s=50), B: at(0, age_s=200)} | beside, INVERSE) == {}


def test_an_unknown_region_s_last_reading_still_bounds_it() -> None:
    assert at(5000, age_s=10_000).budget() == 0


VIEWS = st.dictionaries(
    st.sampled_from([A, B, C, Region("d"), Region("e")]),
    st.builds(
        RegionView,
        depth=st.none() | st.builds(Depth, st.integers(0, 10_000), st.integers(0, 9), st.integers(0, 9)),
        age_s=st.floats(0, 400),
        own_since=st.integers(0, 6000),
        others_since=st.floats(0, 3000),
        projected=st.floats(0, 12_000),
        drain=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
        capacity=st.floats(0.1, 1.0),
        stalled=st.booleans(),
        allowance=st.sampled_from([0, 3, 10_000]),
        overloaded=st.booleans(),
        credited=st.floats(0, 1),
        under_way=st.integers(0, 600),
        breaker=st.sampled_from(BreakerState),
        weight=st.sampled_from([0.0, 0.1, 1.0, 7.5]),
        threshold=st.integers(1, 10_000),
        ttl_s=st.just(60.0),
        under_way_max=st.integers(1, 500),
    ),
)


@given(VIEWS, st.sampled_from(Policy), st.sampled_from(Priority))
def test_shares_sum_to_one_or_there_are_none(
    views: dict[Region, RegionView], policy: Policy, priority: Priority
) -> None:
    split = shares(views, policy, priority=priority)
    assert not split or sum(split.values()) == pytest.approx(1.0)
    for region, share in split.items():
        view = views[region]
        assert 0 < share <= 1
        assert view.budget(priority) > 0
        assert view.committed < view.threshold
        assert view.breaker is not BreakerState.OPEN
    unknown = sum(share for region, share in split.items() if views[region].freshness is Freshness.UNKNOWN)
    assert unknown <= PROBE_SHARE + 1e-9


@given(VIEWS, st.sampled_from(Policy))
def test_a_stalled_region_gets_no_more_than_the_probe_share_beside_a_live_one(
    views: dict[Region, RegionView], policy: Policy
) -> None:
    split = shares(views, policy)
    if any(view.live for view in views.values()):
        assert sum(share for region, share in split.items() if views[region].stalled) <= PROBE_SHARE + 1e-9


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
    split = shares({A: at(100), B: at(100), C: at(100)}, INVERSE)
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
            split = shares(views, INVERSE)
            if not split:
                assert not any(view.budget() for view in views.values())
                break
            chosen = pick(split, credit)
            view = views[chosen] = replace(views[chosen], own_since=views[chosen].own_since + 1)
            assert view.depth is not None
            assert view.depth.visible + view.own_since <= view.threshold
        for region, view in views.items():
            assert view.depth is not None
            here = view.depth.visible + view.own_since
            views[region] = replace(view, depth=Depth(random.randint(0, here), 0, 0), own_since=0)


# --- the other policies -----------------------------------------------------------------------------------------


def projected(messages: float, drain: float, **changes: object) -> RegionView:
    return at(int(messages), projected=messages, drain=drain, **changes)


@given(st.lists(st.integers(0, 4999), min_size=1, max_size=6), st.floats(0.01, 100), st.data())
def test_projected_wait_with_one_drain_and_nothing_sent_since_is_inverse_depth(
    depths: list[int], drain: float, data: st.DataObject
) -> None:
    """The original is the special case W0 = 1/drain."""
    weight = data.draw(st.sampled_from([0.5, 1.0, 4.0]))
    views = {Region(str(n)): projected(depth, drain, weight=weight) for n, depth in enumerate(depths)}
    ours = weights(Policy.PROJECTED_WAIT, views, k=0, w0_s=1 / drain)
    original = weights(INVERSE, views, k=0)
    for region in views:
        assert ours[region] / sum(ours.values()) == pytest.approx(original[region] / sum(original.values()))


def test_projected_wait_weighs_capacity_and_drain_over_the_wait_and_ten_seconds() -> None:
    views = {A: projected(300, 20.0), B: projected(0, 5.0, capacity=0.5), C: projected(10, 1.0, weight=3.0)}
    found = weights(Policy.PROJECTED_WAIT, views, k=0)
    assert found == pytest.approx({A: 20 / 25, B: 0.5 * 5 / 10, C: 3 * 1 / 20})


def test_the_smoothed_policy_hardly_minds_small_differences() -> None:
    split = shares({A: at(0), B: at(30)}, Policy.INVERSE_DEPTH_SMOOTHED, k=300)
    assert split[A] / split[B] == pytest.approx(330 / 300)


def test_fixed_goes_by_the_operator_s_weights_alone() -> None:
    assert shares({A: at(4000, weight=3.0), B: at(0)}, Policy.FIXED) == {A: 0.75, B: 0.25}


def test_two_choices_never_takes_the_longest_wait_of_three_and_shares_ties() -> None:
    views = {A: projected(10, 1.0), B: projected(20, 1.0), C: projected(90, 1.0)}
    assert shares(views, Policy.TWO_CHOICES) == pytest.approx({A: 2 / 3, B: 1 / 3})
    assert shares({r: projected(5, 1.0) for r in (A, B, C)}, Policy.TWO_CHOICES) == pytest.approx(
        {A: 1 / 3, B: 1 / 3, C: 1 / 3}
    )


@pytest.mark.parametrize("policy", Policy)
def test_equal_regions_get_equal_shares_under_every_policy(policy: Policy) -> None:
    views = {region: projected(100, 5.0) for region in (A, B, C)}
    credit = {A: 0.9, B: 0.1, C: 0.4}
    got = allot(shares(views, policy), credit, 3000, dict.fromkeys(views, 4000))
    assert max(got.values()) / min(got.values()) < 1.02


@pytest.mark.parametrize("policy", Policy)
def test_unknown_regions_get_at_most_the_probe_share_under_every_policy(policy: Policy) -> None:
    split = shares({A: projected(0, 9.0, age_s=500.0), B: projected(900, 1.0)}, policy)
    assert split[A] == pytest.approx(PROBE_SHARE)


def test_stalled_regions_share_as_usual_when_there_is_no_other() -> None:
    views = {A: projected(50, 1.0, stalled=True), B: projected(50, 1.0, stalled=True)}
    assert shares(views, Policy.PROJECTED_WAIT) == {A: 0.5, B: 0.5}
    full = projected(5000, 1.0)
    assert shares(views | {C: full}, Policy.PROJECTED_WAIT) == {}, "better held than stranded while C is at work"
    assert set(shares(views | {C: at(0, breaker=BreakerState.OPEN)}, Policy.PROJECTED_WAIT)) == {A, B}


def test_probes_of_a_stalled_region_are_one_a_second_at_most() -> None:
    views = {A: projected(50, 1.0, stalled=True, age_s=10.0, own_since=10), B: projected(0, 1.0)}
    assert shares(views, Policy.PROJECTED_WAIT) == {B: 1.0}
    views[A].own_since = 9
    assert shares(views, Policy.PROJECTED_WAIT)[A] == pytest.approx(PROBE_SHARE)


def test_low_stops_at_80_percent_and_the_others_at_the_threshold() -> None:
    view = at(3999)
    assert (view.budget(Priority.LOW), view.budget(Priority.NORMAL), view.budget(Priority.HIGH)) == (1, 500, 500)
    view = at(4000)
    assert (view.budget(Priority.LOW), view.budget(Priority.NORMAL)) == (0, 500)
    assert shares({A: view, B: at(100)}, INVERSE, priority=Priority.LOW) == {B: 1.0}


def test_high_goes_to_the_shortest_projected_wait_alone() -> None:
    views = {A: projected(100, 50.0), B: projected(20, 2.0), C: projected(80, 20.0)}
    assert shares(views, Policy.PROJECTED_WAIT, priority=Priority.HIGH) == {A: 1.0}
    close = {A: projected(100, 50.0), C: projected(56, 20.0)}
    assert set(shares(close, Policy.PROJECTED_WAIT, priority=Priority.HIGH)) == {A, C}, "0.8 s apart is a tie"
    assert set(shares(views, INVERSE, priority=Priority.HIGH)) == {A, B, C}, "the original knows no priorities"


def test_an_overloaded_region_is_out_until_it_resumes() -> None:
    assert at(4500, overloaded=True).budget() == 0
    assert at(4500, overloaded=True).health == "overloaded"


def test_what_is_certainly_taken_makes_room_and_no_more() -> None:
    assert at(1000, own_since=3000, others_since=500.0, projected=2000.0).committed == 4500
    assert at(1000, own_since=3000, others_since=500.0, projected=2000.0, credited=1.0).committed == 2000
    assert at(1000, own_since=3000, others_since=500.0, projected=2000.0, credited=0.5).committed == 3250


@given(SPLITS, st.integers(0, 300), st.lists(st.integers(0, 80), min_size=8, max_size=8), st.integers())
def test_a_run_fills_no_region_past_its_room_and_leaves_none_empty_in_vain(
    split: dict[Region, float], count: int, rooms: list[int], seed: int
) -> None:
    random = Random(seed)
    room = dict(zip(split, rooms, strict=False))
    got = allot(split, {region: random.random() for region in split}, count, room)
    assert all(0 < got[region] <= room[region] for region in got)
    assert sum(got.values()) == min(count, sum(room.values()))
