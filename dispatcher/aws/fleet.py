"""The one item in which dispatchers tell each other what they have sent (docs/routing.md, "The fleet").

Each sets its own attribute and reads everyone's in the same answer, so each sees every report that was written before
its own. A write that is repeated changes nothing, and one that comes late is refused: reports are numbered.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from dispatcher.aws.clients import Caller
from dispatcher.clock import Clock
from dispatcher.model import Depth, Region
from dispatcher.policy.fleet import Point, Report

KEY = "\x00fleet"  # no request has it: ids are printable


class FleetItem:
    """Times are loop time here and epoch seconds, on AWS's clock, in the item."""

    def __init__(self, table: str, caller: Caller, clock: Clock) -> None:
        self._table = table
        self._caller = caller
        self._clock = clock
        self.name = uuid4().hex[:12]
        self._number = 0

    async def exchange(self, report: Report, forgotten: Sequence[str]) -> dict[str, Report]:
        """Write our report, take the forgotten ones out, and return all others as they were at that moment.

        Raises AwsError: then it may have been written or not, or may still be.
        """
        self._number += 1
        names = {f"#f{n}": name for n, name in enumerate(forgotten)}
        removal = f" REMOVE {', '.join(names)}" if names else ""
        answer = await self._caller(
            "update_item",
            TableName=self._table,
            Key={"request_id": {"S": KEY}},
            UpdateExpression=f"SET #me = :report{removal}",
            ConditionExpression="attribute_not_exists(#me) OR #me.#number <= :number",
            ExpressionAttributeNames={"#me": self.name, "#number": "number", **names},
            ExpressionAttributeValues={":report": self._written(report), ":number": {"N": str(self._number)}},
            ReturnValues="ALL_NEW",
        )
        others = {n: v for n, v in (answer.get("Attributes") or {}).items() if n not in ("request_id", self.name)}
        return self._read(others)

    async def look(self) -> dict[str, Report]:
        """Return everyone's reports without one of our own. Raises AwsError."""
        answer = await self._caller(
            "get_item", TableName=self._table, Key={"request_id": {"S": KEY}}, ConsistentRead=True
        )
        return self._read({n: v for n, v in (answer.get("Item") or {}).items() if n != "request_id"})

    def _written(self, report: Report) -> dict[str, Any]:
        ahead = self._clock.now() - asyncio.get_running_loop().time()
        words = {
            "at": round(report.now.at + ahead, 3),
            "sent": report.now.sent,
            "past_at": round(report.past.at + ahead, 3),
            "past": report.past.sent,
            "upto": report.upto,
            "drains": {region: round(rate, 4) for region, rate in report.drains.items()},
            "capacity": {region: round(left, 4) for region, left in report.capacity.items()},
            "readings": {
                region: [round(at + ahead, 3), depth.visible, depth.in_flight, depth.delayed]
                for region, (at, depth) in report.readings.items()
            },
            "rescuing": sorted(report.rescuing),
            "gone": report.gone,
        }
        return {"M": {"number": {"N": str(self._number)}, "report": {"S": json.dumps(words, separators=(",", ":"))}}}

    def _read(self, attributes: Mapping[str, Any]) -> dict[str, Report]:
        ahead = self._clock.now() - asyncio.get_running_loop().time()
        reports = {}
        for name, value in attributes.items():
            try:
                reports[name] = _report(json.loads(value["M"]["report"]["S"]), ahead)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
                continue  # of another version, or no report at all: nothing to go by
        return reports


def _report(words: Mapping[str, Any], ahead: float) -> Report:
    def counts(name: str) -> dict[Region, int]:
        return {Region(region): int(count) for region, count in words[name].items()}

    def rates(name: str) -> dict[Region, float]:
        return {Region(region): float(rate) for region, rate in words[name].items()}

    return Report(
        now=Point(float(words["at"]) - ahead, counts("sent")),
        past=Point(float(words["past_at"]) - ahead, counts("past")),
        upto=counts("upto"),
        drains=rates("drains"),
        capacity=rates("capacity"),
        readings={
            Region(region): (float(at) - ahead, Depth(int(visible), int(in_flight), int(delayed)))
            for region, (at, visible, in_flight, delayed) in words["readings"].items()
        },
        rescuing=frozenset(Region(region) for region in words["rescuing"]),
        gone=bool(words["gone"]),
    )
