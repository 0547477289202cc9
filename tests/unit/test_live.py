"""What the page shows of the last minutes: rates and ages that are right, and nobody's ids."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.model import Choice, Message, Outcome, Priority, Region
from dispatcher.telemetry.live import CHOICES, HISTORY, WARNINGS, WINDOW, Live
from dispatcher.telemetry.metrics import Metrics

R = Region("us-east-1")


class Here:
    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics(
            CollectorRegistry(), home=R, regions=[R], policy="-", version="-", revision="-", in_flight_limit=1
        )
        self.live = Live(self.metrics, R, lambda: self.now)

    def second(self, dispatched: int = 0, age_s: float = 0.0, waiting: int = 0) -> None:
        self.now += 1.0
        for _ in range(dispatched):
            self.metrics.received.inc()
            self.metrics.messages.labels(Outcome.DISPATCHED).inc()
            self.metrics.message_age.observe(age_s)
        self.metrics.queue_messages.labels("master", R, "visible").set(waiting)
        self.live.sample()


def test_rates_are_of_the_window_and_history_of_every_second() -> None:
    here = Here()
    here.live.sample()
    for number in range(WINDOW):
        here.second(dispatched=5 if number % 2 else 15, waiting=number)
    said = here.live.explain()
    assert said["dispatched_per_second"] == said["received_per_second"] == 10.0
    assert said["history"]["dispatched_per_second"][-2:] == [15.0, 5.0]
    assert said["history"]["master"][-2:] == [WINDOW - 2, WINDOW - 1]
    for _ in range(HISTORY + 50):
        here.second()
    said = here.live.explain()
    assert said["dispatched_per_second"] == 0.0
    assert len(said["history"]["master"]) == HISTORY
    assert here.live.totals()["dispatched"] == 10 * WINDOW


def test_before_the_first_second_nothing_is_said_to_be_zero() -> None:
    said = Here().live.explain()
    assert (said["dispatched_per_second"], said["message_age_seconds"]) == (None, None)


def test_ages_are_those_of_the_window_as_prometheus_would_tell_them() -> None:
    here = Here()
    here.live.sample()
    here.second(dispatched=100, age_s=3000)
    for _ in range(WINDOW):
        here.second()
    assert here.live.explain()["message_age_seconds"] is None, "what was old is out of the window"
    here.second(dispatched=90, age_s=0.2)
    here.second(dispatched=10, age_s=7.0)
    ages = here.live.explain()["message_age_seconds"]
    assert ages["p50"] == pytest.approx(0.1 + 0.15 * 50 / 90, abs=0.001)  # within 0.1 to 0.25
    assert ages["p95"] == 7.5  # half-way through 5 to 10
    here.second(dispatched=100_000, age_s=1e6)
    assert here.live.explain()["message_age_seconds"]["p95"] == 14400, "no more than the last bound is known"


def test_choices_are_the_last_ones_without_their_ids() -> None:
    here = Here()
    for number in range(CHOICES + 3):
        message = Message(f"id-{number}", "m" * 1000, Priority.HIGH, "w", 0)
        here.live.chose([(message, Choice(R, "projected-wait", 1.234))])
    said = here.live.explain()["choices"]
    assert len(said) == CHOICES
    assert said[0]["projected_wait_seconds"] == 1.23
    assert len(said[0]["model_name"]) < 300
    assert "id-" not in str(said)


def test_warnings_of_a_kind_are_one_and_tell_no_ids() -> None:
    here = Here()
    for number in range(5):
        here.live.warn({"event": "send.failed", "region": R, "request_id": "secret", "fault": f"x {number}"})
    for number in range(WARNINGS):
        here.live.warn({"event": f"other.{number}", "message_id": "secret"})
    here.live.warn({"event": "send.failed", "region": R, "fault": "again"})
    said = here.live.explain()["warnings"]
    assert len(said) == WARNINGS
    assert said[0]["event"] == "send.failed"
    assert said[0]["what"] == {"region": R, "fault": "again"}
    assert said[1]["event"] == f"other.{WARNINGS - 1}"
    assert "secret" not in str(said)
    here.live.warn({"event": "long", "fault": "x" * 5000})
    assert len(here.live.explain()["warnings"][0]["what"]["fault"]) < 300
    here.live.warn({"event": "send.failed", "region": R, "fault": "once more"})
    assert here.live.explain()["warnings"][0]["times"] == 2


def test_a_reported_capacity_is_told_also_one_of_zero() -> None:
    here = Here()
    here.live.warn({"event": "capacity.reported", "region": R, "capacity": 0.0, "fault": ""})
    assert here.live.explain()["warnings"][0]["what"] == {"region": R, "capacity": "0.0"}


async def test_whoever_waits_is_woken_by_the_next_sample() -> None:
    here = Here()
    waiting = asyncio.create_task(here.live.next_sample())
    await asyncio.sleep(0)
    assert not waiting.done()
    here.second()
    await waiting
