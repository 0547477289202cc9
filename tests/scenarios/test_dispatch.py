"""What arrives, where, and as what."""

import asyncio
import json
from collections import Counter

from tests.scenarios.world import HOME, REGIONS, World, request, requests, until

OURS = {"request_id", "region", "source_message_id", "dispatched_at", "attempt"}


async def test_300_requests_arrive_exactly_once_in_three_regions(world: World) -> None:
    """The everyday: a backlog and a few more while it runs. Every request is in one Region, with our attributes."""
    early, late = requests(200, "early"), requests(100, "late")
    await world.send(early)
    dispatcher = await world.start()
    await world.send(late)
    await world.until_master_is_empty()
    metrics = await world.assert_accounted_for(dispatcher)
    arrivals = await world.assert_each_once(early + late)

    assert {arrival.region for arrival in arrivals} == set(REGIONS)
    for arrival in arrivals:
        assert {f"dispatcher.{name}" for name in OURS} == set(arrival.attributes)
        assert arrival.text("dispatcher.request_id") == arrival.request_id
        assert arrival.text("dispatcher.region") == arrival.region
        assert arrival.attributes["dispatcher.attempt"] == ("Number", "1")
    assert metrics.total("messages_total", outcome="dispatched") == 300
    by_region = Counter(arrival.region for arrival in arrivals)
    for region in REGIONS:
        assert metrics.total("dispatched_total", target_region=region) == by_region[region]


async def test_bodies_and_attributes_travel_byte_for_byte(world: World) -> None:
    """Odd whitespace, repeated unknown keys, escapes, any script: the body is never re-serialised."""
    bodies = [
        '{ "request_id":"odd-1",\n\t"model_name" : "m",  "input_data_url":"s3://b/k" , "x":1.0e+2 }\n',
        '{"request_id":"odd-2","model_name":"m","input_data_url":"s3://b/k","text":"\\u00e9 é 語 😀"}',
        '{"request_id":"odd-5","model_name":"m","input_data_url":"s3://b/k","metadata":{"\\ud800":"\\udfff"}}',
        '{"request_id":"odd-4","model_name":"m","input_data_url":"s3://b/k","text":"\\/ \\ud83d\\ude00"}',
        '{"input_data_url":"https://h/p?q=1&r=%20","model_name":"m","z":1,"z":2,"big":12345678901234567890.50,'
        '"request_id":"odd-3"}',
        '\r\n {"request_id":"ïd 語 😀","model_name":"m","input_data_url":"s3://b/k"}',
    ]
    attributes = {
        "text": {"DataType": "String", "StringValue": "é 語 😀 & <x>"},
        "number": {"DataType": "Number.float", "StringValue": "1.50"},
        "bytes": {"DataType": "Binary.png", "BinaryValue": bytes(range(256))},
        "dispatcher.region": {"DataType": "String", "StringValue": "moon-1"},
    }
    await world.send(bodies, attributes)
    await world.start()
    await world.until_master_is_empty()
    for arrival in await world.assert_each_once(bodies):
        assert arrival.attributes["text"] == ("String", "é 語 😀 & <x>")
        assert arrival.attributes["number"] == ("Number.float", "1.50")
        assert arrival.attributes["bytes"] == ("Binary.png", bytes(range(256)))
        assert arrival.text("dispatcher.region") == arrival.region


async def test_ten_client_attributes_all_travel(world: World) -> None:
    """SQS allows ten: the client's come first, ours take what room is left."""
    for count in (8, 10):
        attributes = {f"client-{n}": {"DataType": "String", "StringValue": str(n)} for n in range(count)}
        await world.send([request(f"with-{count}")], attributes)
    await world.start()
    await world.until_master_is_empty()
    arrivals = {
        a.request_id: a.attributes for a in await world.assert_each_once([request(f"with-{n}") for n in (8, 10)])
    }
    for count in (8, 10):
        assert {f"client-{n}" for n in range(count)} <= set(arrivals[f"with-{count}"])
        assert len(arrivals[f"with-{count}"]) == 10


