"""Every session file and what the index knows of it, brought into agreement.

    rows()  ≡  what reading every file would give, whatever happened to files and index in between

Each file's stamp is compared with its row; what differs is read, and the index told. When the index
cannot be had, because it is not ours, read-only or locked for two seconds, the same answer is made from
the files alone.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager, suppress
from stat import S_ISDIR, S_ISREG

from ollama_prompt import clock
from ollama_prompt.errors import SessionBusy, StoreError, StoreUnreadable, StoreWriteFailed
from ollama_prompt.index import (
    BUSY_SECONDS,
    YOUNG,
    Index,
    IndexUnusable,
    Row,
    can_keep,
    is_young,
    packed,
    read_time_ns,
)
from ollama_prompt.layout import SUFFIX, Layout, open_own
from ollama_prompt.text import LARGEST_INTEGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, TypeVar

    from ollama_prompt.index import Stamps
    from ollama_prompt.session_file import Reading

    Lock = Callable[[float], AbstractContextManager[None]]
    T = TypeVar("T")

FOREIGN_HINT = "move it away, or let OLLAMA_PROMPT_DB_PATH name another place for the index"
UNREADABLE_HINT = "give yourself permission, or let OLLAMA_PROMPT_DB_PATH name another place for the index"
_NAME_LENGTH = 36 + len(SUFFIX)
MAKINGS = 3
"""How often to begin again with an index that others throw away meanwhile."""
MOST_COMPARED = 1 << 20
"""Bytes of young files that a listing compares; more are read, and their rows written anew."""


class Catalogue:
    """The files of one store and their index. `lock` locks the index for changes of many rows."""

    def __init__(
        self,
        layout: Layout,
        lock: Lock,
        note: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.layout = layout
        self._folder = layout.sessions + os.sep
        self.index = Index(layout.index, os.path.join(layout.locks, "index.made"))
        self._lock = lock
        self._note = note
        self._progress = progress
        self._told: set[str] = set()
        self.unread: set[str] = set()
        """Files that could not be read when last looked at, relative to `sessions`."""
        self.is_silent = False
        """Whether somebody else says what is wrong with the index."""

    def listing(self, limit: int | None = None) -> tuple[list[bytes], int]:
        """Every session once, or the first, as lines of the listing in JSON, newest use first; how many all are."""

        def read(stamps: Stamps) -> tuple[list[bytes], int] | None:
            if _has_copies(stamps):
                return None
            lines = self.index.lines(self._folder, limit)  # other processes may have written more since
            return lines, len(lines) if limit is None else len(stamps)

        rows = self._from_index_or_rows(read, stay_young=True)
        if isinstance(rows, tuple):
            return rows
        rows = _one_each(rows)
        return [row.line(self._folder) for row in rows[:limit]], len(rows)

    def stamps(self) -> Stamps:
        """Every session once: its file and that one's stamp, in no order."""
        rows = self._from_index_or_rows(lambda stamps: None if _has_copies(stamps) else stamps)
        return rows if isinstance(rows, dict) else {row.path: row.stamp_or_young for row in _one_each(rows)}

    def _from_index_or_rows(self, read: Callable[[Stamps], T | None], stay_young: bool = False) -> T | list[Row]:
        """What is read of the index, once it agrees with the files; where that is None, the row of every file."""
        try:
            found = self._agreed(read, stay_young)
            return self._agreed(lambda _: self.index.rows()) if found is None else found
        except IndexUnusable as error:
            return self._in_memory(error)

    def _rows(self) -> list[Row]:
        """The row of every file, in no order."""
        return self._from_index_or_rows(lambda _: self.index.rows())

    def at(self, paths: Iterable[str]) -> dict[str, Row]:
        """The rows of these files, as far as they can be read."""
        paths = list(paths)
        known: dict[str, Row] = {}
        with suppress(IndexUnusable):
            known = self.index.at(paths)
        for path in set(paths) - known.keys():
            with suppress(StoreUnreadable):
                known[path] = Row.of(path, self.read_file(path), young=False)
        return known

    def rows(self) -> list[tuple[Row, list[str]]]:
        """Every session, newest use first: the row of its file with the most records, and all its files."""
        return self._with_paths(self._rows())

    def unused_since(self, time: str | None) -> tuple[list[tuple[Row, list[str]]], set[str]]:
        """(As `rows`, but where that is easy without those used since this time, if any; the ids of all sessions)."""

        def read(stamps: Stamps) -> tuple[list[Row], set[str]] | None:
            if time is None or _has_copies(stamps):
                return None
            return self.index.unused_since(time), set(map(id_of, stamps))

        found = self._from_index_or_rows(read)
        rows, ids = found if isinstance(found, tuple) else (found, {row.session_id for row in found})
        return self._with_paths(rows), ids

    def _with_paths(self, rows: list[Row]) -> list[tuple[Row, list[str]]]:
        paths: dict[str, list[str]] = {}
        for row in rows:
            paths.setdefault(row.session_id, []).append(self.layout.absolute(row.path))
        return [(row, paths[row.session_id]) for row in _one_each(rows)]

    def images(self) -> set[str] | None:
        """The SHA-256 of every picture that any file names; None where a file cannot be read."""
        files = set(self.files())
        rows = self._rows()
        if files - {row.path for row in rows}:
            return None
        return {name for row in rows for name in row.saved["images"]}

    def rebuild(self, lock_timeout: float) -> int:
        """Throw the index away and build it again; the number of sessions. Raises `StoreError`s."""
        state = self.index.state()
        if state == "foreign":
            raise StoreUnreadable(f"{self.index.path} is not an index of ollama-prompt", hint=FOREIGN_HINT)
        if state == "unreadable":
            raise StoreUnreadable(f"{self.index.path} may not be read", hint=UNREADABLE_HINT)
        if not os.path.isdir(self.layout.sessions) and not self.files():
            return 0
        self.layout.make()
        with self._lock(lock_timeout):
            rows = self._read_files(self.files(), {})
            try:
                self.index.rebuild(rows)
            except IndexUnusable as error:
                if "locked" in str(error.__cause__):
                    raise SessionBusy("the index is in use by another program", hint="end that one first") from error
                raise StoreWriteFailed(f"cannot write the index {self.index.path}: {error.__cause__}") from error
        return len({row.session_id for row in rows})

    def forget(self, session_ids: list[str]) -> None:
        """Drop the rows of sessions that were removed; the next listing does what cannot be done now."""
        with suppress(IndexUnusable, StoreError):
            if self.index.state() == "ok":
                with self._lock(BUSY_SECONDS):
                    self.index.remove(session_ids)

    def state(self, rows: list[Row]) -> str:
        """The state of the index, given what reading every file gave."""
        state = self.index.state()
        if state not in {"ok", "old"}:
            return "stale" if state == "unreadable" else state
        try:
            known, lines = self.index.stamps(), self.index.lines(self._folder)
        except IndexUnusable as error:
            return "stale" if state == "old" or error.state in {"busy", "remade"} else error.state
        fresh = {row.path: row for row in rows if can_keep(row.path)}
        are_listed = sorted(lines) == sorted(row.line(self._folder) for row in fresh.values())
        # That the file was read young makes no row wrong.
        are_known = known.keys() == fresh.keys() and all(
            stamp in {YOUNG, packed(*fresh[path].stamp)} for path, stamp in known.items()
        )
        return "ok" if are_listed and are_known else "stale"

    def warn(self, unusable: IndexUnusable) -> None:
        """Say, once, that the index will stay unusable until somebody does something about it."""
        if self.is_silent:
            return
        if unusable.state == "foreign":
            self._tell(f"{self.index.path} is not an index of ollama-prompt: left untouched; {FOREIGN_HINT}")
        elif unusable.state == "unreadable":
            self._tell(f"{self.index.path} may not be read: all works more slowly without it; {UNREADABLE_HINT}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)

    # --- Files ---------------------------------------------------------------------------------

    def files(self) -> list[str]:
        """Every session file, relative to `sessions`, with /. Raises `StoreUnreadable`."""
        return self.differences({})[0]

    def differences(self, known: Stamps) -> tuple[list[str], list[str]]:
        """(Files to be read: new, changed or last read young; paths in `known` whose file is gone).

        Raises `StoreUnreadable`.
        """
        try:
            return self._compare(known)
        except OSError as error:
            where = error.filename or self.layout.sessions
            raise StoreUnreadable(f"cannot read {where}: {error.strerror or error}") from error

    def _compare(self, known: Stamps) -> tuple[list[str], list[str]]:
        """The loops that every listing runs for every session: they do nothing but look."""
        found = 0
        stale: list[str] = []
        folders = [("", self.layout.sessions)]
        for prefix, folder, names in self._read_folders(folders):
            new = [name for name in names if prefix + name not in known]
            found += len(names) - len(new)
            for name in new:
                _sort_out(prefix + name, os.path.join(folder, name), stale, folders)
        changed, are_there = self._look_at(known)
        # A file can be there and not be found: behind a link that has taken the place of a folder.
        if are_there and found == len(known):
            return stale + changed, []
        gone = set(self._gone(known))
        return stale + [path for path in changed if path not in gone], list(gone)

    def _look_at(self, known: Stamps) -> tuple[list[str], bool]:
        """(Those of these files that have another stamp, whether all are there)."""
        changed: list[str] = []
        are_there = True
        look, pack, largest = os.stat, packed, LARGEST_INTEGER  # found once, not in each round
        with self._opened() as (start, folder):
            for path, stamp in known.items():
                try:
                    status = look(start + path, dir_fd=folder, follow_symlinks=False)
                    now = pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & largest)
                except (FileNotFoundError, NotADirectoryError):
                    are_there = False
                    continue
                except struct.error:  # a time of another century
                    now = _packed_with_limits(status)
                if stamp != now:
                    if S_ISREG(status.st_mode):
                        changed.append(path)
                    else:
                        are_there = False  # something else that has the file's name now
        return changed, are_there

    @contextmanager
    def _opened(self) -> Iterator[tuple[str, int | None]]:
        """What goes before a name in `sessions`, and the folder that it is looked for in: a shorter way to each
        file, where the system has it.
        """
        try:
            folder = os.open(self.layout.sessions, os.O_RDONLY) if os.stat in os.supports_dir_fd else None
        except (FileNotFoundError, NotADirectoryError):
            folder = None
        if folder is None:
            yield self._folder, None
            return
        try:
            yield "", folder
        finally:
            os.close(folder)

    def _gone(self, paths: Iterable[str]) -> list[str]:
        there = set(self.files())
        return [path for path in paths if path not in there]

    def _read_folders(self, folders: list[tuple[str, str]]) -> Iterator[tuple[str, str, list[str]]]:
        """The names in the folders in the list, which may grow meanwhile, one folder after the other."""
        while folders:
            prefix, folder = folders.pop()
            try:
                names = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError) as error:
                if not prefix:
                    self._refuse_other_than_folders(error)
                continue
            yield prefix, folder, names

    def _refuse_other_than_folders(self, error: OSError) -> None:
        """A store that is not there is empty; a file or a broken link in its place is not. Raises `StoreUnreadable`."""
        for place in (self.layout.home, self.layout.sessions):
            if os.path.lexists(place) and not os.path.isdir(place):
                raise StoreUnreadable(f"{place} is no folder") from error

    def read_file(self, path: str, saved: dict[str, Any] | None = None) -> Reading:
        """Read one file, given its path relative to `sessions`. Raises `StoreUnreadable`."""
        from ollama_prompt import session_file

        absolute = self.layout.absolute(path)
        try:
            return session_file.read(absolute, id_of(path), saved)
        except OSError as error:
            raise StoreUnreadable(f"cannot read {absolute}: {error.strerror or error}") from error

    def _read_files(self, paths: list[str], known: dict[str, Row]) -> list[Row]:
        """Read files, those in `known` from where they were read to; one that cannot be read is left out."""
        rows = []
        for number, path in enumerate(paths):
            self._progress(number, len(paths))
            read_at = read_time_ns()
            try:
                reading = self.read_file(path, known[path].saved if path in known else None)
            except StoreUnreadable as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    self.unread.add(path)
                    self._tell(error.message)
                continue
            rows.append(Row.of(path, reading, is_young(reading.stamp, read_at)))
        return rows

    # --- Refreshing ----------------------------------------------------------------------------

    def _agreed(self, read: Callable[[Stamps], T], stay_young: bool = False) -> T:
        """What is read of the index, once it agrees with the files. Raises `IndexUnusable` if it cannot be made to.

        With `stay_young` it is left as it is where nothing but young rows must be looked at, and they are right.
        """
        for _ in range(MAKINGS):
            try:
                return read(self._refreshed(stay_young))
            except IndexUnusable as error:
                if error.state not in {"corrupt", "remade"}:
                    raise
                if error.state == "corrupt":
                    self._change_locked(self._rebuild)
        raise IndexUnusable("busy")

    def _refreshed(self, stay_young: bool) -> Stamps:
        """`Index.stamps`, of the files as they are. Raises `IndexUnusable`."""
        try:
            known = self.index.stamps()
        except IndexUnusable as error:
            # Without files there is nothing to make an index for: listing an empty store leaves no trace.
            if error.state != "missing" or not self.files():
                raise
            self._change_locked(self._rebuild)
            return self.index.stamps(again=True)
        stale, gone = self.differences(known)
        if not stale and not gone:
            return known
        if stay_young and not gone and all(known.get(path) == YOUNG for path in stale) and self._are_as_read(stale):
            return known
        self._change_locked(self._refresh)
        return self.index.stamps(again=True)

    def _are_as_read(self, paths: list[str]) -> bool:
        """Whether these young files have the very bytes that were read, as far as that is told in no time.

        It spares the listing that follows a turn the lock, and what reading a session takes.
        """
        contents = self.index.contents(paths)
        size = sum(size for size, _, _ in contents)
        return len(contents) == len(paths) and size <= MOST_COMPARED and all(map(self._is_as_read, paths, contents))

    def _is_as_read(self, path: str, content: tuple[int, bytes, int]) -> bool:
        import zlib

        try:
            with open(open_own(self.layout.absolute(path), os.O_RDONLY), "rb") as file:
                return (_packed(os.fstat(file.fileno())), zlib.crc32(file.read())) == content[1:]
        except OSError:
            return False

    def _change_locked(self, change: Callable[[], None]) -> None:
        try:
            self.layout.make()
            with self._lock(BUSY_SECONDS):
                change()
        except (StoreWriteFailed, SessionBusy) as error:
            raise IndexUnusable("busy") from error

    def _rebuild(self) -> None:
        paths = self.files()
        self.index.rebuild(self._read_files(paths, {}))
        _must_keep(paths)

    def _refresh(self) -> None:
        """Tell the index what has changed; what another process read while we waited need not be read again."""
        stale, gone = self.differences(self.index.stamps())
        try:
            known = self.index.at([*stale, *gone])
            rows = self._read_files(stale, known)
            unread = set(stale).difference(row.path for row in rows)
            self.index.change(rows, [*gone, *unread], known)
        except IndexUnusable as error:  # corrupt where the listing does not look
            if error.state != "corrupt":
                raise
            self._rebuild()
        _must_keep(stale)

    def _in_memory(self, unusable: IndexUnusable) -> list[Row]:
        """The rows as they should be, when the index cannot be brought there: only what is wrong is read."""
        self.warn(unusable)
        known: dict[str, Row] = {}
        with suppress(IndexUnusable):
            known = {row.path: row for row in self.index.rows_at_once()}
        stale, gone = self.differences({path: row.stamp_or_young for path, row in known.items()})
        wrong = {*stale, *gone}
        return [*(row for path, row in known.items() if path not in wrong), *self._read_files(stale, known)]


