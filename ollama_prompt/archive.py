"""A folder of web pages with all conversations, made again only where something changed.

    DIR/index.html               the list, with search
        sessions/<uuid>.html     one page a session
        archive.jsonl            what is known of each page: the stamp of the session's file when it was read

Invariants:
- The folder is ours if archive.jsonl is, or if there is nothing in it. A file that does not begin as our pages do is
  never replaced or removed.
- A page is whole before it has its name, and is in archive.jsonl only then. So whatever interrupts an export, the next
  one does what is left.
- A page is as its session while the session's file has the stamp that is noted. Where that is none (the file may
  still have changed within a tick of the clock, a picture was missing), the page is made again.
- At most one session is in memory, beside what a listing has of each.

archive.jsonl grows by a line with each page, and is put in order at the end: one line a session, below one that says
what made them. Another release makes all pages again.
"""

from __future__ import annotations

import itertools
import json
import os
from contextlib import suppress

from ollama_prompt import clock, page
from ollama_prompt.errors import ExportFailed, OllamaPromptError, SessionNotFound
from ollama_prompt.exporting import Pictures, cannot_write, is_unfinished, transcript_of, write
from ollama_prompt.transcript import in_a_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ollama_prompt.indexer import Indexer

    Progress = Callable[[int, int], None]
    Item = dict[str, Any]

_NOTES = "archive.jsonl"
_LIST = "index.html"
_PAGES = "sessions"
_SUFFIX = ".html"
_KIND = b'{"archive": "ollama-prompt"'


