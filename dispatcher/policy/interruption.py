"""EventBridge's Spot interruption warnings to the Region where one comes. Pure.

Shape: the EC2 user guide, "EC2 Spot Instance interruption warning": `detail-type`, `region`, `detail.instance-id`.
"""

import json
from dataclasses import dataclass

from dispatcher.model import Region

DETAIL_TYPE = "EC2 Spot Instance Interruption Warning"


@dataclass(frozen=True, slots=True)
class Interruption:
    """In two minutes Spot takes this instance."""

    region: Region
    instance: str


def interruption(body: str) -> Interruption | None:
    """Return what an event says, None if it is no interruption warning."""
    try:
        event = json.loads(body)
        if event["detail-type"] != DETAIL_TYPE:
            return None
        return Interruption(Region(str(event["region"])), str(event["detail"]["instance-id"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
