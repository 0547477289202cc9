"""What the demo shows, and what its example worker says."""

from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from rich.console import Console

from dispatcher.demo.show import GPUS, _View


def test_a_region_takes_one_line_of_the_picture_on_a_narrow_terminal() -> None:
    regions = {r: {"depth": 400, "share": 1.0, "projected_wait_seconds": 12.3, "health": "unreadable"} for r in GPUS}
    stage: Any = SimpleNamespace(
        console=Console(width=80),
        submissions=range(2000),
        valid=range(1832),
        status={"regions": regions},
        gpus=[MagicMock(region=region) for region in GPUS],
        tally=SimpleNamespace(served_in=Counter(GPUS)),
    )
    with stage.console.capture() as shown:
        stage.console.print(_View(stage)._regions())
    assert len(shown.get().splitlines()) == 1 + len(GPUS)
