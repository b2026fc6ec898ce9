"""Everything at once, for as long as wanted: nothing that was acknowledged is lost, and all that is printed is true.

    python3 scripts/torture.py [--seconds N] [--seed S] [--processes N] [--store DIR]

Many processes of the real command work on the same stores, on the real disk, in rounds. Each round has a scene:

    disk       turns, forks, undos, retries, deletions, purges, new indexes; editors, replaced files, a wrong clock,
               files that cannot grow, a server that fails
    git        the same on two machines that sync and pull from each other
    full disk  the same on a file system of a few megabytes that fills up again and again (needs root, for mount)

Commands get SIGKILL, SIGINT or SIGTERM at any moment. When all of a round have ended, the files are read by `reader`,
which knows only the documented format, and compared with what was acknowledged (`ledger`), and with what the listing,
a listing by a new index, --check and --search say.

The seed goes to stderr first. It decides what is done, and not how the processes meet: that is the system's to decide,
and differs each time. A broken promise ends the run with exit code 1, and the stores stay for a look. At the end
there is a table in Markdown on stdout. POSIX only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import bench
import ledger
import reader
from environment import ROOT, Environment, Failed
from ledger import Item, Ledger, Permitted

sys.path.insert(0, str(ROOT / "tests"))

from standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Json = dict[str, Any]

LIMIT = 240.0
"""Seconds after which a command hangs."""
ROUND_SECONDS = 12.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
INTERRUPTED = {-2, -15, 130, 143}
TRACES = ("Traceback", "Exception ignored", "this is a bug")
BUSY, GONE, WRITE = "session_busy", "session_not_found", "store_write_failed"
BROKEN_OFF = ("ollama_error", "incomplete_answer", "timeout")
"""Errors of a turn whose prompt is stored."""
LONG = "word " * 3000
MINUTE, DAY = 60, 86_400
WRITERS = {"turn", "retry", "undo"}
"""Commands that add to a file; others make a new one, whole."""
OFFSETS = (-400 * DAY, -DAY, -MINUTE, MINUTE, DAY, 400 * DAY)
SERVER_FAULTS: tuple[Json, ...] = (
    {"kind": "status", "status": 500, "body": {"error": "out of memory"}},
    {"kind": "error_line", "chunks": 2, "message": "the model died"},
    {"kind": "cut", "chunks": 2},
    {"kind": "no_done", "chunks": 1},
)
FORGERY = """\
import os, time
if "TORTURE_CLOCK" in os.environ:
    def forge():
        first, later, after = map(float, os.environ["TORTURE_CLOCK"].split())
        right, running, start = time.time_ns, time.monotonic, time.monotonic()
        time.time_ns = lambda: right() + int(first if running() - start < after else later) * 10**9
        time.time = lambda: time.time_ns() / 1e9
    forge()
if "TORTURE_FILE_SIZE" in os.environ:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["TORTURE_FILE_SIZE"]),) * 2)
"""
"""What a command runs first: its clock is wrong, and jumps after a while; its files cannot grow beyond a size."""


class Broken(Exception):
    """The run cannot go on; the tally says why."""


class Tally:
    """What was done, and what went wrong."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.broken: list[str] = []
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def count(self, group: str, name: str, number: int = 1) -> None:
        """So many more of it."""
        with self._lock:
            self.counts.setdefault(group, Counter())[name] += number

    def total(self, group: str) -> int:
        """How many there are in a group."""
        return sum(self.counts.get(group, Counter()).values())

    def promise(self, what: str, problems: Iterable[str]) -> None:
        """These problems break a promise."""
        for problem in problems:
            self.count("broken", what)
            self.broken.append(f"{what}: {problem}")

    def took(self, kind: str, seconds: float) -> None:
        """A command of this kind came to its end."""
        self._seconds[kind] = 0.7 * self._seconds.get(kind, seconds) + 0.3 * seconds

    def usual(self, kind: str) -> float:
        """How long a command of this kind takes."""
        return self._seconds.get(kind, 0.5)


