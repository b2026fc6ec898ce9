"""Where the torture takes place: stores, and what happens to them in a round.

A scene makes its stores once. In each round its workers do all at once, something may disturb them all meanwhile
(`disturbed`), and when they have ended the stores are compared with what was acknowledged. Between two rounds it
damages what may be damaged (`after`).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torturing import reader
from torturing.ledger import Permitted
from torturing.operations import WRITE, Worker, items_in
from torturing.processes import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torturing.processes import World


class Scene:
    """A store, and what happens to it."""

    name = "disk"
    merges = False
    limits = True
    killed = 0.3
    codes: tuple[str, ...] = ()
    edits: tuple[str, ...] = ("line_added", "older_copy", "word_changed", "garbage", "moved", "index_removed")
    clocks: tuple[str, ...] = ("turn", "retry", "undo", "fork", "listing", "purge", "look")
    weights: ClassVar[dict[str, float]] = {
        "turn": 50, "retry": 6, "fork": 5, "undo": 6, "delete": 5, "purge": 1.5, "listing": 8, "look": 6, "edit": 40
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
        self.world.server.set(delay=0.02, models={"smollm2": {"limit": 262_144, "capabilities": ["completion"]}})
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
        for store in self.stores:
            store.ledger.permitted.torn.clear()

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
            store.check_listing()

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
    edits = ("line_added", "older_copy", "word_changed", "garbage", "index_removed")
    weights: ClassVar[dict[str, float]] = {
        "turn": 50, "retry": 4, "fork": 4, "undo": 4, "delete": 4, "listing": 4, "look": 3, "edit": 12, "sync": 14,
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
        one, other = map(contents, self.stores)
        differ = [id_ for id_ in one.keys() | other.keys() if one.get(id_) != other.get(id_)]
        self.world.tally.promise("machines differ after --sync", differ)
        for store in self.stores:
            store.check(rng)
        super().after(rng)

    def unlock(self, store: Store) -> None:
        """A git that was killed leaves its lock; git tells people to remove it."""
        with suppress(FileNotFoundError):
            (store.home / ".git" / "index.lock").unlink()
            self.world.tally.count("faults", "a lock of git's left behind")


def contents(store: Store) -> dict[str, bytes]:
    """Every file, by its session."""
    return {id_: session.path.read_bytes() for id_, session in reader.read(store.home).items()}


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
        if self.world.tally.broken:  # it stays for a look
            shutil.copytree(self.folder, self.folder.with_name("full-disk-as-it-was"), symlinks=True)
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
