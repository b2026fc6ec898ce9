"""Bytes of one session file: create, append, read forwards, read backwards.

The file only ever grows, by whole lines in one write; only a repair puts another in its place. So:

- A new file is written under another name, fsynced, and linked to its own: nobody sees half of it.
- An append that follows a torn line (a crash, a full disk) starts with a newline, so that the torn
  bytes, somebody's text, do not swallow the new record.
- A write that fails is cut off again; what was there before is never touched.
- A reader takes lines that end in a newline. An unterminated last line is being written, or torn.

A `Stamp` tells whether a file may have changed: (size, mtime_ns, ctime_ns, inode), compared with !=.
git sets mtimes and editors keep sizes, but no one sets a ctime.
"""

from __future__ import annotations

import os
import sys
import zlib
from contextlib import contextmanager, suppress

from ollama_prompt import records
from ollama_prompt.layout import open_own
from ollama_prompt.records import DamagedLine
from ollama_prompt.summary import NeedsWholeFile, Summary
from ollama_prompt.text import LARGEST_INTEGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from typing import Any, BinaryIO

    from ollama_prompt.records import Record

    Stamp = tuple[int, int, int, int]
    Damage = tuple[int, str]

BLOCK = 1 << 16
LARGE_BLOCK = 1 << 20

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file from its status, in numbers that the index takes.

    Some network file systems have inodes of 64 bits, and `touch` sets times of any century.
    """
    mtime, ctime = (min(time, LARGEST_INTEGER) for time in (status.st_mtime_ns, status.st_ctime_ns))
    return status.st_size, mtime, ctime, status.st_ino & LARGEST_INTEGER


def stamp_at(path: str) -> Stamp | None:
    """The stamp of the file at this path; None if there is none."""
    try:
        return stamp_of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


# --- Writing ---------------------------------------------------------------------------------------


def create(path: str, data: bytes) -> Stamp:
    """Make a new file with this content, whole and durable before it gets its name.

    Raises OSError, with no file made; FileExistsError if somebody put one there meanwhile.
    """
    with _written(path, data) as temporary:
        _give_name(temporary, path)
    try:
        sync_folder(os.path.dirname(path))
    except BaseException:
        os.unlink(path)
        raise
    return stamp_of(os.stat(path))


def replace(path: str, data: bytes, expected: Stamp | None = None) -> bool:
    """Put a new file in the place of one, whole and durable; False if that has another stamp than `expected`.

    Raises OSError, with the file as it was before.
    """
    with _written(path, data) as temporary:
        if expected and stamp_at(path) != expected:
            return False
        os.replace(temporary, path)
    sync_folder(os.path.dirname(path))
    return True


@contextmanager
def _written(path: str, data: bytes) -> Iterator[str]:
    """A file with this content, durable, under another name that is gone in the end."""
    temporary = unfinished(path)
    with suppress(FileNotFoundError):  # the session is locked: only a process that was killed can have left it
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def unfinished(path: str) -> str:
    """The name of a new file until it is whole. It can outlive a process that was killed."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp")


def _give_name(temporary: str, path: str) -> None:
    """Never in place of another file: a name that was free a moment ago may have been given back by git."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network drives have no links
        os.rename(temporary, path)


def append(path: str, data: bytes, expected: Stamp | None = None) -> tuple[Stamp, bool]:
    """Add lines to the end, durably: (the file's stamp, whether the path still names that file).

    False means that somebody replaced, moved or removed the file meanwhile: what was written went into
    a file that nobody will read; or that the file has another stamp than `expected`: nothing was written.
    Raises OSError, with the file as it was before.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _FLAGS)
    try:
        there = stamp_of(os.fstat(descriptor))
        if expected and there != expected:
            return there, False
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size and not _ends_in_newline(descriptor, size):
            data = b"\n" + data
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            _cut_back(descriptor, size, data)
            raise
        # The descriptor stays open while comparing: a freed inode number is given out again at once.
        mine = os.fstat(descriptor)
        return stamp_of(mine), _names(path, mine)
    finally:
        os.close(descriptor)


