"""What routing by projected wait is for (routing.md), shown on the simulator that drives the daemon's own board.

Four Regions, readings every 60 s that are 30 s late, four dispatchers. Deterministic by seed.
"""

from dataclasses import replace
from functools import cache

import pytest

from dispatcher.model import Policy, Region
from dispatcher.simulation.engine import Outcome, play
from dispatcher.simulation.scenarios import BUILT_IN

OURS, ORIGINAL, SMOOTHED = Policy.PROJECTED_WAIT, Policy.INVERSE_DEPTH, Policy.INVERSE_DEPTH_SMOOTHED
SEED = 1


@cache
def played(scenario: str, policy: Policy) -> Outcome:
    outcome = play(BUILT_IN[scenario], policy, SEED)
    print(scenario, policy, outcome.summary())
    return outcome


@pytest.mark.parametrize("scenario", ["equal", "unequal", "spot-loss", "wrong-drain", "snapshot"])
def test_the_scenarios_are_those_of_the_research(scenario: str) -> None:
    known = BUILT_IN[scenario]
    assert (len(known.regions), known.reading_s, known.lag_s, known.dispatchers) == (4, 60.0, 30.0, 4)
    assert known.load == (0.6 if scenario == "spot-loss" else 0.85)
    assert known.threshold == 5000


def test_unequal_drains_wait_at_most_two_seconds_and_a_twentieth_of_the_original() -> None:
    ours, original = played("unequal", OURS), played("unequal", ORIGINAL)
    assert ours.mean_wait_s <= 2.0
    assert ours.mean_wait_s <= 0.05 * original.mean_wait_s


def test_equal_drains_wait_at_most_1_3_seconds() -> None:
    assert played("equal", OURS).mean_wait_s <= 1.3


def test_after_a_spot_loss_99_percent_wait_at_most_20_seconds_where_the_original_needs_150() -> None:
    assert played("spot-loss", OURS).percentile_s(0.99) <= 20.0
    assert played("spot-loss", ORIGINAL).percentile_s(0.99) >= 150.0


def test_with_wrong_estimates_the_model_check_falls_back_and_is_hardly_worse_for_it() -> None:
    wrong = played("wrong-drain", OURS)
    assert wrong.fell_back_s > 0.8 * BUILT_IN["wrong-drain"].seconds * BUILT_IN["wrong-drain"].dispatchers
    assert wrong.mean_wait_s <= 1.2 * played("wrong-drain", SMOOTHED).mean_wait_s
    assert played("unequal", OURS).fell_back_s < 0.05 * BUILT_IN["unequal"].seconds * BUILT_IN["unequal"].dispatchers


@pytest.mark.parametrize("policy", Policy)
def test_from_the_snapshot_no_region_ever_passes_its_threshold(policy: Policy) -> None:
    outcome = played("snapshot", policy)
    assert outcome.over_threshold == 0
    assert outcome.max_depth <= 5000


def test_the_original_and_ours_alike_keep_every_threshold_in_every_research_scenario() -> None:
    for scenario in ("equal", "unequal", "spot-loss"):
        for policy in (OURS, ORIGINAL):
            assert played(scenario, policy).over_threshold == 0


def test_a_stalled_region_s_share_is_below_15_percent_within_two_readings_and_comes_back() -> None:
    """The largest Region's workers vanish at 600 s and are back at 1500 s."""
    known = BUILT_IN["unequal"]
    largest = next(iter(known.regions))
    pool = replace(known.regions[largest], left=lambda at: 0.0 if 600 <= at < 1500 else 1.0)
    scenario = replace(known, regions={**known.regions, largest: pool}, load=0.5, seconds=3000, lag_s=0.0)
    shares: list[tuple[float, float]] = []

    def watch(at: float, split: dict[Region, float]) -> None:
        shares.append((at, split.get(largest, 0.0)))

    play(scenario, OURS, SEED, watch=watch)
    before = [share for at, share in shares if 500 <= at < 600]
    gone = [share for at, share in shares if 600 + 2 * 1.2 * scenario.reading_s <= at < 1500]
    back = [share for at, share in shares if at >= 2400]
    assert min(before) > 0.2
    assert max(gone) < 0.15
    assert sum(back) / len(back) > 0.2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_region_left_with_a_tenth_of_its_workers_gets_less_than_15_percent_within_two_readings(seed: int) -> None:
    known = BUILT_IN["unequal"]
    largest = next(iter(known.regions))
    pool = replace(known.regions[largest], left=lambda at: 0.1 if at >= 1200 else 1.0)
    scenario = replace(known, regions={**known.regions, largest: pool}, load=0.5, seconds=2400)
    late: list[float] = []
    early: list[float] = []

    def watch(at: float, split: dict[Region, float]) -> None:
        if 900 <= at < 1200:
            early.append(split.get(largest, 0.0))
        if at >= 1200 + 2 * 1.2 * scenario.reading_s + scenario.lag_s:
            late.append(split.get(largest, 0.0))

    outcome = play(scenario, OURS, seed, watch=watch)
    assert min(early) > 0.2
    assert max(late) < 0.15
    assert outcome.over_threshold == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_empty_region_without_workers_gets_no_more_than_its_share_of_one_reading(seed: int) -> None:
    """Workers scaled to zero while nothing was asked of them, and four minutes to come back: nothing shows that before
    messages wait there and nobody takes them. Then it gets probes, and its whole share again once they are taken.
    """
    known = BUILT_IN["unequal"]
    largest = next(iter(known.regions))
    pool = replace(known.regions[largest], cold_start_s=240.0)
    quiet = (900, 1800)
    scenario = replace(
        known,
        regions={**known.regions, largest: pool},
        load=0.4,
        seconds=3600,
        lag_s=0.0,
        shape=lambda at: 0.0 if quiet[0] <= at < quiet[1] else 1.0,
    )
    seen: list[tuple[float, float]] = []
    outcome = play(scenario, OURS, seed, watch=lambda at, split: seen.append((at, split.get(largest, 0.0))))
    reading_s = 1.2 * scenario.reading_s
    share = sum(part for at, part in seen if 600 <= at < 900) / 300
    assert share > 0.2
    assert outcome.max_depth <= 2 * share * scenario.rate(0) * reading_s, "one reading's worth, and what chance adds"
    cold = [part for at, part in seen if quiet[1] + 2 * reading_s <= at < quiet[1] + 240]
    assert max(cold) < 0.06, "probes"
    back = [part for at, part in seen if at >= quiet[1] + 240 + 4 * reading_s]
    assert sum(back) / len(back) > 0.15
    assert outcome.over_threshold == 0


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    short = replace(BUILT_IN["unequal"], seconds=600)
    first, again, other = (play(short, OURS, seed).summary() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("scenario", BUILT_IN)
def test_every_scenario_serves_what_arrives_or_says_what_is_left(scenario: str) -> None:
    short = replace(BUILT_IN[scenario], seconds=120)
    outcome = play(short, OURS, SEED)
    assert outcome.served + outcome.unserved > 0
    assert outcome.aws_calls > 0
