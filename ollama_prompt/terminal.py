"""What a person sees at a terminal, made with rich: tables, conversations, Markdown while it arrives.

Only where stdout is a terminal that can move its cursor; everywhere else text is plain (`render`). Text from files and
models has its control characters made visible before rich sees it.

Markdown that arrives piece by piece is printed block by block: a paragraph, a list, a piece of code stays as it is once
the next one begins. What is not ended yet is drawn again with each piece, as far as the screen is high.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import dropwhile

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import CodeBlock, Markdown, MarkdownElement, TableElement
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ollama_prompt import console, interrupts
from ollama_prompt.clock import seconds_since
from ollama_prompt.errors import OutputClosed, OutputFailed
from ollama_prompt.query import MARKS
from ollama_prompt.render import marks_of, one_line, pictures_of, plain, thinking_of, visible
from ollama_prompt.tables import keep_cells

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar

    from rich.console import ConsoleOptions, RenderableType, RenderResult

REDRAWS_PER_SECOND, REDRAWING_SHARE = 12, 0.2
"""How often what is not ended yet is drawn again: a fast model sends more pieces than anybody sees. And how much of the
time that may take: a long piece of code is laid out whole each time, and who draws does not listen."""
WIDE, VERY_WIDE = 100, 130
"""Columns from which the listing is a table; and one with the models."""
NARROWEST, UNLIMITED = 8, 1_000_000
"""Columns that text needs to be read; and more than anything has."""
_COLORS = {"user": "bold cyan", "assistant": "bold green"}
_UNITS = ((86_400 * 365, "y"), (86_400 * 30, "mo"), (86_400, "d"), (3600, "h"), (60, "min"))


def make_console() -> Console:
    """What prints to stdout."""
    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False)


# --- Listings --------------------------------------------------------------------------------------


def show_listing(sessions: list[dict[str, Any]], total: int) -> None:
    """Sessions, through a pager where the screen is too small; each has `max_context_tokens` too."""
    out = make_console()
    left_out = total - len(sessions)
    more = [Text(f"{left_out} more; --limit shows them", "dim")] if left_out else []
    if not total:
        more = [Text("no sessions yet", "dim")]
    shown = (
        [_table(sessions, with_models=out.width >= VERY_WIDE)]
        if out.width >= WIDE and sessions
        else map(_block, sessions)
    )
    _print_paged(out, *shown, *more)


def _table(sessions: list[dict[str, Any]], with_models: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    table.add_column("TITLE", ratio=1, no_wrap=True, overflow="ellipsis")
    if with_models:
        table.add_column("MODEL", max_width=24, no_wrap=True, overflow="ellipsis")
    for name in ("USED", "MESSAGES", "WINDOW"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("SESSION", min_width=36, no_wrap=True, style="dim")
    for session in sessions:
        numbers = (ago(session["last_used"]), str(session["message_count"]), _share(session))
        model = [one_line(session["model_name"] or "")] if with_models else []
        table.add_row(*map(Text, (one_line(session["title"] or ""), *model, *numbers, session["session_id"])))
    return table


def _block(session: dict[str, Any]) -> RenderableType:
    """A session on a narrow screen."""
    count = f"{session['message_count']} message{'s' * (session['message_count'] != 1)}"
    facts = (ago(session["last_used"]), count, _share(session), one_line(session["model_name"] or ""))
    return Group(
        _title(session["title"] or ""), Text(f"{' · '.join(filter(None, facts))}\n{session['session_id']}", "dim")
    )


def _title(text: str) -> Text:
    """A title above what belongs to it."""
    return Text(one_line(text), "bold", no_wrap=True, overflow="ellipsis")


def _share(session: dict[str, Any]) -> str:
    """How full the window is."""
    limit = session.get("max_context_tokens") or 0
    return f"{100 * session['context_tokens'] / limit:.0f} %" if limit > 0 else ""


def ago(then: str | None) -> str:
    """How long ago that was."""
    seconds = seconds_since(then)
    if seconds is None:
        return ""
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit} {name} ago"
    return "just now"


def show_matches(matches: list[dict[str, Any]], total: int) -> None:
    """What was found, each with where that is, the words marked."""
    out = make_console()
    shown: list[RenderableType] = []
    for match in matches:
        facts = ago(match["created_at"]), one_line(match["role"] or "title"), match["session_id"]
        where = Text(" · ".join(facts), "dim")
        shown += [
            _title(match["title"] or match["session_id"]),
            where,
            Padding(_marked(match["snippet"]), (0, 0, 1, 2)),
        ]
    left_out = total - len(matches)
    shown.append(Text(f"{left_out} more; --limit shows them" if left_out else f"{total} found", "dim"))
    _print_paged(out, *shown)


def _marked(snippet: str) -> Text:
    text = Text()
    for number, part in enumerate(re.split(f"[{MARKS}]", visible(snippet))):
        text.append(part, "bold reverse" if number % 2 else "")
    return text


# --- One conversation ------------------------------------------------------------------------------


def show_conversation(info: dict[str, Any], as_markdown: bool) -> None:
    """One session as a person reads it, through a pager where the screen is too small."""
    out = make_console()
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    for name, value in _facts(info):
        head.add_row(name, Text(visible(value)))
    messages = [part for message in info["messages"] for part in _message(message, as_markdown)]
    _print_paged(out, head, *messages)


def _facts(info: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What there is to say of a session."""
    usage = f"{info['context_tokens']} of {info['max_context_tokens']} tokens"
    if info["context_usage_percent"] is not None:
        usage += f", {info['context_usage_percent']} %"
    facts = {
        "title": info["title"], "session": info["session_id"], "model": info["model_name"],
        "used": ago(info["last_used"]), "window": usage, "system": info["system_prompt"], "file": info["path"],
    }  # fmt: skip
    yield from ((name, str(value)) for name, value in facts.items() if value)
    yield from (("damaged", f"line {item['line']}: {item['reason']}") for item in info["damage"])