def cut(path: str, size: int, stamp: Stamp) -> bool:
    """Take an append back: cut the file to `size` if it still has this stamp; else False, and untouched."""
    descriptor = os.open(path, os.O_RDWR | _FLAGS)
    try:
        if stamp_of(os.fstat(descriptor)) != stamp:
            return False
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        return True
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Remove a file, durably. Raises OSError."""
    os.unlink(path)
    sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Make names in a folder durable. Windows has no such call and needs none."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _ends_in_newline(descriptor: int, size: int) -> bool:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"


def _cut_back(descriptor: int, size: int, data: bytes) -> None:
    """Remove what a failed write left, unless somebody else wrote behind it meanwhile."""
    with suppress(OSError):
        written = os.fstat(descriptor).st_size - size
        os.lseek(descriptor, size, os.SEEK_SET)
        if 0 < written <= len(data) and os.read(descriptor, written) == data[:written]:
            os.ftruncate(descriptor, size)


def _names(path: str, mine: os.stat_result) -> bool:
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


# --- Reading forwards ------------------------------------------------------------------------------


class Reading:
    """What one pass over a file found, and where it stopped.

    `end` is the offset behind the last whole line, `crc` the CRC-32 of all before it: a later pass that
    finds the same bytes goes on from there, whoever wrote the file. `damage` lists (line, reason);
    `repeats` holds the offsets of records that an earlier one makes void.
    """

    __slots__ = ("crc", "damage", "end", "repeats", "stamp", "summary")

    def __init__(self, summary: Summary, stamp: Stamp) -> None:
        self.summary = summary
        self.stamp = stamp
        self.end = 0
        self.crc = 0
        self.damage: list[Damage] = []
        self.repeats: set[int] = set()

    def take(self, line: bytes) -> None:
        """Fold the next line in."""
        summary = self.summary
        first = not (summary.version or summary.record_count or summary.damage_count)
        summary.line_count += 1
        if not records.is_blank(line):
            try:
                record = records.decode(line)
                if not summary.add(record):
                    self.repeats.add(self.end)
                if first and record["type"] != "session":
                    self.add_damage("the header is missing")
            except DamagedLine as error:
                self.add_damage(str(error))
        self.crc = zlib.crc32(line, self.crc)
        self.end += len(line)

    def add_damage(self, reason: str) -> None:
        """Note that the present line could not be read, or is not what belongs there."""
        self.summary.damage_count += 1
        self.damage.append((max(self.summary.line_count, 1), reason))


def read(path: str, session_id: str, saved: dict[str, Any] | None = None) -> Reading:
    """Read a file; with `saved` (of an earlier pass) only what is new, if the rest is as it was.

    `saved` is `Summary.saved()` with `end` and `crc`. Takes memory for the longest line, and for the ids of a file
    whose records are not in the order of their age. Raises OSError.
    """
    with opened(path) as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        if saved and saved["line_count"] and saved["end"] <= stamp[0]:
            reading = Reading(Summary.resume(session_id, saved), stamp)
            if _skip_known(file, reading, saved):
                with suppress(NeedsWholeFile):
                    return _read_rest(file, reading)
        with suppress(NeedsWholeFile):
            return _read_whole(file, Reading(Summary(session_id), stamp))
        reading = _read_whole(file, Reading(Summary(session_id, _undone(file, stamp[0])), stamp))
        # An undo that has the id of an earlier record does not count: it takes nothing back.
        if reading.repeats and (undone := _undone(file, stamp[0], reading.repeats)) != reading.summary.undone:
            return _read_whole(file, Reading(Summary(session_id, undone), stamp))
        return reading


@contextmanager
def opened(path: str, buffering: int = LARGE_BLOCK) -> Iterator[BinaryIO]:
    """A file of the store's, to be read. Raises OSError."""
    with open(open_own(path, os.O_RDONLY), "rb", buffering=buffering) as file:
        yield file


