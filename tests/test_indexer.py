"""The store as a whole: whatever happens to files and index, the listing is what reading every file gives.

First a machine that does anything in any order; then the rules of removing, locking, checking and reindexing.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from hasty import do_not_wait
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stores import add, header, line, message, month_of, new_id, refuse, replace

from ollama_prompt import catalogue, clock, index, locks, records, removal, session_file
from ollama_prompt.errors import SessionBusy, SessionNotFound, StoreError, StoreUnreadable
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    Json = dict[str, Any]
    Act = Callable[[Path], object]

HOUR_NS = 3600 * 10**9
SETTINGS: Json = {"model": "smollm2", "max_context_tokens": 64000}


def read_late(patch: pytest.MonkeyPatch) -> None:
    """Every file is read long after it changed: what the index has of it is trusted."""
    for module in (index, catalogue):
        patch.setattr(module, "read_time_ns", lambda: time.time_ns() + HOUR_NS)


def files_of(home: Path) -> list[Path]:
    """Every session file, by the rules: its name counts, wherever it lies in folders that are not hidden."""
    found = []
    for folder, folders, names in os.walk(home / "sessions"):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(".jsonl")]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def without_index(home: Path) -> list[bytes]:
    """The listing made from the files alone."""
    return Indexer(Layout(str(home), str(home.parent / "no" / "index.db")), lambda _: None).sessions()


# --- A plain reading of the rules ------------------------------------------------------------------


class Plain:
    """One session file, read in the simplest way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[object, Json] = {}
        for text in path.read_bytes().split(b"\n")[:-1]:
            record = plain_record(text)
            if record and record["type"] != "session":
                self.records.setdefault(record["id"], record)

    @property
    def message_count(self) -> int:
        undone = {id_ for record in self.records.values() for id_ in record.get("ids", [])}
        return len([1 for id_, record in self.records.items() if record["type"] == "message" and id_ not in undone])

    @property
    def last_use(self) -> tuple[str, str]:
        return max(((record["created_at"], record["id"]) for record in self.records.values()), default=("", ""))

    def shown(self) -> tuple[str, str, int, str | None]:
        last_used = self.last_use[0]
        return self.path.stem, str(self.path), self.message_count, last_used[:19] + "Z" if last_used else None


def count(path: Path) -> int:
    return len(Plain(path).records)


def plain_record(text: bytes) -> Json | None:
    try:
        record = json.loads(text.replace(b"\0", b""))
    except ValueError:
        return None
    if not isinstance(record, dict) or "type" not in record or (record["type"] == "message" and "role" not in record):
        return None
    return record


def plain_listing(home: Path) -> list[tuple[str, str, int, str | None]]:
    """What is listed of every session, newest use first; of several files the one with the most records."""
    best: dict[str, Plain] = {}
    for plain in sorted(map(Plain, files_of(home)), key=lambda plain: (-len(plain.records), str(plain.path))):
        best.setdefault(plain.path.stem, plain)
    by_path = sorted(best.values(), key=lambda plain: str(plain.path))
    return [plain.shown() for plain in sorted(by_path, key=lambda plain: plain.last_use, reverse=True)]


def shown(lines: list[bytes]) -> list[tuple[str, str, int, str | None]]:
    keys = ("session_id", "path", "message_count", "last_used")
    return [tuple(json.loads(line)[key] for key in keys) for line in lines]


# --- Anything that can happen ----------------------------------------------------------------------

FOREIGN = b"SQLite format 3\0" + bytes(4080)
FOLDERS = ["2026-09", "", "mine", "mine/deep", ".hidden"]
INDEX_CHANGES: dict[str, Act] = {
    "gone": lambda path: path.unlink(missing_ok=True),
    "overwritten": lambda path: path.write_bytes(b"ruins" * 100),
    "emptied": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "ruins behind the header": lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 20_000),
    "no tables": lambda path: sql(path, "DROP TABLE files"),
    "no readings": lambda path: sql(path, "DROP TABLE readings"),
    "another schema": lambda path: sql(path, "PRAGMA user_version = 99"),
    "foreign text": lambda path: replace(path, b"my notes"),
    "foreign database": lambda path: replace(path, FOREIGN),
}  # fmt: skip


