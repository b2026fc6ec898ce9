"""Conversations of other programs → our records. Reads only; what is made of them is stored elsewhere.

    with read(path, note) as (total, conversations)     how many there are at most, and each as a Conversation
      foreign_1x        a database of ollama-prompt 1.x
      foreign_llm       a database of llm
      foreign_json      a list of messages, or an object with some

Invariants:
- Reading again gives the same ids (see `drafts`), so that what is stored already is known.
- Nothing is written to a source, nor beside it.
- What is broken is left out with a note, the rest is read. All else that goes wrong is `ImportFailed`.
- Memory is taken for one conversation, and a few bytes for each answer of a database.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager

from ollama_prompt import foreign_1x, foreign_database, foreign_json, foreign_llm
from ollama_prompt.errors import ImportFailed
from ollama_prompt.foreign_database import MAGIC, cannot_read, opened
from ollama_prompt.text import valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ollama_prompt.drafts import Note
    from ollama_prompt.foreign_database import Found

_TAKEN = "name the sessions.db of ollama-prompt 1.x, the logs.db of llm, or a file with a JSON list of messages"

watched = foreign_database.watched


@contextmanager
def read(path: str, note: Note) -> Iterator[Found]:
    """The conversations in a file, to be gone through once. Raises `ImportFailed`, also on the way."""
    with ExitStack() as stack:
        yield _found(path, note, stack)


def _found(path: str, note: Note, stack: ExitStack) -> Found:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device has no end
            raise ImportFailed(f"{valid_text(path)} is no file", hint=_TAKEN)
        with open(path, "rb") as file:
            head, file_time = file.read(len(MAGIC)), os.fstat(file.fileno()).st_mtime
            data = head + file.read() if head != MAGIC else b""
    except (OSError, ValueError, MemoryError) as error:
        raise cannot_read(path, error) from error
    if head != MAGIC:
        return 1, [foreign_json.conversation(path, data, file_time, note)]
    database = stack.enter_context(opened(path))
    if foreign_1x.is_in(database):
        return foreign_1x.conversations(database, note)
    if foreign_llm.is_in(database):
        return foreign_llm.conversations(database, note)
    if database.columns("files") and database.columns("readings"):
        hint = "the conversations are the files in the folder sessions: copy those into another store's"
        raise ImportFailed(f"{valid_text(path)} is only the index of ollama-prompt", hint=hint)
    raise ImportFailed(f"{valid_text(path)} is a database of another program", hint=_TAKEN)


def is_1x(path: str) -> bool:
    """Whether a file looks like a database of ollama-prompt 1.x, also one that is locked. Never raises."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            head = file.read(foreign_1x.LARGEST_PAGE)
    except (OSError, ValueError):
        return False
    return head.startswith(MAGIC) and foreign_1x.is_named_in(head)


def left_by_1x(environ: Mapping[str, str], set_aside: Iterable[str] = ()) -> list[str]:
    """The databases that ollama-prompt 1.x has left, those too that we have `set_aside`.

    Where it was told to keep them apart, those in its usual places are none of theirs.
    """
    told = environ.get("OLLAMA_PROMPT_DB_PATH")
    found = list(filter(is_1x, [told, *set_aside])) if told else []
    return found or list(filter(is_1x, [*usual_places(environ), *set_aside]))


def usual_places(environ: Mapping[str, str]) -> list[str]:
    """Where ollama-prompt 1.x kept its database unless it was told: by its code, and by its manual."""
    home = os.path.expanduser("~")
    settings = os.path.join(home, ".config")
    if sys.platform == "win32":
        settings = environ.get("APPDATA") or home
    return [
        os.path.join(settings, "ollama-prompt", "sessions.db"),
        os.path.join(home, ".ollama-prompt", "sessions.db"),
    ]
