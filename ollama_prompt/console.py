"""stdout and stderr, and what can be wrong with them.

stdout carries the answer and nothing else, always as UTF-8 with "\\n", whatever the platform prefers, so
that jq and other programs read the same everywhere. A reader that went away is `OutputClosed`, a full disk
or a closed stdout `OutputFailed`. stderr is for people: what cannot be written there is dropped.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _thread import allocate_lock
from contextlib import contextmanager, suppress

from ollama_prompt import interrupts
from ollama_prompt.errors import OutputClosed, OutputFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TextIO

    from ollama_prompt.progress import ProgressBar


PIECE = 1000
"""Characters of the longest text in an event. An event that is larger than the buffer of stdout, 8192 bytes, would
be cut in two where an interruption finds it waiting for a slow reader."""


def prepare() -> None:
    """Set up both streams; what is no valid Unicode (a file's name) is escaped as JSON would."""
    _buffer_stdout()
    for stream in (sys.stdout, sys.stderr):
        # A test or an embedding program may have put something without `reconfigure` in its place.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            newline = None if stream.isatty() else "\n"
            reconfigure(encoding="utf-8", errors="backslashreplace", newline=newline)
            _make_blocking(stream)


def _make_blocking(stream: TextIO) -> None:
    """A parent may have left its pipe or terminal non-blocking: what a slow reader has no room for would be lost."""
    with suppress(OSError, ValueError):
        if os.name == "posix":
            os.set_blocking(stream.fileno(), True)


def _buffer_stdout() -> None:
    """With PYTHONUNBUFFERED Python gives us a stdout that may write a part of the text, and says so to nobody."""
    import io

    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.detach()))


def write(text: str) -> None:
    """Write to stdout, now. Raises `OutputClosed` or `OutputFailed`."""
    clear()
    with translated():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_parts(parts: Iterable[bytes]) -> None:
    """Write UTF-8 to stdout, now. Raises `OutputClosed` or `OutputFailed`."""
    clear()
    with translated():
        for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.flush()


@contextmanager
def translated() -> Iterator[None]:
    """Inside, what is wrong with stdout becomes `OutputClosed` or `OutputFailed`."""
    if sys.stdout is None:
        raise OutputFailed("stdout is closed")
    try:
        yield
    except (OSError, ValueError) as error:
        _drop_stdout()
        # Windows reports a reader that went away as an invalid argument.
        if isinstance(error, OSError) and error.errno in {errno.EPIPE, errno.EINVAL}:
            raise OutputClosed("the reader of stdout went away") from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputFailed(f"cannot write to stdout: {reason}") from None


def write_error(text: str) -> None:
    """Write to stderr, as far as that is possible."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def note(text: str) -> None:
    """A remark that changes nothing."""
    from ollama_prompt.render import visible

    clear()
    write_error(f"note: {visible(text)}\n")


def finish() -> None:
    """Flush stdout, so that failing to is our error and not the interpreter's at exit."""
    if sys.stdout is not None:
        write("")


def _drop_stdout() -> None:
    """Send what is still buffered nowhere: at exit the interpreter would try to write it again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class JsonSink:
    """An answer that is printed when it is whole."""

    def start(self, model: str, session_id: str | None) -> None:  # noqa: ARG002  it is in the turn
        """The model is about to be asked."""
        _Status.show(f"waiting for {model} …")

    def thinking(self, text: str) -> None:  # noqa: ARG002  it is in the turn
        """Only how many there are is shown while it arrives."""
        _Status.count()

    def token(self, text: str) -> None:  # noqa: ARG002  it is in the turn
        """Only how many there are is shown while it arrives."""
        _Status.count()

    def end(self, turn: dict[str, Any]) -> None:
        """Print the turn."""
        from ollama_prompt.render import as_json

        self.close()
        write(as_json(turn))

    def close(self) -> None:
        """Leave the terminal as errors and the shell's next line need it."""
        clear()

    def note(self, text: str) -> None:
        """A remark, on a line of its own also where an answer was printed before it."""
        self.close()
        note(text)


class TextSink(JsonSink):
    """An answer that is printed while it arrives: text, and a newline at its end."""

    _last = ""

    def token(self, text: str) -> None:
        """Print the next piece; on a terminal with its control characters made visible."""
        if sys.stdout is not None and sys.stdout.isatty():
            from ollama_prompt.render import visible

            text = visible(text)
        clear()
        write(text)
        self._last = text[-1:] or self._last

    def end(self, turn: dict[str, Any]) -> None:  # noqa: ARG002  the text is there already
        """Print the newline at the end, also of an answer without text."""
        clear()
        if self._last != "\n":
            self._last = "\n"
            write("\n")

    def close(self) -> None:
        """End the line that an answer that broke off has left open."""
        with suppress(OutputClosed, OutputFailed):
            if self._last:
                self.end({})
        clear()


