"""Plays a scenario second by second, with the daemon's own board: readings that are late, reports, budgets, choices.

Only what lies outside of the dispatcher is made up here: clients, queues, workers, and what SQS's counts show. A
message waits from its arrival in the master queue until a worker takes it.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from dispatcher.board import READINGS_PER_TTL, Board, RegionRules
from dispatcher.loops.depths import OUT_OF_PLAY_S
from dispatcher.model import Depth, Policy, Region
from dispatcher.policy.drain import Drain
from dispatcher.policy.fleet import Fleet, Report
from dispatcher.simulation.scenarios import Pool, Scenario

SLOTS = 1000  # the daemon's default
HALF_A_TICK_S = 0.5  # messages arrive all over their second and are counted at its end
SLEEPS_AFTER_S = 600


@dataclass(slots=True)
class Outcome:
    """What one policy made of a scenario. Waits in seconds, depths in messages."""

    policy: Policy
    waits: Counter[int] = field(default_factory=Counter)  # ticks waited to messages
    unserved: int = 0  # at the end
    max_depth: int = 0
    over_threshold: int = 0  # seconds in which a Region's queue was longer than its threshold, over all Regions
    aws_calls: int = 0  # readings and reports; what a message itself costs is the same for every policy
    fell_back_s: int = 0  # dispatcher-seconds in which the policy had given way to another
    depths: list[list[int]] = field(default_factory=list)  # a row of Regions for every few seconds
    depths_every_s: int = 1

    @property
    def served(self) -> int:
        return self.waits.total()

    @property
    def mean_wait_s(self) -> float:
        return sum(wait * count for wait, count in self.waits.items()) / max(1, self.served) + HALF_A_TICK_S

    def percentile_s(self, part: float) -> float:
        """Return the wait that this part of the messages did not exceed."""
        left = part * self.served
        for wait in sorted(self.waits):
            left -= self.waits[wait]
            if left <= 0:
                return wait + HALF_A_TICK_S
        return 0.0

    def summary(self) -> dict[str, float]:
        return {
            "mean_wait_s": round(self.mean_wait_s, 3),
            "p50_wait_s": self.percentile_s(0.5),
            "p99_wait_s": self.percentile_s(0.99),
            "max_depth": self.max_depth,
            "over_threshold": self.over_threshold,
            "messages": self.served,
            "unserved": self.unserved,
            "aws_calls": self.aws_calls,
            "fell_back_s": self.fell_back_s,
        }


class _Queue:
    """Messages in order, told apart only by the tick of their arrival in the master queue."""

    def __init__(self) -> None:
        self.count = 0
        self._runs: deque[list[int]] = deque()  # tick, messages

    def put(self, tick: int, count: int) -> None:
        self.count += count
        if self._runs and self._runs[-1][0] == tick:
            self._runs[-1][1] += count
        else:
            self._runs.append([tick, count])

    def take(self, count: int) -> Iterator[tuple[int, int]]:
        """Take up to `count` from the front."""
        while count > 0 and self._runs:
            run = self._runs[0]
            taken = min(count, run[1])
            run[1] -= taken
            if not run[1]:
                self._runs.popleft()
            self.count -= taken
            count -= taken
            yield run[0], taken


class _Region:
    """One Region's queue and workers, as they are, and what its counts showed a while ago."""

    def __init__(self, pool: Pool, lag_s: float, random: Random) -> None:
        self._pool = pool
        self._random = random
        self.queue = _Queue()
        self.queue.put(0, pool.backlog)
        self._returned = 0  # from lost workers: their first wait is over, and was counted
        self._busy = pool.workers if pool.backlog else 0
        self._idle_s = 0
        self._awake_at = 0
        # what waits at the start is what is left of more: workers were at it before
        before = [round(pool.backlog and pool.backlog + pool.drain * ago) for ago in range(round(lag_s), -1, -1)]
        self._shown = deque((Depth(visible, self._busy, 0) for visible in before), maxlen=len(before))

    @property
    def visible(self) -> int:
        return self.queue.count + self._returned

    @property
    def depth(self) -> Depth:
        """What a reading says now."""
        return self._shown[0]

    def work(self, tick: int, waits: Counter[int]) -> None:
        """Let a second pass: some messages are done, others begin."""
        workers = self._workers(tick)
        self._busy -= self._random.binomialvariate(self._busy, min(1.0, 1.0 / self._pool.service_s))
        if self._busy > workers:
            self._returned += self._busy - workers
            self._busy = workers
        again = min(self._returned, workers - self._busy)
        self._returned -= again
        self._busy += again
        for origin, count in self.queue.take(workers - self._busy):
            waits[tick - origin] += count
            self._busy += count
        self._shown.append(Depth(self.visible, self._busy, 0))

    def _workers(self, tick: int) -> int:
        pool = self._pool
        if pool.cold_start_s:
            self._idle_s = 0 if self.visible or self._busy else self._idle_s + 1
            if self._idle_s >= SLEEPS_AFTER_S or self._awake_at < 0:
                if not self.visible:
                    self._awake_at = -1
                elif self._awake_at < 0:
                    self._awake_at = tick + round(pool.cold_start_s)
            if self._awake_at < 0 or tick < self._awake_at:
                return 0
        return round(pool.workers * pool.left(tick))


