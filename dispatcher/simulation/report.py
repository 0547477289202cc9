"""What came out of a simulation: a table to read, a picture to look at, and the same as plain values."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from dispatcher.errors import DispatcherError
from dispatcher.simulation.engine import Outcome
from dispatcher.simulation.scenarios import Scenario

_COLUMNS = {
    "mean wait": "mean_wait_s",
    "p50": "p50_wait_s",
    "p99": "p99_wait_s",
    "worst depth": "max_depth",
    "over threshold": "over_threshold",
    "served": "messages",
    "unserved": "unserved",
    "AWS calls": "aws_calls",
}


class PlotError(DispatcherError):
    """No picture can be made; the message says why, and what to do."""


def values(scenario: Scenario, seed: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the result as `--json` prints it: waits in seconds, depths in messages."""
    policies = {str(outcome.policy): outcome.summary() for outcome in outcomes}
    return {"scenario": scenario.name, "seed": seed, "policies": policies}


def title(scenario: Scenario) -> str:
    seen = f"read every {scenario.reading_s:.3g} s, {scenario.lag_s:g} s late"
    dispatchers = f"{scenario.dispatchers} dispatcher{'s' if scenario.dispatchers > 1 else ''}"
    lasting = f"{scenario.seconds / 60:.3g} minute{'s' if scenario.seconds != 60 else ''}"
    size = f"{len(scenario.regions)} Regions, {dispatchers}, {lasting}"
    return f"{scenario.name}: {scenario.about}; {size}; {seen}"


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return the comparison for people, a row for the heads first."""
    return [["policy", *_COLUMNS]] + [
        [outcome.policy, *(_cell(name, outcome.summary()) for name in _COLUMNS.values())] for outcome in outcomes
    ]


def _cell(name: str, summary: Mapping[str, float]) -> str:
    return f"{summary[name]:.1f} s" if name.endswith("_s") else f"{summary[name]:,.0f}"


def plot(scenario: Scenario, outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw, for each policy, every Region's depth over time, and below all policies' waits. PNG or SVG, by the name."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise PlotError("plots need matplotlib: pip install 'regional-dispatcher[plot]'") from missing
    rcParams["svg.hashsalt"] = scenario.name
    rows = len(outcomes) + 1
    figure = Figure(figsize=(10, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    highest = max((depth for outcome in outcomes for row in outcome.depths for depth in row), default=1) or 1
    for axis, outcome in zip(axes, outcomes, strict=False):
        minutes = [n * outcome.depths_every_s / 60 for n in range(len(outcome.depths))]
        for region, depths in zip(scenario.regions, zip(*outcome.depths, strict=True), strict=True):
            axis.plot(minutes, depths, label=region, linewidth=1)
        axis.set(title=outcome.policy, ylabel="messages waiting", ylim=(0, highest * 1.05))
        axis.axhline(scenario.threshold, color="grey", linestyle=":", linewidth=1)
    if len(scenario.regions) <= 8:
        axes[0].legend(loc="upper right", fontsize="small", ncols=4)
    axes[len(outcomes) - 1].set_xlabel("minutes")
    for outcome in outcomes:
        waits = sorted(outcome.waits)
        parts = [part / max(1, outcome.served) for part in accumulate(outcome.waits[wait] for wait in waits)]
        axes[-1].step([wait + 0.5 for wait in waits], parts, where="post", label=outcome.policy)
    axes[-1].set(xscale="log", xlabel="seconds from arrival to a worker", ylabel="part of messages", ylim=(0, 1.02))
    axes[-1].legend(loc="lower right", fontsize="small")
    figure.suptitle(f"{scenario.name}: {scenario.about}")
    try:
        # without a date in it, the same seed draws the same file
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
    except (OSError, ValueError) as fault:
        raise PlotError(f"{file}: {fault}") from fault
