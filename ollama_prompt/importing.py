"""Bringing in conversations of other programs: `--import`, and a 1.x database in the index's place.

Each conversation becomes one session under ids of its own (`drafts`): importing it again adds what is new, and
nothing twice. Where one cannot be kept, the others are.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from ollama_prompt import foreign
from ollama_prompt.errors import ImportFailed, OllamaPromptError, StoreError, StoreUnreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ollama_prompt.drafts import Conversation
    from ollama_prompt.indexer import Indexer

ADOPTION_SECONDS = 600.0
"""How long to wait while another process imports the database of ollama-prompt 1.x."""
ADOPTION_ATTEMPTS = 20
"""How often that is read until no process of 1.x has written to it meanwhile."""
SESSION_SECONDS = 10.0
"""How long an adoption waits for a session that it adds to."""


def adopt_1x(indexer: Indexer) -> None:
    """Import a database of ollama-prompt 1.x that lies where our index belongs, and set it aside.

    Whoever comes meanwhile waits for it: the sessions that it looks for may be in there. If it cannot be done,
    the database stays, and all works without an index.
    """
    path = indexer.layout.index
    if not foreign.is_1x(path):
        return
    indexer.catalogue.is_silent = True  # all that is to be said of it is said here
    try:
        with indexer.lock("index", ADOPTION_SECONDS, indexer.note_waiting):
            if not foreign.is_1x(path):
                return  # another process did it
            indexer.note(f"{path} is a database of ollama-prompt 1.x: importing its sessions …")
            imported, known, aside = _import_and_set_aside(indexer, path)
    except (OllamaPromptError, OSError) as error:
        indexer.note(f"{path} stays where it is, and the next start tries again: {error}")
        return
    indexer.adopted = dict.fromkeys((path, aside), (imported, known))
    indexer.note(f"sessions imported: {len(imported)}; the database is kept as {aside}")


def import_from(indexer: Indexer, path: str, lock_timeout: float) -> tuple[list[str], int]:
    """Keep the conversations of another program: (the sessions that something was added to, how many had nothing).

    What cannot be kept holds up nothing else; it is raised at the end. Raises `ImportFailed`, `SessionBusy`,
    `StoreError`s.
    """
    if adopted := indexer.adopted.get(os.path.abspath(path)):
        return adopted
    imported: list[str] = []
    failed: list[StoreError] = []
    skipped = 0
    there = _sessions_there(indexer)
    with foreign.read(path, indexer.note) as (total, conversations):
        for number, conversation in enumerate(conversations):
            indexer.progress(number, total)
            try:
                session_id = _bring_in(indexer, conversation, there, lock_timeout)
            except StoreError as error:
                failed.append(error)
                continue
            imported += [session_id] if session_id else []
            skipped += not session_id
    if failed:
        failed[0].message += f"; {len(imported)} sessions were imported"
        raise failed[0]
    return imported, skipped


def _sessions_there(indexer: Indexer) -> set[str] | None:
    """The sessions that have a file, read once: not all folders for each new one. None where some cannot be read."""
    try:
        return set(indexer.session_ids())
    except StoreUnreadable:
        return None


def _bring_in(indexer: Indexer, conversation: Conversation, there: set[str] | None, lock_timeout: float) -> str | None:
    """Keep a conversation of another program, or what is new of it; its session, None if nothing is new.

    `there` is what `_sessions_there` found before the first one. Raises `StoreError`s.
    """
    # It may be there under a later id, because what had an earlier one was deleted.
    for session_id in sorted(conversation.ids, key=lambda id_: id_ not in (there or ())):
        # What another process made meanwhile lies where it was made.
        deep = None if there is None or session_id in there else False
        with indexer.lock(session_id, lock_timeout):
            if not indexer.files_of(session_id, deep=deep)[0]:
                _make(indexer, session_id, conversation)
                return session_id
            with indexer.opened(session_id) as held:
                known = held.known_ids()
                if conversation.is_in(session_id, known):
                    new = [record for record in conversation.records if record["id"] not in known]
                    if new:
                        held.add(new, conversation.images)
                    return session_id if new else None
    return None


def _make(indexer: Indexer, session_id: str, conversation: Conversation) -> None:
    """Make a session, whose lock the caller holds, of a conversation of another program."""
    held = indexer.held(session_id)
    try:
        held.copy(conversation.header | {"session_id": session_id}, conversation.records, conversation.images)
    finally:
        if held.path is None:
            indexer.discard_lock(session_id)


def _import_and_set_aside(indexer: Indexer, path: str) -> tuple[list[str], int, str]:
    """What lies in the index's place, until nobody has written to it meanwhile: (imported, known, its new name).

    Raises as `import_from`, OSError.
    """
    imported: dict[str, None] = {}
    with ExitStack() as stack:
        is_still = stack.enter_context(foreign.watched(path))
        for _ in range(ADOPTION_ATTEMPTS):
            new, known = indexer.import_from(path, SESSION_SECONDS)
            imported.update(dict.fromkeys(new))
            if is_still():
                break
        else:
            raise ImportFailed(f"{path} is written to again and again")
        known -= len(imported) - len(new)
        if sys.platform == "win32":
            stack.close()  # there, a file that is open cannot be renamed, and so nobody else has it open
        return list(imported), known, indexer.layout.set_aside_index()
