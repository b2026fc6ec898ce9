"""What a person sees at a terminal, made with rich: tables, conversations, Markdown while it arrives.

Only where stdout is a terminal that can move its cursor; everywhere else text is plain (`render`). Text from files and
models has its control characters made visible before rich sees it.

Markdown that arrives piece by piece is printed block by block: a paragraph, a list, a piece of code stays as it is once
the next one begins. What is not ended yet is drawn again with each piece, as far as the screen is high.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress

from markdown_it import MarkdownIt
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from ollama_prompt import console, interrupts
from ollama_prompt.clock import seconds_since
from ollama_prompt.errors import OutputClosed, OutputFailed
from ollama_prompt.query import MARKS
from ollama_prompt.render import visible, with_newlines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rich.console import ConsoleOptions, RenderableType, RenderResult

REDRAWS_PER_SECOND = 12
"""How often what is not ended yet is drawn again: a fast model sends more pieces than anybody sees."""
WIDE, VERY_WIDE = 100, 130
"""Columns from which the listing is a table; and one with the models."""
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
    shown = [_table(sessions, with_models=out.width >= VERY_WIDE)] if out.width >= WIDE else map(_block, sessions)
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
        model = [_line(session["model_name"] or "")] if with_models else []
        table.add_row(*map(Text, (_line(session["title"] or ""), *model, *numbers, session["session_id"])))
    return table


def _block(session: dict[str, Any]) -> Text:
    """A session on a narrow screen."""
    count = f"{session['message_count']} messages"
    facts = (ago(session["last_used"]), count, _share(session), _line(session["model_name"] or ""))
    text = Text(_line(session["title"] or ""), "bold")
    return text.append(f"\n{' · '.join(filter(None, facts))}\n{session['session_id']}", "not bold dim")


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
        head = Text(_line(match["title"] or match["session_id"]), "bold", no_wrap=True, overflow="ellipsis")
        where = Text(f"{ago(match['created_at'])} · {match['role'] or 'title'} · {match['session_id']}", "dim")
        shown += [head, where, Padding(_marked(match["snippet"]), (0, 0, 1, 2))]
    left_out = total - len(matches)
    shown.append(Text(f"{left_out} more; --limit shows them" if left_out else f"{total} found", "dim"))
    _print_paged(out, *shown)


def _marked(snippet: str) -> Text:
    text = Text()
    for number, part in enumerate(re.split(f"[{MARKS}]", visible(snippet))):
        text.append(part, "bold reverse" if number % 2 else "")
    return text


def _line(text: str) -> str:
    return " ".join(visible(text).split())


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
    role = _line(message.get("model") or message["role"])
    head = Text(f"\n{role}", "bold cyan" if message["role"] == "user" else "bold green")
    said = [ago(message.get("created_at")), *(["taken back"] if message.get("undone") else [])]
    head.append(f"  {' · '.join(filter(None, said))}", "dim not bold")
    text = visible(with_newlines(message.get("typed") or message["content"]))
    is_markdown = as_markdown and message["role"] == "assistant" and not message.get("undone")
    yield head
    yield make_markdown(text) if is_markdown else Text(text, "dim" if message.get("undone") else "")


# --- The pager -------------------------------------------------------------------------------------


def _print_paged(out: Console, *parts: RenderableType) -> None:
    """Print; where that is higher than the screen, through the pager that PAGER names, else `less`."""
    with out.capture() as capture:
        for part in parts:
            out.print(part)
    text = capture.get()
    command = _pager()
    if command and text.count("\n") >= out.height and _page(command, text):
        return
    console.write(text)


def _pager() -> list[str]:
    with suppress(ValueError):
        command = shlex.split(os.environ.get("PAGER", "less"))
        if command and shutil.which(command[0]):
            return command
    return []


def _page(command: list[str], text: str) -> bool:
    """Whether the pager took it; Ctrl-C is the pager's."""
    environment = {"LESS": "FRX", "LESSCHARSET": "utf-8", **os.environ}
    with interrupts.deferred():
        try:
            done = subprocess.run(command, input=text.encode(errors="backslashreplace"), env=environment, check=False)
        except OSError:
            return False
        return done.returncode not in {126, 127}


# --- Markdown --------------------------------------------------------------------------------------


def make_markdown(text: str) -> Markdown:
    """Markdown with the terminal's own colours; a link shows where it leads, and tags are text: `List<String>`."""
    made = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    made.markup = text
    made.parsed = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    return made


def ended(text: str) -> int:
    """Where the last block of a Markdown text begins: what is before it will not change any more."""
    starts = [token.map[0] for token in make_markdown(text).parsed if token.level == 0 and token.map]
    return sum(len(line) + 1 for line in text.split("\n")[: starts[-1]]) if len(starts) > 1 else 0


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
        self._drawn = 0.0

    def token(self, text: str) -> None:
        """Draw what has come."""
        console.clear()
        text, self._cut = self._cut + text, ""
        if text.endswith("\r"):  # perhaps half of a line's end
            text, self._cut = text[:-1], "\r"
        self._rest += visible(with_newlines(text))
        if time.monotonic() - self._drawn < 1 / REDRAWS_PER_SECOND:
            return
        with console.translated():
            if end := ended(self._rest):
                self._print(self._rest[:end])
                self._rest = self._rest[end:]
            if not self._live.is_started:
                self._live.start()
                self._out.show_cursor(True)  # who stops or ends the process would leave the shell without one
            self._live.update(_LastLines(self._spaced(self._rest)), refresh=True)
        self._drawn = time.monotonic()

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
