"""What is exported of a session, and its forms as text, Markdown and JSON. Pure: nothing is read or written.

    Transcript      title, model, date, system prompt, and every message that was not taken back

Invariants:
- Text for people has its newlines as \\n and its control characters made visible: a file that is shown in a terminal
  must not move the cursor, and none may be read in another order than it has.
- A message cannot break the document around it: in Markdown its headings are lower than ours, a fence that it leaves
  open is closed, its HTML is text, its links lead where its own definitions say (`markup.contained`).
- JSON has contents as they are stored, and imported again it gives the same conversation: so system messages at the
  beginning are one, as an import makes them.
"""

from __future__ import annotations

import re

from ollama_prompt import clock
from ollama_prompt.records import images_of
from ollama_prompt.render import escaped, one_line, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from typing import Any

    from ollama_prompt.records import Record

    Picture = Callable[[str], bytes | None]

_SYSTEM = {"system", "developer"}
_MARKS = re.compile(r"[\\`*_\[\]<>&#~|$!]")
_EMPHASIS = re.compile(r"\*\*|`+|^#+ ", re.MULTILINE)
"""What a reader of Markdown does not look for in a line of a list."""
_REMARKS = {"interrupted": "interrupted", "error": "broken off", "length": "cut at its longest length"}
"""What a reader should know of how an answer ended."""
_WIDTH = 72
FIRST_WORDS = 300
"""Characters of a conversation's beginning that a list of conversations shows."""


def date(time: str | None) -> str:
    """A time for people, to the minute."""
    return f"{time[:10]} {time[11:16]} UTC" if time else ""


class Said:
    """One message. `pictures` are (SHA-256, name); `typed` is a prompt as it was typed, where that is not `content`."""

    __slots__ = ("content", "pictures", "remark", "role", "speaker", "thinking", "time", "typed")

    def __init__(self, record: Record, model: str) -> None:
        self.role = record["role"].strip().lower() or "user"
        self.content: str = record["content"]
        self.time = clock.whole_seconds(clock.normal_time(record.get("created_at")))
        own = record.get("model")
        answered_by = one_line(own) if isinstance(own, str) and own else model
        self.speaker = (answered_by or "Assistant") if self.role == "assistant" else one_line(self.role).capitalize()
        self.thinking = _text_of(record, "thinking")
        self.typed = _text_of(record, "typed")
        self.remark = _REMARKS.get(_text_of(record, "done_reason"), "")
        self.pictures = list(zip(images_of(record), _names_of(record), strict=False))

    @property
    def head(self) -> str:
        """Who spoke, and when."""
        return " · ".join(filter(None, (self.speaker, date(self.time))))


class Transcript:
    """A conversation as it is exported; see the module. `listed` is the session as the listing has it."""

    __slots__ = ("created_at", "model", "said", "session_id", "system", "title")

    def __init__(self, listed: dict[str, Any], settings: Record, found: list[Record], undone: AbstractSet[str]) -> None:
        self.session_id: str = listed["session_id"]
        self.title = one_line(listed["title"] or "") or "Conversation"
        self.model = one_line(listed["model_name"] or "")
        self.created_at: str | None = listed["created_at"]
        self.system: str = settings.get("system", "")
        messages = [record for record in found if record["type"] == "message" and record.get("id") not in undone]
        self.said = [Said(record, self.model) for record in messages]

    def facts(self) -> list[tuple[str, str]]:
        """What is said of the conversation as a whole."""
        facts = [("Model", self.model), ("Date", date(self.created_at)), ("Session", self.session_id)]
        return [(name, value) for name, value in facts if value]

    def first_words(self) -> str:
        """How it begins, without what the title says already."""
        asked, answered = self._beginning_of("user"), self._beginning_of("assistant")
        words = f"{asked.removeprefix(self.title.removesuffix('…'))} {answered}".strip()
        return words if len(words) <= FIRST_WORDS else words[: FIRST_WORDS - 1] + "…"

    def _beginning_of(self, role: str) -> str:
        first = next((said for said in self.said if said.role == role), None)
        return one_line(_EMPHASIS.sub("", (first.typed or first.content)[: 2 * FIRST_WORDS])) if first else ""