def export(indexer: Indexer, folder: str, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Bring an archive up to date; what was done. The caller keeps others from the same.

    A session that cannot be read holds up no other; it is raised at the end. Raises `ExportFailed`, `StoreError`s.
    """
    folder = os.path.abspath(folder)
    try:
        _claim(folder)
        return _Archive(indexer, folder).update(progress)
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error


def _claim(folder: str) -> None:
    """Make the folder, or see that we may write to it. Raises `ExportFailed`."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ExportFailed(f"{folder} is no folder", hint="--export --all writes a folder of pages")
    if not os.path.isdir(folder):
        os.mkdir(folder)
    is_new = not os.path.lexists(os.path.join(folder, _NOTES))
    others = [name for name in os.listdir(folder) if not name.startswith(".")] if is_new else []
    if others:
        hint = "name an empty folder, or one that is not there yet"
        raise ExportFailed(f"{folder} is no archive, and not empty", hint=hint)
    notes = os.path.join(folder, _NOTES)
    if is_new:
        write(notes, [_head(0)])  # first of all: a folder with anything else in it would not be ours
    elif not _begins(notes, _KIND):
        raise _is_foreign(notes)
    os.makedirs(os.path.join(folder, _PAGES), exist_ok=True)


def _begins(path: str, mark: bytes) -> bool:
    """Whether a file is one of ours."""
    try:
        with open(path, "rb") as file:
            return file.read(len(mark)) == mark
    except FileNotFoundError:
        return False


def _is_foreign(path: str) -> ExportFailed:
    hint = "move it away, or name another folder with --to"
    return ExportFailed(f"{path} was not written by ollama-prompt", hint=hint)


class _Archive:
    """One export of a store into a folder. `notes` has the line of archive.jsonl of each page, by session."""

    def __init__(self, indexer: Indexer, folder: str) -> None:
        self._indexer = indexer
        self._folder = folder
        self._list = os.path.join(folder, _LIST)
        self._notes = os.path.join(folder, _NOTES)
        self._pages = os.path.join(folder, _PAGES)
        self._failed: list[OllamaPromptError] = []

    def update(self, progress: Progress) -> dict[str, Any]:
        """Do what is to be done; see `export`."""
        notes, was_finished = self._known()
        known, sizes = len(notes), self._sizes()
        lines = self._indexer.sessions()
        exported = self._make_pages(lines, notes, sizes, progress)
        removed = self._remove_gone(sizes)
        listed = [line for line in lines if json.loads(line)["session_id"] in notes]
        if exported or removed or known != len(listed) or not was_finished or not os.path.exists(self._list):
            write(self._list, page.index(_row(json.loads(line), notes) for line in listed))
            ids = (json.loads(line)["session_id"] for line in listed)
            write(self._notes, itertools.chain([_head(len(listed))], map(notes.__getitem__, ids)))
        if self._failed:
            raise self._failed[0]
        return {"exported": exported, "unchanged": len(listed) - exported, "removed": removed, "path": self._folder}

    def _make_pages(self, lines: list[bytes], notes: dict[str, str], sizes: dict[str, int], progress: Progress) -> int:
        """Make the pages that are not as their sessions are; how many. What is noted of each goes into `notes`."""
        exported = 0
        with open(self._notes, "a", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(lines):
                progress(number, len(lines))
                item = json.loads(line)
                session_id = item["session_id"]
                if session_id in notes and self._is_current(item, json.loads(notes[session_id]), sizes):
                    continue
                notes.pop(session_id, None)
                if made := self._made(item):
                    exported += 1
                    notes[session_id] = made
                    file.write(made)
                    file.flush()
        progress(len(lines), len(lines))
        return exported

    # --- What is there -------------------------------------------------------------------------

    def _known(self) -> tuple[dict[str, str], bool]:
        """What is noted of each page, and whether the last export came to its end.

        Notes of another release are dropped: they tell nothing of these pages.
        """
        if os.path.lexists(self._list) and not _begins(self._list, page.MARK):
            raise _is_foreign(self._list)
        with open(self._notes, encoding="utf-8", errors="replace", newline="\n") as file:
            head = _parsed(file.readline())
            if head.get("made_by") == page.fingerprint():
                lines = [(_parsed(line).get("session_id"), line) for line in file]
                known = {session_id: line for session_id, line in lines if isinstance(session_id, str)}
                return known, len(lines) == len(known) == head.get("pages")
        write(self._notes, [_head(0)])
        return {}, False

    def _sizes(self) -> dict[str, int]:
        """The pages that are there. What an export that was killed left unfinished is removed."""
        sizes: dict[str, int] = {}
        for folder in (self._folder, self._pages):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if folder == self._pages and entry.is_file() and _id_of(entry.name):
                        sizes[_id_of(entry.name)] = entry.stat().st_size
                    elif is_unfinished(entry.name):
                        with suppress(OSError):
                            os.unlink(entry.path)
        return sizes

    def _is_current(self, item: Item, note: Item, sizes: dict[str, int]) -> bool:
        stamp = self._indexer.settled_stamp(item["path"])
        is_whole = note.get("size") == sizes.get(item["session_id"]) and isinstance(note.get("words"), str)
        return stamp is not None and stamp == note.get("stamp") and is_whole

    # --- What is made --------------------------------------------------------------------------

    def _made(self, item: Item) -> str | None:
        """Make a session's page; what is noted of it. None if there is no such session any more, or it failed."""
        stamp = self._indexer.settled_stamp(item["path"])  # before it is read: a later change has another one
        pictures = Pictures(self._indexer)
        path = os.path.join(self._pages, item["session_id"] + _SUFFIX)
        try:
            transcript = transcript_of(self._indexer, item["session_id"])
            if os.path.lexists(path) and not _begins(path, page.MARK):
                raise _is_foreign(path)
            size = write(path, [page.conversation(transcript, pictures.read, f"../{_LIST}")])
        except SessionNotFound:
            return None
        except OllamaPromptError as error:
            self._failed.append(error)
            return None
        note = {"session_id": item["session_id"], "stamp": None if pictures.missing else stamp, "size": size}
        return json.dumps(note | {"words": transcript.first_words()}, ensure_ascii=False) + "\n"

    def _remove_gone(self, sizes: dict[str, int]) -> int:
        """Remove the pages of sessions that are gone; not of those whose file is there and cannot be read."""
        gone = set(sizes).difference(self._indexer.session_ids())
        paths = [os.path.join(self._pages, session_id + _SUFFIX) for session_id in gone]
        ours = [path for path in paths if _begins(path, page.MARK)]
        for path in ours:
            os.unlink(path)
        return len(ours)


def _head(pages: int) -> str:
    """The first line of archive.jsonl: how many lines follow tells whether an export came to its end."""
    return json.dumps({"archive": "ollama-prompt", "made_by": page.fingerprint(), "pages": pages}) + "\n"


def _parsed(line: str) -> Item:
    """A line of archive.jsonl; nothing for one that was cut off where an export was killed."""
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and line.endswith("\n"):
            return found
    return {}


def _id_of(name: str) -> str:
    """The session that a page is of, by its name; "" if that is no name of a page."""
    stem = name.removesuffix(_SUFFIX)
    return stem if stem != name and clock.parse_id(stem) == stem else ""


def _row(item: Item, notes: dict[str, str]) -> str:
    """A session in the list."""
    words = json.loads(notes[item["session_id"]])["words"]
    title, model = (in_a_line(item[key] or "") for key in ("title", "model_name"))
    values = [item["session_id"], title or "Conversation", model, item["last_used"] or item["created_at"] or ""]
    return json.dumps([*values, item["message_count"], words], ensure_ascii=False, separators=(",", ":"))