class Ended:
    """How a command ended, and the signal that it got."""

    def __init__(self, process: subprocess.Popen[bytes], out: bytes, err: bytes, signalled: int | None) -> None:
        self.returncode = process.returncode
        self.stdout, self.stderr = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        self.signalled = signalled

    @property
    def printed(self) -> list[Json]:
        """The JSON objects on stdout that are whole: one, or events."""
        try:
            return [json.loads(self.stdout)]
        except ValueError:
            pass
        found = []
        for line in self.stdout.splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if isinstance(event, dict)]

    @property
    def session_id(self) -> str | None:
        """The session, if it was printed."""
        return next((str(event["session_id"]) for event in self.printed if "session_id" in event), None)

    @property
    def error(self) -> Json:
        """The error object, if there is one."""
        try:
            last = json.loads(self.stderr.splitlines()[-1])
        except (ValueError, IndexError):
            return {}
        return last if isinstance(last, dict) else {}

    def __str__(self) -> str:
        got = f", signal {self.signalled}" if self.signalled else ""
        return f"exit {self.returncode}{got}: {self.stdout[-300:]!r} {self.stderr[-600:]!r}"


class World:
    """What all scenes share: how to run the command, the server, the count."""

    def __init__(self, folder: Path, python: str, seed: int, server: StandIn) -> None:
        self.folder, self.python, self.seed, self.server = folder, python, seed, server
        self.tally = Tally()
        early = folder / "early"
        early.mkdir()
        (early / "sitecustomize.py").write_text(FORGERY, encoding="utf-8")
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
            **bench.WHO,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": str(folder),
            "OLLAMA_HOST": server.url,
            "OLLAMA_PROMPT_NO_SERVE": "1",
            "OLLAMA_PROMPT_MODEL": "smollm2",
            "PYTHONPATH": str(early),
        }

    def run(
        self, kind: str, command: list[str], home: Path, env: dict[str, str] | None = None,
        after: float | None = None, number: int = 0, group: bool = False,
    ) -> Ended:  # fmt: skip
        """Run a command; after some seconds it gets a signal, alone or with the processes that it started."""
        given = {**self.environment, "OLLAMA_PROMPT_HOME": str(home), **(env or {})}
        start, signalled = time.monotonic(), None
        process = subprocess.Popen(
            command, cwd=self.folder, env=given, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=LIMIT if after is None else after)
        except subprocess.TimeoutExpired:
            if after is None:
                self.tally.promise("hangs", [" ".join(command)])
            signalled = signal.SIGKILL if after is None else number
            (os.killpg if group else os.kill)(process.pid, signalled)
            out, err = self._end(process, command)
        ended = Ended(process, out, err, signalled)
        if signalled is None:
            self.tally.took(kind, time.monotonic() - start)
        return ended

    def _end(self, process: subprocess.Popen[bytes], command: list[str]) -> tuple[bytes, bytes]:
        try:
            return process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.tally.promise("hangs after a signal", [" ".join(command)])
            process.kill()
            return process.communicate()

    def command(self, *arguments: str) -> list[str]:
        """The command as users have it."""
        return [self.python, "-m", "ollama_prompt", *arguments]


