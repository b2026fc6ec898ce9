"""What a call of the command costs, as ratios to bare Python in the same run.

    python3 scripts/bench.py [--rounds N] [--git | --search | --peers [--real]] [--json FILE]

Each figure is the CPU time (user + system) of whole processes, the median of many rounds, divided by
that of `python -I -c "import argparse, sqlite3"`. All cases take turns within each round, so that a
machine that is busy or slows down meets all of them alike. Turns go to the tests' stand-in for Ollama
on loopback, whose own time is not counted. The project is installed into an environment of its own,
byte-compiled, as users have it. POSIX only: Windows does not tell a child's CPU time.

With --git instead what a store of 20,000 sessions under git costs, as ratios to what git itself takes for the same,
and a listing after 500 sessions were pulled as a ratio to a listing. That takes minutes.

With --search instead what finding something takes in 10,000 sessions of 50 kB, and how many MB of them are indexed in
a second of CPU time. Their words are made up, as frequent as words are (Zipf), 200,000 of them.

With --peers instead the same side by side with programs that do similar things (`comparison`), and with --real also a
conversation on the Ollama at OLLAMA_HOST (`real_ollama`). Tables go to stdout, in Markdown, with --json FILE also as
data; what is being done goes to stderr. That takes about an hour; --few has small stores only, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import ROOT, Environment, Failed, say

sys.path.insert(0, str(ROOT / "tests"))

import bench_server
import comparison
import measured
import peers
import real_ollama
import stores
from report import Report
from standin import StandIn

FLOOR = ["-I", "-c", "import argparse, sqlite3"]
MODEL = "smollm2"
TARGETS = {
    "--help": 1.2,
    "--version": 1.2,
    "usage error": 1.2,
    "--list-sessions, 10": 1.5,
    "--list-sessions, 10,000": 3.5,
    "new turn": 4.2,
    "continued turn": 4.2,
}
WHO = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), "bench")
GIT_RATIOS = {
    "--sync of one turn": "git add -A && git commit",
    "--sync without news": "git fetch",
    "--list-sessions after 500 were pulled": "--list-sessions",
}
"""Case → what it is compared with."""
SEARCHES = {
    "--search, a rare word": "word150000",
    "--search, two words": "word700 word900",
    "--search, a part of words": "ord1234",
    "--search, with punctuation": "word5000,",
    "--search, in every message": "word0",
}
SEARCH_TARGET, INDEXING_TARGET = 6.0, 30.0
NUMBERS = itertools.count()


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
            **WHO,
        }
        return subprocess.run(command, env=given, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout

    def measure(self, rounds: int) -> None:
        """Run every case in turn, round after round; the first round only warms up."""
        for number in range(rounds + 1):
            for name, (command, home) in self.cases.items():
                self.time(name, command, home, counts=number > 0)

    def time(self, name: str, command: list[str], home: Path, counts: bool = True) -> None:
        """Run a command once and note what it took."""
        before = spent_by_children()
        self.run(command, home)
        if counts:
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


class Repositories:
    """A large store under git, and a clone of it on another machine."""

    def __init__(self, bench: Bench, sessions: int) -> None:
        self.bench = bench
        self.home, self.other, self.between = (bench.folder / name for name in ("git", "other", "between.git"))
        store(bench, "git", sessions, 2)
        self.do("--git-setup")

    def do(self, *arguments: str) -> None:
        """The command, on the store."""
        self.bench.run([self.bench.command, *arguments], self.home)

    def share(self) -> None:
        """Have a remote, and the other clone."""
        git("clone", "--bare", str(self.home), str(self.between))
        self.do("--git-setup", "--remote", str(self.between))
        self.do("--sync")
        git("clone", str(self.between), str(self.other))

    def pull(self, sessions: int) -> None:
        """Have turns in so many sessions come from the other machine."""
        git("-C", str(self.other), "pull")
        add_turns(self.other, sessions)
        git("-C", str(self.other), "commit", "--all", "--message", "turns")
        git("-C", str(self.other), "push")
        git("-C", str(self.home), "pull", "origin", "main")


def git(*arguments: str) -> None:
    """git, which must go well."""
    done = subprocess.run(["git", *arguments], env={**os.environ, **WHO}, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"git {' '.join(arguments)}: {done.stderr.strip()}")


def add_turns(home: Path, sessions: int) -> None:
    """A question and its answer in each of so many sessions."""
    for path in sorted(home.glob("sessions/*/*.jsonl"))[:sessions]:
        now = time.time_ns() // 1_000_000
        at = {"created_at": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())}
        for role in ("user", "assistant"):
            id_ = stores.new_id(next(NUMBERS), now)
            stores.add(path, stores.line(stores.message(0, role, "And why is it so?", **at, id=id_)))


def measure_git(bench: Bench, rounds: int) -> None:
    """Measure what GIT_RATIOS names; each side in turn."""
    repositories = Repositories(bench, 20_000)
    home = repositories.home
    in_store = ["git", "-C", str(home)]
    commit = ["sh", "-c", "git -C $OLLAMA_PROMPT_HOME add -A && git -C $OLLAMA_PROMPT_HOME commit -qm turn"]
    for number in range(rounds + 1):
        for name, command in (("git add -A && git commit", commit), ("--sync of one turn", [bench.command, "--sync"])):
            add_turns(home, 1)
            bench.time(name, command, home, counts=number > 0)
    repositories.share()
    for number in range(rounds + 1):
        bench.time("git fetch", [*in_store, "fetch", "-q", "origin"], home, counts=number > 0)
        bench.time("--sync without news", [bench.command, "--sync"], home, counts=number > 0)
    listing = [bench.command, "--list-sessions"]
    for number in range(min(rounds, 9) + 1):
        repositories.pull(500)
        bench.time("--list-sessions after 500 were pulled", listing, home, counts=number > 0)
        time.sleep(0.1)
        repositories.do("--list-sessions")  # what was read right after it changed is read once more
        bench.time("--list-sessions", listing, home, counts=number > 0)


def report_git(bench: Bench) -> None:
    """Print the table, in Markdown."""
    say(f"\n20,000 sessions, Python {sys.version.split()[0]}\n")
    say("| case | ms CPU | ratio | to |")
    say("|---|---|---|---|")
    for name, other in GIT_RATIOS.items():
        spent = bench.median(name)
        say(f"| {name} | {1000 * spent:.0f} | {spent / bench.median(other):.2f} | {other} |")


def make_texts(home: Path, sessions: int, size: int) -> int:
    """Sessions of so many bytes; how many MB that is."""
    chance = random.Random(1)
    words = [f"word{number}" for number in range(200_000)]
    weights = list(itertools.accumulate(1 / (number + 1) for number in range(len(words))))
    for number in range(sessions):
        lines = [stores.line(stores.header(stores.new_id(number)))]
        while sum(map(len, lines)) < size:
            text = ", ".join(chance.choices(words, cum_weights=weights, k=250))
            lines.append(stores.line(stores.message(next(NUMBERS), "user", text)))
        stores.make(home, number, b"".join(lines))
    return sessions * size // 1_000_000


def measure_search(bench: Bench, rounds: int) -> None:
    """Index a large store, search it, and print the tables, in Markdown."""
    say("making 10,000 sessions of 50 kB …")
    megabytes = make_texts(bench.folder / "texts", 10_000, 50_000)
    bench.run([bench.command, "--list-sessions"], bench.folder / "texts")
    say("indexing …")
    bench.time("indexing", [bench.command, "--search", "x"], bench.folder / "texts")
    bench.cases["floor"] = ([bench.python, *FLOOR], bench.folder)
    bench.add("--list-sessions", "--list-sessions", home="texts")
    for name, query in SEARCHES.items():
        bench.add(name, "--search", query, home="texts")
    say(f"measuring, {rounds} rounds …")
    bench.measure(rounds)
    say("\n| case | x floor | target |\n|---|---|---|")
    for name in bench.cases:
        target = SEARCH_TARGET if name in SEARCHES else ""
        say(f"| {name} | {bench.median(name) / bench.median('floor'):.2f} | {target} |")
    rate = megabytes / bench.median("indexing")
    say(f"| indexing, MB a second of CPU time | {rate:.0f} (not x floor) | {INDEXING_TARGET:.0f} |")


def compare(rounds: int, wanted: argparse.Namespace) -> Report:
    """Ours and its peers, side by side."""
    with contextlib.redirect_stdout(sys.stderr), measured.folder() as folder, bench_server.running() as server:
        every = [peers.Ours(), peers.FirstMajor(), peers.Llm(), peers.ShellGpt()]
        programs, told = comparison.ready(every, folder, server.url)
        if every[0] not in programs:
            raise Failed(told[every[0].name])
        made = comparison.Comparison(programs, folder, server, rounds)
        made.starting()
        made.sessions(comparison.SIZES[: 2 if wanted.few else None])
        made.turns(comparison.TURNS[: 2 if wanted.few else None])
        made.at_once()
        if wanted.real:
            made.tables.append(real_ollama.measure(programs, folder, 6 if wanted.few else 18))
    notes = [program.note for program in programs if program.note]
    absent = [program.name for program in every if program not in programs]
    return Report(told, absent, notes, made.tables, made.floors)


def measure(wanted: argparse.Namespace) -> None:
    """Ours alone."""
    program = peers.Ours()
    program.install()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    server = StandIn()
    try:
        bench = Bench(program.environment, folder, server)
        if wanted.git:
            measure_git(bench, wanted.rounds)
            report_git(bench)
        elif wanted.search:
            measure_search(bench, wanted.rounds)
        else:
            say("making stores …")
            prepare(bench)
            say(f"measuring, {wanted.rounds} rounds …")
            bench.measure(wanted.rounds)
            report(bench)
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def flags() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="CPU time of the command as ratios to bare Python")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--git", action="store_true", help="a store under git instead")
    parser.add_argument("--search", action="store_true", help="a large store that is searched instead")
    parser.add_argument("--peers", action="store_true", help="side by side with other programs instead")
    parser.add_argument("--real", action="store_true", help="with --peers: also on a real Ollama")
    parser.add_argument("--few", action="store_true", help="with --peers: small stores only")
    parser.add_argument("--json", metavar="FILE", help="with --peers: the raw figures")
    return parser.parse_args()


def main() -> int:
    """Measure; the exit code."""
    wanted = flags()
    try:
        if not wanted.peers:
            measure(wanted)
            return 0
        found = compare(wanted.rounds, wanted)
    except (Failed, peers.Missing) as failure:
        say(f"error: {failure}")
        return 1
    say(found.markdown())
    if wanted.json:
        found.write(wanted.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