def sql(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(statement, values).fetchall()


picks = st.integers(0, 5)


class Anything(RuleBasedStateMachine):
    """A store to which anything happens.

    A row is young as long as it is, or (`is_late`) trusted at once; the store is listed after every step
    (`is_watched`), or less often.
    """

    @initialize(is_late=st.booleans(), is_watched=st.booleans())
    def begin(self, is_late: bool, is_watched: bool) -> None:
        self.folder = TemporaryDirectory()
        self.home = Path(self.folder.name) / "store"
        self.database = self.home / "sessions.db"
        self.indexer = Indexer(Layout(str(self.home)), lambda _: None)
        self.indexer.layout.make()
        self.backup = b""
        self.number = 10
        self.patch = pytest.MonkeyPatch()
        do_not_wait(self.patch)
        self.is_late = is_late
        if is_late:
            read_late(self.patch)
        self.is_watched = is_watched
        for number in (1, 2):
            self.lay(number, "2026-09", number)

    @invariant()
    def watch(self) -> None:
        if self.is_watched:
            self.listing()

    def teardown(self) -> None:
        try:
            self.listing()
        finally:
            self.patch.undo()
            self.folder.cleanup()

    def next(self) -> int:
        self.number += 1
        return self.number

    def pick(self, number: int) -> Path | None:
        """One of the session files."""
        found = files_of(self.home)
        return found[number % len(found)] if found else None

    def changed(self, path: Path) -> None:
        """A row that was trusted must be able to show that the file changed: no clock ticks between our steps."""
        if self.is_late:
            moment = 10**18 + self.next() * 10**9 + 1
            os.utime(path, ns=(moment, moment))

    def place(self, folder: str, session_id: str) -> Path:
        """Where a file can be laid, whatever is there."""
        path = self.home / "sessions" / folder / f"{session_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir()
        elif path.is_symlink() or (path.exists() and not path.is_file()):
            path.unlink()
        return path

    # Files

    @rule(number=st.integers(1, 3), folder=st.sampled_from(FOLDERS), turns=st.integers(0, 3))
    def lay(self, number: int, folder: str, turns: int) -> None:
        path = self.place(folder, new_id(number))
        path.write_bytes(line(header(new_id(number))))
        for _ in range(turns):
            add(path, b"".join(map(line, stores.turn(self.next()))))
        self.changed(path)

    @rule(pick=picks, kind=st.sampled_from(["turn", "prompt", "meta", "undo", "repeat", "all again", "late", "early"]))
    def grow(self, pick: int, kind: str) -> None:
        if path := self.pick(pick):
            add(path, self.new_lines(path, kind))
            self.changed(path)

    def new_lines(self, path: Path, kind: str) -> bytes:
        known = list(Plain(path).records)
        while new_id(self.number + 1) in known:  # an undo with the id of a message is nothing that anybody writes
            self.next()
        stamped = {"id": new_id(self.next()), "created_at": "2026-09-22T00:00:00.000Z"}
        choices = {
            "turn": b"".join(map(line, stores.turn(self.next()))),
            "prompt": line(message(self.next(), "user", "Question")),
            "meta": line({"type": "meta", **stamped, "title": f"Question {self.number}"}),
            "undo": line({"type": "undo", **stamped, "ids": known[-2:]}),
            "repeat": b"".join(path.read_bytes().splitlines(keepends=True)[:2]),
            "all again": path.read_bytes(),
            "late": line({"type": "undo", **stamped, "ids": [new_id(self.number + 2)]}),  # before what it takes back
            "early": line(message(self.number % 7, "user", "An id of long ago")),
        }
        return choices[kind]

    @rule(pick=picks, torn=st.sampled_from([b'{"type":"mess', b"\n", b"\0\0\0", b"nonsense\n", b"\n\n", b"\xff"]))
    def damage(self, pick: int, torn: bytes) -> None:
        if path := self.pick(pick):
            add(path, torn)
            self.changed(path)

    @rule(pick=picks, keeps_mtime=st.booleans(), in_place=st.booleans())
    def edit(self, pick: int, keeps_mtime: bool, in_place: bool) -> None:
        if path := self.pick(pick):
            mtime_ns = path.stat().st_mtime_ns
            data = path.read_bytes().swapcase() if b"QUESTION" in path.read_bytes() else swap_roles(path.read_bytes())
            path.write_bytes(data) if in_place else replace(path, data)
            if keeps_mtime:
                os.utime(path, ns=(mtime_ns, mtime_ns))
            self.changed(path)

    @rule(pick=picks, part=st.integers(0, 10))
    def cut(self, pick: int, part: int) -> None:
        if path := self.pick(pick):
            os.truncate(path, path.stat().st_size * part // 10)
            self.changed(path)

    @rule(pick=picks, when=st.sampled_from([10**18, 17 * 10**17 + 5, 3 * 10**18]))
    def touch(self, pick: int, when: int) -> None:
        if path := self.pick(pick):
            os.utime(path, ns=(when, when))
            self.changed(path)

    @rule(pick=picks, becomes=st.sampled_from(["nothing", "link", "folder", "FIFO"]))
    def remove(self, pick: int, becomes: str) -> None:
        path = self.pick(pick)
        if path is None:
            return
        path.unlink()
        if becomes == "link":
            path.symlink_to("nowhere")
        elif becomes == "folder":
            path.mkdir()
        elif becomes == "FIFO" and sys.platform != "win32":
            os.mkfifo(path)

    @rule(pick=picks, folder=st.sampled_from(FOLDERS), copies=st.booleans())
    def move(self, pick: int, folder: str, copies: bool) -> None:
        if path := self.pick(pick):
            target = self.place(folder, path.stem)
            if target != path:
                (shutil.copy2 if copies else shutil.move)(path, target)
                self.changed(target)

    # The index

    @rule(change=st.sampled_from([*INDEX_CHANGES, "a backup is made", "the backup is given back"]))
    def ruin(self, change: str) -> None:
        state = self.indexer.catalogue.index.state()
        if change == "a backup is made":
            self.backup = self.database.read_bytes() if state == "ok" else self.backup
        elif change == "the backup is given back":
            replace(self.database, self.backup)
        elif state == "foreign":
            self.database.unlink()
        elif state != "missing":
            with suppress(sqlite3.DatabaseError):  # ruined before
                INDEX_CHANGES[change](self.database)

    # Commands

    @rule()
    def listing(self) -> None:
        lines = self.indexer.sessions()
        assert shown(lines) == plain_listing(self.home)
        assert lines == without_index(self.home)
        assert [json.loads(line)["session_id"] for line in lines] == [
            row.session_id for row, _ in self.indexer.catalogue.rows()
        ]

    @rule()
    def reindex(self) -> None:
        before = self.indexer.sessions()
        if self.indexer.catalogue.index.state() == "foreign":
            data = self.database.read_bytes()
            with pytest.raises(StoreUnreadable):
                self.indexer.reindex(0)
            assert self.database.read_bytes() == data
        else:
            assert self.indexer.reindex(0) == len(before)
        assert self.indexer.sessions() == before

    @rule()
    def check(self) -> None:
        before = tree(self.home)
        count, _, state = self.indexer.check()
        assert tree(self.home) == before
        assert count == len(plain_listing(self.home))
        self.listing()
        if count:
            assert self.indexer.check()[2] == ("foreign" if state == "foreign" else "ok")

    @rule(pick=picks, ends=st.sampled_from(["answered", "unanswered", "refused"]))
    def turn(self, pick: int, ends: str) -> None:
        path = self.pick(pick)
        if path is None:
            return
        copies = [other for other in files_of(self.home) if other.stem == path.stem]
        with self.indexer.open(path.stem, 0) as held:
            if not any("deep" in copy.parts for copy in copies):  # has a test of its own
                assert count(Path(str(held.path))) == max(map(count, copies))
            held.begin(records.message("user", "Question"), SETTINGS)
            if ends == "refused":
                held.take_back()
            elif ends == "answered":
                held.add([records.message("assistant", "Answer", tokens=3)])

    @rule()
    def new_session(self) -> None:
        with self.indexer.new() as held:
            held.begin(records.message("user", "Question"), SETTINGS)
            held.add([records.message("assistant", "Answer")])

    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        if path := self.pick(pick):
            self.indexer.delete(path.stem)
            assert path.stem not in [other.stem for other in files_of(self.home)]
            self.gone([path.stem])

    @rule(pick=picks, days=st.sampled_from([0, 1, 1]), dry_run=st.booleans())
    def purge(self, pick: int, days: int, dry_run: bool) -> None:
        path = self.pick(pick)
        cutoff = Plain(path).last_use[0] if path else ""
        unused = {path.stem for path in files_of(self.home)}
        if days:
            unused -= {plain.path.stem for plain in map(Plain, files_of(self.home))
                       if not "" < plain.last_use[0] < cutoff}  # fmt: skip
        there = files_of(self.home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clock, "days_ago", lambda _: cutoff)
            removed, skipped = self.indexer.purge(days, dry_run)
        assert (set(removed), skipped) == (unused, [])
        assert files_of(self.home) == [path for path in there if dry_run or path.stem not in unused]
        self.gone([] if dry_run else removed)

    def gone(self, session_ids: list[str]) -> None:
        """Nothing is left of these, and no lock of the others is gone."""
        for session_id in session_ids:
            assert not (self.home / "locks" / f"{session_id}.lock").exists()


def swap_roles(data: bytes) -> bytes:
    """Other content of the same size."""
    swapped = data.replace(b'"content":"Question', b'"content":"QUESTION')
    return swapped if swapped != data else data.replace(b'"role":"user"', b'"rule":"user"')


TestAnything = pytest.mark.filterwarnings("error")(Anything.TestCase)
TestAnything.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# --- What the rules below start from ---------------------------------------------------------------


@pytest.fixture
def notes() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def indexer(home: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> Indexer:
    """The store, whose index trusts its rows; nobody waits."""
    do_not_wait(monkeypatch)
    read_late(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    return Indexer(Layout(str(home)), notes.append)


DAY_NS = 24 * HOUR_NS


def used(home: Path, number: int, days_ago: float | None) -> Path:
    """A session that was last used that many days ago, or never; its file."""
    path = home / "sessions" / month_of(new_id(number)) / f"{new_id(number)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(line(header(new_id(number))))
    if days_ago is not None:
        use(path, days_ago)
    return path


def use(path: Path, days_ago: float) -> None:
    """Add a prompt of that time."""
    moment = time.time_ns() - int(days_ago * DAY_NS)
    add(
        path,
        line(message(path.stat().st_size, "user", "Question") | {"created_at": clock.format_time(moment // 10**6)}),
    )


def ids(*paths: Path) -> list[str]:
    return [path.stem for path in paths]


def ask(indexer: Indexer, session_id: str) -> None:
    """A whole turn."""
    with indexer.open(session_id, 0) as held:
        held.begin(records.message("user", "Question"), SETTINGS)
        held.add([records.message("assistant", "Answer", tokens=3)])


def lock_of(home: Path, path: Path) -> Path:
    return home / "locks" / f"{path.stem}.lock"


# --- Purge -----------------------------------------------------------------------------------------


def test_a_purge_removes_what_was_last_used_before(indexer: Indexer, home: Path) -> None:
    old, edge, young = used(home, 1, 31), used(home, 2, 30.01), used(home, 3, 29.99)
    os.utime(old, None)
    os.utime(young, ns=(10**18, 10**18))
    assert indexer.purge(30, dry_run=False) == (ids(edge, old), [])
    assert files_of(home) == [young]
    assert [json.loads(line)["session_id"] for line in indexer.sessions()] == ids(young)


def test_what_was_never_used_has_no_age(indexer: Indexer, home: Path) -> None:
    never, old = used(home, 1, None), used(home, 2, 31)
    assert indexer.purge(1, dry_run=False) == (ids(old), [])
    assert files_of(home) == [never]


def test_a_purge_of_zero_days_removes_all(indexer: Indexer, home: Path) -> None:
    used(home, 1, None)
    used(home, 2, 0)
    used(home, 3, -1)  # a clock that went wrong
    used(home, 4, 1).write_bytes(b"nothing but damage\n")
    removed, skipped = indexer.purge(0, dry_run=False)
    assert (len(removed), skipped) == (4, [])
    assert files_of(home) == []
    assert indexer.sessions() == []
    assert [path.name for path in (home / "locks").iterdir() if path.suffix == ".lock"] == ["index.lock"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_purge_leaves_a_session_in_use_alone_and_names_it(indexer: Indexer, home: Path, dry_run: bool) -> None:
    held, free = used(home, 1, 31), used(home, 2, 32)
    indexer.layout.make()
    with locks.hold(str(lock_of(home, held)), 0, "session"):
        assert indexer.purge(30, dry_run) == (ids(free), ids(held))
        assert held.exists()
        assert lock_of(home, held).exists()


@pytest.mark.parametrize("days", [0, 30])
def test_a_purge_that_is_dry_changes_not_a_byte(indexer: Indexer, home: Path, days: int) -> None:
    used(home, 1, 31)
    used(home, 2, 29)
    ask(indexer, new_id(2))
    indexer.sessions()
    before = tree(home)
    dry = indexer.purge(days, dry_run=True)
    assert tree(home) == before
    assert dry == indexer.purge(days, dry_run=False)


def test_a_session_that_was_used_since_the_index_was_read_survives(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used_since, gone_since = (used(home, number, 31) for number in (1, 2, 3))
    real = indexer.catalogue.unused_since

    def unused_since(time: str) -> tuple[list[tuple[index.Row, list[str]]], set[str]]:
        found = real(time)
        use(used_since, 0)
        gone_since.unlink()
        return found

    monkeypatch.setattr(indexer.catalogue, "unused_since", unused_since)
    assert indexer.purge(30, dry_run=False) == (ids(old), [])
    assert files_of(home) == [used_since]
    assert lock_of(home, used_since).exists()
    assert not lock_of(home, gone_since).exists()


def test_the_last_use_is_read_again_under_the_lock(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = used(home, 1, 31)
    real = Layout.find

    def find(layout: Layout, session_id: str, known: list[str], folders: list[str]) -> list[str]:
        with pytest.raises(SessionBusy), locks.hold(str(lock_of(home, path)), 0, "session"):
            pass
        use(path, 0)
        return real(layout, session_id, known, folders=folders)

    monkeypatch.setattr(Layout, "find", find)
    assert indexer.purge(30, dry_run=False) == ([], [])
    assert files_of(home) == [path]


@pytest.mark.parametrize("is_young", [False, True])
def test_a_purge_does_not_trust_a_young_row(indexer: Indexer, home: Path, is_young: bool) -> None:
    path = used(home, 1, 31)
    indexer.sessions()
    last_used = Plain(path).last_use[0]
    path.write_bytes(path.read_bytes().replace(last_used.encode(), clock.now().encode()))
    forge(home, path, is_young)
    assert removal._are_unused(indexer, *indexer.files_of(path.stem), clock.days_ago(30)) is not is_young


def forge(home: Path, path: Path, is_young: bool) -> None:
    """The row, as if the file had changed within the tick in which it was read."""
    stamp = session_file.stamp_at(str(path))
    assert stamp
    sql(home / "sessions.db", "UPDATE files SET stamp = ?, young = ?", index.packed(*stamp), 0 if is_young else None)


@pytest.mark.parametrize("folder", ["mine", "mine/deep"])
@pytest.mark.parametrize("has_index", [True, False])
def test_of_two_files_both_must_be_unused_and_both_are_removed(
    indexer: Indexer, home: Path, folder: str, has_index: bool
) -> None:
    path = used(home, 1, 31)
    copy = home / "sessions" / folder / path.name
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    if not has_index:
        (home / "sessions.db").write_bytes(b"my notes")
    use(copy, 1)
    replace(
        path, path.read_bytes() * 3 + line(message(900, "user", "More") | {"created_at": "2020-01-01T00:00:00.000Z"})
    )
    assert indexer.purge(30, dry_run=False) == ([], [])
    assert indexer.purge(0, dry_run=False) == (ids(path), [])
    assert files_of(home) == []


def test_a_file_that_is_given_back_while_a_purge_removes_it_stays(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = used(home, 1, 31)
    real, data = os.unlink, path.read_bytes()

    def unlink(name: str) -> None:
        real(name)
        if name == str(path):
            replace(path, data)  # as `git pull` does
            use(path, 0)

    monkeypatch.setattr(os, "unlink", unlink)
    indexer.purge(30, dry_run=False)
    assert files_of(home) == [path]
    assert len(indexer.sessions()) == 1


# --- Delete ----------------------------------------------------------------------------------------


def test_delete_removes_all_there_is_of_a_session(indexer: Indexer, home: Path) -> None:
    path, other = used(home, 1, 1), used(home, 2, 1)
    ask(indexer, path.stem)
    copy = home / "sessions" / "mine" / "deep" / path.name
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    indexer.sessions()
    indexer.delete(path.stem)
    assert files_of(home) == [other]
    assert indexer.catalogue.index.find(path.stem) == []
    assert not lock_of(home, path).exists()


def test_delete_is_done_whatever_cannot_be_read_beside(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = used(home, 1, 1), used(home, 2, 1)
    closed = home / "sessions" / "closed"
    closed.mkdir()
    real = os.scandir

    def scandir(folder: str) -> Any:
        if folder == str(closed):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    indexer.delete(path.stem)
    assert files_of(home) == [other]
    assert not lock_of(home, path).exists()


def test_delete_of_a_session_in_use_is_busy_at_once(indexer: Indexer, home: Path) -> None:
    path = used(home, 1, 1)
    with indexer.open(path.stem, 0):
        before = tree(home)
        with pytest.raises(SessionBusy) as raised:
            indexer.delete(path.stem)
        assert raised.value.session_id == path.stem
        assert tree(home) == before


def look_into(indexer: Indexer, session_id: str) -> None:
    indexer.info(session_id)


def go_on(indexer: Indexer, session_id: str) -> None:
    with indexer.open(session_id, 0):
        pytest.fail("opened")


@pytest.mark.parametrize("act", [Indexer.delete, look_into, go_on])
@pytest.mark.parametrize("has_sessions", [False, True])
def test_an_unknown_id_leaves_no_trace(
    indexer: Indexer, home: Path, act: Callable[[Indexer, str], None], has_sessions: bool
) -> None:
    if has_sessions:
        used(home, 1, 1)
    before = tree(home.parent)
    with pytest.raises(SessionNotFound):
        act(indexer, new_id(9))
    assert tree(home.parent) == before


# --- Locks -----------------------------------------------------------------------------------------


COMMANDS: dict[str, Callable[[Indexer], object]] = {
    "listing": lambda indexer: indexer.sessions(),
    "purge": lambda indexer: indexer.purge(30, dry_run=False),
    "dry run": lambda indexer: indexer.purge(0, dry_run=True),
    "check": lambda indexer: indexer.check(),
    "reindex": lambda indexer: indexer.reindex(0),
    "info": lambda indexer: indexer.info(new_id(1)),
    "turn": lambda indexer: ask(indexer, new_id(1)),
    "delete another": lambda indexer: indexer.delete(new_id(2)),
}


@pytest.mark.parametrize("where", ["its place", "deep", "unreadable"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_lock_of_a_session_that_exists_is_never_removed(
    indexer: Indexer, home: Path, command: Callable[[Indexer], object], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = used(home, 1, 1), used(home, 2, 1)
    ask(indexer, path.stem)
    before = lock_of(home, path).stat()
    if where == "deep":
        (home / "sessions" / "mine" / "deep").mkdir(parents=True)
        path.rename(home / "sessions" / "mine" / "deep" / path.name)
    elif where == "unreadable":
        os.utime(path, ns=(10**18, 10**18))
        refuse(monkeypatch, path)
    try:
        command(indexer)
    except StoreError:
        assert where == "unreadable"
    assert os.path.samestat(lock_of(home, path).stat(), before)


# --- Check and reindex -----------------------------------------------------------------------------

STATES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing": ("ok", lambda _: None),
    "touched": ("stale", lambda home: os.utime(files_of(home)[0], ns=(10**18, 10**18))),
    "grown": ("stale", lambda home: use(files_of(home)[0], 0)),
    "one file more": ("stale", lambda home: used(home, 7, 1)),
    "one file less": ("stale", lambda home: files_of(home)[0].unlink()),
    "a lie": ("stale", lambda home: sql(home / "sessions.db", "UPDATE files SET listed = replace(listed, '1', '2')")),
    "another schema": ("stale", lambda home: INDEX_CHANGES["another schema"](home / "sessions.db")),
    "gone": ("missing", lambda home: INDEX_CHANGES["gone"](home / "sessions.db")),
    "emptied": ("missing", lambda home: INDEX_CHANGES["emptied"](home / "sessions.db")),
    "overwritten": ("corrupt", lambda home: INDEX_CHANGES["overwritten"](home / "sessions.db")),
    "ruins": ("corrupt", lambda home: INDEX_CHANGES["ruins behind the header"](home / "sessions.db")),
    "no tables": ("corrupt", lambda home: INDEX_CHANGES["no tables"](home / "sessions.db")),
    "a text": ("foreign", lambda home: INDEX_CHANGES["foreign text"](home / "sessions.db")),
    "a database": ("foreign", lambda home: INDEX_CHANGES["foreign database"](home / "sessions.db")),
}


@pytest.mark.parametrize(("state", "change"), STATES.values(), ids=STATES)
def test_check_tells_the_state_of_the_index_and_changes_nothing(
    indexer: Indexer, home: Path, state: str, change: Act
) -> None:
    used(home, 1, 1)
    used(home, 2, 2)
    indexer.sessions()
    change(home)
    before = tree(home)
    assert indexer.check() == (len(files_of(home)), [], state)
    assert tree(home) == before
    if state != "foreign":
        indexer.reindex(0)
        assert indexer.check()[2] == "ok"


def test_a_session_that_goes_while_it_is_checked_is_no_damage(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = used(home, 1, 1), used(home, 2, 1)
    real = session_file.read

    def read(name: str, *arguments: Any) -> session_file.Reading:
        if name == str(path):
            path.unlink()
        return real(name, *arguments)

    monkeypatch.setattr(session_file, "read", read)
    assert indexer.check()[1] == []


@pytest.mark.parametrize("column", ["saved = NULL", "saved = '[]'", "saved = '{'"])
def test_a_row_that_cannot_be_read_is_made_anew(indexer: Indexer, home: Path, column: str) -> None:
    path = used(home, 1, 1)
    indexer.sessions()
    sql(home / "sessions.db", f"UPDATE readings SET {column}")
    ask(indexer, path.stem)
    assert shown(indexer.sessions()) == plain_listing(home)
    assert indexer.purge(0, dry_run=False) == (ids(path), [])


@pytest.mark.parametrize("seconds", [-(10**10), 10**10])
def test_times_that_no_index_can_keep_are_read_anew(indexer: Indexer, home: Path, seconds: int) -> None:
    path = used(home, 1, 1)
    os.utime(path, (seconds, seconds))
    for _ in range(2):
        assert shown(indexer.sessions()) == plain_listing(home)
    assert indexer.reindex(0) == 1
    assert shown(indexer.sessions()) == plain_listing(home)


def test_a_young_row_is_not_stale(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = used(home, 1, 1)
    monkeypatch.setattr(catalogue, "read_time_ns", lambda: path.stat().st_ctime_ns)
    indexer.sessions()
    assert [row.young for row in indexer.catalogue.index.rows()] == [True]
    assert indexer.check()[2] == "ok"


def test_check_tells_what_cannot_be_read(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = used(home, 1, 1)
    refuse(monkeypatch, path)
    reason = f"cannot read {path}: Permission denied"
    damage = {"session_id": path.stem, "path": str(path), "line": None, "reason": reason}
    assert indexer.check() == (1, [damage], "missing")


@pytest.mark.parametrize("change", ["foreign text", "foreign database"])
def test_a_reindex_leaves_a_foreign_file_untouched(indexer: Indexer, home: Path, change: str) -> None:
    used(home, 1, 1)
    indexer.sessions()
    INDEX_CHANGES[change](home / "sessions.db")
    before, status = tree(home), (home / "sessions.db").stat()
    with pytest.raises(StoreUnreadable) as raised:
        indexer.reindex(0)
    assert "OLLAMA_PROMPT_DB_PATH" in str(raised.value.hint)
    assert tree(home) == before
    assert (home / "sessions.db").stat().st_ctime_ns == status.st_ctime_ns


def test_a_reindex_builds_what_is_corrupt_again(indexer: Indexer, home: Path) -> None:
    used(home, 1, 1)
    before = indexer.sessions()
    for change in ("overwritten", "ruins behind the header", "no tables", "another schema", "emptied", "gone"):
        INDEX_CHANGES[change](home / "sessions.db")
        assert indexer.reindex(0) == 1
        assert indexer.check()[2] == "ok"
        assert indexer.sessions() == before


# --- One session -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_file_of_a_later_version_is_read_and_never_added_to(indexer: Indexer, home: Path, is_indexed: bool) -> None:
    path = used(home, 1, 1)
    replace(path, line(header(path.stem, version=2)) + path.read_bytes().split(b"\n", 1)[1])
    before = path.read_bytes()
    if is_indexed:
        indexer.sessions()
    with pytest.raises(StoreUnreadable, match="version 2") as raised, indexer.open(path.stem, 0):
        pytest.fail("opened")
    assert "upgrade" in str(raised.value.hint)
    assert path.read_bytes() == before
    assert json.loads(indexer.sessions()[0])["message_count"] == indexer.info(path.stem)[0]["message_count"] == 1


@pytest.mark.parametrize("longer", [0, 1])
@pytest.mark.parametrize(("folder", "is_indexed"), [("a", False), ("a", True), ("a/b", True)])
def test_of_two_files_with_one_id_a_turn_goes_on_with_the_one_with_more_records(
    indexer: Indexer, home: Path, longer: int, folder: str, is_indexed: bool
) -> None:
    path = used(home, 1, 2)
    copy = home / "sessions" / folder / path.name
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    use((path, copy)[longer], 1)
    if is_indexed:
        indexer.sessions()
    before = (copy, path)[longer].read_bytes()
    ask(indexer, path.stem)
    assert (copy, path)[longer].read_bytes() == before
    assert Plain((path, copy)[longer]).message_count == 4
    (listed,) = map(json.loads, indexer.sessions())
    assert (listed["path"], listed["message_count"]) == (str((path, copy)[longer]), 4)
    assert {item["path"] for item in indexer.check()[1]} == {str(path), str(copy)}


@pytest.mark.parametrize(("stamp", "model"), [("same", "smollm2"), ("another", "qwen3.5")])
def test_a_turn_knows_the_file_from_a_row_that_can_be_trusted(
    indexer: Indexer, home: Path, stamp: str, model: str
) -> None:
    path = used(home, 1, 1)
    indexer.sessions()
    path.write_bytes(path.read_bytes().replace(b"smollm2", b"qwen3.5"))
    if stamp == "same":
        forge(home, path, is_young=True)
    with indexer.open(path.stem, 0) as held:
        assert held.settings["model"] == model


def test_a_session_that_lies_deep_is_found_without_the_index(indexer: Indexer, home: Path) -> None:
    path = used(home, 1, 1)
    deep = home / "sessions" / "a" / "b" / "c" / path.name
    deep.parent.mkdir(parents=True)
    path.rename(deep)
    ask(indexer, path.stem)
    assert Plain(deep).message_count == 3


@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_not_listed_is_not_found(indexer: Indexer, home: Path, hidden: bool) -> None:
    path = used(home, 1, 1)
    if hidden:
        path.parent.rename(home / "sessions" / ".hidden")
    else:
        path.rename(home / "kept")
        path.symlink_to(home / "kept")
    assert indexer.sessions() == []
    with pytest.raises(SessionNotFound):
        indexer.info(path.stem)


def test_damage_is_told_when_a_session_goes_on(indexer: Indexer, home: Path, notes: list[str]) -> None:
    path = used(home, 1, 1)
    add(path, b"nonsense\n")
    ask(indexer, path.stem)
    assert notes == ["damaged lines left out: 1; --check tells which"]