class Store:
    """One store, and what it acknowledged."""

    def __init__(self, world: World, home: Path, permitted: Permitted, merges: bool = False) -> None:
        self.world, self.home = world, home
        self.ledger = Ledger(permitted, merges)
        self.by_hand = threading.Lock()
        self.purged = False
        self.sent: dict[str, str | None] = {}

    def run(self, *arguments: str) -> Ended:
        """A command that nothing disturbs."""
        return self.world.run("check", self.world.command(*arguments), self.home)

    def answer(self, *arguments: str, may_fail: bool = False) -> Json:
        """What such a command prints; it must succeed."""
        ended = self.run(*arguments)
        if (ended.returncode and not may_fail) or len(ended.printed) != 1:
            self.world.tally.promise("a command fails where nothing disturbs it", [f"{arguments}: {ended}"])
            raise Broken
        return ended.printed[0]

    def check(self, rng: random.Random) -> None:
        """Compare the files with everything that was or is said of them; what is there must stay."""
        tally, store = self.world.tally, reader.read(self.home)
        tally.promise("lost", self.ledger.lost(store))
        tally.promise("sent, and not stored", self._unsent(store))
        tally.promise("damaged", self.ledger.unexplained(store))
        for line in self.ledger.damaged(store):
            tally.count("damaged", "written by hand" if ledger.BY_HAND in line else "torn by a kill")
        listing = self.answer("--list-sessions")
        tally.promise("listing", ledger.compare_listing(store, listing))
        self.answer("--reindex")
        if self.answer("--list-sessions") != listing:
            tally.promise("index", [f"{self.home}: a new index lists something else"])
        tally.promise("check", ledger.compare_check(store, self.answer("--check", may_fail=True)))
        self._search(store, rng)
        self.ledger.settle(store)
        self.sent.clear()
        self.purged = False

    def _search(self, store: dict[str, reader.Session], rng: random.Random) -> None:
        """Search for something that is there, and for something that is not there any more."""
        there = sorted(item["content"].split()[0] for session in store.values() for item in session.messages)
        gone = sorted(content.split()[0] for role, content in self.ledger.permitted.items if role == "user")
        for contents in (there, gone):
            if contents:
                word = rng.choice(contents)
                found = self.answer("--search", word, "--limit", "10000")
                self.world.tally.promise("search", ledger.compare_search(store, word, found))

    def _unsent(self, store: dict[str, reader.Session]) -> Iterator[str]:
        """Prompts that reached the server, and are not in the files."""
        if self.ledger.merges:
            return
        said = {item["content"] for session in store.values() for item in session.of_type("message")}
        whole = [chat for chat in self.world.server.chats() if isinstance(chat, dict)]  # a process died while it asked
        for prompt in (chat["messages"][-1]["content"] for chat in whole):
            if prompt in self.sent and prompt not in said and ("user", prompt) not in self.ledger.permitted.items:
                session_id = self.sent[prompt]
                if not (self.ledger.may_be_gone(session_id) if session_id else self.purged):
                    yield f"{session_id}: {prompt[:60]}"


