"""A turn on the disk while others replace, move, remove and add; what was printed stays, what was refused goes."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import stores
from stores import add, replace

from ollama_prompt import clock, held_session, index, locks, records, session_file, window
from ollama_prompt.errors import StoreWriteFailed
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ollama_prompt.held_session import HeldSession

    Act = Callable[[Path], object]

SETTINGS: dict[str, Any] = {"model": "smollm2", "max_context_tokens": 64000}
FOREIGN = stores.line(stores.message(900, "user", "by hand"))


@pytest.fixture
def notes() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def indexer(home: Path, notes: list[str]) -> Indexer:
    """The store."""
    return Indexer(Layout(str(home)), notes.append)


@pytest.fixture
def path(indexer: Indexer, home: Path) -> Path:
    """A session of one turn."""
    with indexer.new() as held:
        held.begin(prompt("One"), SETTINGS)
        held.add([answer("Two")])
    return stores.the_file(home)


def prompt(text: str) -> records.Record:
    return records.message("user", text)


def answer(text: str) -> records.Record:
    return records.message("assistant", text, model="smollm2", prompt_tokens=9, tokens=3, done_reason="stop")


@contextmanager
def turn(indexer: Indexer, path: Path) -> Iterator[HeldSession]:
    """A second turn whose prompt is stored."""
    with indexer.open(path.stem, 0) as held:
        held.begin(prompt("Three"), SETTINGS)
        yield held


def said(path: Path) -> list[str]:
    """What can be read, taken back or not, each record once."""
    found, _ = session_file.load(str(path), path.stem)
    return [record["content"] for record in found if record["type"] == "message"]


def seen(held: HeldSession) -> list[str]:
    """What the model would be sent of the conversation so far."""
    turns = list(window.turns_back(held.records_back()))[::-1]
    return [message["content"] for turn in turns for message in turn.messages]


def assert_index_agrees(indexer: Indexer, tmp_path: Path) -> None:
    """What the index says is what reading every file says."""
    fresh = Indexer(Layout(indexer.layout.home, str(tmp_path / "no" / "index.db")), lambda _: None)
    assert indexer.sessions() == fresh.sessions()


# --- The plain way ---------------------------------------------------------------------------------


def test_the_prompt_is_on_disk_before_the_answer(indexer: Indexer, home: Path) -> None:
    with indexer.new() as held:
        assert not home.exists()
        held.begin(prompt("One"), SETTINGS)
        assert said(stores.the_file(home)) == ["One"]
        held.add([answer("Two")])
        assert said(stores.the_file(home)) == ["One", "Two"]


def test_what_was_stored_before_is_never_touched(indexer: Indexer, path: Path) -> None:
    before = path.read_bytes()
    with turn(indexer, path) as held:
        held.add([answer("Four")])
    assert path.read_bytes().startswith(before)
    assert said(path) == ["One", "Two", "Three", "Four"]


def test_the_index_goes_on_with_the_turn(indexer: Indexer, path: Path) -> None:
    with turn(indexer, path) as held:
        held.add([answer("Four")])
    (row,) = indexer.catalogue.index.find(path.stem)
    assert row.stamp == session_file.stamp_at(str(path))
    assert row.saved["message_count"] == 4
    assert row.saved["end"] == path.stat().st_size


def test_folders_are_as_durable_as_the_file_in_them(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = session_file.sync_folder
    monkeypatch.setattr(session_file, "sync_folder", lambda folder: synced.append(folder) or real(folder))  # type: ignore[func-returns-value]
    with indexer.new() as held:
        held.begin(prompt("One"), SETTINGS)
    month = str(stores.the_file(home).parent)
    assert {str(home), str(home / "sessions"), month} <= set(synced)


def test_a_purge_that_takes_the_new_lock_for_a_dead_one_is_waited_for(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexer.layout.make()
    with indexer.new() as held, ExitStack() as stack:
        stack.enter_context(locks.hold(indexer.layout.lock(held.session_id), 0, "session"))
        monkeypatch.setattr(time, "sleep", lambda _: stack.close())
        held.begin(prompt("One"), SETTINGS)
    assert said(stores.the_file(home)) == ["One"]


# --- Replaced, moved, removed while the model answers ------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1])
def test_replaced_by_a_file_without_the_prompt(indexer: Indexer, path: Path, tmp_path: Path, kept: int) -> None:
    before = path.read_bytes()
    with turn(indexer, path) as held:
        replace(path, before + FOREIGN * kept)
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", *["by hand"] * kept, "Three", "Four"]
    assert_index_agrees(indexer, tmp_path)


def test_replaced_by_a_file_with_the_prompt(indexer: Indexer, path: Path, tmp_path: Path) -> None:
    with turn(indexer, path) as held:
        replace(path, path.read_bytes() + FOREIGN)
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Three", "by hand", "Four"]
    assert path.read_bytes().count(b"Three") == 1
    assert_index_agrees(indexer, tmp_path)


def test_replaced_by_a_file_with_half_of_the_prompt(indexer: Indexer, path: Path) -> None:
    with turn(indexer, path) as held:
        replace(path, path.read_bytes()[:-5])
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Three", "Four"]


def test_made_anew_with_the_same_inode_and_size(indexer: Indexer, path: Path) -> None:
    with turn(indexer, path) as held:
        data = path.read_bytes().replace(b"Three", b"Other").replace(said_id(path, "Three"), stores.new_id(7).encode())
        path.unlink()
        path.write_bytes(data)  # ext4 gives the freed inode number out again
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Other", "Three", "Four"]


def said_id(path: Path, text: str) -> bytes:
    (record,) = (record for record in stores.records(path) if record.get("content") == text)
    return str(record["id"]).encode()


def test_edited_in_place_meanwhile(indexer: Indexer, path: Path, tmp_path: Path) -> None:
    with turn(indexer, path) as held:
        path.write_bytes(path.read_bytes().replace(b"Two", b"2nd"))
        held.add([answer("Four")])
    assert said(path) == ["One", "2nd", "Three", "Four"]
    assert_index_agrees(indexer, tmp_path)


def test_moved_meanwhile(indexer: Indexer, path: Path, home: Path, tmp_path: Path) -> None:
    moved = home / "sessions" / "work" / "deep" / path.name
    with turn(indexer, path) as held:
        moved.parent.mkdir(parents=True)
        path.rename(moved)
        held.add([answer("Four")])
    assert not path.exists()
    assert said(moved) == ["One", "Two", "Three", "Four"]
    assert_index_agrees(indexer, tmp_path)


def test_removed_meanwhile(indexer: Indexer, path: Path, notes: list[str], tmp_path: Path) -> None:
    with turn(indexer, path) as held:
        path.unlink()
        held.add([answer("Four")])
    assert stores.records(path)[0]["model"] == "smollm2"
    assert said(path) == ["Three", "Four"]
    assert "written anew" in notes[-1]
    assert_index_agrees(indexer, tmp_path)


def test_removed_with_its_folder_meanwhile(indexer: Indexer, path: Path) -> None:
    with turn(indexer, path) as held:
        path.unlink()
        path.parent.rmdir()
        held.add([answer("Four")])
    assert said(path) == ["Three", "Four"]


def test_given_back_while_it_is_written_anew(indexer: Indexer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, before = os.link, path.read_bytes()

    def link(source: str, target: str) -> None:
        monkeypatch.undo()
        path.write_bytes(before)
        real(source, target)

    with turn(indexer, path) as held:
        path.unlink()
        monkeypatch.setattr(os, "link", link)
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Three", "Four"]


# --- The same between two steps of one append --------------------------------------------------------


def at_fsync(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], times: int = 1) -> None:
    """Act after the records were written and before we look whether the path still names their file."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal times
        real(descriptor)
        if times:
            times -= 1
            act()

    monkeypatch.setattr(os, "fsync", fsync)


