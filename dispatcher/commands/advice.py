"""What a fault of AWS means to whoever typed a command, and what to do about it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dispatcher.errors import AwsError, Cause, DispatcherError

NO_PERMISSION = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


class UnusableError(DispatcherError):
    """A queue or table is not there, or may not be used; the message says which, and what to do."""


@contextmanager
def naming(what: str, setting: str) -> Iterator[None]:
    """Say what it was that AWS has a fault to tell of. Raises UnusableError."""
    try:
        yield
    except AwsError as fault:
        raise UnusableError(explained(fault, what, setting)) from fault


def explained(fault: AwsError, what: str = "AWS", setting: str = "the setting") -> str:
    meaning, todo = advice(fault, setting=setting)
    return f"{what}: {meaning} ({fault}); {todo}"


def advice(fault: AwsError, action: str = "the call", setting: str = "the setting") -> tuple[str, str]:
    """Return what a fault means, and what to do about it."""
    match fault.cause:
        case Cause.MISSING:
            return "it does not exist", f"check {setting}, the account and the Region, or create it (Terraform; init)"
        case Cause.DENIED if is_no_permission(fault):
            todo = f"allow {action} on it to the role"
            if "PartiQL" in action:
                todo += ", or set DISPATCHER_LEDGER_BATCHING=false"
            return f"{action} is not allowed", todo
        case Cause.DENIED if fault.code.upper().startswith("KMS"):
            return "its key may not be used", "allow kms:Decrypt and kms:GenerateDataKey on the key to the role"
        case Cause.DENIED:
            todo = "check AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the task role, and the clock"
            return "AWS does not take these credentials", todo
        case Cause.UNREACHABLE:
            return "it cannot be reached", "check AWS_ENDPOINT_URL, DNS, proxy, routes and VPC endpoints"
        case Cause.AMBIGUOUS:
            return "it does not answer", "check that AWS_ENDPOINT_URL is AWS or an emulator, and try again"
        case Cause.THROTTLED:
            return "it is throttled", "try again; if that lasts, raise the account's limits"
        case Cause.REFUSED if name := _no_url():
            return f"{name} is no URL", "begin it with http:// or https://"
    return "it refuses", "see AWS's own words, in brackets"


def is_no_permission(fault: AwsError) -> bool:
    """This call is not allowed; others may be."""
    return fault.cause is Cause.DENIED and fault.code in NO_PERMISSION


def _no_url() -> str | None:
    """Return the variable that names an endpoint without its scheme."""
    named = (name for name in os.environ if name.startswith("AWS_ENDPOINT_URL"))
    return next((name for name in named if os.environ[name] and "://" not in os.environ[name]), None)
