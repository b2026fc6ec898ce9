"""Markdown → HTML, and Markdown that stays in its place. Owns markdown-it and Pygments.

What models write is not to be trusted: no HTML of theirs is HTML, no address is followed by itself, a link leads to
http, https and mailto only, and a picture that is somewhere else is a link. `html_of` gives nothing but elements and
attributes that are written here or by markdown-it, and text that is escaped.

`contained` makes Markdown that can stand in a document below headings of ours, whatever follows it. It changes the
source where it must and nowhere else:

- headings go down, below ours, and one that is underlined becomes one with #, which has more levels;
- a < that could begin HTML gets a backslash, outside of code; an address in <> loses them where it could be HTML;
- labels of links and footnotes get the number of the message: `[1]: …` of one is not what `[1]` of another means;
- a fence that is left open at the end is closed.

All else that Markdown has ends at the next heading by itself. A message that is too long to be read is shown as code.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cache, lru_cache
from html import escape
from urllib.parse import quote

import markdown_it
import pygments
from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.renderer import RendererHTML
from pygments import lexers, token
from pygments.util import ClassNotFound

from ollama_prompt.tables import keep_cells

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from markdown_it.token import Token
    from pygments.lexer import Lexer

READERS = f"markdown-it-py {markdown_it.__version__}, Pygments {pygments.__version__}"
"""The libraries that decide what a page looks like."""
LONGEST_MARKUP = 100_000
"""Characters of the longest message that is read as Markdown: some input takes the square of its length."""
LONGEST_CODE = 50_000
"""Characters of the longest code that is highlighted."""
OURS = 2
"""Levels of headings that are ours: the title, and who spoke. The highest one in a message comes below."""

_ADDRESS = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_LANGUAGE = re.compile(r"[\w+#.-]{1,40}")


# --- HTML ------------------------------------------------------------------------------------------


def html_of(text: str) -> str:
    """A message in Markdown as HTML."""
    if len(text) > LONGEST_MARKUP:
        return as_typed(text)
    parser = _parser()
    tokens = parser.parse(text)
    made: str = parser.renderer.render(tokens, parser.options, {"down": _levels_down(tokens)})
    return made


def html_of_typed(text: str) -> str:
    """A prompt as it was typed: its lines, stars and hashes mean themselves. Only fences are code."""
    if len(text) > LONGEST_MARKUP:
        return as_typed(text)
    lines, pieces, done = text.split("\n"), [], 0
    for fence in _fences(text):
        start, end = fence.map or (0, 0)
        pieces += [as_typed("\n".join(lines[done:start])), _code(fence.content, fence.info)]
        done = end
    return "".join([*pieces, as_typed("\n".join(lines[done:]))])


def as_typed(text: str) -> str:
    """Text with its spaces and lines; nothing for none."""
    text = re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()
    return f'<div class="typed" dir="auto">{escape(text)}</div>' if text else ""


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        """Addresses that a link may have; what has another one stays text."""
        return _ADDRESS.match(url) is not None


class _Renderer(RendererHTML):
    """What is not as markdown-it has it. Its rules are methods with the names of tokens."""

    _links = 0

    # markdown-it calls each rule with all of these arguments (ARG002).
    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        direction = "" if tokens[idx].level else ' dir="auto"'
        return f"<{_lowered(tokens[idx].tag, env)}{direction}>"

    def heading_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        return f"</{_lowered(tokens[idx].tag, env)}>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        return _code(tokens[idx].content, tokens[idx].info)

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        return _code(tokens[idx].content, "")

    def paragraph_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Each piece runs in the direction of its own script.

        In a list or a quotation the style sees to that: what has a `dir` is not heeded where theirs is found out.
        """
        if tokens[idx].type != "paragraph_open" or not tokens[idx].level:
            tokens[idx].attrSet("dir", "auto")
        return self.renderToken(tokens, idx, options, env)

    bullet_list_open = ordered_list_open = blockquote_open = paragraph_open

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        self._links += 1
        tokens[idx].attrSet("rel", "noopener noreferrer nofollow")
        return self.renderToken(tokens, idx, options, env)

    def link_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        self._links -= 1
        return self.renderToken(tokens, idx, options, env)

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Not fetched: whoever has it there would learn who reads this, and when."""
        shown = tokens[idx]
        address = str(shown.attrs["src"])
        name = escape(self.renderInlineAsText(shown.children, options, env) or address)
        if self._links:
            return f'<span class="picture">{name}</span>'
        return f'<a class="picture" href="{escape(address)}" rel="noopener noreferrer nofollow">{name}</a>'

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        return '<div class="wide" dir="auto"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: ARG002
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Aligned by a class: the page's policy allows no style in attributes."""
        style = str(tokens[idx].attrs.pop("style", ""))
        if aligned := style.removeprefix("text-align:"):
            tokens[idx].attrSet("class", aligned)
        return self.renderToken(tokens, idx, options, env)

    td_open = th_open


