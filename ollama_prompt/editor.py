"""The line that a person types at a terminal: with prompt_toolkit (the extra `chat`), or with Python's own `input`.

                    prompt_toolkit                          input, also on a terminal that cannot move its cursor
    a new line      Alt-Enter, Ctrl-J, a backslash at the   a backslash at the end of the line
                    end of the line; pasted text keeps its
    Tab             commands, paths behind @ and /file      -
    arrow up        what was typed, in earlier runs too     the same, where Python has readline

Both raise `EOFError` for Ctrl-D. Ctrl-C is a key to prompt_toolkit, which raises KeyboardInterrupt, and a signal to
`input`: like every other it raises `Interrupted`. What is shown goes to stderr; only readline knows no other place than
stdout, where that is the terminal as well.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager, nullcontext, suppress

from ollama_prompt import console, interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

    Complete = Callable[[str], tuple[int, list[str]]]
    Note = Callable[[str], None]

    class Editor(Protocol):
        """Reads what is typed."""

        def read(self) -> str:
            """One prompt or command, of one or several lines. Raises `EOFError`, KeyboardInterrupt, `Interrupted`."""

        def conversing(self) -> AbstractContextManager[None]:
            """Around everything: keys that nobody waits for are kept for the next `read`, as they are."""

        def answering(self) -> AbstractContextManager[None]:
            """Around an answer: what is typed meanwhile does not show in the midst of it."""


PROMPT, CONTINUATION = ">>> ", "... "
INSTALL = 'pip install "ollama-prompt[chat]"'
_MOST_PATHS = 1000
"""In a folder that is completed."""
_INPUT_MODES = {"ICRNL", "INLCR", "IGNCR"}
_LOCAL_MODES = {"ECHO", "ICANON", "IEXTEN"}
"""What a terminal does with keys before anybody reads them: make a newline of Enter, show them, keep whole lines,
and take some for itself."""


def open_editor(names: Sequence[str], typed: list[str], note: Note) -> Editor:
    """The best editor that there is here. `names` are commands to complete, `typed` texts for the arrow up."""
    if not console.is_dumb():
        try:
            return FullEditor(lambda before: candidates(before, names), typed)
        except ImportError:
            note(f"without prompt_toolkit this is Python's own line editing; {INSTALL} brings a better one")
    return PlainEditor(typed)


class PlainEditor:
    """Python's `input`."""

    def __init__(self, typed: list[str]) -> None:
        self._remember: Callable[[str], object] = _readline_of(typed)
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")

    def read(self) -> str:
        """Lines, up to one without a backslash at its end."""
        text = self._line(PROMPT)
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self._line(CONTINUATION)
        if text.strip():
            self._remember(text)
        return text

    def conversing(self) -> AbstractContextManager[None]:
        """Nothing to do: `input` needs the terminal as it is."""
        return nullcontext()

    def answering(self) -> AbstractContextManager[None]:
        """Hide what is typed."""
        return _without("ECHO")

    def _line(self, prompt: str) -> str:
        try:
            with interrupts.heard():
                if sys.stdout.isatty():
                    return input(prompt)
                console.write_error(prompt)
                return input()
        except BaseException:  # Ctrl-C and Ctrl-D leave the cursor behind the prompt
            console.write_error("\n")
            raise


def _readline_of(typed: list[str]) -> Callable[[str], object]:
    """Make `input` edit lines and know what was typed; what adds to that. Not every Python has readline."""
    try:
        import readline
    except ImportError:
        return lambda _: None
    for text in typed:
        readline.add_history(text)
    if hasattr(readline, "set_auto_history"):
        readline.set_auto_history(False)  # a prompt of several lines is one
    return readline.add_history


