"""Feed the readers, the HTTP client and the flags with what nobody would send; see docs/reliability.md.

    python3 scripts/fuzz.py [reader|client|arguments|all] [--cases N] [--seed S] [--first N]
    python3 scripts/fuzz.py TARGET --again FILE

Prints its seed first and a table in Markdown last. Where something is not as promised, the input is kept in a file, and
how to run it again is printed; the exit code is 1. Needs POSIX. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from contextlib import closing
from pathlib import Path

import options
from environment import ROOT, run_with_tests, say
from fuzzing import runs

sys.path.append(str(ROOT / "tests"))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fuzzing.runs import Target

CASES = {"reader": 1_000_000, "client": 20_000, "arguments": 100_000}
"""How many cases a run has of each target, unless it is told."""


def main(arguments: list[str]) -> int:
    """Run what is asked for; the exit code."""
    wanted = _wanted_of(arguments)
    names = list(CASES) if wanted.target == "all" else [wanted.target]
    if wanted.again:
        return _again(names[0], wanted.again)
    print(f"seed: {wanted.seed}", flush=True)
    results = []
    for name in names:
        with closing(_target(name)) as target:
            results.append(runs.run(target, wanted.seed, wanted.cases or CASES[name], wanted.first, wanted.findings))
    print("\n".join(["", runs.HEAD, *(figures.row() for figures in results)]))
    return 1 if any(figures.findings for figures in results) else 0


def _wanted_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files, the HTTP client and the flags.")
    parser.add_argument("target", nargs="?", choices=[*CASES, "all"], default="all")
    parser.add_argument("--cases", type=options.count, help="how many of each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--first", type=options.number, default=0, help="the number of the first case")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where inputs are kept")
    parser.add_argument("--again", type=options.old_file, help="run the input in this file, once")
    wanted = parser.parse_args(arguments)
    if wanted.again and wanted.target == "all":
        parser.error("--again goes with one target")
    return wanted


def _target(name: str) -> Target:
    made: Target = getattr(importlib.import_module(f"fuzzing.{name}"), name.capitalize())()
    return made


def _again(name: str, path: Path) -> int:
    """Run one input; what it raises is seen."""
    with closing(_target(name)) as target:
        target.run(path.read_bytes())
    say(f"{path}: as promised")
    return 0


if __name__ == "__main__":
    run_with_tests(main)
