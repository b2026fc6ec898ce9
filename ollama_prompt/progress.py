"""A bar that tells at a terminal how far something long has come, made with rich."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

_STEPS, _NUMBERS, _TIME = len(" 1/5 "), len(" 9999/9999 "), len("0:00:00 ")
"""Columns of what stands between the bar and the words."""
NARROW = 40
"""Columns with which there is no room for the time."""


class ProgressBar:
    """How far something long has come, on stderr, gone when it is over.

    One that is not timed is only drawn when there is something new: git may ask for a password meanwhile, on the same
    terminal, and a thread that draws would wipe it away.
    """

    def __init__(self, is_timed: bool) -> None:
        self._out = Console(file=sys.stderr, highlight=False)
        width = min(self._out.width // 4, 40)
        time = [TimeRemainingColumn()] * (is_timed and self._out.width >= NARROW)
        room = self._out.width - width - (_NUMBERS + _TIME * len(time) if is_timed else _STEPS)
        fitted = Column(no_wrap=True, overflow="ellipsis", max_width=max(room, 1))
        what = TextColumn("{task.description}", markup=False, table_column=fitted)
        columns = (BarColumn(bar_width=width), MofNCompleteColumn(), *time, what)
        self._is_timed = is_timed
        self._progress = Progress(
            *columns, console=self._out, transient=True, auto_refresh=is_timed, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._task = self._progress.add_task("")

    def show(self, what: str, done: int, total: int) -> None:
        """So far."""
        refresh = not self._is_timed
        self._progress.update(self._task, description=what, completed=done, total=total, refresh=refresh)
        self._progress.start()
        self._out.show_cursor(True)  # a signal ends the process at once, and nobody would

    def end(self) -> None:
        """Remove it."""
        self._progress.stop()