class FullEditor:
    """prompt_toolkit. Raises `ImportError` if it is not installed."""

    def __init__(self, complete: Complete, typed: list[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=lambda _width, _line, is_wrapped: "" if is_wrapped else CONTINUATION,
            history=InMemoryHistory(typed),
            completer=_completer(complete),
            complete_while_typing=False,
            key_bindings=_keys(),
            output=_output(),
            enable_suspend=True,
        )

    def read(self) -> str:
        """What was typed, up to Enter."""
        with interrupts.told(self._leave):
            return self._session.prompt(handle_sigint=False, pre_run=self._leave_at_once)

    @contextmanager
    def conversing(self) -> Iterator[None]:
        """Have the terminal keep keys as they are.

        prompt_toolkit does so too, but only while it reads. In between, Enter would become a newline, which is Ctrl-J,
        Ctrl-D would be kept, and all be echoed; and each line that is pasted would be sent alone. Ctrl-C and Ctrl-Z
        stay what they are.
        """
        with _without(*_INPUT_MODES, *_LOCAL_MODES, switch=_mark_pasted):
            self._take_early_keys()
            yield

    def answering(self) -> AbstractContextManager[None]:
        """Nothing to do: nothing is shown but by prompt_toolkit."""
        return nullcontext()

    def _take_early_keys(self) -> None:
        """Take what was typed while the program started: there every Enter has become a newline."""
        if os.name == "nt":
            return
        from prompt_toolkit.input.typeahead import store_typeahead
        from prompt_toolkit.key_binding import KeyPress
        from prompt_toolkit.keys import Keys

        while keys := self._session.input.read_keys():
            sent = [KeyPress(Keys.Enter, "\r") if key.key == Keys.ControlJ else key for key in keys]
            store_typeahead(self._session.input, sent)

    def _leave_at_once(self) -> None:
        if interrupts.is_pending():
            self._leave()

    def _leave(self) -> None:
        """End the reading, from wherever the event loop is."""
        loop = self._session.app.loop
        if loop:
            loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        app = self._session.app
        if app.future and not app.future.done():
            app.exit(exception=EOFError)


def _output() -> Output:
    """stderr. It does not ask the terminal where its cursor is: an answer that comes late would be taken as typed.

    What is pasted is marked during an answer too; see `conversing`.
    """
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = create_output(stdout=sys.stderr)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
        output.disable_bracketed_paste = lambda: None  # type: ignore[method-assign]
    return output


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter, which sends Esc and Enter, and Ctrl-J begin a new line."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not in a search with Ctrl-R

    @keys.add("enter", filter=typing)
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(complete: Complete) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Candidates(Completer):
        # prompt_toolkit calls it with both arguments (ARG002).
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
            length, texts = complete(document.text_before_cursor)
            return [Completion(text, -length) for text in texts]

    return Candidates()


# --- The terminal's modes -----------------------------------------------------------------------------


def _mark_pasted(on: bool) -> None:
    """Have the terminal say where a text begins and ends that is pasted."""
    console.write_error("\x1b[?2004h" if on else "\x1b[?2004l")


@contextmanager
def _without(*modes: str, switch: Callable[[bool], None] = lambda _: None) -> Iterator[None]:
    """Switch off modes of the terminal, and at every way out put back what was found; of Windows' terminal none.

    `switch` does what else is to be changed, and put back.
    """
    try:
        import termios
    except ImportError:
        yield
        return

    def put(attributes: list[Any], on: bool) -> None:
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, attributes)
        switch(on)

    try:
        found = termios.tcgetattr(0)
    except termios.error:  # it is gone
        yield
        return
    changed = [*found]
    for index, names in ((0, _INPUT_MODES), (3, _LOCAL_MODES)):
        for mode in names.intersection(modes):
            changed[index] &= ~getattr(termios, mode)
    with interrupts.left_in_order(lambda: put(found, False), lambda: put(changed, True)):
        try:
            put(changed, True)
            yield
        finally:
            put(found, False)


# --- What Tab offers ----------------------------------------------------------------------------------

_FILE = re.compile(r"/file\s+(?P<path>.*)")
_REFERENCE = re.compile(r'(?:^|[\s(\[{<,;:=])@(?P<typed>"(?P<quoted>\.{0,2}/[^"\n]*)|(?P<bare>\.{0,2}/\S*))$')


def candidates(before: str, names: Sequence[str]) -> tuple[int, list[str]]:
    """What may stand before the cursor: (how many characters it replaces, texts)."""
    if re.fullmatch(r"/\w*", before):
        return len(before), [name for name in names if name.startswith(before)]
    if found := _FILE.fullmatch(before):
        return len(found["path"]), list(_paths(found["path"]))
    if found := _REFERENCE.search(before):
        return len(found["typed"]), [_quoted(path, found) for path in _paths(found["quoted"] or found["bare"])]
    return 0, []


def _quoted(path: str, found: re.Match[str]) -> str:
    """A path behind an @, in quotes if it has to be; open ones where the path may go on."""
    if found["quoted"] is None and not re.search(r"\s", path):
        return path
    return f'"{path}' if path.endswith("/") else f'"{path}"'


def _paths(begun: str) -> Iterator[str]:
    """Paths that begin so; hidden ones only if that is asked for."""
    folder, slash, start = begun.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(folder + slash) or os.curdir) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name.startswith(start))
    except (OSError, ValueError):
        return
    for name, is_folder in found[:_MOST_PATHS]:
        if name.isprintable() and (start or not name.startswith(".")):
            yield f"{folder}{slash}{name}{'/' if is_folder else ''}"
