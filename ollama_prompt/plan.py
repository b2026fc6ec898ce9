"""What one request sends, and how large a window it asks for.

A plan takes the session's settings, what the model says of itself and the conversation so far, and gives
the body of POST /api/chat. When the server refuses it as too large, `shrink` makes it fit by the figures
that the server gave. Afterwards the plan and the server's counts tell what the model really got.
"""

from __future__ import annotations

from ollama_prompt import window
from ollama_prompt.errors import ContextTooSmall
from ollama_prompt.records import images_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ollama_prompt.errors import ContextExceeded
    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.model import ModelFacts
    from ollama_prompt.records import Record

UNKNOWN_EXCESS = 1.5
"""By what factor a refused prompt is taken to exceed the window, where the server gives no figures."""
LEAST = 0.75
"""What part of its estimate a text may really take: plain English can have 5.3 characters a token."""
_TOO_SMALL_HINT = "make the prompt shorter, or raise --max-context-tokens or --num-ctx if the model can take more"


class Plan:
    """`limit` is what may be sent, `num_ctx` the window that is asked for (None: the server chooses)."""

    def __init__(
        self,
        settings: Record,
        prompt: Record,
        held: HeldSession | None,
        facts: ModelFacts,
        loaded: int | None,
    ) -> None:
        self.settings = settings
        self.prompt = prompt
        self.held = held
        self.facts = facts
        self.fixed = None if facts.cloud else settings.get("num_ctx")
        self.limit = min(settings["max_context_tokens"], facts.context_length or settings["max_context_tokens"])
        self.budget = min(self.limit, self.fixed or self.limit)
        self.room = window.reply_room(self.budget, settings.get("options", {}).get("num_predict"))
        self._gone: set[str] = set()
        self.window = self._choose(0.0)
        self.num_ctx = self._num_ctx(self._needed(self.window.tokens), loaded)
        if self.num_ctx and self.window.tokens > self.budget:
            # Whether the prompt fits, only the server can count: it must refuse what does not.
            self.num_ctx = self.budget

    def body(self, image: Callable[[str], str | None] = lambda _: None) -> dict[str, Any]:
        """The body of the request, without `model` and `stream`; `image` gives a picture as the wire takes it."""
        options = dict(self.settings.get("options", {}))
        if self.num_ctx:
            options["num_ctx"] = self.num_ctx
        body: dict[str, Any] = {"messages": self._messages(image), "options": options, "truncate": False}
        return body | {key: self.settings[key] for key in ("think", "keep_alive") if key in self.settings}

    def shrink(self, refusal: ContextExceeded) -> None:
        """Make it fit after the server refused it: a larger window while the model allows, else less history.

        Raises `ContextTooSmall` when nothing is left that could be left out.
        """
        window_there = refusal.num_ctx or self.num_ctx or self.budget
        tokens = refusal.prompt_tokens or round(UNKNOWN_EXCESS * max(window_there, self.window.tokens))
        if self.num_ctx and not self.fixed and tokens + self.room <= self.budget and window_there >= self.num_ctx:
            self.num_ctx = self._num_ctx(self._needed(tokens), self.num_ctx + 1)
            return
        self.budget = min(self.budget, window_there)
        self.room = min(self.room, self.budget // 8)
        self.window = self._choose(tokens / max(self.window.tokens, 1))

    def left_out(self) -> int:
        """How many answered messages are not sent, because they do not fit."""
        if self.window.start is None or self.held is None:
            return 0
        return max(self.held.answered_count - len(self.window.messages), 0)

    def moved(self) -> bool:
        """Whether the window starts elsewhere than for the last answer."""
        seen = (turn.window for turn in reversed(self.window.turns) if turn.counted or turn.window)
        last = next(seen, {})
        return self.window.start is not None and self.window.start != last.get("start")

    def record(self) -> Record | None:
        """What the answer's record keeps, for the next turn to start at the same place."""
        if self.window.start is None:
            return None
        return {"start": self.window.start or self.prompt["id"], "limit": self.budget, "left_out": self.left_out()}

    def shown(self, final: dict[str, Any]) -> dict[str, Any]:
        """The `window` of the output; `final` is the last chunk, empty where none came."""
        counts = (final.get("prompt_eval_count"), final.get("eval_count"))
        counted = [count for count in counts if isinstance(count, int)]
        return {
            "tokens": sum(counted) if counted else None,
            "limit": self.limit,
            "num_ctx": self.num_ctx,
            "messages_sent": len(self.window.messages) + 1,
            "messages_left_out": self.left_out(),
            "truncated": window.was_cut(final, self._counted_before(), self.num_ctx),
        }

    def _choose(self, scale: float) -> window.Window:
        chosen = window.choose(
            window.turns_back(window.watched(self.held.records_back() if self.held else (), self._gone)),
            _estimated(self.settings.get("system")),
            window.estimate_messages([self.prompt]),
            self.budget,
            self.room,
            scale,
            _estimated(self.held.settings.get("system") if self.held else None),
        )
        if chosen.tokens * (1 if scale else LEAST) > self.budget:
            raise ContextTooSmall(
                f"the prompt takes about {chosen.tokens} tokens, and {self.budget} may be sent",
                hint=_TOO_SMALL_HINT,
            )
        return chosen

    def _needed(self, tokens: int) -> int:
        """Tokens that the window must hold: so many of a prompt, and all of the reply, as far as the limit allows."""
        wanted = self.settings.get("options", {}).get("num_predict")
        reply: int = wanted if isinstance(wanted, int) else 0
        limit: int = self.budget
        return max(tokens + self.room, min(tokens + reply, limit))

    def _num_ctx(self, needed: int, at_least: int | None) -> int | None:
        if self.facts.cloud:
            return None
        return self.fixed or window.num_ctx(needed, at_least, self.facts.context_length)

    def _messages(self, image: Callable[[str], str | None]) -> list[dict[str, Any]]:
        system = self.settings.get("system")
        messages = [{"role": "system", "content": system}] if system else []
        for message in (*self.window.messages, self.prompt):
            sent = {"role": message["role"], "content": message["content"]}
            images = [data for name in images_of(message) if (data := image(name))]
            messages.append(sent | {"images": images} if images else sent)
        return messages

    def _counted_before(self) -> int:
        """What the server counted for the part of this request that it was sent before; 0 if unknown."""
        if not self.window.turns or self.held is None:
            return 0
        last = self.window.turns[-1]
        answer = last.answers[-1]
        same = (
            last.window.get("start") == self.window.start
            and answer.get("model") == self.settings["model"]
            and self.held.settings.get("system") == self.settings.get("system")
            and not self._gone
        )
        counted = answer.get("prompt_tokens")
        return counted if same and isinstance(counted, int) else 0


def _estimated(system: str | None) -> float:
    return window.estimate(system) + window.MESSAGE_OVERHEAD if system else 0.0
