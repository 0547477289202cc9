"""Attempt to seconds. Pure."""

from random import Random


def backoff_s(attempt: int, random: Random, *, first_s: float = 0.2, most_s: float = 5.0) -> float:
    """Seconds to wait before trying again after failure number `attempt` (from 0): exponential, half of it jitter."""
    ceiling = min(most_s, first_s * 2.0 ** min(attempt, 16))
    return ceiling * random.uniform(0.5, 1.0)
