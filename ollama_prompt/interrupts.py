"""Ctrl-C and TERM, as exceptions at the right moment.

A signal raises `Interrupted` wherever the program is, most likely waiting for the model; not while
something is being stored, where half a step would be left behind: inside `shield` it waits for the end.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager

from ollama_prompt.errors import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class _State:
    shields = 0
    pending: int | None = None


def install() -> None:
    """Turn the signals that end a program into `Interrupted`. One that is ignored (nohup, &) stays so."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
    if _State.shields:
        _State.pending = number
    else:
        raise Interrupted(number)


@contextmanager
def shield(last_step: bool = False) -> Iterator[None]:
    """No interruption inside. One that came meanwhile is raised at the end; none after the last step,
    when nothing is left that could be interrupted.
    """
    _State.shields += 1
    try:
        yield
    finally:
        _State.shields -= 1
        pending, _State.pending = _State.pending, None
    if pending is not None and not last_step:
        raise Interrupted(pending)
