"""What several processes say, put together."""

from asyncio.subprocess import Process
from functools import partial
from typing import Any, cast

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from dispatcher.app import App
from dispatcher.settings import Settings
from dispatcher.supervisor import Supervisor, Worker, WorkerError, _free_port, together
from dispatcher.telemetry.probes import Probes


def status(**more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "version": "1",
        "state": "running",
        "holding": None,
        "draining": False,
        "in_flight": 3,
        "in_flight_limit": 1000,
        "received_per_second": 10.0,
        "dispatched_per_second": 9.5,
        "troubles": {},
        "choices": [{"at": 1.0}, {"at": 0.5}],
        "warnings": [],
        "history": {"dispatched_per_second": [1.0, 2.0, 3.0], "master": [7, 8, 9]},
        "regions": {"a": {"depth": 4, "sent_since_reading": 2, "budget": 10}},
    }
    return said | more


def test_what_adds_up_is_added_up() -> None:
    other = status(history={"dispatched_per_second": [5.0], "master": [9]})
    whole = together([status(), other])
    assert (whole["in_flight"], whole["in_flight_limit"]) == (6, 2000)
    assert whole["received_per_second"] == 20.0
    assert whole["regions"]["a"] == {"depth": 4, "sent_since_reading": 4, "budget": 20}
    assert whole["history"] == {"dispatched_per_second": [8.0], "master": [7, 8, 9]}


def test_the_newest_choices_of_all_are_shown_and_no_more_than_one_shows() -> None:
    whole = together([status(), status(choices=[{"at": 2.0}, {"at": 0.7}])])
    assert whole["choices"] == [{"at": 2.0}, {"at": 1.0}]
    assert together([status(choices=[]), status()])["choices"] == [{"at": 1.0}, {"at": 0.5}], "the first just began"


@pytest.mark.parametrize(
    ("states", "whole"),
    [(("running", "running"), "running"), (("running", "draining"), "draining"), (("starting", "running"), "starting")],
)
def test_a_state_is_the_least_advanced(states: tuple[str, str], whole: str) -> None:
    assert together([status(state=state) for state in states])["state"] == whole


def test_it_holds_when_all_of_them_hold() -> None:
    assert together([status(holding="why"), status()])["holding"] is None
    assert together([status(holding="why"), status(holding="why")])["holding"] == "why"


def test_a_rate_that_one_does_not_know_yet_is_left_out() -> None:
    assert together([status(received_per_second=None), status()])["received_per_second"] == 10.0
    assert together([status(received_per_second=None)])["received_per_second"] is None


def test_a_trouble_of_any_is_a_trouble() -> None:
    whole = together([status(), status(troubles={"the ledger": "timed out"})])
    assert whole["troubles"] == {"the ledger": "timed out"}


def test_warnings_of_a_kind_are_one_and_the_newest_comes_first() -> None:
    def warning(event: str, at: float, **what: str) -> dict[str, Any]:
        return {"event": event, "what": what, "times": 2, "last_at": at}

    first = [warning("depth.unread", 5.0, region="a", fault="late"), warning("poll.failed", 1.0)]
    second = [warning("poll.failed", 9.0), warning("depth.unread", 3.0, region="a", fault="early")]
    third = [warning("depth.unread", 7.0, region="b")]
    assert together([status(warnings=said) for said in (first, second, third)])["warnings"] == [
        warning("poll.failed", 9.0) | {"times": 4},
        warning("depth.unread", 7.0, region="b"),
        warning("depth.unread", 5.0, region="a", fault="late") | {"times": 4},
    ]
    many = [warning(f"event.{number}", number) for number in range(20)]
    assert [each["last_at"] for each in together([status(warnings=many)])["warnings"]] == [19 - n for n in range(8)]


def test_a_process_that_never_said_a_word_and_is_overdue_does_not_answer() -> None:
    worker = Worker(1)
    assert worker.state == "not running"
    worker.process = cast(Process, object())
    assert worker.state == "starting"
    worker.silent = True
    assert worker.state == "does not answer"
    worker.process = None
    assert worker.state == "not running", "whatever it did not say before it died"


def settings_of(processes: int) -> Settings:
    return Settings(
        home_region="us-east-1",
        master_queue_url="http://localhost/1/master",
        regions={"us-east-1": {"queue_url": "http://localhost/1/work"}},
        ledger_table="t",
        processes=processes,
    )


async def test_before_any_has_spoken_it_is_starting_and_says_all_that_one_would() -> None:
    settings = settings_of(2)
    said = Supervisor(settings, [])._status()
    assert said["state"] == together([])["state"] == "starting"
    assert said["policy_in_force"] == settings.routing_policy
    assert set(App(settings)._status()) == set(said) - {"processes"}


def test_those_that_have_started_are_asked_first() -> None:
    whole = together([status(state="starting", ledger="unknown"), status(ledger="closed")])
    assert whole["ledger"] == "closed"


async def test_a_reported_capacity_is_in_force_when_a_process_says_so() -> None:
    token = "a-token-of-some-length"
    app = App(settings_of(1))
    worker = Probes(list, list, dict, CollectorRegistry(), lambda: None, token, app._put_capacity)
    async with worker.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
        supervisor = Supervisor(settings_of(3), [])
        supervisor._http = http
        put = partial(supervisor._put_capacity, token)
        assert await put("nowhere", 0.5) is None
        with pytest.raises(WorkerError, match="no process took it"):
            await put("us-east-1", 0.5)
        able, gone, _ = supervisor._workers  # and one that is not running
        able.process = gone.process = cast(Process, object())
        able.port, gone.port = port, _free_port()
        assert await put("us-east-1", 0.0) == pytest.approx(0.1), "no Region is given up for lost"
        with pytest.raises(WorkerError, match="no process took it"):
            await supervisor._put_capacity("wrong-token", "us-east-1", 0.5)