@cache
def _parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False, "breaks": True, "xhtmlOut": False}, renderer_cls=_Renderer)
    return keep_cells(parser.enable(["table", "strikethrough"]))


def _levels_down(tokens: Sequence[Token]) -> int:
    """How far the headings of a message go down, all alike."""
    levels = [int(block.tag[1:]) for block in tokens if block.type == "heading_open"]
    return max(OURS + 1 - min(levels, default=OURS + 1), 0)


def _lowered(tag: str, env: Any) -> str:
    return f"h{min(int(tag[1:]) + env['down'], 6)}"


# --- Code ------------------------------------------------------------------------------------------

_KINDS = {
    token.Keyword: "k", token.Operator.Word: "k", token.Name.Tag: "k",
    token.String: "s", token.Number: "m", token.Comment: "c", token.Generic.Prompt: "c",
    token.Name.Function: "f", token.Name.Class: "f", token.Name.Decorator: "f", token.Generic.Heading: "f",
    token.Generic.Subheading: "f", token.Name.Builtin: "b", token.Name.Attribute: "b", token.Name.Variable: "b",
    token.Generic.Inserted: "i", token.Generic.Deleted: "d",
}  # fmt: skip
"""Kinds of tokens → class; what is of another kind is not coloured. A few colours tell more than many."""


def _code(code: str, info: str) -> str:
    """A block of code; `info` is what stood behind its fence."""
    words = info.split()
    named = _LANGUAGE.fullmatch(words[0]) if words else None
    language = named[0] if named else ""
    label = f'<span class="language">{escape(language)}</span>' if language else ""
    return f'<div class="code">{label}<pre><code>{_highlighted(code, language)}</code></pre></div>\n'


def _highlighted(code: str, language: str) -> str:
    lexer = _lexer(language.lower()) if language and len(code) <= LONGEST_CODE else None
    if lexer is None:
        return escape(code)
    try:
        return "".join(_coloured(lexer, code))
    except Exception:  # a lexer's bug must not keep anybody from exporting a conversation
        return escape(code)


def _coloured(lexer: Lexer, code: str) -> Iterator[str]:
    """Pieces of code, each kind of them in one element as far as it goes."""
    kind, piece = "", ""
    for type_, value in lexer.get_tokens(code):
        if (now := _kind_of(type_)) != kind and not value.isspace():
            yield _element(kind, piece)
            kind, piece = now, ""
        piece += value
    yield _element(kind, piece)


def _element(kind: str, piece: str) -> str:
    return f'<span class="{kind}">{escape(piece)}</span>' if kind and piece else escape(piece)


@cache
def _kind_of(type_: Any) -> str:
    return next((_KINDS[above] for above in reversed(type_.split()) if above in _KINDS), "")


@lru_cache(maxsize=100)
def _lexer(name: str) -> Lexer | None:
    try:
        return lexers.get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


# --- Markdown in its place -------------------------------------------------------------------------

