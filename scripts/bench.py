"""What a call of the command costs, as ratios to bare Python in the same run.

    python3 scripts/bench.py [--rounds N]

Each figure is the CPU time (user + system) of whole processes, the median of many rounds, divided by
that of `python -I -c "import argparse, sqlite3"`. All cases take turns within each round, so that a
machine that is busy or slows down meets all of them alike. Turns go to the tests' stand-in for Ollama
on loopback, whose own time is not counted. The project is installed into an environment of its own,
byte-compiled, as users have it. POSIX only: Windows does not tell a child's CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import ROOT, Environment, Failed, say

sys.path.insert(0, str(ROOT / "tests"))

from standin import StandIn

FLOOR = ["-I", "-c", "import argparse, sqlite3"]
MODEL = "smollm2"
TARGETS = {
    "--help": 1.3,
    "--version": 1.3,
    "usage error": 1.3,
    "--list-sessions, 10": 1.6,
    "--list-sessions, 10,000": 4.0,
    "new turn": 4.5,
    "continued turn": 4.5,
}


class Bench:
    """The cases, each a command and the store it runs on; and what they took."""

    def __init__(self, environment: Environment, folder: Path, server: StandIn) -> None:
        self.python = str(environment.python)
        self.command = str(environment.command("ollama-prompt"))
        self.folder = folder
        self.server = server
        self.cases: dict[str, tuple[list[str], Path]] = {}
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, *arguments: str, home: str = "turns") -> None:
        """A case: the command with these arguments, on this store."""
        self.cases[name] = ([self.command, *arguments], self.folder / home)

    def run(self, command: list[str], home: Path) -> bytes:
        """Run a command once; what it printed."""
        given = {
            "PATH": os.defpath,
            "HOME": str(self.folder),
            "OLLAMA_HOST": self.server.url,
            "OLLAMA_PROMPT_HOME": str(home),
            "OLLAMA_PROMPT_MODEL": MODEL,
            "OLLAMA_PROMPT_NO_SERVE": "1",
        }
        return subprocess.run(command, env=given, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout

    def measure(self, rounds: int) -> None:
        """Run every case in turn, round after round; the first round only warms up."""
        for number in range(rounds + 1):
            for name, (command, home) in self.cases.items():
                before = spent_by_children()
                self.run(command, home)
                if number:
                    self.times.setdefault(name, []).append(spent_by_children() - before)

    def median(self, name: str) -> float:
        """The median CPU time of a case, in seconds."""
        return statistics.median(self.times[name])


def spent_by_children() -> float:
    """User and system time of all child processes that ended so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def store(bench: Bench, home: str, sessions: int, turns: int) -> str:
    """Make a store of so many sessions of so many turns, as the command itself writes them; the last id."""
    script = ROOT / "scripts" / "make_store.py"
    command = [bench.python, str(script), str(bench.folder / home), str(sessions), str(turns)]
    made: str = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["session_id"]
    bench.run([bench.command, "--list-sessions"], bench.folder / home)
    bench.run([bench.command, "--list-sessions"], bench.folder / home)
    return made


def prepare(bench: Bench) -> None:
    """Make the stores and the cases."""
    bench.cases["floor"] = ([bench.python, *FLOOR], bench.folder)
    bench.add("--help", "--help")
    bench.add("--version", "--version")
    bench.add("usage error", "--no-such-flag")
    for name, sessions in (("10", 10), ("10,000", 10_000)):
        store(bench, f"list-{sessions}", sessions, 2)
        bench.add(f"--list-sessions, {name}", "--list-sessions", home=f"list-{sessions}")
    bench.add("new turn", "-p", "What is a monad?")
    for name, turns in (("10th turn", 10), ("10,000th turn", 10_000)):
        session = store(bench, f"turn-{turns}", 1, turns)
        bench.add(name, "-p", "Say it again.", "--session-id", session, home=f"turn-{turns}")
    first: dict[str, Any] = json.loads(bench.run([bench.command, "-p", "Hello."], bench.folder / "turns"))
    bench.add("continued turn", "-p", "Say it again.", "--session-id", first["session_id"])


def report(bench: Bench) -> None:
    """Print the table, in Markdown."""
    floor = bench.median("floor")
    say(f"\nfloor: {1000 * floor:.1f} ms CPU, Python {sys.version.split()[0]}\n")
    say("| case | x floor | target |")
    say("|---|---|---|")
    for name in bench.cases:
        say(f"| {name} | {bench.median(name) / floor:.2f} | {TARGETS.get(name, '')} |")
    ratio = bench.median("10,000th turn") / bench.median("10th turn")
    say(f"| 10,000th turn / 10th turn | {ratio:.2f} (not x floor) | 1.2 |")


def install(environment: Environment) -> None:
    """The project as it is now, not editable: as users have it."""
    environment.make()
    environment.install(".")
    again = [str(environment.python), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", "--compile", "."]
    if subprocess.run(again, cwd=ROOT, check=False).returncode:
        raise Failed("pip could not install the project; its message is above")


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description="CPU time of the command as ratios to bare Python")
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    environment = Environment(".venv-bench")
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    server = StandIn()
    try:
        install(environment)
        bench = Bench(environment, folder, server)
        say("making stores …")
        prepare(bench)
        say(f"measuring, {rounds} rounds …")
        bench.measure(rounds)
        report(bench)
    except Failed as failure:
        say(f"error: {failure}")
        return 1
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
