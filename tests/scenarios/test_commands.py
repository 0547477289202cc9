"""The commands, as an operator types them, against a real emulator."""

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dispatcher.demo.cloud import Cloud, free_port
from tests.scenarios.conftest import Run
from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import REGIONS, World, request, requests, until


@pytest.fixture
def provisioned(run: Run) -> dict[str, str]:
    made = run("init", "--name", f"t{uuid4().hex[:12]}", "--json")
    assert made.returncode == 0, made.stderr
    settings: dict[str, str] = json.loads(made.stdout)
    return settings


def test_init_prints_settings_that_check_approves_of_and_may_be_repeated(run: Run) -> None:
    name = f"t{uuid4().hex[:12]}"
    first = run("init", "--name", name, "--json")
    assert first.returncode == 0, first.stderr
    assert run("init", "--name", name, "--json").stdout == first.stdout
    exported = run("init", "--name", name).stdout.splitlines()
    settings = json.loads(first.stdout)
    assert exported == [f"export {variable}='{value}'" for variable, value in settings.items()]
    checked = run("check", "--json", settings=settings)
    findings = json.loads(checked.stdout)
    assert [finding for finding in findings if not finding["ok"]] == []
    assert checked.returncode == 0
    assert {"master queue", "dead-letter queue", "ledger", "regional queue us-west-2"} <= {f["what"] for f in findings}


def test_init_refuses_aws_itself(run: Run) -> None:
    refused = run("init", on=None, settings={"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"})
    assert refused.returncode == 1
    assert "amazonaws.com is AWS itself" in refused.stderr
    assert "--yes" in refused.stderr


def test_check_names_what_is_missing_and_goes_on(run: Run, provisioned: dict[str, str]) -> None:
    regions = json.loads(provisioned["DISPATCHER_REGIONS"])
    regions["us-west-2"] += "-gone"
    broken = {"DISPATCHER_REGIONS": json.dumps(regions), "DISPATCHER_LEDGER_TABLE": "no-such-table"}
    checked = run("check", settings=provisioned | broken)
    assert checked.returncode == 1
    failed = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failed] == ["FAIL regional queue us-west-2", "FAIL ledger"]
    assert all("does not exist" in line for line in failed)


def test_check_receives_and_changes_nothing(run: Run, provisioned: dict[str, str]) -> None:
    assert run("submit", "--count", "3", settings=provisioned).returncode == 0
    assert run("check", settings=provisioned).returncode == 0
    checked = run("check", "--json", settings=provisioned)
    master = next(finding for finding in json.loads(checked.stdout) if finding["what"] == "master queue")
    assert "3 visible" in master["detail"]


def test_submit_sends_all_or_says_which_line_is_wrong_and_sends_nothing(
    run: Run, provisioned: dict[str, str], tmp_path: Path
) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(requests(25)) + "\n\n")
    sent = run("submit", str(good), "--json", settings=provisioned)
    assert json.loads(sent.stdout) == {"sent": 25, "sent_before": 0, "failed": 0}
    wrong = run("submit", "-", settings=provisioned, text=request("a") + "\n{}\n")
    assert wrong.returncode == 1
    assert "line 2: request_id: is required" in wrong.stderr
    assert "none was sent" in wrong.stderr
    assert run("submit", settings=provisioned).returncode == 2
    depth = run("check", "--json", settings=provisioned).stdout
    assert "25 visible" in depth


