"""Frozen values that travel on the path. Knows nothing of AWS, of time or of the event loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType

Region = NewType("Region", str)


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Policy(StrEnum):
    """How Regions are weighed (`policy/routing.py`)."""

    PROJECTED_WAIT = "projected-wait"
    INVERSE_DEPTH = "inverse-depth"  # the original, exactly
    INVERSE_DEPTH_SMOOTHED = "inverse-depth-smoothed"
    TWO_CHOICES = "two-choices"
    FIXED = "fixed"

    @property
    def projects(self) -> bool:
        """It goes by projected waits, and so needs estimates that can be believed."""
        return self in (Policy.PROJECTED_WAIT, Policy.TWO_CHOICES)


class AwsClient(StrEnum):
    """Who makes the calls that are made for messages."""

    SDK = "sdk"
    LEAN = "lean"


class Outcome(StrEnum):
    """How a delivery ended; each ends in exactly one."""

    DISPATCHED = "dispatched"  # a Region accepted it
    DUPLICATE = "duplicate"  # an earlier delivery of the request was dispatched
    REJECTED = "rejected"  # in the dead-letter queue, with the reason
    HELD = "held"  # another live claim has it
    RELEASED = "released"  # handed back on purpose
    FAILED = "failed"  # left to lapse after a fault


class Attribute(NamedTuple):
    """One SQS message attribute. `data_type` is `String`, `Number` or `Binary`, with the sender's own suffix if any."""

    data_type: str
    value: str | bytes

    @property
    def bytes_on_the_wire(self) -> int:
        value = len(self.value) if isinstance(self.value, bytes) else bytes_of(self.value)
        return bytes_of(self.data_type) + value


def bytes_of(text: str) -> int:
    """Return how many bytes a text is in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class Delivery(NamedTuple):
    """One receive of a message from the master queue."""

    message_id: str
    receipt_handle: str
    body: str
    attributes: Mapping[str, Attribute]
    trace_header: str | None
    sent_at: float  # epoch seconds on SQS's clock: when the client sent it
    receives: int  # this one included


class Message(NamedTuple):
    """What the dispatcher needs to know of a request; the body itself is forwarded byte for byte."""

    request_id: str
    model_name: str
    priority: Priority
    work: str  # digest of what is asked for: the same id with other work is a client's mistake
    generation: int  # higher than the ledger's means: dispatch it again, on purpose
    tenant: str | None = None  # whom the client works for
    deadline: float | None = None  # epoch seconds: nobody wants the result after it


class Outgoing(NamedTuple):
    """A message on its way to a queue; the body goes byte for byte."""

    body: str
    attributes: Mapping[str, Attribute]
    trace_header: str | None
    departs: Callable[[], None] = lambda: None
    """Called right before the call: from here on the send may have happened. Raises LeaseTooShortError to stay."""
    group: str | None = None  # whose messages SQS keeps from delaying those of others (MessageGroupId)


@dataclass(frozen=True, slots=True)
class Depth:
    """One reading of a queue, in messages (SQS's counts are approximate)."""

    visible: int
    in_flight: int
    delayed: int


class Choice(NamedTuple):
    """The Region for a message, and why: the policy that chose it, and the wait (seconds) that was projected there.

    `shadow` is the Region that the shadow policy would have chosen; None without one.
    """

    region: Region
    policy: str
    wait_s: float
    shadow: Region | None = None


class ClaimRequest(NamedTuple):
    """What one delivery asks of the ledger. `token` is unique per delivery and proves whose a claim is."""

    message: Message
    token: str
    choice: Choice  # where the send will go; in the ledger before the send starts
    lease_end: float  # epoch seconds
    source_message_id: str

    @property
    def region(self) -> Region:
        return self.choice.region


class Claimed(NamedTuple):
    """The claim is ours until `lease_end` (epoch seconds)."""

    request_id: str
    token: str
    region: Region
    lease_end: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The request was dispatched before."""


@dataclass(frozen=True, slots=True)
class Held:
    """A live claim of another delivery has it until `until` (epoch seconds)."""

    until: float


@dataclass(frozen=True, slots=True)
class DifferentWork:
    """The id is in the ledger with other work."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """What the ledger holds is over and may be replaced, as long as it is still exactly this."""

    state: str
    token: str
    lease_end: str  # as the ledger spells it: the condition compares it exactly
    region: Region | None  # where a copy may already be; None when there is certainly none
    generation: int = 0  # whoever takes it over dispatches the request as often as this asks for


ClaimAnswer = Claimed | Duplicate | Held | DifferentWork | Lapsed


@dataclass(frozen=True, slots=True)
class Move:
    """Our intent, in the ledger until `lease_end` (epoch seconds), to move a dispatched request to another Region."""

    request_id: str
    work: str
    token: str
    source: Region
    choice: Choice
    lease_end: float


@dataclass(frozen=True, slots=True)
class LapsedMove:
    """Somebody's intent that is over; a copy may already be in `region`. `until` is spelt as in the ledger."""

    token: str
    until: str
    region: Region


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The request is dispatched to another Region: a copy here is one too many."""


@dataclass(frozen=True, slots=True)
class Unmovable:
    """It is not for us to move, or not now."""

    why: str


MoveAnswer = Move | LapsedMove | Elsewhere | Unmovable
