"""llm: up to three generations of tables in one database, side by side.

    log, logs            until 0.4: an answer a row, `chat_id` names the first of its chat
    responses            until 0.31: an answer a row, its prompt beside it, fragments and attachments in other tables
    turns, messages      from 0.32 on: a turn names two ends in a tree of messages, each of which names the one before

A conversation can have answers in `responses` and go on in `turns`. What a turn was given holds all that was said
before; that is skipped.
"""

from __future__ import annotations

import re

from ollama_prompt import clock
from ollama_prompt.drafts import Draft, derived_id
from ollama_prompt.foreign_values import facts_of, object_of, settings_of, text_of, time_of
from ollama_prompt.text import LARGEST_INTEGER, valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ollama_prompt.drafts import Conversation, Note
    from ollama_prompt.foreign_database import Database, Found
    from ollama_prompt.foreign_values import Row
    from ollama_prompt.records import Record

_ANSWERS = {"log": "chat_id", "logs": "chat_id", "responses": "conversation_id", "turns": "thread_id"}
"""The tables that hold answers, in the order of their age, and the column that names the conversation."""
_RESPONSE = (
    "id", "rowid", "model", "prompt", "system", "options_json", "response", "reasoning", "response_json",
    "datetime_utc", "timestamp",
)  # fmt: skip
_TURN = ("id", "parent_message_hash", "tip_message_hash", "model", "options_json", "response_json", "datetime_utc")
_JOINED = 'SELECT {} FROM {links} JOIN {table} ON {table}.id = {links}.{key} WHERE response_id = ? ORDER BY "order"'
_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}", re.ASCII)
_ULID_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def is_in(database: Database) -> bool:
    """Whether a database is one of llm."""
    older = any(database.columns(table) >= {"prompt", "response", "model"} for table in ("log", "logs", "responses"))
    return older or database.columns("turns") >= {"id", "thread_id", "tip_message_hash"}


def conversations(database: Database, note: Note) -> Found:
    """Its conversations, oldest first."""
    found: dict[tuple[bool, str], list[tuple[str, int]]] = {}  # is it a chat of old, its id → its rows
    for table in filter(database.columns, _ANSWERS):
        # A response that is a turn too was written into both, by releases in between.
        is_double = table == "responses" and database.columns("turns")
        both = " WHERE id NOT IN (SELECT id FROM turns WHERE id NOTNULL)" if is_double else ""
        query = f"SELECT rowid, {_key(database, table)} FROM {table}{both} ORDER BY rowid"
        for rowid, own in database.rows(query):
            if own is None:
                note(f"left out: row {rowid} of {table}, which has no id")
            else:
                found.setdefault((table.startswith("log"), text_of(own)), []).append((table, rowid))
    items = [(f"llm's conversation {own}", (is_chat, own, rows)) for (is_chat, own), rows in found.items()]
    return len(items), database.each(items, _Reader(database, note).conversation, note)


def _key(database: Database, table: str) -> str:
    """What tells the conversation of an answer: its name; else, as in chats of old, the id of its first answer."""
    there = database.columns(table)
    named = f"nullif({_ANSWERS[table]}, '')" if _ANSWERS[table] in there else "NULL"
    return f"CAST(coalesce({named}, {'id' if 'id' in there else 'rowid'}) AS TEXT)"


def _start_of_ulid(own: str) -> int:
    """The time, in milliseconds, that a ULID begins with; 0 for other ids."""
    if not _ULID.fullmatch(own.lower()):
        return 0
    number = 0
    for digit in own.lower()[:10]:
        number = number * 32 + _ULID_DIGITS.index(digit)
    return number


