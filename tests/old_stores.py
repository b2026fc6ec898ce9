"""Databases of other programs as tests make them: their tables as their releases made them, without the programs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    Json = dict[str, Any]

TABLES_1X = """
CREATE TABLE sessions (
  session_id TEXT PRIMARY KEY, context TEXT NOT NULL DEFAULT '', created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
  last_used TIMESTAMP DEFAULT CURRENT_TIMESTAMP, max_context_tokens INTEGER DEFAULT 64000, history_json TEXT,
  metadata_json TEXT, model_name TEXT, system_prompt TEXT
);
CREATE INDEX idx_sessions_last_used ON sessions(last_used);
CREATE INDEX idx_sessions_model ON sessions(model_name);
"""

TABLES_LLM_02 = """
CREATE TABLE log (provider TEXT, system TEXT, prompt TEXT, response TEXT, model TEXT, timestamp TEXT);
"""
TABLES_LLM_04 = """
CREATE TABLE _llm_migrations (name TEXT PRIMARY KEY, applied_at TEXT);
CREATE TABLE log (
  id INTEGER PRIMARY KEY, model TEXT, timestamp TEXT, prompt TEXT, system TEXT, response TEXT,
  chat_id INTEGER REFERENCES log(id), debug TEXT, duration_ms INTEGER
);
"""
TABLES_LLM_05 = """
CREATE TABLE _llm_migrations (name TEXT PRIMARY KEY, applied_at TEXT);
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
CREATE TABLE responses (
  id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT, options_json TEXT, response TEXT,
  response_json TEXT, conversation_id TEXT REFERENCES conversations(id), duration_ms INTEGER, datetime_utc TEXT
);
"""
TABLES_LLM_27 = (
    TABLES_LLM_05
    + """
ALTER TABLE responses ADD COLUMN input_tokens INTEGER;
ALTER TABLE responses ADD COLUMN output_tokens INTEGER;
ALTER TABLE responses ADD COLUMN token_details TEXT;
ALTER TABLE responses ADD COLUMN resolved_model TEXT;
CREATE TABLE attachments (id TEXT PRIMARY KEY, type TEXT, path TEXT, url TEXT, content BLOB);
CREATE TABLE prompt_attachments (
  response_id TEXT, attachment_id TEXT, "order" INTEGER, PRIMARY KEY (response_id, attachment_id)
);
CREATE TABLE fragments (id INTEGER PRIMARY KEY, hash TEXT, content TEXT, datetime_utc TEXT, source TEXT);
CREATE TABLE prompt_fragments (
  response_id TEXT, fragment_id INTEGER, "order" INTEGER, PRIMARY KEY (response_id, fragment_id, "order")
);
CREATE TABLE system_fragments (
  response_id TEXT, fragment_id INTEGER, "order" INTEGER, PRIMARY KEY (response_id, fragment_id, "order")
);
CREATE TABLE tool_calls (
  id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT, arguments TEXT, tool_call_id TEXT
);
CREATE TABLE tool_results (
  id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT, output TEXT, tool_call_id TEXT
);
"""
)
TABLES_LLM_36 = (
    TABLES_LLM_27
    + """
ALTER TABLE responses ADD COLUMN reasoning TEXT;
CREATE TABLE messages (hash TEXT PRIMARY KEY, parent_hash TEXT, role TEXT, provider_metadata TEXT);
CREATE TABLE parts (
  id INTEGER PRIMARY KEY, message_hash TEXT, position INTEGER, type TEXT, tool_name TEXT, text TEXT, payload TEXT
);
CREATE UNIQUE INDEX idx_parts_message_hash_position ON parts(message_hash, position);
CREATE TABLE threads (id TEXT PRIMARY KEY, name TEXT, tip_message_hash TEXT, forked_from TEXT, datetime_utc TEXT);
CREATE TABLE turns (
  id TEXT PRIMARY KEY, thread_id TEXT, parent_message_hash TEXT, tip_message_hash TEXT, model TEXT,
  resolved_model TEXT, options_json TEXT, schema_id TEXT, input_tokens INTEGER, output_tokens INTEGER,
  token_details TEXT, duration_ms INTEGER, datetime_utc TEXT, response_json TEXT
);
"""
)


def make(path: Path, tables: str, rows: Iterable[tuple[str, Json]] = ()) -> Path:
    """A database with these tables and rows; also more rows for one that is there, with no tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(tables)
        for table, row in rows:
            insert(database, table, row)
    return path


def insert(database: sqlite3.Connection, table: str, row: Json) -> None:
    """Add a row, by its columns."""
    named = ", ".join(f'"{column}"' for column in row)
    database.execute(f"INSERT INTO {table} ({named}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))


def said(number: int, role: str, content: str) -> Json:
    """A message in the history of 1.x; its number gives its time, which is local, and the same for both of a turn."""
    time = f"2026-03-0{1 + number // 86400}T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.123456"
    return {"role": role, "content": content, "timestamp": time, "tokens": max(1, len(content) // 4)}


def session_1x(session_id: str, messages: list[Json], **more: Any) -> tuple[str, Json]:
    """A session as 1.x keeps it; used last when its last message was said."""
    times = [message["timestamp"] for message in messages if "timestamp" in message] or ["2026-03-01T00:00:00.000000"]
    row = {
        "session_id": session_id,
        "context": "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in messages),
        "created_at": "2026-03-01T00:00:00.000001",
        "last_used": times[-1],
        "max_context_tokens": 64000,
        "history_json": json.dumps({"messages": messages}),
        "model_name": "llama3.2",
    }
    return "sessions", {**row, **more}


def make_1x(path: Path, *sessions: tuple[str, Json]) -> Path:
    """The database of 1.x."""
    return make(path, TABLES_1X, sessions)


def response(
    id_: str | None, conversation: str | None, prompt: str | None, answer: str, **more: Any
) -> tuple[str, Json]:
    """An answer as llm kept it from 0.5 to 0.31."""
    row = {"id": id_, "conversation_id": conversation, "prompt": prompt, "response": answer, "model": "smollm2"}
    return "responses", {**row, "options_json": "{}", "datetime_utc": "2026-03-01T10:00:00.123456+00:00", **more}


def chain(*messages: tuple[str, str, str]) -> list[tuple[str, Json]]:
    """Messages of llm's tree, each (hash, role, text), each behind the one before it."""
    rows: list[tuple[str, Json]] = []
    parent = None
    for hash_, role, text in messages:
        rows.append(("messages", {"hash": hash_, "parent_hash": parent, "role": role}))
        rows.append(("parts", {"message_hash": hash_, "position": 0, "type": "text", "text": text}))
        parent = hash_
    return rows


def turn(id_: str, thread: str, parent: str | None, tip: str | None, **more: Any) -> tuple[str, Json]:
    """An answer as llm keeps it from 0.32 on: what it was given ends in `parent`, what it added in `tip`."""
    row = {"id": id_, "thread_id": thread, "parent_message_hash": parent, "tip_message_hash": tip, "model": "smollm2"}
    return "turns", {**row, "datetime_utc": "2026-03-01T10:00:00.123456+00:00", **more}