class NdjsonSink(JsonSink):
    """Events, one JSON object a line, each printed when it happens."""

    def start(self, model: str, session_id: str | None) -> None:
        """The first event tells the session, so that whoever reads can go on with it whatever happens."""
        named = {"session_id": session_id} if session_id else {}
        self._print("start", {**named, "model": model})

    def thinking(self, text: str) -> None:
        """The next piece of what the model thinks."""
        self._print_text("thinking", text)

    def token(self, text: str) -> None:
        """The next piece of the answer."""
        self._print_text("token", text)

    def end(self, turn: dict[str, Any]) -> None:
        """The last event: the whole turn."""
        self._print("done", turn)

    def _print_text(self, event: str, text: str) -> None:
        for start in range(0, len(text), PIECE):
            self._print(event, {"text": text[start : start + PIECE]})

    def _print(self, event: str, data: dict[str, Any]) -> None:
        from ollama_prompt.render import as_line

        write(as_line({"event": event} | data | {"event": event}))  # a server may send such a key too


def is_terminal(stream: TextIO | None) -> bool:
    """Whether this is a terminal that can move its cursor."""
    if stream is None or not stream.isatty():
        return False
    return not is_dumb()


def is_dumb() -> bool:
    """Whether the terminal can only write forward."""
    return sys.platform != "win32" and os.environ.get("TERM", "") in {"dumb", "unknown", ""}


def show_progress(done: int, total: int) -> None:
    """Say on a terminal how many conversations of something long are done: as a bar, once it has taken a moment."""
    _Progress.show(done, total)


def show_step(what: str, done: int, total: int) -> None:
    """Say on a terminal what is done now, and how many of the steps of something long are, as a bar."""
    _Progress.show_step(what, done, total)


class _Progress:
    """The bar; there is one at most. What is over in `DELAY` seconds has none, and does not import rich."""

    DELAY = 0.5
    _began: float | None = None
    _bar: ProgressBar | None = None

    @classmethod
    def show(cls, done: int, total: int) -> None:
        if cls._began is None:
            cls._began = time.monotonic()
        if time.monotonic() - cls._began >= cls.DELAY:
            cls._draw("conversations", done, total, is_timed=True)

    @classmethod
    def show_step(cls, what: str, done: int, total: int) -> None:
        from ollama_prompt.render import visible

        cls._draw(visible(what), done, total, is_timed=False)

    @classmethod
    def _draw(cls, what: str, done: int, total: int, is_timed: bool) -> None:
        if cls._bar is None and is_terminal(sys.stderr):
            from ollama_prompt.progress import ProgressBar

            cls._bar = ProgressBar(is_timed)
        if cls._bar is not None:
            cls._bar.show(what, done, total)

    @classmethod
    def end(cls) -> None:
        if cls._bar is not None:
            cls._bar.end()
        cls._began = cls._bar = None


def clear() -> None:
    """Remove from the terminal what only tells how things are going."""
    _Status.clear()
    _Progress.end()


def _fitted(what: str, how: str) -> str:
    """Both on one line of the terminal, `what` cut where they are too long: what wraps is not removed again."""
    try:
        columns = (os.get_terminal_size(2).columns or 80) - 1  # a serial line and some programs tell no size
    except (OSError, ValueError):
        columns = 79
    if _width(what) + _width(how) <= columns:
        return what + how
    room = columns - _width(how) - 1
    while what and _width(what) > room:
        what = what[:-1]
    return f"{what}…{how}" if what else how.lstrip()[:columns]


def _width(text: str) -> int:
    """Columns that a text takes, at most."""
    return sum(1 if char.isascii() or char == "…" else 2 for char in text)


class _Status:
    """A line on the terminal while nothing has come yet; there is one at most.

    A thread tells how long it takes, each second, and how fast what is not shown yet comes.
    """

    _text: str | None = None
    _began = 0.0
    _pieces = 0
    _lock = allocate_lock()

    @classmethod
    def show(cls, text: str) -> None:
        if not is_terminal(sys.stderr):
            return
        with cls._lock:
            is_running = cls._text is not None
            write_error("\r\x1b[K" if is_running else "")
            cls._text, cls._began, cls._pieces = text, time.monotonic(), 0
            cls._draw()
        if not is_running:
            interrupts.start_thread(cls._run)

    @classmethod
    def count(cls) -> None:
        """Another token has come."""
        cls._pieces += 1

    @classmethod
    def clear(cls) -> None:
        with cls._lock:
            if cls._text is not None:
                cls._text = None
                write_error("\r\x1b[K")

    @classmethod
    def _run(cls) -> None:
        while True:
            time.sleep(1)
            with cls._lock:
                if cls._text is None:
                    return
                write_error("\r\x1b[K")
                cls._draw()

    @classmethod
    def _draw(cls) -> None:
        from ollama_prompt.render import visible

        passed = time.monotonic() - cls._began
        how_long = f" {passed:.0f} s" if passed >= 1 else ""
        how_fast = f", {cls._pieces} tokens, {cls._pieces / passed:.0f} a second" if cls._pieces and passed else ""
        write_error(_fitted(visible(cls._text or ""), how_long + how_fast))
