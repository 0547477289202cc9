"""`python -m tests.world SEED`: play one story and tell it. `python -m tests.world FIRST LAST`: play many."""

import logging
import sys
import time
from collections import Counter
from dataclasses import asdict

import structlog

from tests.world.story import play


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, last = int(sys.argv[1]), int(sys.argv[-1])
    failed = 0
    total = Counter[str]()
    started = time.process_time()
    for seed in range(first, last + 1):
        try:
            told = play(seed)
        except AssertionError as fault:
            failed += 1
            print(f"--- seed {seed}\n{fault}", flush=True)
            continue
        if first == last:
            print("\n".join(map(str, told.plan)))
        total.update({name: value for name, value in asdict(told).items() if isinstance(value, int | float)})
    print(
        f"{last - first + 1} stories, {failed} failed: {total['requests']} requests in {total['messages']} messages, "
        f"{total['calls']} calls, {total['struck']} struck, {total['kills']} kills, {total['drains']} drains, "
        f"{total['copies']} copies, each with its reason; {total['seconds'] / 3600:.1f} h told in "
        f"{time.process_time() - started:.0f} s of one processor"
    )
    return 1 if failed else 0


sys.exit(main())
