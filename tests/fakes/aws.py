"""SQS and DynamoDB in memory, at the level of their calls: what the dispatcher asks of them, and nothing else.

Parameters and answers have the shapes of the SDK's. Each call is one instant; who calls decides what goes wrong before
and after it. What it cannot read it refuses loudly, so that no test passes on a guess.
"""

import asyncio
import heapq
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

from botocore.exceptions import ClientError

ENTRIES_MAX = 10
STATEMENTS_MAX = 25
BATCH_BYTES_MAX = 1_048_576
RECEIVE_MAX_S = 43200
ACCOUNT = "000000000000"
HOST = "http://sqs.{region}.fake"

Item = dict[str, dict[str, Any]]


def refusal(code: str, operation: str = "", status: int = 400, **more: Any) -> ClientError:
    """Return the SDK's error for an answer that says no."""
    said = {"Error": {"Code": code, "Message": "by the fake"}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return ClientError(said, operation)  # type: ignore[arg-type]  # the stubs know one shape of many


@dataclass(slots=True, eq=False)
class Stored:
    """One message. Times are loop time."""

    message_id: str
    body: str
    attributes: Mapping[str, Any]
    system: Mapping[str, Any]
    sent_at: float
    visible_at: float
    received_at: float = 0.0
    receives: int = 0
    receipt: str = ""  # the last one given out; all older ones are stale


@dataclass(slots=True, eq=False)
class Queue:
    """`now` is loop time. `dead`: where the receive after `receives_max` puts a message instead."""

    name: str
    region: str
    now: Callable[[], float]
    ids: "count[int]"
    host: str = HOST
    visibility_s: int = 600
    receives_max: int | None = None
    dead: "Queue | None" = None
    messages: dict[str, Stored] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _visible: "OrderedDict[str, Stored]" = field(default_factory=OrderedDict)
    _hidden: list[tuple[float, int, Stored]] = field(default_factory=list)  # a heap; what has changed since is stale

    @property
    def url(self) -> str:
        return f"{self.host.format(region=self.region)}/{ACCOUNT}/{self.name}"

    def put(self, body: str, attributes: Mapping[str, Any] = {}, system: Mapping[str, Any] = {}) -> str:
        message_id = f"{self.name}-{next(self.ids)}"
        now = self.now()
        self.show(Stored(message_id, body, attributes, system, now, now))
        return message_id

    def show(self, message: Stored) -> None:
        """From now on anybody gets the message."""
        message.visible_at = self.now()
        self.messages[message.message_id] = self._visible[message.message_id] = message
        self.arrived.set()

    def hide(self, message: Stored, until: float) -> None:
        """From now on nobody gets the message until then (loop time)."""
        message.visible_at = until
        self._visible.pop(message.message_id, None)
        heapq.heappush(self._hidden, (until, next(self.ids), message))

    def delete(self, message: Stored) -> None:
        del self.messages[message.message_id]
        self._visible.pop(message.message_id, None)

    def clear(self) -> None:
        """As if workers had taken all of it, or PurgeQueue had."""
        self.messages.clear()
        self._visible.clear()

    def next_visible_at(self) -> float | None:
        """When one of the messages that are hidden now comes back."""
        self._look()
        return self._hidden[0][0] if self._hidden else None

    def _look(self) -> None:
        """Let those come back whose time has come."""
        while self._hidden:
            until, _, message = self._hidden[0]
            current = message.visible_at == until and self.messages.get(message.message_id) is message
            if current and until > self.now():
                return
            heapq.heappop(self._hidden)
            if current:
                self._visible[message.message_id] = message

    def take(self, most: int, visibility_s: int | None = None) -> list[Stored]:
        """Receive: hand out what is visible, each with a new receipt."""
        now = self.now()
        self._look()
        taken: list[Stored] = []
        while self._visible and len(taken) < most:
            _, message = self._visible.popitem(last=False)
            if self.dead is not None and self.receives_max is not None and message.receives >= self.receives_max:
                self.delete(message)
                self.dead.show(message)  # with its id, its age and its receives so far
                continue
            message.receives += 1
            message.receipt = f"{message.message_id}#{next(self.ids)}"
            message.received_at = now
            taken.append(message)
        for message in taken:  # not before: with a visibility of 0 it would come twice in one answer
            self.hide(message, now + (self.visibility_s if visibility_s is None else visibility_s))
        return taken

    def by_receipt(self, receipt: str) -> Stored | None:
        message = self.messages.get(receipt.rpartition("#")[0])
        return message if message and message.receipt == receipt else None

    def depth(self) -> tuple[int, int]:
        """Messages that are visible now, and in flight."""
        self._look()
        return len(self._visible), len(self.messages) - len(self._visible)


class FakeAws:
    """Queues by Region and URL, and one set of tables. `epoch_s` is AWS's clock at loop time 0."""

    def __init__(self, now: Callable[[], float], epoch_s: float) -> None:
        self.now = now
        self.epoch_s = epoch_s
        self.host = HOST
        self.queues: dict[tuple[str, str], Queue] = {}
        self.tables: dict[str, dict[str, Item]] = {}
        self.wrote: Callable[[str, Item | None, Item], None] = lambda key, old, new: None  # hears of each item written
        self._ids = count(1)

    def queue(self, region: str, name: str, *, dead: Queue | None = None, receives_max: int | None = None) -> Queue:
        made = Queue(name, region, self.now, self._ids, self.host, dead=dead, receives_max=receives_max)
        return self.add(made)

    def add(self, made: Queue) -> Queue:
        self.queues[made.region, made.url] = made
        return made

    def do(self, region: str, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer; raise ClientError. A long poll is the caller's to repeat."""
        work = getattr(self, f"_{operation}", None)
        if work is None:
            raise AssertionError(f"the fake does not know {operation}")
        answer: dict[str, Any] = work(region, parameters)
        return answer

    # --- SQS ----------------------------------------------------------------------------------------------------

    def at(self, region: str, parameters: Mapping[str, Any]) -> Queue:
        try:
            return self.queues[region, parameters["QueueUrl"]]
        except KeyError:
            raise refusal("AWS.SimpleQueueService.NonExistentQueue") from None

    def _create_queue(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        attributes = asked.get("Attributes") or {}
        policy = json.loads(attributes.get("RedrivePolicy") or "{}")
        dead = None
        if policy:
            name = policy["deadLetterTargetArn"].split(":")[5]
            dead = next(queue for (where, _), queue in self.queues.items() if (where, queue.name) == (region, name))
        most = int(policy["maxReceiveCount"]) if policy else None
        made = self.queue(region, asked["QueueName"], dead=dead, receives_max=most)
        made.visibility_s = int(attributes.get("VisibilityTimeout", 30))
        return {"QueueUrl": made.url}

    def _send_message(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"MessageId": self.at(region, asked).put(asked["MessageBody"], asked.get("MessageAttributes") or {})}

    def _receive_message(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        most = asked.get("MaxNumberOfMessages", 1)
        if not 1 <= most <= ENTRIES_MAX:
            raise refusal("InvalidParameterValue")
        taken = self.at(region, asked).take(most, asked.get("VisibilityTimeout"))
        if not taken:
            return {}
        return {
            "Messages": [
                {
                    "MessageId": m.message_id,
                    "ReceiptHandle": m.receipt,
                    "Body": m.body,
                    "Attributes": {
                        "SentTimestamp": str(int((self.epoch_s + m.sent_at) * 1000)),
                        "ApproximateReceiveCount": str(m.receives),
                        **({"AWSTraceHeader": m.system["AWSTraceHeader"]["StringValue"]} if m.system else {}),
                    },
                    "MessageAttributes": m.attributes,
                }
                for m in taken
            ]
        }

    def _delete_message(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._delete_message_batch(region, {**asked, "Entries": [{"Id": "0", **asked}]})
        if failed := answer.get("Failed"):
            raise refusal(failed[0]["Code"])
        return {}

    def _send_message_batch(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        queue = self.at(region, asked)
        size = sum(len(entry["MessageBody"].encode("utf-8", "surrogatepass")) for entry in asked["Entries"])
        if size > BATCH_BYTES_MAX:
            raise refusal("AWS.SimpleQueueService.BatchRequestTooLong")

        def one(entry: Mapping[str, Any]) -> dict[str, Any]:
            attributes = entry.get("MessageAttributes") or {}
            if len(attributes) > 10:
                raise _EntryError("InvalidParameterValue")
            return {
                "MessageId": queue.put(entry["MessageBody"], attributes, entry.get("MessageSystemAttributes") or {})
            }

        return _each(asked["Entries"], one)

    def _delete_message_batch(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        queue = self.at(region, asked)

        def one(entry: Mapping[str, Any]) -> dict[str, Any]:
            if message := queue.by_receipt(entry["ReceiptHandle"]):
                queue.delete(message)
            elif entry["ReceiptHandle"].rpartition("#")[0] in queue.messages:
                raise _EntryError("ReceiptHandleIsInvalid")
            return {}

        return _each(asked["Entries"], one)

    def _change_message_visibility_batch(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        queue, now = self.at(region, asked), self.now()

        def one(entry: Mapping[str, Any]) -> dict[str, Any]:
            message = queue.by_receipt(entry["ReceiptHandle"])
            if message is None:
                raise _EntryError("ReceiptHandleIsInvalid")
            if message.visible_at <= now:
                raise _EntryError("AWS.SimpleQueueService.MessageNotInflight")
            if now + entry["VisibilityTimeout"] - message.received_at > RECEIVE_MAX_S:
                raise _EntryError("InvalidParameterValue")
            queue.hide(message, now + entry["VisibilityTimeout"])
            queue.arrived.set()
            return {}

        return _each(asked["Entries"], one)

    def _get_queue_attributes(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        queue = self.at(region, asked)
        visible, hidden = queue.depth()
        known = {
            "QueueArn": f"arn:aws:sqs:{region}:{ACCOUNT}:{queue.name}",
            "ApproximateNumberOfMessages": str(visible),
            "ApproximateNumberOfMessagesNotVisible": str(hidden),
            "ApproximateNumberOfMessagesDelayed": "0",
            "VisibilityTimeout": str(queue.visibility_s),
        }
        if queue.dead:
            arn = f"arn:aws:sqs:{queue.dead.region}:{ACCOUNT}:{queue.dead.name}"
            known["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": queue.receives_max})
        wanted = asked["AttributeNames"]
        return {"Attributes": {n: v for n, v in known.items() if n in wanted or "All" in wanted}}

    def _get_queue_url(self, region: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        for (where, url), queue in self.queues.items():
            if (where, queue.name) == (region, asked["QueueName"]):
                return {"QueueUrl": url}
        raise refusal("AWS.SimpleQueueService.NonExistentQueue")

    # --- DynamoDB -----------------------------------------------------------------------------------------------

    def table(self, name: str) -> dict[str, Item]:
        try:
            return self.tables[name]
        except KeyError:
            raise refusal("ResourceNotFoundException") from None

    def _put(self, table: str, item: Item) -> None:
        key = item["request_id"]["S"]
        old = self.table(table).get(key)
        self.table(table)[key] = item
        self.wrote(key, old, item)

    def _get_item(self, _: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        item = self.table(asked["TableName"]).get(asked["Key"]["request_id"]["S"])
        return {"Item": item} if item else {}

    def _batch_get_item(self, _: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        responses = {}
        for name, wanted in asked["RequestItems"].items():
            keys = [key["request_id"]["S"] for key in wanted["Keys"]]
            if len(set(keys)) < len(keys):
                raise refusal("ValidationException")
            responses[name] = [self.table(name)[key] for key in keys if key in self.table(name)]
        return {"Responses": responses}

    def _conditional(self, asked: Mapping[str, Any], key: str) -> Item | None:
        """Return the item that stands there; raise ClientError if the condition does not hold."""
        old = self.table(asked["TableName"]).get(key)
        names, values = asked.get("ExpressionAttributeNames") or {}, asked.get("ExpressionAttributeValues") or {}
        if not condition(asked.get("ConditionExpression") or "")(old or {}, names, values):
            shown: dict[str, Any] = {}
            if old and asked.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
                shown = {"Item": old}
            raise refusal("ConditionalCheckFailedException", **shown)
        return old

    def _put_item(self, _: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._conditional(asked, asked["Item"]["request_id"]["S"])
        self._put(asked["TableName"], dict(asked["Item"]))
        return {}

    def _update_item(self, _: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        key = asked["Key"]["request_id"]["S"]
        old = self._conditional(asked, key)
        names, values = asked.get("ExpressionAttributeNames") or {}, asked.get("ExpressionAttributeValues") or {}
        item = dict(old or asked["Key"])
        sets, removed = update(asked["UpdateExpression"])
        item |= {names.get(name, name): values[value] for name, value in sets}
        for name in removed:
            item.pop(names.get(name, name), None)
        self._put(asked["TableName"], item)
        return {"Attributes": item} if asked.get("ReturnValues") == "ALL_NEW" else {}

    def _batch_execute_statement(self, _: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        statements = asked["Statements"]
        read = [statement(s["Statement"], s["Parameters"]) for s in statements]
        keys = [item["request_id"]["S"] for _, _, item, _ in read]
        if len(statements) > STATEMENTS_MAX or len(set(keys)) < len(keys):
            raise refusal("ValidationException")
        responses: list[dict[str, Any]] = []
        for kind, name, item, required in read:
            old = self.table(name).get(item["request_id"]["S"])
            if kind == "INSERT" and old:
                responses.append({"Error": {"Code": "DuplicateItem", "Message": "by the fake"}})
            elif kind == "UPDATE" and (old is None or any(old.get(n) != v for n, v in required.items())):
                responses.append({"Error": {"Code": "ConditionalCheckFailed", "Message": "by the fake"}})
            else:
                self._put(name, {**(old or {}), **item})
                responses.append({"TableName": name})
        return {"Responses": responses}


class _EntryError(Exception):
    """One entry of a batch is turned down; the argument is AWS's code."""


def _each(entries: Sequence[Mapping[str, Any]], one: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    ids = [entry["Id"] for entry in entries]
    if not entries or len(entries) > ENTRIES_MAX or len(set(ids)) < len(ids):
        raise refusal("AWS.SimpleQueueService.BatchEntryIdsNotDistinct")
    answer: dict[str, Any] = {"Successful": [], "Failed": []}
    for entry in entries:
        try:
            answer["Successful"].append({"Id": entry["Id"], **one(entry)})
        except _EntryError as why:
            answer["Failed"].append({"Id": entry["Id"], "Code": str(why), "SenderFault": True})
    return {name: said for name, said in answer.items() if said}  # SQS leaves empty lists out


# --- the expressions that the dispatcher writes ---------------------------------------------------------------------

type Names = Mapping[str, str]
type Values = Mapping[str, Mapping[str, Any]]
type Holds = Callable[[Item, Names, Values], bool]
_TOKEN = re.compile(r"\s*(attribute_not_exists|attribute_exists|AND|OR|<=|<>|[()=<>,]|[#:\w.]+)")
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
}


@lru_cache(maxsize=256)
def condition(text: str) -> Holds:
    """Return the meaning of a ConditionExpression; the empty one always holds."""
    if not text:
        return lambda item, names, values: True
    tokens = _TOKEN.findall(text)
    if re.sub(r"\s", "", text) != "".join(tokens):
        raise AssertionError(f"the fake cannot read {text!r}")

    def either() -> Holds:
        left = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            left = _or(left, both())
        return left

    def both() -> Holds:
        left = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            left = _and(left, one())
        return left

    def one() -> Holds:
        token = tokens.pop(0)
        if token == "(":
            inner = either()
            tokens.pop(0)
            return inner
        if token.startswith("attribute_"):
            _, path, _ = tokens.pop(0), tokens.pop(0), tokens.pop(0)
            wanted = token == "attribute_exists"
            return lambda item, names, values: (_look(item, names, path) is not None) == wanted
        operator, value = tokens.pop(0), tokens.pop(0)
        return lambda item, names, values: _compare(operator, _look(item, names, token), values[value])

    holds = either()
    if tokens:
        raise AssertionError(f"the fake cannot read {text!r} from {tokens}")
    return holds


def _or(left: Holds, right: Holds) -> Holds:
    return lambda *given: left(*given) or right(*given)


def _and(left: Holds, right: Holds) -> Holds:
    return lambda *given: left(*given) and right(*given)


def _look(item: Item, names: Names, path: str) -> Any:
    found: Any = None
    for depth, part in enumerate(path.split(".")):
        if depth and found is not None:
            found = found.get("M")
        found = (item if depth == 0 else found or {}).get(names.get(part, part))
    return found


def _compare(operator: str, here: Any, there: Mapping[str, Any]) -> bool:
    if here is None:
        return operator == "<>"
    (kind, a), (other, b) = next(iter(here.items())), next(iter(there.items()))
    if kind != other:
        return operator == "<>"
    return _COMPARED[operator](float(a), float(b)) if kind == "N" else _COMPARED[operator](a, b)


@lru_cache(maxsize=1024)
def update(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what an UpdateExpression sets, name and value, and the names that it removes."""
    match = re.fullmatch(r"(?:SET (?P<sets>.+?))?\s*(?:REMOVE (?P<removed>.+))?", text)
    if not match:
        raise AssertionError(f"the fake cannot read {text!r}")
    sets = [part.split(" = ") for part in (match["sets"] or "").split(", ") if part]
    removed = (match["removed"] or "").split(", ") if match["removed"] else []
    return [(name.strip(), value.strip()) for name, value in sets], [name.strip() for name in removed]


@lru_cache(maxsize=256)
def _statement(text: str) -> tuple[str, str, list[str], Item, list[str]]:
    """Return a statement's kind, table, names with parameters, what it says itself, and the names of its conditions."""
    value = r"(\?|'[^']*'|[\d.]+)"
    if match := re.fullmatch(r"INSERT INTO \"([^\"]+)\" VALUE {(.+)}", text):
        kind, sets, required = "INSERT", re.findall(rf"'([^']+)': {value}", match[2]), []
    elif match := re.fullmatch(r"UPDATE \"([^\"]+)\" (SET .+) WHERE (.+)", text):
        kind, sets = "UPDATE", re.findall(rf'SET "([^"]+)" = {value}', match[2])
        required = re.findall(r'"([^"]+)" = \?', match[3])
    else:
        raise AssertionError(f"the fake cannot read {text!r}")
    said = {n: {"S": v.strip("'")} if v.startswith("'") else {"N": v} for n, v in sets if v != "?"}
    return kind, match[1], [name for name, v in sets if v == "?"], said, required


def statement(text: str, parameters: Sequence[Mapping[str, Any]]) -> tuple[str, str, Item, Item]:
    """Return a PartiQL statement's kind, table, item (what is inserted or set, with the key) and conditions."""
    kind, table, set_names, said, where_names = _statement(text)
    if len(set_names) + len(where_names) != len(parameters):
        raise refusal("ValidationException")
    item = said | {name: dict(value) for name, value in zip(set_names, parameters, strict=False)}
    where = {name: dict(value) for name, value in zip(where_names, parameters[len(set_names) :], strict=True)}
    if "request_id" in where:
        item["request_id"] = where.pop("request_id")
    return kind, table, item, where
