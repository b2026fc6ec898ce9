"""Tables of Markdown that keep every cell. Pure.

The head of a table says how many columns there are, and Markdown drops what a row has beyond them. Models write such
rows unawares: a `|` in code divides cells as well. So the last cell of such a row has the rest of it.
"""

from __future__ import annotations

from markdown_it.rules_block import table
from markdown_it.rules_block.table import escapedSplit, getLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock


def keep_cells(parser: MarkdownIt) -> MarkdownIt:
    """The parser, with its rule for tables changed; `alt`, what a table may end, is as it was."""
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    return parser


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    tokens = state.tokens[first:]
    columns = sum(token.type == "th_open" for token in tokens)
    for cell, _, behind in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if cell.type == "inline" and behind.type == "tr_close" and cell.map:
            cells = _cells(getLine(state, cell.map[0]))
            if len(cells) > columns:
                cell.content = "|".join(cells[columns - 1 :]).strip()
    return True


def _cells(row: str) -> list[str]:
    """The cells of a row, as markdown-it divides it, without empty ones at the end."""
    cells = escapedSplit(row.strip())
    if cells[0] == "":
        del cells[0]
    while cells and not cells[-1].strip():
        del cells[-1]
    return cells
