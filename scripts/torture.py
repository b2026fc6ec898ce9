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
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import reader
from environment import ROOT, Environment, Failed
from ledger import Permitted
from operations import WRITE, Worker, items_in
from processes import Broken, Store, World

sys.path.insert(0, str(ROOT / "tests"))

from standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND_SECONDS = 12.0


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
    environment.install_as_users_do()
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was mounted is unmounted
    print(f"seed {wanted.seed}", file=sys.stderr, flush=True)
    folder = wanted.store.absolute() if wanted.store else Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"error: {folder} is not empty", file=sys.stderr)
        return 2
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
    return conclude(world, keep=wanted.store is not None)


def conclude(world: World, keep: bool) -> int:
    """Say which promises are broken; the exit code."""
    for problem in world.tally.broken:
        print(f"broken promise: {problem}", file=sys.stderr)
    if world.tally.broken:
        print(f"seed {world.seed}; the stores are in {world.folder}", file=sys.stderr)
        return 1
    if not keep:
        shutil.rmtree(world.folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
