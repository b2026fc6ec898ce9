"""A bar that tells at a terminal how far something long has come, made with rich."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


class ProgressBar:
    """How far something long has come, on stderr, gone when it is over."""

    def __init__(self) -> None:
        out = Console(file=sys.stderr, highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=out, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task("")
        self._progress.start()
        out.show_cursor(True)  # a signal ends the process at once, and nobody would

    def show(self, done: int, total: int) -> None:
        """So far."""
        self._progress.update(self._task, completed=done, total=total)

    def end(self) -> None:
        """Remove it."""
        self._progress.stop()