def _skip_known(file: BinaryIO, reading: Reading, saved: dict[str, Any]) -> bool:
    """Move behind the part that was read before; False if it changed."""
    crc, rest = 0, saved["end"]
    while rest and (block := file.read(min(rest, LARGE_BLOCK))):
        crc = zlib.crc32(block, crc)
        rest -= len(block)
    reading.end, reading.crc = saved["end"], crc
    return not rest and crc == saved["crc"]


def _read_whole(file: BinaryIO, reading: Reading) -> Reading:
    file.seek(0)
    _read_rest(file, reading)
    if not reading.summary.line_count:
        reading.add_damage("the file is empty")
    return reading


def _read_rest(file: BinaryIO, reading: Reading) -> Reading:
    """Fold in the lines up to the size in the stamp; what is added meanwhile has a stamp of its own."""
    for line in _whole_lines(file, reading.stamp[0] - reading.end):
        reading.take(line)
    return reading


def _whole_lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The lines in so many bytes from here on, without one that has no end yet."""
    for line in file:
        size -= len(line)
        if size < 0 or not line.endswith(b"\n"):
            break
        yield line


def _undone(file: BinaryIO, size: int, void: AbstractSet[int] = frozenset()) -> set[str]:
    """The ids that the undos within `size` bytes take back, but for those at the offsets in `void`."""
    ids: set[str] = set()
    offset = 0
    file.seek(0)
    for line in _whole_lines(file, size):
        if (b'"undo"' in line or b"\\u" in line or b"\0" in line) and offset not in void:  # other ways to write it
            with suppress(DamagedLine):
                record = records.decode(line)
                ids.update(records.undone_ids(record) if record["type"] == "undo" else ())
        offset += len(line)
    return ids


def load(path: str, session_id: str) -> tuple[list[Record], Reading]:
    """Every record that counts, in file order, and what reading them found. Raises OSError."""
    reading = read(path, session_id)
    found: list[Record] = []
    with opened(path) as file:
        offset = 0
        for line in file:
            if offset >= reading.end:
                break
            if offset not in reading.repeats and not records.is_blank(line):
                with suppress(DamagedLine):
                    found.append(records.decode(line))
            offset += len(line)
    return found, reading


def read_all(path: str) -> tuple[bytes, Stamp]:
    """The bytes of a file, and its stamp from before they were read. Raises OSError."""
    with opened(path) as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        return file.read(), stamp


def contains(path: str, id_: str) -> bool:
    """Whether a record with this id can be read in the file; a line that was cut behind its id cannot."""
    with opened(path) as file:
        return any(id_.encode() in line and _id_of(line) == id_ for line in file)


def _id_of(line: bytes) -> object:
    if line.endswith(b"\n"):
        with suppress(DamagedLine):
            return records.decode(line).get("id")
    return None


# --- Reading backwards -----------------------------------------------------------------------------


def read_back(path: str, skip: set[int]) -> Iterator[Record]:
    """The records from the newest to the oldest, without those at the offsets in `skip`.

    Costs what is taken, not what is there. Raises OSError.
    """
    # Without a buffer, which would read ahead to where we have been already.
    with opened(path, buffering=0) as file:
        for offset, line in _lines_back(file, os.fstat(file.fileno()).st_size):
            if offset not in skip and not records.is_blank(line):
                with suppress(DamagedLine):
                    yield records.decode(line)


def _lines_back(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """The whole lines before `end`, last first, each with its offset and without its newline."""
    rest, size = b"", BLOCK
    terminated = False
    while end > 0:
        size = min(size, end)
        end -= size
        file.seek(end)
        lines = (file.read(size) + rest).split(b"\n")
        offset = end + sum(map(len, lines)) + len(lines) - 1
        for line in reversed(lines[1:]):
            offset -= len(line) + 1
            if terminated:
                yield offset + 1, line
            terminated = True
        rest = lines[0]
        # A line longer than a block is joined again with every block: double, so that it is joined rarely.
        size = size * 2 if len(lines) == 1 else min(size * 2, LARGE_BLOCK)
    if terminated:
        yield 0, rest
