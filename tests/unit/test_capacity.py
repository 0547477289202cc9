"""Capacity that Spot takes back counts at once, and is forgotten by half every five minutes."""

import json

import pytest

from dispatcher.policy.capacity import HALF_LIFE_S, LEAST, Capacity, remaining, together
from dispatcher.policy.interruption import Interruption, interruption


def test_a_loss_counts_at_once_and_decays() -> None:
    capacity = Capacity()
    assert capacity.now(0.0) == 1.0
    capacity.put(0.2, 100.0)
    assert capacity.now(100.0) == pytest.approx(0.2)
    assert capacity.now(100.0 + HALF_LIFE_S) == pytest.approx(0.6)
    assert capacity.now(100.0 + 20 * HALF_LIFE_S) == pytest.approx(1.0, abs=1e-4)


def test_interruptions_add_up_and_never_take_everything() -> None:
    capacity = Capacity()
    for _ in range(4):
        capacity.lose(0.5, 10.0)
    assert capacity.now(10.0) == pytest.approx(LEAST)
    capacity.put(1.0, 10.0)
    assert capacity.now(10.0) == 1.0


def test_losses_that_different_dispatchers_heard_of_count_together() -> None:
    assert together([0.5, 0.5]) == 0.25
    assert together([0.1, 0.1]) == LEAST
    assert remaining(0.5, -3.0) == 0.5, "a report from the future is one of now"


def event(**changes: object) -> str:
    """As EventBridge writes it (EC2 user guide, Spot Instance interruption notices)."""
    return json.dumps(
        {
            "version": "0",
            "id": "12345678-1234-1234-1234-123456789012",
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "account": "123456789012",
            "time": "2025-12-02T10:23:00Z",
            "region": "us-east-2",
            "resources": ["arn:aws:ec2:us-east-2a:instance/i-1234567890abcdef0"],
            "detail": {"instance-id": "i-1234567890abcdef0", "instance-action": "terminate"},
            **changes,
        }
    )


def test_an_event_names_region_and_instance() -> None:
    assert interruption(event()) == Interruption("us-east-2", "i-1234567890abcdef0")  # type: ignore[arg-type]  # a NewType


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "[]",
        "null",
        "1",
        "{}",
        event(detail=None),
        event(**{"detail-type": "EC2 Instance Rebalance"}),
        "[" * 9999,
    ],
)
def test_anything_else_is_no_interruption(body: str) -> None:
    assert interruption(body) is None