def _message(message: dict[str, Any], as_markdown: bool) -> Iterable[RenderableType]:
    undone = message.get("undone")
    head = Text(f"\n{one_line(str(message.get('model') or message['role']))}", _COLORS.get(message["role"], "bold"))
    facts = ago(message.get("created_at")), *marks_of(message), one_line(str(message.get("id") or ""))
    yield head.append(f"  {' · '.join(filter(None, facts))}", "dim not bold")
    if thinking := thinking_of(message):
        yield Text(f"{thinking}\n", "dim italic")
    typed = message.get("typed")
    text = plain(typed if isinstance(typed, str) and typed else message["content"])
    is_markdown = as_markdown and message["role"] == "assistant" and not undone
    yield make_markdown(text) if is_markdown else Text(text, "dim" if undone else "")
    yield from (Text(picture, "dim") for picture in pictures_of(message))


# --- The pager -------------------------------------------------------------------------------------


def _print_paged(out: Console, *parts: RenderableType) -> None:
    """Print; where that is higher than the screen, through the pager."""
    with out.capture() as capture:
        out.print(Group(*parts))  # printed one by one, a text would lose that it is not to be wrapped
    text = capture.get()
    console.clear()
    if text.count("\n") < out.height or not _is_paged(text):
        console.write(text)


def _is_paged(text: str) -> bool:
    """Whether the pager that PAGER names, else `less`, has shown it; Ctrl-C is the pager's.

    PAGER is the user's own command, for the shell, as git and man take it: `less -R | cat`. Not so where it failed,
    unless somebody ended it: then the text is wanted no more.
    """
    pager = os.environ.get("PAGER", "less -R" if shutil.which("less") else "")
    if not pager.strip():
        return False
    environment = {"LESS": "FRX", "LESSCHARSET": "utf-8", "LV": "-c", **os.environ}
    data = text.encode(errors="backslashreplace")
    with interrupts.deferred():
        try:
            done = subprocess.run(pager, shell=True, input=data, env=environment, check=False)  # noqa: S602  see above
        except OSError:
            return False
        return done.returncode <= 0 or 128 < done.returncode < 256 or interrupts.is_pending()


# --- Markdown --------------------------------------------------------------------------------------


def make_markdown(text: str) -> Markdown:
    """Markdown with the terminal's own colours; a link shows where it leads, and tags are text: `List<String>`."""
    made = _Markdown("", code_theme="ansi_dark", hyperlinks=False)
    made.markup = text
    made.parsed = _parsed(text)
    for token in made.parsed:
        token.children = list(_shown(token.children or ()))
    return made


def _parsed(text: str) -> list[Token]:
    """The blocks, each by itself: an address that stands in a later one (`[1]: …`) would come too late."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("reference")
    return keep_cells(parser).parse(text)


def _shown(tokens: Iterable[Token]) -> Iterable[Token]:
    """Pictures as links to them: rich shows no address. Verses stay lines; what `&#x202e;` stands for is visible."""
    for token in tokens:
        if token.type == "image":
            yield Token("link_open", "a", 1, attrs={"href": token.attrs["src"]})
            yield from _shown(token.children or ())
            yield Token("link_close", "a", -1)
        elif token.type == "softbreak":
            yield Token("hardbreak", "br", 0)
        elif token.info != "auto":  # <https://…>, whose text is the address
            token.content = visible(token.content)
            yield token


class _Table(TableElement):
    """Cells wrap; and where columns are too narrow to read, each row is a list of what it has."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        (table,) = super().__rich_console__(console, options)
        assert isinstance(table, Table)
        needed = console.measure(table, options=options.update(max_width=UNLIMITED)).maximum
        if options.max_width < min(needed, NARROWEST * len(table.columns)):
            yield from self._rows()
            return
        for column in table.columns:
            column.overflow = "fold"
        table.show_edge = False
        yield table

    def _rows(self) -> Iterable[Text]:
        head = self.header.row.cells if self.header and self.header.row else []
        names = [Text.assemble(cell.content, ": ", style="bold") for cell in head]
        for row in self.body.rows if self.body else []:
            cells = zip(names, (cell.content for cell in row.cells), strict=True)
            yield Text("\n").join([*(Text.assemble(name, cell) for name, cell in cells), Text()])


