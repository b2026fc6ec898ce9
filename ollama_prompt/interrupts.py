"""Ctrl-C and TERM at the right moment.

A signal means one of three things, depending on where the program is:

    (anywhere else)   the process ends at once, with the exit code and without a word: whatever it does,
                      the store is safe from being killed
    deferred          it is remembered: half a turn would be left behind
    heard             it is raised as `Interrupted`: only where a turn waits, for the model or for the reader, where
                      an export writes, which removes what is unfinished, and where a sync has merged

So the code of a turn has few places that an interruption can come from, and libraries none, which do not expect one
while they are imported or clean up; but for what `lean` puts off, which can be imported again. A third signal ends the
process wherever it is.

A conversation goes on after a turn. Within `going_on` no signal ends the process at once: what would is heard
instead, and one that comes behind the last `heard` of a turn waits for the next prompt.

Who changes the terminal names, with `left_in_order`, what puts it back: so Ctrl-Z, or a signal that ends the process
at once, leaves a terminal as the shell needs it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from _thread import get_ident, interrupt_main, start_new_thread
from contextlib import contextmanager

from ollama_prompt.errors import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

END, DEFER, RAISE, TELL = range(4)
PATIENCE = 3
"""The signal at which the process ends, whatever it waits for."""
AGAIN_SECONDS = 0.02
"""How long a signal waits that met a finalizer: those end at once."""
ONE_PRESS = 1.0
"""Seconds in which a conversation takes several signals for one: the key may be held down, and nothing may hang."""


def end(code: int) -> NoReturn:
    """End the process at once: what is to be written and flushed is.

    After Ctrl-C at a terminal it ends by that signal, which a shell reports as 130 all the same: a loop of bash goes
    on after a call that merely says 130.
    """
    _State.leave()
    if code == 128 + signal.SIGINT and os.name == "posix" and os.isatty(2):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _exit(number: int) -> None:
    end(128 + number)


def _raise(number: int) -> None:  # noqa: ARG001  Python tells only Ctrl-C
    raise KeyboardInterrupt


class _State:
    reaction = END
    received = 0
    received_at = 0.0
    pending: int | None = None
    goes_on = False
    tell: Callable[[], object] = staticmethod(lambda: None)
    leave: Callable[[], object] = staticmethod(lambda: None)
    thread: int | None = None  # signals arrive in the main thread only, and only where we handle them
    end: Callable[[int], object] = staticmethod(_exit)


def install() -> None:
    """React to the signals that end a program. One that is ignored (nohup, &) stays so."""
    _State.thread = get_ident()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    sys.unraisablehook = _forget_no_signal


def _forget_no_signal(unraisable: sys.UnraisableHookArgs) -> None:
    """No exception can leave a finalizer: Python would print this one, and the signal would be forgotten."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    _State.reaction = RAISE
    _State.received -= 1
    number = unraisable.exc_value.signal_number
    start_thread(lambda: _send_again(number))


def _send_again(number: int) -> None:
    """To the main thread, once it is out of the finalizer."""
    time.sleep(AGAIN_SECONDS)
    if hasattr(signal, "pthread_kill") and _State.thread:
        signal.pthread_kill(_State.thread, number)  # wakes who waits for the network
    else:
        interrupt_main(signal.Signals(number))


def _count() -> None:
    now = time.monotonic()
    if not _State.goes_on or now - _State.received_at >= ONE_PRESS:
        _State.received += 1
        _State.received_at = now


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
    _count()
    if _State.reaction == END or _State.received >= PATIENCE:
        _State.end(number)
    if _State.reaction == RAISE:
        _State.reaction = DEFER  # what cleans up behind the exception is not interrupted again
        raise Interrupted(number)
    _State.pending = number
    if _State.reaction == TELL:
        _State.tell()


@contextmanager
def within_library() -> Iterator[None]:
    """React to Ctrl-C as the command does, in a program that is not ours: what ends there raises KeyboardInterrupt.

    Only where Python's own handler is in place; a program that has one of its own keeps it.
    """
    import threading

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _State.thread, _State.received, _State.pending, _State.end = get_ident(), 0, None, _raise
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _State.thread, _State.end = None, _exit


@contextmanager
def going_on() -> Iterator[None]:
    """A conversation: a signal ends a turn, or is heard at the prompt. Everything inside is deferred."""
    _State.goes_on = True
    try:
        with _reacting(DEFER):
            yield
    finally:
        _State.goes_on = False


def start_thread(run: Callable[[], object]) -> None:
    """Start a thread that no signal wakes: who waits, for the model or for keys, is the main thread."""
    if not hasattr(signal, "pthread_sigmask"):
        start_new_thread(run, ())
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        start_new_thread(run, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferred() -> Iterator[None]:
    """A signal waits for the next `heard`; behind the last one it is too late for it, unless a conversation goes on."""
    if _State.goes_on:
        _State.received = 0  # the patience that an earlier turn has cost is forgotten
    try:
        with _reacting(DEFER):
            yield
    finally:
        if not _State.goes_on:
            _take_pending()


@contextmanager
def heard() -> Iterator[None]:
    """Inside `deferred`: a signal raises `Interrupted`, also one that came before."""
    with _reacting(RAISE):
        if (number := _take_pending()) is not None:
            _State.reaction = DEFER
            raise Interrupted(number)
        yield


@contextmanager
def told(tell: Callable[[], object]) -> Iterator[None]:
    """Inside `deferred`: a signal calls `tell`, and raises `Interrupted` behind the end of this.

    For what ends when it is told, and must not be raised into: an event loop keeps such an exception to itself. One
    that came before is not told, but `is_pending`.
    """
    _State.tell = tell
    try:
        with _reacting(TELL):
            yield
    finally:
        if (number := _take_pending()) is not None:
            raise Interrupted(number) from None


@contextmanager
def left_in_order(leave: Callable[[], object], come_back: Callable[[], object]) -> Iterator[None]:
    """Inside, `leave` is called before the process ends at once, or stops; `come_back` when it goes on. Main thread."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when the process goes on
        signal.signal(number, stop)
        come_back()

    number = getattr(signal, "SIGTSTP", None)
    before = signal.getsignal(number) if number else signal.SIG_IGN
    if number and before is not signal.SIG_IGN:
        signal.signal(number, stop)
    _State.leave = leave
    try:
        yield
    finally:
        _State.leave = lambda: None
        if number and before is not signal.SIG_IGN:
            signal.signal(number, before)


def is_pending() -> bool:
    """Whether a signal waits to be heard."""
    return _State.pending is not None


@contextmanager
def fatal() -> Iterator[None]:
    """Inside `deferred`: a signal ends the process at once, also one that came before; nothing has been begun yet.

    In a conversation it is heard.
    """
    if _State.goes_on:
        with heard():
            yield
        return
    with _reacting(END):
        if (number := _take_pending()) is not None:
            _State.end(number)
        yield


def _take_pending() -> int | None:
    """The signal that waits, and then no more; None in a thread that signals are not for."""
    if _State.thread != get_ident():
        return None
    number, _State.pending = _State.pending, None
    return number


@contextmanager
def _reacting(reaction: int) -> Iterator[None]:
    if _State.thread != get_ident():
        yield
        return
    before, _State.reaction = _State.reaction, reaction
    try:
        yield
    finally:
        _State.reaction = before