async def test_30_bodies_of_200_kb_arrive_intact(world: World) -> None:
    """A batch is bounded by bytes, too."""
    bodies = [request(f"large-{n}", filler=chr(97 + n % 26) * 200_000) for n in range(30)]
    await world.send(bodies)
    await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)


async def test_duplicates_among_three_dispatchers_are_dropped(world: World) -> None:
    """Clients send again, interleaved with other requests, and three dispatchers race for the copies."""
    bodies = requests(100)
    copies = bodies + [body for n, body in enumerate(bodies) for _ in range(n % 3)]
    copies = copies[::3] + copies[1::3] + copies[2::3]
    dispatchers = await asyncio.gather(*(world.start() for _ in range(3)))
    await world.send(copies)
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)
    outcomes: Counter[str] = Counter()
    for dispatcher in dispatchers:
        metrics = await world.assert_accounted_for(dispatcher)
        for outcome in ("dispatched", "duplicate", "held"):
            outcomes[outcome] += int(metrics.total("messages_total", outcome=outcome))
    assert outcomes["dispatched"] == len(bodies)
    assert outcomes["duplicate"] == len(copies) - len(bodies)


async def test_poison_goes_to_the_dead_letter_queue_and_its_mates_do_not(world: World) -> None:
    """Bad messages in the midst of good ones: body untouched, reason attached, nothing else delayed or lost."""
    good = requests(20)
    bad = [
        "not JSON at all",
        "[]",
        '"text"',
        '{"request_id":"x","model_name":"m","input_data_url":"s3://b/k"',
        '{ "model_name":"m", "input_data_url":"s3://b/k" }',
        '{"request_id":7,"model_name":"m","input_data_url":"s3://b/k"}',
        '{"request_id":"","model_name":"m","input_data_url":"s3://b/k"}',
        '{"request_id":"a\\u0000b","model_name":"m","input_data_url":"s3://b/k"}',
        '{"request_id":"\\ud800","model_name":"m","input_data_url":"s3://b/k"}',
        '{"request_id":"one","request_id":"two","model_name":"m","input_data_url":"s3://b/k"}',
        '{"request_id":"x","model_name":"m","input_data_url":"ftp://b/k"}',
        '{"request_id":"x","model_name":"m","input_data_url":"https://[bad/k"}',
        '{"request_id":"x","model_name":"m","input_data_url":"s3://b/k","priority":"urgent"}',
        '{"request_id":"x","model_name":"m","input_data_url":"s3://b/k","timestamp":"2025-13-01T00:00:00Z"}',
        '{"request_id":"' + "x" * 257 + '","model_name":"m","input_data_url":"s3://b/k"}',
        "[" * 100_000,
        '{"request_id":"x","model_name":"m","input_data_url":"s3://b/k","n":' + "9" * 5000 + "x}",
    ]
    await world.send([body for pair in zip(good, bad, strict=False) for body in pair] + good[len(bad) :])
    ten = {f"client-{n}": {"DataType": "String", "StringValue": str(n)} for n in range(10)}
    await world.send(["not JSON, ten attributes"], ten)
    dispatcher = await world.start()
    await world.until_master_is_empty()
    metrics = await world.assert_accounted_for(dispatcher)
    assert metrics.total("messages_total", outcome="rejected") == len(bad) + 1
    assert metrics.total("messages_total", outcome="dispatched") == len(good)

    dead = await world.dead_letters()
    assert Counter(letter.body for letter in dead) == Counter([*bad, "not JSON, ten attributes"])
    assert all(letter.text("dispatcher.rejected_because") for letter in dead)
    crowded = next(letter for letter in dead if "ten attributes" in letter.body)
    assert set(crowded.attributes) == {f"client-{n}" for n in range(9)} | {"dispatcher.rejected_because"}
    await world.assert_each_once(good)


