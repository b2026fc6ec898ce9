"""Make the pictures of docs/reading.md from what the command really prints at a terminal.

    python scripts/make_pictures.py

Needs the environment of scripts/test.py, and a pseudo-terminal (not Windows). The conversations are made up here; all
times in them are relative to now, so that the pictures stay the same.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import ROOT
from rich.console import Console
from rich.text import Text

sys.path.append(str(ROOT / "tests"))

import screens
import stores

ROWS, COLUMNS = 60, 110
RIVERS = """The **three longest** are:

| river | km |
|---|---|
| Volga | 3,530 |
| Danube | 2,850 |
| Ural | 2,428 |

Most of the *Ural* lies in Asia."""
CODE = """```python
rivers = {"Volga": 3530, "Danube": 2850, "Ural": 2428}

for name in sorted(rivers):
    print(name)
```"""
TALKS: list[tuple[str, float, str, list[str]]] = [
    ("Rivers of Europe", 0.2, "smollm2", ["Name the three longest rivers of Europe.", RIVERS, "And in Python?", CODE]),
    ("Où finit le Danube ?", 3, "qwen3:8b", ["Où finit le Danube ?", "Dans la mer Noire."]),
    ("Review of parser.py", 26, "deepseek-v3.1:671b-cloud", ["Review @./parser.py", "Line 12 never ends." * 30]),
    ("A poem about a walrus", 80, "smollm2", ["Write a poem about a walrus.", "It lay upon the sand, and slept."]),
]
"""Title, hours ago, model, what was said in turn."""
PICTURES = {
    "listing": ["--list-sessions"],
    "search": ["--search", "danube"],
    "conversation": ["--session-info", stores.new_id(0)],
}


def main() -> int:
    """Make them; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / ".ollama-prompt"
        for number, talk in enumerate(TALKS):
            keep(home, number, *talk)
        for name, arguments in PICTURES.items():
            shown = screen(home, arguments).replace(folder, "/home/you")
            (ROOT / "docs" / "pictures" / f"{name}.svg").write_text(picture(name, arguments, shown), encoding="utf-8")
    return 0


def keep(home: Path, number: int, title: str, hours: float, model: str, said: list[str]) -> None:
    """Lay a conversation into the store."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - 3600 * hours))
    records: list[dict[str, Any]] = [stores.header(stores.new_id(number), title=title, model=model)]
    for turn, text in enumerate(said):
        answer = {"model": model, "prompt_tokens": 80 * len(text), "tokens": 40, "done_reason": "stop"}
        more = answer if turn % 2 else {}
        records.append(stores.message(100 * number + turn, ("user", "assistant")[turn % 2], text, **more))
        records[-1]["created_at"] = at
    stores.make(home, number, b"".join(map(stores.line, records)))


def screen(home: Path, arguments: list[str]) -> str:
    """What a terminal gets from the command."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "TERM": "xterm-256color", "PAGER": "cat"}
    command = ["-m", "ollama_prompt", *arguments, "--output", "text"]
    return screens.shown(command, environment, ROWS, COLUMNS)[1].replace("\r\n", "\n")


def picture(name: str, arguments: list[str], shown: str) -> str:
    """The screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  as long as we run
    quoted = " ".join(arguments)
    console.print(Text.from_ansi(f"$ ollama-prompt {quoted} --output text\n{shown.rstrip()}"))
    svg = console.export_svg(title="", unique_id=name)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # they would be fetched from somebody


if __name__ == "__main__":
    sys.exit(main())