def at_open(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act after we looked at the file and before it is opened for the append."""
    real = session_file.append

    def append(path: str, data: bytes, expected: session_file.Stamp | None) -> tuple[session_file.Stamp, bool]:
        monkeypatch.setattr(session_file, "append", real)
        act()
        return real(path, data, expected)

    monkeypatch.setattr(session_file, "append", append)


def at_end(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act after the append found its file in place; whoever acts (git) is through before we look for it."""

    def wait_for_git(_: str) -> bool:
        monkeypatch.setattr(held_session, "wait_for_git", lambda _: False)
        act()
        return False

    monkeypatch.setattr(held_session, "wait_for_git", wait_for_git)


STEPS = pytest.mark.parametrize("step", [at_fsync, at_open, at_end])


@STEPS
def test_replaced_under_the_append(
    indexer: Indexer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    before = path.read_bytes()
    with turn(indexer, path) as held:
        step(monkeypatch, lambda: replace(path, before))
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Three", "Four"]
    assert_index_agrees(indexer, tmp_path)


@STEPS
def test_replaced_under_the_prompt(indexer: Indexer, path: Path, monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    before = path.read_bytes()
    step(monkeypatch, lambda: replace(path, before + FOREIGN))
    with turn(indexer, path) as held:
        assert said(path) == ["One", "Two", "by hand", "Three"]
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "by hand", "Three", "Four"]


@STEPS
def test_removed_under_the_append(indexer: Indexer, path: Path, monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    with turn(indexer, path) as held:
        step(monkeypatch, path.unlink)
        held.add([answer("Four")])
    assert said(path) == ["Three", "Four"]


@STEPS
def test_added_to_under_the_append(
    indexer: Indexer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    with turn(indexer, path) as held:
        step(monkeypatch, lambda: add(path, FOREIGN))
        held.add([answer("Four")])
    assert sorted(said(path)) == ["Four", "One", "Three", "Two", "by hand"]
    # A row that claims to know the foreign line would hide it for good.
    monkeypatch.setattr(index, "is_young", lambda *_: False)
    assert_index_agrees(indexer, tmp_path)


def test_replaced_again_and_again(indexer: Indexer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    with turn(indexer, path) as held:
        at_fsync(monkeypatch, lambda: replace(path, before), times=1000)
        with pytest.raises(StoreWriteFailed, match="again and again") as raised:
            held.add([answer("Four")])
    assert raised.value.session_id == path.stem


# --- Refused: the prompt is taken back ---------------------------------------------------------------


def test_a_refused_new_session_leaves_nothing(indexer: Indexer, home: Path) -> None:
    with indexer.new() as held:
        held.begin(prompt("One"), SETTINGS)
        held.take_back()
    assert stores.files(home) == []
    assert os.listdir(home / "locks") == []
    assert indexer.sessions() == []


@pytest.mark.parametrize("tail", [b"", b"torn"])
def test_a_refused_prompt_leaves_the_file_as_it_was(indexer: Indexer, path: Path, tmp_path: Path, tail: bytes) -> None:
    add(path, tail)
    before = path.read_bytes()
    with turn(indexer, path) as held:
        held.take_back()
    assert path.read_bytes() == before
    assert_index_agrees(indexer, tmp_path)


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_refused_prompt_takes_nothing_of_others_along(
    indexer: Indexer, path: Path, tmp_path: Path, when: str
) -> None:
    with indexer.open(path.stem, 0) as held:
        if when == "before":
            add(path, FOREIGN)
        held.begin(prompt("Three"), SETTINGS)
        if when == "behind":
            add(path, FOREIGN)
        held.take_back()
    assert "by hand" in said(path)
    with indexer.open(path.stem, 0) as held:
        assert seen(held) == ["One", "Two"]
        assert "Three" not in [record.get("content") for record in visible(held)]
    assert_index_agrees(indexer, tmp_path)


def visible(held: HeldSession) -> list[records.Record]:
    """What was stored, without what a later undo takes back."""
    undone: set[str] = set()
    found = []
    for record in held.records_back():
        undone.update(records.undone_ids(record) if record["type"] == "undo" else ())
        if record.get("id") not in undone:
            found.append(record)
    return found


def test_a_refused_prompt_that_is_gone_is_not_stored_again(indexer: Indexer, path: Path) -> None:
    before = path.read_bytes()
    with turn(indexer, path) as held:
        replace(path, before + FOREIGN)
        held.take_back()
    assert path.read_bytes() == before + FOREIGN


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_refused_prompt_of_a_removed_session_leaves_nothing(indexer: Indexer, path: Path, when: str) -> None:
    with indexer.open(path.stem, 0) as held:
        if when == "before":
            path.unlink()
        held.begin(prompt("Three"), SETTINGS)
        if when == "behind":
            path.unlink()
        held.take_back()
    assert not path.exists()


def test_a_refused_prompt_is_found_where_the_file_moved(indexer: Indexer, path: Path, home: Path) -> None:
    moved = home / "sessions" / path.name
    with turn(indexer, path) as held:
        path.rename(moved)
        held.take_back()
    with indexer.open(moved.stem, 0) as held:
        assert [record["content"] for record in visible(held) if record["type"] == "message"] == ["Two", "One"]


# --- What the model is sent --------------------------------------------------------------------------


def test_the_history_is_there_after_the_prompt_too(indexer: Indexer, path: Path) -> None:
    with turn(indexer, path) as held:
        assert seen(held) == ["One", "Two"]


def test_a_torn_tail_hides_no_history(indexer: Indexer, path: Path) -> None:
    add(path, b"torn")
    with turn(indexer, path) as held:
        assert seen(held) == ["One", "Two"]
        held.add([answer("Four")])
    assert said(path) == ["One", "Two", "Three", "Four"]


def test_a_clock_that_went_back_hides_no_history(
    indexer: Indexer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = time.time_ns() - 3_600_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: past)
    monkeypatch.setattr(clock, "_last_tick", 0)  # another process
    with turn(indexer, path) as held:
        assert seen(held) == ["One", "Two"]
        held.add([answer("Four")])
    with indexer.open(path.stem, 0) as held:
        assert seen(held) == ["One", "Two", "Three", "Four"]
    assert_index_agrees(indexer, tmp_path)


def test_history_is_read_where_the_file_is_now(indexer: Indexer, path: Path, home: Path) -> None:
    with turn(indexer, path) as held:
        path.rename(home / "sessions" / path.name)
        assert seen(held) == ["One", "Two"]
        (home / "sessions" / path.name).unlink()
        assert seen(held) == []


def test_repeats_are_sent_once_and_an_undo_counts_wherever_it_lies(indexer: Indexer, path: Path) -> None:
    first, question, reply = path.read_bytes().splitlines(keepends=True)
    taken, twice = stores.message(901, "user", "taken back"), stores.message(902, "assistant", "taken back")
    undo = stores.line({"type": "undo", "id": stores.new_id(900), "ids": [taken["id"], twice["id"]]})
    path.write_bytes(first + undo + question + reply + question + stores.line(taken) + stores.line(twice) + reply)
    for _ in range(2):  # first read from the file, then known to the index
        with indexer.open(path.stem, 0) as held:
            assert seen(held) == ["One", "Two"]
            assert held.answered_count == 2


# --- Failures ----------------------------------------------------------------------------------------


def test_a_full_disk_at_the_answer_keeps_the_prompt(
    indexer: Indexer, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with turn(indexer, path) as held:
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(StoreWriteFailed) as raised:
                held.add([answer("Four")])
    assert "make room" in str(raised.value.hint)
    assert raised.value.session_id == path.stem
    assert path.read_bytes() == before
    assert said(path) == ["One", "Two", "Three"]
    assert_index_agrees(indexer, tmp_path)


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk_at_the_first_prompt_leaves_nothing(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    indexer.layout.make()
    with indexer.new() as held, monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        patch.setattr(os, "rename", full)
        with pytest.raises(StoreWriteFailed):
            held.begin(prompt("One"), SETTINGS)
    assert stores.files(home) == []
    assert not list(home.glob("sessions/*/*")) + list(home.glob("sessions/*/.*"))
    assert os.listdir(home / "locks") == []


def ruin(home: Path, way: str) -> sqlite3.Connection | None:
    """Make the index unusable."""
    database = home / "sessions.db"
    if way == "locked":
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        return other
    database.unlink()
    if way == "foreign":
        database.write_bytes(b"my notes")
    elif way == "folder":
        database.mkdir()
    return None


@pytest.mark.parametrize("way", ["foreign", "folder", "locked", "gone"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_unusable_index_is_no_failure(
    indexer: Indexer, path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, way: str, step: int
) -> None:
    monkeypatch.setattr(index, "BUSY_SECONDS", 0.01)
    other = ruin(home, way) if step == 0 else None
    with indexer.open(path.stem, 0) as held:
        other = ruin(home, way) if step == 1 else other
        held.begin(prompt("Three"), SETTINGS)
        other = ruin(home, way) if step == 2 else other
        held.add([answer("Four")])
    if other:
        other.close()
    assert said(path) == ["One", "Two", "Three", "Four"]
    assert b'"message_count": 4' in indexer.sessions()[0]
