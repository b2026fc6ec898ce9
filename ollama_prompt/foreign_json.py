"""Conversations as JSON has them: a list of {"role", "content"} as Ollama and OpenAI take it.

Or an object with such `messages` and settings beside them. If that has an id of its own, as what --session-info
prints, of ollama-prompt 1.x too, it is a session: also how 1.x's database keeps one. A file is taken whole or not at
all.
"""

from __future__ import annotations

import re
from contextlib import suppress

from ollama_prompt import clock, images
from ollama_prompt.drafts import Draft, derived_id
from ollama_prompt.errors import ImportFailed
from ollama_prompt.foreign_values import are_counts, settings_of, text_of, time_of
from ollama_prompt.text import decode, valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ollama_prompt.drafts import Conversation, Note
    from ollama_prompt.foreign_values import Row
    from ollama_prompt.records import Record

_SYSTEM = {"system", "developer"}
_OWN_IDS = ("session_id", "conversation_id", "id")


def conversation(path: str, data: bytes, file_time: float, note: Note) -> Conversation:
    """The conversation in a file of JSON. Raises `ImportFailed`."""
    value = _parsed(path, data)
    whole: Row = value if isinstance(value, dict) else {"messages": value}
    messages = whole.get("messages")
    if not isinstance(messages, list):
        raise _no_conversation(path, "is no list of messages, and no object with messages")
    said = []
    for number, message in enumerate(messages):
        try:
            said.append(Said(message))
        except ValueError as error:
            place = "messages" if whole is value else ""
            raise _no_conversation(path, f"{place}[{number}] {error}") from None
    found = _conversation(path, whole, said, time_of(file_time), note)
    if found is None:
        raise _no_conversation(path, "holds no messages")
    return found


