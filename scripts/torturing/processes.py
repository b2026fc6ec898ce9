"""Processes of the command, started, killed and counted; and the stores on which they work.

What a process runs first (`FORGERY`) makes its clock wrong, or keeps its files from growing. Nothing of the user's own
environment reaches it, and it reaches nothing but the server that stands in for Ollama.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torturing import ledger, reader
from torturing.ledger import Ledger, Permitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from standin import StandIn

Json = dict[str, Any]

GIT_IDENTITY = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
LIMIT = 240.0
"""Seconds after which a command hangs."""
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
        told = [*self.printed, self.error]
        return next((str(event["session_id"]) for event in told if "session_id" in event), None)

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

    def __init__(self, folder: Path, seed: int, server: StandIn) -> None:
        self.folder, self.seed, self.server = folder, seed, server
        self.tally = Tally()
        early = folder / "early"
        early.mkdir()
        (early / "sitecustomize.py").write_text(FORGERY, encoding="utf-8")
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
            **dict.fromkeys(GIT_IDENTITY, "torture"),
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
        """The command, in a process of its own."""
        return [sys.executable, "-m", "ollama_prompt", *arguments]


class Store:
    """One store, and what it acknowledged."""

    def __init__(self, world: World, home: Path, permitted: Permitted, merges: bool = False) -> None:
        self.world, self.home = world, home
        self.ledger = Ledger(permitted, merges)
        self.by_hand = threading.Lock()
        self.purged = False
        self.moved: set[str] = set()
        self.sent: dict[str, str | None] = {}

    def answer(self, *arguments: str, may_fail: bool = False) -> Json:
        """What a command prints that nothing disturbs; it must succeed."""
        ended = self.world.run("check", self.world.command(*arguments), self.home)
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
            tally.count("damaged lines", "written by hand" if ledger.is_by_hand(line) else "torn by a kill")
        listing = self.check_listing()
        self.answer("--reindex")
        if self.answer("--list-sessions") != listing:
            tally.promise("index", [f"{self.home}: a new index lists something else"])
        tally.promise("check", ledger.compare_check(store, self.answer("--check", may_fail=True)))
        self._search(store, rng)
        self.ledger.settle(store)
        self.sent.clear()
        self.moved.clear()
        self.purged = False

    def check_listing(self) -> Json:
        """What is listed, compared with the files."""
        listing = self.answer("--list-sessions")
        self.world.tally.promise("listing", ledger.compare_listing(reader.read(self.home), listing))
        return listing

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
            if prompt in self.sent and prompt not in said and not self.ledger.permitted.has(("user", prompt)):
                session_id = self.sent[prompt]
                if not (self.ledger.may_be_gone(session_id) if session_id else self.purged):
                    yield f"{session_id}: {prompt[:60]}"
