"""Thousands of stories. A failing one says in its first line how to play it again."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.world.story import Told, play

SEEDS = int(os.environ.get("TEST_WORLD_SEEDS", "2000"))
"""In all; the machine's cores share them. TEST_WORLD_FROM asks for others than those from 1 on."""
FIRST = int(os.environ.get("TEST_WORLD_FROM", "1"))
CHUNK = 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, CHUNK))
def test_whatever_happens_nothing_is_lost_and_copies_have_reasons(first: int) -> None:
    told = [play(seed) for seed in range(first, first + CHUNK)]

    def total(what: Callable[[Told], int]) -> int:
        return sum(what(one) for one in told)

    # the stories must be hard ones, or they prove nothing
    assert total(lambda one: one.struck) > CHUNK
    assert total(lambda one: one.kills) > CHUNK / 2
    assert total(lambda one: one.copies) > 0


def test_the_same_seed_tells_the_same_story() -> None:
    first, again = play(7), play(7)
    assert list(map(str, first.plan)) == list(map(str, again.plan))
    assert replace(first, plan=[]) == replace(again, plan=[])