async def test_a_submission_that_was_cut_off_goes_on_where_it_was(world: World, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    twice = requests(1)
    file.write_text("\n".join(requests(40) + twice) + "\n")
    settings = world.resources.environment() | {"AWS_ENDPOINT_URL": world.proxy.endpoint}
    with world.proxy.having(Fault(How.HALF, "SendMessageBatch", times=2)):  # every other one of them is refused
        first = await asyncio.to_thread(run, "submit", str(file), "--json", settings=settings)
    assert first.returncode == 1
    said = json.loads(first.stdout)
    assert said["failed"] == 10
    assert said["sent"] == 31
    ((lines, _),) = re.findall(r"^dispatcher: lines ([0-9, ]+): (the master queue .*)", first.stderr, re.MULTILINE)
    assert len(lines.split(", ")) == 10
    assert "line 41: has the request_id of line 1: it will be dropped as a duplicate" in first.stderr
    with file.open("a") as more:  # what is added meanwhile is sent, too
        more.write(request("late") + "\n")
    second = await asyncio.to_thread(run, "submit", str(file), "--json", settings=settings)
    assert json.loads(second.stdout) == {"sent": 11, "sent_before": 31, "failed": 0}
    assert not file.with_name("r.jsonl.sent").exists()
    arrived = sorted(arrival.body for arrival in await world.left_in_master())
    assert arrived == sorted([*requests(40), *twice, request("late")])


async def test_a_submission_that_is_killed_sends_next_to_nothing_twice(world: World, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(requests(400)) + "\n")
    settings = world.resources.environment() | {"AWS_ENDPOINT_URL": world.proxy.endpoint}

    def written() -> int:
        return len(re.findall("^[0-9a-f]{32}$", journal.read_text(), re.MULTILINE)) if journal.exists() else 0

    journal = file.with_name("r.jsonl.sent")
    with world.proxy.having(Fault(How.DELAY, "SendMessageBatch", seconds=1.0)):
        environment = {**os.environ, **world.cloud.environment, **settings}
        argv = [sys.executable, "-m", "dispatcher", "submit", str(file)]
        victim = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)  # noqa: ASYNC220  it is started at once
        await until(lambda: written() >= 80, "some were sent")
        victim.kill()
        victim.wait()
    known = written()
    journal.write_text(journal.read_text() + "torn")
    second = await asyncio.to_thread(run, "submit", str(file), "--json", settings=settings)
    assert json.loads(second.stdout) == {"sent": 400 - known, "sent_before": known, "failed": 0}
    arrived = [arrival.body for arrival in await world.left_in_master()]
    assert set(arrived) == set(requests(400))
    assert len(arrived) <= 400 + 100, "no more than was under way is sent again, and the ledger drops it"


async def test_a_journal_is_for_one_queue_one_purpose_and_one_submission_at_a_time(
    world: World, run: Run, tmp_path: Path
) -> None:
    file, journal = tmp_path / "r.jsonl", tmp_path / "r.jsonl.sent"
    file.write_text("\n".join(requests(20)) + "\n")
    settings = world.resources.environment() | {"AWS_ENDPOINT_URL": world.proxy.endpoint}

    async def submit(*more: str, **settings_too: str) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(run, "submit", str(file), "--json", *more, settings=settings | settings_too)

    with world.proxy.having(Fault(How.HALF, "SendMessageBatch", times=2)):
        assert (await submit("--again")).returncode == 1
    header = json.loads(journal.read_text().splitlines()[0])["dispatcher submit"]
    elsewhere = await submit(
        DISPATCHER_MASTER_QUEUE_URL=world.resources.dead_letter_queue_url,
        DISPATCHER_DEAD_LETTER_QUEUE_URL=world.resources.master_queue_url,
    )
    assert (elsewhere.returncode, "is of a submission to" in elsewhere.stderr) == (2, True)
    plainly = await submit()
    assert (plainly.returncode, "is of a submission with --again" in plainly.stderr) == (2, True)
    with journal.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        at_work = await submit("--again")
        assert (at_work.returncode, "another submission is at work" in at_work.stderr) == (1, True)
    assert json.loads((await submit("--again")).stdout) == {"sent": 10, "sent_before": 10, "failed": 0}
    generations = {arrival.text("dispatcher.generation") for arrival in await world.left_in_master()}
    assert generations == {str(header["generation"])}, "one submission, one generation, however often it was cut off"


@pytest.mark.parametrize("kind", ["the file itself", "somebody's notes", "a folder", "a device"])
def test_what_is_no_journal_is_neither_written_nor_removed(
    run: Run, provisioned: dict[str, str], tmp_path: Path, kind: str
) -> None:
    file, notes = tmp_path / "r.jsonl", tmp_path / "notes.txt"
    file.write_text("\n".join(requests(3)) + "\n")
    notes.write_text("remember the milk\n")
    named = {
        "the file itself": file,
        "somebody's notes": notes,
        "a folder": tmp_path / "d",
        "a device": Path("/dev/full"),
    }
    (tmp_path / "d").mkdir()
    before = file.read_text(), notes.read_text()
    refused = run("submit", str(file), "--journal", str(named[kind]), settings=provisioned)
    assert refused.returncode == 2, refused.stderr
    assert (file.read_text(), notes.read_text()) == before