_ATX = re.compile(r"((?:[ \t>]|[-*+]|\d{1,9}[.)])*?)(#{1,6})(?=[ \t]|$)")
"""A heading, and what lists and quotations have put before it."""
_LINK = r"<[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>\x00-\x1f]*>|<[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+>"
_LABEL = r"\[(?:[^\[\]\\]|\\.)*\]"
_PLACE = r"<(?:[^<>\n\\]|\\.)*>"
"""An address that may have spaces."""
_INLINE = re.compile(
    rf"\\[!-/:-@\[-`{{-~]|(?P<ticks>`+)|(?P<before>\]\(\s*)(?P<place>{_PLACE})|{_LINK}|(?P<html><)(?=[A-Za-z/!?])"
    rf"|(?P<label>{_LABEL})",
    re.DOTALL,
)
"""What is escaped already, code, the address of a link, one by itself, what could begin HTML, and a label."""
_HTML_LINE = re.compile(rf"^((?:[ \t>]|[-*+]|\d{{1,9}}[.)])*)(?!{_LINK})(?=<[A-Za-z/!?])", re.MULTILINE)
"""A line that could begin HTML even where it stands in code that began on a line above: blocks come first."""
_DEFINITION = re.compile(rf"((?:[ \t>]|[-*+]|\d{{1,9}}[.)])*){_LABEL}:([\s>]*)({_PLACE})?", re.DOTALL)
_FOOTNOTE = re.compile(r"^(?:[ \t>]|[-*+]|\d{1,9}[.)])*\[(\^[^\[\]\s]+)\]:", re.MULTILINE)
_PARENTHESIS = r"\((?:[^\s()\\]|\\.)*\)"
_TITLE = r""""[^"]*"|'[^']*'|\([^()]*\)"""
_TARGET = re.compile(
    rf"\(\s*(?:(?:{_PLACE}|(?![<)])(?:[^\s()\\]|\\.|{_PARENTHESIS})+)(?:\s+(?:{_TITLE}))?\s*)?\)", re.DOTALL
)
"""What follows the text of a link that has its address with it."""
_CELL = re.compile(r"(?<!\\)(\|)")


def contained(text: str, number: int) -> str:
    """Markdown of the message with this number that breaks nothing around it; see the module."""
    if len(text) > LONGEST_MARKUP:
        return _fenced(text)
    lines = text.split("\n")
    tokens = _blocks().parse(text)
    labels = _Labels(tokens, number)
    down, in_table = _levels_down(tokens), False
    for at, block in enumerate(tokens):
        start, end = block.map or (0, 0)
        in_table = block.type == "table_open" or (in_table and block.type != "table_close")
        if block.type == "table_open":
            lines[start:end] = [
                "".join(_inline(cell, labels) for cell in _CELL.split(line)) for line in lines[start:end]
            ]
        elif block.type == "inline" and not in_table:
            _put(lines, start, end, _inline("\n".join(lines[start:end]), labels))
        elif block.type == "heading_close":
            _lower(lines, tokens[at - 2], down)
        elif block.type == "definition":
            _put(lines, start, end, labels.defined(block, "\n".join(lines[start:end])))
    closing = [fence.markup for fence in _fences(text) if _is_open(fence, lines)]
    return "\n".join([*(line for line in lines if line != _GONE), *closing])


