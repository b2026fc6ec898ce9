"""Documents of `search_index`, selected in SQL: those that have what is required of them.

Each requirement is a set of words, of which a document must have one:

- a small set becomes part of the FTS5 expression (`matching`);
- a large one, or one where it matters which word it is, becomes a table of documents (`gathered`): FTS5 slows down
  with the square of the words in an expression.

SQLite goes through both and the documents side by side, and only what is shown comes to Python. Where many documents
match, the newest of all are looked at one by one first: what is shown is likely to be among them.
"""

from __future__ import annotations

from ollama_prompt.query import rank_of_term

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from typing import Any

    from ollama_prompt.query import Scope

    Found = tuple[str, str, int, str, str, int]
    """A document that may match: path below `sessions`, session, offset, field, time, how well."""

MANY_TERMS = 100
"""Up to so many words FTS5 is as fast with one expression as with one for each."""
MANY_DOCUMENTS = 5_000
"""If more than these match, the newest of all are looked at first: there must be as many."""
NEWEST = 1_000
"""So many are these: one takes as long as ten do where all are gone through."""
FEW_TERMS = 3
"""It takes longer with each word that is looked for in it; with more than these it does not pay."""
_NEWEST_FIRST = "at DESC, session_id DESC, offset DESC, field DESC"


class Selection:
    """The documents of a scope; each requirement leaves fewer."""

    def __init__(self, database: sqlite3.Connection, scope: Scope) -> None:
        self._database = database
        self._matching: list[str] = []
        self._gathered: list[str] = []
        self._rank = "0"
        self._looks_at_newest = True
        self._conditions = ["offset IS NOT NULL", "at >= :since"]
        self._values: dict[str, Any] = {"since": scope.since, "session_id": scope.session_id, "model": scope.model}
        if scope.session_id is not None:
            self._conditions.append("documents.file IN (SELECT file FROM files WHERE session_id = :session_id)")
        if scope.model is not None:
            has_tag = "substr(model, 1, length(:model) + 1) = :model || ':'"
            self._conditions.append(f"documents.file IN (SELECT file FROM files WHERE model = :model OR {has_tag})")

    def require(self, terms: set[str]) -> None:
        """One of these words."""
        if len(terms) > MANY_TERMS:
            self._gather([(0, list(terms))])
            return
        self._matching.append(_any_of(terms))
        self._looks_at_newest &= len(terms) <= FEW_TERMS

    def require_ranked(self, piece: str, terms: set[str]) -> None:
        """One of these words; the rank of a document grows by that of the word that fits the piece best."""
        by_rank: dict[int, list[str]] = {}
        for term in terms:
            by_rank.setdefault(rank_of_term(piece, term), []).append(term)
        self._rank += f" + {self._gather(sorted(by_rank.items(), reverse=True))}.rank"
        self._looks_at_newest = False

    def _gather(self, ranked: list[tuple[int, list[str]]]) -> str:
        """Make a table; a document that is in it already, with a better rank, stays as it is. Its name."""
        table = f"gathered_{len(self._gathered)}"
        insert = f"INSERT OR IGNORE INTO {table} SELECT rowid, ? FROM postings WHERE postings MATCH ?"
        self._database.execute(f"CREATE TEMP TABLE {table} (document INTEGER PRIMARY KEY, rank INTEGER)")
        self._database.execute("BEGIN")
        for rank, terms in ranked:
            for start in range(0, len(terms), MANY_TERMS):
                self._database.execute(insert, (rank, _any_of(terms[start : start + MANY_TERMS])))
        self._database.execute("COMMIT")
        self._gathered.append(table)
        self._conditions.append(f"{table}.document = documents.document")
        return table

    def first(self, limit: int | None) -> tuple[list[Found], int]:
        """The best and of equals the newest, or all; and how many all are."""
        tables = self._gathered[:]
        if self._matching:
            tables.insert(0, "postings")
            self._conditions += ["postings MATCH :matching", "postings.rowid = documents.document"]
            self._values["matching"] = " AND ".join(self._matching)
        if limit is None:
            found = self._rows([*tables, "documents"])
            return found, len(found)
        ((total,),) = self._select("count(*)", [*tables, "documents"])
        if total > MANY_DOCUMENTS and self._looks_at_newest:
            found = self._rows(["documents INDEXED BY by_time", *tables], limit, self._begin_of_newest())
            if len(found) == limit:
                return found, total
        return self._rows([*tables, "documents"], limit), total

    def _begin_of_newest(self) -> str:
        query = f"SELECT at FROM documents ORDER BY at DESC LIMIT 1 OFFSET {NEWEST}"
        return str(self._database.execute(query).fetchone()[0])

    def _rows(self, tables: list[str], limit: int = -1, after: str | None = None) -> list[Found]:
        """The first of them; with `after` of those that are younger."""
        columns = f"path, session_id, offset, field, at, {self._rank}"
        more = ["files.file = documents.file", *(["at > :after"] if after is not None else [])]
        # A constant rank in the order would make SQLite sort by it.
        order = _NEWEST_FIRST if self._rank == "0" else f"{self._rank} DESC, {_NEWEST_FIRST}"
        return self._select(columns, [*tables, "files"], more, f"ORDER BY {order} LIMIT {limit}", after=after)

    def _select(
        self, columns: str, tables: list[str], more: Iterable[str] = (), order: str = "", **values: Any
    ) -> list[Any]:
        # CROSS JOIN: in the order written here, else SQLite goes through all documents.
        where = " AND ".join([*self._conditions, *more])
        query = f"SELECT {columns} FROM {' CROSS JOIN '.join(tables)} WHERE {where} {order}"
        return self._database.execute(query, self._values | values).fetchall()


def _any_of(terms: Iterable[str]) -> str:
    return "(" + " OR ".join(f'"{term}"' for term in terms) + ")"
