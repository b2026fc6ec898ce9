"""search.db: which documents have a word, kept in SQLite's FTS5.

An index only, like `index`: made when somebody first searches, brought up to date by what changed since, thrown away on
any doubt. It has no text, only words: of each the documents that have it. FTS5 finds whole words; what may be inside of
a word is looked for in `vocabulary` first, the list of all words.

- All words in it are in session files. What was appended is added. If text went, by an editor or with a whole file,
  it is made anew: no word of it stays. `--delete` and `--purge` remove the file.
- A document that does not count any more (taken back, another title, its file was rewritten) has no `offset`; its words
  stay, as they stay in the file. If there are more of these than of the others, it is made anew.
- Everything that SQLite can raise becomes `SearchIndexUnusable`.
"""

from __future__ import annotations

import marshal
import os
import re
import sqlite3
import zlib
from contextlib import contextmanager, suppress

from ollama_prompt import session_file
from ollama_prompt.catalogue import id_of
from ollama_prompt.documents import Documents
from ollama_prompt.folding import separate
from ollama_prompt.index import YOUNG, packed
from ollama_prompt.layout import open_new
from ollama_prompt.query import LONGEST_PIECE
from ollama_prompt.selection import Selection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ollama_prompt.index import Stamps
    from ollama_prompt.query import Piece, Scope, Word
    from ollama_prompt.selection import Found

    Progress = Callable[[int, int], None]

APPLICATION_ID = 0x6F6C7073  # "olps"
SCHEMA_VERSION = 2
MANY_WORDS = 20_000
"""A query's word that is inside of more words than this is looked for in the texts: it is in nearly all of them."""
MANY_NEW = 1_000_000
"""So many bytes of text FTS5 takes in at once: what it works with stays in the processor's cache."""
MANY_BYTES = 1_000_000
"""After so many bytes of text the vocabulary is read from FTS5; before, it is made of the texts."""
PARTS = 50
"""How many updates may add to the vocabulary before it is put together again."""
BUSY_SECONDS = 10.0
_LONGEST = 32_000
"""FTS5 cuts words at 32,768 bytes: longer ones are given to it in parts that overlap."""

