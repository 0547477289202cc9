"""Hypothesis plays: any interleaving of dispatchers, clients, crashes and weather, made as hostile as it can find."""

import asyncio
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.virtual_time import virtual_runner
from tests.world.story import OPERATIONS, POISON
from tests.world.wire import Kind, Spell
from tests.world.world import REGIONS, World

PATH = tuple(name for name in OPERATIONS if name not in ("get_item", "get_queue_attributes"))
ids = st.sampled_from([f"r{n}" for n in range(6)])


class Machine(RuleBasedStateMachine):
    """Each step is one event and some time after it. In the end the weather clears and everything must be well."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = virtual_runner()
        self.world: World

    def after(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    def happen(self, what: Any, *arguments: Any, **more: Any) -> Any:
        """Call `what` inside the loop."""

        async def inside() -> Any:
            return what(*arguments, **more)

        return self.runner.run(inside())

    @initialize(
        batching=st.booleans(),
        seed=st.integers(0, 9),
        threshold=st.sampled_from([3, 5000]),
        drain=st.sampled_from([1, 10]),
    )
    def begin(self, batching: bool, seed: int, threshold: int, drain: int) -> None:
        self.world = self.happen(
            World, seed, ledger_batching=batching, overload_threshold=threshold, drain_timeout_seconds=drain
        )
        self.happen(self.world.start)
        if threshold < 5000:
            for region in REGIONS:
                self.happen(self.world.work, region, 2.0)

    @rule(request_id=ids, again=st.booleans(), count=st.integers(1, 3))
    def submit(self, request_id: str, again: bool, count: int) -> None:
        for _ in range(count):
            known = self.world.requests.get(request_id)
            self.happen(self.world.submit, request_id, generation=known.generation + 1 if again and known else 0)

    @rule(body=st.sampled_from(POISON))
    def poison(self, body: str) -> None:
        self.happen(self.world.submit_raw, body)

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.3, 1.0, 3.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.after(seconds)

    @rule(
        kind=st.sampled_from(list(Kind)),
        operation=st.sampled_from(PATH),
        region=st.sampled_from(["", *REGIONS]),
        most=st.integers(1, 4),
        lasts=st.sampled_from([0.1, 2.0, 10.0]),
    )
    def weather(self, kind: Kind, operation: str, region: str, most: int, lasts: float) -> None:
        now = self.world.aws.now()
        self.world.weather(Spell(kind, now, now + lasts, operation, region, most))

    @precondition(lambda self: len(self.world.alive) < 3)
    @rule(skew_s=st.sampled_from([0.0, 300.0, -300.0]))
    def start(self, skew_s: float) -> None:
        self.happen(self.world.start, skew_s=skew_s)

    @precondition(lambda self: self.world.alive)
    @rule(which=st.integers(0, 2), steps=st.integers(0, 12))
    def kill(self, which: int, steps: int) -> None:
        """Now, or at one of its next steps."""
        process = self.world.alive[which % len(self.world.alive)]
        last = len(process.life.passed) + steps
        process.life.dies = lambda point, number: number >= last
        if steps == 0:
            self.happen(process.kill)

    @precondition(lambda self: self.world.alive)
    @rule(which=st.integers(0, 2))
    def drain(self, which: int) -> None:
        self.happen(self.world.alive[which % len(self.world.alive)].drain)

    @rule()
    def redrive(self) -> None:
        self.happen(self.world.redrive)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.runner.run(self.world.settle())
                self.world.check()
            finally:
                self.runner.run(self.world.end())
        self.runner.close()


def test_any_interleaving_of_dispatchers_crashes_and_faults_loses_nothing() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
