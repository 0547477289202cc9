"""What the process tells, and to whom: no secret, no body, no id where they do not belong."""

import json

from tests.scenarios.world import World, until

SECRET, KEY, TOKEN = "a-secret-access-key-nobody-may-see", "AKIDNOBODYMAYSEE", "a-http-token-nobody-may-see"
BODY_WORD = "what-only-the-worker-may-read"
PATHS = ("/", "/healthz", "/readyz", "/metrics", "/status")


async def test_no_secret_no_body_and_no_id_is_told_by_any_endpoint_or_written_to_the_log_even_at_debug(
    world: World,
) -> None:
    fields = {"model_name": "m", "input_data_url": f"s3://bucket/{BODY_WORD}", "prompt": BODY_WORD}
    bodies = [json.dumps({"request_id": f"id-{n}-to-look-for", **fields}) for n in range(20)]
    await world.send([*bodies, json.dumps({"request_id": "bad-id-to-look-for", "prompt": BODY_WORD})])
    dispatcher = await world.start(
        LOG_LEVEL="debug",
        HTTP_TOKEN=TOKEN,
        AWS_ACCESS_KEY_ID=KEY,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_SESSION_TOKEN=SECRET,
    )
    await world.until_master_is_empty()
    for path in PATHS:
        _, text = await dispatcher.get(path)
        for unwanted in (SECRET, KEY, TOKEN, BODY_WORD, "to-look-for"):
            assert unwanted not in text, (path, unwanted)
    await dispatcher.drain()
    log = dispatcher.log.read_text()
    assert "to-look-for" in log, "ids are in the log: they are how a request is found"
    for unwanted in (SECRET, KEY, TOKEN, BODY_WORD):
        assert unwanted not in log, unwanted


async def test_a_failing_start_tells_no_secret(world: World) -> None:
    dispatcher = await world.start(
        ready=False, LEDGER_TABLE="gone", HTTP_TOKEN=TOKEN, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET
    )
    assert await dispatcher.exit_status() == 1
    for unwanted in (SECRET, KEY, TOKEN):
        assert unwanted not in dispatcher.log.read_text()


async def test_a_hostile_client_s_message_costs_its_own_dead_letter_and_nothing_else(world: World) -> None:
    """Everything that a sender may do to a message, at once; honest mates go on, and the process lives."""
    evil = '"}\n{"event":"message.dispatched","request_id":"forged"}'
    hostile = [
        "[" * 200_000,
        '{"request_id": ' + "9" * 100_000 + "}",
        json.dumps({"request_id": "\u0000", "model_name": evil, "input_data_url": "s3://b/k"}),
        json.dumps({"request_id": "fleet", "model_name": evil, "input_data_url": "https://[::1/" + "x" * 1000}),
        json.dumps({"request_id": "\u0000fleet", "model_name": "m", "input_data_url": "s3://b/k"}),
        '{"request_id": "a", "request_id": "b", "model_name": "m", "input_data_url": "s3://b/k"}',
        "x" * 1_000_000,
        json.dumps({"request_id": "é" * 300, "model_name": "m", "input_data_url": "s3://b/k"}),
        '{"request_id": "\\ud800", "model_name": "m", "input_data_url": "s3://b/k"}',
    ]
    honest = [json.dumps({"request_id": f"h-{n}", "model_name": "m", "input_data_url": "s3://b/k"}) for n in range(30)]
    odd = {
        "dispatcher.generation": {"DataType": "Number", "StringValue": "-1"},
        "dispatcher.region": {"DataType": "String", "StringValue": "mars-1"},
    }
    dispatcher = await world.start(LOG_LEVEL="debug")
    await world.send(honest[:15])
    for body in hostile:
        await world.send([body])
    await world.send([json.dumps({"request_id": "g", "model_name": "m", "input_data_url": "s3://b/k"})], odd)
    await world.send(honest[15:])
    await world.until_master_is_empty()
    assert dispatcher.running
    assert (await dispatcher.get("/healthz"))[0] == 200
    arrived = await world.arrivals()
    assert sorted(arrival.body for arrival in arrived) == sorted(honest)
    letters = await world.dead_letters()
    assert len(letters) == len(hostile) + 1
    assert all(letter.receives <= 2 for letter in letters)
    assert not [line for line in dispatcher.logged("message.dispatched") if line["request_id"] == "forged"]


async def test_more_pollers_than_any_pool_leave_connections_for_sends_and_deletes(world: World) -> None:
    """A receive that hangs comes back full in the end, and another poll opens: none of them takes another's place."""
    bodies = [json.dumps({"request_id": f"r-{n}", "model_name": "m", "input_data_url": "s3://b/k"}) for n in range(600)]
    await world.send(bodies)
    dispatcher = await world.start(POLLERS="100", DRAIN_TIMEOUT_SECONDS="25", MAX_IN_FLIGHT="1000")
    most = 0

    async def all_there() -> bool:
        nonlocal most
        most = max(most, sum(not call.answer for call in world.proxy.made("ReceiveMessage")))
        return await world.forwarded() == 600

    await until(all_there, "all forwarded", every=0.02)
    assert most > 1, "several polls were open at once"
    await world.until_master_is_empty(within=30)
    await dispatcher.kill()
