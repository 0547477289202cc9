"""The order of the checks on a refused claim, each rule alone and against the next ones."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import (
    Choice,
    Claimed,
    ClaimRequest,
    DifferentWork,
    Duplicate,
    Held,
    Lapsed,
    Message,
    Priority,
    Region,
)
from dispatcher.policy.claims import Record, State, judge

A, B = Region("a"), Region("b")
NOW = 1_000.0
REQUEST = ClaimRequest(Message("id", "m", Priority.NORMAL, "work", 0), "mine", Choice(B, "fixed", 0.0), NOW + 90, "m-2")
LIVE = Record("id", State.CLAIMED, "other", "1050.000", A, "work", 0, NOW + 1e6)
"""Another delivery's claim, 50 s to go."""
OVER = replace(LIVE, lease_end="999.000")
DISPATCHED = replace(LIVE, state=State.DISPATCHED, lease_end="0")
RELEASED = replace(LIVE, state=State.RELEASED, lease_end="0", region=None)
REJECTED = replace(LIVE, state=State.REJECTED, lease_end="0", region=None)


def request(*, generation: int = 0, work: str = "work") -> ClaimRequest:
    return REQUEST._replace(message=REQUEST.message._replace(generation=generation, work=work))


def lapsed(old: Record, region: Region | None, generation: int = 0) -> Lapsed:
    return Lapsed(old.state, old.token, old.lease_end, region, generation)


def test_a_live_claim_of_another_holds_the_request_until_its_lease_ends() -> None:
    assert judge(LIVE, REQUEST, NOW) == Held(1050.0)


def test_a_claim_whose_lease_is_over_is_taken_over_with_the_region_where_a_copy_may_be() -> None:
    assert judge(OVER, REQUEST, NOW) == lapsed(OVER, A)


@pytest.mark.parametrize(("now", "holds"), [(1049.999, True), (1050.0, False), (1050.001, False)])
def test_a_lease_holds_up_to_its_end(now: float, holds: bool) -> None:
    assert isinstance(judge(LIVE, REQUEST, now), Held) is holds


@pytest.mark.parametrize("old", [RELEASED, REJECTED])
def test_what_is_certainly_in_no_region_is_taken_over_for_any(old: Record) -> None:
    assert judge(old, REQUEST, NOW) == lapsed(old, None)


def test_a_dispatched_request_is_a_duplicate() -> None:
    assert judge(DISPATCHED, REQUEST, NOW) == Duplicate()


def test_our_own_claim_met_again_after_a_lost_answer_is_ours_as_it_stands_in_the_ledger() -> None:
    own = replace(LIVE, token="mine")
    assert judge(own, REQUEST, NOW) == Claimed("id", "mine", A, 1050.0)


@pytest.mark.parametrize("old", [LIVE, OVER, DISPATCHED, RELEASED, REJECTED])
def test_past_its_expiry_an_item_counts_as_absent(old: Record) -> None:
    """DynamoDB removes expired items days late; our retention ends when it says."""
    expired = replace(old, expires_at=NOW - 1)
    assert judge(expired, request(work="other"), NOW) == lapsed(expired, None)


@pytest.mark.parametrize("old", [LIVE, OVER, DISPATCHED, RELEASED, REJECTED])
@pytest.mark.parametrize("work", ["work", "other"])
def test_a_higher_generation_is_a_new_request_whatever_became_of_the_old_one(old: Record, work: str) -> None:
    assert judge(old, request(generation=1, work=work), NOW) == lapsed(old, None, 1)


@pytest.mark.parametrize(("old", "region"), [(OVER, A), (RELEASED, None), (REJECTED, None)])
def test_whoever_finishes_a_claim_of_a_higher_generation_leaves_that_generation_done(
    old: Record, region: Region | None
) -> None:
    """Or the higher one's own message would come back and be dispatched once more."""
    assert judge(replace(old, generation=5), REQUEST, NOW) == lapsed(old, region, 5)


def test_a_generation_is_forgotten_with_its_item() -> None:
    assert judge(replace(OVER, generation=5, expires_at=NOW - 1), REQUEST, NOW) == lapsed(OVER, None, 0)


@pytest.mark.parametrize("generation", [3, 2])
def test_a_generation_that_is_not_higher_changes_nothing(generation: int) -> None:
    assert judge(replace(DISPATCHED, generation=3), request(generation=generation), NOW) == Duplicate()


@pytest.mark.parametrize("old", [LIVE, OVER, DISPATCHED, RELEASED, REJECTED])
def test_different_work_under_the_same_id_is_refused_before_anything_is_concluded_from_the_state(old: Record) -> None:
    """A duplicate would be deleted, and the client's second request with it."""
    assert judge(old, request(work="other"), NOW) == DifferentWork()


@pytest.mark.parametrize(
    "own",
    [
        replace(LIVE, token="mine", work="other"),
        replace(LIVE, token="mine", lease_end="999.000"),
        replace(LIVE, token="mine", expires_at=NOW - 1),
        replace(LIVE, token="mine", generation=-1),
    ],
)
def test_our_own_token_comes_before_every_other_check(own: Record) -> None:
    assert isinstance(judge(own, REQUEST, NOW), Claimed)


def test_a_dispatched_request_stays_a_duplicate_though_its_lease_is_long_over() -> None:
    assert judge(replace(DISPATCHED, lease_end="1.000"), REQUEST, NOW) == Duplicate()


def test_a_released_request_is_free_though_its_lease_would_still_hold() -> None:
    assert isinstance(judge(replace(RELEASED, lease_end="1050.000"), REQUEST, NOW), Lapsed)


def test_a_state_that_this_version_does_not_know_is_held_while_its_lease_lives() -> None:
    """`released` or lease over → take over; else held. During a roll-out a newer dispatcher may write such a state."""
    assert judge(replace(LIVE, state="paused"), REQUEST, NOW) == Held(1050.0)


@given(
    st.builds(
        Record,
        st.just("id"),
        st.sampled_from([*State, "unknown"]),
        st.sampled_from(["mine", "other"]),
        st.floats(0, 3000).map("{:.3f}".format),
        st.sampled_from([None, A, B]),
        st.sampled_from(["work", "else"]),
        st.integers(0, 3),
        st.floats(0, 3000),
    ),
    st.integers(0, 3),
)
def test_a_dispatch_is_repeated_only_on_purpose_or_when_forgotten(old: Record, generation: int) -> None:
    verdict = judge(old, request(generation=generation), NOW)
    if isinstance(verdict, Lapsed) and old.state == State.DISPATCHED:
        assert generation > old.generation or old.expires_at <= NOW
    if isinstance(verdict, Duplicate):
        assert old.state == State.DISPATCHED
    if isinstance(verdict, Lapsed):
        assert (verdict.state, verdict.token, verdict.lease_end) == (old.state, old.token, old.lease_end)