class _Code(CodeBlock):
    """Code without empty lines above and below it beside those that every block has."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for made in super().__rich_console__(console, options):
            if isinstance(made, Syntax):
                made.padding = (0, 1, 0, 1)
            yield made


class _Markdown(Markdown):
    """What rich would lose of it is kept: cells wrap, and what is nested too deep for the screen is text.

    It is without the empty lines that rich puts above and below some blocks, and not others.
    """

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements, "table_open": _Table, "fence": _Code, "code_block": _Code
    }  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width - _indent(self.parsed) < NARROWEST:
            yield Text(self.markup)
        else:
            made = [segment for segment in super().__rich_console__(console, options) if isinstance(segment, Segment)]
            rows = [_stripped(row) for row in Segment.split_lines(made)]
            for row in dropwhile(lambda row: not row, rows[: _filled(rows)]):
                yield from (*row, Segment.line())


def _stripped(row: list[Segment]) -> list[Segment]:
    """Without the spaces at its end, which a window that is made narrower would wrap."""
    while row and not row[-1].text.strip(" "):
        row = row[:-1]
    return [*row[:-1], Segment(row[-1].text.rstrip(" "), row[-1].style)] if row else []


def _filled(rows: list[list[Segment]]) -> int:
    """How many there are without the empty ones at the end."""
    return max((number for number, row in enumerate(rows, 1) if row), default=0)


def _indent(tokens: Iterable[Token]) -> int:
    """How many columns lists and quotes take, at most."""
    widths = [0]
    deepest = 0
    for token in tokens:
        if token.type in {"blockquote_open", "bullet_list_open"}:
            widths.append(4)
        elif token.type == "ordered_list_open":
            widths.append(len(str(token.attrs.get("start", 1))) + 4)
        elif token.type in {"blockquote_close", "bullet_list_close", "ordered_list_close"}:
            widths.pop()
        deepest = max(deepest, sum(widths))
    return deepest


def ended(text: str) -> int:
    """Where the last block of a Markdown text begins: what is before it will not change any more.

    Whole lines count: `-` may become the next item of a list, or `-1` in the paragraph before it.
    """
    lines = text.split("\n")[:-1]
    starts = [token.map[0] for token in _parsed("\n".join(lines)) if token.level == 0 and token.map]
    return sum(len(line) + 1 for line in lines[: starts[-1]]) if len(starts) > 1 else 0


class _LastLines:
    """The last lines of something, as many as fit on the screen."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in lines[-max(options.max_height - 1, 1) :]:
            yield Segments([*line, Segment.line()])


class MarkdownSink(console.TextSink):
    """An answer that is rendered as Markdown while it arrives."""

    def __init__(self) -> None:
        self._out = make_console()
        self._live = Live(console=self._out, transient=True, auto_refresh=False, redirect_stdout=False,
                          redirect_stderr=False)  # fmt: skip
        self._rest = self._cut = ""
        self._printed = False
        self._next = 0.0

    def token(self, text: str) -> None:
        """Draw what has come."""
        console.clear()
        text, self._cut = self._cut + text, ""
        if text.endswith("\r"):  # perhaps half of a line's end
            text, self._cut = text[:-1], "\r"
        self._rest += plain(text)
        began = time.monotonic()
        if began < self._next:
            return
        with console.translated():
            if end := ended(self._rest):
                self._print(self._rest[:end])
                self._rest = self._rest[end:]
            if not self._live.is_started:
                self._live.start()
                self._out.show_cursor(True)  # who stops or ends the process would leave the shell without one
            self._live.update(_LastLines(self._spaced(self._rest)), refresh=True)
        now = time.monotonic()
        self._next = now + max(1 / REDRAWS_PER_SECOND, (now - began) / REDRAWING_SHARE)

    def end(self, turn: dict[str, Any]) -> None:
        """Print what is left."""
        del turn
        console.clear()
        with console.translated():
            self._live.stop()
            if self._rest or not self._printed:
                self._print(self._rest)
            self._rest, self._printed = "", True

    def close(self) -> None:
        """Print what has come of an answer that broke off."""
        with suppress(OutputClosed, OutputFailed):
            if self._rest or self._live.is_started:
                self.end({})
        console.clear()

    def _print(self, text: str) -> None:
        self._live.update("", refresh=True)
        self._out.print(self._spaced(text))
        self._printed = True

    def _spaced(self, text: str) -> RenderableType:
        """A block, with an empty line between it and the one before."""
        return Group("", make_markdown(text)) if self._printed else make_markdown(text)
