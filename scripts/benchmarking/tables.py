"""Results as tables: for people in Markdown, for programs in JSON.

A table has a row for each case and a column for each program. A cell is a dict: `text` is shown, `value`, if any, ranks
it in its row, the rest is what was measured. A cell with `why` instead holds no figure and says why not. Nothing here
knows what a figure means; which program is first, and where the first column is not, follows from the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Cell = dict[str, Any]


class Target(NamedTuple):
    """What the first column must not exceed."""

    value: float
    megabytes: float | None = None

    def text(self) -> str:
        """As a table shows it."""
        return f"≤ {self.value:g}" + (f", ≤ {self.megabytes:g} MB" if self.megabytes else "")

    def met(self, cell: Cell) -> bool:
        """Whether a cell keeps within it."""
        return bool(cell["value"] <= self.value and (not self.megabytes or cell["peak_mb"] <= self.megabytes))


class Table:
    """One table."""

    def __init__(self, title: str, about: str, *, best: str = "least") -> None:
        self.title = title
        self.about = about
        self.best = best
        """Whether the `least` or the `most` is first; `none`: no ranking."""
        self.rows: dict[str, dict[str, Cell]] = {}
        self.targets: dict[str, Target] = {}

    def add(self, case: str, program: str, cell: Cell) -> None:
        """Fill a cell."""
        self.rows.setdefault(case, {})[program] = cell

    def first(self, case: str) -> list[str]:
        """The programs that are first in a row of several: more than one where they are equal as shown."""
        values = {name: cell["value"] for name, cell in self.rows[case].items() if "value" in cell}
        if self.best == "none" or not values or len(self.rows[case]) == 1:
            return []
        best = (min if self.best == "least" else max)(values.values())
        return [name for name, value in values.items() if value == best]

    def markdown(self, programs: list[str]) -> str:
        """The table, and below it why a cell is empty."""
        whys: list[str] = []
        goals = ["target"] if self.targets else []
        lines = [row_of(["", *programs, *goals]), "|" + "---|" * (1 + len(programs) + len(goals))]
        for case, cells in self.rows.items():
            shown = [self.shown(case, name, cells.get(name), whys) for name in programs]
            lines.append(row_of([case, *shown, *([self.goal(case, programs[0])] if goals else [])]))
        notes = [f"[{number}] {why}" for number, why in enumerate(whys, 1)]
        head = f"### {self.title}\n\n{self.about}\n\n"
        return head + "\n".join(lines) + "\n" + ("\n" + "  \n".join(notes) + "\n" if notes else "")

    def shown(self, case: str, name: str, cell: Cell | None, whys: list[str]) -> str:
        """A cell as text; the first in bold, an empty one with the number of its reason."""
        if cell is None:
            return ""
        if "why" in cell:
            why = f"{name}: {cell['why']}"
            if why not in whys:
                whys.append(why)
            return f"— [{whys.index(why) + 1}]"
        return f"**{cell['text']}**" if name in self.first(case) else str(cell["text"])

    def goal(self, case: str, name: str) -> str:
        """The target of a row, and whether it is met."""
        target, cell = self.targets.get(case), self.rows[case].get(name, {})
        if target is None:
            return ""
        return target.text() + ("" if "value" not in cell else ", met" if target.met(cell) else ", **missed**")

    def behind(self, name: str) -> Iterator[str]:
        """The rows where this program is not first, as sentences."""
        for case, cells in self.rows.items():
            first = self.first(case)
            if first and name not in first and name in cells:
                mine = cells[name].get("text", "no figure")
                yield f"{self.title}, {case}: {first[0]} {cells[first[0]]['text']}, {name} {mine}"

    def data(self) -> dict[str, Any]:
        """All of it, for JSON."""
        targets = {case: target._asdict() for case, target in self.targets.items()}
        return {"title": self.title, "about": self.about, "best": self.best, "rows": self.rows, "targets": targets}


def row_of(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def size(number: int) -> str:
    """A number of bytes, for people."""
    return (
        f"{number} B" if number < 1000 else f"{number / 1000:.0f} kB" if number < 10**6 else f"{number / 10**6:.1f} MB"
    )
