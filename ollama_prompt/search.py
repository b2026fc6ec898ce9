"""Searching what was said: the documents (`documents`) that have every word of a query (`query`).

`search_index` finds them fast; where it cannot be had, because SQLite lacks FTS5 or nothing can be written, `_scan`
finds the same by reading every file. What the index cannot decide, a word with punctuation in it for example, is looked
up in the text of those documents that may have it.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby

from ollama_prompt import records, session_file
from ollama_prompt.catalogue import id_of
from ollama_prompt.clock import whole_seconds
from ollama_prompt.documents import Documents, text_of
from ollama_prompt.errors import StoreError, UsageError
from ollama_prompt.query import rank_of, snippet, words_of
from ollama_prompt.search_index import SearchIndexUnusable, opened, update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ollama_prompt.index import Stamps
    from ollama_prompt.indexer import Indexer
    from ollama_prompt.query import Scope, Word
    from ollama_prompt.records import Record
    from ollama_prompt.search_index import SearchIndex
    from ollama_prompt.selection import Found

    Answer = tuple[bool, list[Found], int]
    """As `SearchIndex.find` gives it."""

SMALL_BLOCK = 1 << 13
"""Bytes to read at once where one line of a file is wanted."""
MAKING_SECONDS = 600.0
"""How long to wait while another process makes the index."""


def search(
    indexer: Indexer, query: str, scope: Scope, limit: int | None, best_first: bool
) -> tuple[list[dict[str, Any]], int]:
    """The newest matches, or the best; and how many there are without `limit`. Raises `UsageError`, `SessionNotFound`,
    `StoreError`s.
    """
    words = words_of(query)
    if not words:
        raise UsageError("there is nothing to search for", hint='ollama-prompt --search "some words"')
    if scope.session_id is not None:
        indexer.find(scope.session_id)
    stamps = indexer.catalogue.stamps()
    found, total = _matching(indexer, words, scope, stamps, limit, best_first) if stamps else ([], 0)
    rows = indexer.catalogue.at({each[0] for each in found})
    matches = [_match(indexer, each, words, rows[each[0]].title) for each in found if each[0] in rows]
    return [match for match in matches if match], total


def _matching(
    indexer: Indexer, words: list[Word], scope: Scope, stamps: Stamps, limit: int | None, best_first: bool
) -> tuple[list[Found], int]:
    """What is shown of all that match, and how many these are."""
    try:
        is_exact, found, total = _from_index(indexer, stamps, lambda index: index.find(words, scope, limit, best_first))
        if is_exact:
            return found, total
        matching = list(_looked_up(indexer, words, found))
    except (SearchIndexUnusable, OSError, StoreError):
        matching = list(_scan(indexer, words, scope, stamps))
    matching.sort(key=lambda each: (each[5] if best_first else 0, each[4], *each[1:4]), reverse=True)
    return matching[:limit], len(matching)


def _from_index(indexer: Indexer, stamps: Stamps, find: Callable[[SearchIndex], Answer]) -> Answer:
    """Ask the index, once it is current. Raises `SearchIndexUnusable`, OSError, `StoreError`s."""
    path = indexer.layout.search
    with suppress(SearchIndexUnusable), opened(path) as index:
        if index.is_current(stamps):
            return find(index)
    with indexer.lock("search", MAKING_SECONDS, indexer.note_waiting):
        update(path, stamps, indexer.layout.sessions, indexer.progress)
    with opened(path) as index:
        return find(index)


def _looked_up(indexer: Indexer, words: list[Word], found: list[Found]) -> Iterator[Found]:
    """Those whose text matches, and how well."""
    for path, group in groupby(sorted(found), key=lambda each: each[0]):
        with suppress(OSError), session_file.opened(indexer.layout.absolute(path), SMALL_BLOCK) as file:
            for each in group:
                file.seek(each[2])
                with suppress(records.DamagedLine, LookupError):
                    rank = rank_of(words, text_of(records.decode(file.readline()), each[3]))
                    if rank is not None:
                        yield (*each[:5], rank)


def _scan(indexer: Indexer, words: list[Word], scope: Scope, stamps: Stamps) -> Iterator[Found]:
    """The same as the index finds, from the files alone."""
    for path in stamps:
        session_id = id_of(path)
        if scope.session_id not in {None, session_id}:
            continue
        with suppress(OSError):
            found = Documents(session_file.read_all(indexer.layout.absolute(path))[0], session_id)
            if not scope.has_model(found.model):
                continue
            for each in found.shown():
                rank = rank_of(words, each.text) if each.at >= scope.since else None
                if rank is not None:
                    yield path, session_id, each.offset, each.field, each.at, rank


def _match(indexer: Indexer, found: Found, words: list[Word], title: str | None) -> dict[str, Any] | None:
    """A match as it is printed; None if its file was changed since."""
    path, session_id, offset, field, at, _ = found
    try:
        with session_file.opened(indexer.layout.absolute(path), SMALL_BLOCK) as file:
            file.seek(offset)
            record: Record = records.decode(file.readline())
            text = text_of(record, field)
    except (OSError, records.DamagedLine, LookupError):
        return None
    is_message = not field
    return {
        "session_id": session_id,
        "title": title,
        "message_id": record.get("id") if is_message else None,
        "role": record["role"] if is_message else "system" if field == "system" else None,
        "created_at": whole_seconds(at),
        "snippet": snippet(text, words),
    }
