"""What a comparison found, with what it was made on: as Markdown, and as JSON."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarking.tables import Table


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
    }


def processor() -> str:
    """Its name, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


class Report:
    """The tables of one run, the programs in their order, the first being ours."""

    def __init__(
        self, told: dict[str, str], absent: list[str], notes: list[str], tables: list[Table], floors: list[float]
    ) -> None:
        self.told = told
        for table in tables:
            for name, case in itertools.product(absent, table.rows):
                table.add(case, name, {"why": told[name]})
        self.notes = notes
        self.tables = tables
        self.floor_ms = 1000 * statistics.median(floors)

    def markdown(self) -> str:
        """All of it."""
        facts = {**machine(), "floor": f"{self.floor_ms:.1f} ms CPU", **self.told}
        head = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        tables = "\n".join(table.markdown(list(self.told)) for table in self.tables)
        notes = "\n".join(["\n### Notes\n", *(f"- {note}" for note in self.notes)]) if self.notes else ""
        found = f"## The figures\n\n{head}\n\n{tables}{notes}"
        return found if len(self.told) == 1 else f"{found}\n\n## Where we are not first\n\n{self.behind()}"

    def behind(self) -> str:
        """The rows where another program is ahead of the first."""
        ours = next(iter(self.told))
        lines = [f"- {line}" for table in self.tables for line in table.behind(ours)]
        return "\n".join(lines) if lines else "Nowhere, in these tables."

    def write(self, path: Path) -> None:
        """The raw figures."""
        tables = [table.data() for table in self.tables]
        data: dict[str, Any] = {
            "machine": machine(),
            "floor_ms": self.floor_ms,
            "programs": self.told,
            "tables": tables,
        }
        text = json.dumps({**data, "command": sys.argv[1:]}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
