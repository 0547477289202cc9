"""What moving a request costs, beside what people use today: the real daemon and its peers on one fake AWS.

    make bench          everything, twenty-five minutes: benchmarks/RESULTS.md, results.json, results.svg
    make bench-quick    two peers, two minutes: results.json, where the others' figures stay
    make bench-check    a minute of it, against the ratios of results.json: what CI runs
    make bench-flame    where the daemon's processor time goes: benchmarks/flame-lean.svg, flame-sdk.svg

Contenders take turns, so that a noisy minute hits all of them; each figure is a median, with the range beside it. What
to believe are ratios within one run and counts of calls. Processor seconds are of the contender's process alone, from
an idle start to an empty master queue; each gets as many small messages as keep it busy for about ten seconds, so that
they are no matter of its start or of its last message.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.progress import Progress

from benchmarks.fake import HOME
from benchmarks.rig import ROOT, BenchError, Contender, Load, Measured, fake_aws, idle, measure, running

HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv-bench"
LATENCIES_MS = "10,80,150"
FLOORS_MS = {HOME: 15.0, "us-west-2": 50.0, "eu-west-1": 85.0}
"""Half the home Region's latency (a poll is woken), the table's 5 ms, and half of the Region's own."""
REPETITIONS = 5
LOSS_MAX = 0.15  # of a ratio against the stored one
Runs = dict[str, list[Measured]]
say = Console(stderr=True)


def ours(client: str, count: int, **more: str) -> Contender:
    return Contender(
        f"ours-{client}",
        [sys.executable, "-m", "dispatcher", "run"],
        count,
        {"DISPATCHER_AWS_CLIENT": client, **more},
    )


def _python(name: str, driver: str, count: int) -> Contender:
    return Contender(name, [str(ENVIRONMENTS / name / "bin/python"), str(HERE / "peers" / driver)], count)


SDK, LEAN = ours("sdk", 18_000), ours("lean", 40_000)
TWO = ours("lean", 40_000, DISPATCHER_PROCESSES="2")
DEFAULT = LEAN
QUICK = [_python("boto3-threads", "boto3_threads.py", 4500), _python("asyncio-putitem", "asyncio_putitem.py", 4000)]
PEERS = [
    *QUICK,
    _python("powertools", "powertools.py", 1500),
    _python("taskiq-aio-sqs", "taskiq_sqs.py", 2000),
    _python("aiosqs", "aiosqs_putitem.py", 4000),
    Contender("sqs-consumer", ["node", str(HERE / "peers/sqs_consumer.mjs")], 7000),
    Contender("go-sdk", [str(ENVIRONMENTS / "go-sdk/peer")], 15_000),
]


def present(peers: Iterable[Contender]) -> list[Contender]:
    """Return those that can run here; say loudly which cannot."""
    there = []
    for peer in peers:
        program, *files = peer.command
        have = subprocess.run(["which", program], capture_output=True).returncode == 0
        if peer.name == "sqs-consumer":
            have = have and (HERE / "peers/node_modules").is_dir()
        if have and all(Path(file).exists() for file in files):
            there.append(peer)
        else:
            say.print(f"[bold yellow]NOT MEASURED[/]: {peer.name} cannot run here ({program})")
    return there


def interleaved(
    what: str, contenders: Sequence[Contender], repetitions: int, run: Callable[[Contender], Measured]
) -> Runs:
    """Let the contenders take turns; return each one's runs."""
    runs: Runs = {contender.name: [] for contender in contenders}
    with Progress(console=say, transient=True) as progress:
        task = progress.add_task(what, total=repetitions * len(contenders))
        for _ in range(repetitions):
            for contender in contenders:
                progress.update(task, description=f"{what}: {contender.name}")
                runs[contender.name].append(run(contender))
                progress.advance(task)
    for name, measured in runs.items():
        say.print(f"{what:32} {name:16} {_brief(measured)}")
    return runs


def _brief(runs: Sequence[Measured]) -> str:
    return (
        f"{_mid(runs, lambda m: m.cpu_s_per_1k):.3f} CPU s, {_mid(runs, lambda m: m.calls_per_1k):.0f} calls "
        f"per 1,000; {_mid(runs, lambda m: m.messages_per_s):.0f} messages/s, {_mid(runs, lambda m: m.peak_mb):.0f} MB"
    )


