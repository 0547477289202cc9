"""`dispatcher dlq` as an operator types it, on an emulator that has no StartMessageMoveTask."""

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.scenarios.conftest import Run
from tests.scenarios.world import HOME, World, request, requests, until


async def _bury(world: World, bodies: list[str]) -> None:
    """Put messages on the dead-letter queue as SQS does when they were received too often: without a reason."""
    for at in range(0, len(bodies), 10):
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[at : at + 10])]
        await world.sqs[HOME].send_message_batch(QueueUrl=world.resources.dead_letter_queue_url, Entries=entries)


async def _do(world: World, run: Run, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(run, "dlq", *arguments, settings=world.resources.environment(), text=text)


async def _dead(world: World) -> int:
    visible, hidden = await world.counts(HOME, world.resources.dead_letter_queue_url)
    return visible + hidden


async def test_rejected_messages_are_listed_with_reason_age_receives_and_id_and_no_control_characters(
    world: World, run: Run
) -> None:
    evil = "\u001b[2J\u0007evil\n{}"
    await world.send([json.dumps({"request_id": evil, "model_name": "m"}), '{"request_id": "known", "model_name": ""}'])
    await world.start()
    await world.until_master_is_empty()
    listed = await _do(world, run, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    letters: list[dict[str, Any]] = json.loads(listed.stdout)
    assert {letter["request_id"] for letter in letters} == {evil, "known"}
    for letter in letters:
        assert "input_data_url: is required" in letter["reason"]
        assert letter["receives"] >= 1
        assert 0 <= letter["age_seconds"] < 120
        assert letter["message_id"]
        assert set(letter) == {"message_id", "request_id", "reason", "age_seconds", "receives"}, "and no body"
    shown = await _do(world, run, "list")
    assert "known" in shown.stdout
    assert all(line.isprintable() for line in shown.stdout.splitlines()), "nothing that a terminal obeys"
    assert len(shown.stdout.splitlines()) == 3
    some = await _do(world, run, "list", "--json", "--id", "known")
    assert [letter["request_id"] for letter in json.loads(some.stdout)] == ["known"]
    assert await _dead(world) == 2


async def test_a_redrive_dispatches_what_was_not_and_says_what_it_did(world: World, run: Run) -> None:
    await world.start()
    bodies = requests(30)
    await world.send(bodies[:10])
    await world.until_master_is_empty()
    await _bury(world, [*bodies, "no JSON"])
    said = await _do(world, run, "redrive", "--json", "--rate", "1000")
    assert said.returncode == 0, said.stderr
    counts = {name: count for name, count in json.loads(said.stdout).items() if count}
    assert counts == {"redriven": 20, "already_dispatched": 10, "still_invalid": 1}
    await world.until_master_is_empty()
    assert await _dead(world) == 1
    again = await _do(world, run, "redrive", "--all")
    assert again.returncode == 0
    assert "1 left: they would be rejected again" in again.stdout
    await world.dead_letters()
    await world.assert_each_once(bodies)
    empty = await _do(world, run, "redrive")
    assert empty.stdout == "the dead-letter queue is empty\n"


async def test_a_redrive_again_dispatches_a_dispatched_request_once_more(world: World, run: Run) -> None:
    await world.start()
    body = request("once-more")
    await world.send([body])
    await world.until_master_is_empty()
    await _bury(world, [body])
    said = await _do(world, run, "redrive", "--again", "--id", "once-more", "--json")
    assert json.loads(said.stdout)["redriven"] == 1
    await world.until_master_is_empty()
    await world.assert_each_once([body], extra=["once-more"], anywhere=True)
    assert (await world.item("once-more"))["generation"] == "1"


async def test_a_redrive_that_is_killed_loses_nothing_and_sends_nothing_twice(world: World) -> None:
    bodies = requests(120)
    await _bury(world, bodies)
    environment = {**world.cloud.environment, **world.resources.environment(), "PATH": ""}
    for kills in range(3):
        process = subprocess.Popen(  # noqa: ASYNC220  starting one takes no time worth a thread
            [sys.executable, "-m", "dispatcher", "dlq", "redrive", "--rate", "20"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        enough = 10 * (kills + 1)

        async def some(enough: int = enough) -> bool:
            return sum(await world.master()) >= enough

        await until(some, "something redriven")
        process.send_signal(signal.SIGKILL)
        process.wait()
    in_master, dead = sum(await world.master()), await _dead(world)
    assert in_master + dead >= len(bodies), "nothing lost"
    assert dead > 0
    await world.start()
    await world.until_master_is_empty()
    arrived = [arrival.body for arrival in await world.arrivals()]
    assert len(arrived) == len(set(arrived)), "nothing twice"
    assert len(arrived) + await _dead(world) >= len(bodies)


async def test_a_purge_asks_and_drops_only_what_is_meant(world: World, run: Run) -> None:
    await _bury(world, [*requests(5), *requests(3, "other")])
    refused = await _do(world, run, "purge", text="n\n")
    assert refused.returncode == 1
    assert "Drop 8 messages" in refused.stderr
    assert await _dead(world) == 8
    said = await _do(world, run, "purge", "--yes", "--json", *(f"--id=r-{n:04d}" for n in range(5)))
    assert json.loads(said.stdout) == {"purged": 5, "meant": 5}
    assert await _dead(world) == 3
    confirmed = await _do(world, run, "purge", text="y\n")
    assert confirmed.returncode == 0, confirmed.stderr
    assert confirmed.stdout == "dropped 3 of 3 messages\n"
    assert await _dead(world) == 0


def test_without_a_dead_letter_queue_it_says_what_to_do(run: Run) -> None:
    settings = {
        "DISPATCHER_HOME_REGION": "us-east-1",
        "DISPATCHER_MASTER_QUEUE_URL": "http://127.0.0.1:4566/000000000000/nowhere",
        "DISPATCHER_REGIONS": '{"us-east-1": "http://127.0.0.1:4566/000000000000/regional"}',
        "DISPATCHER_LEDGER_TABLE": "ledger",
    }
    master = settings["DISPATCHER_MASTER_QUEUE_URL"]
    for command in (["list"], ["redrive"], ["purge", "--yes"]):
        said = run("dlq", *command, settings=settings)
        assert said.returncode == 1
        (line,) = said.stderr.splitlines()
        assert line.startswith(f"dispatcher: the master queue {master}: it does not exist (missing: ")
        assert "check DISPATCHER_MASTER_QUEUE_URL" in line
    gone = {"DISPATCHER_DEAD_LETTER_QUEUE_URL": settings["DISPATCHER_MASTER_QUEUE_URL"] + "-dlq"}
    said = run("dlq", "list", settings=settings | gone)
    assert "check DISPATCHER_DEAD_LETTER_QUEUE_URL" in said.stderr


@pytest.mark.parametrize(
    "arguments",
    [["purge", "--yes", "--reason", ""], ["redrive", "--id", ""], ["redrive", "--all", "--id", "x"],
     ["redrive", "--rate", "nan"], ["redrive", "--rate", "inf"], ["redrive", "--rate", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_what_could_mean_something_else_is_refused_before_anything_is_asked(run: Run, arguments: list[str]) -> None:
    """An empty shell variable must not drop everything."""
    said = run("dlq", *arguments)
    assert said.returncode == 2
    assert "--" in said.stderr
