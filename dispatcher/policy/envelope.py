"""What travels with a body: the client's attributes and, where SQS's limits leave room, ours. Pure."""

from collections.abc import Iterable, Mapping

from dispatcher.model import Attribute
from dispatcher.policy.decode import GENERATION

ATTRIBUTES_MAX = 10  # SQS: message attributes a message (quotas-messages)
BYTES_MAX = 1_048_576  # SQS: body and attributes of a message, and of a batch (SendMessageBatch reference)
PREFIX = "dispatcher."
REASON = "dispatcher.rejected_because"
_REASON_BYTES_MAX = 1024


def size_of(body: str, attributes: Mapping[str, Attribute]) -> int:
    """Return the bytes that SQS counts: body, and each attribute's name, type and value."""
    return len(body.encode()) + sum(_weight(name, attribute) for name, attribute in attributes.items())


def _weight(name: str, attribute: Attribute) -> int:
    return len(name.encode()) + attribute.bytes_on_the_wire


def forwarded(
    body: str, client: Mapping[str, Attribute], ours: Iterable[tuple[str, Attribute]], *, bytes_max: int = BYTES_MAX
) -> dict[str, Attribute]:
    """Return the client's attributes, then each of ours that still fits, in their order.

    The prefix is ours: what a client put under it stays behind, but for the generation, which is a sender's to set.
    """
    kept = {name: value for name, value in client.items() if not name.startswith(PREFIX) or name == GENERATION}
    size = size_of(body, kept)
    for name, attribute in ours:
        more = _weight(name, attribute)
        if len(kept) < ATTRIBUTES_MAX and size + more <= bytes_max:
            kept[name] = attribute
            size += more
    return kept


def rejected(
    body: str, client: Mapping[str, Attribute], reason: str, *, bytes_max: int = BYTES_MAX
) -> dict[str, Attribute]:
    """Return the client's attributes with the reason among them.

    With ten client attributes the last by name yields to it. With no byte to spare the reason is cut, or stays out.
    """
    kept = {name: value for name, value in client.items() if name != REASON}
    while len(kept) >= ATTRIBUTES_MAX:
        del kept[max(kept)]
    room = min(bytes_max - size_of(body, kept) - len(REASON) - len("String"), _REASON_BYTES_MAX)
    text = reason.encode("ascii", "backslashreplace").decode()  # SQS refuses some characters; a reason must not be one
    if room > 0 and text:
        kept[REASON] = Attribute("String", "".join(c if c.isprintable() else "?" for c in text)[:room])
    return kept
