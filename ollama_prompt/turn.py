"""The life of a turn: read the window, ask, append; all of it while the session is held.

    check the model → choose the window → store the prompt → ask → store the answer

Nothing is stored before the model was reached and can do what is asked, but for the prompt of a turn that is
interrupted, or runs out of time, meanwhile. From then on the prompt is on disk. What the model refuses before its first
word is taken back; what breaks off leaves the prompt, and what came of the answer as an answer with `done_reason`
"error" or "interrupted". Settings become the session's with a whole answer only. With --no-session nothing is read or
stored, and the rest is the same.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

from ollama_prompt import interrupts, records
from ollama_prompt.errors import (
    ContextExceeded,
    ContextTooSmall,
    IncompleteAnswer,
    Interrupted,
    ModelError,
    ModelUnsupported,
    OllamaPromptError,
    OutputClosed,
    OutputFailed,
)
from ollama_prompt.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    from ollama_prompt.config import Request
    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.indexer import Indexer
    from ollama_prompt.model import Model, ModelFacts
    from ollama_prompt.records import Record

    Connect = Callable[[str, float | None], Model]
    Note = Callable[[str], None]

    class Sink(Protocol):
        """Where an answer goes while it arrives."""

        def start(self, model: str, session_id: str | None) -> None:
            """The model is about to be asked. Like the others, may raise `OutputClosed` or `OutputFailed`."""

        def thinking(self, text: str) -> None:
            """The next piece of what the model thinks."""

        def token(self, text: str) -> None:
            """The next piece of the answer."""


def take_turn(request: Request, indexer: Indexer | None, connect: Connect, sink: Sink, note: Note) -> dict[str, Any]:
    """Ask the request's prompt, and give the turn as the object that is printed.

    `indexer` is None to keep nothing; `connect` makes the model from its name and the deadline. Raises
    `OllamaPromptError`s, and `Interrupted` with what had come as its `turn`.
    """
    with interrupts.deferred(), ExitStack() as stack:
        with interrupts.fatal():
            held = stack.enter_context(_hold(request, indexer)) if indexer else None
            turn = _Turn(request, held, note)
            deadline = time.monotonic() + request.timeout if request.timeout else None
            model = stack.enter_context(closing(connect(turn.settings["model"], deadline)))
        return turn.take(model, sink)


def _hold(request: Request, indexer: Indexer) -> AbstractContextManager[HeldSession]:
    if request.session_id is None:
        return indexer.new()
    return indexer.open(request.session_id, request.lock_timeout)


_OURS = ("message", "thinking", "parsed", "session_id", "window")
"""Keys of the printed turn that are not taken from what Ollama sends."""
_OF_A_PROMPT = ("typed", "references", "images")
"""Keys of a prompt's record that a retry takes over."""


