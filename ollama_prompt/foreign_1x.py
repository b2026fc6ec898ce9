"""ollama-prompt 1.x: one row a session, its messages as JSON, times in local time without a zone."""

from __future__ import annotations

from ollama_prompt.foreign_json import Said, session
from ollama_prompt.foreign_values import json_of, settings_of, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ollama_prompt.drafts import Conversation, Note
    from ollama_prompt.foreign_database import Database, Found
    from ollama_prompt.foreign_values import Row

_COLUMNS = (
    "session_id", "created_at", "last_used", "max_context_tokens", "history_json", "model_name", "system_prompt",
)  # fmt: skip
LARGEST_PAGE = 65_536
"""Bytes that a page of a database may have. The first one, or the first few small ones, name its tables."""
_USUAL_PAGE = 4096


def is_named_in(head: bytes) -> bool:
    """Whether a database that begins so names the table of ollama-prompt 1.x; what is said behind that is only text."""
    size = int.from_bytes(head[16:18], "big")
    page = head[: LARGEST_PAGE if size == 1 else max(size, _USUAL_PAGE)]
    return all(name in page for name in (b"CREATE TABLE sessions", b"history_json", b"last_used"))


def is_in(database: Database) -> bool:
    """Whether a database is one of ollama-prompt 1.x."""
    return database.columns("sessions") >= {"session_id", "history_json", "last_used"}


def conversations(database: Database, note: Note) -> Found:
    """Its sessions, in the order in which they began."""
    rows = database.rows("SELECT rowid, session_id FROM sessions ORDER BY rowid")

    def conversation(rowid: int) -> Conversation | None:
        found = database.select("sessions", _COLUMNS, "rowid = ?", rowid)
        return _conversation(found[0], note) if found else None

    return len(rows), database.each(((f"session {text_of(own)}", rowid) for rowid, own in rows), conversation, note)


def _conversation(row: Row, note: Note) -> Conversation | None:
    """A session; it has no messages if its first prompt was never answered."""
    own = text_of(row["session_id"])
    history = json_of(row["history_json"])
    messages = history.get("messages") if isinstance(history, dict) else history
    if not isinstance(messages, list):
        note(f"session {own}: left out: its history is no list of messages")
        return None
    said = []
    for number, message in enumerate(messages, 1):
        try:
            said.append(Said(message))
        except ValueError as error:
            note(f"session {own}: left out: message {number}, which {error}")
    return session({"format": "ollama-prompt 1.x", "id": own}, row, settings_of(row), said, note)
