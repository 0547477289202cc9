"""What happened to a request, in words, from its item in the ledger. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime

_TIMES = ("claimed_at", "dispatched_at", "moved_at", "moving_until", "lease_end", "expires_at")


def readable(item: Mapping[str, str]) -> dict[str, str]:
    """Return the item sorted by name, its times (epoch seconds) in RFC 3339."""
    return {
        name: _time(value) if name in _TIMES and float(value) > 0 else value for name, value in sorted(item.items())
    }


def life(item: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what happened, in order: when (RFC 3339, `now`, or empty: with the line before) and what."""
    said = readable(item)
    lines = []
    if "claimed_at" in said:
        whose = f"for message {said.get('source_message_id', '?')} of the master queue"
        lines.append((said["claimed_at"], f"claimed {whose}"))
    if region := said.get("region"):
        projected = float(said.get("projected_wait_s", 0))  # 0: nobody knew, or there was none
        wait = f", where {projected:.1f} s of wait were projected" if projected else ""
        lines.append(("", f"{region} chosen by {said.get('policy', 'an older version')}{wait}"))
    if "dispatched_at" in said:
        lines.append((said["dispatched_at"], f"dispatched, as SQS message {said.get('sqs_message_id', '?')}"))
    if "moved_at" in said:
        source = said.get("moved_from", "?")
        lines.append((said["moved_at"], f"rescued from {source}: the lines above name the new Region"))
    if "mover" in said:
        lines.append((said["moving_until"], f"until then it is being moved to {said.get('moving_to', '?')}"))
    match said.get("state"):
        case "claimed":
            lines.append((said["lease_end"], "until then a dispatcher has it; after that the next one takes over"))
        case "released":
            lines.append(("now", "released: no Region has it, its message is in the master queue"))
        case "rejected":
            lines.append(("now", "rejected: its message is in the dead-letter queue"))
    if "expires_at" in said:
        lines.append((said["expires_at"], "until then a duplicate is known as one"))
    return lines


def _time(epoch_s: str) -> str:
    return datetime.fromtimestamp(float(epoch_s), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