class _Reader:
    """Answers → conversations."""

    def __init__(self, database: Database, note: Note) -> None:
        self._database = database
        self._note = note
        self._results = self._by_response("tool_results")
        self._calls = self._by_response("tool_calls")

    def _by_response(self, table: str) -> dict[str, list[int]]:
        """The rows of a table that has no index, by the response that they belong to."""
        found: dict[str, list[int]] = {}
        if self._database.columns(table):
            for response, rowid in self._database.rows(f"SELECT response_id, rowid FROM {table} ORDER BY rowid"):
                found.setdefault(text_of(response), []).append(rowid)
        return found

    def conversation(self, item: tuple[bool, str, list[tuple[str, int]]]) -> Conversation | None:
        """The conversation with this id, which has answers in these rows of these tables."""
        is_chat, own, members = item
        rows = [(table, row) for table, rowid in members for row in self._row(table, rowid)]
        if not rows:
            return None
        # Chats have numbers, the same in every database: the time tells them apart.
        seed = ["chat", text_of(rows[0][1]["datetime_utc"] or rows[0][1]["timestamp"])] if is_chat else []
        start = _start_of_ulid(own)
        session_id = clock.parse_id(own) or derived_id(start, "llm", *seed, own)
        draft = Draft(f"llm's conversation {own}", session_id, self._note, start)
        tree = _Tree(self._database, draft)
        for table, row in rows:
            if table == "turns":
                tree.add_turn(row)
            else:
                self._add_response(draft, row)
        return draft.done({"format": "llm", "id": own})

    def _row(self, table: str, rowid: int) -> list[Row]:
        return self._database.select(table, _TURN if table == "turns" else _RESPONSE, "rowid = ?", rowid)

    def _add_response(self, draft: Draft, row: Row) -> None:
        own = text_of(row["id"] if row["id"] is not None else row["rowid"])
        time = time_of(row["datetime_utc"] or row["timestamp"])
        system = [*self._fragments("system_fragments", own), text_of(row["system"])]
        prompt = [*self._fragments("prompt_fragments", own), text_of(row["prompt"])]
        draft.set(_settings(row, "\n\n".join(text.strip() for text in system if text.strip())), time, own)
        for rowid in self._results.get(own, ()):
            for result in self._database.select("tool_results", ("output",), "rowid = ?", rowid):
                draft.say(draft.id_of(own, "tool"), "tool", text_of(result["output"]), time)
        pictures = [picture for found in self._attachments(own) if (picture := draft.picture(*found))]
        content = "\n".join(text for text in prompt if text)
        if content or pictures:
            draft.say(draft.id_of(own, "user"), "user", content, time, images=pictures)
        if row["response"] is not None:
            _answer(draft, own, row, text_of(row["response"]), text_of(row["reasoning"]), own in self._calls)

    def _fragments(self, links: str, response: str) -> list[str]:
        return [text_of(row[0]) for row in self._joined("content", links, "fragments", "fragment_id", response)]

    def _attachments(self, response: str) -> list[tuple[Any, ...]]:
        return self._joined("content, path", "prompt_attachments", "attachments", "attachment_id", response)

    def _joined(self, columns: str, links: str, table: str, key: str, response: str) -> list[tuple[Any, ...]]:
        if not self._database.columns(links):
            return []
        return self._database.rows(_JOINED.format(columns, links=links, table=table, key=key), response)


def _settings(row: Row, system: str) -> Record:
    """The settings of one answer. No system prompt does not mean that the earlier one was taken away."""
    options = object_of(row["options_json"])
    return {"options": {}, **settings_of({"model": row["model"], "system": system, "options": options})}


def _answer(draft: Draft, own: str, row: Row, said: str, thinking: str, has_call: bool) -> None:
    """What the model said. One that only called a tool said nothing."""
    if has_call and not said:
        draft.leave_out("a call of a tool")
        return
    facts = {"model": text_of(row["model"]), **facts_of(object_of(row["response_json"]))}
    facts["thinking"] = thinking or facts["thinking"]
    time = time_of(row["datetime_utc"] or row.get("timestamp"))
    draft.say(draft.id_of(own, "assistant"), "assistant", said, time, **facts)


