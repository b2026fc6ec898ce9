"""What finding something takes in 10,000 sessions of 50 kB, and what indexing them takes.

Their words are made up, 200,000 of them, as frequent as words are (Zipf).
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import stores
from environment import say

from benchmarking.comparison import Comparison, same
from benchmarking.tables import Table, Target

if TYPE_CHECKING:
    from pathlib import Path

SESSIONS, SIZE = 10_000, 50_000
WORDS = 200_000
QUERIES = {
    "a rare word": "word150000",
    "two words": "word700 word900",
    "a part of words": "ord1234",
    "with punctuation": "word5000,",
    "in every message": "word0",
}
SEARCH = Target(6)
MILLISECONDS_A_MB = Target(33)


def measure(made: Comparison) -> None:
    """Index a large store, and search it."""
    ours, home = made.programs[0], made.folder / "texts"
    say(f"making {SESSIONS:,} sessions of {SIZE // 1000} kB …")
    make_texts(home)
    ours.must(ours.listing(), home)
    say("indexing …")
    spent = 1000 * ours.must(["--search", "x"], home).cpu / (SESSIONS * SIZE / 10**6)
    table = Table("Indexing", "Milliseconds of CPU time for each MB.")
    table.add("at the first search", ours.name, {"value": spent, "text": f"{spent:.0f}"})
    table.targets = {"at the first search": MILLISECONDS_A_MB}
    made.tables.append(table)
    cases = {("list", ours.name): same(ours, home, *ours.listing())}
    for name, query in QUERIES.items():
        cases[name, ours.name] = same(ours, home, "--search", query)
    searches = made.times("Searching")
    made.fill_in(searches, cases)
    searches.targets = dict.fromkeys(QUERIES, SEARCH)


def make_texts(home: Path) -> None:
    """The sessions."""
    chance = random.Random(1)
    words = [f"word{number}" for number in range(WORDS)]
    weights = list(itertools.accumulate(1 / (number + 1) for number in range(WORDS)))
    numbers = itertools.count()
    for number in range(SESSIONS):
        lines = [stores.line(stores.header(stores.new_id(number)))]
        while sum(map(len, lines)) < SIZE:
            text = ", ".join(chance.choices(words, cum_weights=weights, k=250))
            lines.append(stores.line(stores.message(next(numbers), "user", text)))
        stores.make(home, number, b"".join(lines))
