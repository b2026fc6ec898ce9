"""Removing sessions for real: `--delete`, `--purge`, and what killed processes left of a session.

A session is removed under its lock: first its backups, then its files, and the lock with them. Then goes what else
there is of it: its row, what was typed in it, the index of --search if that may have its words, and the pictures that
no other session names. Killed in between, the next removal goes on where that one stopped.

Backups stay here when git takes the session away that another machine removed: they are removed as if it were there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import partial

from ollama_prompt import clock, session_file
from ollama_prompt.errors import SessionBusy, SessionNotFound, StoreError, StoreUnreadable, StoreWriteFailed
from ollama_prompt.layout import cannot_write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ollama_prompt.index import Row
    from ollama_prompt.indexer import Indexer

WORDS_SECONDS = 5.0
"""How long to wait while another process makes the index of --search."""
_TIME = re.compile(r"\.(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z\.")
"""When a backup was made, as its name says."""


def delete(indexer: Indexer, session_id: str) -> None:
    """Remove a session for real: all that there is of it. Raises `SessionBusy` at once when it is in use."""
    try:
        indexer.find(session_id)
    except SessionNotFound:
        _forget_text(indexer, [session_id])
        if session_id not in indexer.layout.backups():
            clear_away(indexer, session_id)
            raise
    try:
        with indexer.lock(session_id, 0):
            found = indexer.layout.find(session_id, deep=True)
            images = _images_in(indexer, found)
            _sync(_remove_files(indexer, session_id, found, indexer.layout.backups().get(session_id, [])))
    except SessionBusy as error:
        error.hint = "delete it when its turn is over"
        raise
    indexer.catalogue.forget([session_id])
    _forget_text(indexer, [session_id])
    indexer.discard_images(images)


def purge(indexer: Indexer, days: int, dry_run: bool) -> tuple[list[str], list[str]]:
    """Remove what was last used more than `days` days ago (0: everything): (removed, in use).

    What cannot be removed holds up nothing else; it is raised at the end.
    """
    purging = _Purge(indexer, clock.days_ago(days) if days else None, dry_run)
    removed: list[str] = []
    skipped: list[str] = []
    failed: list[StoreError] = []
    for session_id, purge_it in purging.all():
        try:
            removed += [session_id] if purge_it() else []
        except SessionBusy:
            skipped.append(session_id)
        except StoreError as error:
            failed.append(error)
    if not dry_run:
        purging.finish(removed)
    if failed:
        failed[0].message += f"; {len(removed)} others were removed" if removed and not dry_run else ""
        raise failed[0]
    return removed, skipped


class _Purge:
    """What a purge is about; what is the same for every session is looked for once."""

    def __init__(self, indexer: Indexer, cutoff: str | None, dry_run: bool) -> None:
        self._indexer = indexer
        self._cutoff = cutoff
        self._dry_run = dry_run
        rows, self._known = indexer.catalogue.unused_since(cutoff)
        self._unused = [(row, paths) for row, paths in rows if _is_unused(row.last_used, cutoff)]
        self._folders = indexer.layout.folders()
        self._changed: set[str] = set()

    def all(self) -> Iterator[tuple[str, Callable[[], bool]]]:
        """Each session that may have to go, and what removes it if it must: whether it was removed, or would be."""
        backups = self._indexer.layout.backups()
        for row, paths in self._unused:
            yield row.session_id, partial(self._one, row, paths, backups.get(row.session_id, []))
        for session_id in sorted(backups.keys() - self._known):
            yield session_id, partial(self._backups, session_id, backups[session_id])

    def finish(self, removed: list[str]) -> None:
        """Make it durable, and forget what else there is of these sessions."""
        _sync(self._changed)
        _forget(self._indexer, removed, self._known)
        images = {name for row, _ in self._unused for name in row.saved["images"]}
        everything = set() if self._cutoff else self._indexer.attachments().names()
        self._indexer.discard_images(images | everything)

    def _one(self, row: Row, paths: list[str], backups: list[str]) -> bool:
        """Remove one session if nobody holds it and it is still unused.

        Nobody holds a session that has no lock file: a dry run makes none. The row counts as long as its file is as
        it was.
        """
        layout, session_id = self._indexer.layout, row.session_id
        rows = {layout.absolute(row.path): row}
        if self._dry_run and not os.path.exists(layout.lock(session_id)):
            return _are_unused(self._indexer, layout.find(session_id, paths, folders=self._folders), rows, self._cutoff)
        with self._indexer.lock(session_id, 0):
            found = layout.find(session_id, paths, folders=self._folders)
            if not _are_unused(self._indexer, found, rows, self._cutoff):
                if not found and not self._dry_run:
                    self._indexer.discard_lock(session_id)
                return False
            if not self._dry_run:
                self._changed |= _remove_files(self._indexer, session_id, found, backups)
        return True

    def _backups(self, session_id: str, backups: list[str]) -> bool:
        """Remove what was kept before the cutoff of a session that has no file, if anything was."""
        old = [path for path in backups if _is_unused(_kept_at(path), self._cutoff)]
        if not old or not _is_gone(self._indexer, session_id):
            return False
        if self._dry_run and not os.path.exists(self._indexer.layout.lock(session_id)):
            return True
        with self._indexer.lock(session_id, 0):
            if not _is_gone(self._indexer, session_id):
                return False
            if not self._dry_run:
                self._changed |= _remove_files(self._indexer, session_id, [], old)
        return True


def _is_gone(indexer: Indexer, session_id: str) -> bool:
    """Whether a session has no file: not one that cannot be read either, nor one that git is about to give back."""
    try:
        indexer.find(session_id)
    except SessionNotFound:
        return True
    return False


def _kept_at(backup: str) -> str | None:
    """When a backup was made: by its name, or else by its file."""
    if found := _TIME.search(os.path.basename(backup)):
        return "{}-{}-{}T{}:{}:{}.000Z".format(*found.groups())
    try:
        return clock.format_time(int(os.stat(backup).st_mtime * 1000))
    except (OSError, ValueError):
        return None


def _forget(indexer: Indexer, removed: list[str], known: set[str]) -> None:
    """Drop the rows of sessions that were removed, and what killed processes left of unknown ones."""
    if removed:
        indexer.catalogue.forget(removed)
        _forget_text(indexer, removed)
    for session_id in indexer.layout.locked() - known:
        clear_away(indexer, session_id)


def _forget_text(indexer: Indexer, session_ids: list[str]) -> None:
    """Remove what is elsewhere in the store of the text of these sessions."""
    if any(map(os.path.lexists, indexer.layout.history_files())):
        from ollama_prompt import history

        history.forget(indexer.layout, indexer.lock_history, set(session_ids))
    _forget_words(indexer, session_ids)


def _forget_words(indexer: Indexer, session_ids: list[str]) -> None:
    """Remove the index of --search if it may have words of these sessions, whose files are gone already.

    The next search makes it again. One that is being made is waited for, as it may have read them; one that takes long
    is taken away from under it.
    """
    files = indexer.layout.search_files()
    if not any(map(os.path.lexists, files)):
        return
    try:
        with indexer.lock("search", WORDS_SECONDS, indexer.note_waiting):
            # Whatever is beside the index now was left by a process that was killed.
            _unlink(files if _may_have_words(indexer.layout.search, session_ids) else files[1:])
    except SessionBusy:
        _unlink(files)


def _may_have_words(path: str, session_ids: list[str]) -> bool:
    from ollama_prompt import search_index

    try:
        with search_index.opened(path) as index:
            return any(map(index.has, session_ids))
    except search_index.SearchIndexUnusable:
        return True


def _unlink(paths: list[str]) -> None:
    """Remove files that may not be there; a folder that has such a name is not ours. Raises `StoreWriteFailed`."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            continue
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(error) from error


