"""Where things lie in the store.

    HOME/                               0700
      sessions/2026-11/<uuid>.jsonl     0600; the month comes from the id (UUIDv7) itself
      sessions.db                       the index; may lie elsewhere
      locks/<uuid>.lock, index.lock
      .gitignore .gitattributes

A session file is found by its name, wherever below `sessions/` people moved it. Symbolic links below
`sessions/` are never followed: a store that came by git must not lead out of itself.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ollama_prompt import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".jsonl"

GITIGNORE = """\
# The index, the locks and unfinished files can be made again; the conversations cannot.
/sessions.db
/sessions.db-*
/locks/
*.tmp
"""
GITATTRIBUTES = """\
# A conversation only grows, line by line, so that both sides of a merge are kept.
*.jsonl text eol=lf merge=union
"""


class Layout:
    """The paths of one store. `index` may lie outside `home`."""

    __slots__ = ("home", "index", "locks", "sessions")

    def __init__(self, home: str, index: str | None = None) -> None:
        self.home = os.path.abspath(home)
        self.index = os.path.abspath(index) if index else os.path.join(self.home, "sessions.db")
        self.sessions = os.path.join(self.home, "sessions")
        self.locks = os.path.join(self.home, "locks")

    def absolute(self, name: str) -> str:
        """A path relative to `sessions`, with /, as the index keeps it → the path of the file."""
        return os.path.join(self.sessions, *name.split("/"))

    def name(self, path: str) -> str:
        """The path of a session file → relative to `sessions`, with /."""
        return os.path.relpath(path, self.sessions).replace(os.sep, "/")

    def new_path(self, session_id: str, created_at: str | None = None) -> str:
        """Where a session's file is made."""
        return os.path.join(self.sessions, clock.month_of(session_id, created_at), session_id + SUFFIX)

    def lock(self, name: str) -> str:
        """The lock file of a session, or of the `index`."""
        return os.path.join(self.locks, name + ".lock")

    def make(self, folder: str | None = None) -> None:
        """Make the store, and `folder` in it, where they are missing. Raises OSError."""
        if not os.path.isdir(self.locks):
            os.makedirs(self.home, 0o700, exist_ok=True)
            for made in (self.sessions, self.locks):
                os.makedirs(made, 0o700, exist_ok=True)
            self._write_once(".gitignore", GITIGNORE)
            self._write_once(".gitattributes", GITATTRIBUTES)
        if folder and not os.path.isdir(folder):
            os.makedirs(folder, 0o700, exist_ok=True)

    def _write_once(self, name: str, text: str) -> None:
        with (
            suppress(FileExistsError),
            open(os.path.join(self.home, name), "x", encoding="utf-8", newline="\n") as file,
        ):
            file.write(text)

    def candidates(self, session_id: str) -> list[str]:
        """Files of this session where they usually lie: in `sessions` or a folder directly below it.

        Costs a look into each folder's name, not a listing of every session.
        """
        folders = [self.sessions, *self._folders()]
        paths = [os.path.join(folder, session_id + SUFFIX) for folder in folders]
        return [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.sessions) as entries:
                return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def everywhere(self, session_id: str) -> list[str]:
        """Files of this session anywhere below `sessions`."""
        return [entry.path for id_, entry in walk(self.sessions) if id_ == session_id]


def walk(folder: str, unreadable: list[tuple[str, str]] | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every session file below a folder: (session id, entry).

    A folder that cannot be read raises OSError, or is noted in `unreadable` as (path, reason).
    """
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if unreadable is None:
                raise
            unreadable.append((folder, f"cannot be read: {error.strerror}"))
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if name.endswith(SUFFIX) and len(name) == 36 + len(SUFFIX):
                    id_ = clock.parse_id(name[:36])
                    if id_ is not None and entry.is_file(follow_symlinks=False):
                        yield id_, entry
                elif not name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
