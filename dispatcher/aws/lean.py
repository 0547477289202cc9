"""The calls that are made for messages, without the SDK's way there; every other call is the SDK's.

A call of aiobotocore costs about a millisecond of processor time, most of it in what never changes from call to call:
validation, endpoint rules, events, a user agent. Here is what remains: JSON, a signature, a POST (`aws/posts.py`).
Credentials and endpoints come from the SDK, its parser reads what is no success, and failures are told by
`aws/faults.py` as ever.
docs/decisions/0009-a-lean-client-is-the-default.md tells why it is trusted; tests/contracts run on both.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from random import Random
from types import NoneType
from typing import Any
from urllib.parse import quote

import orjson
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError, create_parser
from botocore.retries.quota import RetryQuota
from botocore.utils import normalize_url_path
from yarl import URL

from dispatcher.aws.faults import classify
from dispatcher.aws.posts import Http, Posts
from dispatcher.clock import Clock
from dispatcher.errors import AmbiguousError, Cause
from dispatcher.policy.backoff import backoff_s

OPERATIONS = {
    "receive_message": "ReceiveMessage",
    "send_message_batch": "SendMessageBatch",
    "delete_message_batch": "DeleteMessageBatch",
    "change_message_visibility_batch": "ChangeMessageVisibilityBatch",
    "batch_execute_statement": "BatchExecuteStatement",
    "batch_get_item": "BatchGetItem",
}
_TARGETS = {"sqs": "AmazonSQS", "dynamodb": "DynamoDB_20120810"}
_ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "sqs": ("receive_message", {"QueueUrl": "-"}),
    "dynamodb": ("batch_execute_statement", {"Statements": [{"Statement": "-"}]}),
}
"""A call whose address the SDK is asked for."""
_OBJECTS = {dict, NoneType}
_JSON = "application/x-amz-json-1.0"
_RETRIED = {Cause.THROTTLED, Cause.UNREACHABLE}
_RETRY_COSTS = 5  # of the SDK's quota, as in its standard mode


class Signer:
    """AWS Signature Version 4 of JSON calls: POST, no query, the same headers each time (AWS General Reference)."""

    def __init__(self, service: str, region: str, host: str, path: str, more: Mapping[str, str]) -> None:
        self._scope = region, service, "aws4_request"
        self._path = quote(normalize_url_path(path), safe="/~")
        self._sent = {"content-type": _JSON, **{name.lower(): value for name, value in more.items()}}
        self._host = host  # signed; HTTP adds it by itself
        self._kept_for: tuple[str, str, str | None, str] | None = None  # whose, and of which day, the rest is

    def headers(
        self, target: str, body: bytes, at: float, access: str, secret: str, token: str | None
    ) -> dict[str, str]:
        """Return the headers of a call at `at` (epoch seconds), but for those that HTTP adds by itself."""
        moment = _moment(int(at))
        if self._kept_for != (access, secret, token, moment[:8]):
            self._keep(access, secret, token, moment[:8])
        before, between, after = self._form
        request = f"{before}{moment}{between}{target}{after}{hashlib.sha256(body).hexdigest()}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{self._day_scope}\n{digest}"
        signed = self._key.copy()  # keyed anew each time it would take twice as long
        signed.update(to_sign.encode())
        return {
            **self._sent_with_token,
            "x-amz-date": moment,
            "x-amz-target": target,
            "authorization": f"{self._authorization}{signed.hexdigest()}",
        }

    def _keep(self, access: str, secret: str, token: str | None, day: str) -> None:
        """Make what is the same for all calls of a day with these credentials."""
        self._kept_for = None
        self._sent_with_token = {**self._sent, "x-amz-security-token": token} if token else self._sent
        lines = {**self._sent_with_token, "host": self._host, "x-amz-date": "\0", "x-amz-target": "\0"}
        listed = ";".join(sorted(lines))
        headers = "".join(f"{name}:{lines[name]}\n" for name in sorted(lines))
        before, between, after = f"POST\n{self._path}\n\n{headers}\n{listed}\n".split("\0")
        self._form = before, between, after
        self._day_scope = "/".join((day, *self._scope))
        self._authorization = (
            f"AWS4-HMAC-SHA256 Credential={access}/{self._day_scope}, SignedHeaders={listed}, Signature="
        )
        key = f"AWS4{secret}".encode()
        for part in (day, *self._scope):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key = hmac.new(key, digestmod="sha256")
        self._kept_for = access, secret, token, day


class LeanClient:
    """Stands where an SDK client stands, and hands it what is not among them.

    `attempts` counts all tries, the first included, as the SDK's `total_max_attempts` does; what is tried again, and
    when, is as in the SDK's standard mode. Raises the SDK's ClientError for an answer that says no, and aiohttp's
    errors where there was no answer.
    """

    def __init__(
        self,
        sdk: Any,
        http: Http,
        credentials: Any,
        clock: Clock,
        *,
        user_agent: str,
        attempts: int,
        random: Random,
    ) -> None:
        self._sdk = sdk
        self._http = http
        self._user_agent = user_agent
        self._credentials = credentials
        self._clock = clock
        self._attempts = attempts
        self._random = random
        self._quota = RetryQuota()
        self._posts: Posts | None = None  # once the first call has found out where to
        self._model = sdk.meta.service_model
        self._members: dict[str, dict[str, type]] = {}  # of each answer; a list is one of objects
        for name, operation in OPERATIONS.items():
            if operation in self._model.operation_names:
                setattr(self, name, partial(self._call, operation))
                members = self._model.operation_model(operation).output_shape.members
                self._members[operation] = {member: _kind(shape) for member, shape in members.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sdk, name)

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        body = _json(parameters)
        parameters.clear()  # they are nobody's any more, and many
        for attempt in range(1, self._attempts + 1):
            try:
                answer = await self._try(operation, body)
            except Exception as fault:
                if attempt == self._attempts or not _worth_another(fault) or not self._quota.acquire(_RETRY_COSTS):
                    raise
                await asyncio.sleep(backoff_s(attempt - 1, self._random))
            else:
                self._quota.release(_RETRY_COSTS if attempt > 1 else 1)
                answer["ResponseMetadata"]["RetryAttempts"] = attempt - 1
                return answer
        raise AssertionError("there is at least one attempt")

    async def _find(self) -> Posts:
        """Learn from the SDK where it would call, and how it would sign: it resolves both anew for each call."""
        operation, parameters = _ASKED[self._model.service_name]
        signed = URL(await self._sdk.generate_presigned_url(operation, parameters))
        _, _, region, service, _ = signed.query["X-Amz-Credential"].split("/")
        self._target = _TARGETS[service]
        # what makes SQS say its old error codes beside the new ones, as it says them to the SDK
        more = {"x-amzn-query-mode": "true"} if service == "sqs" else {}
        url = signed.with_query(None)
        self._signer = Signer(service, region, url.host_port_subcomponent or "", url.raw_path, more)
        self._posts = self._http.to(url, {"User-Agent": self._user_agent})
        return self._posts

    async def _try(self, operation: str, body: bytes) -> dict[str, Any]:
        post = self._posts or await self._find()
        credentials = await self._credentials.get_frozen_credentials() if self._credentials else None
        if credentials is None:
            raise NoCredentialsError
        signed = self._signer.headers(
            f"{self._target}.{operation}",
            body,
            self._clock.now(),
            credentials.access_key,
            credentials.secret_key,
            credentials.token,
        )
        status, headers, said = await post(signed, body)
        if status >= 300:
            raise self._refusal(operation, status, headers, said)
        answer = self._checked(operation, orjson.loads(said) if said else {})
        if operation == "ReceiveMessage":
            _read_binaries(answer)
        date = headers.get("Date")
        answer["ResponseMetadata"] = {"HTTPStatusCode": status, "HTTPHeaders": {"date": date} if date else {}}
        return answer

    def _checked(self, operation: str, answer: Any) -> dict[str, Any]:
        """Raise ResponseParserError for what is JSON, but no answer: then nobody knows what was done."""
        if not isinstance(answer, dict):
            raise ResponseParserError(f"{operation}: the answer is no object")
        for name, kind in self._members[operation].items():
            value = answer.get(name)
            if not isinstance(value, (kind, NoneType)) or (
                kind is list and isinstance(value, list) and not {type(one) for one in value} <= _OBJECTS
            ):
                raise ResponseParserError(f"{operation}: {name} is not what it should be")
        return answer

    def _refusal(self, operation: str, status: int, headers: Mapping[str, str], said: bytes) -> ClientError:
        """What the SDK's own parser makes of it."""
        headers = {name.lower(): value for name, value in headers.items()}
        model = self._model.operation_model(operation)
        parser = create_parser(self._model.resolved_protocol)
        read = parser.parse({"status_code": status, "headers": headers, "body": said}, model.output_shape)
        return ClientError(read, operation)


def _kind(shape: Any) -> type:
    """Return what orjson makes of a member of an answer; object for what no answer of ours has today."""
    if shape.type_name == "list" and shape.member.type_name == "structure":
        return list
    return dict if shape.type_name in ("map", "structure") else object


@lru_cache(maxsize=4)
def _moment(epoch_s: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(epoch_s))


def _worth_another(fault: Exception) -> bool:
    known = classify(fault)
    return isinstance(known, AmbiguousError) or known.cause in _RETRIED


def _json(parameters: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(parameters, default=_base64)
    except TypeError:  # half a character (a lone surrogate), which the SDK escapes; or what nothing can write
        return json.dumps(parameters, default=_base64, separators=(",", ":")).encode()


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is nothing that AWS takes")


def _read_binaries(answer: Mapping[str, Any]) -> None:
    for message in answer.get("Messages") or ():
        for attribute in (message.get("MessageAttributes") or {}).values():
            if "BinaryValue" in attribute:
                attribute["BinaryValue"] = base64.b64decode(attribute["BinaryValue"])
