"""The real command under bad conditions: a full disk, a read-only store, no permission, files changed under it,
an index that is none, damaged lines, a wrong clock, odd homes, huge files. A clear error or a quiet recovery,
never a traceback, never a lost turn; and the next command after it works.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import old_stores
import pytest
import stores
from conftest import Result, tree
from stores import fail, header, line, make, new_id, replace, said, succeed, the_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Run, Start
    from standin import StandIn

Json = dict[str, Any]
Env = dict[str, str]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, modes or limits")

ONE = new_id(1)
"""The session that most tests lay into the store: two turns, four messages."""
LONG = "word " * 3000
"""A text that fits into no rest of a block."""
OK = ""
READ, WRITE = "store_unreadable", "store_write_failed"


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def on(session_id: str, prompt: str = "Hi") -> tuple[str, ...]:
    """The arguments of a turn on a session."""
    return ("--session-id", session_id, "-p", prompt)


def check_result(result: Result, code: str) -> Result:
    """The result, which must be a success (""), or fail with this code."""
    if code == OK:
        return succeed(result)
    fail(result, code)
    return result


def check_next_turn(run: Run, path: Path, messages: int) -> None:
    """The next turn works, sends `messages` with its own, and is appended to what is there."""
    before = path.read_bytes()
    turn = succeed(run(*on(path.stem, "Next"))).json
    assert turn["window"]["messages_sent"] == messages
    now = path.read_bytes()
    assert now.startswith(before)
    assert json.loads(now.splitlines()[-1])["content"] == turn["response"]


def prelude(folder: Path, code: str) -> Env:
    """The environment in which a command runs this code before its own."""
    where = Path(tempfile.mkdtemp(dir=folder))
    (where / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(where), *filter(None, [os.environ.get("PYTHONPATH")])])}


# -- a full disk -------------------------------------------------------------------------------------------


class Disk:
    """A small file system, on which only the store lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        self._names = folder / "names"

    def fill(self) -> None:
        """Leave no room."""
        with open(self._ballast, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def fill_names(self) -> None:
        """Leave room in files, and none for new ones."""
        self._names.mkdir()
        with suppress(OSError):
            for number in range(1000):
                (self._names / str(number)).touch()

    def clear(self) -> None:
        """Make room."""
        self._ballast.unlink(missing_ok=True)
        shutil.rmtree(self._names, ignore_errors=True)

    def remount(self, option: str) -> None:
        """Mount it again: "ro" or "rw"."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)


@pytest.fixture
def disk(home: Path) -> Iterator[Disk]:
    """A file system of 1 MB where the store will be."""
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60,mode=700", "none", str(home)]
    if not sys.platform.startswith("linux") or not shutil.which("mount"):
        pytest.skip("no tmpfs on this platform")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.splitlines()[0]}")
    yield Disk(home)
    subprocess.run(["umount", "--lazy", str(home)], check=True)


def assert_asks_for_room(error: Json) -> None:
    assert "make room" in error["hint"], error


def test_no_room_for_the_first_prompt_ever(quick: Run, disk: Disk, home: Path, ollama: StandIn) -> None:
    disk.fill()
    error = fail(quick("-p", "Hi"), WRITE)
    assert_asks_for_room(error)
    assert "session_id" not in error, "there is no session"
    assert ollama.chats() == []
    assert stores.files(home) == []
    disk.clear()
    succeed(quick("-p", "Hi"))
    assert "/sessions.db\n" in (home / ".gitignore").read_text()
    assert "merge=union" in (home / ".gitattributes").read_text()


@pytest.mark.parametrize("arguments", [(), ("--session-id", ONE)], ids=["new", "continued"])
def test_no_room_for_the_prompt(
    quick: Run, disk: Disk, home: Path, ollama: StandIn, arguments: tuple[str, ...]
) -> None:
    path = make(home, 1)
    listing = stores.listed(quick("--list-sessions"))
    before = tree(home / "sessions"), os.listdir(home / "locks")
    disk.fill()
    error = fail(quick("-p", LONG, *arguments), WRITE)
    assert_asks_for_room(error)
    assert error.get("session_id") == (ONE if arguments else None)
    assert ollama.chats() == []
    assert tree(home / "sessions").items() >= before[0].items()
    assert stores.files(home) == [path]
    assert not list(home.rglob("*.tmp"))
    assert stores.listed(quick("--list-sessions")) == listing
    assert len(succeed(quick("--session-info", ONE)).json["messages"]) == 4
    disk.clear()
    check_next_turn(quick, path, 5)


@pytest.mark.parametrize("arguments", [(), ("--session-id", ONE)], ids=["new", "continued"])
def test_no_room_for_the_answer(
    quick: Run, start: Start, disk: Disk, home: Path, ollama: StandIn, arguments: tuple[str, ...]
) -> None:
    if arguments:
        make(home, 1)
    ollama.set(answer=LONG)
    ollama.hold()
    turn = start("-p", "Hi", *arguments)
    ollama.wait(held=1)
    before = the_file(home).read_bytes()
    disk.fill()
    ollama.release()
    out, err = turn.communicate(timeout=60)
    error = fail(Result(turn.returncode, out, err), WRITE)
    assert_asks_for_room(error)
    assert error["session_id"] == the_file(home).stem
    assert out == b""
    assert the_file(home).read_bytes() == before
    assert said(the_file(home))[-1] == ("user", "Hi")
    disk.clear()
    check_next_turn(quick, the_file(home), 5 if arguments else 1)
    stores.assert_agreement(quick)


def fill_page(path: Path) -> None:
    """Make the file end where its last block does, as the session's title."""
    data = path.read_bytes()
    missing = -len(data) % 4096
    title = b'"title":"' + b"x" * (missing - 12) + b'",'
    path.write_bytes(data.replace(b'"model"', title + b'"model"', 1).ljust(len(data) + missing, b"\n"))


def test_no_room_for_a_fork(quick: Run, disk: Disk, home: Path) -> None:
    path = make(home, 1)
    fill_page(path)
    succeed(quick("--list-sessions"))
    disk.fill()
    error = fail(quick("--fork", ONE), WRITE)
    assert_asks_for_room(error)
    assert "session_id" not in error, "there is no fork"
    assert stores.files(home) == [path]
    assert not [name for name in tree(home) if name.endswith(".tmp") or (name.endswith(".lock") and "-" in name)]
    disk.clear()
    fork = succeed(quick("--fork", ONE)).json["session_id"]
    check_next_turn(quick, next(home.glob(f"sessions/*/{fork}.jsonl")), 5)


@pytest.mark.parametrize("command", ["--undo", "--retry"])
def test_no_room_to_take_back_a_turn(quick: Run, disk: Disk, home: Path, ollama: StandIn, command: str) -> None:
    path = make(home, 1)
    fill_page(path)
    succeed(quick("--list-sessions"))
    succeed(quick("--fork", ONE))  # makes the locks
    before = path.read_bytes()
    disk.fill()
    error = fail(quick(command, ONE), WRITE)
    assert_asks_for_room(error)
    assert error["session_id"] == ONE
    assert path.read_bytes() == before
    assert ollama.chats() == []
    disk.clear()
    succeed(quick(command, ONE))
    stores.assert_agreement(quick)


def test_no_room_for_the_index_is_no_failure(quick: Run, disk: Disk, home: Path) -> None:
    path = make(home, 1)
    succeed(quick(*on(ONE, "Make the locks")))
    (home / "sessions.db").unlink()
    disk.fill()
    check_next_turn(quick, path, 7)
    (listed,) = stores.listed(quick("--list-sessions"))
    assert listed["message_count"] == 8
    assert succeed(quick("--check")).json["damage"] == []
    assert "full" in fail(quick("--reindex"), WRITE)["error"]
    disk.clear()
    assert stores.assert_agreement(quick) == [listed]
    assert succeed(quick("--check")).json["index"] == "ok"


def test_no_room_for_another_file(quick: Run, disk: Disk, home: Path, ollama: StandIn) -> None:
    path = make(home, 1)
    succeed(quick("--list-sessions"))
    succeed(quick(*on(ONE)))
    ollama.forget()
    disk.fill_names()
    assert_asks_for_room(fail(quick("-p", "Hi"), WRITE))
    assert ollama.chats() == []
    assert stores.files(home) == [path]
    check_next_turn(quick, path, 7)
    assert stores.listed(quick("--list-sessions"))[0]["message_count"] == 8
    disk.clear()
    succeed(quick("-p", "Hi"))
    assert len(stores.assert_agreement(quick)) == 2


def test_no_room_for_a_repair(quick: Run, disk: Disk, home: Path) -> None:
    path = make(home, 1, stores.lines(ONE) + b"broken " * 2000 + b"\n")
    other = make(home, 2)
    other.chmod(0o644)
    succeed(quick(*on(new_id(2))))
    before = path.read_bytes()
    disk.fill()
    error = fail(quick("--check", "--repair"), WRITE)
    assert_asks_for_room(error)
    assert error["session_id"] == ONE
    assert "other places that were mended: " in error["error"]
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert path.read_bytes() == before
    assert not list(home.rglob("*.bak"))
    assert not list(home.rglob("*.tmp"))
    disk.clear()
    assert succeed(quick("--check", "--repair")).json["damage"] == []
    check_next_turn(quick, path, 5)


@pytest.mark.parametrize("command", [("--delete", ONE), ("--purge", "9")], ids=["delete", "purge"])
def test_removing_needs_no_room(quick: Run, disk: Disk, home: Path, command: tuple[str, ...]) -> None:
    make(home, 1)
    kept = succeed(quick("-p", "Hi")).json["session_id"]
    disk.fill()
    succeed(quick(*command))
    assert [path.stem for path in stores.files(home)] == [kept]
    assert [session["session_id"] for session in stores.listed(quick("--list-sessions"))] == [kept]


def make_old(path: Path) -> Path:
    """A database of ollama-prompt 1.x with two sessions that have much to say."""
    talk = [old_stores.said(1, "user", LONG), old_stores.said(1, "assistant", LONG)]
    return old_stores.make_1x(path, *(old_stores.session_1x(new_id(number), talk) for number in (1, 2)))


def test_no_room_for_an_import(quick: Run, disk: Disk, home: Path, tmp_path: Path) -> None:
    old = make_old(tmp_path / "old.db")
    disk.fill()
    assert_asks_for_room(fail(quick("--import", str(old)), WRITE))
    assert stores.files(home) == []
    disk.clear()
    make(home, 2)
    disk.fill_names()
    assert "; 0 sessions were imported" in fail(quick("--import", str(old)), WRITE)["error"]
    disk.clear()
    assert succeed(quick("--import", str(old))).json["imported"] == 2
    assert len(stores.assert_agreement(quick)) == 2


def test_no_room_for_what_1x_left(quick: Run, disk: Disk, home: Path) -> None:
    before = make_old(home / "sessions.db").read_bytes()
    disk.fill()
    result = quick("--list-sessions")
    assert stores.listed(result) == []
    assert "next start tries again" in result.stderr
    assert (home / "sessions.db").read_bytes() == before
    disk.clear()
    assert len(stores.assert_agreement(quick)) == 2
    assert (home / "sessions-1.x.db").read_bytes() == before


def limited(folder: Path, size: int) -> Env:
    """The environment of a command whose files cannot grow beyond that many bytes."""
    return prelude(folder, f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n")


@posix_only
@pytest.mark.parametrize("more", [-1000, 0, 1, 80, 160, 300, 500, 8000, 100_000])
def test_files_that_cannot_grow(run: Run, quick: Run, home: Path, tmp_path: Path, ollama: StandIn, more: int) -> None:
    path = make(home, 1)
    before = path.read_bytes()
    turn = run(*on(ONE), env=limited(tmp_path, max(len(before) + more, 0)))
    check_result(turn, OK if turn.returncode == 0 else WRITE)
    assert path.read_bytes().startswith(before)
    added = said(path)[4:]
    asked = bool(ollama.chats())
    if turn.returncode == 0:
        assert added == [("user", "Hi"), ("assistant", turn.json["response"])]
    else:
        assert added == ([("user", "Hi")] if asked else [])
    assert asked == (more >= 160)
    check_next_turn(quick, path, 7 if turn.returncode == 0 else 5)
    assert stores.listed(quick("--list-sessions"))[0]["message_count"] == len(said(path))


@posix_only
@pytest.mark.parametrize("size", [0, 150, 350])
def test_a_new_file_that_cannot_grow(
    run: Run, quick: Run, home: Path, tmp_path: Path, ollama: StandIn, size: int
) -> None:
    make(home, 1)
    succeed(quick(*on(ONE)))
    ollama.forget()
    error = fail(run("-p", "Hi", env=limited(tmp_path, size)), WRITE)
    assert error["hint"]
    made = stores.files(home)[1:]
    assert [said(path) for path in made] == ([[("user", "Hi")]] if ollama.chats() else [])
    assert len(made) == (size == 350)
    assert not [name for name in tree(home) if name.endswith(".tmp")]
    assert len(stores.assert_agreement(quick)) == 1 + len(made)


@posix_only
def test_managing_where_no_file_can_grow(run: Run, home: Path, tmp_path: Path) -> None:
    env = limited(tmp_path, 0)
    for number in (1, 2, 3):
        make(home, number)
    assert len(stores.listed(run("--list-sessions", env=env))) == 3
    assert succeed(run("--session-info", ONE, env=env)).json["damage"] == []
    assert succeed(run("--check", env=env)).json["sessions"] == 3
    fail(run("--reindex", env=env), WRITE)
    succeed(run("--delete", ONE, env=env))
    assert succeed(run("--purge", "0", env=env)).json["removed"] == 2
    assert stores.files(home) == []


# -- a read-only store -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["ok", "stale", "missing", "with a journal"])
def test_a_read_only_store_answers(quick: Run, disk: Disk, home: Path, ollama: StandIn, index: str) -> None:
    make(home, 1)
    if index != "missing":
        succeed(quick("--list-sessions"))
    if index == "stale":
        make(home, 2)
    elif index == "with a journal":
        begin_and_die(home / "sessions.db")
    before = tree(home)
    disk.remount("ro")
    listing = stores.listed(quick("--list-sessions"))
    assert len(listing) == (2 if index == "stale" else 1)
    assert succeed(quick("--session-info", ONE)).json["message_count"] == 4
    assert succeed(quick("--check")).json["damage"] == []
    assert succeed(quick("--check", "--repair")).json["repaired"] == []
    assert succeed(quick("--purge", "9", "--dry-run")).json["removed"] == len(listing)
    succeed(quick("-p", "Hi", "--no-session"))
    ollama.forget()
    assert fail(quick("-c", "-p", "Hi"), WRITE)["session_id"] == listing[0]["session_id"]
    branches = (("--fork", ONE), ("--undo", ONE), ("--retry", ONE), ("-c", "-p", "Hi"))
    for command in (("-p", "Hi"), on(ONE), ("--delete", ONE), ("--purge", "0"), ("--reindex",), *branches):
        fail(quick(*command), WRITE)
    assert "--no-session" in fail(quick(*on(ONE)), WRITE)["hint"]
    assert ollama.chats() == []
    assert tree(home) == before
    disk.remount("rw")
    assert stores.assert_agreement(quick) == listing
    check_next_turn(quick, stores.files(home)[0], 5)


def test_a_read_only_store_imports_nothing(quick: Run, disk: Disk, home: Path, tmp_path: Path) -> None:
    make(home, 1)
    succeed(quick("--list-sessions"))
    (home / "sessions.db").unlink()
    make_old(home / "sessions.db")
    before = tree(home)
    disk.remount("ro")
    listing = quick("--list-sessions")
    assert len(stores.listed(listing)) == 1
    assert "next start tries again" in listing.stderr
    fail(quick("--import", str(make_old(tmp_path / "old.db"))), WRITE)
    assert tree(home) == before
    disk.remount("rw")
    assert len(stores.assert_agreement(quick)) == 2


def test_a_read_only_store_is_exported(quick: Run, disk: Disk, home: Path, tmp_path: Path) -> None:
    make(home, 1)
    disk.remount("ro")
    before = tree(home)
    for expected in (1, 0):
        time.sleep(0.06)  # the tick of the clock passes in which the session was made
        assert succeed(quick("--export", "--all", "--to", str(tmp_path / "archive"))).json["exported"] == expected
    succeed(quick("--export", ONE, "--to", str(tmp_path / "talk.md")))
    assert tree(home) == before


@pytest.mark.parametrize("why", ["full", "no names", "read-only"])
def test_an_export_that_cannot_be_written(quick: Run, disk: Disk, home: Path, tmp_path: Path, why: str) -> None:
    """The disk is that of the exports; the store is another one."""
    env = {"OLLAMA_PROMPT_HOME": str(tmp_path / "conversations")}
    path = make(tmp_path / "conversations", 1)
    everything = ("--export", "--all", "--to", str(home / "archive"))
    commands = (everything, ("--export", ONE, "--to", str(home / "talk.md")))
    for command in commands:
        succeed(quick(*command, env=env))
    stores.add(path, line(stores.message(50, "user", LONG)))
    if why == "read-only":
        disk.remount("ro")
    else:
        disk.fill() if why == "full" else disk.fill_names()
    before = tree(home)
    for command in commands:
        assert "--to" in fail(quick(*command, env=env), "export_failed")["hint"]
        left = set(tree(home)) - set(before)
        assert left <= {"archive/.archive.lock"}
        assert {name: data for name, data in tree(home).items() if name in before} == before
    if why == "read-only":
        disk.remount("rw")
    disk.clear()
    assert succeed(quick(*everything, env=env)).json["exported"] == 1


def begin_and_die(database: Path) -> None:
    """Leave a journal, as a process that was killed while it changed the index."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('PRAGMA cache_size = 1'); db.execute('PRAGMA cache_spill = 1'); db.execute('BEGIN'); "
        "db.execute('CREATE TABLE filler (text)'); "
        "db.executemany('INSERT INTO filler VALUES (?)', [('x' * 5000,)] * 20); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(database)], check=True)
    assert database.with_name("sessions.db-journal").stat().st_size


# -- no permission -----------------------------------------------------------------------------------------

NO_RIGHTS = """\
import ctypes, os
system = ctypes.CDLL(None, use_errno=True)
head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
if system.capset(head, none):
    raise OSError(ctypes.get_errno(), "capset")
"""
"""Makes root on Linux a user like others: the owner of its files, bound by their modes."""


@pytest.fixture
def as_user(tmp_path: Path) -> Env:
    """The environment of a command that file modes bind."""
    if sys.platform == "win32":
        pytest.skip("Windows has no modes")
    if os.getuid() != 0:
        return {}
    if not sys.platform.startswith("linux"):
        pytest.skip("modes do not bind root")
    return prelude(tmp_path, NO_RIGHTS)


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """The mode of a path for a while."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(bits)
    try:
        yield
    finally:
        if path.exists():
            path.chmod(before)


MONTH = stores.month_of(ONE)
COMMANDS = {
    "listing": ("--list-sessions",), "info": ("--session-info", ONE), "check": ("--check",), "turn": on(ONE),
    "new": ("-p", "Hi"), "delete": ("--delete", new_id(2)), "reindex": ("--reindex",),
}  # fmt: skip
MODES = [
    pytest.param(
        ".", 0o500, {"listing": OK, "info": OK, "turn": OK, "new": OK, "delete": OK, "reindex": WRITE}, id="home r"
    ),
    pytest.param(".", 0, {"listing": READ, "info": READ, "turn": READ, "new": WRITE, "delete": READ}, id="home -"),
    pytest.param("sessions", 0o500, {"listing": OK, "turn": OK, "new": WRITE, "delete": OK}, id="sessions r"),
    pytest.param(
        "sessions", 0,
        {"listing": READ, "info": READ, "check": READ, "turn": READ, "new": WRITE, "delete": READ, "reindex": READ},
        id="sessions -",
    ),
    pytest.param(f"sessions/{MONTH}", 0o500, {"listing": OK, "turn": OK, "delete": WRITE}, id="month r"),
    pytest.param(
        f"sessions/{MONTH}", 0, {"listing": READ, "info": READ, "check": READ, "turn": READ, "delete": READ},
        id="month -",
    ),
    pytest.param(f"sessions/{MONTH}/{ONE}.jsonl", 0o400, {"listing": OK, "info": OK, "turn": WRITE}, id="file r"),
    pytest.param(
        f"sessions/{MONTH}/{ONE}.jsonl", 0, {"listing": OK, "info": READ, "turn": READ, "delete": OK}, id="file -"
    ),
    pytest.param("sessions.db", 0o400, {"turn": OK, "listing": OK, "delete": OK, "reindex": WRITE}, id="index r"),
    pytest.param("sessions.db", 0, {"turn": OK, "listing": OK, "delete": OK, "reindex": READ}, id="index -"),
    pytest.param("locks", 0o500, {"listing": OK, "turn": OK, "new": WRITE, "delete": WRITE}, id="locks r"),
    pytest.param("locks", 0, {"listing": OK, "turn": WRITE, "new": WRITE, "reindex": WRITE}, id="locks -"),
    pytest.param(f"locks/{ONE}.lock", 0, {"listing": OK, "info": OK, "turn": WRITE, "new": OK}, id="lock -"),
    pytest.param("locks/index.lock", 0, {"listing": OK, "turn": OK, "delete": OK, "reindex": WRITE}, id="index lock -"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "bits", "expected"), MODES)
def test_no_permission(
    run: Run, quick: Run, home: Path, as_user: Env, where: str, bits: int, expected: dict[str, str]
) -> None:
    path = make(home, 1)
    succeed(quick("--list-sessions"))
    succeed(quick(*on(ONE)))
    make(home, 2)
    before = path.read_bytes()
    with mode(home / where, bits):
        results = {name: run(*COMMANDS[name], env=as_user) for name in expected}
    for name, code in expected.items():
        check_result(results[name], code)
    answered = expected["turn"] == OK
    assert answered or path.read_bytes() == before
    check_next_turn(quick, path, 9 if answered else 7)
    stores.assert_agreement(quick)


@pytest.mark.parametrize(
    "where",
    [
        ".",
        "sessions",
        f"sessions/{MONTH}",
        f"sessions/{MONTH}/{ONE}.jsonl",
        "sessions.db",
        "locks",
        f"locks/{ONE}.lock",
    ],
)
def test_permission_is_given_by_a_repair(run: Run, quick: Run, home: Path, as_user: Env, where: str) -> None:
    path = make(home, 1, stores.lines(ONE) + b"broken\n")
    for folder in (path.parent, path.parent.parent, home):
        folder.chmod(0o700)
    path.chmod(0o600)
    succeed(quick(*on(ONE)))
    with mode(home / where, 0):
        repaired = succeed(run("--check", "--repair", env=as_user)).json["repaired"]
        assert stat.S_IMODE((home / where).stat().st_mode) == (0o700 if (home / where).is_dir() else 0o600)
    assert [item["reason"].partition(":")[0] for item in repaired] == ["permissions", "mended"]
    check_next_turn(quick, path, 7)


def test_what_cannot_be_written_is_not_sent(run: Run, home: Path, as_user: Env, ollama: StandIn) -> None:
    path = make(home, 1)
    with mode(path, 0o400):
        error = fail(run(*on(ONE, "Secret"), env=as_user), WRITE)
    assert str(path) in error["error"]
    assert ollama.chats() == []
    with mode(home, 0):
        succeed(run("-p", "Hi", "--no-session", env=as_user))


def test_a_new_session_that_cannot_be_made_has_no_id(run: Run, quick: Run, home: Path, as_user: Env) -> None:
    make(home, 1)
    succeed(quick("--list-sessions"))
    for folder in ("sessions", "locks"):
        with mode(home / folder, 0o500):
            assert "session_id" not in fail(run("-p", "Hi", env=as_user), WRITE), folder


def test_a_store_that_came_as_sessions_only_is_made_whole(quick: Run, home: Path) -> None:
    make(home, 1)
    succeed(quick(*on(ONE)))
    names = {path.name for path in home.iterdir()}
    assert names == {"sessions", "locks", "sessions.db", ".gitignore", ".gitattributes"}
    if sys.platform != "win32":
        assert stat.S_IMODE((home / "locks").stat().st_mode) == 0o700


def test_a_store_that_cannot_be_made_there(run: Run, tmp_path: Path, as_user: Env, ollama: StandIn) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    env = as_user | {"OLLAMA_PROMPT_HOME": str(tmp_path / "closed" / "store")}
    error = fail(run("-p", "Hi", env=env), WRITE)
    assert "OLLAMA_PROMPT_HOME" in error["hint"]
    assert ollama.chats() == []
    assert succeed(run("--list-sessions", env=env)).json["total"] == 0


def test_a_file_that_cannot_be_read_is_listed_alike_by_a_new_index(
    run: Run, quick: Run, home: Path, as_user: Env
) -> None:
    make(home, 2)
    with mode(make(home, 1), 0):
        without_index = stores.listed(run("--list-sessions", env=as_user))
    succeed(quick("--list-sessions"))
    with mode(stores.files(home)[0], 0):
        result = run("--list-sessions", env=as_user)
        assert f"note: cannot read {stores.files(home)[0]}" in result.stderr
        assert stores.assert_agreement(run, env=as_user) == stores.listed(result) == without_index


@pytest.mark.parametrize("bits", [0o500, 0], ids=["cannot be removed", "cannot be read"])
def test_purging_goes_on_behind_what_it_cannot_remove(
    run: Run, quick: Run, home: Path, as_user: Env, bits: int
) -> None:
    laid = make(home, 9, stores.lines(new_id(9), 9))  # used after the others: a purge meets it first
    stuck = home / "sessions" / "kept" / laid.name
    stuck.parent.mkdir()
    laid.rename(stuck)
    make(home, 1)
    make(home, 2)
    with mode(stuck if bits == 0 else stuck.parent, bits):
        result = stores.clean(run("--purge", "9", env=as_user))
    assert stores.files(home) == [stuck]
    assert result.returncode == 0 or result.error["code"] in {READ, WRITE}
    assert [session["session_id"] for session in stores.assert_agreement(quick)] == [stuck.stem]


# -- files that change while the model answers -------------------------------------------------------------


class Held:
    """A turn whose answer is held back."""

    def __init__(self, start: Start, ollama: StandIn, session_id: str, prompt: str = "Held") -> None:
        self._ollama = ollama
        ollama.hold()
        self._process = start(*on(session_id, prompt))
        ollama.wait(held=1)

    def end(self) -> Result:
        """The answer comes; the result of the turn, which must succeed."""
        self._ollama.release()
        out, err = self._process.communicate(timeout=60)
        return succeed(Result(self._process.returncode, out, err))


def move(path: Path) -> None:
    """Move the file into a folder of somebody's own."""
    folder = path.parent.parent / "kept" / "deep"
    folder.mkdir(parents=True)
    path.rename(folder / path.name)


MORE = b"".join(map(line, stores.turn(7)))
CHANGES: dict[str, tuple[Callable[[Path], object], int, int]] = {
    # what: (how, other messages that are in the file then, messages that the next turn sends)
    "replaced by what it was": (lambda path: replace(path, stores.lines(ONE)), 4, 7),
    "replaced by a longer one": (lambda path: replace(path, stores.lines(ONE) + MORE), 6, 9),
    "replaced by an empty one": (lambda path: replace(path, b""), 0, 3),
    "replaced by a torn one": (lambda path: replace(path, stores.lines(ONE)[:-20]), 3, 5),
    "cut in place": (lambda path: os.truncate(path, 400), 1, 3),
    "overwritten in place": (lambda path: path.write_bytes(stores.lines(ONE) + MORE), 6, 9),
    "appended to": (lambda path: path.write_bytes(path.read_bytes() + MORE), 6, 8),  # the answer follows another one
    "moved": (move, 4, 7),
    "removed": (Path.unlink, 0, 3),
    "removed with its folder": (lambda path: shutil.rmtree(path.parent), 0, 3),
    "removed with the store": (lambda path: shutil.rmtree(path.parents[2]), 0, 3),
}


@posix_only
@pytest.mark.parametrize("name", CHANGES)
def test_changed_while_the_model_answers(quick: Run, start: Start, home: Path, ollama: StandIn, name: str) -> None:
    change, others, messages_sent = CHANGES[name]
    path = make(home, 1)
    held = Held(start, ollama, ONE)
    change(path)
    turn = held.end().json
    (listed,) = stores.assert_agreement(quick)
    info = succeed(quick("--session-info", ONE)).json
    messages = [(message["role"], message["content"]) for message in info["messages"]]
    of_the_turn = [("user", "Held"), ("assistant", turn["response"])]
    assert [item for item in messages if item in of_the_turn] == of_the_turn
    assert len(messages) == others + 2 == listed["message_count"]
    check_next_turn(quick, Path(info["path"]), messages_sent)


class Repository:
    """The store under git."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.git("init", "-q", "-b", "main")
        self.commit()

    def git(self, *arguments: str, may_fail: bool = False) -> str:
        """What git says."""
        config = str(Path(__file__).with_name("gitconfig"))
        env = {**os.environ, "GIT_CONFIG_GLOBAL": config, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(self.home)}
        who = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.home), *who, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert may_fail or done.returncode == 0, done
        return done.stdout + done.stderr

    def commit(self) -> None:
        """Commit all there is."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "Turns")


@pytest.fixture
def repository(quick: Run, home: Path) -> Repository:
    """A store with one session of three turns, committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    make(home, 1)
    succeed(quick("--list-sessions"))
    succeed(quick(*on(ONE, "Before")))
    return Repository(home)


def sent_last(ollama: StandIn) -> list[str]:
    """The prompts that the model got last."""
    return [message["content"] for message in ollama.chats()[-1]["messages"] if message["role"] == "user"]


def assert_sends(run: Run, ollama: StandIn, prompts: list[str]) -> None:
    """The next turn sends these prompts behind what was there before; nothing is damaged."""
    succeed(run(*on(ONE, "Next")))
    assert sent_last(ollama) == ["Question 0", "Question 1", "Before", *prompts, "Next"]
    assert succeed(run("--check")).json["damage"] == []
    stores.assert_agreement(run)


def test_git_leaves_index_and_locks_alone(repository: Repository) -> None:
    names = repository.git("ls-files").splitlines()
    assert names == [".gitattributes", ".gitignore", f"sessions/{MONTH}/{ONE}.jsonl"]


def test_stashed_while_the_model_answers(
    quick: Run, start: Start, home: Path, ollama: StandIn, repository: Repository
) -> None:
    succeed(quick(*on(ONE, "Stashed")))
    held = Held(start, ollama, ONE)
    repository.git("stash")
    held.end()
    assert_sends(quick, ollama, ["Held"])
    repository.commit()
    repository.git("stash", "pop")
    succeed(quick(*on(ONE, "Last")))
    assert sorted(sent_last(ollama)[3:]) == ["Held", "Last", "Next", "Stashed"]
    assert succeed(quick("--check")).json["damage"] == []
    assert len({record.get("id") for record in stores.records(the_file(home))}) == 1 + 4 + 2 * 5
    stores.assert_agreement(quick)


def test_a_branch_without_the_session_while_the_model_answers(
    quick: Run, start: Start, home: Path, ollama: StandIn, repository: Repository
) -> None:
    repository.git("branch", "elsewhere")
    repository.git("checkout", "-q", "elsewhere")
    repository.git("rm", "-q", f"sessions/{MONTH}/{ONE}.jsonl")
    repository.commit()
    repository.git("checkout", "-q", "main")
    held = Held(start, ollama, ONE)
    repository.git("checkout", "-q", "-f", "elsewhere")
    assert "note: " in held.end().stderr
    assert said(the_file(home))[0] == ("user", "Held")
    repository.commit()
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "elsewhere", may_fail=True)  # a file that both have made anew
    assert_sends_at_least(quick, ollama, ["Held"])


def assert_sends_at_least(run: Run, ollama: StandIn, prompts: list[str]) -> None:
    """The next turn works and sends these prompts."""
    succeed(run(*on(ONE, "Next")))
    assert set(sent_last(ollama)) >= {*prompts, "Next"}
    stores.assert_agreement(run)


def diverge(run: Run, repository: Repository) -> None:
    """Two branches, each with a turn that the other has not; on main."""
    repository.git("checkout", "-q", "-b", "other")
    succeed(run(*on(ONE, "Theirs")))
    repository.commit()
    repository.git("checkout", "-q", "main")


def test_turns_of_two_branches_are_both_there_after_a_merge(
    quick: Run, home: Path, ollama: StandIn, repository: Repository
) -> None:
    diverge(quick, repository)
    succeed(quick(*on(ONE, "Ours")))
    assert "Theirs" not in sent_last(ollama)
    repository.commit()
    repository.git("merge", "-q", "--no-edit", "other")
    assert_sends(quick, ollama, ["Ours", "Theirs"])


def test_merged_while_the_model_answers(
    quick: Run, start: Start, home: Path, ollama: StandIn, repository: Repository
) -> None:
    diverge(quick, repository)
    succeed(quick(*on(ONE, "Ours")))
    repository.commit()
    held = Held(start, ollama, ONE)
    repository.commit()  # the prompt
    repository.git("merge", "-q", "--no-edit", "other")
    response = held.end().json["response"]
    stored = [content for _, content in said(the_file(home))]
    assert [stored.count(text) for text in ("Ours", "Theirs", "Held", response)] == [1, 1, 1, 1]
    assert succeed(quick("--check")).json["damage"] == []
    assert_sends_at_least(quick, ollama, ["Ours", "Theirs"])


# -- the index ---------------------------------------------------------------------------------------------


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Write over the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


RUINS: dict[str, Callable[[Path], object]] = {
    "garbage in place": lambda path: overwrite(path, 0, b"ruins" * 2000),
    "garbage behind the header": lambda path: overwrite(path, 100, b"ruins" * 2000),
    "zeroed page": lambda path: overwrite(path, 4096, bytes(4096)),
    "zeroed from the second page": lambda path: overwrite(path, 4096, bytes(path.stat().st_size - 4096)),
    "cut in a page": lambda path: os.truncate(path, path.stat().st_size - 5000),
    "cut to the header": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "other schema version": lambda path: overwrite(path, 60, b"\0\0\0\x63"),
    "without tables": lambda path: execute(path, "DROP TABLE readings"),
    "other columns": lambda path: execute(path, "ALTER TABLE files RENAME COLUMN listed TO other"),
    "nonsense in rows": lambda path: execute(path, "UPDATE readings SET saved = '[1'", "UPDATE files SET young = NULL"),
    "stamps that are none": lambda path: execute(path, "UPDATE files SET stamp = x'00', young = NULL"),
    "young stamps that are none": lambda path: execute(path, "UPDATE files SET stamp = x'00', young = 'young'"),
    "without the id of its making": lambda path: execute(path, "DELETE FROM making"),
    "rows of nothing": lambda path: execute(path, "UPDATE readings SET saved = '{}'"),
    "a journal of garbage": lambda path: path.with_name("sessions.db-journal").write_bytes(b"ruins" * 2000),
}


def execute(path: Path, *statements: str) -> None:
    """Change the database by hand."""
    database = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


RUINED = [
    (ruin, command)
    for ruin in RUINS
    for command in ("listing", "turn", "delete", "reindex")
    if command in {"listing", "turn"} or ruin in {"garbage in place", "zeroed page", "without tables"}
]


@pytest.mark.parametrize(("ruin", "first"), RUINED)
def test_a_ruined_index_is_built_again(quick: Run, home: Path, ruin: str, first: str) -> None:
    for number in range(1, 9):
        make(home, number)
    expected = stores.listed(quick("--list-sessions"))
    RUINS[ruin](home / "sessions.db")
    check = stores.clean(quick("--check"))
    assert check.json["damage"] == []
    assert check.returncode == (check.json["index"] == "corrupt")
    result = succeed(quick(*COMMANDS[first]))
    assert "note" not in result.stderr
    changed = {ONE} if first == "turn" else {new_id(2)} if first == "delete" else set()
    listed = stores.assert_agreement(quick)
    unchanged = [session for session in listed if session["session_id"] not in changed]
    assert unchanged == [session for session in expected if session["session_id"] not in changed]
    assert len(listed) == len(expected) - (first == "delete")
    assert succeed(quick("--check")).json["index"] == "ok"


def make_foreign(path: Path) -> None:
    """A database of another program."""
    execute(path, "CREATE TABLE notes (text)", "PRAGMA application_id = 7")


def make_first_release(path: Path) -> None:
    """The database of ollama-prompt 1.x."""
    execute(
        path,
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, context TEXT, metadata_json TEXT)",
        "INSERT INTO sessions VALUES ('a', 'User: Hi', '{}')",
    )


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def link_to_notes(path: Path) -> None:
    """A link to somebody's file."""
    notes = path.parent / "notes.txt"
    notes.write_text("my notes", encoding="utf-8")
    path.symlink_to(notes)


def make_device(path: Path) -> None:
    """A device that swallows all, of our own: the real one must survive the test."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.chmod(0o666)
        path.read_bytes()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "another application": make_foreign,
    "ollama-prompt 1.x": make_first_release,
    "text": lambda path: path.write_text("my notes " * 100, encoding="utf-8"),
    "header and garbage": lambda path: path.write_bytes(b"SQLite format 3\0" + b"ruins" * 2000),
    "folder": lambda path: path.mkdir(),
    "link to a file": link_to_notes,
    "FIFO": lambda path: os.mkfifo(path, 0o600),
    "device": make_device,
}


def look(path: Path) -> tuple[object, ...]:
    """What lies there, and how."""
    status = path.stat()
    content = path.read_bytes() if path.is_file() else sorted(path.parent.glob(path.name + "*"))
    return (status.st_mode, status.st_ino, status.st_mtime_ns if path.is_file() else 0, content, path.is_symlink())


@posix_only
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_our_index_is_left_alone(run: Run, quick: Run, home: Path, kind: str) -> None:
    run = run if kind == "FIFO" else quick  # which may hang, and takes the time limit
    path = make(home, 1)
    make(home, 2)
    foreign = home / "sessions.db"
    FOREIGN[kind](foreign)
    before = look(foreign)
    listing = run("--list-sessions", timeout=10)
    assert len(stores.listed(listing)) == 2
    assert listing.stderr.count(f"note: {foreign} ") == 1
    turn = succeed(run(*on(ONE), timeout=10))
    assert turn.stderr.count("note: ") == 1
    assert len(said(path)) == 6
    assert look(foreign) == before
    check = stores.clean(run("--check", timeout=10))
    assert (check.returncode, check.json["index"]) == (1, "foreign")
    fail(run("--reindex", timeout=10), READ)
    succeed(run("--delete", new_id(2), timeout=10))
    assert succeed(run("--purge", "0", timeout=10)).json["sessions"] == [ONE]
    assert look(foreign) == before


@posix_only
@pytest.mark.parametrize("there", [True, False])
def test_an_index_that_was_moved_and_linked_is_used(quick: Run, home: Path, tmp_path: Path, there: bool) -> None:
    make(home, 1)
    elsewhere = tmp_path / "elsewhere.db"
    if there:
        succeed(quick("--list-sessions"))
        (home / "sessions.db").rename(elsewhere)
    (home / "sessions.db").symlink_to(elsewhere)
    make(home, 2)
    assert len(stores.assert_agreement(quick)) == 2
    check_next_turn(quick, stores.files(home)[0], 5)
    assert succeed(quick("--check")).json["index"] == "ok"


# -- damaged lines -----------------------------------------------------------------------------------------

LINES = stores.lines(ONE).splitlines(keepends=True)
"""A header and two turns."""


def within(junk: bytes, at: int = 3) -> bytes:
    """The session with something between its lines."""
    return b"".join([*LINES[:at], junk, *LINES[at:]])


def with_record(**record: Any) -> bytes:
    """The session with one more record, after the first turn."""
    return within(line(record))


def with_header(**changes: Any) -> bytes:
    """The session with another header."""
    return b"".join([line(header(ONE) | changes), *LINES[1:]])


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


DAMAGE: dict[str, tuple[bytes, int, int]] = {
    # what: (the file, damaged lines, messages that the next turn sends)
    "garbage at the head": (within(b"garbage\n", 0), 1, 5),
    "garbage in the middle": (within(b"\x80\xff{]\n<<<<<<< HEAD\n"), 2, 5),
    "garbage at the tail": (within(b"garbage\n", 5), 1, 5),
    "torn at the tail": (b"".join(LINES)[:-30], 0, 3),
    "torn in the header": (b"".join(LINES[:1])[:40], 1, 1),
    "NUL runs": (within(b"\0" * 5000 + LINES[1].replace(b"-7", b"-6")), 0, 5),
    "NUL line": (within(b"\0" * 5000 + b"\n"), 0, 5),
    "NULs at the tail": (b"".join(LINES) + bytes(4096), 0, 5),
    "invalid UTF-8": (b"".join([*LINES[:4], LINES[4].replace(b"Answer", b"Ans\xff\xfe")]), 1, 3),
    "CRLF": (b"".join(LINES).replace(b"\n", b"\r\n"), 0, 5),
    "byte order mark": (b"\xef\xbb\xbf" + b"".join(LINES), 0, 5),
    "UTF-16": (b"".join(LINES).decode().encode("utf-16-le"), 5, 1),  # without its NULs it would be another text
    "empty": (b"", 1, 1),
    "only newlines": (b"\n" * 100, 0, 1),
    "huge damaged line": (within(b"x" * 20_000_000 + b"\n"), 1, 5),
    "huge line of another type": (with_record(type="blob", id=new_id(50), data="x" * 2_000_000), 0, 5),
    "header missing": (b"".join(LINES[1:]), 1, 5),
    "header twice": (within(LINES[0]), 0, 5),
    "header of another session": (with_header(session_id=new_id(9)), 0, 5),
    "header with wrong types": (with_header(model=7, max_context_tokens="x", created_at=[], title={}), 0, 5),
    "version of nonsense": (with_header(version="two"), 0, 5),
    "repeated records": (within(b"".join(LINES[1:3])), 0, 5),
    "lone surrogate": (within(b'{"type":"message","role":"user","content":"\\ud800"}\n'), 1, 5),
    "too deep": (within(deep(100_000) + b"\n"), 1, 5),
    "deep in a record": (within(b'{"type":"blob","x":' + deep(900) + b"}\n"), 0, 5),
    "numbers out of range": (within(b'{"type":"message","role":"user","content":"x","n":1e999}\n'), 1, 5),
    "counts out of range": (
        b"".join([*LINES[:4], LINES[4].replace(b'"tokens":9', b'"tokens":18446744073709551615')]), 0, 5,
    ),
    "negative counts": (b"".join([*LINES[:4], LINES[4].replace(b'"tokens":9', b'"tokens":-90000')]), 0, 5),
    "duplicate keys": (within(b'{"type":"x","type":"meta","model":"a","model":"smollm2"}\n'), 0, 5),
    "time far in the future": (
        with_record(type="meta", id=new_id(50), created_at="9999-12-31T23:59:59.999Z"), 0, 5,
    ),
    "time of nonsense": (with_record(type="meta", id=new_id(50), created_at="yesterday"), 0, 5),
    "time of a wrong type": (with_record(type="meta", id=new_id(50), created_at={"a": [1]}), 0, 5),
    "not objects": (within(b"null\n7\n[]\n\"text\"\n{}\n"), 5, 5),
    "wrong types": (
        within(b'{"type":"message","role":7,"content":"x"}\n{"type":"message","role":"user","content":null}\n'), 2, 5,
    ),
    "fields of a wrong type": (
        within(
            b'{"type":"message","id":"x","role":"user","content":"x","typed":7,"created_at":1}\n'
            b'{"type":"message","id":"y","role":"assistant","content":"y","window":7,"tokens":[],"model":{}}\n'
        ), 0, 7,
    ),
    "ids of a wrong type": (with_record(type="undo", id=[], ids={"a": 1}), 0, 5),
    "an undo of all and itself": (
        with_record(type="undo", id=new_id(50), ids=[new_id(n) for n in (0, 1, 2, 3, 50)]), 0, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told_and_a_turn_goes_on(quick: Run, home: Path, what: str) -> None:
    data, damaged, messages = DAMAGE[what]
    path = make(home, 1, data)
    info = succeed(quick("--session-info", ONE)).json
    assert len(info["damage"]) == damaged, info["damage"]
    assert all(item["reason"] for item in info["damage"])
    check = stores.clean(quick("--check"))
    assert (check.returncode, len(check.json["damage"])) == (damaged > 0, damaged)
    stores.assert_agreement(quick)
    check_next_turn(quick, path, messages)
    stores.assert_agreement(quick)


@pytest.mark.parametrize("depth", [250, 300, 1000])
def test_a_setting_that_is_nested_too_deep_is_left_out(quick: Run, home: Path, depth: int) -> None:
    head = line(header(ONE))[:-2] + b',"options":{"stop":' + deep(depth) + b"}}\n"
    make(home, 1, b"".join([head, *LINES[1:]]))
    make(home, 2)
    assert len(stores.assert_agreement(quick)) == 2
    assert succeed(quick("--session-info", ONE)).json["options"] == {}
    assert succeed(quick("--check")).json["damage"] == []
    for path in stores.files(home):
        check_next_turn(quick, path, 5)


@pytest.mark.parametrize("depth", [250, 300, 1000])
def test_what_is_nested_too_deep_to_be_printed_is_left_out(quick: Run, home: Path, depth: int) -> None:
    head = line(header(ONE))[:-2] + b',"imported_from":' + deep(depth) + b"}\n"
    keys = (b"references", b"images", b"tokens")
    odd = [
        line(stores.message(n, "user", "Hi"))[:-2] + b',"%b":%b}\n' % (key, deep(depth)) for n, key in enumerate(keys)
    ]
    make(home, 1, b"".join([head, *odd]))
    shown = succeed(quick("--session-info", ONE)).json
    assert "imported_from" not in shown
    assert [message.keys() for message in shown["messages"]] == [{"id", "role", "content", "created_at"}] * 3
    succeed(quick("--session-info", ONE, "--output", "text"))


def test_an_option_that_is_nested_too_deep_is_refused(quick: Run, home: Path) -> None:
    for depth in (250, 300, 1000):
        fail(quick("-p", "Hi", "--option", f"x={deep(depth).decode()}"), "usage", 2)
    assert not home.exists()


def test_a_newer_format_is_listed_and_read(quick: Run, home: Path) -> None:
    make(home, 1, with_header(version=2) + line({"type": "poem", "id": new_id(60), "text": ["x"]}))
    assert stores.assert_agreement(quick)[0]["message_count"] == 4
    assert len(succeed(quick("--session-info", ONE)).json["messages"]) == 4
    assert succeed(quick("--check")).json["damage"] == []


def test_names_that_are_no_sessions_are_passed_by(quick: Run, home: Path) -> None:
    folder = make(home, 1).parent
    odd = "ffffffff-ffff-7fff-bfff-ffffffffffff"
    (folder / f"{odd}.jsonl").write_bytes(stores.lines(odd))  # its time is in the year 10889
    for name in (f"{ONE.upper()}.jsonl", f"{ONE}.jsonl.bak", ".hidden.jsonl", "notes.txt", f"{'x' * 36}.jsonl"):
        (folder / name).write_bytes(stores.lines(ONE))
    (folder / f"{new_id(5)}.jsonl").mkdir()
    assert {session["session_id"] for session in stores.assert_agreement(quick)} == {ONE, odd}
    check_next_turn(quick, folder / f"{odd}.jsonl", 5)


# -- a wrong clock -----------------------------------------------------------------------------------------

HOUR = 3600


def off_by(folder: Path, seconds: int) -> Env:
    """The environment of a command whose clock is wrong by so much."""
    code = f"""\
import time
right = time.time_ns
time.time_ns = lambda: right() + {seconds} * 10**9
time.time = lambda: time.time_ns() / 1e9
"""
    return prelude(folder, code)


@pytest.mark.parametrize("first", [-HOUR, HOUR])
def test_turns_stay_in_order_whatever_the_clock_says(
    run: Run, quick: Run, home: Path, tmp_path: Path, ollama: StandIn, first: int
) -> None:
    clocks = [off_by(tmp_path, first), {}, off_by(tmp_path, -first)]
    session_id = succeed(run("-p", "Turn 0", env=clocks[0])).json["session_id"]
    for number in range(1, 4):
        env = clocks[number % 3]
        turn = succeed(run(*on(session_id, f"Turn {number}"), env=env)).json
        assert turn["window"]["messages_sent"] == 2 * number + 1
        succeed(run("--list-sessions", env=env))
    assert sent_last(ollama) == [f"Turn {number}" for number in range(4)]
    (listed,) = stores.assert_agreement(quick)
    times = [record["created_at"] for record in stores.records(the_file(home))]
    assert listed["last_used"] == max(times)[:19] + "Z"
    assert listed["message_count"] == 8
    assert succeed(quick("--check")).json == {"ok": True, "sessions": 1, "damage": [], "index": "ok"}


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_purge_by_a_wrong_clock_keeps_what_was_just_used(
    run: Run, quick: Run, home: Path, tmp_path: Path, seconds: int
) -> None:
    wrong = off_by(tmp_path, seconds)
    ids = {succeed(run("-p", "Hi", env=env)).json["session_id"] for env in ({}, wrong)}
    make(home, 1)
    for env in (wrong, {}):
        succeed(run("--list-sessions", env=env))
        purged = succeed(run("--purge", "1", env=env)).json["sessions"]
        assert set(purged) <= {ONE}
    assert {path.stem for path in stores.files(home)} == ids


def test_a_turn_by_a_clock_that_lost_its_battery(run: Run, quick: Run, home: Path, tmp_path: Path) -> None:
    path = make(home, 1)
    lost = off_by(tmp_path, -int(time.time()) + 5)
    before = stores.assert_agreement(quick)[0]["last_used"]
    turn = succeed(run(*on(ONE), env=lost)).json
    assert turn["window"]["messages_sent"] == 5
    succeed(run("-p", "Hi", env=lost))
    assert succeed(run("--purge", "30", env=lost)).json["removed"] == 0
    assert {session["session_id"]: session["last_used"] for session in stores.assert_agreement(quick)}[ONE] == before
    check_next_turn(quick, path, 7)


# -- odd homes ---------------------------------------------------------------------------------------------


def check_store(run: Run, env: Env, cwd: Path | None = None) -> Json:
    """A turn, the next one and the listing work; the listed session."""
    session_id = succeed(run("-p", "Hi", env=env, cwd=cwd)).json["session_id"]
    assert succeed(run(*on(session_id), env=env, cwd=cwd)).json["window"]["messages_sent"] == 3
    (listed,) = stores.listed(run("--list-sessions", env=env, cwd=cwd))
    assert listed["session_id"] == session_id
    assert Path(listed["path"]).is_absolute()
    assert succeed(run("--session-info", session_id, env=env, cwd=cwd)).json["path"] == listed["path"]
    return listed


@pytest.mark.parametrize("name", ["with spaces", "Größe 😀 \u202e", "a/b/c/d", "quote's \"\\", "-p", "%s{0}$HOME"])
def test_homes_with_odd_names(quick: Run, tmp_path: Path, name: str) -> None:
    if sys.platform == "win32" and '"' in name:
        pytest.skip("Windows has no such names")
    home = tmp_path / "homes" / name
    listed = check_store(quick, {"OLLAMA_PROMPT_HOME": str(home)})
    assert Path(listed["path"]) == the_file(home)


@posix_only
def test_a_home_whose_name_is_no_text(quick: Run, tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        home.mkdir()
    except OSError as error:
        pytest.skip(f"this file system wants text: {error}")
    listed = check_store(quick, {"OLLAMA_PROMPT_HOME": str(home)})
    assert Path(listed["path"]) == the_file(home)


def test_a_relative_home(run: Run, tmp_path: Path) -> None:
    check_store(run, {"OLLAMA_PROMPT_HOME": "here/store"}, cwd=tmp_path)
    assert the_file(tmp_path / "here" / "store")


def test_an_empty_home_is_the_usual_one(quick: Run, tmp_path: Path) -> None:
    check_store(quick, {"OLLAMA_PROMPT_HOME": ""})
    assert the_file(tmp_path / ".ollama-prompt")


@posix_only
def test_a_home_that_is_a_link(quick: Run, tmp_path: Path, home: Path) -> None:
    home.symlink_to(tmp_path / "real")
    fail(quick("-p", "Hi"), WRITE)
    fail(quick("--list-sessions"), READ)
    (tmp_path / "real").mkdir()
    check_store(quick, {})
    assert the_file(tmp_path / "real")


@posix_only
def test_in_a_folder_that_was_removed(run: Run, home: Path, tmp_path: Path) -> None:
    gone = prelude(tmp_path, "import os, tempfile\nwhere = tempfile.mkdtemp()\nos.chdir(where)\nos.rmdir(where)\n")
    check_store(run, gone)
    error = fail(run("--list-sessions", env=gone | {"OLLAMA_PROMPT_HOME": "store"}), "usage", 2)
    assert "OLLAMA_PROMPT_HOME" in error["error"]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the store's."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


def test_the_index_on_another_file_system(quick: Run, home: Path, other_disk: Path) -> None:
    env = {"OLLAMA_PROMPT_DB_PATH": str(other_disk / "index.db")}
    check_store(quick, env)
    assert (other_disk / "index.db").stat().st_size
    overwrite(other_disk / "index.db", 100, b"ruins" * 2000)
    assert len(stores.assert_agreement(quick, env=env)) == 1
    assert succeed(quick("--check", env=env)).json["index"] == "ok"


@pytest.mark.parametrize("name", ["missing/index.db", "file/index.db", "folder", "store/sessions"])
def test_an_index_where_none_can_be(quick: Run, home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    env = {"OLLAMA_PROMPT_DB_PATH": str(tmp_path / name)}
    check_store(quick, env)
    assert stores.clean(quick("--check", env=env)).json["damage"] == []
    result = stores.clean(quick("--reindex", env=env))
    assert result.returncode == 0 or result.error["code"] in {READ, WRITE}
    succeed(quick("--purge", "0", env=env))
    assert (tmp_path / "file").read_bytes() == b""


# -- memory ------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20
WORDS = 150
"""How long messages are in large files."""


@pytest.fixture
def peak(run: Run, tmp_path: Path) -> Callable[..., int]:
    """Run a command, which must succeed; the most memory that it had, in bytes."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("only Linux tells how much memory a process had")
    status = tmp_path / "status"
    code = f"""\
import os
def end(code, end=os._exit):
    open({str(status)!r}, "w").write(open("/proc/self/status").read())
    end(code)
os._exit = end
"""
    env = {**prelude(tmp_path, code), "PYTHONWARNINGS": "ignore"}

    def peak(*arguments: str) -> int:
        succeed(run(*arguments, env=env, timeout=300))
        (found,) = [text for text in status.read_text().splitlines() if text.startswith("VmHWM:")]
        return int(found.split()[1]) * 1024

    return peak


def make_large(home: Path, megabytes: int) -> Path:
    """A session of that size, of lines as short as real conversations have them."""
    turn = [record | {"id": "@", "content": "word " * WORDS} for record in stores.turn(1)]
    pattern = b"".join(map(line, turn)).decode().replace("@", "%s")
    path = make(home, 1, line(header(ONE)))
    with open(path, "a", encoding="ascii", newline="\n") as file:
        numbers = range(megabytes * MEGABYTE // len(pattern))
        file.writelines(pattern % (new_id(2 * number), new_id(2 * number + 1)) for number in numbers)
    return path


def test_memory_does_not_grow_with_a_file(home: Path, peak: Callable[..., int]) -> None:
    make_large(home, 1)
    small = {name: peak(*COMMANDS[name]) for name in ("listing", "turn")}
    shutil.rmtree(home)
    make_large(home, 60)
    large = {"turn without an index": peak(*COMMANDS["turn"])}
    (home / "sessions.db").unlink()
    large["listing"] = peak(*COMMANDS["listing"])
    large["turn"] = peak(*COMMANDS["turn"])
    assert max(large.values()) < max(small.values()) + 25 * MEGABYTE, (small, large)


@pytest.mark.slow
def test_half_a_gigabyte_within_200_megabytes(home: Path, peak: Callable[..., int]) -> None:
    make_large(home, 500)
    needed = {"turn without an index": peak(*COMMANDS["turn"])}
    (home / "sessions.db").unlink()
    needed |= {name: peak(*COMMANDS[name]) for name in ("listing", "turn", "check")}
    assert max(needed.values()) < 200 * MEGABYTE, needed
