"""What programs cost side by side: starting, turns, many sessions, long sessions, many processes.

Each figure is the CPU time (user + system) of a whole process, the median of some rounds, divided by that of the
floor, `python -I -c "import argparse, sqlite3"`, in the same rounds. All programs and cases of a table take turns
within each round. The first round only warms up. A case that took BUDGET seconds in all is not run again.

All programs ask the same server on loopback, which answers at once.
"""

from __future__ import annotations

import shutil
import statistics
from typing import TYPE_CHECKING, NamedTuple

from environment import Failed, say

from benchmarking.costs import Cost, run
from benchmarking.peers import Missing, Program, last_line
from benchmarking.servers import InstantOllama, InstantServer
from benchmarking.tables import Cell, Table, Target, size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLOOR = ["-I", "-c", "import argparse, sqlite3"]
BUDGET = 40.0
AT_ONCE = 20
OLD = 1000
SIZES = (10, 1_000, 10_000, 100_000)
TURNS = (10, 100, 1_000, 10_000)
ALONE = (10, 10_000)
TURN = Target(4.2)
TARGETS = {
    "--help": Target(1.2),
    "--version": Target(1.2),
    "usage error": Target(1.2),
    "new turn": TURN,
    "continued turn": TURN,
    "list of 10": Target(1.5),
    "list of 10,000": Target(3.5),
    "list of 100,000": Target(20, 120),
    "purge of 1,000 beside 10,000": Target(8),
    **{f"{kind} turn beside {number:,}": TURN for kind in ("new", "continued") for number in SIZES},
    **{f"turn {number:,}": TURN for number in TURNS},
}


class Case(NamedTuple):
    """Something that a program does again and again."""

    program: Program
    home: Path
    arguments: Callable[[], list[str]]
    before: Callable[[], None] | None = None
    may_fail: bool = False


Cases = dict[tuple[str, str], Case]
"""By what is done, and by which program."""


class Runs(NamedTuple):
    """What a case took, round after round, and how much it sent."""

    costs: list[Cost]
    sent: list[int]