_SCHEMA = f"""
CREATE TABLE files (
  file INTEGER PRIMARY KEY, path TEXT UNIQUE, session_id TEXT, model TEXT,
  stamp BLOB, end INTEGER, crc INTEGER
);
CREATE TABLE documents (document INTEGER PRIMARY KEY, file INTEGER, offset INTEGER, field TEXT, at TEXT, crc INTEGER);
CREATE INDEX by_file ON documents (file);
CREATE INDEX by_time ON documents (at);
CREATE TABLE vocabulary (words TEXT);
CREATE TABLE listed (stamps BLOB);
CREATE VIRTUAL TABLE postings USING fts5(text, content='', detail=none, columnsize=0, tokenize='ascii');
CREATE VIRTUAL TABLE terms USING fts5vocab(postings, row);
INSERT INTO postings (postings, rank) VALUES ('hashsize', 33554432);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_WORD = re.compile(r"[^\0-/:-`{-\x7f]+")


class SearchIndexUnusable(Exception):
    """The index cannot be used now."""


class Doubt(Exception):
    """Something is in the index that is in no file: it must be made anew."""


@contextmanager
def opened(path: str) -> Iterator[SearchIndex]:
    """The index at this path, to be read. Raises `SearchIndexUnusable`."""
    with _connected(path) as database:
        yield SearchIndex(database)


def update(path: str, stamps: Stamps, root: str, progress: Progress) -> None:
    """Bring the index up to date with these files (`Catalogue.stamps`): they lie in `root`.

    Raises `SearchIndexUnusable`, OSError.
    """
    if os.path.exists(path):
        with suppress(SearchIndexUnusable, Doubt), _connected(path) as database:
            with _transaction(database, "BEGIN IMMEDIATE"):
                SearchIndex(database).update(stamps, root, progress)
            return
    _make(path, stamps, root, progress)


def _make(path: str, stamps: Stamps, root: str, progress: Progress) -> None:
    """Made under another name, so that nobody finds half of it. One that fails leaves nothing: the disk may be full."""
    unfinished = f"{path}.tmp"
    _discard(unfinished)
    try:
        os.close(open_new(unfinished))  # SQLite would let others read it
        with _connected(unfinished, new=True) as database:
            database.execute("PRAGMA journal_mode = OFF")
            with _transaction(database):
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                SearchIndex(database).update(stamps, root, progress)
        _discard(path)
        os.replace(unfinished, path)
    finally:
        _discard(unfinished)


def _discard(path: str) -> None:
    for name in (path, f"{path}-journal"):  # a journal belongs to that content only
        with suppress(FileNotFoundError):
            os.unlink(name)


class SearchIndex:
    """An index that is open."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._words: set[str] = set()
        self._bytes = 0
        self._last = 0
        self._new: list[tuple[int, int, int, str, str, int, str]] = []
        self._new_bytes = 0

    def is_current(self, stamps: Stamps) -> bool:
        """Whether it is of these files, as they are now (`Catalogue.stamps`).

        They come in the same order, as long as none has changed: then all are compared at once, as bytes.
        """
        return self._one("SELECT stamps FROM listed") == (marshal.dumps(stamps, 2),) or self._is_of(stamps)

    def _is_of(self, stamps: Stamps) -> bool:
        return self._stamps() == stamps

    def has(self, session_id: str) -> bool:
        """Whether it knows a session."""
        return self._one("SELECT 1 FROM files WHERE session_id = ?", session_id) is not None

    def _stamps(self) -> dict[str, bytes | None]:
        return dict(self._database.execute("SELECT path, stamp FROM files"))

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return found

    # --- Updating ------------------------------------------------------------------------------

    def update(self, stamps: Stamps, root: str, progress: Progress) -> None:
        """Take in what changed. Raises `Doubt`."""
        known = self._stamps()
        if known.keys() - stamps.keys():
            raise Doubt
        changed = [path for path, stamp in stamps.items() if known.get(path) != stamp]
        (self._last,) = self._one("SELECT ifnull(max(document), 0) FROM documents") or (0,)
        for number, path in enumerate(changed):
            progress(number, len(changed))
            try:
                self._take(path, os.path.join(root, *path.split("/")), stamps[path] == YOUNG)
            except FileNotFoundError:  # removed since it was listed
                if path in known:
                    raise Doubt from None
        self._insert_new()
        shown, stored = self._one("SELECT count(offset), count(*) FROM documents") or (0, 0)
        if stored > 2 * shown + 100:
            raise Doubt
        self._keep_vocabulary()
        self._database.execute("DELETE FROM listed")
        if self._is_of(stamps):  # what is young, or was changed meanwhile, is not
            self._database.execute("INSERT INTO listed VALUES (?)", (marshal.dumps(stamps, 2),))

    def _take(self, path: str, absolute: str, is_young: bool) -> None:
        data, stamp = session_file.read_all(absolute)
        found = Documents(data, id_of(path))
        file, end, crc = self._file(path)
        query = "SELECT document, offset, field, crc FROM documents WHERE file = ?"
        known = self._database.execute(query, (file,)).fetchall()
        if zlib.crc32(memoryview(data)[:end]) != crc:  # not only appended to
            if not {row[3] for row in known} <= found.crcs():
                raise Doubt
            self._hide(row[0] for row in known)
            known = []
        self._add(file, found, known)
        known_stamp = None if is_young else packed(*stamp)  # None: read again
        read = (found.model, known_stamp, found.end, zlib.crc32(memoryview(data)[: found.end]))
        self._database.execute("UPDATE files SET model = ?, stamp = ?, end = ?, crc = ? WHERE file = ?", (*read, file))

    def _file(self, path: str) -> tuple[int, int, int]:
        """Its number, and what of it was read: how many bytes, with which CRC-32."""
        new = (path, id_of(path), 0, 0)
        self._database.execute("INSERT OR IGNORE INTO files (path, session_id, end, crc) VALUES (?, ?, ?, ?)", new)
        return self._one("SELECT file, end, crc FROM files WHERE path = ?", path) or (0, 0, 0)

    def _add(self, file: int, found: Documents, known: list[tuple[Any, ...]]) -> None:
        """Add what is new, and hide what is not found any more."""
        there = {(offset, field): document for document, offset, field, _ in known if offset is not None}
        for each in found.shown():
            if there.pop((each.offset, each.field), None) is None:
                self._insert(file, each.offset, each.field, each.at, each.text)
        self._hide(there.values())

    def _insert(self, file: int, offset: int, field: str, at: str, text: str) -> None:
        crc = zlib.crc32(text.encode())
        text = separate(text)
        if len(text) > _LONGEST // 4:  # a character may take four bytes
            text = _in_parts(text)
        self._bytes += len(text)
        if self._bytes <= MANY_BYTES:
            self._words.update(_WORD.findall(text))
        self._last += 1
        self._new.append((self._last, file, offset, field, at, crc, text))
        self._new_bytes += len(text)
        if self._new_bytes > MANY_NEW:
            self._insert_new()

    def _insert_new(self) -> None:
        self._database.executemany(
            "INSERT INTO documents (document, file, offset, field, at, crc) VALUES (?, ?, ?, ?, ?, ?)",
            (new[:-1] for new in self._new),
        )
        texts = ((new[0], new[-1]) for new in self._new)
        self._database.executemany("INSERT INTO postings (rowid, text) VALUES (?, ?)", texts)
        self._new, self._new_bytes = [], 0

    def _hide(self, documents: Iterable[int]) -> None:
        self._database.executemany(
            "UPDATE documents SET offset = NULL WHERE document = ?", ((document,) for document in documents)
        )

    def _keep_vocabulary(self) -> None:
        parts = self._one("SELECT count(*) FROM vocabulary") or (0,)
        words: Iterable[str] = self._words
        if self._bytes > MANY_BYTES or parts[0] >= PARTS:
            self._database.execute("DELETE FROM vocabulary")
            words = (row[0] for row in self._database.execute("SELECT term FROM terms"))
        if joined := "\n".join(words):
            self._database.execute("INSERT INTO vocabulary VALUES (?)", (joined,))

    # --- Searching -----------------------------------------------------------------------------

    def find(
        self, words: list[Word], scope: Scope, limit: int | None, best_first: bool
    ) -> tuple[bool, list[Found], int]:
        """(Whether what is found has all words, that, how many there are without the limit).

        The newest or the best come first. What may not have all words comes without a limit.
        """
        pieces = [(piece[0], terms) for piece, terms in self._terms(words)]
        is_exact = all(word.is_exact for word in words) and all(terms is not None for _, terms in pieces)
        selection = Selection(self._database, scope)
        for piece, terms in pieces:
            if terms is None:
                continue
            if not terms:
                return is_exact, [], 0
            if is_exact and best_first:
                selection.require_ranked(piece, terms)
            else:
                selection.require(terms)
        return is_exact, *selection.first(limit if is_exact else None)

    def _terms(self, words: list[Word]) -> Iterator[tuple[Piece, set[str] | None]]:
        """Each piece of the words, and what words of the index have it: None if they are too many."""
        parts = (row[0] for row in self._database.execute("SELECT words FROM vocabulary"))
        vocabulary = "\n".join(["", *parts, ""])
        for piece in (piece for word in words for piece in word.pieces):
            yield piece, _terms(vocabulary, piece)


