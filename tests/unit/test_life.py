"""A request's life in words, from every state of its item."""

import pytest

from dispatcher.policy.life import life, readable

CLAIMED = {"claimed_at": "1000.5", "source_message_id": "m-1", "region": "us-west-2", "policy": "projected-wait"}


def words(**item: str) -> list[str]:
    return [what for _, what in life(item)]


def test_a_dispatched_request_is_told_from_claim_to_the_end_of_its_memory() -> None:
    item = {
        **CLAIMED,
        "state": "dispatched",
        "projected_wait_s": "2.345",
        "dispatched_at": "1001",
        "expires_at": "2000",
    }
    assert life({**item, "sqs_message_id": "s-1"}) == [
        ("1970-01-01T00:16:40.500Z", "claimed for message m-1 of the master queue"),
        ("", "us-west-2 chosen by projected-wait, where 2.3 s of wait were projected"),
        ("1970-01-01T00:16:41.000Z", "dispatched, as SQS message s-1"),
        ("1970-01-01T00:33:20.000Z", "until then a duplicate is known as one"),
    ]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"state": "claimed", "lease_end": "1100"}, "until then a dispatcher has it"),
        ({"state": "released", "lease_end": "0"}, "no Region has it, its message is in the master queue"),
        ({"state": "rejected", "lease_end": "0"}, "its message is in the dead-letter queue"),
        ({"state": "dispatched", "moved_at": "1002", "moved_from": "eu-west-1"}, "rescued from eu-west-1"),
        ({"state": "dispatched", "mover": "x", "moving_until": "1003", "moving_to": "eu-west-1"}, "moved to eu-west-1"),
    ],
)
def test_every_other_state_says_where_the_message_is(item: dict[str, str], said: str) -> None:
    assert any(said in line for line in words(**CLAIMED, **item))


def test_a_wait_that_nobody_knew_is_not_said_to_be_nothing() -> None:
    assert words(region="r", policy="inverse-depth", projected_wait_s="0.0") == ["r chosen by inverse-depth"]


def test_an_item_of_an_older_version_is_told_as_far_as_it_goes() -> None:
    assert words(region="r") == ["r chosen by an older version"]
    assert life({}) == []


def test_only_times_are_made_readable() -> None:
    assert readable({"lease_end": "0", "expires_at": "1000", "owner": "1000"}) == {
        "expires_at": "1970-01-01T00:16:40.000Z", "lease_end": "0", "owner": "1000",
    }  # fmt: skip
