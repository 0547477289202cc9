"""What travels with a body: the client's attributes and, where SQS's limits leave room, ours. Pure."""

import hashlib
import re
from collections.abc import Mapping

from dispatcher.model import Attribute, bytes_of
from dispatcher.policy.decode import GENERATION

ATTRIBUTES_MAX = 10  # SQS: message attributes a message (quotas-messages)
BYTES_MAX = 1_048_576  # SQS: body and attributes of a message, and of a batch (SendMessageBatch reference)
PREFIX = "dispatcher."
REASON = "dispatcher.rejected_because"
OURS_FIRST = ("dispatcher.request_id", REASON)  # the first attribute, where none is the client's
_REASON_BYTES_MAX = 1024
OURS, OURS_BYTES_MAX = 5, 4096  # attributes, and more bytes than these ever weigh


def size_of(body: str, attributes: Mapping[str, Attribute]) -> int:
    """Return the bytes that SQS counts: body, and each attribute's name, type and value."""
    return bytes_of(body) + sum(_weight(name, attribute) for name, attribute in attributes.items())


def _weight(name: str, attribute: Attribute) -> int:
    return bytes_of(name) + attribute.bytes_on_the_wire


_GROUP = re.compile(r"[!-~]{1,128}")  # SQS: letters, digits and punctuation (SendMessage reference, MessageGroupId)


def group(tenant: str) -> str:
    """Return a tenant's MessageGroupId: the name itself where SQS takes it, else a digest of it."""
    if _GROUP.fullmatch(tenant):
        return tenant
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()


def forwarded(
    body: str, client: Mapping[str, Attribute], ours: dict[str, Attribute], *, bytes_max: int = BYTES_MAX
) -> dict[str, Attribute]:
    """Return the client's attributes, then each of ours that still fits, in their order."""
    if not client and 4 * len(body) + OURS_BYTES_MAX <= bytes_max:
        return ours
    kept = _of_the_client(client)
    size = size_of(body, kept)
    for name, attribute in ours.items():
        more = _weight(name, attribute)
        if len(kept) < ATTRIBUTES_MAX and size + more <= bytes_max:
            kept[name] = attribute
            size += more
    return kept


def rejected(
    body: str, client: Mapping[str, Attribute], reason: str, *, bytes_max: int = BYTES_MAX
) -> dict[str, Attribute]:
    """Return the client's attributes with the reason among them.

    With ten client attributes the last by name yields to it. With few bytes to spare the reason is cut; with none it
    stays out, and nothing yields.
    """
    kept = _of_the_client(client)
    fewer = dict(sorted(kept.items())[: ATTRIBUTES_MAX - 1]) if len(kept) >= ATTRIBUTES_MAX else kept
    room = min(bytes_max - size_of(body, fewer) - len(REASON) - len("String"), _REASON_BYTES_MAX)
    text = reason.encode("ascii", "backslashreplace").decode()  # SQS refuses some characters; a reason must not be one
    text = "".join(c if c.isprintable() else "?" for c in text)[: max(0, room)]
    return fewer | {REASON: Attribute("String", text)} if text else kept


def _of_the_client(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Leave out what a client put under our prefix, but for the generation, which is a sender's to set."""
    return {name: value for name, value in attributes.items() if not name.startswith(PREFIX) or name == GENERATION}