def _terms(vocabulary: str, piece: Piece) -> set[str] | None:
    """The words that have this piece in the right place; None if they are too many."""
    text, may_begin_before, may_go_on = piece
    if not (may_begin_before or may_go_on):
        return {text}
    sought = ("" if may_begin_before else "\n") + text + ("" if may_go_on else "\n")
    terms: set[str] = set()
    at = vocabulary.find(sought)
    while at >= 0:
        start = vocabulary.rfind("\n", 0, at + 1) + 1
        end = vocabulary.index("\n", at + 1)
        terms.add(vocabulary[start:end])
        if len(terms) > MANY_WORDS:
            return None
        at = vocabulary.find(sought, end)
    return terms


def _in_parts(text: str) -> str:
    """Words that FTS5 would cut, in parts such that everything shorter than the overlap is in one of them."""
    step = _LONGEST // 4 - LONGEST_PIECE  # a character may take four bytes

    def parts(found: re.Match[str]) -> str:
        word = found[0]
        return " ".join(word[at : at + step + LONGEST_PIECE] for at in range(0, len(word), step))

    return _WORD.sub(parts, text)


@contextmanager
def _connected(path: str, new: bool = False) -> Iterator[sqlite3.Connection]:
    if not (new or os.path.isfile(path)):
        raise SearchIndexUnusable("there is none")
    with _translated():
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            if not new and database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise SearchIndexUnusable("not ours")
            if not new and database.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                raise SearchIndexUnusable("of another release")
            yield database
        finally:
            database.close()


@contextmanager
def _transaction(database: sqlite3.Connection, begin: str = "BEGIN") -> Iterator[None]:
    database.execute(begin)
    yield
    database.execute("COMMIT")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
        raise SearchIndexUnusable(str(error)) from error
