"""What went wrong for users of neighbouring systems, played on the whole dispatcher (docs/guarantees.md lists them)."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.fakes.aws import refusal
from tests.virtual_time import run_virtual
from tests.world.wire import Call, Kind, Spell
from tests.world.world import EPOCH_S, REGIONS, SHORT, TABLE, World, story, text

TEN_MINUTES_S = 600.0
CONTRACT = {
    "visibility_seconds": 120,
    "claim_lease_seconds": 90,
    "poll_wait_seconds": 20,
    "depth_ttl_seconds": 60,
    "drain_timeout_seconds": 100,
    "pollers": 2,
}
"""The defaults that an operator has."""


def spell(world: World, kind: Kind, operation: str, lasts_s: float, region: str = "", chance: float = 1.0) -> Spell:
    now = world.aws.now()
    return world.weather(Spell(kind, now, now + lasts_s, operation, region, chance=chance))


@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.HALF])
def test_a_receive_that_fails_in_any_way_is_asked_again_ever_less_often_and_stops_nothing(kind: Kind) -> None:
    async def main() -> None:
        async with story() as here:
            process = here.start()
            await asyncio.sleep(5)
            before = here.wire.calls
            spell(here, kind, "receive_message", 150)
            for number in range(30):
                here.submit(f"r{number}")
                await asyncio.sleep(5)
                assert process.app
                assert process.app.heartbeats.stuck() == [], "it lives, whatever is answered"
            assert here.wire.calls - before < 150 * 15, "and does not spin"

    run_virtual(main())


def test_a_message_that_meets_drain_after_drain_is_no_dead_letter() -> None:
    async def main() -> None:
        async with story(**CONTRACT) as here:
            ids = []
            for turn in range(4):
                process = here.start()
                await asyncio.sleep(3)
                process.drain()
                await asyncio.sleep(1)
                ids.append(here.submit(f"r{turn}"))
                await process.ended.wait()
            assert [here.spent(message_id) for message_id in ids] == [1, 1, 1, 1]
            assert not here.dead_letters.messages

    run_virtual(main())


@pytest.mark.parametrize("what", ["confirmations", "sends"])
def test_a_twin_outlasts_a_claim_that_lives_for_ten_minutes_with_two_of_its_receives(what: str) -> None:
    async def main() -> None:
        async with story(**CONTRACT) as here:
            here.start()
            await asyncio.sleep(2)
            if what == "sends":
                spell(here, Kind.RESET, "send_message_batch", TEN_MINUTES_S)
            else:
                spell(here, Kind.REFUSED, "batch_execute_statement", TEN_MINUTES_S, chance=0.97)
            first = here.submit("r")
            await asyncio.sleep(1)
            twins = [here.submit("r") for _ in range(3)]
            await asyncio.sleep(TEN_MINUTES_S)
            assert max(here.spent(message_id) for message_id in (first, *twins)) <= 2
            assert not here.dead_letters.messages

    run_virtual(main())


def test_a_twin_that_is_kept_gives_way_to_a_drain() -> None:
    async def main() -> None:
        async with story(**CONTRACT) as here:
            first = here.start()
            await asyncio.sleep(2)
            first.life.dies = lambda point, number: point == "send_message_batch:asked"
            here.submit("r")
            assert await here.until(lambda: first.life.dead, 20)
            here.submit("r")
            second = here.start()
            await asyncio.sleep(20)
            for message in here.master.messages.values():  # as if it had been received before
                message.receives += 1
            twins = [here.submit("r")]
            for twin in twins:
                here.master.messages[twin].receives = 1
            await asyncio.sleep(25)
            began = here.aws.now()
            second.drain()
            await second.ended.wait()
            assert here.aws.now() - began <= 25, "an open poll's time, not the other claim's"

    run_virtual(main())


def test_twins_that_are_kept_leave_the_slots_to_others() -> None:
    async def main() -> None:
        async with story(**{**CONTRACT, "max_in_flight": 20}) as here:
            first = here.start()
            await asyncio.sleep(2)
            first.life.dies = lambda point, number: point == "send_message_batch:asked"
            here.submit("r")
            assert await here.until(lambda: first.life.dead, 20)
            here.start()
            await asyncio.sleep(2)
            for _ in range(30):
                here.master.messages[here.submit("r")].receives = 1
            await asyncio.sleep(3)
            new = here.submit("new")
            assert await here.until(lambda: new not in here.master.messages, 30), "twins do not keep it waiting"

    run_virtual(main())


@pytest.mark.parametrize("fails_s", [4.0, 60.0])
def test_deletes_that_fail_while_draining_are_tried_again_or_left_to_be_duplicates(fails_s: float) -> None:
    async def main() -> None:
        async with story() as here:
            process = here.start()
            await asyncio.sleep(2)
            spell(here, Kind.REFUSED, "delete_message_batch", fails_s)
            for number in range(20):
                here.submit(f"r{number}")
            await asyncio.sleep(0.5)
            process.drain()
            await process.ended.wait()
            assert len(here.arrived) == 20
            left = len(here.master.messages)
            assert left == (0 if fails_s < 10 else 20)
            here.wire.clear()
            second = here.start()
            await here.until(lambda: not here.master.messages, 60)
            await asyncio.sleep(1)
            assert second.outcomes() == ({"duplicate": left} if left else {})
            assert len(here.arrived) == 20

    run_virtual(main())


def test_a_thousand_held_messages_are_all_kept_by_few_calls_though_these_are_slow() -> None:
    lasts_s = 150.0

    async def main() -> None:
        async with story(**{**CONTRACT, "max_in_flight": 1000, "pollers": 8}) as here:
            here.start()
            await asyncio.sleep(2)
            spell(here, Kind.REFUSED, "update_item", lasts_s)  # no takeover and no renewal gets through
            spell(here, Kind.SLOW, "change_message_visibility_batch", lasts_s)
            confirms = spell(here, Kind.REFUSED, "batch_execute_statement", lasts_s)
            confirms.begins += 0.06  # claims of the first moment are written, their confirmations are not
            ids = [here.submit(f"r{number}") for number in range(1200)]
            calls = 0

            leaves = here.wire.leaves

            def counting(call: Call) -> None:
                nonlocal calls
                calls += call.operation == "change_message_visibility_batch"
                leaves(call)

            here.wire.leaves = counting
            await asyncio.sleep(lasts_s - 10)
            spent = [here.spent(message_id) for message_id in ids]
            held = sum(count > 0 for count in spent)
            assert held >= 500, "half of the slots"
            assert max(spent) == 1
            assert calls <= held / 10 * (lasts_s / 45 + 3) * 2, "each once in 45 s, and in batches"

    run_virtual(main())


@pytest.mark.parametrize("state", ["claimed", "lapsed", "released", "rejected", "dispatched"])
def test_a_redriven_message_is_dispatched_unless_its_request_was(state: str) -> None:
    async def main() -> None:
        async with story() as here:
            body = json.dumps({"request_id": "r", "model_name": "m", "input_data_url": "s3://bucket/key"})
            here.submit("r")
            first = here.start()
            await here.until(lambda: "r" in here.aws.tables[TABLE], 10)
            await here.until(lambda: not here.master.messages, 10)
            first.kill()
            item = here.aws.tables[TABLE]["r"]
            until = here.epoch() + (3.0 if state == "claimed" else -1.0)
            written = {
                "claimed": {"state": {"S": "claimed"}, "lease_end": {"N": f"{until:.3f}"}},
                "lapsed": {"state": {"S": "claimed"}, "lease_end": {"N": f"{until:.3f}"}},
                "released": {"state": {"S": "released"}},
                "rejected": {"state": {"S": "rejected"}},
                "dispatched": {},
            }[state]
            here.aws.tables[TABLE]["r"] = item | written
            here.sends.clear()  # what this story begins with
            here.writes.clear()
            redriven = here.master.put(
                body, {"dispatcher.rejected_because": {"DataType": "String", "StringValue": "?"}}
            )
            here.requests["r"].message_ids.append(redriven)
            second = here.start()
            await here.until(lambda: not here.master.messages, 60)
            await here.until(second.outcomes, 10)
            assert ("dispatched" in second.outcomes()) == (state != "dispatched")
            assert len(here.arrived) == (state != "dispatched")
            if state == "dispatched":
                assert second.outcomes() == {"duplicate": 1}, "said, and not silently swallowed"
                here.requests.clear()
            if state == "claimed":
                assert here.arrived[0].left_at + EPOCH_S > until, "not before the other claim is over"

    run_virtual(main())


@pytest.mark.parametrize("skew_s", [300.0, -300.0])
def test_a_clock_that_is_five_minutes_off_steals_no_claim_and_keeps_none_for_ever(skew_s: float) -> None:
    async def main() -> None:
        async with story(**CONTRACT) as here:
            here.submit("r")
            first = here.start(skew_s=-skew_s)
            first.life.dies = lambda point, number: "send_message_batch" in point
            assert await here.until(lambda: first.life.dead, 60)
            lease_end = float(text(here.aws.tables[TABLE]["r"], "lease_end")) - EPOCH_S
            here.submit("r")
            here.start(skew_s=skew_s)
            assert await here.until(lambda: here.arrived, 300)
            assert lease_end - 1 <= here.arrived[0].left_at <= lease_end + 125

    run_virtual(main())


@pytest.mark.parametrize("how", ["refused", "lost", "taken over"])
def test_a_second_try_carries_body_attributes_and_trace_as_the_first_did(how: str) -> None:
    async def main() -> None:
        async with story() as here:
            body = '{"request_id":"r" ,  "model_name":"m","input_data_url":"s3://b/k","x":"\\u00e9 é"}'
            attributes: dict[str, dict[str, Any]] = {
                f"a{n}": {"DataType": "String", "StringValue": str(n)} for n in range(4)
            }
            attributes["bytes"] = {"DataType": "Binary", "BinaryValue": b"\x00\xff"}
            trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-abc"}}
            first = here.start()
            await asyncio.sleep(2)
            if how == "taken over":
                first.life.dies = lambda point, number: point == "send_message_batch:answered"
            else:
                kind = Kind.REFUSED if how == "refused" else Kind.RESET
                here.weather(Spell(kind, 0, 1000, "send_message_batch", most=1))
            here.master.put(body, attributes, trace)
            if how == "taken over":
                assert await here.until(lambda: first.life.dead, 20)
                here.start()
            assert await here.until(lambda: not here.master.messages, 60)
            assert len(here.sends) == 2
            copies = [(region, m) for region in REGIONS for m in here.regional[region].messages.values()]
            assert copies
            for region, message in copies:
                assert message.body == body
                assert {n: v for n, v in message.attributes.items() if not n.startswith("dispatcher.")} == attributes
                assert message.attributes["dispatcher.region"]["StringValue"] == region
                assert message.system == trace

    run_virtual(main())


def test_while_no_depth_can_be_read_nothing_is_received_or_sent_and_the_reason_says_so() -> None:
    async def main() -> None:
        async with story(depth_ttl_seconds=4) as here:
            process = here.start()
            here.submit("before")
            assert await here.until(lambda: here.arrived, 20)
            spell(here, Kind.REFUSED, "get_queue_attributes", 60)
            await asyncio.sleep(20)
            sent = len(here.sends)
            late = [here.submit(f"r{number}") for number in range(50)]
            await asyncio.sleep(30)
            assert len(here.sends) == sent
            assert [here.spent(message_id) for message_id in late] == [0] * 50
            assert process.app
            process.app.pulse.show()
            assert process.value("holding") == 1
            assert process.app.gate.holding() == "no Region's depth is known"
            await asyncio.sleep(20)
            assert not here.master.messages

    run_virtual(main())


@pytest.mark.parametrize(
    "code", ["ProvisionedThroughputExceededException", "AccessDeniedException", "ResourceNotFoundException"]
)
def test_ten_minutes_without_a_table_delete_nothing_and_spend_nothing_whatever_its_excuse(code: str) -> None:
    async def main() -> None:
        async with story(**CONTRACT) as here:
            here.start()
            await asyncio.sleep(2)
            do = here.aws.do

            def refusing(region: str, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
                if operation in ("batch_execute_statement", "put_item", "update_item", "get_item", "batch_get_item"):
                    raise refusal(code, operation)
                return do(region, operation, parameters)

            here.aws.do = refusing  # type: ignore[method-assign]  # the outage
            ids = [here.submit(f"r{number}") for number in range(300)]
            await asyncio.sleep(TEN_MINUTES_S)
            assert len(here.master.messages) == 300
            assert not here.sends
            assert sum(here.spent(message_id) for message_id in ids) < 60, "intake stops at once"
            here.aws.do = do  # type: ignore[method-assign]  # its end
            assert await here.until(lambda: not here.master.messages, 120), "and comes back by itself"
            assert {here.spent(message_id) for message_id in ids} == {1}

    run_virtual(main())


HOLDS = {
    "overload": ("", None),
    "table outage": ("batch_execute_statement", Kind.FAILED),
    "sends refused": ("send_message_batch", Kind.REFUSED),
    "sends hang": ("send_message_batch", Kind.HANG),
    "no Region can be reached": ("send_message_batch", Kind.UNREACHABLE),
}


@pytest.mark.parametrize("flaps", [False, True], ids=["steady", "flapping"])
@pytest.mark.parametrize("what", list(HOLDS))
def test_holding_for_ten_minutes_spends_one_receive_at_most_and_makes_no_dead_letters(what: str, flaps: bool) -> None:
    """Two dispatchers, the operator's own settings, messages all the while; the trouble stands, or comes and goes."""

    async def main() -> None:
        operation, kind = HOLDS[what]
        threshold = {"overload_threshold": 12} if what == "overload" else {}
        async with story(**CONTRACT, **threshold) as here:
            processes = [here.start(skew_s=skew) for skew in (300.0, -300.0)]
            await asyncio.sleep(2)
            ends = here.aws.now() + TEN_MINUTES_S
            ids = []
            number = 0
            while here.aws.now() < ends:
                if kind:
                    now = here.aws.now()
                    here.weather(Spell(kind, now, min(ends, now + (12 if flaps else 40)), operation))
                elif flaps and number % 32 == 0:  # workers take what there is, and no more for a while
                    for queue in here.regional.values():
                        queue.clear()
                for _ in range(8):
                    ids.append(here.submit(f"r{number}"))
                    number += 1
                await asyncio.sleep(25 if flaps else 40)
            before = [here.spent(message_id) for message_id in ids]
            assert max(before) <= 1, "no more than the one with which it came"
            assert not here.dead_letters.messages
            here.wire.clear()
            for region in REGIONS:
                here.work(region, 20.0)
            assert await here.until(lambda: not here.master.messages, 300)
            assert max(here.spent(message_id) for message_id in ids) <= 1 + max(before)
            assert not here.dead_letters.messages
            assert all(process.alive for process in processes)

    run_virtual(main())


def test_a_trouble_is_told_as_long_as_it_lasts_and_no_longer_however_many_others_there_are() -> None:
    async def main() -> None:
        async with story() as here:
            process = here.start()
            await asyncio.sleep(5)
            assert process.app
            told = process.app._status
            assert told()["troubles"] == {}
            spell(here, Kind.UNREACHABLE, "", 300)
            await asyncio.sleep(10)
            for _ in range(29):
                assert set(told()["troubles"]) == {"the master queue", "the ledger", "the depth of the master queue"}
                await asyncio.sleep(10)
            here.submit("r")
            assert await here.until(lambda: not told()["troubles"], SHORT["depth_ttl_seconds"] / 4 * 1.2 + 1)

    run_virtual(main())
