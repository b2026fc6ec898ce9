"""One file on the disk: nothing half, nothing lost, nothing of others touched; read from both ends alike."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
import stores
from hypothesis import given
from hypothesis import strategies as st

from ollama_prompt import records, session_file
from ollama_prompt.session_file import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyfakefs.fake_filesystem import FakeFilesystem

    Write = Callable[[int, Any], int]

ID = stores.new_id(1)
ONE = stores.line(stores.message(1, "user", "One"))
TWO = stores.line(stores.message(2, "assistant", "Two"))

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither FIFOs nor modes")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a session file will be; not there yet."""
    return str(tmp_path / f"{ID}.jsonl")


@pytest.fixture
def disk(fs: FakeFilesystem) -> FakeFilesystem:
    """A disk of 10,000 bytes with a folder on it. Good for new files only: its lseek gives no position."""
    fs.create_dir("/disk")
    fs.set_disk_usage(10_000, "/")
    return fs


def put(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def failing(number: int) -> Callable[..., int]:
    """A system call that fails as on a full disk."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def after(steps: int, first: Write, then: Write) -> Write:
    """A system call that changes its behaviour after some calls."""
    calls = iter(range(steps))

    def call(descriptor: int, data: Any) -> int:
        return (first if next(calls, None) is not None else then)(descriptor, data)

    return call


def short(most: int) -> Write:
    """os.write as on a slow pipe or a nearly full disk: it takes only so many bytes at once."""
    real = os.write
    return lambda descriptor, data: real(descriptor, bytes(data)[:most])


def told(calls: list[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A system call that says that it was called."""

    def call(*args: object) -> Any:
        calls.append(name)
        return real(*args)

    return call


# --- Create ----------------------------------------------------------------------------------------


def test_a_new_file_is_ours_alone(disk: FakeFilesystem) -> None:
    stamp = session_file.create("/disk/new.jsonl", ONE)
    assert content("/disk/new.jsonl") == ONE
    assert stat.S_IMODE(os.stat("/disk/new.jsonl").st_mode) == 0o600
    assert os.listdir("/disk") == ["new.jsonl"]
    assert stamp == session_file.stamp_at("/disk/new.jsonl")


def test_a_new_file_that_finds_no_room_leaves_nothing(disk: FakeFilesystem) -> None:
    with pytest.raises(OSError, match="No space") as raised:
        session_file.create("/disk/new.jsonl", b"x" * 20_000)
    assert raised.value.errno == errno.ENOSPC
    assert os.listdir("/disk") == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_new_file_is_never_seen_half_written(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, "write", after(1, short(5), failing(errno.EIO) if call == "write" else short(5)))
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        session_file.create(path, ONE)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_gets_its_name_when_it_is_whole_and_durable(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    real = os.fsync

    def watching(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, os.path.exists(path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watching)
    session_file.create(path, ONE)
    assert seen == [("file", False), ("folder", True)]


def test_a_new_file_never_takes_the_place_of_another(path: str, tmp_path: Path) -> None:
    put(path, TWO)
    with pytest.raises(FileExistsError):
        session_file.create(path, ONE)
    assert content(path) == TWO
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_links_will_do(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    session_file.create(path, ONE)
    assert content(path) == ONE
    assert len(list(tmp_path.iterdir())) == 1


# --- Append ----------------------------------------------------------------------------------------


def test_an_append_goes_to_the_end(path: str) -> None:
    put(path, ONE)
    stamp, stays = session_file.append(path, TWO)
    assert content(path) == ONE + TWO
    assert (stamp, stays) == (session_file.stamp_at(path), True)


@pytest.mark.parametrize("torn", [b'{"type":"mess', b"\0\0\0", b"x"])
def test_a_torn_line_does_not_swallow_the_next_record(path: str, torn: bytes) -> None:
    put(path, ONE + torn)
    session_file.append(path, TWO)
    assert content(path) == ONE + torn + b"\n" + TWO


def test_an_empty_file_gets_no_empty_line(path: str) -> None:
    put(path, b"")
    session_file.append(path, ONE)
    assert content(path) == ONE


def test_records_go_out_in_one_write_and_are_durable(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE + b"torn")
    calls: list[str] = []
    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, told(calls, name, getattr(os, name)))
    session_file.append(path, ONE + TWO)
    assert calls == ["write", "fsync"]


def test_short_writes_go_on(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE)
    monkeypatch.setattr(os, "write", short(3))
    session_file.append(path, TWO)
    assert content(path) == ONE + TWO


@pytest.mark.parametrize("before", [ONE, ONE + b"torn", b""])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_failed_write_is_cut_off(path: str, monkeypatch: pytest.MonkeyPatch, before: bytes, steps: int) -> None:
    put(path, before)
    monkeypatch.setattr(os, "write", after(steps, short(7), failing(errno.ENOSPC)))
    with pytest.raises(OSError, match="No space"):
        session_file.append(path, TWO)
    assert content(path) == before


def test_a_write_that_is_not_durable_is_cut_off(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        session_file.append(path, TWO)
    assert content(path) == ONE


@pytest.mark.parametrize("taken", [0, 7])
def test_what_others_wrote_behind_a_failed_write_stays(path: str, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    put(path, ONE)
    real = os.write

    def interrupted(descriptor: int, data: Any) -> int:
        real(descriptor, bytes(data)[:taken] + b"\n" + ONE)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(OSError, match="No space"):
        session_file.append(path, TWO)
    assert content(path) == ONE + TWO[:taken] + b"\n" + ONE


def during_fsync(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something to the file after it was written and before we look whether it is still there."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        act()

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_file_replaced_under_the_append_is_noticed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE)
    put(path + ".new", ONE)
    during_fsync(monkeypatch, lambda: os.replace(path + ".new", path))
    assert session_file.append(path, TWO)[1] is False
    assert content(path) == ONE


def test_a_file_made_anew_under_the_append_is_noticed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def anew() -> None:
        os.unlink(path)
        put(path, ONE)

    put(path, ONE)
    during_fsync(monkeypatch, anew)  # which would get the same inode number if the descriptor were closed
    assert session_file.append(path, TWO)[1] is False


@pytest.mark.parametrize("way", ["moved", "removed", "folder gone"])
def test_a_file_that_went_away_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    folder = tmp_path / "2026-11"
    folder.mkdir()
    path = str(folder / "a.jsonl")

    def replaced_by_a_file() -> None:
        folder.rename(tmp_path / "away")
        folder.write_bytes(b"")

    acts: dict[str, Callable[[], object]] = {
        "moved": lambda: os.rename(path, path + ".moved"),
        "removed": lambda: os.unlink(path),
        "folder gone": replaced_by_a_file,
    }
    put(path, ONE)
    during_fsync(monkeypatch, acts[way])
    assert session_file.append(path, TWO)[1] is False


@posix
def test_a_link_is_not_followed(path: str) -> None:
    put(path + ".other", ONE)
    os.symlink(path + ".other", path)
    with pytest.raises(OSError, match="symbolic links"):
        session_file.append(path, TWO)
    with pytest.raises(OSError, match="symbolic links"):
        session_file.read(path, ID)
    assert content(path + ".other") == ONE


# --- Cut, contains ---------------------------------------------------------------------------------


def test_a_cut_takes_an_append_back(path: str) -> None:
    put(path, ONE + b"torn")
    stamp, _ = session_file.append(path, TWO)
    assert session_file.cut(path, len(ONE) + 4, stamp)
    assert content(path) == ONE + b"torn"


def test_a_cut_takes_nothing_of_others(path: str) -> None:
    put(path, ONE)
    stamp, _ = session_file.append(path, TWO)
    with open(path, "ab") as file:
        file.write(ONE)
    assert not session_file.cut(path, len(ONE), stamp)
    assert content(path) == ONE + TWO + ONE


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ONE + TWO, True),
        (ONE + b'{ "id": "%s", "type": "x" }\n' % stores.new_id(2).encode(), True),
        (ONE, False),
        (b"", False),
        (ONE + TWO[:-1], False),
        (ONE + TWO[:-5] + b"\n", False),
        (stores.line({"type": "undo", "id": "x", "ids": [stores.new_id(2)]}), False),
        (stores.line(stores.message(3, "user", f'"id":"{stores.new_id(2)}"')), False),
    ],
)
def test_contains_means_that_the_record_can_be_read(path: str, data: bytes, found: bool) -> None:
    put(path, data)
    assert session_file.contains(path, stores.new_id(2)) is found


# --- Reading ---------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [ONE, TWO, b"\n", b"\r\n", b"\0" * 40, b"torn", b"x" * 150, b"\xff\xfe\n", "{\u2028}\n".encode(), b'"undo"\n']
    + [stores.line(stores.message(n, "user", "m" * 30 * n)) for n in range(3, 6)]
    + [stores.line(stores.header(ID)), stores.line({"type": "undo", "id": "u", "ids": [stores.new_id(1)]})]
    + [b'{"type":"\\u0075ndo","ids":["%s"]}\n' % stores.new_id(2).encode(), b'{"type":"un\0\0do","ids":["x"]}\n']
)
FILES = st.lists(PIECES | st.binary(max_size=20), max_size=14).map(b"".join)


@pytest.fixture(scope="module")
def any_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for all examples of a property."""
    return str(tmp_path_factory.mktemp("files") / f"{ID}.jsonl")


def lines_of(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:-1]


@given(data=FILES, block=st.integers(1, 300))
def test_from_the_end_a_file_reads_as_from_the_start(any_path: str, data: bytes, block: int) -> None:
    put(any_path, data)
    forwards, reading = session_file.load(any_path, ID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_file, "BLOCK", block)
        patch.setattr(session_file, "LARGE_BLOCK", 2 * block)
        assert list(session_file.read_back(any_path, reading.repeats))[::-1] == forwards


@given(data=FILES)
def test_what_can_be_read_is_read(any_path: str, data: bytes) -> None:
    put(any_path, data)
    found, reading = session_file.load(any_path, ID)
    whole = lines_of(data)
    assert reading.end == sum(map(len, whole)) + len(whole)
    assert reading.summary.line_count == len(whole)
    readable: list[Any] = []
    for line in whole:
        try:
            record = records.decode(line)
        except records.DamagedLine:
            continue
        if record["type"] == "session" or "id" not in record or record["id"] not in [r.get("id") for r in readable]:
            readable.append(record)
    assert found == readable


@given(data=FILES, more=FILES)
def test_what_grew_is_read_from_where_reading_stopped(any_path: str, data: bytes, more: bytes) -> None:
    put(any_path, data)
    before = session_file.read(any_path, ID)
    put(any_path, data + more)
    saved = before.summary.saved() | {"end": before.end, "crc": before.crc}
    assert facts(session_file.read(any_path, ID, saved)) == facts(session_file.read(any_path, ID))


@given(data=FILES, other=FILES)
def test_what_changed_is_read_anew(any_path: str, data: bytes, other: bytes) -> None:
    put(any_path, data)
    before = session_file.read(any_path, ID)
    put(any_path, other)
    saved = before.summary.saved() | {"end": before.end, "crc": before.crc}
    assert facts(session_file.read(any_path, ID, saved)) == facts(session_file.read(any_path, ID))


def facts(reading: Reading) -> tuple[Any, ...]:
    return reading.summary.saved(), reading.end, reading.crc, reading.stamp


def test_only_what_grew_is_decoded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE)
    before = session_file.read(path, ID)
    put(path, ONE + TWO)
    decoded: list[bytes] = []
    real = records.decode

    def decode(line: bytes) -> records.Record:
        decoded.append(line)
        return real(line)

    monkeypatch.setattr(records, "decode", decode)
    session_file.read(path, ID, before.summary.saved() | {"end": before.end, "crc": before.crc})
    assert decoded == [TWO]


def test_a_line_without_an_end_is_still_being_written(path: str) -> None:
    put(path, ONE + TWO[:-1])
    found, reading = session_file.load(path, ID)
    assert [record["content"] for record in found] == ["One"]
    assert list(session_file.read_back(path, set())) == found
    assert [reason for _, reason in reading.damage] == ["the header is missing"]


def test_damage_is_told_by_line_and_hides_nothing(path: str) -> None:
    put(path, b"garbage\n" + ONE + b"\n<<<<<<<\n" + TWO)
    found, reading = session_file.load(path, ID)
    assert [record["content"] for record in found] == ["One", "Two"]
    assert [line for line, _ in reading.damage] == [1, 4]
    assert reading.summary.damage_count == 2


UNDO = stores.line({"type": "undo", "id": stores.new_id(3), "ids": [stores.new_id(1)]})


def test_an_undo_without_its_newline_takes_nothing_back_yet(path: str) -> None:
    put(path, TWO + ONE + UNDO[:-1])  # an older record behind a newer one: the file is read with its undos known
    assert session_file.read(path, ID).summary.message_count == 2
    put(path, TWO + ONE + UNDO)
    assert session_file.read(path, ID).summary.message_count == 1


def test_an_undo_that_is_added_meanwhile_counts_next_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_an_undo(file: BinaryIO, reading: Reading) -> Reading:
        monkeypatch.undo()
        stores.add(Path(path), UNDO)
        return real(file, reading)

    real = session_file._read_whole
    put(path, TWO + ONE)
    monkeypatch.setattr(session_file, "_read_whole", add_an_undo)
    assert session_file.read(path, ID).summary.message_count == 2
    assert session_file.read(path, ID).summary.message_count == 1


@pytest.mark.parametrize("data", [b"", b"torn"])
def test_a_file_without_a_line_is_damaged(path: str, data: bytes) -> None:
    put(path, data)
    assert session_file.read(path, ID).damage == [(1, "the file is empty")]


def test_a_giant_line_is_read_from_both_ends(path: str) -> None:
    giant = stores.line(stores.message(3, "user", "x" * 5_000_000))
    put(path, ONE + giant + TWO)
    found, _ = session_file.load(path, ID)
    assert [len(record["content"]) for record in found] == [3, 5_000_000, 3]
    assert list(session_file.read_back(path, set()))[::-1] == found


def test_reading_from_the_end_costs_what_is_taken(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, b"".join(stores.line(stores.message(n, "user", "x" * 1000)) for n in range(5000)))
    read: list[int] = []
    real = session_file._lines_back

    def counting(file: Any, end: int) -> Iterator[tuple[int, bytes]]:
        yield from real(file, end)
        read.append(file.tell())

    monkeypatch.setattr(session_file, "_lines_back", counting)
    newest = session_file.read_back(path, set())
    assert next(newest)["id"] == stores.new_id(4999)
    assert read == []
    newest.close()  # type: ignore[attr-defined]


def test_what_is_added_while_reading_belongs_to_the_next_reading(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, ONE)
    real = session_file.stamp_of

    def grown(status: os.stat_result) -> session_file.Stamp:
        put(path, ONE + TWO)
        return real(status)

    monkeypatch.setattr(session_file, "stamp_of", grown)
    reading = session_file.read(path, ID)
    monkeypatch.undo()
    assert (reading.end, reading.stamp[0], reading.summary.record_count) == (len(ONE), len(ONE), 1)
    assert reading.stamp != session_file.stamp_at(path)


@posix
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused_at_once(path: str, kind: str) -> None:
    os.mkfifo(path) if kind == "fifo" else os.mkdir(path)
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(OSError, match="regular"):
            session_file.read(path, ID)
    assert not open_before or len(os.listdir("/proc/self/fd")) == open_before


def test_no_file_has_no_stamp(path: str) -> None:
    assert session_file.stamp_at(path) is None
    put(path, b"")
    assert session_file.stamp_at(os.path.join(path, "below")) is None
