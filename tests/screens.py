"""Python in a pseudo-terminal, and what it shows there. POSIX only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def shown(
    arguments: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80, folder: Path | None = None
) -> tuple[int, str]:
    """Run Python with these arguments in a terminal of this size: (exit code, what it showed)."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder
    )
    os.close(theirs)
    data = b""
    try:
        while piece := os.read(ours, 4096):
            data += piece
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(ours)
    return process.wait(30), data.decode()


def visible(shown: str) -> str:
    """What is left on a screen that is high and wide enough, after all that was drawn over; without colours."""
    rows, row, column = [""], 0, 0
    for sign in re.finditer(r"\x1b\[(?P<number>[0-9;?]*)(?P<order>[A-Za-z])|(?P<char>.)", shown, re.DOTALL):
        char, order = sign["char"], sign["order"]
        if char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif char:
            rows[row] = rows[row][:column].ljust(column) + char + rows[row][column + 1 :]
            column += 1
        elif order == "A":
            row -= int(sign["number"] or 1)
        elif order == "K":
            rows[row] = "" if sign["number"] == "2" else rows[row][:column]
    return "\n".join(rows)