class Worker(threading.Thread):
    """Runs one command after the other, in one round."""

    def __init__(self, scene: Scene, number: int, deadline: float) -> None:
        super().__init__(daemon=True)
        self.scene, self.world, self.tally = scene, scene.world, scene.world.tally
        self.rng = random.Random(f"{scene.world.seed} {scene.name} {scene.rounds} {number}")
        self.deadline = deadline
        self.store = scene.stores[0]
        self.crashed: str | None = None

    def run(self) -> None:
        """Until the round is over, or something is broken."""
        try:
            for _ in range(self.rng.randint(5, 25)):
                if time.monotonic() > self.deadline or self.tally.broken:
                    return
                self.store = self.rng.choice(self.scene.stores)
                (kind,) = self.rng.choices(list(self.scene.weights), list(self.scene.weights.values()))
                getattr(self, kind)()
        except Exception as error:  # a bug of ours must end the run, not only this thread
            self.crashed = f"{type(error).__name__}: {error}"
            self.tally.promise("torture itself", [self.crashed])

    # --- Commands ------------------------------------------------------------------------------

    def do(self, kind: str, *arguments: str, session_id: str | None = None) -> Ended:
        """Run a command, perhaps with a fault and a signal; it must end as promised."""
        env = self.faults(kind, session_id)
        after = number = None
        if self.rng.random() < self.scene.killed:
            after, number = self.rng.uniform(0, 1.3 * self.tally.usual(kind)), self.rng.choice(SIGNALS)
        group = self.rng.random() < 0.3
        command = self.world.command(*arguments)
        ended = self.world.run(kind, command, self.store.home, env, after, number or 0, group)
        self.tally.count("operations", kind)
        if ended.signalled:
            self.tally.count("kills", signal.Signals(ended.signalled).name)
        if ended.signalled == signal.SIGKILL and kind in WRITERS:
            any_session = ledger.EVERY if "-c" in arguments else ""
            self.store.ledger.permitted.torn.add(session_id or ended.session_id or any_session)
        self.judge(kind, ended, env, session_id)
        return ended

    def faults(self, kind: str, session_id: str | None) -> dict[str, str]:
        """The environment of a command whose system is not as it should be."""
        env = {}
        if kind in self.scene.clocks and self.rng.random() < 0.2:
            first, later = self.rng.choice(OFFSETS), self.rng.choice(OFFSETS)
            env["TORTURE_CLOCK"] = f"{first} {later} {self.rng.uniform(0, 0.5):.3f}"
            self.tally.count("faults", "wrong clock that jumps")
        if self.scene.limits and self.rng.random() < 0.08:
            sizes = [path.stat().st_size for path in self.store.home.glob(f"sessions/*/{session_id}.jsonl")]
            env["TORTURE_FILE_SIZE"] = str(max([0, *sizes]) + self.rng.choice((0, 50, 300, 1000, 20_000)))
            env["PYTHONDONTWRITEBYTECODE"] = "1"  # the limit is one for them as well
            self.tally.count("faults", "files cannot grow")
        if kind in {"turn", "retry"} and self.rng.random() < 0.06:
            self.world.server.fail(**self.rng.choice(SERVER_FAULTS))
            self.tally.count("faults", "the server fails")
        return env

    def judge(self, kind: str, ended: Ended, env: dict[str, str], session_id: str | None) -> None:
        """A command fails for a reason that there is, says so in JSON, and never with a traceback."""
        told = f"{kind} {session_id or ''} {env or ''} {ended}"
        if ended.signalled == signal.SIGINT and "KeyboardInterrupt" in ended.stderr and not ended.stdout:
            return  # while Python itself starts
        self.tally.promise("traces of a bug", [told for trace in TRACES if trace in ended.stderr][:1])
        if ended.returncode == 0 or (ended.signalled and (ended.returncode in {*INTERRUPTED, -9})):
            return
        if kind in {"check", "repair"} and ended.returncode == 1 and ended.printed:
            return
        code = ended.error.get("code", "none")
        allowed = {BUSY, *self.scene.codes}
        allowed |= {*BROKEN_OFF} if kind in {"turn", "retry"} else set()
        allowed |= {"nothing_to_undo"} if kind in {"undo", "retry"} else set()
        allowed |= {WRITE} if "TORTURE_FILE_SIZE" in env else set()
        if session_id is None or self.scene.merges or self.store.ledger.may_be_gone(session_id):
            allowed |= {GONE}
        if code not in allowed:
            self.tally.promise("an error without a reason", [told])
        self.tally.count("refused", code)

    def pick(self) -> str | None:
        """A session; None if there is none yet."""
        known = self.store.ledger.sessions()
        # Few of them are used often, so that turns queue.
        return known[int(len(known) * self.rng.random() ** 2)] if known else None

    def prompt(self) -> str:
        """What nobody said before."""
        return f"w{self.rng.getrandbits(48):012x}q " + (LONG if self.rng.random() < 0.05 else "and why is it so?")

    def turn(self) -> None:
        """A new session, or a turn on one."""
        session_id = self.pick()
        begins = self.rng.random() < (0.2 if len(self.store.ledger.sessions()) < 40 else 0.02)
        goes_on = not begins and self.rng.random() < 0.1
        session_id = None if begins or goes_on else session_id
        prompt = self.prompt()
        arguments = ["-p", prompt, *(["--session-id", session_id] if session_id else ["-c"] * goes_on)]
        arguments += ["--output", "ndjson"] * (self.rng.random() < 0.3) + ["--lock-timeout", "0"] * (
            self.rng.random() < 0.1
        )
        arguments += ["--temperature", str(self.rng.random())] * (self.rng.random() < 0.1)
        ended = self.do("turn", *arguments, session_id=session_id)
        self.acknowledge(ended, prompt)
        if not goes_on:
            self.store.sent[prompt] = session_id or ended.session_id

    def retry(self) -> None:
        """The last prompt once more."""
        if session_id := self.pick():
            self.acknowledge(self.do("retry", "--retry", session_id, session_id=session_id))

    def acknowledge(self, ended: Ended, prompt: str | None = None) -> None:
        """Note what a turn printed: the answer, and that the prompt is stored."""
        events = [event for event in (*ended.printed, ended.error) if event.get("session_id")]
        if not events or (ended.error and ended.error["code"] not in BROKEN_OFF):
            return
        items: list[Item] = [("user", prompt)] if prompt else []
        answers = [event["response"] for event in events if event.get("response")]
        items += [("assistant", answer) for answer in answers[:1]]
        self.store.ledger.acknowledge(events[0]["session_id"], items)
        self.tally.count("turns", "whole" if events[-1].get("done") else "in part", 1 if items else 0)

    def fork(self) -> None:
        """A copy has at least what its origin had when it began."""
        if session_id := self.pick():
            items = self.store.ledger.items(session_id)
            for made in self.do("fork", "--fork", session_id, session_id=session_id).printed:
                sure = not self.scene.merges or not self.store.ledger.may_be_gone(session_id)
                self.store.ledger.acknowledge(made["session_id"], items if sure else [])

    def undo(self) -> None:
        """What was taken back is so from now on."""
        if session_id := self.pick():
            for made in self.do("undo", "--undo", session_id, session_id=session_id).printed:
                self.store.ledger.acknowledge(session_id, [("undo", id_) for id_ in made["undone"]])

    def delete(self) -> None:
        """One session less."""
        if session_id := self.pick():
            self.remove([session_id], "delete", "--delete", session_id, session_id=session_id)

    def purge(self) -> None:
        """All sessions less, or what a clock takes for old."""
        days = self.rng.choice(("0", "1", "300", "300"))
        self.store.purged = True
        self.remove([ledger.EVERY], "purge", "--purge", days)

    def remove(self, doubted: list[str], kind: str, *arguments: str, session_id: str | None = None) -> None:
        """Nobody edits what is being removed: a file that an editor writes is there again."""
        book = self.store.ledger
        with self.store.by_hand:
            book.doubt(doubted)
            ended = self.do(kind, *arguments, session_id=session_id)
            for made in ended.printed:
                book.removed(made["sessions"] if "sessions" in made else [made["deleted"]])
            was_told = bool(ended.printed) or ended.error.get("code") in {BUSY, GONE}
            if was_told:
                book.stands(doubted)
            elif session_id and self.scene.merges:
                book.removed(doubted)

    def listing(self) -> None:
        """A listing has every session that was there before it began, and is there yet."""
        before = self.store.ledger.sessions()
        for listed in self.do("listing", "--list-sessions").printed:
            there = {entry["session_id"] for entry in listed["sessions"]}
            missing = [id_ for id_ in before if id_ not in there and not self.store.ledger.may_be_gone(id_)]
            if not self.scene.merges:
                self.tally.promise("a listing lacks sessions", missing)

    def look(self) -> None:
        """Whatever reads the whole store."""
        kind = self.rng.choice(("reindex", "check", "repair", "search"))
        more = {"repair": ["--check", "--repair"], "search": ["--search", "why"]}
        self.do(kind, *more.get(kind, [f"--{kind}"]))

    def sync(self) -> None:
        """All that the other machine has."""
        self.do("sync", "--sync")

    def pull(self) -> None:
        """The same by hand, on one of the machines, with the commands of docs/version-control.md."""
        store = self.scene.stores[0]
        with store.by_hand:
            for command in (
                ["add", "--all"],
                ["commit", "--quiet", "--message", "By hand"],
                ["pull", "--quiet", "--no-rebase", "--no-edit", "-X", "find-renames=100%"],
                ["add", "--all"],
                ["commit", "--quiet", "--no-edit"],  # if one side deleted what the other continued
                ["push", "--quiet"],
            ):
                ended = self.world.run("git", ["git", "-C", str(store.home), *command], store.home)
                if ended.returncode and command[0] in {"pull", "push"}:
                    self.tally.count("refused", f"git {command[0]}")
        self.tally.count("operations", "git pull by hand")

    # --- Hand edits ----------------------------------------------------------------------------

    def edit(self) -> None:
        """What people and other programs do to a file, while it is in use."""
        session_id, kind = self.pick(), self.rng.choice(self.scene.edits)
        with self.store.by_hand, suppress(FileNotFoundError):
            for path in sorted(self.store.home.glob(f"sessions/*/{session_id}.jsonl")):
                getattr(self, "edit_" + kind)(path)
                self.tally.count("faults", "by hand: " + kind.replace("_", " "))

    def edit_line_added(self, path: Path) -> None:
        """As an editor does: what was added since it read the file is lost."""
        text = self.prompt()
        record = {"type": "message", "id": str(uuid.UUID(int=self.rng.getrandbits(128))), "role": "user"}
        record |= {"content": text, "created_at": "2026-11-22T10:30:00.123Z"}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        self.replace(path, lambda data: data + b"\n" * (not data.endswith(b"\n")) + line)
        self.store.ledger.acknowledge(path.stem, [("user", text)])

    def edit_older_copy(self, path: Path) -> None:
        """As from a backup."""
        share = self.rng.random()

        def shortened(data: bytes) -> bytes:
            lines = data.split(b"\n")
            return b"\n".join(lines[: max(int(share * len(lines)), 1)]) + b"\n"

        self.replace(path, shortened)

    def edit_garbage(self, path: Path) -> None:
        """In place, as `>>` does."""
        with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            file.write(b"%s{ %d\n" % (ledger.BY_HAND, self.rng.getrandbits(40)))

    def edit_moved(self, path: Path) -> None:
        """Into a folder of somebody's own, or back."""
        folder = path.parent.with_name(self.rng.choice(("mine", "2026-11", "old")))
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)

    def edit_index_removed(self, _: Path) -> None:
        """The index can be thrown away at any time."""
        (self.store.home / self.rng.choice(("sessions.db", "search.db"))).unlink()

    def replace(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        """Another file gets the name. What had been added to the old one till then is taken away by that."""
        temporary = path.with_name("editor.tmp")
        with path.open("rb") as old:
            new = change(old.read())
            temporary.write_bytes(new)
            temporary.replace(path)
            old.seek(0)
            taken = items_in(path, old.read()) - items_in(path, new)
        self.store.ledger.edited(taken.keys())


def items_in(path: Path, data: bytes | None = None) -> Counter[Item]:
    """What a file says, or would say."""
    return ledger.items_of(reader.Session(path, data))


class Scene:
    """A store, and what happens to it."""

    name = "disk"
    merges = False
    limits = True
    killed = 0.3
    codes: tuple[str, ...] = ()
    edits: tuple[str, ...] = ("line_added", "older_copy", "garbage", "moved", "index_removed")
    clocks: tuple[str, ...] = ("turn", "retry", "undo", "fork", "listing", "purge", "look")
    weights: ClassVar[dict[str, float]] = {
        "turn": 50, "retry": 6, "fork": 5, "undo": 6, "delete": 5, "purge": 1.5, "listing": 8, "look": 6, "edit": 15
    }  # fmt: skip

    def __init__(self, world: World) -> None:
        self.world = world
        self.rounds = 0
        self.folder = world.folder / self.name.replace(" ", "-")
        self.stores: list[Store] = []
        self.prepare()

    def prepare(self) -> None:
        """Make the stores."""
        self.stores.append(Store(self.world, self.folder, Permitted()))

    def close(self) -> None:
        """What was mounted is mounted no more."""

    def round(self, processes: int, seconds: float) -> None:
        """Everything at once, and then look."""
        self.rounds += 1
        rng = random.Random(f"{self.world.seed} {self.name} {self.rounds}")
        self.world.server.reset()
        self.world.server.set(delay=0.003, models={"smollm2": {"limit": 262_144, "capabilities": ["completion"]}})
        workers = [Worker(self, number, time.monotonic() + seconds) for number in range(processes)]
        with self.disturbed(rng):
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        self.settle()
        for store in self.stores:
            store.check(rng)
        self.after(rng)

    @contextmanager
    def disturbed(self, rng: random.Random) -> Iterator[None]:  # noqa: ARG002  of those that have something
        """What happens to all of it meanwhile."""
        yield

    def settle(self) -> None:
        """Wait until nothing runs."""

    def after(self, rng: random.Random) -> None:
        """Between two rounds: a last line loses its newline, or an index half of its bytes."""
        for store in self.stores:
            for path in sorted(store.home.glob("sessions/*/*.jsonl")):
                if rng.random() < 0.1:
                    self.cut_newline(store, path)
            index = store.home / "sessions.db"
            if rng.random() < 0.3 and index.exists():
                os.truncate(index, index.stat().st_size // 2)
                self.world.tally.count("faults", "by hand: half an index")

    def cut_newline(self, store: Store, path: Path) -> None:
        """The line counts again as soon as another one follows."""
        before = items_in(path)
        if path.read_bytes().endswith(b"\n"):
            os.truncate(path, path.stat().st_size - 1)
            store.ledger.edited((before - items_in(path)).keys())
            self.world.tally.count("faults", "by hand: no newline at the end")


class GitScene(Scene):
    """Two machines. On the second everything goes by --sync; on the first git is run by hand, too."""

    name = "git"
    merges = True
    limits = False
    codes = ("git_failed",)
    # What git does is told by the times of its files, which no process here may be wrong about.
    clocks = ()
    edits = ("line_added", "older_copy", "garbage", "index_removed")
    weights: ClassVar[dict[str, float]] = {
        "turn": 50, "retry": 4, "fork": 4, "undo": 4, "delete": 4, "listing": 4, "look": 3, "edit": 6, "sync": 14,
        "pull": 6,
    }  # fmt: skip

    def prepare(self) -> None:
        """Two stores that have synced, and the repository between them."""
        permitted, hub = Permitted(), self.folder / "hub.git"
        self.folder.mkdir()
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", str(hub)], check=True)
        for name in ("one", "other"):
            store = Store(self.world, self.folder / name, permitted, merges=True)
            self.stores.append(store)
            store.answer("--git-setup", "--remote", str(hub))
            store.answer("--sync")

    def settle(self) -> None:
        """A git whose command was killed goes on. When it is through, the next --sync ends what it has begun."""
        if not Path("/proc/self").exists():
            time.sleep(3)
        while any(str(self.folder).encode() in line for line in command_lines()):
            time.sleep(0.05)

    def after(self, rng: random.Random) -> None:
        """In the end both have the same, and all of it."""
        for store in (*self.stores, *self.stores):
            self.unlock(store)
            store.answer("--sync")
        contents = [
            {id_: session.path.read_bytes() for id_, session in reader.read(store.home).items()}
            for store in self.stores
        ]
        if contents[0] != contents[1]:
            differ = [
                id_ for id_ in contents[0].keys() | contents[1].keys() if contents[0].get(id_) != contents[1].get(id_)
            ]
            self.world.tally.promise("machines differ after --sync", differ)
        for store in self.stores:
            store.check(rng)
        super().after(rng)

    def unlock(self, store: Store) -> None:
        """A git that was killed leaves its lock; git tells people to remove it."""
        with suppress(FileNotFoundError):
            (store.home / ".git" / "index.lock").unlink()
            self.world.tally.count("faults", "a lock of git's left behind")


def command_lines() -> Iterator[bytes]:
    """Those of all running processes of git's, on Linux."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = path.read_bytes()
            if line.partition(b"\0")[0].rpartition(b"/")[2].startswith(b"git"):
                yield line


class FullScene(Scene):
    """A disk that fills up."""

    name = "full disk"
    limits = False
    codes = (WRITE,)
    edits = ("garbage", "index_removed")
    weights: ClassVar[dict[str, float]] = {
        "turn": 60, "retry": 6, "fork": 6, "undo": 6, "delete": 4, "purge": 1, "listing": 6, "look": 5, "edit": 4
    }  # fmt: skip

    def prepare(self) -> None:
        """Mount it. Raises `Unmountable`."""
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(self.folder)]
        if not sys.platform.startswith("linux") or not shutil.which("mount"):
            raise Unmountable("no tmpfs on this platform")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unmountable(done.stderr.splitlines()[0])
        super().prepare()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    @contextmanager
    def disturbed(self, rng: random.Random) -> Iterator[None]:
        """Fill the disk and clear it, again and again."""
        over = threading.Event()
        thread = threading.Thread(target=self._fill, args=(over, rng), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _fill(self, over: threading.Event, rng: random.Random) -> None:
        ballast = self.folder / "ballast"
        while not over.wait(rng.uniform(0, 0.6)):
            with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while file.write(bytes(rng.choice((512, 4096)))):
                    pass
            self.world.tally.count("faults", "full disk")
            over.wait(rng.uniform(0, 0.8))
            ballast.unlink()

    def after(self, rng: random.Random) -> None:
        """Make room, by the user's own means."""
        super().after(rng)
        room = os.statvfs(self.folder)
        if room.f_bavail < room.f_blocks // 2:
            store = self.stores[0]
            store.ledger.removed(store.answer("--purge", "0")["sessions"])


class Unmountable(Exception):
    """There is no file system to fill."""


def scenes(world: World) -> Iterator[Scene]:
    """Those that can be had here."""
    yield Scene(world)
    if shutil.which("git"):
        yield GitScene(world)
    else:
        world.tally.notes.append("git: not run, git is not installed")
    try:
        yield FullScene(world)
    except Unmountable as error:
        world.tally.notes.append(f"full disk: not run, {error}")


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


GROUPS = {
    "operations": "operations",
    "kills": "kills",
    "faults": "faults",
    "refused": "refused",
    "turns": "turns acknowledged",
    "damaged": "damaged lines",
}
"""What the table has, and how it says so."""


def report(world: World, seconds: float) -> Iterator[str]:
    """The table, in Markdown."""
    tally = world.tally
    yield f"seed {world.seed}, {seconds:.0f} seconds, {tally.total('rounds')} rounds, {os.cpu_count()} cores\n"
    yield "| what | how often | of which |"
    yield "|---|---|---|"
    for group, name in GROUPS.items():
        parts = ", ".join(f"{kind} {number:,}" for kind, number in tally.counts.get(group, Counter()).most_common())
        yield f"| {name} | {tally.total(group):,} | {parts} |"
    broken = tally.counts.get("broken", Counter())
    yield f"| **turns lost** | {broken['lost']} | |"
    differences = sum(broken[what] for what in ("listing", "index", "check", "search"))
    yield f"| **differences between files, index, listing, check and search** | {differences} | |"
    yield f"| **other broken promises** | {broken.total() - broken['lost'] - differences} | |"
    yield from (f"\n{note}" for note in tally.notes)


def suitable_python() -> str:
    """A Python that has the project: this one, or one in an environment of its own."""
    if all(importlib.util.find_spec(name) for name in ("ollama_prompt", "httpx", "orjson")):
        return sys.executable
    environment = Environment(".venv-bench")
    bench.install(environment)
    return str(environment.python)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Many processes, kills and faults; then a check of what was promised")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--store", type=Path, help="an empty folder for the stores, which then stay there")
    return parser.parse_args()


def main() -> int:
    """Torture; the exit code."""
    wanted = arguments()
    print(f"seed {wanted.seed}", file=sys.stderr, flush=True)
    folder = wanted.store.absolute() if wanted.store else Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    server, start = StandIn(), time.monotonic()
    try:
        world = World(folder, suitable_python(), wanted.seed, server)
        with suppress(Broken):
            torture(world, wanted.seconds, wanted.processes)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    finally:
        server.close()
    print("\n".join(report(world, time.monotonic() - start)))
    for problem in world.tally.broken:
        print(f"broken promise: {problem}", file=sys.stderr)
    if world.tally.broken:
        print(f"seed {wanted.seed}; the stores are in {folder}", file=sys.stderr)
    elif not wanted.store:
        shutil.rmtree(folder)
    return 1 if world.tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
