r"""Make the manual page, docs/data/share/man/man1/ollama-prompt.1.

    python scripts/make_man_page.py

The parser gives the flags, in their groups and order, and docs/cli.md the text: of each flag, around them, and
on output, exit codes, errors and environment. So it is written in one place. The page is what these two and the
version say, whatever the day and the machine; what is committed is compared with it.

Markdown is read as far as docs/cli.md uses it. In roff a backslash begins an escape, and a full stop at the
beginning of a line a command: text goes in through `_escaped`, and lines of it through `_shielded`.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from environment import ROOT

from ollama_prompt import __version__
from ollama_prompt.flags import make_parser

if TYPE_CHECKING:
    from argparse import Action
    from collections.abc import Iterator

SOURCE = ROOT / "docs" / "cli.md"
PAGE = ROOT / "docs" / "data" / "share" / "man" / "man1" / "ollama-prompt.1"

NAMES = {"Exit codes": "EXIT STATUS"}
"""Sections that manual pages call by another name."""
FILES = """
| file | what it is |
|---|---|
| `~/.ollama-prompt/sessions/YYYY-MM/UUID.jsonl` | A conversation, one JSON object a line. |
| `~/.ollama-prompt/attachments/` | The pictures of conversations. |
| `~/.ollama-prompt/sessions.db` | The index. It can be deleted at any time. |
| `~/.ollama-prompt/search.db` | The index of `--search`. It can be deleted at any time. |
| `~/.ollama-prompt/history.jsonl` | What was typed in conversations (`-i`). |
| `~/.ollama-prompt/locks/` | What keeps two processes from writing to one session. |
"""
EXAMPLES = """
A question, and another one with the first in mind:

```
ollama-prompt --prompt "What is a monad?" > conversation.json
SESSION_ID=$(jq -r .session_id conversation.json)
ollama-prompt --session-id $SESSION_ID --prompt "Say it in one sentence."
```

The answer alone, while it arrives:

```
git diff | ollama-prompt --prompt "Review this" --stdin --output text
```

What was not used for 30 days:

```
ollama-prompt --purge 30 --dry-run
```
"""

_BLOCK = re.compile(
    r"^```\w*\n(?P<code>[\s\S]*?)^```$"
    r"|^### (?P<heading>.+)$"
    r"|(?P<table>(?:^\|.*\n?)+)"
    r"|(?P<items>(?:^- .*\n?(?:^ +\S.*\n?)*)+)"
    r"|(?P<paragraph>(?:^(?!```|[#|]|- ).+\n?)+)",
    re.MULTILINE,
)


def page() -> str:
    """The manual page."""
    intro, sections = _sections(SOURCE.read_text(encoding="utf-8"))
    parser = make_parser()
    summary = str(parser.description)
    parts = [
        f'.TH OLLAMA\\-PROMPT 1 "" "ollama\\-prompt {__version__}" "User Commands"',
        ".nh",  # a flag or a path is not to be broken
        ".ad l",
        ".SH NAME",
        f"ollama\\-prompt \\- {_inline(summary[0].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(str(parser.usage)),
        ".SH DESCRIPTION",
        *_blocks(f"{summary} {parser.epilog}\n\n{intro}"),
    ]
    meanings = dict(_meanings(sections))
    for group in parser._action_groups:
        if group._group_actions:
            text = sections.pop(str(group.title).capitalize(), "")
            parts += [f".SH {str(group.title).upper()}", *_options(group._group_actions, meanings)]
            parts += _blocks(re.sub(r"\A\s*(^\|.*\n)+", "", text, flags=re.MULTILINE))
    for title, text in {**sections, "Files": FILES, "Examples": EXAMPLES, "See also": "**jq**(1), **git**(1)"}.items():
        parts += [f".SH {NAMES.get(title, title.upper())}", *_blocks(text)]
    # Below a heading a paragraph begins by itself.
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join(parts) + "\n", flags=re.MULTILINE)


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first heading, and the text below each."""
    before, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return before.partition("\n")[2], dict(zip(rest[::2], rest[1::2], strict=True))


