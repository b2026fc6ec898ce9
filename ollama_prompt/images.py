"""Pictures for models that see. What a file is, its first bytes tell, never its name."""

from __future__ import annotations

from hashlib import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ollama_prompt.records import Record

LARGEST = 100_000_000
"""Bytes of the largest picture that is taken; no model looks at more."""
_HEAD = 16


class Image:
    """A picture: its bytes, what they are (`image/png`), and where they came from."""

    __slots__ = ("data", "path", "sha256", "type")

    def __init__(self, data: bytes, type_: str, path: str) -> None:
        self.data = data
        self.type = type_
        self.path = path
        self.sha256 = sha256(data).hexdigest()

    def record(self) -> Record:
        """What a message's record keeps of it."""
        return {"sha256": self.sha256, "bytes": len(self.data), "type": self.type, "path": self.path}


def kind_of(data: bytes) -> str | None:
    """The media type of a picture by its first bytes; None if it is none that Ollama takes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def read_image(path: str) -> Image:
    """Read a picture. Raises ValueError for what cannot be read, or is none."""
    from ollama_prompt.text import valid_text

    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)  # of a device that never ends, no more than this
            kind = kind_of(head)
            data = head + file.read(LARGEST + 1 - len(head)) if kind else head
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read {path!r}: {reason}") from None
    if kind is None:
        raise ValueError(f"{path!r} is no PNG, JPEG or WebP picture")
    if len(data) > LARGEST:
        raise ValueError(f"{path!r} has more than {LARGEST} bytes")
    return Image(data, kind, valid_text(path))
