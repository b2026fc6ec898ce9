"""What a store of 20,000 sessions under git costs, beside what git itself takes for the same; takes minutes.

Each round of a `--sync` of one turn has a turn of its own, in a session that is there. A listing after a pull meets 500
sessions that another machine has continued; the one beside it meets none.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from typing import TYPE_CHECKING

import stores
from environment import Failed

from benchmarking.comparison import Cases, Comparison, same
from benchmarking.costs import Process
from benchmarking.peers import Program

if TYPE_CHECKING:
    from pathlib import Path

SESSIONS, PULLED, PULLS = 20_000, 500, 9
NUMBERS = itertools.count()


class Git(Program):
    """git itself. Its arguments are one line of shell, run in the store."""

    name = "git"
    script = "git"

    def start(self, arguments: list[str], home: Path) -> Process:
        return Process(["sh", "-c", f"cd '{home}' && {arguments[0]}"], {"PATH": os.defpath, "HOME": str(home.parent)})


def version() -> str:
    """Which git this is."""
    return subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def measure(made: Comparison) -> None:
    """Both sides in turn."""
    ours, itself, home = made.programs[0], Git(), made.folder / "git"
    ours.fill(home, SESSIONS, 2)
    ours.settle(home)
    ours.must(["--git-setup"], home)
    name_author(home)

    def cases(name: str, arguments: list[str], line: str, turns: int) -> Cases:
        """The same by the command and by git, each after so many turns."""
        pair = ((ours, arguments), (itself, [line]))
        return {(name, one.name): same(one, home, *words, before=lambda: add_turns(home, turns)) for one, words in pair}

    table = made.times("A store under git")
    made.fill_in(table, cases("commit of one turn", ["--sync"], "git add -A && git commit -qm turn", 1))
    other = share(ours, home)
    made.fill_in(table, cases("sync without news", ["--sync"], "git fetch -q origin", 0))
    made.rounds = min(made.rounds, PULLS)  # a pull takes much longer than what is measured
    after = same(ours, home, *ours.listing(), before=lambda: pull(home, other))
    rested = same(ours, home, *ours.listing(), before=lambda: ours.settle(home))
    made.fill_in(table, {("list after 500 were pulled", ours.name): after, ("list", ours.name): rested})


def share(ours: Program, home: Path) -> Path:
    """Have a remote, and another machine's clone of it."""
    hub, other = home.with_name("hub.git"), home.with_name("other")
    git("clone", "--bare", str(home), str(hub))
    ours.must(["--git-setup", "--remote", str(hub)], home)
    ours.must(["--sync"], home)
    git("clone", str(hub), str(other))
    name_author(other)
    return other


def pull(home: Path, other: Path) -> None:
    """Have turns in many sessions come from the other machine."""
    git("-C", str(other), "pull")
    add_turns(other, PULLED)
    git("-C", str(other), "commit", "--all", "--message", "turns")
    git("-C", str(other), "push")
    git("-C", str(home), "pull", "origin", "main")


def name_author(repository: Path) -> None:
    """Who commits there."""
    for key in ("user.name", "user.email"):
        git("-C", str(repository), "config", key, "bench")


def git(*arguments: str) -> None:
    """git, which must go well."""
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"git {' '.join(arguments)}: {done.stderr.strip()}")


def add_turns(home: Path, sessions: int) -> None:
    """A question and its answer in each of so many sessions."""
    at = {"created_at": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())}
    for path in stores.files(home)[:sessions]:
        for role in ("user", "assistant"):
            id_ = stores.new_id(next(NUMBERS), time.time_ns() // 1_000_000)
            stores.add(path, stores.line(stores.message(0, role, "And why is it so?", **at, id=id_)))
