"""Body and attributes to `Message`, or `PoisonError` with a reason that a client developer can act on. Pure."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dispatcher.errors import PoisonError
from dispatcher.model import Attribute, Message, Priority

GENERATION = "dispatcher.generation"
"""The one attribute under our prefix that a sender may set."""

REQUEST_ID_MAX = 256
DIGITS_MAX = 38  # of a number: SQS and DynamoDB keep no more (DynamoDB developer guide, data types)

# An ARN as SNS writes it; the account may be anything without a colon, since clients' samples say `xxx`.
_TOPIC_ARN = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[^:\s]+:[A-Za-z0-9_-]{1,256}(\.fifo)?")
_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
_INPUT_URL = re.compile(r"(s3://[^/\s?#]+)/[^?].*|(https://[^/\s?#]+)([/?#].*)?")  # an object's key may hold spaces


def is_request_id(text: str) -> bool:
    return 1 <= len(text) <= REQUEST_ID_MAX and text.isprintable()


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must consist of printable characters")
    return value


def _input_url(value: str) -> str:
    match = _INPUT_URL.fullmatch(value) if value.isprintable() else None
    if match is None or not _names_a_host(match[1] or match[2]):
        raise ValueError("must be s3://bucket/key or https://...")
    return value


@lru_cache(maxsize=1000)
def _names_a_host(origin: str) -> bool:
    """Many messages name one; raises ValueError, too, for what is none."""
    return bool(urlsplit(origin).hostname)


def _topic_arn(value: str) -> str:
    if not _TOPIC_ARN.fullmatch(value):
        raise ValueError("must be the ARN of an SNS topic")
    return value


def _rfc_3339(value: str) -> str:
    _moment(value)
    return value


def _moment(value: str) -> float:
    """Return epoch seconds; raise ValueError."""
    match = _RFC_3339.fullmatch(value)
    if match is None:
        raise ValueError("must be an RFC 3339 date-time with an offset")
    day, minute, second, fraction, offset, _ = match.groups()
    second = "59" if second == "60" else second  # RFC 3339 allows a leap second; datetime does not
    return datetime.fromisoformat(f"{day}T{minute}:{second}{offset.upper()}").timestamp() + float(fraction or 0)


class Body(BaseModel):
    """The schema (docs/reference/messages.md). Strict: no number passes for a string."""

    model_config = ConfigDict(strict=True, extra="ignore", use_attribute_docstrings=True)

    request_id: Annotated[str, Field(min_length=1, max_length=REQUEST_ID_MAX), AfterValidator(_printable)]
    """The idempotency key: 1 to 256 printable characters."""
    model_name: Annotated[str, Field(min_length=1)]
    """Not empty; restricts the Regions to those that serve it."""
    input_data_url: Annotated[str, AfterValidator(_input_url)]
    """`s3://bucket/key` or `https://…`; without its query string it is part of what the request asks for."""
    callback_sns_topic: Annotated[str, AfterValidator(_topic_arn)] = ""
    """ARN of the SNS topic that the worker tells."""
    priority: Annotated[Priority, Field(strict=False)] = Priority.NORMAL
    """`high`, `normal` or `low`; `normal` if left out."""
    timestamp: Annotated[str, AfterValidator(_rfc_3339)] = ""
    """RFC 3339 date-time with an offset: the client's clock, information only."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Opaque, but for `user_id` (a string: the tenant) and `deadline` (RFC 3339: nobody wants the result after it)."""


def decode(body: str, attributes: Mapping[str, Attribute]) -> Message:
    """Return the message; raise PoisonError with every fault of the body in its reason."""
    fields = _json_object(body)
    try:
        valid = Body.model_validate(fields)
    except ValidationError as invalid:
        raise PoisonError("; ".join(_fault(error) for error in invalid.errors(include_url=False))) from None
    return Message(
        request_id=valid.request_id,
        model_name=valid.model_name,
        priority=valid.priority,
        work=_work(valid),
        generation=_generation(attributes.get(GENERATION)),
        tenant=tenant if isinstance(tenant := valid.metadata.get("user_id"), str) and tenant else None,
        deadline=_deadline(valid.metadata.get("deadline")),
    )


class _Repeating(dict[str, Any]):
    """An object with a field of ours more than once."""

    twice: Sequence[str] = ()


def _collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeating = _Repeating(fields)
    times = Counter(key for key, _ in pairs)
    repeating.twice = sorted(key for key in Body.model_fields if times[key] > 1)
    return repeating


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_SPACE = " \t\n\r"
# numbers are the client's own, and may have more digits than Python makes an int of
_DECODER = json.JSONDecoder(object_pairs_hook=_collect, parse_constant=_no_constant, parse_int=float)


def _json_object(body: str) -> dict[str, Any]:
    try:
        text = body.strip(_SPACE)
        fields, end = _DECODER.raw_decode(text)
    except RecursionError:
        raise PoisonError("body is nested too deeply") from None
    except ValueError as fault:
        raise PoisonError(f"body is not JSON: {fault}") from None
    if end < len(text):
        raise PoisonError(f"body is not JSON: it ends after {end} characters, and there are more")
    if not isinstance(fields, dict):
        raise PoisonError("body is not a JSON object")
    if (
        isinstance(fields, _Repeating) and fields.twice
    ):  # readers disagree on which counts, and an id must mean one thing
        raise PoisonError(f"{', '.join(fields.twice)}: given more than once")
    return fields


def request_id_of(body: str) -> str | None:
    """Return the id that a body names, also one that cannot be dispatched; None if it names none."""
    try:
        fields = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):
        return None
    request_id = fields.get("request_id") if isinstance(fields, dict) else None
    return request_id if isinstance(request_id, str) else None


def _fault(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "body"
    said = error["msg"].removeprefix("Value error, ")
    return f"{where}: {'is required' if error['type'] == 'missing' else said}"


def _work(valid: Body) -> str:
    # A presigned URL differs in its query at each signing; the object it names is the same work.
    parts = valid.model_name, valid.input_data_url.partition("?")[0], valid.callback_sns_topic
    listed = f"[{', '.join(map(encode_basestring_ascii, parts))}]"  # a JSON list
    return hashlib.sha256(listed.encode()).hexdigest()[:32]


def _deadline(value: Any) -> float | None:
    """Metadata is the client's own: what is no date-time there is no deadline, and no fault."""
    try:
        return max(0.0, _moment(value)) if isinstance(value, str) else None  # of dates long past one is enough
    except (ValueError, OverflowError):
        return None


def _generation(attribute: Attribute | None) -> int:
    if attribute is None:
        return 0
    value = attribute.value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= DIGITS_MAX:
        return int(value)
    raise PoisonError(f"{GENERATION}: must be a whole number, zero or more, of at most {DIGITS_MAX} digits")