async def test_where_a_queue_takes_less_what_is_ours_stays_out_and_the_message_goes(world: World) -> None:
    """Queues made elsewhere may have SQS's old limit, or one of their own."""
    size = 20_000
    queues = [(HOME, world.resources.master_queue_url), (HOME, world.resources.dead_letter_queue_url)]
    queues += [(region, world.regional(region)) for region in REGIONS]
    for region, url in queues:
        await world.sqs[region].set_queue_attributes(QueueUrl=url, Attributes={"MaximumMessageSize": str(size)})
    full = request("full")
    full = full.replace('"full"', '"full", "filling": "' + "x" * (size - len(full) - 15) + '"')
    assert len(full) == size
    await world.send([full, "x" * size, request("small")])
    await world.start()
    await world.until_master_is_empty()
    arrivals = {arrival.request_id: arrival for arrival in await world.arrivals()}
    assert {name: bool(arrival.attributes) for name, arrival in arrivals.items()} == {"full": False, "small": True}
    (letter,) = await world.dead_letters()
    assert (letter.body, letter.attributes) == ("x" * size, {})


async def test_an_id_used_for_different_work_is_rejected(world: World) -> None:
    """The same id with another model is a client's mistake, not a duplicate: it must not vanish."""
    first, second = request("same"), request("same", model_name="other")
    await world.start()
    await world.send([first])
    await world.until_master_is_empty()
    await world.send([second])
    await world.until_master_is_empty()
    (letter,) = await world.dead_letters()
    assert letter.body == second
    assert "different work" in letter.text("dispatcher.rejected_because")
    await world.assert_each_once([first])


async def test_a_redrive_of_what_was_not_dispatched_is_dispatched(world: World) -> None:
    """Three receives by someone else, the dead-letter queue, an operator's redrive: a new message id, the same work."""
    body = request("redriven")
    await world.send([body])
    url = world.resources.master_queue_url
    for _ in range(4):
        await world.sqs[HOME].receive_message(QueueUrl=url, VisibilityTimeout=0, WaitTimeSeconds=0)
    await world.start()
    (letter,) = await world.dead_letters()
    await world.send([letter.body])
    await world.until_master_is_empty()
    await world.assert_each_once([body])


async def test_a_message_costs_few_calls(world: World) -> None:
    """1000 requests wait, three Regions: at most 0.65 calls to AWS each, depth readings included."""
    bodies = requests(1000)
    await world.send(bodies)
    dispatcher = await world.start(
        VISIBILITY_SECONDS="120", CLAIM_LEASE_SECONDS="90", DEPTH_TTL_SECONDS="60", POLL_WAIT_SECONDS="20"
    )
    await world.until_master_is_empty()
    metrics = await world.assert_accounted_for(dispatcher)

    # polls that are still open are not in the metric yet; those that ended empty are, and wait for no message
    ended = [call.answer for call in world.proxy.made("ReceiveMessage") if call.answer]
    empty_polls = sum(not json.loads(answer).get("Messages") for answer in ended)
    calls = metrics.total("aws_requests_total") - empty_polls
    by_operation = Counter(call.operation for call in world.proxy.calls)
    print(f"{calls / 1000:.3f} calls per message, {empty_polls} empty polls left out; seen: {dict(by_operation)}")
    await world.assert_each_once(bodies)
    assert calls / 1000 <= 0.65


async def test_no_workers_and_no_traffic_stays_ready(world: World) -> None:
    """An idle dispatcher answers all its endpoints."""
    dispatcher = await world.start()
    for path in ("/healthz", "/readyz", "/metrics", "/status"):
        assert (await dispatcher.get(path))[0] == 200, path
    status = await dispatcher.status()
    assert status["state"] == "running"
    assert set(status["regions"]) == set(REGIONS)

    async def shares() -> bool:
        return abs((await dispatcher.metrics()).total("region_share") - 1.0) < 1e-6

    await until(shares, "shares sum to 1")
