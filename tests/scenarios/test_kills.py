"""kill -9, and a process that is frozen and thawed: nothing lost, and extra at most what was being sent."""

import asyncio
import signal
from functools import partial

import pytest

from tests.scenarios.proxy import Fault, How
from tests.scenarios.world import World, ids_sent, request, requests, until

CLAIM, CONFIRM = "INSERT INTO", "UPDATE "


async def test_a_kill_between_claim_and_send_loses_and_repeats_nothing(world: World) -> None:
    """The dispatcher dies while it waits for the answer to its claims. The next one takes over after the lease."""
    bodies = requests(40)
    await world.send(bodies)
    with world.proxy.having(Fault(How.HANG_DONE, "BatchExecuteStatement", containing=CLAIM)) as fault:
        first = await world.start()
        await until(lambda: fault.answers, "claims written")
        await first.kill()
    assert not world.proxy.made("SendMessageBatch")
    second = await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)
    metrics = await world.assert_accounted_for(second)
    assert metrics.total("claims_total", outcome="taken_over") > 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(How.HANG_DONE, "SendMessageBatch"),
        Fault(How.HANG, "BatchExecuteStatement", containing=CONFIRM),
    ],
    ids=["answer-not-seen", "confirmation-unwritten"],
)
async def test_a_kill_between_send_and_confirm_repeats_only_those_in_the_same_region(
    world: World, fault: Fault
) -> None:
    """The one window: a Region has the message and the ledger does not know. The copy goes to the same Region."""
    bodies = requests(60)
    await world.send(bodies)
    sends: set[str] = set()
    with world.proxy.having(fault):
        first = await world.start()
        await until(world.forwarded, "something forwarded")
        await until(lambda: fault.hits >= 1, "the window open")
        await first.kill()
        for call in world.proxy.made("SendMessageBatch"):
            sends |= ids_sent(call.body)
    assert sends
    second = await world.start()
    await world.until_master_is_empty()
    arrivals = await world.assert_each_once(bodies, extra=sends)
    metrics = await world.assert_accounted_for(second)
    assert metrics.total("claims_total", outcome="taken_over") >= len(arrivals) - len(bodies), "copies are counted"


async def test_a_kill_between_confirm_and_delete_repeats_nothing(world: World) -> None:
    """Everything is dispatched and confirmed, nothing deleted: what comes again is proven to be a duplicate."""
    bodies = requests(60)
    await world.send(bodies)
    with world.proxy.having(Fault(How.HANG, "DeleteMessageBatch")):
        first = await world.start(LOG_LEVEL="debug")
        await until(lambda: len(first.logged("message.dispatched")) == len(bodies), "everything confirmed")
        await first.kill()
    second = await world.start()
    await world.until_master_is_empty()
    await world.assert_each_once(bodies)
    metrics = await world.assert_accounted_for(second)
    assert metrics.total("messages_total", outcome="duplicate") == len(bodies)


async def test_kills_at_any_moment_lose_nothing(world: World) -> None:
    """Two dispatchers, killed by turns under load. At most what was sent unconfirmed is there twice."""

    def sent_more_than(count: int) -> bool:
        return len(world.proxy.made("SendMessageBatch")) > count

    await world.allow_receives(10)  # three deaths may spend three of them
    bodies = requests(240)
    slow = Fault(How.DELAY_DONE, "SendMessageBatch", seconds=0.15)
    sends: set[str] = set()
    running = list(await asyncio.gather(world.start(), world.start()))
    with world.proxy.having(slow):
        for turn in range(3):
            await world.send(bodies[turn * 80 : (turn + 1) * 80])
            before = len(world.proxy.made("SendMessageBatch"))
            await until(partial(sent_more_than, before), "sends under way", every=0.02)
            await running.pop(0).kill()
            running.append(await world.start())
        for call in world.proxy.made("SendMessageBatch"):
            sends |= ids_sent(call.body)
        await world.until_master_is_empty()
    arrivals = await world.assert_each_once(bodies, extra=sends)
    extra = len(arrivals) - len(bodies)
    print(f"{extra} extra after 3 kills")
    assert extra <= 3 * 80


async def test_a_frozen_dispatcher_that_thaws_neither_sends_nor_confirms_what_was_taken_over(world: World) -> None:
    """SIGSTOP between claim and send, longer than lease and visibility; another dispatches; SIGCONT: fenced."""
    bodies = requests(20)
    await world.send(bodies)
    with world.proxy.having(Fault(How.DELAY_DONE, "BatchExecuteStatement", containing=CLAIM, seconds=0.5)) as fault:
        frozen = await world.start()
        await until(lambda: fault.answers, "claims written", every=0.01)
        frozen.signal(signal.SIGSTOP)
    already = {request_id for call in world.proxy.made("SendMessageBatch") for request_id in ids_sent(call.body)}
    await world.start()
    await world.until_master_is_empty()
    frozen.signal(signal.SIGCONT)
    await frozen.ready()
    await world.assert_accounted_for(frozen)
    await world.assert_each_once(bodies, extra=already)
    later = request("after-the-thaw")
    await world.send([later])
    await world.until_master_is_empty()
    await world.assert_each_once([later])
