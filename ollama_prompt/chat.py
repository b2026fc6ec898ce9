"""A conversation at a terminal, turn by turn, in a session file like any other.

    read a line  →  a command, as /undo           →  done at once
                 →  a prompt (//undo is the one   →  a turn, as `commands.ask` takes it
                    that begins with /undo)

The session is held during a turn only. So between two turns anybody may go on with it, take something back or remove
it, and every turn reads anew what is there: nothing of the conversation is kept here but its id.

- `request.given` is what was set and is not the session's yet; with the next answer it is, as with the flags.
- `refused` is the last prompt if it was not stored. Otherwise the session has it, and a retry finds it there.
- An error ends a turn, not the conversation. What ends that is TERM, or a stdout that is gone.
- Ctrl-C stops what waits: a turn, of which is kept what had come, or the line that is being typed.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import closing, suppress

from ollama_prompt import commands, config, console, interrupts
from ollama_prompt.editor import PROMPT, open_editor
from ollama_prompt.errors import (
    Interrupted,
    ModelError,
    ModelNotFound,
    ModelUnsupported,
    NothingToUndo,
    OllamaPromptError,
    OutputClosed,
    OutputFailed,
    SessionNotFound,
    UsageError,
)
from ollama_prompt.render import error_as_text, visible
from ollama_prompt.text import valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from typing import Any

COMMANDS = {
    "/undo": ("", "take back the last turn"),
    "/retry": ("", "ask the last prompt again"),
    "/model": (" NAME", "go on with another model"),
    "/system": (" TEXT", "set the system prompt"),
    "/title": (" TEXT", "label the session"),
    "/file": (" PATH", "a file for the prompt"),
    "/help": ("", "show this"),
    "/quit": ("", "end, as Ctrl-D does"),
}
KEYS = """\
Enter sends. A backslash before it, or
Alt-Enter or Ctrl-J, begins a new line.
Ctrl-C stops an answer.
"""
_LONGEST_SHOWN = 60
"""Characters of a prompt that is mentioned in a remark."""


def converse(
    request: config.Request,
    flags: Namespace,
    environ: Mapping[str, str],
    make_sink: Callable[[], console.TextSink] = console.TextSink,
) -> None:
    """Talk until the person ends it; the request's prompt, if it has one, is the first.

    Raises `OutputClosed`, `OutputFailed`, `Interrupted` for TERM; other errors only before the first prompt.
    """
    with interrupts.going_on():
        conversation = Conversation(request, flags, environ, make_sink)
        try:
            conversation.run(request.prompt)
        finally:
            conversation.tell_how_to_go_on()


class Conversation:
    """See the module. `settings` is all that was given: for a session that takes the place of one that is gone."""

    def __init__(
        self,
        request: config.Request,
        flags: Namespace,
        environ: Mapping[str, str],
        make_sink: Callable[[], console.TextSink],
    ) -> None:
        self.request = request
        self.refused: config.Prompt | None = None
        self.settings: dict[str, Any] = {}
        self._flags = flags
        self._environ = environ
        self._make_sink = make_sink
        self._images = request.images
        self._references: list[str] = []
        self._kept_model = commands.KeptModel()
        self._indexer = commands.make_indexer(environ, console.note)
        self._greeting = self._begin()
        self._keeps_history = environ.get("OLLAMA_PROMPT_NO_HISTORY", "") in {"", "0"}
        typed = commands.typed(self._indexer) if self._keeps_history else []
        self._editor = open_editor(
            [name + argument[:1] for name, (argument, _) in COMMANDS.items()], typed, console.note
        )
        commands.import_for_turns(self._indexer, environ)

    def run(self, first: config.Prompt | None) -> None:
        """Read and do, until the person ends it."""
        with closing(self._kept_model), self._editor.conversing():
            self._run(first)

    def _run(self, first: config.Prompt | None) -> None:
        console.note(self._greeting)
        if first:
            typed = first.typed or first.text
            console.write_error(f"{PROMPT}{visible(typed)}\n")
            self._guarded(lambda: self._ask(first, typed))
        while (text := self._read()) not in {None, "/quit"}:
            if text:
                self._guarded(lambda text=text: self._do(text))  # type: ignore[misc]  # mypy infers no lambda with a default

    def tell_how_to_go_on(self) -> None:
        """The last remark."""
        if self.request.session_id:
            console.note(f"to go on: ollama-prompt -i --session-id {self.request.session_id}")

    def _begin(self) -> str:
        """Find the session, if there is one already; what is to be said of it."""
        if self.request.continues:
            self.request.session_id, self.request.continues = self._indexer.newest(), False
        if self.request.session_id is None:
            return f"a new session with {self._model({})}; /help shows what can be typed"
        info = commands.session_info(self._indexer, self.request.session_id)
        title = _shortened(info["title"] or self.request.session_id)
        count = info["message_count"]
        messages = "1 message" if count == 1 else f"{count} messages"
        return f"{title}: {messages}, with {self._model(info)}; /help shows what can be typed"

    def _read(self) -> str | None:
        """What was typed; None at the end."""
        stopped = False
        while True:
            try:
                with interrupts.deferred():
                    return valid_text(self._editor.read()).strip()
            except EOFError:
                return None
            except (KeyboardInterrupt, Interrupted) as stop:
                if isinstance(stop, Interrupted) and not stop.is_ctrl_c:
                    raise
            if stopped:
                console.note("Ctrl-D or /quit ends the conversation")
            stopped = True

    def _guarded(self, do: Callable[[], None]) -> None:
        """Do something of which an error is told, and the conversation goes on."""
        try:
            do()
        except (OutputClosed, OutputFailed):
            raise
        except SessionNotFound as error:
            self._begin_anew()
            error.message, error.hint = "this session was deleted meanwhile", "the next prompt begins a new one"
            if self.refused:
                error.hint = "/retry asks this in a new one, with the same settings"
            console.write_error(error_as_text(error))
        except OllamaPromptError as error:
            error.hint = _hint_here(error)
            console.write_error(error_as_text(error))
        except Interrupted as interruption:
            if not interruption.is_ctrl_c:
                raise
            console.note(_what_was_kept(interruption.turn))

    def _begin_anew(self) -> None:
        self.request.session_id = None
        self.request.given = self.settings | self.request.given

    def _do(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            name = text.split(maxsplit=1)[0]
            self._command(name, text[len(name) :].strip())
            return
        prompt = text[1:] if text.startswith("//") else text
        added = "".join(f"\n\n{reference}" for reference in self._references)
        expanded = config.expanded(prompt + added, self._flags)
        self._references = []
        self._ask(expanded, text)

    # --- Turns ---------------------------------------------------------------------------------

    def _ask(self, prompt: config.Prompt | None, typed: str = "") -> None:
        """Take a turn; None asks again what the session has as the last prompt."""
        request, sink = self.request, self._make_sink()
        request.prompt, self.refused = prompt, prompt
        request.images = self._images if prompt else []
        try:
            with self._editor.answering():
                turn = commands.ask(request, self._indexer, self._environ, sink, sink.note, kept=self._kept_model)
            sink.end(turn)
            self._take_over(turn)
        except Interrupted as interruption:
            with suppress(OutputClosed, OutputFailed):
                sink.end(interruption.turn)
            self._stored(interruption.turn.get("session_id"), typed)
            raise
        except OllamaPromptError as error:
            request.session_id = request.session_id or error.session_id
            if isinstance(error, ModelError) and error.keeps_prompt:
                self._stored(error.session_id, typed)
            raise
        finally:
            sink.close()
        self._stored(turn["session_id"], typed)
        if sys.stdout.isatty():
            console.write_error("\n")

    def _take_over(self, turn: dict[str, Any]) -> None:
        """What was set is the session's now."""
        self.settings |= {"model": turn["model"]} | self.request.given
        self.request.given = {}

    def _stored(self, session_id: object, typed: str) -> None:
        """The session has the prompt; None for none."""
        if not isinstance(session_id, str):
            return
        self.request.session_id = session_id
        self.refused = None
        if self.request.prompt:
            self._images = []
        if typed and self._keeps_history:
            commands.remember(self._indexer, session_id, typed)

    # --- Commands ------------------------------------------------------------------------------

    def _command(self, name: str, argument: str) -> None:
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name}", hint=_hint_at(name))
        if argument and not COMMANDS[name][0]:
            raise UsageError(f"{name} takes nothing behind it")
        do: Callable[[str], None] = getattr(self, "_do_" + name[1:])
        if name == "/retry":
            do(argument)
            return
        with interrupts.deferred(), interrupts.heard():
            do(argument)

    def _do_help(self, _: str) -> None:
        width = max(len(name + argument) for name, (argument, _) in COMMANDS.items()) + 2
        lines = [f"{name + argument:<{width}}{what}\n" for name, (argument, what) in COMMANDS.items()]
        console.write_error("".join(lines) + KEYS)

    def _do_undo(self, _: str) -> None:
        session_id = self._session("turn to take back")
        undone = commands.undo(self._indexer, session_id, self.request.lock_timeout)["undone"]
        self.refused = None
        messages = commands.session_info(self._indexer, session_id)["messages"]
        prompts = [message for message in messages if message.get("id") in undone and message["role"] == "user"]
        what = prompts[0].get("typed") or prompts[0]["content"] if prompts else f"{len(undone)} messages"
        console.note(f"taken back: {_shortened(what)}")

    def _do_retry(self, _: str) -> None:
        if self.refused is None:
            self._session("prompt to ask again")
        self._ask(self.refused, self.refused.typed or self.refused.text if self.refused else "")

    def _do_model(self, name: str) -> None:
        if not name:
            console.note(f"the model is {self._model(self._info())}")
            return
        self.request.given["model"] = _checked(config.model_name, name)
        console.note(f"the next answer is by {self.request.given['model']}")

    def _do_system(self, text: str) -> None:
        if not text:
            system = self.request.given.get("system", self._info().get("system_prompt"))
            console.note(f"the system prompt is: {system}" if system else "there is no system prompt")
            return
        self.request.given["system"] = _unquoted(text)
        console.note("the system prompt counts from the next answer on")

    def _do_title(self, text: str) -> None:
        if not text:
            title = self.request.given.get("title") or self._info().get("title")
            console.note(f"the title is: {title}" if title else "there is no title")
            return
        title = config.title(_unquoted(text))
        if self.request.session_id:
            commands.set_title(self._indexer, self.request.session_id, title, self.request.lock_timeout)
            self.settings["title"] = title
        else:
            self.request.given["title"] = title
        console.note(f"the title is: {title}" if title else "the title is what the first prompt begins with")

    def _do_file(self, path: str) -> None:
        if not path:
            raise UsageError("/file takes a path", hint="/file ./notes.txt")
        reference = _reference(path)
        config.expanded(reference, self._flags)  # now, while the person thinks of it
        self._references.append(reference)
        console.note(f"with the next prompt: {reference}")

    def _session(self, what: str) -> str:
        """The session's id. Raises `NothingToUndo`."""
        if self.request.session_id is None:
            raise NothingToUndo(f"there is no {what}")
        return self.request.session_id

    def _info(self) -> dict[str, Any]:
        session_id = self.request.session_id
        return commands.session_info(self._indexer, session_id) if session_id else {}

    def _model(self, info: dict[str, Any]) -> str:
        """The model of the next answer."""
        name: str = self.request.given.get("model") or info.get("model_name") or self.request.defaults["model"]
        return name


