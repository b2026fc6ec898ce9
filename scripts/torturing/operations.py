"""What a worker of the torture does: one command after the other, chosen at random, and what they must say.

A worker knows of each command what it may say, and notes in the ledger what it said. It also does what people and other
programs do to files, without our locks.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torturing import ledger, reader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torturing.ledger import Item
    from torturing.processes import Ended
    from torturing.scenes import Scene

Json = dict[str, Any]

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
INTERRUPTED = {-2, -15, 130, 143}
TRACES = ("Traceback", "Exception ignored", "this is a bug")
BUSY, GONE, WRITE = "session_busy", "session_not_found", "store_write_failed"
BROKEN_OFF = ("ollama_error", "incomplete_answer", "timeout")
"""Errors of a turn whose prompt is stored."""
IGNORED_AT_START = "Exception ignored in: <function _get_module_lock"
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


class Worker(threading.Thread):
    """Runs one command after the other, in one round."""

    def __init__(self, scene: Scene, number: int, deadline: float) -> None:
        super().__init__(daemon=True)
        self.scene, self.world, self.tally = scene, scene.world, scene.world.tally
        self.rng = random.Random(f"{scene.world.seed} {scene.name} {scene.rounds} {number}")
        self.deadline = deadline
        self.store = scene.stores[0]

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
            self.tally.promise("torture itself", [f"{type(error).__name__}: {error}"])

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
        if self.scene.limits and self.rng.random() < 0.15:
            sizes = [path.stat().st_size for path in self.store.home.glob(f"sessions/*/{session_id}.jsonl")]
            env["TORTURE_FILE_SIZE"] = str(max([0, *sizes]) + self.rng.choice((0, 50, 100, 300, 600)))
            env["PYTHONDONTWRITEBYTECODE"] = "1"  # the limit is one for them as well
            self.tally.count("faults", "files cannot grow")
        if kind in {"turn", "retry"} and self.rng.random() < 0.06:
            self.world.server.fail(**self.rng.choice(SERVER_FAULTS))
            self.tally.count("faults", "the server fails")
        return env

    def judge(self, kind: str, ended: Ended, env: dict[str, str], session_id: str | None) -> None:
        """A command fails for a reason that there is, says so in JSON, and never with a traceback."""
        told = f"{kind} {session_id or ''} {env or ''} {ended}"
        if ended.signalled == signal.SIGINT and is_of_start(ended):
            return
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
        if session_id is None or self.scene.merges or self.may_be_missed(session_id):
            allowed |= {GONE}
        if code not in allowed:
            self.tally.promise("an error without a reason", [told])
        self.tally.count("refused", code)

    def pick(self) -> str | None:
        """A session; None if there is none yet."""
        known = self.store.ledger.sessions()
        # Few of them are used often, so that turns queue.
        return known[int(len(known) * self.rng.random() ** 3)] if known else None

    def prompt(self) -> str:
        """What nobody said before."""
        return f"w{self.rng.getrandbits(48):012x}q " + (LONG if self.rng.random() < 0.1 else "and why is it so?")

    def turn(self) -> None:
        """A new session, or a turn on one."""
        session_id = self.pick()
        begins = self.rng.random() < (0.2 if len(self.store.ledger.sessions()) < 40 else 0.02)
        goes_on = not begins and self.rng.random() < 0.1
        session_id = None if begins or goes_on else session_id
        prompt = self.prompt()
        arguments = ["-p", prompt, *(["--session-id", session_id] if session_id else ["-c"] * goes_on)]
        ended = self.do("turn", *arguments, *self.manner(), session_id=session_id)
        self.acknowledge(ended, prompt)
        if not goes_on:
            self.store.sent[prompt] = session_id or ended.session_id

    def manner(self) -> list[str]:
        """Flags that a turn may have."""
        flags = {"--output=ndjson": 0.3, "--lock-timeout=0": 0.1, f"--temperature={self.rng.random()}": 0.1}
        return [flag for flag, share in flags.items() if self.rng.random() < share]

    def retry(self) -> None:
        """The last prompt once more."""
        if session_id := self.pick():
            self.acknowledge(self.do("retry", "--retry", session_id, session_id=session_id))

    def acknowledge(self, ended: Ended, prompt: str | None = None) -> None:
        """Note what a turn printed: the answer, and that the prompt is stored."""
        told = [event for event in ended.printed if "session_id" in event and event.get("event") != "error"]
        if ended.error.get("code") in BROKEN_OFF and "session_id" in ended.error:
            told.append(ended.error)
        if not told:
            return
        items: list[Item] = [("user", prompt)] if prompt else []
        items += [("assistant", event["response"]) for event in told if event.get("response")]
        self.store.ledger.acknowledge(told[0]["session_id"], items)
        if prompt and items[-1][0] == "assistant":
            self.store.ledger.answered(prompt)
        self.tally.count(
            "turns acknowledged", "whole" if told[-1].get("done") else "prompt, and what had come of the answer"
        )

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
            missing = [id_ for id_ in before if id_ not in there and not self.may_be_missed(id_)]
            if not self.scene.merges:
                self.tally.promise("a listing lacks sessions", missing)

    def may_be_missed(self, session_id: str) -> bool:
        """What moves from one folder into another while they are looked through can be in neither."""
        return session_id in self.store.moved or self.store.ledger.may_be_gone(session_id)

    def look(self) -> None:
        """Whatever reads the whole store."""
        kind = self.rng.choice(("reindex", "check", "repair", "search"))
        more = {"repair": ["--check", "--repair"], "search": ["--search", "why"]}
        with self.store.by_hand if kind == "repair" else nullcontext():  # it replaces files, as editors do
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
                if "Unable to write index" in ended.stderr:  # as docs/version-control.md says
                    self.world.run("git", ["git", "-C", str(store.home), "merge", "--quit"], store.home)
        self.tally.count("operations", "git pull by hand")

    # --- Hand edits ----------------------------------------------------------------------------

    def edit(self) -> None:
        """What people and other programs do to a file, while it is in use."""
        session_id, kind = self.pick(), self.rng.choice(self.scene.edits)
        with self.store.by_hand:
            for path in sorted(self.store.home.glob(f"sessions/*/{session_id}.jsonl")):
                self.edit_file(kind, path)

    def edit_file(self, kind: str, path: Path) -> None:
        """It may be gone meanwhile, and an editor fails on a full disk as everybody does."""
        try:
            getattr(self, "edit_" + kind)(path)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOSPC}:
                raise
        else:
            self.tally.count("faults", "by hand: " + kind.replace("_", " "))

    def edit_line_added(self, path: Path) -> None:
        """As an editor does: what was added since it read the file is lost."""
        text = self.prompt()
        record = {"type": "message", "id": str(uuid.UUID(int=self.rng.getrandbits(128))), "role": "user"}
        record |= {"content": text, "created_at": "2026-11-22T10:30:00.123Z"}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        self.replace(path, lambda data: data + b"\n" * (not data.endswith(b"\n")) + line)
        if not self.scene.merges:  # a git that replaces the file at the same moment heeds no editor
            self.store.ledger.acknowledge(path.stem, [("user", text)])

    def edit_older_copy(self, path: Path) -> None:
        """As from a backup."""
        share = self.rng.random()

        def shortened(data: bytes) -> bytes:
            lines = data.split(b"\n")
            return b"\n".join(lines[: max(int(share * len(lines)), 1)]) + b"\n"

        self.replace(path, shortened)

    def edit_word_changed(self, path: Path) -> None:
        """The file keeps its size, and the record its id: so it is there, and nothing brings the old one back."""
        self.replace(path, lambda data: data.replace(b"why", b"how", 1), ids_stay=True)

    def edit_garbage(self, path: Path) -> None:
        """In place, as `>>` does."""
        with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            file.write(b"%s{ %d\n" % (ledger.BY_HAND, self.rng.getrandbits(40)))

    def edit_moved(self, path: Path) -> None:
        """Into a folder of somebody's own, or back."""
        self.store.moved.add(path.stem)
        folder = path.parent.with_name(self.rng.choice(("mine", "2026-11", "old")))
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)

    def edit_index_removed(self, _: Path) -> None:
        """The index can be thrown away at any time."""
        (self.store.home / self.rng.choice(("sessions.db", "search.db"))).unlink()

    def replace(self, path: Path, change: Callable[[bytes], bytes], ids_stay: bool = False) -> None:
        """Another file gets the name. What had been added to the old one till then is taken away by that."""
        temporary = path.with_name("editor.tmp")
        with path.open("rb") as old:
            new = change(old.read())
            temporary.write_bytes(new)
            temporary.replace(path)
            old.seek(0)
            before = reader.Session(path, old.read())
        taken = (ledger.items_of(before) - items_in(path, new)).keys()
        unanswered = set() if ids_stay else taken & ledger.unanswered_in(before)
        self.store.ledger.edited(taken - unanswered, unanswered)


def is_of_start(ended: Ended) -> bool:
    """Whether Ctrl-C came while Python itself started: that ends it, unless it was in a place that ignores it."""
    return "KeyboardInterrupt" in ended.stderr and (not ended.stdout or IGNORED_AT_START in ended.stderr)


def items_in(path: Path, data: bytes | None = None) -> Counter[Item]:
    """What a file says, or would say."""
    return ledger.items_of(reader.Session(path, data))
