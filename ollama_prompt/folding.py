"""Text as a search compares it: without case, without accents; and as its index takes it, in words.

    fold("Größe, CAFÉ")  →  "grosse, cafe"

Each character is folded by itself (after NFC), so that whatever occurs in a text occurs in the folded text too.

Words are runs of letters and digits; every character outside ASCII counts as a letter. Scripts without spaces between
words (Chinese, Japanese, Thai …) have pairs of characters in their place, and the last character by itself:

    separate("今日は")  →  " 今日 日は は "

So every occurrence of a character or a pair begins a word. ASCII takes the fast way: only what is outside of it comes
to Python, as what the codec cannot encode.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from functools import cache

_WITHOUT_SPACES = (
    ("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u2e80", "\u2fdf"), ("\u3005", "\u3007"),
    ("\u3040", "\u30ff"), ("\u3100", "\u312f"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)  # fmt: skip
"""Thai and Lao, Burmese, Khmer, Han, kana, bopomofo: first and last character."""
_LETTERS = str.maketrans({
    "ø": "o", "Ø": "o", "ł": "l", "Ł": "l", "đ": "d", "Đ": "d", "ħ": "h", "Ħ": "h", "\u0131": "i", "æ": "ae", "Æ": "ae",
    "œ": "oe", "Œ": "oe", "ð": "d", "Ð": "d", "þ": "th", "Þ": "th",
    "\u00ad": "", "\u200b": "", "\ufe0e": "", "\ufe0f": "",
})  # fmt: skip
"""Letters that people type without their mark, and that Unicode does not take apart; and what nobody sees."""


class _Folded(dict[int, str]):
    """Character → what it is compared as; made when it is first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if "\u3040" <= char <= "\u30ff" or "\uac00" <= char <= "\ud7a3":  # taken apart they would be others
            folded = char
        else:
            parts = unicodedata.normalize("NFKD", char)
            marks = [part for part in parts if not unicodedata.combining(part)]
            folded = unicodedata.normalize("NFC", "".join(marks).casefold())
            if folded.isspace() and not char.isspace():  # an accent by itself: it would not be found
                folded = char
        self[code] = folded
        return folded


_FOLDED = _Folded(_LETTERS)


def composed(text: str) -> str:
    """The text with each letter and its accents in one character, which is folded."""
    return unicodedata.normalize("NFC", text)


def characters(text: str) -> list[str]:
    """What becomes of each character of a text, which is composed."""
    return [_FOLDED[ord(char)] if char > "\x7f" else char.lower() for char in text]


def fold(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    return composed(text).encode("ascii", "ollama-prompt.fold").lower().decode()


def separate(text: str) -> str:
    """The folded text with spaces, such that its words are what the index is to find."""
    if text.isascii():
        return text.lower()
    return composed(text).encode("ascii", "ollama-prompt.separate").lower().decode()


def pairs(run: str) -> list[str]:
    """The words of a run of a script without spaces."""
    return [run[at : at + 2] for at in range(len(run))]


def is_letter(char: str) -> bool:
    """Whether a character of a folded text is part of a word of letters and digits."""
    return (char.isalnum() if char <= "\x7f" else True) and not is_without_spaces(char)


def is_without_spaces(char: str) -> bool:
    """Whether a character is of a script without spaces."""
    return char >= "\u0e00" and any(first <= char <= last for first, last in _WITHOUT_SPACES)


@cache
def _run() -> re.Pattern[str]:
    return re.compile(f"[{''.join(f'{first}-{last}' for first, last in _WITHOUT_SPACES)}]+")


def _fold_rest(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    return error.object[error.start : error.end].translate(_FOLDED).encode(), error.end


def _separate_rest(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    folded = error.object[error.start : error.end].translate(_FOLDED)
    return _run().sub(lambda run: f" {' '.join(pairs(run[0]))} ", folded).encode(), error.end


codecs.register_error("ollama-prompt.fold", _fold_rest)
codecs.register_error("ollama-prompt.separate", _separate_rest)
