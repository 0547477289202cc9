"""`dispatcher simulate`: what it prints, what it draws, and what it says to mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dispatcher.cli import main
from dispatcher.errors import ConfigurationError
from dispatcher.model import Policy
from dispatcher.simulation.scenarios import BUILT_IN, RECORDING, recorded


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_the_result_as_json_has_every_policy_by_name() -> None:
    result = run("equal", "--minutes", "2", "--seed", "7", "--json")
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    assert (said["scenario"], said["seed"]) == ("equal", 7)
    assert said["policies"].keys() == set(Policy)
    for values in said["policies"].values():
        assert values.keys() >= {"mean_wait_s", "p50_wait_s", "p99_wait_s", "max_depth", "over_threshold"}


def test_people_get_a_table_and_a_picture(tmp_path: Path) -> None:
    for name in ("plot.svg", "plot.png"):
        picture = tmp_path / name
        result = run("unequal", "--minutes", "3", "--policy", "fixed", "--plot", str(picture))
        assert result.exit_code == 0, result.output
        assert "p99" in result.stdout
        assert "fixed" in result.stdout
        assert picture.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no scenario 'nowhere'; there are equal"),
        (["equal", "--policy", "best"], "--policy: there is projected-wait"),
        (["equal", "--file", "x"], "--file is for the scenario 'recorded'"),
        (["recorded", "--file", "/nowhere.jsonl"], "/nowhere.jsonl: No such file or directory"),
        (["recorded", "--file", __file__], "not what 'dispatcher record' writes"),
        (["equal", "--minutes", "1", "--policy", "fixed", "--plot", "/nowhere/x.png"], "there is no folder /nowhere"),
        (["equal", "--minutes", "1", "--policy", "fixed", "--plot", "x.docx"], "x.docx"),
    ],
)
def test_a_mistake_is_said_in_a_line(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in result.stderr
    assert "Traceback" not in result.output


def frame(at: float, **regions: tuple[int, int, int]) -> str:
    named = {r: {"visible": v, "in_flight": f, "sent": s} for r, (v, f, s) in regions.items()}
    return json.dumps({"at": at, "regions": named})


def test_a_recording_becomes_arrivals_and_workers(tmp_path: Path) -> None:
    """a is short of workers, which take 5 per second; b never is, and takes 3 at best."""
    file = tmp_path / "r.jsonl"
    frames = [frame(1000 + 10 * n, a=(100 + 20 * n, 10, 70 * n), b=(0, 5, 30 * n)) for n in range(20)]
    file.write_text("\n".join(frames))
    scenario = recorded(file)
    a, b = scenario.regions.values()
    assert a.drain == pytest.approx(5.0)
    assert a.backlog == 100
    assert b.drain == pytest.approx(3.0)
    assert scenario.rate(15) == pytest.approx(10.0)
    assert scenario.seconds == 190
    assert scenario.reading_s == pytest.approx(10.0)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", '{"at": 1}', frame(1, a=(1, 1, 1)), "\n".join([frame(1, a=(1, 1, 1))] * 4)],
    ids=["nothing", "no-json", "list", "no-regions", "one-frame", "no-time-passes"],
)
def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        recorded(file)


def test_the_recording_that_comes_along_can_be_played() -> None:
    assert RECORDING.exists()
    result = run("recorded", "--policy", "projected-wait", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["policies"]["projected-wait"]["messages"] > 500


def test_the_help_names_every_scenario() -> None:
    said = run("--help").stdout
    assert all(name in said for name in (*BUILT_IN, "recorded"))
