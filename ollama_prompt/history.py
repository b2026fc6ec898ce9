"""What was typed in conversations, for the arrow up: history.jsonl in the store, oldest first.

    {"session_id":"…","text":"…"}

A text is here only once a session has it, and with that session's id: so removing a session removes it here as well.
The file is private, for this machine alone, and may be deleted at any time. A line that is damaged is nobody's. All but
reading happens under its lock: two that write the file anew would bring back what the other has dropped.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from ollama_prompt.errors import StoreError
from ollama_prompt.layout import cannot_write, open_new, open_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from contextlib import AbstractContextManager

    from ollama_prompt.layout import Layout

    Lock = Callable[[], AbstractContextManager[None]]

KEPT = 1000
"""So many texts are offered; the file is shortened to them when it has twice as many."""


def add(layout: Layout, lock: Lock, session_id: str, text: str) -> None:
    """Add a text. That it cannot be written is no reason to hold up a conversation."""
    line = _line(session_id, text).encode()
    with suppress(OSError, StoreError), lock():
        file = open_own(layout.history, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with open(file, "r+b") as opened:
            is_torn = opened.seek(0, os.SEEK_END) and opened.seek(-1, os.SEEK_END) and opened.read(1) != b"\n"
            opened.write(b"\n" + line if is_torn else line)


def texts(layout: Layout, lock: Lock) -> list[str]:
    """The newest texts, oldest first."""
    found = _read(layout)
    if len(found) > 2 * KEPT:
        with suppress(OSError, StoreError), lock():
            _write(layout, _read(layout)[-KEPT:])
    return [text for _, text in found[-KEPT:]]


def forget(layout: Layout, lock: Lock, session_ids: Container[str]) -> None:
    """Drop what was typed in these sessions, and what a killed process left of writing it.

    Raises `StoreWriteFailed`, `SessionBusy`.
    """
    _, unfinished = layout.history_files()
    try:
        with lock():
            with suppress(OSError):
                os.unlink(unfinished)
            found = _read(layout)
            if any(session_id in session_ids for session_id, _ in found):
                _write(layout, [entry for entry in found if entry[0] not in session_ids])
    except OSError as error:
        raise cannot_write(error) from error


def _line(session_id: str, text: str) -> str:
    entry = {"session_id": session_id, "text": text}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n"


def _read(layout: Layout) -> list[tuple[str, str]]:
    """(session, text) of every line."""
    found = []
    try:
        with open(open_own(layout.history, os.O_RDONLY), encoding="utf-8", errors="replace", newline="\n") as file:
            lines = file.readlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry["session_id"], str) and isinstance(entry["text"], str):
                _line(entry["session_id"], entry["text"]).encode()  # raises where it could not be written again
                found.append((entry["session_id"], entry["text"]))
    return found


def _write(layout: Layout, entries: list[tuple[str, str]]) -> None:
    """Put a file with these in the place of the old one."""
    path, unfinished = layout.history_files()
    lines = [_line(session_id, text) for session_id, text in entries]
    with open(open_new(unfinished), "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    os.replace(unfinished, path)