class _Tree:
    """llm's tree of messages, as far as one conversation needs it."""

    def __init__(self, database: Database, draft: Draft) -> None:
        self._database = database
        self._draft = draft
        self._messages: dict[str, Row] = {}
        self._systems: dict[str, str] = {}
        self._said: set[str] = set()

    def add_turn(self, turn: Row) -> None:
        """What a turn adds: its prompt, or the results of tools, and the answer.

        The first turn can be given a conversation that was held elsewhere: then all of it.
        """
        own, time = text_of(turn["id"]), time_of(turn["datetime_utc"])
        parent, tip = turn["parent_message_hash"], turn["tip_message_hash"]
        answers = self._back(tip, lambda message: message["hash"] != parent)
        new = self._back(parent, lambda message: message["role"] in {"user", "tool"})
        held = new[0]["parent_hash"] if new else parent
        before = [] if self._draft.records else self._back(held, lambda _: True)
        self._draft.set(_settings(turn, self._system(tip)), time, own)
        for message in before:
            self._add_given(message, time, message["hash"])
        for message in new:
            self._add_given(message, time, own)
        for message in answers:
            self._add_answer(message, turn, own)

    def _add_given(self, message: Row, time: str | None, seed: str) -> None:
        role = text_of(message["role"])
        id_ = self._draft.id_of(seed, role)
        if message["hash"] in self._said or role == "system":
            return
        self._said.add(message["hash"])
        parts = _Parts(self._database, self._draft, message["hash"])
        if parts.text or parts.pictures:
            self._draft.say(id_, role, parts.text, time, images=parts.pictures, thinking=parts.thinking)

    def _add_answer(self, message: Row, turn: Row, own: str) -> None:
        if message["role"] != "assistant":
            self._add_given(message, time_of(turn["datetime_utc"]), own)
        elif message["hash"] not in self._said:
            self._said.add(message["hash"])
            parts = _Parts(self._database, self._draft, message["hash"])
            _answer(self._draft, own, turn, parts.text, parts.thinking, parts.has_call)

    def _back(self, tip: object, goes_on: Callable[[Row], bool]) -> list[Row]:
        """The messages from `tip` back to where it does not go on, oldest first."""
        found: list[Row] = []
        passed: set[object] = set()
        while tip not in passed and (message := self._message(tip)) and goes_on(message):
            passed.add(tip)
            found.append(message)
            tip = message["parent_hash"]
        return found[::-1]

    def _message(self, hash_: object) -> Row | None:
        if not isinstance(hash_, str):
            return None
        if hash_ not in self._messages:
            found = self._database.select("messages", ("hash", "parent_hash", "role"), "hash = ?", hash_)
            self._messages[hash_] = found[0] if found else {}
        return self._messages[hash_] or None

    def _system(self, tip: object) -> str:
        """The system prompt: the first of all messages up to `tip`, if it is one. Known for each that was passed."""
        passed: list[str] = []
        while isinstance(tip, str) and tip not in self._systems and (message := self._message(tip)):
            passed.append(tip)
            self._systems[tip] = ""  # until it is known; and an end for a circle
            tip = message["parent_hash"]
        text = self._systems.get(tip) if isinstance(tip, str) else None
        if text is None:
            first = self._message(passed[-1]) if passed else None
            is_system = first and first["role"] == "system"
            text = _Parts(self._database, self._draft, passed[-1]).text if is_system else ""
        self._systems.update(dict.fromkeys(passed, text))
        return text


class _Parts:
    """What a message of llm's tree consists of."""

    def __init__(self, database: Database, draft: Draft, message: str) -> None:
        self._database = database
        self.text = self.thinking = ""
        self.pictures: list[Record] = []
        self.has_call = False
        for part in database.select(
            "parts", ("type", "text", "payload"), "message_hash = ? ORDER BY position", message
        ):
            self._add(draft, part["type"], part["text"], object_of(part["payload"]))

    def _add(self, draft: Draft, kind: object, text: object, payload: Row) -> None:
        if kind == "text":
            self.text += self._resolved(text, payload)
        elif kind == "reasoning":
            self.thinking += self._resolved(text, payload)
        elif kind == "tool_result":
            self.text += ("\n" if self.text else "") + text_of(payload.get("output"))
        elif kind == "tool_call":
            self.has_call = True
        elif kind == "attachment":
            picture = draft.picture(*self._attachment(payload.get("attachment")))
            self.pictures += [picture] if picture else []
        else:
            draft.leave_out(f"a part of the type {text_of(kind)[:40]!r}")

    def _resolved(self, text: object, payload: Row) -> str:
        """Text; what was taken from a fragment is there by its number only."""
        pieces = payload.get("text_ref")
        if text is not None or not isinstance(pieces, list):
            return text_of(text if text is not None else payload.get("text"))
        return "".join(self._piece(piece) for piece in pieces if isinstance(piece, dict))

    def _piece(self, piece: Row) -> str:
        fragment = piece.get("fragment")
        if not isinstance(fragment, int) or abs(fragment) > LARGEST_INTEGER:
            return text_of(piece.get("literal"))
        found = self._database.select("fragments", ("content",), "id = ?", fragment)
        return "".join(text_of(row["content"]) for row in found)

    def _attachment(self, named: object) -> tuple[object, object]:
        id_ = named.get("id") if isinstance(named, dict) else None
        if not isinstance(id_, str):
            return None, None
        found = self._database.select("attachments", ("content", "path"), "id = ?", valid_text(id_))
        return (found[0]["content"], found[0]["path"]) if found else (None, None)
