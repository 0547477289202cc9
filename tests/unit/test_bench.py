"""The benchmark's own arithmetic, and that what looks like a loss is one."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bench import added_ms, latency, losses, paired, ratios
from benchmarks.fake import middle_per_s
from benchmarks.rig import Measured


def measured(cpu_s: float = 1.0, calls: int = 400, took_s: tuple[float, ...] = (0.02,)) -> Measured:
    return Measured(1000, 2.0, 500.0, cpu_s, 80.0, {"receive_message": calls}, {"us-east-1": took_s}, 0.5, 70.0)


def found(ratio: float = 5.0, calls: float = 0.4) -> dict[str, Any]:
    return {
        "ours": {"calls_per_message": calls, "least_cpu_s_per_1k": 0.25},
        "peers": {"boto3-threads": {"least_cpu_s_per_1k": ratio / 4}},
    }


def test_ratios_are_of_pairs_of_one_repetition() -> None:
    """The second repetition's minute was twice as slow for both."""
    runs = {"ours-lean": [measured(1.0), measured(2.0), measured(1.0)], "peer": [measured(4), measured(8), measured(5)]}
    assert paired(runs, "ours-lean", "peer") == 4.0


def test_the_rate_is_that_of_the_middle() -> None:
    steady = [second / 10 for second in range(1, 101)]
    assert middle_per_s([0.0, *steady, 60.0]) == pytest.approx(10.0)
    assert middle_per_s([float(second) for second in range(11)]) == pytest.approx(1.0)


@pytest.mark.parametrize("times", [[], [3.0], [3.0, 3.0, 3.0]])
def test_of_too_few_the_rate_is_that_of_the_whole_run(times: list[float]) -> None:
    assert middle_per_s(times) == 0.0
    assert replace(measured(), middle_per_s=0.0).messages_per_s == 500.0 == measured().whole_messages_per_s


def test_latency_is_told_above_the_floor_of_the_model() -> None:
    assert added_ms([measured(took_s=(0.016, 0.02, 0.115))], 0.5) == pytest.approx(5.0)
    assert added_ms([measured(took_s=(0.016, 0.02, 0.115))], 0.99) == pytest.approx(100.0)


@pytest.mark.parametrize(("ratio", "calls", "count"), [(5.0, 0.4, 0), (4.3, 0.45, 0), (4.2, 0.4, 1), (4.2, 0.47, 2)])
def test_a_loss_of_more_than_fifteen_per_cent_is_told(ratio: float, calls: float, count: int) -> None:
    assert len(losses(found(), found(ratio, calls))) == count


def test_a_peer_that_was_never_stored_is_no_loss() -> None:
    assert not losses({**found(), "peers": {}}, found(0.1))


def test_a_minute_that_was_noisy_for_one_of_them_is_no_loss() -> None:
    quiet, noisy = measured(1.0), measured(1.4)
    stored = ratios({"ours-lean": [quiet, quiet], "peer": [measured(5), measured(5)]})
    assert not losses(stored, ratios({"ours-lean": [noisy, quiet], "peer": [measured(5), measured(5)]}))
    assert losses(stored, ratios({"ours-lean": [noisy, noisy], "peer": [measured(5), measured(5)]}))


def test_the_results_have_the_names_that_others_read() -> None:
    runs = {"ours-lean": [measured()], "boto3-threads": [measured(5.0, 1500)]}
    said = ratios(runs) | latency(runs["ours-lean"])
    assert said["ours"] == {
        "cpu_s_per_1k": 1.0,
        "least_cpu_s_per_1k": 1.0,
        "calls_per_message": 0.4,
        "messages_per_s": 500.0,
        "peak_mb": 80.0,
    }
    assert said["peers"]["boto3-threads"]["cpu_s_per_1k"] == 5.0
    assert said["latency"] == {"p50_ms": 5.0, "p99_ms": 5.0}
    assert said["less_cpu_than"] == {"boto3-threads": 5.0}
