"""A disk that nobody waits for: tests that cut no power need no fsync, which is most of what writing costs."""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = NORMAL", "synchronous = OFF"), *parameters)


def do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, neither files nor SQLite are synced."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_Connection))