def _hint_here(error: OllamaPromptError) -> str | None:
    """What to do, in the words of a conversation."""
    hint = error.hint
    if hint and error.session_id:
        hint = hint.replace(f"ollama-prompt --retry {error.session_id}", "/retry")
    if isinstance(error, (ModelNotFound, ModelUnsupported)):
        hint = f"{hint}; /model NAME takes another" if hint else "/model NAME takes another"
    return hint


def _hint_at(name: str) -> str:
    from difflib import get_close_matches

    meant = get_close_matches(name, COMMANDS, n=1)
    said = f"{meant[0]}? " if meant else ""
    return f"{said}/help shows all; to ask what begins with a slash, type two: /{name}"


def _what_was_kept(turn: dict[str, Any]) -> str:
    if not turn:
        return "stopped"
    if turn.get("response"):
        return "stopped; what had come is kept"
    return "stopped before the answer; /retry asks again"


def _shortened(text: str) -> str:
    """A text for a remark: its first line, or what fits of that."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= _LONGEST_SHOWN else line[: _LONGEST_SHOWN - 1] + "…"


def _unquoted(text: str) -> str:
    """Nothing, as one types it in a shell, means nothing."""
    return "" if text in {'""', "''"} else text


def _checked(check: Callable[[str], Any], text: str) -> Any:
    """A check of a flag's value. Raises `UsageError`."""
    try:
        return check(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None


def _reference(path: str) -> str:
    """A path, as it is typed or completed, as a reference."""
    bare = path.removeprefix("@").strip("\"'")
    if "\n" in bare or ('"' in bare and "'" in bare):
        raise UsageError(f"{path!r} cannot be named here", hint="give the file another name")
    bare = os.path.expanduser(bare)
    signs = ("./", "../", "/", ".\\", "..\\", "\\") if os.name == "nt" else ("./", "../", "/")
    if bare in {".", ".."}:
        bare += "/"
    if not bare.startswith(signs) and not os.path.isabs(bare):
        bare = f"./{bare}"
    if os.path.isdir(bare) and not bare.endswith("/"):
        bare += "/"
    quote = "'" if '"' in bare else '"'
    return f"@{bare}" if re.fullmatch(r"[\w./-]*[\w/]", bare) else f"@{quote}{bare}{quote}"