class _Dispatcher:
    """One dispatcher: the daemon's board, and the beats on which it reads and reports."""

    def __init__(self, name: str, scenario: Scenario, policy: Policy, random: Random, now: Callable[[], float]) -> None:
        self.name = name
        self._scenario = scenario
        self._random = random
        self._now = now
        fleet = Fleet(scenario.reading_s, lag_s=scenario.lag_s) if scenario.dispatchers > 1 else None
        self._alone = fleet is None
        self.board = Board(
            {region: RegionRules(pool.weight, scenario.threshold, None) for region, pool in scenario.regions.items()},
            ttl_s=scenario.reading_s * READINGS_PER_TTL,
            slots=SLOTS,
            random=random,
            now=now,
            policy=policy,
            lag_s=scenario.lag_s,
            fleet=fleet,
            drain=lambda region, _: _WrongDrain(wrong_by=scenario.wrong.get(region, 1.0)),
        )
        self._read_at = dict.fromkeys(scenario.regions, 0.0)
        self._last_read = dict.fromkeys(scenario.regions, 0.0)

    def look(self, regions: dict[Region, _Region], item: dict[str, Report], held: bool) -> int:
        """Read and report what is due; sooner while messages are held. Return how many calls that took."""
        now, calls = self._now(), 0
        for region, truth in regions.items():
            sooner = held and now - self._last_read[region] >= OUT_OF_PLAY_S and self.board.out_of_play(region)
            if now >= self._read_at[region] or sooner:
                self.board.post(region, truth.depth, self.board.begin_reading(region))
                # the first beat is anywhere within an interval, so that dispatchers are not in step
                spread = (0.0, 1.0) if now == 0 else (0.8, 1.2)
                self._read_at[region] = now + self._scenario.reading_s * self._random.uniform(*spread)
                self._last_read[region] = now
                calls += 1 + self._report(item)
        if self.board.wants_room():
            calls += self._report(item)
        return calls

    def _report(self, item: dict[str, Report]) -> int:
        if self._alone:
            return 0
        item[self.name] = self.board.report()
        self.board.learn_fleet({name: report for name, report in item.items() if name != self.name})
        return 1


@dataclass(slots=True)
class _WrongDrain(Drain):
    """An estimator that a scenario may force to be wrong."""

    wrong_by: float = 1.0

    def estimate(self, otherwise: float) -> float:
        return Drain.estimate(self, otherwise) * self.wrong_by


def play(
    scenario: Scenario,
    policy: Policy,
    seed: int,
    *,
    progress: Callable[[int], None] = lambda _: None,
    watch: Callable[[float, dict[Region, float]], None] | None = None,
) -> Outcome:
    """Return what the policy makes of the scenario; the same seed brings the same.

    `progress` hears of the ticks now and then, and `watch` at each of the first dispatcher's shares.
    """
    now = 0.0
    arrivals, choices = Random(f"{seed} arrivals"), Random(f"{seed} choices")
    outcome = Outcome(policy, depths_every_s=max(1, scenario.seconds // 600))
    regions = {
        region: _Region(pool, scenario.lag_s, Random(f"{seed} {region}")) for region, pool in scenario.regions.items()
    }
    dispatchers = [_Dispatcher(f"d{n}", scenario, policy, choices, lambda: now) for n in range(scenario.dispatchers)]
    master = _Queue()
    item: dict[str, Report] = {}
    for tick in range(scenario.seconds):
        held, now = master.count > 0, float(tick)
        for dispatcher in dispatchers:
            outcome.aws_calls += dispatcher.look(regions, item, held)
        now = tick + HALF_A_TICK_S  # what is sent in a second is in no reading that was asked for at its start
        master.put(tick, _poisson(scenario.rate(tick), arrivals))
        for turn in range(len(dispatchers)):
            dispatcher = dispatchers[(tick + turn) % len(dispatchers)]
            count = -(-master.count // (len(dispatchers) - turn))
            if not count:
                continue
            for region, part in dispatcher.board.allot(count).items():
                dispatcher.board.count(region, part)
                for origin, some in master.take(part):
                    regions[region].queue.put(origin, some)
        if watch:
            watch(now, dispatchers[0].board.shares())
        for truth in regions.values():
            outcome.max_depth = max(outcome.max_depth, truth.visible)
            outcome.over_threshold += truth.visible > scenario.threshold
            truth.work(tick, outcome.waits)
        outcome.fell_back_s += sum(dispatcher.board.policy is not policy for dispatcher in dispatchers)
        if tick % outcome.depths_every_s == 0:
            outcome.depths.append([truth.visible for truth in regions.values()])
            progress(tick)
    outcome.unserved = master.count + sum(truth.visible for truth in regions.values())
    return outcome


def _poisson(mean: float, random: Random) -> int:
    """Return one draw: many rare chances are as good as a Poisson process."""
    return random.binomialvariate(1_000_000, mean / 1_000_000) if mean > 0 else 0
