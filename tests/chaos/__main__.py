"""`make chaos` and `make soak`: the long forms. Exit status 0: nothing lost, every copy explained, nothing leaked."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from dispatcher.demo.cloud import embedded
from tests.chaos.run import Books, Summary, chaos
from tests.scenarios.world import provisioned, world_of

GROWTH_MAX = 0.02
"""Of the memory of a dispatcher, from the first third to the last, once it is warm: what the soak is for."""


async def play(arguments: argparse.Namespace) -> Summary:
    with embedded("ministack") as cloud:
        os.environ.update(cloud.environment)
        resources = await provisioned()
        books = Books()
        with tempfile.TemporaryDirectory() as folder:
            async with world_of(cloud, resources, Path(folder), books.hear) as world:
                world.quiet = not arguments.logs
                return await chaos(
                    world,
                    books,
                    seed=arguments.seed,
                    seconds=arguments.minutes * 60,
                    rate=arguments.rate,
                    kills=not arguments.no_kills,
                    say=lambda line: print(line, file=sys.stderr, flush=True),
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long messages are sent (5)")
    parser.add_argument("--rate", type=float, default=30.0, help="messages a second (30)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10000, help="of the weather and the deaths")
    parser.add_argument("--no-kills", action="store_true", help="faults only")
    parser.add_argument("--logs", action="store_true", help="print the ends of the dispatchers' logs")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    summary = asyncio.run(play(arguments))
    wrong = summary.faults_found
    if summary.rss_growth is not None and summary.rss_growth > GROWTH_MAX:
        wrong.append(f"memory grew by {summary.rss_growth:.1%}; {GROWTH_MAX:.0%} are allowed")
    if arguments.json:
        print(json.dumps(asdict(summary) | {"wrong": wrong}, indent=2))
    else:
        print("\n".join(summary.lines()))
        print("\n".join(f"WRONG: {fault}" for fault in wrong) or "all is well")
        if wrong:
            print(f"again: make chaos ARGS='--seed {summary.seed} --minutes {arguments.minutes:g}'")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