def _one_each(rows: list[Row]) -> list[Row]:
    """Of every session the file with the most records; newest use first."""
    rows.sort(key=lambda row: (-row.record_count, row.path))
    best: dict[str, Row] = {}
    for row in rows:
        best.setdefault(row.session_id, row)
    by_path = sorted(best.values(), key=lambda row: row.path)  # the order of the index where uses are equal
    return sorted(by_path, key=lambda row: (row.last_used, row.last_id), reverse=True)


def _has_copies(stamps: Stamps) -> bool:
    """Whether a session lies in several files."""
    return len({path[-_NAME_LENGTH:] for path in stamps}) < len(stamps)


def _packed(status: os.stat_result) -> bytes:
    try:
        return packed(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & LARGEST_INTEGER)
    except struct.error:  # a time of another century
        return _packed_with_limits(status)


def _packed_with_limits(status: os.stat_result) -> bytes:
    from ollama_prompt.session_file import stamp_of

    return packed(*stamp_of(status))


def _must_keep(paths: list[str]) -> None:
    """The index alone is no answer where it has no row for a file. Raises `IndexUnusable`."""
    if not all(map(can_keep, paths)):
        raise IndexUnusable("busy")


def id_of(path: str) -> str:
    """The session that a file belongs to: its name."""
    return path[-_NAME_LENGTH : -len(SUFFIX)]


def _sort_out(name: str, path: str, files: list[str], folders: list[tuple[str, str]]) -> None:
    """Add what is not in the index to the session files, or to the folders, or to neither.

    `name` is its path relative to `sessions`. Symbolic links are never followed: a store that came by git must
    not lead out of itself.
    """
    last = os.path.basename(path)
    is_session = len(last) == _NAME_LENGTH and last.endswith(SUFFIX) and clock.parse_id(id_of(last)) == id_of(last)
    if not is_session and last.startswith("."):
        return
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if is_session and S_ISREG(mode):
        files.append(name)
    elif S_ISDIR(mode) and not is_session:
        folders.append((name + "/", path))
