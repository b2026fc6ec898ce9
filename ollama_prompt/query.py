"""What is searched for: words, and how well they fit a text. Pure.

Every word of a query must occur, also inside of another word, without case and accents (`folding`). What is no letter
counts as it is. A text fits the better the more words of the query are words of it, or begin one.
"""

from __future__ import annotations

import re
from itertools import groupby

from ollama_prompt.folding import characters, composed, fold, is_letter, is_without_spaces, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Piece = tuple[str, bool, bool]
    """A word of a query's word, or a part of one: its text, and whether more may come before it, and behind it."""

WHOLE, BEGINNING, INSIDE = 2, 1, 0
"""How well a word fits: it is one of the document's words, it begins one, it is inside of one."""
LONGEST_PIECE = 1_000
"""The index is asked for so many characters of a word; what is longer is looked up in the texts."""
SNIPPET_LENGTH = 160
"""So many characters of a document are shown, with what is searched in the middle."""
MARKS = "⟦⟧"
"""What a found word stands between. Markdown, code and prose have none of them."""
MANY_OCCURRENCES = 1_000
"""So many are looked at for the one that fits best: each may take as long as the word is."""
MANY_SPANS = 100
"""So many occurrences are looked at for the place with most of the words."""


class Word:
    """One word of a query, folded.

    `pieces` are the words that it consists of, as the index has them. `is_exact` tells that whoever has these has it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: list[Piece] = []
        for is_run, start, end in _stretches(text):
            if is_run:
                self.pieces += _pieces_without_spaces(text[start:end])
            else:
                piece = text[start:end][:LONGEST_PIECE]
                self.pieces.append((piece, start == 0, end == len(text) or start + len(piece) < end))
        # Of letters only, it begins no word where it overlaps itself: so it is looked for behind itself.
        are_letters = all(map(is_letter, text))
        self._step = len(text) if are_letters else 1
        self._limit = None if are_letters else MANY_OCCURRENCES
        self.is_exact = len(self.pieces) == 1 and self.pieces[0][0] == text

    def rank(self, folded: str) -> int | None:
        """How well it fits; None if it does not occur."""
        best: int | None = None
        at = folded.find(self.text)
        for _ in range(self._limit or len(folded)):
            if at < 0:
                break
            if not self._is_cut(folded, at):
                if not self._is_cut(folded, at + len(self.text)):
                    return WHOLE
                best = BEGINNING
            best = best or INSIDE
            at = folded.find(self.text, at + self._step)
        return best

    @staticmethod
    def _is_cut(folded: str, at: int) -> bool:
        """Whether there is the inside of a word."""
        return 0 < at < len(folded) and is_letter(folded[at - 1]) and is_letter(folded[at])


def _stretches(text: str) -> Iterator[tuple[bool, int, int]]:
    """Stretches of letters, and of a script without spaces (then True): where they begin and end."""
    end = 0
    for kind, chars in groupby(text, key=lambda char: 2 if is_without_spaces(char) else int(is_letter(char))):
        start, end = end, end + len(list(chars))
        if kind:
            yield kind == 2, start, end


def _pieces_without_spaces(run: str) -> list[Piece]:
    """A character begins a word wherever it occurs; a pair is one."""
    return [(run, False, True)] if len(run) == 1 else [(pair, False, False) for pair in pairs(run)[:-1]]


def rank_of_term(piece: str, term: str) -> int:
    """How well a piece fits that is in a word of the index: as `Word.rank` has it."""
    if is_without_spaces(piece[0]) or piece == term:
        return WHOLE
    return BEGINNING if term.startswith(piece) else INSIDE


def words_of(query: str) -> list[Word]:
    """The words of a query, each once."""
    return [Word(text) for text in dict.fromkeys(fold(query).split())]


def rank_of(words: Iterable[Word], text: str) -> int | None:
    """How well a text fits; None if a word is missing."""
    folded, sum_ = fold(text), 0
    for word in words:
        rank = word.rank(folded)
        if rank is None:
            return None
        sum_ += rank
    return sum_


class Scope:
    """What is searched: what was said at a time or later (with "" ever), in one session, with one model; None: any."""

    def __init__(self, session_id: str | None = None, model: str | None = None, since: str = "") -> None:
        self.session_id = session_id
        self.model = model
        self.since = since

    def has_model(self, model: str | None) -> bool:
        """Whether a session with this model is searched; a tag may be left out."""
        return self.model is None or (model is not None and (model == self.model or model.startswith(self.model + ":")))


# --- Showing ---------------------------------------------------------------------------------------


def snippet(text: str, words: list[Word]) -> str:
    """The part of the text that has most of the words, on one line, each between marks."""
    text = composed(text)
    spans = sorted(_spans(text, words))
    if not spans:
        return ""
    start = max(0, min(_start(spans), len(text) - SNIPPET_LENGTH))
    end = start + SNIPPET_LENGTH
    pieces, at = ["…" if start else ""], start
    for first, last, _ in spans:
        if at <= first < end:
            pieces += [text[at:first], MARKS[0], text[first : min(last, end)], MARKS[1]]
            at = last
    pieces += [text[at:end], "…" if end < len(text) else ""]
    return " ".join("".join(pieces).split())


def _start(spans: list[tuple[int, int, str]]) -> int:
    """Where to begin, such that what was found is in the middle."""
    best, start = 0, 0
    for number, (first, _, _) in enumerate(spans[:MANY_SPANS]):
        near = [span for span in spans[number : number + MANY_SPANS] if span[1] <= first + SNIPPET_LENGTH * 3 // 4]
        found = len({word for _, _, word in near})
        if found > best or not number:
            covered = max((last for _, last, _ in near), default=first) - first
            best, start = found, first - (SNIPPET_LENGTH - covered) // 2
    return start


def _spans(text: str, words: list[Word]) -> Iterator[tuple[int, int, str]]:
    """Where each word occurs: from, to, word."""
    folded, origins = _folded_with_origins(text)
    for word in words:
        for found in re.finditer(re.escape(word.text), folded):
            first, last = found.span()
            yield (origins[first], origins[last - 1] + 1, word.text) if origins else (first, last, word.text)


def _folded_with_origins(text: str) -> tuple[str, list[int] | None]:
    """The folded text, and for each of its characters where it comes from; None if from the same place."""
    if text.isascii():
        return fold(text), None
    folded = characters(text)
    origins = [at for at, chars in enumerate(folded) for _ in chars]
    return "".join(folded), origins