def _are_unused(indexer: Indexer, found: list[str], rows: dict[str, Row], cutoff: str | None) -> bool:
    """Whether there are files, all of which a purge removes, and none was used since the cutoff."""
    for path in found:
        row = rows.get(path)
        trusted = row is not None and not row.young and row.stamp == session_file.stamp_at(path)
        last_used = row.last_used if row and trusted else indexer.read(path).summary.last_used
        if not _is_unused(last_used, cutoff):
            return False
    return bool(found)


def _remove_files(indexer: Indexer, session_id: str, paths: list[str], backups: list[str]) -> set[str]:
    """Remove these files of a session that is held, and its lock; the folders to be synced. Raises `StoreWriteFailed`.

    One that `git pull` gives back meanwhile was not looked at: it stays.
    """
    for path in (*backups, *paths):  # in this order: a backup without its session would be removed by nobody
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(error, session_id) from error
    if not any(map(os.path.lexists, paths)):
        _discard_rest(indexer, session_id)
    return {os.path.dirname(path) for path in (*backups, *paths)}


def _sync(folders: Iterable[str]) -> None:
    """Make what was removed from these folders stay removed. Raises `StoreWriteFailed`."""
    for folder in folders:
        try:
            session_file.sync_folder(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(error) from error


def clear_away(indexer: Indexer, session_id: str) -> None:
    """Remove what a process left that was killed while it made or removed this session."""
    if os.path.exists(indexer.layout.lock(session_id)):
        with suppress(SessionBusy, StoreWriteFailed), indexer.lock(session_id, 0):
            if not indexer.files_of(session_id)[0]:
                _discard_rest(indexer, session_id)


def _discard_rest(indexer: Indexer, session_id: str) -> None:
    """Remove what else there is of a session without files, its lock last; the caller holds it."""
    with suppress(OSError):
        os.unlink(session_file.unfinished(indexer.layout.new_path(session_id)))
    indexer.discard_lock(session_id)


def _images_in(indexer: Indexer, paths: list[str]) -> set[str]:
    """The pictures that these files name, as far as they can be read; without pictures in the store none is."""
    images: set[str] = set()
    for path in paths if os.path.isdir(indexer.layout.attachments) else ():
        with suppress(StoreUnreadable):
            images.update(indexer.read(path).summary.images)
    return images


def _is_unused(last_used: str | None, cutoff: str | None) -> bool:
    """Whether a session was last used before the cutoff; one that was never used has no such time."""
    return cutoff is None or "" < (last_used or "") < cutoff
