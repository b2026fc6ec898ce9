"""Python in a pseudo-terminal, and what it shows there. POSIX only."""

from __future__ import annotations

import os
import subprocess
import sys


def shown(arguments: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80) -> tuple[int, str]:
    """Run Python with these arguments in a terminal of this size: (exit code, what it showed)."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
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