def _fenced(text: str) -> str:
    """Text as a block of code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


_GONE = "\0"
"""A line that has become a part of the one before it; no text has this character."""


def _lower(lines: list[str], heading: Token, down: int) -> None:
    """Move a heading down; one that is underlined only where it does not stand in a list or quotation."""
    start, end = heading.map or (0, 0)
    if heading.markup.startswith("#"):
        lines[start] = _ATX.sub(lambda found: found[1] + "#" * min(len(found[2]) + down, 6), lines[start], count=1)
    elif not heading.level:
        content = " ".join(line.strip() for line in lines[start : end - 1])
        marks = "#" * (int(heading.tag[1:]) + down)
        closed = f" {marks}" if content.endswith("#") else ""
        _put(lines, start, end, f"{marks} {content}{closed}")


def _put(lines: list[str], start: int, end: int, text: str) -> None:
    """Put text in the place of lines; the others keep their numbers."""
    made = text.split("\n")
    lines[start:end] = made + [_GONE] * (end - start - len(made))


def _inline(text: str, labels: _Labels | None) -> str:
    """Text of a paragraph in which nothing begins HTML, and labels are its own; code in it stays as it is."""
    runs: dict[int, list[int]] = {}
    for run in re.finditer("`+", text):
        runs.setdefault(len(run[0]), []).append(run.start())
    pieces, done = [], 0
    while found := _INLINE.search(text, done):
        start, end = found.span()
        made = None
        if found["ticks"]:
            closing = runs.get(end - start, [])
            at = bisect_left(closing, end)
            end = closing[at] + end - start if at < len(closing) else end
        elif found["html"]:
            made = r"\<"
        elif found["place"]:
            made = found["before"] + _bare(found["place"])
        elif found["label"]:
            made, end = labels.used(found, done) if labels else ("[", start + 1)
        pieces += [text[done:start], text[start:end] if made is None else made]
        done = end
    return _HTML_LINE.sub(r"\1\\", "".join([*pieces, text[done:]]))


def _bare(place: str) -> str:
    """An address without its <>, where it could be taken for HTML; a scheme is no name of an element."""
    if len(place) <= 2 or _ADDRESS.match(place, 1):
        return place
    return re.sub(r"\\.|[ \t()]", lambda found: quote(found[0]) if found[0] in " \t()" else found[0], place[1:-1])


class _Labels:
    """The labels that a message defines, as they are called in the document."""

    def __init__(self, tokens: Sequence[Token], number: int) -> None:
        defined = [block.meta["label"] for block in tokens if block.type == "definition"]
        notes = [note for block in tokens if block.type == "inline" for note in _FOOTNOTE.findall(block.content)]
        self._names: dict[str, str] = {}
        for label in defined + notes:
            plain = label if re.fullmatch(r"\^?[\w.-]{1,40}", label) else f"~{len(self._names)}"
            self._names.setdefault(normalizeReference(label), f"{plain}-m{number}")

    def defined(self, definition: Token, text: str) -> str:
        """A definition; where another reader sees none, there is no HTML either."""
        found = _DEFINITION.match(text)
        if not found:
            return _inline(text, None)
        name = self._names[normalizeReference(definition.meta["label"])]
        rest = _inline(text[found.end() :], None)
        return f"{found[1]}[{name}]:{found[2]}{_bare(found[3]) if found[3] else ''}{rest}"

    def used(self, found: re.Match[str], done: int) -> tuple[str, int]:
        """What becomes of something in brackets, and where that ended. What was read before ended at `done`."""
        text, (start, end), inside = found.string, found.span(), found[0][1:-1]
        name = self._names.get(normalizeReference(inside))
        if name is None:
            return "[", start + 1
        if inside.startswith("^") or (start > done and text[start - 1] == "]"):
            return f"[{name}]", end  # a footnote, or behind the text of a link
        if text.startswith("[]", end):
            end += 2
        elif _TARGET.match(text, end) or re.compile(_LABEL).match(text, end):
            return "[", start + 1  # the text of a link
        return f"[{_inline(inside, None)}][{name}]", end


def _fences(text: str) -> list[Token]:
    """The fences that stand in no list or quotation."""
    return [block for block in _blocks().parse(text) if block.type == "fence" and not block.level]


def _is_open(fence: Token, lines: list[str]) -> bool:
    start, end = fence.map or (0, 0)
    mark = re.escape(fence.markup[0])
    closing = rf" {{0,3}}{mark}{{{len(fence.markup)},}}[ \t]*"
    return end - 1 <= start or re.fullmatch(closing, lines[end - 1]) is None


@cache
def _blocks() -> MarkdownIt:
    """Finds blocks only, and knows no HTML: a document whose every < were escaped has the same."""
    parser = MarkdownIt("commonmark", {"html": False, "inline_definitions": True}).enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser
