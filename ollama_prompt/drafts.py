"""A conversation of another program while it is put together from what was found of it.

    Draft → set, say, mark, … → done → Conversation

Invariants:
- Ids are those of the source where they are UUIDs, else derived from what never changes in it: its own ids, what was
  said, the times as they are written there. Never from a position, a file's time or this machine's time zone. So
  reading again gives the same ids, and a source that grew, or lost its oldest messages, the same ids for what stayed.
- A derived id begins with the time that the source's own id tells, else with 0: it sorts below every UUIDv7 that a
  later turn gets.
"""

from __future__ import annotations

import os
from hashlib import sha256

from ollama_prompt import clock, images, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from typing import Any

    from ollama_prompt.images import Image
    from ollama_prompt.records import Record

    Note = Callable[[str], None]


def derived_id(milliseconds: int, *seed: str) -> str:
    """A UUIDv8 (RFC 9562) that these values alone decide: the time, then a hash."""
    digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in map(str.encode, seed))).digest()
    number = int.from_bytes(digest[:10], "big")
    digits = f"{milliseconds & 0xFFFFFFFFFFFF:012x}8{number >> 68:03x}{1 << 63 | (number & (1 << 62) - 1):016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Conversation:
    """One conversation, as it is to be stored.

    `header` is the first record (`imported_from` names the `format` and the source's own `id`), `records` the
    messages in order, with a meta record where a setting changed, or where the source was used later than its last
    message tells. `images` holds, by their SHA-256, the pictures that messages name.

    `ids` are the ids that its session may have. There is one, but for a list of messages, which has none of its own,
    and must be found again when it was imported while it was shorter. So its id comes from how it begins: from its
    first message; where a session that it does not `go_on` has that id, from the first two; and so on.
    """

    __slots__ = ("header", "ids", "images", "records")

    def __init__(self, ids: list[str], header: Record, made: list[Record], pictures: dict[str, bytes]) -> None:
        self.ids = ids
        self.header = header
        self.records = made
        self.images = pictures

    def is_in(self, session_id: str, stored: AbstractSet[str]) -> bool:
        """Whether the session with this one of `ids`, and these ids of records, holds this conversation, or a part."""
        mine = {record["id"] for record in self.records}
        # What it has beyond the import, a turn of ours has added: ids of ours are not derived.
        derived = {id_ for id_ in stored if id_[14:15] == "8"}
        return session_id == self.ids[-1] or mine <= stored or derived <= mine


class Draft:
    """What was found so far of one conversation.

    `name` is how notes call it; ids of records are derived from `start`, in milliseconds, and `seed`, which is the
    session's id where it has one of its own. A record has None for its time until `done` fills it in.
    """

    def __init__(self, name: str, seed: str, note: Note, start: int = 0) -> None:
        self.records: list[Record] = []
        self._name = name
        self._seed = seed
        self._start = start
        self._note = note
        self._taken: dict[str, int] = {}
        self._images: dict[str, bytes] = {}
        self._first: Record = {}
        self._settings: Record = {}
        self._left_out: dict[str, int] = {}

    @property
    def model(self) -> object:
        """The model that is asked from here on."""
        return self._settings.get("model")

    def id_of(self, *what: str) -> str:
        """The id of a record that `what` tells from others; of several alike each gets its own."""
        first = self._derived(1, what)
        number = self._taken[first] = self._taken.get(first, 0) + 1
        return first if number == 1 else self._derived(number, what)

    def _derived(self, number: int, what: tuple[str, ...]) -> str:
        return derived_id(self._start, str(number), self._seed, *what)

    def own_id(self, uuid: str) -> str:
        """A UUID of the source as the id of a record, unless another has it."""
        self._taken[uuid] = self._taken.get(uuid, 0) + 1
        return uuid if self._taken[uuid] == 1 else self.id_of(uuid)

    def set(self, settings: Record, time: str | None = None, *what: str) -> None:
        """The settings from here on: in the header, or as a change behind the first message."""
        changed = {key: value for key, value in settings.items() if value != self._settings.get(key, {})}
        self._settings |= changed
        if not self.records:
            self._first |= changed
        elif changed:
            self.mark(changed, time, self.id_of("meta", *what))

    def mark(self, settings: Record, time: str | None, id_: str) -> None:
        """A change of settings, or none: that the session was used at this time."""
        self.records.append({"type": "meta", "id": id_, "created_at": time, **settings})

    def say(self, id_: str, role: str, content: str, time: str | None, **more: Any) -> None:
        """A message; keys of `more` without a value stay absent."""
        made = {"type": "message", "id": id_, "role": role, "content": content, "created_at": time}
        self.records.append(made | {key: value for key, value in more.items() if value not in (None, "", [])})

    def picture(self, data: object, path: object = None) -> Record | None:
        """Keep a picture, from its bytes or from a file; its entry in the message's record."""
        try:
            image = _image(data, path)
        except ValueError as error:
            self.leave_out(str(error))
            return None
        self._images[image.sha256] = image.data
        return {key: value for key, value in image.record().items() if value}

    def leave_out(self, what: str) -> None:
        """Remember for a note that something cannot be kept."""
        self._left_out[what] = self._left_out.get(what, 0) + 1

    def done(
        self, origin: Record, began: str | None = None, otherwise: str | None = None, ids: list[str] | None = None
    ) -> Conversation | None:
        """The conversation; None if nothing was said. `otherwise` is its time if it has none, else now."""
        for what, times in self._left_out.items():
            self._note(f"{self._name}: left out: {what}" + (f" ({times} times)" if times > 1 else ""))
        if not any(record["type"] == "message" for record in self.records):
            return None
        said_at = [record["created_at"] for record in self.records]
        time = began = next(filter(None, (began, *said_at, otherwise)), clock.now())
        for record in self.records:
            time = record["created_at"] = record["created_at"] or time
        ids = ids or [self._seed]
        header = records.header(ids[-1], self._first, imported_from=origin)
        return Conversation(ids, header | {"created_at": began}, self.records, self._images)


def _image(data: object, path: object) -> Image:
    """Raises ValueError for what is no picture that Ollama takes."""
    if isinstance(data, bytes) and data:
        if (kind := images.kind_of(data)) is None:
            raise ValueError("an attachment that is no PNG, JPEG or WebP picture")
        return images.Image(data, kind, "")
    if not isinstance(path, str) or not path:
        raise ValueError("a picture that is only linked to")
    if not os.path.isfile(path):
        raise ValueError(f"the picture {path!r}, which is not there any more")
    return images.read_image(path)