def full(repetitions: int, contenders: Sequence[Contender], *, regions: int = 3, size: int = 500) -> Runs:
    """Everything is in the master queue at once."""

    def run(contender: Contender) -> Measured:
        count = max(500, contender.count * 500 // max(500, size // 8))
        return measure(contender, Load(count, size=size), regions=regions, latency_ms=LATENCIES_MS)

    return interleaved(f"full queue, {regions} Regions, {size} B", contenders, repetitions, run)


def steady(repetitions: int, contenders: Sequence[Contender], per_second: float, seconds: float = 10.0) -> Runs:
    def run(contender: Contender) -> Measured:
        load = Load(int(per_second * seconds), per_second)
        return measure(contender, load, latency_ms=LATENCIES_MS)

    return interleaved(f"steady {per_second:.0f}/s", contenders, repetitions, run)


# --- figures --------------------------------------------------------------------------------------------------------


def _mid(runs: Iterable[Measured], figure: Callable[[Measured], float]) -> float:
    return statistics.median(map(figure, runs))


def _range(runs: Sequence[Measured], figure: Callable[[Measured], float], digits: int) -> str:
    values = sorted(map(figure, runs))
    return f"{statistics.median(values):,.{digits}f} ({values[0]:,.{digits}f}–{values[-1]:,.{digits}f})"


def paired(runs: Runs, name: str, other: str) -> float:
    """Return how many times less processor time `name` needs than `other`: the median, pair by pair."""
    pairs = zip(runs[other], runs[name], strict=True)
    return statistics.median(theirs.cpu_s_per_1k / mine.cpu_s_per_1k for theirs, mine in pairs)


def added_ms(runs: Iterable[Measured], quantile: float, region: str = HOME) -> float:
    """Return the latency above the model's floor: from sent to the master queue to accepted by a Region."""

    def one(measured: Measured) -> float:
        took = measured.took_s[region]
        return took[min(len(took) - 1, int(len(took) * quantile))] * 1000 - FLOORS_MS[region]

    return _mid(runs, one)


def figures(runs: Sequence[Measured]) -> dict[str, float]:
    return {
        "cpu_s_per_1k": round(_mid(runs, lambda m: m.cpu_s_per_1k), 4),
        "least_cpu_s_per_1k": round(min(m.cpu_s_per_1k for m in runs), 4),
        "calls_per_message": round(_mid(runs, lambda m: m.calls_per_1k) / 1000, 4),
        "messages_per_s": round(_mid(runs, lambda m: m.messages_per_s), 1),
        "peak_mb": round(_mid(runs, lambda m: m.peak_mb), 1),
    }


def ratios(runs: Runs) -> dict[str, Any]:
    """Return what is compared from run to run."""
    return {
        "ours": figures(runs[DEFAULT.name]),
        "peers": {name: figures(measured) for name, measured in runs.items() if not name.startswith("ours-")},
        "less_cpu_than": {name: round(paired(runs, DEFAULT.name, name), 2) for name in runs if name != DEFAULT.name},
    }


def latency(near: Sequence[Measured]) -> dict[str, Any]:
    """Return what a steady rate adds above the model's floor, on the way to the near Region."""
    return {"latency": {"p50_ms": round(added_ms(near, 0.5), 1), "p99_ms": round(added_ms(near, 0.99), 1)}}


def losses(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return each ratio that is worse than the stored one by more than LOSS_MAX, as a sentence.

    Of processor time each one's least is taken: a noisy minute makes nobody faster, but slows some more than others.
    """
    found = []
    for name in now["peers"]:
        ratio, before = _least(now, name), _least(stored, name)
        if ratio and before and ratio < before * (1 - LOSS_MAX):
            found.append(f"{ratio:.2f} times less processor time than {name}, where it was {before:.2f}")
    calls, before = now["ours"]["calls_per_message"], stored["ours"]["calls_per_message"]
    if calls > before * (1 + LOSS_MAX):
        found.append(f"{calls:.3f} AWS calls a message, where it was {before:.3f}")
    return found


def _least(found: Mapping[str, Any], peer: str) -> float | None:
    theirs = found["peers"].get(peer)
    return theirs["least_cpu_s_per_1k"] / found["ours"]["least_cpu_s_per_1k"] if theirs else None


# --- what is run ----------------------------------------------------------------------------------------------------


def quick(repetitions: int) -> tuple[Runs, dict[str, Any]]:
    runs = full(repetitions, [DEFAULT, *present(QUICK)])
    near = steady(1, [DEFAULT], 700.0, seconds=6.0)[DEFAULT.name]
    return runs, ratios(runs) | latency(near)


def write(found: Mapping[str, Any]) -> None:
    """Keep the figures; of peers that were not measured now, those of before."""
    file = HERE / "results.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    kept = {name: {**before.get(name, {}), **found[name]} for name in ("peers", "less_cpu_than")}
    file.write_text(json.dumps({**found, **kept}, indent=2) + "\n")


def check() -> int:
    """Compare with the stored ratios.

    What looks like a loss is measured as often as those were: machines have bad minutes, and the least of many runs is
    less than that of few. Half as many messages, so that even that takes no two minutes of CI.
    """
    stored = json.loads((HERE / "results.json").read_text())
    contenders = [replace(contender, count=contender.count // 2) for contender in (DEFAULT, *present(QUICK))]
    runs = full(1, contenders)
    while losses(stored, ratios(runs)) and len(runs[DEFAULT.name]) < REPETITIONS:
        say.print("looks like a loss: measuring more")
        for name, measured in full(1, contenders).items():
            runs[name] += measured
    now = ratios(runs)
    worse = losses(stored, now)
    for loss in worse:
        print(f"bench: LOSS: {loss}")
    if not worse:
        shown = ", ".join(f"{_least(now, name):.1f} times less than {name}" for name in now["peers"])
        print(f"bench: processor time {shown}; {now['ours']['calls_per_message']:.3f} AWS calls a message")
    return 1 if worse else 0


@dataclass(frozen=True)
class Everything:
    main: Runs
    growth: dict[int, Runs]  # by Regions
    sizes: dict[int, Runs]  # by bytes
    processes: dict[int, Runs]
    steady: Runs
    half: Runs
    idle: dict[str, tuple[float, float, dict[str, int]]]  # CPU s, seconds, calls


def flame(contender: Contender) -> Path:
    """Draw where a contender's processor time goes while it drains a queue that does not end."""
    file = HERE / f"flame-{contender.name.removeprefix('ours-')}.svg"
    spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--function", "--rate", "200", "--duration", "10"]
    with fake_aws(3, LATENCIES_MS) as fake, running(contender, fake) as process:
        fake.fill(Load(3 * contender.count))
        done = subprocess.run([*spy, "--pid", str(process.pid), "--output", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"py-spy cannot look into {contender.name}: {done.stderr.strip()}")
    file.write_text(file.read_text().replace(f"{ROOT}/", ""))  # where it was made is nobody's business
    return file


IDLE_S = 60.0


def half_core(runs: Sequence[Measured]) -> float:
    """Return the rate (messages/s) that takes half a core or a little less: fuller batches cost less for each."""
    return round(0.5 * _mid(runs, lambda m: m.messages_per_cpu_s), -2)


def everything(repetitions: int) -> Everything:
    both = [SDK, LEAN]
    main = full(repetitions, [*both, *present(PEERS)])
    growth = {3: {c.name: main[c.name] for c in both}} | {n: full(repetitions, both, regions=n) for n in (10, 30)}
    sizes = {500: growth[3]} | {size: full(3, both, size=size) for size in (16_000, 200_000)}
    processes = {1: {LEAN.name: main[LEAN.name]}, 2: full(3, [TWO])}
    at_700 = steady(repetitions, both, 700.0)
    half = {c.name: steady(repetitions, [c], half_core(at_700[c.name]))[c.name] for c in both}
    return Everything(main, growth, sizes, processes, at_700, half, {c.name: idle(c, IDLE_S) for c in both})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "quick", "check", "flame"])
    parser.add_argument("--repetitions", type=int, help="of each contender; 5, and 3 where it is quick")
    parser.add_argument("--json", action="store_true", help="print the figures (quick)")
    asked = parser.parse_args()
    try:
        if asked.what == "check":
            return check()
        if asked.what == "flame":
            for contender in (SDK, LEAN):
                print(f"bench: {flame(contender)}")
            return 0
        if asked.what == "quick":
            runs, found = quick(asked.repetitions or 3)
            write(found)
            print(json.dumps(found, indent=2) if asked.json else table(runs))
            say.print("wrote benchmarks/results.json, which CI compares with; `git restore` it if this was a try")
            return 0
        repetitions = asked.repetitions or REPETITIONS
        measured = everything(repetitions)
    except BenchError as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1
    near = measured.steady[DEFAULT.name]
    write(ratios(measured.main) | latency(near))
    (HERE / "RESULTS.md").write_text(report(measured, repetitions))
    plot(measured)
    print(f"bench: {HERE / 'RESULTS.md'}")
    return 0


# --- tables and the plot --------------------------------------------------------------------------------------------


def table(runs: Runs) -> str:
    rows = [
        "| | CPU s per 1,000 | AWS calls per 1,000 | messages/s | of the whole run | peak MB | less CPU than it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, measured in runs.items():
        less = "" if name == DEFAULT.name else f"{paired(runs, DEFAULT.name, name):.1f} ×"
        cells = [
            name,
            _range(measured, lambda m: m.cpu_s_per_1k, 3),
            f"{_mid(measured, lambda m: m.calls_per_1k):,.0f}",
            _range(measured, lambda m: m.messages_per_s, 0),
            f"{_mid(measured, lambda m: m.whole_messages_per_s):,.0f}",
            f"{_mid(measured, lambda m: m.peak_mb):.0f}",
            less,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _by_operation(runs: Runs) -> str:
    names = sorted({operation for measured in runs.values() for operation in measured[0].calls})
    rows = ["| calls per 1,000 | " + " | ".join(runs) + " |", "| --- |" + " --- |" * len(runs)]
    for operation in names:
        counts = [
            statistics.median(m.calls.get(operation, 0) / m.messages * 1000 for m in measured)
            for measured in runs.values()
        ]
        cells = [operation, *(f"{count:,.0f}" if count >= 0.5 else "" for count in counts)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _growth(found: Mapping[int, Runs], unit: str) -> str:
    rows = [f"| {unit} | client | CPU s per 1,000 | calls per 1,000 | messages/s | idle / peak MB | CPU s to start |"]
    rows.append("| --- |" + " --- |" * 6)
    for number, runs in found.items():
        for name, measured in runs.items():
            cells = [
                f"{number:,}",
                name.removeprefix("ours-"),
                _range(measured, lambda m: m.cpu_s_per_1k, 3),
                f"{_mid(measured, lambda m: m.calls_per_1k):,.0f}",
                f"{_mid(measured, lambda m: m.messages_per_s):,.0f}",
                f"{_mid(measured, lambda m: m.idle_mb):.0f} / {_mid(measured, lambda m: m.peak_mb):.0f}",
                f"{_mid(measured, lambda m: m.start_cpu_s):.2f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _latency(runs: Runs) -> str:
    rows = ["| client | messages/s | core used | calls per 1,000 | added, near Region p50 / p99 ms | 80 ms | 150 ms |"]
    rows.append("| --- |" + " --- |" * 6)
    for name, measured in runs.items():
        added = [
            f"{added_ms(measured, 0.5, region):.0f} / {added_ms(measured, 0.99, region):.0f}" for region in FLOORS_MS
        ]
        core = _mid(measured, lambda m: m.cpu_s / m.seconds)
        rows.append(
            f"| {name.removeprefix('ours-')} | {_mid(measured, lambda m: m.messages_per_s):.0f} | {core:.2f} | "
            f"{_mid(measured, lambda m: m.calls_per_1k):.0f} | " + " | ".join(added) + " |"
        )
    return "\n".join(rows)


def report(found: Everything, repetitions: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    resting = "\n".join(
        f"- {name.removeprefix('ours-')}: {100 * used / seconds:.2f} % of a core over {seconds:.0f} s; calls: {calls}"
        for name, (used, seconds, calls) in found.idle.items()
    )
    return f"""# Results

Written by `make bench`. [What they mean, and what to size from them](../docs/performance.md).

{time.strftime("%Y-%m-%d")}, commit {commit.strip()}, {_machine()}, {_interpreter()}.
The fake AWS is in a process of its own on the other core: SQS {LATENCIES_MS} ms in three Regions, DynamoDB 5 ms, no
TLS, 500-byte bodies, 2 % duplicates. Median (range) of {repetitions} interleaved repetitions; ratios are paired within
one. Messages a second are those of the middle four fifths: a contender fills its path first, and waits for
stragglers last.

## A full queue, three Regions

{table(found.main)}

![Processor time and calls](results.svg)

{_by_operation(found.main)}

## At a steady 700 messages a second

{_latency({name: found.steady[name] for name in found.steady})}

## At about half a core

{_latency(found.half)}

## Growth: Regions

{_growth(found.growth, "Regions")}

## Growth: bytes of a body

{_growth(found.sizes, "bytes")}

## Several processes, on two cores that the fake shares

{_growth(found.processes, "processes")}

## Idle

{resting}
"""


def _interpreter() -> str:
    """Optimised by profile, as in Docker's official images, or not, as pyenv builds it."""
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"Python {platform.python_version()} configured {'with' if optimised else 'without'} --enable-optimizations"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    cores = sum(line.startswith("processor") for line in lines)
    return f"{cores} cores ({', '.join(models)}), Linux {platform.release().split('-')[0]}"


def plot(found: Everything) -> None:
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "bench", "font.size": 9, "svg.fonttype": "none"}
    from matplotlib import pyplot

    names = sorted(found.main, key=lambda name: _mid(found.main[name], lambda m: m.cpu_s_per_1k))
    colours = ["#2f6fdf" if name.startswith("ours-") else "#9aa4b2" for name in names]
    figure, (cpu, calls) = pyplot.subplots(1, 2, figsize=(9, 0.36 * len(names) + 1.1), sharey=True)
    for axes, title, value in (
        (cpu, "processor seconds per 1,000 messages", lambda m: m.cpu_s_per_1k),
        (calls, "AWS calls per 1,000 messages", lambda m: m.calls_per_1k),
    ):
        heights = [_mid(found.main[name], value) for name in names]
        bars = axes.barh(names, heights, color=colours)
        axes.bar_label(bars, [f"{h:,.2f}" if h < 20 else f"{h:,.0f}" for h in heights], padding=3)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    cpu.invert_yaxis()
    figure.tight_layout()
    figure.savefig(HERE / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
