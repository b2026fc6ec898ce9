"""Programs run from start to end, and what each run cost.

A cost is that of one whole process: CPU time (user + system), time on the clock, peak memory, bytes written to files.
`launch.py` takes it; this is its other side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from environment import Failed

LAUNCHER = Path(__file__).with_name("launch.py")


class Cost(NamedTuple):
    """One run."""

    cpu: float
    clock: float
    peak: int
    written: int | None
    """To files, in bytes; None where the system does not count them."""
    code: int
    output: str
    complaint: str


class Process:
    """A program that was started; several may run at once."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        handle, self._report = tempfile.mkstemp(prefix="cost-")
        os.close(handle)
        self._command = command[0]
        launched = [sys.executable, "-I", "-S", str(LAUNCHER), self._report, *command]
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            launched, env=env, stdin=nothing, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def end(self) -> Cost:
        """Wait for its end; what it cost."""
        output, complaint = self._process.communicate()
        report = Path(self._report).read_text(encoding="ascii").split()
        os.unlink(self._report)
        if not report:
            raise Failed(f"{self._command} cannot be run: {complaint.decode('utf-8', 'replace').strip()}")
        code, cpu, clock, peak, written = report
        to_files = int(written) - len(output) - len(complaint) if int(written) >= 0 else None
        texts = (text.decode("utf-8", "replace") for text in (output, complaint))
        return Cost(float(cpu), float(clock), int(peak), to_files, int(code), *texts)


def run(command: list[str], env: dict[str, str]) -> Cost:
    """Run a program alone."""
    return Process(command, env).end()
