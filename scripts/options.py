"""Values of the scripts' flags, for argparse: what cannot be meant is refused before anything is begun."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def count(text: str) -> int:
    """How many of something: at least one."""
    return _at_least(int(text), 1)


def number(text: str) -> int:
    """Which one of something; the first is 0."""
    return _at_least(int(text), 0)


def seconds(text: str) -> float:
    """How long."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be above 0, and end")
    return value


def new_file(text: str) -> Path:
    """A file that is written at the end of a long run: its folder is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text}")
    return path


def old_file(text: str) -> Path:
    """A file that is read."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def _at_least(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more")
    return value
