"""A disk that nobody waits for: tests that cut no power need no fsync, which is most of what writing costs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, files are not synced; the index never is."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