def test_lines_come_from_pipes_too_and_what_sqs_refuses_is_said_before_anything_is_sent(
    provisioned: dict[str, str], run: Run, tmp_path: Path, ministack: Cloud
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(("\ufeff" + "\r\n".join(requests(3))).encode())  # as Windows' editors save it
    piped = f"{sys.executable} -m dispatcher submit --json <(cat {file})"
    environment = {**os.environ, **ministack.environment, **provisioned}
    sent = subprocess.run(["bash", "-c", piped], env=environment, capture_output=True, text=True, timeout=100)
    assert json.loads(sent.stdout)["sent"] == 3, sent.stderr
    file.write_text(requests(1)[0] + "\n" + request("odd", metadata={}).replace("gpt", "\uffff") + "\n")
    odd = run("submit", str(file), settings=provisioned)
    assert (odd.returncode, "line 2: SQS takes no '\\uffff'" in odd.stderr) == (1, True)


async def test_status_shows_regions_and_the_life_of_one_request(world: World, run: Run) -> None:
    dispatcher = await world.start()
    await world.send(requests(12))
    await world.until_master_is_empty()
    settings = world.resources.environment()
    regions = json.loads(run("status", "--json", settings=settings).stdout)["regions"]
    assert sum(region["depth"] for region in regions.values()) == 12
    assert abs(sum(region["share"] for region in regions.values()) - 1) < 0.01
    assert all(name in run("status", settings=settings).stdout for name in regions)
    item = json.loads(run("status", "r-0003", "--json", settings=settings).stdout)
    assert item["state"] == "dispatched"
    assert item["region"] in regions
    elsewhere = json.loads(settings["DISPATCHER_REGIONS"])
    elsewhere["eu-west-1"] += "-gone"
    unread = settings | {"DISPATCHER_REGIONS": json.dumps(elsewhere)}
    gone = json.loads(run("status", "--json", settings=unread).stdout)["regions"]["eu-west-1"]
    assert gone["health"] == "unreadable"
    told = [gone[name] for name in ("depth", "share", "projected_wait_seconds", "budget")]
    assert told == [None] * 4, "nothing of what the others remember"
    unknown = run("status", "nobody", settings=settings)
    assert (unknown.returncode, "knows no request" in unknown.stderr) == (1, True)
    healthy = run("healthcheck", settings={"DISPATCHER_HTTP_PORT": str(dispatcher.port)})
    assert healthy.returncode == 0, healthy.stderr
    nobody = run("healthcheck", settings={"DISPATCHER_HTTP_PORT": str(free_port())})
    assert nobody.returncode == 1


async def test_logs_are_json_lines_with_ids_and_never_a_body(world: World) -> None:
    dispatcher = await world.start(LOG_LEVEL="debug")
    await world.send([*requests(10), '{"secret": "do-not-log"}', request("r-1", metadata={"secret": "do-not-log"})])
    await world.until_master_is_empty()
    await dispatcher.drain()
    lines = dispatcher.log.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    dispatched = [event for event in events if event["event"] == "message.dispatched"]
    assert len(dispatched) == 11
    assert all(event["request_id"] and event["region"] for event in dispatched)
    assert "do-not-log" not in "\n".join(lines)
    assert "s3://inputs" not in "\n".join(lines)


@pytest.mark.parametrize("kind", ["ministack", "moto"])
def test_the_demo_accounts_for_every_request(run: Run, kind: str) -> None:
    settings = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    settings |= {"DISPATCHER_EMULATOR": "/nowhere"} if kind == "moto" else {}
    shown = run("demo", "--requests", "150", "--seed", "7", "--json", on=None, settings=settings)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    summary: dict[str, Any] = json.loads(shown.stdout)
    assert summary["emulator"] == kind
    assert summary["messages"] == 150
    assert summary["served"] == summary["requests"] == sum(summary["dispatched"].values())
    assert (summary["lost"], summary["dispatched_twice"]) == (0, 0)
    assert summary["duplicates_dropped"] == summary["duplicates_sent"]
    assert sum(summary["rejected"].values()) == summary["rejected_sent"]
    assert "Spot took" in shown.stderr
    assert "the page: http://127.0.0.1:" in shown.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_a_demo_that_is_ended_leaves_no_process_behind(number: signal.Signals) -> None:
    mark = f"DEMO={uuid4().hex}"

    def left() -> int:
        found = 0
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it ended meanwhile
                found += mark.encode() in environment.read_bytes()
        return found

    demo = subprocess.Popen(  # noqa: ASYNC220  it is started at once
        [sys.executable, "-m", "dispatcher", "demo"],
        env={**os.environ, "DEMO": mark.removeprefix("DEMO=")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout
    assert "the page: " in await asyncio.to_thread(demo.stdout.readline)
    assert "sent" in await asyncio.to_thread(demo.stdout.readline)
    assert left() == 3
    demo.send_signal(number)
    said, _ = await asyncio.to_thread(demo.communicate, timeout=60)
    assert "Traceback" not in said
    assert demo.returncode == (-number if number == signal.SIGKILL else 1)
    await until(lambda: left() == 0, "no process is left")


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (("init", "--regions", ""), {}, "name at least one"),
        (("init", "--regions", "us-east-1,xx"), {}, "'xx' is not the name of an AWS Region"),
        (("init", "--home-region", "foo bar"), {}, "not the name of an AWS Region"),
        (("init", "--name", "a b"), {}, "--name"),
        (("init",), {"AWS_ENDPOINT_URL": "nonsense"}, "nonsense"),
        (("init",), {"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_and_nothing_is_made(
    run: Run, arguments: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    ended = run(*arguments, settings=settings)
    assert ended.returncode in (1, 2)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_status_of_nothing_that_answers_is_no_success(run: Run, provisioned: dict[str, str]) -> None:
    nobody = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    shown = run("status", settings=provisioned | nobody)
    assert shown.returncode == 1
    assert "unreadable" in shown.stdout
    assert "None" not in shown.stdout


async def test_what_is_recorded_of_a_live_system_can_be_simulated(world: World, run: Run, tmp_path: Path) -> None:
    """A few seconds of it: depths, and what all dispatchers sent."""
    await world.start()
    settings = world.resources.environment()
    file = tmp_path / "live.jsonl"
    recording = asyncio.create_task(
        asyncio.to_thread(run, "record", str(file), "--minutes", "0.1", "--every", "1", "--json", settings=settings)
    )
    rounds = 0
    while not recording.done():  # workers are at work for as long as it is recorded, however slow the machine is
        await world.send(requests(6, f"s{rounds}"))
        for region in REGIONS:
            await world.take(region)
        await asyncio.sleep(0.5)
        rounds += 1
    said = await recording
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["frames"] == 7
    frames = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(frame["regions"].keys() == set(REGIONS) for frame in frames)
    assert 0 < sum(region["sent"] for region in frames[-1]["regions"].values()) <= 6 * rounds
    before = file.read_text()
    again = run("record", str(file), settings=settings)
    assert (again.returncode, f"{file} exists" in again.stderr, file.read_text()) == (1, True, before)
    played = run("simulate", "recorded", "--file", str(file), "--json")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout)["policies"]["projected-wait"]["messages"] > 0


def test_a_recording_names_at_once_and_once_each_region_that_it_lacks(
    run: Run, provisioned: dict[str, str], tmp_path: Path
) -> None:
    file, regions = tmp_path / "live.jsonl", json.loads(provisioned["DISPATCHER_REGIONS"])
    gone = {"DISPATCHER_REGIONS": json.dumps(regions | {"eu-west-1": regions["eu-west-1"] + "-gone"})}
    said = run("record", str(file), "--minutes", "0.05", "--every", "2", settings=provisioned | gone)
    assert said.stderr.count("eu-west-1 cannot be read: it does not exist (missing: ") == 1
    assert said.stdout == f"2 frames in {file}; 2 lack a Region\n"


def test_a_recording_that_cannot_begin_leaves_no_file(run: Run, provisioned: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "live.jsonl"
    said = run("record", str(file), settings=provisioned | {"DISPATCHER_LEDGER_TABLE": "nothing"})
    assert (said.returncode, file.exists()) == (1, False), said.stderr
    assert "the table nothing: it does not exist (missing: " in said.stderr
    assert "check DISPATCHER_LEDGER_TABLE" in said.stderr


@pytest.mark.parametrize("end", ["produce", "workers"])
def test_neither_end_for_trying_out_touches_aws_itself(run: Run, provisioned: dict[str, str], end: str) -> None:
    aws = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    refused = run("dev", end, on=None, settings=provisioned | aws)
    assert refused.returncode == 1
    assert "amazonaws.com is AWS itself" in refused.stderr


async def test_both_ends_for_trying_out_send_and_serve_until_they_are_stopped(world: World, tmp_path: Path) -> None:
    environment = {**os.environ, **world.cloud.environment, **world.resources.environment()}

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "dev", *arguments], env=environment, stdout=log, stderr=log
            )

    dispatcher = await world.start()
    producer, workers = start("produce", "--rate", "60", "--seed", "1"), start("workers")
    try:

        async def dispatched() -> float:
            return (await dispatcher.metrics()).total("dispatched_total")

        async def many() -> bool:
            return await dispatched() > 100

        async def all_served() -> bool:
            counts = [await world.counts(region, world.regional(region)) for region in REGIONS]
            return not any(map(sum, counts))

        await until(many, "a hundred dispatched")
        producer.terminate()
        assert await asyncio.to_thread(producer.wait, 20) == 0
        await world.until_master_is_empty()
        await until(all_served, "every queue is empty")
        workers.terminate()
        assert await asyncio.to_thread(workers.wait, 20) == 0
        assert (await dispatcher.metrics()).total("messages_total", outcome="rejected") > 0  # bad ones are among them
        assert "stopped" in (tmp_path / "workers.log").read_text()
    finally:
        producer.kill()
        workers.kill()