def _synopsis(usage: str) -> Iterator[str]:
    for number, line in enumerate(usage.splitlines()):
        command, _, rest = line.strip().partition(" ")
        yield from [".br"] * bool(number)
        yield rf"\fB{_escaped(command)}\fR {_escaped(rest)}"


# -- the flags ---------------------------------------------------------------------------------------------


def _meanings(sections: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(flag, its meaning) of every row that begins with flags; of a flag that has several, the first counts."""
    for text in reversed(sections.values()):
        for first, *rest in reversed(list(_rows(text))):
            if len(rest) == 1:
                yield from ((flag, rest[0]) for flag in re.findall(r"`(--?[\w-]+)", first))


def _options(actions: list[Action], meanings: dict[str, str]) -> Iterator[str]:
    for action in actions:
        text = meanings.get(action.option_strings[-1], str(action.help))
        yield from (".TP", ", ".join(_named(name, action) for name in action.option_strings), _filled(text))


def _named(name: str, action: Action) -> str:
    """A flag and its value, as --help shows them."""
    flag = rf"\fB{_escaped(name)}\fR"
    if action.nargs == 0:
        return flag
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar)
    placeholder = rf"\fI{_escaped(value)}\fR"
    return f"{flag} [{placeholder}]" if action.nargs == "?" else f"{flag} {placeholder}"


# -- Markdown to roff --------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[str]:
    makers = {"code": _code, "heading": _heading, "table": _table, "items": _items, "paragraph": _paragraph}
    for block in _BLOCK.finditer(text):
        kind = str(block.lastgroup)
        yield from makers[kind](block[kind])


def _code(text: str) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf", *(_shielded(_escaped(line)) for line in text.splitlines()), ".fi", ".RE")


def _heading(text: str) -> Iterator[str]:
    yield f".SS {_inline(text)}"


def _paragraph(text: str) -> Iterator[str]:
    yield from (".PP", _filled(text))


def _items(text: str) -> Iterator[str]:
    for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
        yield from (r".IP \(bu 2", _filled(item))


def _table(text: str) -> Iterator[str]:
    """A list: what the first column has, then below it the rest, or what happened and then the rest."""
    head, *rows = _rows(text)
    for first, *rest in rows:
        cells = [(name, cell) for name, cell in zip(head[1:], rest, strict=True) if cell]
        if len(cells) > 1:
            cells.sort(key=lambda named: named[0] != "what happened")
            told, *others = cells
            cells = [told, *((name, f"{name.capitalize()}: {cell}.") for name, cell in others)]
        yield from (".TP", _inline(first), _filled(" ".join(cell for _, cell in cells)))


def _rows(text: str) -> Iterator[list[str]]:
    """The rows of all tables, without the lines below their heads."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _filled(text: str) -> str:
    lines = textwrap.wrap(_inline(" ".join(text.split())), 80, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_shielded, lines))


def _inline(text: str) -> str:
    """`code` and **bold** in bold; of a link its text, or nothing where it is a sentence that only leads away."""
    made = []
    text = re.sub(r"(?<=\. )\[[^\]]+\]\([^)]+\)\.", "", text)
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))", text):
        if part.startswith("`"):
            made.append(rf"\fB{_escaped(part[1:-1])}\fR")
        elif part.startswith("**"):
            made.append(rf"\fB{_escaped(part[2:-2])}\fR")
        elif part.startswith("[") and part.endswith(")"):
            made.append(_inline(part[1:].partition("](")[0]))
        else:
            made.append(_escaped(part))
    return "".join(made)


def _escaped(text: str) -> str:
    """Text in which nothing is special, and everything can be copied: a dash is a dash, not a hyphen."""
    special = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"}
    return "".join(special.get(char) or (char if char.isascii() else rf"\[u{ord(char):04X}]") for char in text)


def _shielded(line: str) -> str:
    """A line of text that cannot be taken for a command."""
    return rf"\&{line}" if line.startswith(".") else line


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    print(PAGE.relative_to(ROOT))