def _text_of(record: Record, key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _names_of(record: Record) -> list[str]:
    """What the pictures of a message are called: their file's name, on any system."""
    named = record["images"] if images_of(record) else []
    entries = [entry for entry in named if images_of({"images": [entry]})]
    names = [re.split(r"[/\\]", _text_of(entry, "path"))[-1] for entry in entries]
    return [one_line(name) or entry["sha256"][:12] for name, entry in zip(names, entries, strict=True)]


# --- Text ------------------------------------------------------------------------------------------


def as_text(transcript: Transcript) -> str:
    """For people, in any editor."""
    head = [transcript.title, "", *(f"{name + ':':<9}{value}" for name, value in transcript.facts())]
    blocks = ["\n".join(head), *_texts_of_system(transcript), *map(_message_as_text, transcript.said)]
    return "\n\n".join(blocks) + "\n"


def _texts_of_system(transcript: Transcript) -> list[str]:
    return [f"{_ruled('System')}\n\n{_trimmed(transcript.system)}"] if transcript.system else []


def _message_as_text(said: Said) -> str:
    notes = [f"[picture: {name}]" for _, name in said.pictures]
    notes += [f"[{said.remark}]"] if said.remark else []
    return "\n\n".join(filter(None, [_ruled(said.head), _trimmed(said.content), *notes]))


def _ruled(text: str) -> str:
    return f"── {text} ".ljust(_WIDTH, "─")


def _trimmed(text: str) -> str:
    """A message without empty lines around it."""
    return re.sub(r"\A(?:[ \t]*\n)+", "", plain(text)).rstrip()


# --- Markdown --------------------------------------------------------------------------------------


def as_markdown(transcript: Transcript) -> str:
    """For notes, wikis and forges: a heading for each message, and what was said below it."""
    facts = "\n".join(f"- {name}: {_escaped(value)}" for name, value in transcript.facts())
    blocks = [f"# {_escaped(transcript.title)}", facts]
    if transcript.system:
        blocks += ["## System", *_contained(transcript.system, 0)]
    for number, said in enumerate(transcript.said, 1):
        blocks += [f"## {_escaped(said.head)}", *_contained(said.content, number)]
        blocks += [f"*\\[picture: {_escaped(name)}\\]*" for _, name in said.pictures]
        blocks += [f"*\\[{said.remark}\\]*"] if said.remark else []
    return "\n\n".join(blocks) + "\n"


def _contained(text: str, number: int) -> list[str]:
    from ollama_prompt import markup

    made = markup.contained(_trimmed(text), number)
    return [made] if made else []


def _escaped(text: str) -> str:
    """Text in a line of ours, where none of it is Markdown."""
    return _MARKS.sub(r"\\\g<0>", text)


# --- JSON ------------------------------------------------------------------------------------------


def as_json(transcript: Transcript, picture: Picture) -> str:
    """A list of messages as Ollama and OpenAI take it. A message with pictures has them as Ollama takes them."""
    import json

    lines = (json.dumps(message, ensure_ascii=False) for message in messages(transcript, picture))
    return escaped("[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n")


def messages(transcript: Transcript, picture: Picture) -> list[dict[str, Any]]:
    """The system prompt first. Thinking is left out: it is not sent to a model again either."""
    said = transcript.said
    first = next((number for number, message in enumerate(said) if message.role not in _SYSTEM), len(said))
    system = dict.fromkeys([transcript.system, *(message.content for message in said[:first])])
    text = "\n\n".join(filter(None, system))
    head = [{"role": "system", "content": text}] if text else []
    return head + [_as_message(message, picture) for message in said[first:]]


def _as_message(said: Said, picture: Picture) -> dict[str, Any]:
    from base64 import b64encode

    made: dict[str, Any] = {"role": said.role, "content": said.content}
    images = [b64encode(data).decode() for name, _ in said.pictures if (data := picture(name))]
    return made | {"images": images} if images else made
