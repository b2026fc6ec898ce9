"""The way in to the store: open, list, look into, purge, delete, check, reindex.

The files are the truth, the index only remembers what reading them gave. `refresh` compares every
file's stamp with its row, reads what differs and gives the listing; it ends in the same rows as
`reindex`, whatever happened to files and index in between. When the index cannot be had, because it is
not ours, read-only or locked for two seconds, the same answer is made from the files alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress

from ollama_prompt import clock, layout
from ollama_prompt.errors import SessionBusy, SessionNotFound, StoreError, StoreUnreadable, StoreWriteFailed
from ollama_prompt.index import BUSY_SECONDS, Index, IndexUnusable, Row, is_young, read_time_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.layout import Layout
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Reading, Stamp

    Disk = dict[str, tuple[str, Stamp]]
    Listed = tuple[Any, ...]

INDEX_LOCK = "index"


class Indexer:
    """One store. `note` prints a remark for the user; nothing is made on disk before a session is."""

    def __init__(self, paths: Layout, note: Callable[[str], None]) -> None:
        self.layout = paths
        self.index = Index(paths.index, os.path.join(paths.locks, "index.made"))
        self._note = note

    # --- One session ---------------------------------------------------------------------------

    @contextmanager
    def open(self, session_id: str, lock_timeout: float) -> Iterator[HeldSession]:
        """Hold a session for a turn. Raises `SessionNotFound`, `SessionBusy`, `StoreUnreadable`."""
        from ollama_prompt.held_session import HeldSession

        self.locate(session_id)  # before its lock is made: an unknown id leaves no trace
        with self._lock(session_id, lock_timeout):
            path, reading, indexed = self._read_for_turn(session_id)
            _check_version(reading, session_id)
            if reading.summary.damage_count:
                self._note(f"{reading.summary.damage_count} damaged lines are left out; --check tells which")
            held = HeldSession(self.layout, session_id, self._note, path, reading, indexed)
            try:
                yield held
            finally:
                self._keep_index(held)

    @contextmanager
    def new(self) -> Iterator[HeldSession]:
        """A session that does not exist yet; on disk, lock and all, once its prompt is stored."""
        from ollama_prompt.held_session import HeldSession

        session_id = clock.new_id()
        with ExitStack() as stack:
            # Locked before it can be seen, so that nobody continues or purges it meanwhile.
            held = HeldSession(self.layout, session_id, self._note, claim=lambda: self._claim(session_id, stack))
            try:
                yield held
            finally:
                self._keep_index(held)
                if held.path is None and os.path.isdir(self.layout.locks):
                    self._discard_lock(session_id)

    def _claim(self, session_id: str, stack: ExitStack) -> None:
        self._make_store()
        stack.enter_context(self._lock(session_id, 0))

    def locate(self, session_id: str) -> tuple[str, Row | None]:
        """The session's file, and its row if the index holds for it. Raises `SessionNotFound`.

        Of several files with the same id the one with the most records is used.
        """
        rows = {self.layout.absolute(row.path): row for row in self._rows_of(session_id)}
        paths = dict.fromkeys([*self.layout.candidates(session_id), *filter(os.path.exists, rows)])
        found = list(paths) or self.layout.everywhere(session_id)
        if not found:
            raise SessionNotFound(
                f"no session has the id {session_id}",
                hint="--list-sessions shows them all",
                session_id=session_id,
            )
        if len(found) > 1:
            found.sort(key=lambda path: (-self._read(path, session_id).summary.record_count, path))
        return found[0], _holding(rows.get(found[0]), found[0])

    def info(self, session_id: str) -> tuple[Row, list[Record], Reading]:
        """All that is stored of one session: its row, its records, and what could not be read."""
        from ollama_prompt import session_file

        path, _ = self.locate(session_id)
        with _reading(path):
            found, reading = session_file.load(path, session_id)
        return Row.of(self.layout.name(path), reading, young=True), found, reading

    def delete(self, session_id: str) -> None:
        """Remove a session for real: files, row, lock. Raises `SessionBusy` at once when it is in use."""
        self.locate(session_id)
        with self._lock(session_id, 0):
            self._remove_files(session_id)
        self._forget([session_id])

    # --- Many sessions -------------------------------------------------------------------------

    def sessions(self) -> list[Listed]:
        """Every session as a row of the index (without `saved`), newest use first."""
        rows = self.refresh()
        best: dict[str, Listed] = {}
        for row in rows:
            other = best.setdefault(row[1], row)
            if other is not row and (-row[14], row[0]) < (-other[14], other[0]):
                best[row[1]] = row
        return rows if len(best) == len(rows) else [row for row in rows if best[row[1]] is row]

    def refresh(self) -> list[Listed]:
        """Bring the index up to date with the files, and give its rows, newest use first."""
        disk = self._disk()
        try:
            rows = self.index.rows()
        except IndexUnusable as error:
            return self._rebuild_or_read(disk, error.state)
        stale, gone = _differences(disk, rows)
        if not stale and not gone:
            return rows
        try:
            with self._lock(INDEX_LOCK, BUSY_SECONDS):
                return self._refresh_locked()
        except (StoreError, IndexUnusable):
            return self._merged(disk, rows)[0]

    def reindex(self, lock_timeout: float) -> int:
        """Throw the index away and build it again; the number of sessions. Raises `StoreUnreadable`."""
        if self.index.state() == "foreign":
            raise StoreUnreadable(f"{self.index.path} is not an index of ollama-prompt", hint=_FOREIGN_HINT)
        if not os.path.isdir(self.layout.sessions):
            return 0
        self._make_store()
        with self._lock(INDEX_LOCK, lock_timeout):
            rows = self._read_all(self._disk())
            try:
                self.index.rebuild(rows)
            except IndexUnusable as error:
                raise StoreWriteFailed(f"cannot write the index {self.index.path}: {error.__cause__}") from error
        return len({row.session_id for row in rows})

    def purge(self, days: int, dry_run: bool) -> tuple[list[str], list[str]]:
        """Remove what was last used more than `days` days ago (0: everything): (removed, in use)."""
        cutoff = clock.days_ago(days) if days else None
        removed: list[str] = []
        skipped: list[str] = []
        for row in self.sessions():
            if not _is_unused(row[8], cutoff):
                continue
            try:
                if self._purge_one(row, cutoff, dry_run):
                    removed.append(row[1])
            except SessionBusy:
                skipped.append(row[1])
        if removed and not dry_run:
            self._forget(removed)
        return removed, skipped

    def check(self) -> tuple[int, list[dict[str, Any]], str]:
        """Read every file whole: (sessions, damage, state of the index). Changes nothing."""
        unreadable: list[tuple[str, str]] = []
        disk = self._disk(unreadable)
        damage: list[dict[str, Any]] = [
            {"session_id": None, "path": path, "line": None, "reason": reason} for path, reason in unreadable
        ]
        rows: dict[str, Row] = {}
        for name, (session_id, _) in disk.items():
            path = self.layout.absolute(name)
            try:
                reading = self._read(path, session_id)
            except StoreUnreadable as error:
                damage.append({"session_id": session_id, "path": path, "line": None, "reason": error.message})
                continue
            rows[name] = Row.of(name, reading, young=False)
            damage += [
                {"session_id": session_id, "path": path, "line": line, "reason": reason}
                for line, reason in reading.damage
            ]
        damage += self._doubles(disk)
        return len({id_ for id_, _ in disk.values()}), damage, self._index_state(rows)

    # --- Files ---------------------------------------------------------------------------------

    def _disk(self, unreadable: list[tuple[str, str]] | None = None) -> Disk:
        """Every session file: name → (session id, stamp)."""
        start = len(self.layout.sessions) + 1
        disk: Disk = {}
        try:
            for id_, entry in layout.walk(self.layout.sessions, unreadable):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name = entry.path[start:].replace(os.sep, "/")
                disk[name] = (id_, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        except OSError as error:
            raise StoreUnreadable(f"cannot read {error.filename}: {error.strerror}") from error
        return disk

    def _read(self, path: str, session_id: str, saved: dict[str, Any] | None = None) -> Reading:
        from ollama_prompt import session_file

        with _reading(path):
            return session_file.read(path, session_id, saved)

    def _read_for_turn(self, session_id: str) -> tuple[str, Reading, bool]:
        """What a turn must know of the file, and whether that is from its row: where that holds, else not.

        A row that says that records repeat does not say which: then the file is read.
        """
        from ollama_prompt.session_file import Reading
        from ollama_prompt.summary import Summary

        path, row = self.locate(session_id)
        if row is None or not row.saved["simple"]:
            return path, self._read(path, session_id), False
        reading = Reading(Summary.resume(session_id, row.saved), row.stamp)
        reading.end, reading.crc = row.saved["end"], row.saved["crc"]
        return path, reading, True

    def _remove_files(self, session_id: str) -> None:
        """Remove every file of a session that is held, and its lock. Raises `StoreWriteFailed`."""
        from ollama_prompt import session_file

        for path in self.layout.everywhere(session_id):
            try:
                session_file.remove(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _cannot_write(error) from error
        self._discard_lock(session_id)

    def _purge_one(self, row: Listed, cutoff: str | None, dry_run: bool) -> bool:
        """Remove one session if nobody holds it and it is still unused; whether it was, or would be."""
        session_id = row[1]
        with self._lock(session_id, 0):
            try:
                path, known = self.locate(session_id)
                reading = None if known and known.stamp == row[2:6] else self._read(path, session_id)
            except SessionNotFound:
                self._discard_lock(session_id)
                return False
            if reading and not _is_unused(reading.summary.last_used, cutoff):
                return False
            if not dry_run:
                self._remove_files(session_id)
        return True

    # --- Index ---------------------------------------------------------------------------------

    def _rows_of(self, session_id: str) -> list[Row]:
        try:
            return self.index.find(session_id)
        except IndexUnusable as error:
            self._warn_foreign(error.state)
            return []

    def _refresh_locked(self) -> list[Listed]:
        """Refresh while nobody else does: what they found before us need not be read again."""
        disk, rows = self._disk(), self.index.rows()
        merged, found, gone = self._merged(disk, rows)
        if found or gone:
            self.index.change(found, gone, {row[0]: row for row in rows})
        return merged

    def _merged(self, disk: Disk, rows: list[Listed]) -> tuple[list[Listed], list[Row], list[str]]:
        """The rows as they should be; which of them are new; which are gone."""
        stale, gone = _differences(disk, rows)
        saved: dict[str, dict[str, Any]] = {}
        with suppress(IndexUnusable):
            saved = self.index.saved(stale)
        found = self._read_all({name: disk[name] for name in stale}, saved)
        replaced = {*stale, *gone}
        kept = [row for row in rows if row[0] not in replaced]
        kept += [row.values()[:-1] for row in found]
        return sorted(kept, key=_by_use, reverse=True), found, gone

    def _read_all(self, disk: Disk, saved: dict[str, dict[str, Any]] | None = None) -> list[Row]:
        rows = []
        for name, (session_id, _) in disk.items():
            read_at = read_time_ns()
            try:
                reading = self._read(self.layout.absolute(name), session_id, (saved or {}).get(name))
            except StoreUnreadable as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    self._note(error.message)
                continue
            rows.append(Row.of(name, reading, is_young(reading.stamp, read_at)))
        return rows

    def _rebuild_or_read(self, disk: Disk, state: str) -> list[Listed]:
        """The rows without an index to ask: built again where it is ours, else from the files alone."""
        self._warn_foreign(state)
        rows: list[Row] | None = None
        if state in {"missing", "corrupt"} and disk:
            with suppress(StoreError, IndexUnusable):
                self._make_store()
                with self._lock(INDEX_LOCK, BUSY_SECONDS):
                    rows = self._read_all(disk)
                    self.index.rebuild(rows)
        if rows is None:
            rows = self._read_all(disk)
        return sorted((row.values()[:-1] for row in rows), key=_by_use, reverse=True)

    def _keep_index(self, held: HeldSession) -> None:
        """Write a turn's row. An index that cannot be written is mended by the next listing."""
        try:
            held.keep_index(self.index)
        except IndexUnusable as error:
            self._warn_foreign(error.state)

    def _forget(self, session_ids: list[str]) -> None:
        with suppress(IndexUnusable, StoreError):
            if self.index.state() == "ok":
                with self._lock(INDEX_LOCK, BUSY_SECONDS):
                    self.index.remove(session_ids)

    def _index_state(self, rows: dict[str, Row]) -> str:
        state = self.index.state()
        if state not in {"ok", "old"}:
            return state
        try:
            known = {row[0]: row for row in self.index.rows()}
            fresh = {name: row.values()[:-1] for name, row in rows.items()}
        except IndexUnusable as error:
            return {"busy": "ok"}.get(error.state, error.state) if state == "ok" else "stale"
        # Column 6 says that a row was read young; it does not make it wrong.
        same = known.keys() == fresh.keys() and all(
            known[name][:6] + known[name][7:] == fresh[name][:6] + fresh[name][7:] for name in fresh
        )
        return "ok" if same else "stale"

    def _doubles(self, disk: Disk) -> Iterator[dict[str, Any]]:
        names: dict[str, list[str]] = {}
        for name, (session_id, _) in disk.items():
            names.setdefault(session_id, []).append(name)
        for session_id, twice in names.items():
            for name in twice if len(twice) > 1 else ():
                reason = f"the same session lies in {len(twice)} files"
                yield {
                    "session_id": session_id, "path": self.layout.absolute(name), "line": None, "reason": reason
                }  # fmt: skip

    def _warn_foreign(self, state: str) -> None:
        if state == "foreign":
            self._note(f"{self.index.path} is not an index of ollama-prompt: left untouched; {_FOREIGN_HINT}")

    # --- Locks ---------------------------------------------------------------------------------

    def _lock(self, name: str, timeout: float) -> Any:
        from ollama_prompt import locks

        return locks.hold(self.layout.lock(name), timeout, lambda: self._note_waiting(name))

    def _note_waiting(self, name: str) -> None:
        if name != INDEX_LOCK:
            self._note(f"session {name} is in use by another process; waiting for it")

    def _discard_lock(self, name: str) -> None:
        from ollama_prompt import locks

        locks.discard(self.layout.lock(name))

    def _make_store(self) -> None:
        try:
            self.layout.make()
        except OSError as error:
            raise _cannot_write(error) from error


