"""`python -m tests.world SEED`: play one story and tell it. `python -m tests.world FIRST LAST`: play many."""

import logging
import sys
import time

import structlog

from tests.world.story import play


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, last = int(sys.argv[1]), int(sys.argv[-1])
    failed = 0
    for seed in range(first, last + 1):
        started = time.process_time()
        try:
            told = play(seed)
        except AssertionError as fault:
            failed += 1
            print(f"--- seed {seed}\n{fault}")
            continue
        if first == last:
            print("\n".join(told.plan))
        print(f"seed {seed}: {told.messages} messages, {told.copies} copies, {told.calls} calls, {told.struck} struck, "
              f"{told.kills} kills, {told.seconds:.0f} s told in {time.process_time() - started:.2f} s")  # fmt: skip
    return 1 if failed else 0


sys.exit(main())
