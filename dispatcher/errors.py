"""Every fault raised on purpose. One question sorts them: what is known of the call that failed?"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[str, Any] = MappingProxyType({})


class Stage(StrEnum):
    """Where a fault was met (`dispatcher_errors_total`)."""

    RECEIVE = "receive"
    DECODE = "decode"
    LEDGER = "ledger"
    DEPTH = "depth"
    ROUTE = "route"
    SEND = "send"
    DELETE = "delete"
    EXTEND = "extend"


class Cause(StrEnum):
    """The closed set of the `error` label."""

    AMBIGUOUS = "ambiguous"  # asked, answer lost: it may have been done
    THROTTLED = "throttled"
    DENIED = "denied"  # permissions, credentials
    MISSING = "missing"  # queue or table does not exist
    UNREACHABLE = "unreachable"  # no connection was made
    INVALID = "invalid"  # this message, or its receipt, cannot be accepted
    REFUSED = "refused"  # any other definite no
    LEASE_LOST = "lease_lost"
    UNEXPECTED = "unexpected"  # a bug


class DispatcherError(Exception):
    """A fault that has a name. Anything else met on the path is a bug."""


class ConfigurationError(DispatcherError):
    """The settings cannot work; one line per fault in `faults`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class PoisonError(DispatcherError):
    """The message can never be dispatched; the reason goes with it to the dead-letter queue."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LeaseLostError(DispatcherError):
    """The claim, or the delivery, is no longer ours; whoever has it now will finish it."""


class LeaseTooShortError(DispatcherError):
    """The lease would not outlast the send; nothing was sent. Renew it and send again."""


class HeldOffError(DispatcherError):
    """The Region's breaker is open; nothing was sent."""


class AwsError(DispatcherError):
    """A call to AWS failed. `code` is AWS's own word; `answer` what else it said; both empty if it said nothing."""

    def __init__(self, cause: Cause, detail: str, code: str = "", answer: Mapping[str, Any] = EMPTY) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.code = code
        self.answer = answer


class RefusedError(AwsError):
    """A definite failure: AWS said no, or was never reached. Nothing was done."""


class AmbiguousError(AwsError):
    """The call was made and its answer is unknown. It may have been done."""

    def __init__(self, detail: str, code: str = "", answer: Mapping[str, Any] = EMPTY) -> None:
        super().__init__(Cause.AMBIGUOUS, detail, code, answer)