_FOREIGN_HINT = "move it away, or let OLLAMA_PROMPT_DB_PATH name another place for the index"


def _differences(disk: Disk, rows: list[Listed]) -> tuple[list[str], list[str]]:
    """(Files to be read: new, changed or last read young; names in the index whose file is gone)."""
    right = {row[0] for row in rows if not row[6] and row[0] in disk and disk[row[0]][1] == row[2:6]}
    stale = [name for name in disk if name not in right] if len(right) != len(disk) else []
    gone = [row[0] for row in rows if row[0] not in disk] if len(right) != len(rows) else []
    return stale, gone


def _holding(row: Row | None, path: str) -> Row | None:
    """The row, if its file is still as it was when it was read."""
    from ollama_prompt import session_file

    return row if row and session_file.stamp_at(path) == row.stamp else None


def _by_use(row: Listed) -> tuple[str, str]:
    return row[8] or "", row[9] or ""


def _is_unused(last_used: str | None, cutoff: str | None) -> bool:
    return cutoff is None or (last_used or "9999") < cutoff


def _check_version(reading: Reading, session_id: str) -> None:
    from ollama_prompt.records import VERSION

    if reading.summary.version > VERSION:
        raise StoreUnreadable(
            f"session {session_id} is of format version {reading.summary.version}; this release knows {VERSION}",
            hint="upgrade ollama-prompt to go on with it; nothing was changed",
            session_id=session_id,
        )


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnreadable(f"cannot read {path}: {error.strerror or error}") from error


def _cannot_write(error: OSError) -> StoreWriteFailed:
    where = f" {error.filename}" if error.filename else ""
    return StoreWriteFailed(
        f"cannot write{where}: {error.strerror or error}",
        hint="OLLAMA_PROMPT_HOME moves the store, --no-session does without",
    )