class Comparison:
    """Programs, a folder for their stores, and the tables so far."""

    def __init__(self, programs: list[Program], folder: Path, server: InstantServer, rounds: int) -> None:
        self.programs = programs
        self.folder = folder
        self.server = server
        self.rounds = rounds
        self.tables: list[Table] = []
        self.floors: list[float] = []
        self.last: dict[str, str] = {}
        """A session of each program's, in the store that is measured."""
        self.asked = 0

    def prompt(self) -> str:
        """One that was not asked before: shell-gpt has an answer to an old one without asking."""
        self.asked += 1
        return f"Question {self.asked}: what is a monad?"

    def measure(self, cases: Cases) -> tuple[float, dict[tuple[str, str], Runs]]:
        """The floor in seconds, and what each case took."""
        floors: list[float] = []
        runs = {key: Runs([], []) for key in cases}
        python = str(self.programs[0].environment.python)
        for _ in range(self.rounds + 1):
            floors.append(run([python, *FLOOR], {}).cpu)
            for key, case in cases.items():
                if sum(cost.clock for cost in runs[key].costs) < BUDGET:
                    self.round(case, runs[key])
        for one in runs.values():
            if len(one.costs) > 1:  # else the first already took the whole budget
                del one.costs[0], one.sent[0]
        self.floors.append(statistics.median(floors[1:]))
        return self.floors[-1], runs

    def round(self, case: Case, runs: Runs) -> None:
        """Run a case once."""
        if case.before:
            case.before()
        self.server.sent.clear()
        runs.costs.append(case.program.run(case.arguments(), case.home))
        runs.sent.append(sum(map(len, self.server.sent)))

    def fill_in(self, table: Table, cases: Cases) -> None:
        """Measure cases into a table of times."""
        say(f"measuring: {table.title} …")
        floor, runs = self.measure(cases)
        for (case, program), one in runs.items():
            table.add(case, program, time_cell(floor, one, cases[case, program].may_fail))
        table.targets = {case: TARGETS[case] for case in table.rows if case in TARGETS}

    def times(self, title: str, about: str = "") -> Table:
        """One more table, of times, to be filled in."""
        self.tables.append(Table(title, f"Times the floor (CPU time, peak memory). {about}".strip()))
        return self.tables[-1]

    def all(self, sizes: tuple[int, ...], turns: tuple[int, ...]) -> None:
        """What one process costs."""
        self.starting()
        self.sessions(sizes)
        self.turns(turns)

    def starting(self) -> None:
        """What a command costs that does nothing, and a turn."""
        cases = {}
        for program in self.programs:
            home = self.folder / "few" / program.name
            began = program.must(program.new(self.prompt()), home)
            cases.update(self.few(program, home, program.session_of(began, home)))
        self.fill_in(self.times("Starting, and a turn"), by_case(cases))

    def few(self, program: Program, home: Path, session: str) -> Cases:
        """The cases of a store with few sessions."""
        new, continued = self.turns_of(program, home, session)
        return {
            ("--help", program.name): same(program, home, "--help"),
            ("--version", program.name): same(program, home, "--version"),
            ("usage error", program.name): same(program, home, "--no-such-flag", may_fail=True),
            ("new turn", program.name): new,
            ("continued turn", program.name): continued,
        }

    def sessions(self, sizes: tuple[int, ...]) -> None:
        """What a command costs beside so many sessions."""
        table = self.times("Many sessions", f"A purge removes {OLD:,} old sessions.")
        for number in sizes:
            self.fill_in(table, self.lists(number))
            self.fill_in(table, self.turns_beside(number))
            self.fill_in(table, self.purges(table, number))
            shutil.rmtree(self.folder / f"beside-{number}", ignore_errors=True)
        order = ["list", "new", "continued", "purge"]
        table.rows = dict(sorted(table.rows.items(), key=lambda row: order.index(row[0].split()[0])))

    def lists(self, number: int) -> Cases:
        """Listing stores of so many sessions, which rest meanwhile."""
        cases: Cases = {}
        for program in self.programs:
            home = self.folder / f"beside-{number}" / program.name
            say(f"filling: {program.name}, {number:,} sessions …")
            self.last[program.name] = program.fill(home, number, 2)[-1]
            program.settle(home)
            cases[f"list of {number:,}", program.name] = same(program, home, *program.listing())
        return cases

    def turns_beside(self, number: int) -> Cases:
        """Turns in the same stores."""
        cases: Cases = {}
        for program in self.programs:
            home = self.folder / f"beside-{number}" / program.name
            new, continued = self.turns_of(program, home, self.last[program.name])
            cases[f"new turn beside {number:,}", program.name] = new
            cases[f"continued turn beside {number:,}", program.name] = continued
        return by_case(cases)

    def turns_of(self, program: Program, home: Path, session: str) -> tuple[Case, Case]:
        """A new turn, and one more of a session."""
        new = Case(program, home, lambda: program.new(self.prompt()))
        return new, Case(program, home, lambda: program.continued(session, self.prompt()))

    def purges(self, table: Table, number: int) -> Cases:
        """Removing old sessions from the same stores."""
        case = f"purge of {OLD:,} beside {number:,}"
        cases: Cases = {}
        for program in self.programs:
            try:
                program.purge()
                cases[case, program.name] = purge(program, self.folder / f"beside-{number}" / program.name)
            except Missing as missing:
                table.add(case, program.name, {"why": str(missing)})
        return cases

    def turns(self, numbers: tuple[int, ...]) -> None:
        """What the n-th turn of a session costs, writes and sends."""
        cases: Cases = {}
        for number in numbers:
            for program in self.programs:
                cases[f"turn {number:,}", program.name] = self.nth_turn(program, number)
        say("measuring: Long sessions …")
        floor, runs = self.measure(cases)
        time = self.times("Long sessions: time")
        written = Table("Long sessions: bytes written", "By one turn, to files of every kind.")
        about = "To the server by one turn. The model's window has 8,192 tokens, about 33 kB."
        sent = Table("Long sessions: bytes sent", about, best="none")
        for (case, name), one in runs.items():
            spent = time_cell(floor, one)
            time.add(case, name, spent)
            written.add(case, name, spent if "why" in spent else bytes_cell(one.costs[-1].written))
            sent.add(case, name, spent if "why" in spent else bytes_cell(one.sent[-1]))
        time.targets = {case: TARGETS[case] for case in time.rows if case in TARGETS}
        self.tables += [written, sent]

    def nth_turn(self, program: Program, number: int) -> Case:
        """A session of so many turns less one, alone in its store."""
        home = self.folder / f"turn-{number}" / program.name
        session = program.fill(home, 1, number - 1)[0]
        program.settle(home)
        return Case(program, home, lambda: program.continued(session, self.prompt()))

    def at_once(self) -> None:
        """Turns of processes that start together: what is kept of them."""
        about = f"Of {AT_ONCE} turns begun at once. Kept: prompt and answer are in the store."
        table = Table("Many processes", about, best="most")
        for program in self.programs:
            for case, sessions in (("on one session", 1), (f"on {AT_ONCE} sessions", AT_ONCE)):
                say(f"measuring: {program.name}, {AT_ONCE} turns at once {case} …")
                table.add(case, program.name, self.together(program, sessions))
        self.tables.append(table)

    def together(self, program: Program, sessions: int) -> Cell:
        """Turns of processes on so many sessions."""
        home = self.folder / f"at-once-{sessions}" / program.name
        ids = program.fill(home, sessions, 1)
        program.settle(home)
        prompts = [f"Parallel question {number:02d}." for number in range(AT_ONCE)]
        InstantOllama.delay = 2.0  # as models take; so that they overlap
        arguments = [program.continued(ids[number % sessions], prompt) for number, prompt in enumerate(prompts)]
        started = [program.start(one, home) for one in arguments]
        complaints = [last_line(cost.complaint) for cost in [process.end() for process in started] if cost.code]
        InstantOllama.delay = 0.0
        texts = set(program.texts(home))
        kept = sum(prompt in texts and f"Answer to: {prompt}" in texts for prompt in prompts)
        text = f"{kept} kept, {len(complaints)} failed" + (f" ({complaints[0]})" if complaints else "")
        cell: Cell = {"value": kept, "kept": kept, "failed": len(complaints), "text": text}
        return cell if sessions > 1 else self.with_next(cell, program, home, ids[0], prompts)

    def with_next(self, cell: Cell, program: Program, home: Path, session: str, prompts: list[str]) -> Cell:
        """And how many of them the next turn of the session sends."""
        self.server.sent.clear()
        program.run(program.continued(session, self.prompt()), home)
        last = self.server.sent[-1].decode() if self.server.sent else ""
        seen = sum(prompt in last for prompt in prompts)
        return {
            **cell,
            "value": min(seen, cell["kept"]),
            "sent_next": seen,
            "text": f"{cell['text']}, {seen} sent next",
        }