class _Turn:
    """One turn; `held` is None where nothing is kept."""

    def __init__(self, request: Request, held: HeldSession | None, note: Note) -> None:
        stored = held.settings if held else {}
        self.held = held
        self.given = _with_stored_options(request.given, stored)
        self.settings: Record = {**request.defaults, **stored, **self.given}
        self.is_retry = request.prompt is None
        self.format = request.format
        self.images: dict[str, bytes] = {image.sha256: image.data for image in request.images}
        self.prompt = self._make_prompt(request)
        self.plan: Plan | None = None
        self.parsed: list[Any] = []
        self.said: list[str] = []
        self.thought: list[str] = []
        self._note = note
        self._noted: set[str] = set()
        self._sees = True
        self._is_stored = self._is_answered = False

    def take(self, model: Model, sink: Sink) -> dict[str, Any]:
        """Go through the turn; see the module."""
        try:
            self.plan = self._make_plan(model)
            self._store_prompt()
            with interrupts.heard():
                sink.start(self.settings["model"], self.held.session_id if self.held else None)
            final = self._ask(model, self.plan, sink)
            self._finish(final, self.plan)
            return self._shown(final)
        except (Interrupted, OutputClosed, OutputFailed) as error:
            self._keep_rest("interrupted")
            if isinstance(error, OutputFailed):
                self._name_session(error)
            if isinstance(error, Interrupted):
                error.turn = self._shown({"done": False, "done_reason": "interrupted"})
            raise
        except ModelError as error:
            self._fail(error)
            raise
        except OllamaPromptError:
            raise
        except BaseException as error:  # a bug, or of the program that called us: it must not cost what was said
            self._keep_rest("error" if isinstance(error, Exception) else "interrupted")
            raise

    def _make_prompt(self, request: Request) -> Record:
        """The record of the prompt; for --retry a new one of what was asked last."""
        if request.prompt is None:
            assert self.held
            last = self.held.replace_last_turn()
            return records.message("user", last["content"], **{key: last.get(key) for key in _OF_A_PROMPT})
        return records.message(
            "user",
            request.prompt.text,
            typed=request.prompt.typed,
            references=request.prompt.references,
            images=[image.record() for image in request.images] or None,
        )

    def _make_plan(self, model: Model) -> Plan:
        with interrupts.heard():
            facts = model.check()
            loaded = None if facts.cloud else model.loaded_window()
        self._check_abilities(facts)
        if facts.cloud and "num_ctx" in self.given:
            self._note("a cloud model chooses its window itself: --num-ctx is kept, but not sent")
        plan = Plan(self.settings, self.prompt, self.held, facts, loaded)
        self._tell_window(plan)
        return plan

    def _check_abilities(self, facts: ModelFacts) -> None:
        """Find what the model cannot do before anything is stored; where it does not say, the server will."""
        able = facts.capabilities
        if able is None:
            return
        model = self.settings["model"]
        if self.settings.get("think") and "thinking" not in able:
            raise ModelUnsupported(f"{model} does not support thinking", hint="--no-think asks it without")
        self._sees = "vision" in able
        if not self._sees and records.images_of(self.prompt):
            hint = "`ollama show` lists what a model can do: this needs vision"
            raise ModelUnsupported(f"{model} does not support images", hint=hint)

    def _image(self, sha256: str) -> str | None:
        """A picture as the wire takes it; None for one of an earlier message that is not sent."""
        from base64 import b64encode

        if not self._sees:
            self._note_once(f"{self.settings['model']} does not support images: earlier ones are not sent")
            return None
        data = self.images.get(sha256) or (self.held.image(sha256) if self.held else None)
        if data is None:
            self._note_once(f"the picture {sha256} is missing or damaged in the store's attachments: it is not sent")
            return None
        return b64encode(data).decode()

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)

    def _tell_window(self, plan: Plan) -> None:
        if plan.moved():
            self._note(f"{plan.left_out()} earlier messages do not fit the model's window and are not sent")

    # --- Asking --------------------------------------------------------------------------------

    def _ask(self, model: Model, plan: Plan, sink: Sink) -> dict[str, Any]:
        """Ask; once more with less, or with a larger window, where the server says that it was too much."""
        try:
            return self._listen(model.chat(self._body(plan)), sink)
        except ContextExceeded as refusal:
            plan.shrink(refusal)
            self._tell_window(plan)
        try:
            return self._listen(model.chat(self._body(plan)), sink)
        except ContextExceeded as refusal:
            raise ContextTooSmall(refusal.message, hint="lower --max-context-tokens") from refusal

    def _body(self, plan: Plan) -> dict[str, Any]:
        body = plan.body(self._image)
        return body if self.format is None else body | {"format": self.format}

    def _listen(self, chunks: Iterator[dict[str, Any]], sink: Sink) -> dict[str, Any]:
        """Take the stream to its end; the last chunk."""
        while True:
            with interrupts.heard():
                chunk = next(chunks, None)
            if chunk is None:
                raise IncompleteAnswer("the answer ended before it was done")
            message = chunk.get("message") or {}
            if thinking := message.get("thinking"):
                self.thought.append(thinking)
                with interrupts.heard():
                    sink.thinking(thinking)
            if content := message.get("content"):
                self.said.append(content)
                with interrupts.heard():
                    sink.token(content)
            if chunk.get("done") is True:
                return chunk

    def _finish(self, final: dict[str, Any], plan: Plan) -> None:
        """Store the answer; one that is not the JSON that was asked for too, but as a failure."""
        if self.format is None:
            self._store_answer(final, plan)
            return
        from ollama_prompt import structured

        try:
            value = structured.parse("".join(self.said), is_cut=final.get("done_reason") == "length")
        except IncompleteAnswer:
            self._store_answer(final, plan, is_whole=False)
            raise
        self._store_answer(final, plan)
        self.parsed.append(value)
        with interrupts.heard():  # some schemas take for ever
            wrong = structured.mismatch(value, self.format) if isinstance(self.format, dict) else None
        if wrong:
            self._note(f"the answer is not what the schema asks for: {wrong}")

    # --- Storing -------------------------------------------------------------------------------

    def _store_prompt(self) -> None:
        if self.held and not self._is_stored:
            self.held.begin(self.prompt, self.settings, self.images)
            self._is_stored = True

    def _store_answer(self, final: dict[str, Any], plan: Plan, is_whole: bool = True) -> None:
        if self.held:
            changed = self._changed_settings(self.held.settings) if is_whole else []
            answer = self._answer(final, final.get("done_reason"), plan.record())
            self.held.add([*changed, answer])
            self._is_answered = True

    def _keep_rest(self, done_reason: str) -> None:
        """Keep the prompt, and what came of an answer that broke off."""
        if self.is_retry and not self._is_stored:
            return  # the session has the prompt already, and its answer still counts
        self._store_prompt()
        if self.held and (self.said or self.thought) and not self._is_answered:
            # With the place that its window moved to: the server keeps what it worked out for that.
            self.held.add([self._answer({}, done_reason, self.plan.record() if self.plan else None)])

    def _fail(self, error: ModelError) -> None:
        """Leave behind what a failed turn leaves."""
        error.keeps_prompt = error.keeps_prompt or bool(self.said or self.thought)
        if error.keeps_prompt:
            self._keep_rest("error")
            self._hint_at_retry(error)
        elif self.held and self._is_stored:
            self.held.take_back()
        self._name_session(error)

    def _hint_at_retry(self, error: ModelError) -> None:
        if self.held and self.held.path:
            retry = f"ollama-prompt --retry {self.held.session_id} asks it again"
            error.hint = f"{error.hint.rstrip('.')}; {retry}" if error.hint else retry

    def _name_session(self, error: OllamaPromptError) -> None:
        """Say where what was stored can be found, if anything was."""
        if self.held and self.held.path:
            error.session_id = self.held.session_id

    def _answer(self, final: dict[str, Any], done_reason: str | None, window: Record | None) -> Record:
        return records.message(
            "assistant",
            "".join(self.said),
            model=self.settings["model"],
            prompt_tokens=final.get("prompt_eval_count"),
            tokens=final.get("eval_count"),
            done_reason=done_reason,
            thinking="".join(self.thought) or None,
            window=window,
        )

    def _changed_settings(self, before: Record) -> list[Record]:
        """A meta record with what was given and is not the session's yet; a new session has it in its header."""
        changed = {key: value for key, value in self.given.items() if before.get(key) != value}
        return [records.meta(changed)] if changed else []

    def _shown(self, final: dict[str, Any]) -> dict[str, Any]:
        """The turn as it is printed: Ollama's keys in its order, with the whole text, and ours behind them."""
        shown = {
            "model": final.get("model") or self.settings["model"],
            "created_at": final.get("created_at") or self.prompt["created_at"],
            "response": "".join(self.said),
        }
        if self.thought:
            shown["thinking"] = "".join(self.thought)
        if self.parsed:
            shown["parsed"] = self.parsed[0]
        shown |= {key: value for key, value in final.items() if key not in shown and key not in _OURS}
        if self.held:
            shown["session_id"] = self.held.session_id
        if self.plan:
            shown["window"] = self.plan.shown(final)
        return shown


def _with_stored_options(given: Record, stored: Record) -> Record:
    """Options are given one by one: those that were not given stay what they were."""
    if "options" not in given or not isinstance(stored.get("options"), dict):
        return given
    return {**given, "options": {**stored["options"], **given["options"]}}
