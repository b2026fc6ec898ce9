"""Looking for damage, and mending it: `--check`, `--check --secrets`, `--check --repair`.

A check reads every file whole and changes nothing. A repair (`repair`) holds each session that it mends, and leaves
alone what is in use.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ollama_prompt import records, removal, repair, session_file
from ollama_prompt.catalogue import id_of
from ollama_prompt.errors import SessionBusy, StoreError, StoreUnreadable, StoreWriteFailed
from ollama_prompt.index import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ollama_prompt.indexer import Indexer

INDEX_SECONDS = 10.0
"""How long a repair waits for the index."""


def check(indexer: Indexer) -> tuple[int, list[dict[str, Any]], str]:
    """Read every file whole: (sessions, damage, state of the index). Changes nothing."""
    damage: list[dict[str, Any]] = []
    rows: list[Row] = []
    faults: dict[str, str | None] = {}
    paths = indexer.catalogue.files()
    for number, path in enumerate(paths):
        indexer.progress(number, len(paths))
        try:
            reading = indexer.catalogue.read_file(path)
        except StoreUnreadable as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # removed since it was listed
                damage.append(_damage(indexer, path, None, error.message))
            continue
        rows.append(Row.of(path, reading, young=False))
        damage += [_damage(indexer, path, line, reason) for line, reason in reading.damage]
        damage += [
            _damage(indexer, path, None, fault) for fault in _faults(indexer, path, reading.summary.images, faults)
        ]
    damage += [_damage(indexer, path, None, "another file has the same session") for path in _doubles(paths)]
    return len({id_of(path) for path in paths}), damage, indexer.catalogue.state(rows)


def secrets(indexer: Indexer) -> list[dict[str, Any]]:
    """What looks like a key or a password in any line of any file, taken back or not, damaged or not.

    A file that cannot be read is left out: `check` reports it.
    """
    from ollama_prompt import credentials

    secrets: list[dict[str, Any]] = []
    paths = indexer.catalogue.files()
    for done, path in enumerate(paths):
        indexer.progress(done, len(paths))
        with suppress(OSError), session_file.opened(indexer.layout.absolute(path)) as file:
            for number, line in enumerate(file, 1):
                text = records.text_of(line)
                found = {(each.kind, text[each.start : each.end]): each.shown for each in credentials.find(text)}
                secrets += [_secret(indexer, path, number, kind, shown) for (kind, _), shown in found.items()]
    return secrets


def mend(indexer: Indexer) -> list[dict[str, Any]]:
    """Mend what can be mended; what was done to each file, and where its old bytes are kept (`repair.item`).

    Sessions in use are left alone. What cannot be mended holds up nothing else; it is raised at the end.
    """
    with suppress(StoreWriteFailed):
        indexer.layout.complete_git_files()  # those of an earlier release would let git take the backups
    done = repair.tighten(indexer.layout, _index_files(indexer))  # what may not be read cannot be mended
    failed: list[StoreError] = []
    files: dict[str, list[str]] = {}
    for path in indexer.catalogue.files():
        files.setdefault(id_of(path), []).append(indexer.layout.absolute(path))
    for number, (session_id, paths) in enumerate(files.items()):
        indexer.progress(number, len(files))
        try:
            done += _repair_session(indexer, session_id, paths)
        except StoreError as error:
            failed.append(error)
    try:
        done += _remove_leftovers(indexer, set(files))
        done += _repair_index(indexer)
    except StoreError as error:
        failed.append(error)
    if failed:
        failed[0].message += f"; other places that were mended: {len(done)}" if done else ""
        raise failed[0]
    return done


def _faults(indexer: Indexer, path: str, images: list[str], known: dict[str, str | None]) -> list[str]:
    """What is wrong with the pictures that a file names; `known` keeps that of those already looked at."""
    for name in images:
        if name not in known:
            known[name] = indexer.attachments().fault_of(name)
    faults = {name: fault for name in images if (fault := known[name])}
    if not faults:
        return []
    try:
        still = indexer.catalogue.read_file(path).summary.images
    except StoreUnreadable:
        return []
    return [faults[name] for name in still if name in faults]  # the others were removed with what named them


def _repair_session(indexer: Indexer, session_id: str, paths: list[str]) -> list[dict[str, Any]]:
    """Mend the files of one session, if there is anything to mend. Raises `StoreError`s."""
    if not repair.is_needed(session_id, paths):
        return []
    try:
        with indexer.lock(session_id, 0):
            found, _ = indexer.files_of(session_id, paths)
            if not found:
                indexer.discard_lock(session_id)
            return repair.mend(session_id, found)
    except SessionBusy:
        return [repair.item(session_id, paths[0], "left alone: the session is in use")]


def _remove_leftovers(indexer: Indexer, known: set[str]) -> list[dict[str, Any]]:
    """Remove unfinished files of processes that were killed, and locks of sessions that are gone.

    `known` are the sessions that have a file.
    """
    done = []
    gone = indexer.layout.locked() - known
    for lock, path in repair.leftovers(indexer.layout):
        with suppress(SessionBusy, OSError), indexer.lock(lock, 0):
            os.unlink(path)
            done.append(repair.item(None, path, "removed: an unfinished file that a killed process left"))
    for session_id in indexer.layout.locked() - known:
        removal.clear_away(indexer, session_id)
    locks = [indexer.layout.lock(session_id) for session_id in sorted(gone - indexer.layout.locked())]
    return done + [repair.item(None, path, "removed: the lock of a session that is gone") for path in locks]


def _index_files(indexer: Indexer) -> list[str]:
    """Databases that are ours: the index, and what is kept of ollama-prompt 1.x."""
    is_ours = indexer.catalogue.index.state() in {"ok", "old", "corrupt"}
    return [*([indexer.layout.index] if is_ours else []), *indexer.layout.set_aside()]


def _repair_index(indexer: Indexer) -> list[dict[str, Any]]:
    """Build the index again if it is corrupt, and else bring it up to date. Raises `StoreError`s."""
    if indexer.catalogue.state([]) == "corrupt":
        indexer.layout.make()
        indexer.catalogue.rebuild(INDEX_SECONDS)
        return [repair.item(None, indexer.layout.index, "built again: the index was corrupt")]
    indexer.catalogue.rows()
    return []


def _damage(indexer: Indexer, path: str, line: int | None, reason: str) -> dict[str, Any]:
    return {"session_id": id_of(path), "path": indexer.layout.absolute(path), "line": line, "reason": reason}


def _secret(indexer: Indexer, path: str, line: int, kind: str, shown: str) -> dict[str, Any]:
    where = {"session_id": id_of(path), "path": indexer.layout.absolute(path), "line": line}
    return {**where, "kind": kind, "shown": shown}


def _doubles(paths: list[str]) -> list[str]:
    """The files whose session lies in another file too."""
    seen: dict[str, int] = {}
    for path in paths:
        seen[id_of(path)] = seen.get(id_of(path), 0) + 1
    return [path for path in paths if seen[id_of(path)] > 1]