def by_case(cases: Cases) -> Cases:
    """In the order of a table: the same of all programs, then the next."""
    order = list(dict.fromkeys(case for case, _ in cases))
    return dict(sorted(cases.items(), key=lambda item: order.index(item[0][0])))


def same(
    program: Program, home: Path, *arguments: str, before: Callable[[], None] | None = None, may_fail: bool = False
) -> Case:
    """What is asked alike in every round."""
    return Case(program, home, lambda: list(arguments), before, may_fail)


def purge(program: Program, home: Path) -> Case:
    """Old sessions come before each round, and must go."""

    def before() -> None:
        program.fill(home, OLD, 2, old=True)
        program.settle(home)

    return same(program, home, *program.purge(), before=before)


def time_cell(floor: float, runs: Runs, may_fail: bool = False) -> Cell:
    """What a case took."""
    failed = next((cost for cost in runs.costs if cost.code and not may_fail), None)
    if failed:
        return {"why": last_line(failed.complaint) or last_line(failed.output) or f"exit code {failed.code}"}
    cpu = statistics.median(cost.cpu for cost in runs.costs)
    peak = max(cost.peak for cost in runs.costs) / 10**6
    clock = statistics.median(cost.clock for cost in runs.costs)
    ratio = round(cpu / floor, 2)
    text = f"{ratio:.2f} ({1000 * cpu:.0f} ms, {peak:.0f} MB)"
    measured = {"ms": 1000 * cpu, "clock_ms": 1000 * clock, "peak_mb": peak, "rounds": len(runs.costs)}
    return {"value": ratio, "text": text, **measured}


def bytes_cell(number: int | None) -> Cell:
    """So many bytes."""
    if number is None:
        return {"why": "this system does not count what a process writes"}
    return {"value": number, "text": size(number)}


def ready(programs: list[Program], folder: Path, url: str) -> tuple[list[Program], dict[str, str]]:
    """The programs that answer, and what is known of each: its releases, or why it does not."""
    answering, told = [], {}
    for program in programs:
        program.url = url
        try:
            program.install()
            told[program.name] = program.version()
            program.must(program.new("Hello."), folder / "ready" / program.name)
            answering.append(program)
        except (Failed, Missing) as trouble:
            told[program.name] = f"{told.get(program.name, 'not installed')}: {trouble}"
    return answering, told