def _parsed(path: str, data: bytes) -> Any:
    import json

    if not data.strip():
        raise _no_conversation(path, "is empty")
    if data.startswith(b'{"type":"session",'):
        hint = "copy it below the folder sessions of the store: the next command finds it there by its name"
        raise ImportFailed(f"{valid_text(path)} is a session of ollama-prompt as it is", hint=hint)
    try:
        return json.loads(decode(data))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _no_conversation(path, f"is neither a SQLite database nor JSON: {error.msg} in {where}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _no_conversation(path, f"is no JSON that can be read: {str(error) or 'it is too large'}") from None


def _no_conversation(path: str, problem: str) -> ImportFailed:
    hint = 'one conversation a file: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    return ImportFailed(f"{valid_text(path)}: {problem}", hint=hint)


def _conversation(path: str, whole: Row, said: list[Said], file_time: str | None, note: Note) -> Conversation | None:
    first = next((number for number, message in enumerate(said) if message.role not in _SYSTEM), len(said))
    settings = settings_of(whole)
    system = dict.fromkeys([settings.get("system", ""), *(message.content for message in said[:first])])
    if text := "\n\n".join(filter(None, system)):
        settings["system"] = text
    own = next((own for key in _OWN_IDS if isinstance(own := whole.get(key), str) and own), None)
    if own is not None:
        return session({"format": "json", "id": valid_text(own)}, whole, settings, said[first:], note, file_time)
    draft = Draft(valid_text(path), "json", note)
    draft.set(settings)
    ids = _add_chain(draft, said[first:], text)
    return draft.done({"format": "json"}, otherwise=file_time, ids=ids)


def _add_chain(draft: Draft, said: list[Said], system: str) -> list[str]:
    """Add the messages of a list; the ids that its session may have.

    A message's id depends on all before it: so lists that begin alike share the ids of their beginning only.
    """
    ids = []
    before = system
    for message in said:
        if added := _add(draft, message, before):
            before = added
            ids.append(derived_id(0, "session", added))
    return ids


def session(
    origin: Record, data: Row, settings: Record, said: list[Said], note: Note, file_time: str | None = None
) -> Conversation | None:
    """A session that has an id of its own, in `origin`; `data` has its times.

    That a prompt failed later than the last answer shows in `last_used` only. A record keeps it, so that --purge
    knows.
    """
    own = origin["id"]
    draft = Draft(f"session {own}", clock.parse_id(own) or derived_id(0, "ollama-prompt 1.x", own), note)
    draft.set(settings)
    for message in said:
        _add(draft, message)
    began = time_of(data.get("created_at"), local=True)
    last_used = time_of(data.get("last_used"), local=True)
    newest = max((record["created_at"] for record in draft.records if record["created_at"]), default=began)
    if last_used and newest and newest < last_used:
        draft.mark({}, last_used, draft.id_of("used", text_of(data.get("last_used"))))
    return draft.done(origin, began, last_used or file_time)


def _add(draft: Draft, said: Said, *before: str) -> str:
    """Add a message; its id, or "" if there is nothing to add. `before` is what its id depends on too."""
    for missing in said.missing:
        draft.leave_out(missing)
    if said.is_undone or said.is_call_only:
        draft.leave_out("a message that was taken back" if said.is_undone else "a call of a tool")
        return ""
    pictures = [picture for data in said.pictures if (picture := draft.picture(data))]
    what = [said.role, said.content, *(picture["sha256"] for picture in pictures)]
    own = said.own_id()
    id_ = draft.own_id(own) if own and not before else draft.id_of(*(before or [said.written_time()]), *what)
    draft.say(id_, said.role, said.content, said.time(), images=pictures, **said.facts(draft.model))
    return id_


# --- One message -------------------------------------------------------------------------------------


class Said:
    """A message as JSON has it. Raises ValueError for what is none, with the reason.

    `pictures` are the bytes of its pictures, `missing` tells what could not be kept of it.
    """

    def __init__(self, message: object) -> None:
        if not isinstance(message, dict):
            raise ValueError("is no object")
        self._data: Row = message
        self.pictures: list[bytes] = []
        self.missing: list[str] = []
        role = message.get("role")
        if not isinstance(role, str) or not role.strip():
            raise ValueError("has no role")
        self.role = valid_text(role).strip().lower()
        self._calls = bool(message.get("tool_calls") or message.get("function_call"))
        self.content = self._content(message.get("content"))
        self.is_call_only = self._calls and not self.content.strip()
        self.is_undone = message.get("undone") is True
        for encoded in message["images"] if isinstance(message.get("images"), list) else ():
            self._take_picture(encoded)

    def own_id(self) -> str | None:
        """The id that it has, if that is a UUID."""
        own = self._data.get("id")
        return clock.parse_id(own) if isinstance(own, str) else None

    def written_time(self) -> str:
        """Its time as it is written."""
        return text_of(self._data.get("timestamp") or self._data.get("created_at"))

    def time(self) -> str | None:
        """Its time."""
        return time_of(self._data.get("timestamp") or self._data.get("created_at"), local=True)

    def facts(self, model: object) -> Record:
        """What the record of an answer keeps."""
        if self.role != "assistant":
            return {}
        data = self._data
        counts = {key: data.get(key) for key in ("prompt_tokens", "tokens")}  # 1.x has `tokens` alone, an estimate
        reason = data.get("done_reason")
        return {
            "model": text_of(data.get("model")) or model,
            **(counts if are_counts(counts.values()) else {}),
            "done_reason": reason if reason in ("stop", "length", "interrupted", "error") else None,
            "thinking": text_of(data.get("thinking")) or text_of(data.get("reasoning_content")),
        }

    def _content(self, content: object) -> str:
        if content is None and self._calls:
            return ""
        if isinstance(content, str):
            return valid_text(content)
        if not isinstance(content, list):
            raise ValueError("has no content")
        texts = [self._part(part) for part in content]
        return "\n".join(text for text in texts if text is not None)

    def _part(self, part: object) -> str | None:
        if isinstance(part, str):
            return valid_text(part)
        if not isinstance(part, dict):
            raise ValueError("has a part that is no object")
        if isinstance(part.get("text"), str):
            return valid_text(part["text"])
        if picture := _picture_of(part):
            self._take_picture(picture)
        else:
            self.missing.append(f"a part of the type {text_of(part.get('type'))[:40]!r}")
        return None

    def _take_picture(self, encoded: object) -> None:
        """A data: URI, or base64 alone as in Ollama's `images`."""
        from base64 import b64decode

        if isinstance(encoded, str) and re.match(r"(https?|file):", encoded):
            self.missing.append("a picture that is only linked to")
            return
        with suppress(ValueError):
            data = b64decode(encoded.partition("base64,")[2] or encoded) if isinstance(encoded, str) else b""
            if images.kind_of(data):
                self.pictures.append(data)
                return
        self.missing.append("an attachment that is no PNG, JPEG or WebP picture")


def _picture_of(part: Row) -> object:
    """Where the APIs put a picture: {"image_url": {"url": …}}, {"image_url": …}, {"source": {"data": …}}."""
    for key, inner in (("image_url", "url"), ("source", "data"), ("source", "url")):
        found = part.get(key)
        found = found.get(inner) if isinstance(found, dict) else found
        if found:
            return found
    return None
