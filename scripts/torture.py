"""Everything at once, for as long as wanted: nothing that was acknowledged is lost, and all that is printed is true.

    python3 scripts/torture.py [--seconds N] [--seed S] [--processes N] [--store DIR]

Many processes of the real command work on the same stores, on the real disk, in rounds. Each round has a scene:

    disk       turns, forks, undos, retries, deletions, purges, new indexes; editors, replaced files, a wrong clock,
               files that cannot grow, a server that fails
    git        the same on two machines that sync and pull from each other
    full disk  the same on a file system of a few megabytes that fills up again and again (needs root, for mount)

Commands get SIGKILL, SIGINT or SIGTERM at any moment. When all of a round have ended, the files are read by
`torturing.reader`, which knows only the documented format, and compared with what was acknowledged
(`torturing.ledger`), and with what the listing, a listing by a new index, --check and --search say.

The seed goes to stderr first. It decides what is done, and not how the processes meet: that is the system's to decide,
and differs each time. A broken promise ends the run with exit code 1, and the stores stay for a look. At the end
there is a table in Markdown on stdout. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import options
from environment import ROOT, run_with_tests
from torturing.processes import Broken, World
from torturing.scenes import scenes

sys.path.append(str(ROOT / "tests"))

from standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND_SECONDS = 12.0
GROUPS = ("operations", "kills", "faults", "refused", "turns acknowledged", "damaged lines")
"""What is counted, as the table has it."""


def torture(world: World, seconds: float, processes: int) -> None:
    """Round after round, each scene at least once."""
    made, end, number = list(scenes(world)), time.monotonic() + seconds, 0
    try:
        while number < len(made) or time.monotonic() < end:
            scene = made[number % len(made)]
            number += 1
            world.tally.count("rounds", scene.name)
            scene.round(processes, max(min(ROUND_SECONDS, seconds / len(made)), 1.0))
            done = f"{world.tally.total('operations')} operations, {world.tally.total('kills')} kills"
            print(f"round {number} ({scene.name}): {done}, {len(world.tally.broken)} broken promises", file=sys.stderr)
            if world.tally.broken:
                raise Broken
    finally:
        for scene in made:
            scene.close()


def report(world: World, seconds: float) -> Iterator[str]:
    """The table, in Markdown."""
    tally = world.tally
    yield f"seed {world.seed}, {seconds:.0f} seconds, {tally.total('rounds')} rounds, {os.cpu_count()} cores\n"
    yield "| what | how often | of which |"
    yield "|---|---|---|"
    for group in GROUPS:
        parts = ", ".join(f"{kind} {number:,}" for kind, number in tally.counts.get(group, Counter()).most_common())
        yield f"| {group} | {tally.total(group):,} | {parts} |"
    broken = tally.counts.get("broken", Counter())
    yield f"| **turns lost** | {broken['lost']} | |"
    differences = sum(broken[what] for what in ("listing", "index", "check", "search"))
    yield f"| **differences between files, index, listing, check and search** | {differences} | |"
    yield f"| **other broken promises** | {broken.total() - broken['lost'] - differences} | |"
    yield from (f"\n{note}" for note in tally.notes)


def wanted_of(arguments: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Many processes, kills and faults; then a check of what was promised")
    parser.add_argument("--seconds", type=options.seconds, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--processes", type=options.count, default=6)
    parser.add_argument("--store", type=Path, help="an empty folder for the stores, which then stay there")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Torture; the exit code."""
    wanted = wanted_of(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was mounted is unmounted
    print(f"seed {wanted.seed}", file=sys.stderr, flush=True)
    folder = wanted.store.absolute() if wanted.store else Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"error: {folder} is not empty", file=sys.stderr)
        return 2
    server, start = StandIn(), time.monotonic()
    try:
        world = World(folder, wanted.seed, server)
        with suppress(Broken):
            torture(world, wanted.seconds, wanted.processes)
    finally:
        server.close()
    print("\n".join(report(world, time.monotonic() - start)))
    return conclude(world, keep=wanted.store is not None)


def conclude(world: World, keep: bool) -> int:
    """Say which promises are broken; the exit code."""
    for problem in world.tally.broken:
        print(f"broken promise: {problem}", file=sys.stderr)
    if world.tally.broken:
        print(f"seed {world.seed}; the stores are in {world.folder}", file=sys.stderr)
        return 1
    if not keep:
        shutil.rmtree(world.folder)
    return 0


if __name__ == "__main__":
    run_with_tests(main)
