"""Which messages go to the model, and how large its window must be. Pure: records in, numbers out.

The window is the newest run of whole turns that fits what may be sent (`limit` tokens) less room for
the reply. The server keeps what it worked out for the messages of the last request, and goes on from
there if the next request starts with the same messages. So the window starts at the same turn again and
again (`start`), and moves only when it is over 90 % full: then in one large step, down to MARK. Moving
it by a turn each time would have everything worked out anew each time.

Sizes are real counts where there are any. An answer's record tells `prompt_tokens` (all that was sent)
and `tokens` (the answer): the difference between two answers of the same window is the size of a turn.
Text that was never counted is estimated, by what the counted turns beside it took per character.

Where the window starts is kept in the answer's record, `window: {"start", "limit", "left_out"}`, as long
as something is left out; a changed limit chooses anew.
"""

from __future__ import annotations

from ollama_prompt.records import undone_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ollama_prompt.records import Record

FULL = 0.9
"""The window moves when more than this part of the limit would be sent."""
MARK = 0.5
"""It moves down to this part of the limit. Lower costs less work per token, higher shows the model more."""
REPLY_ROOM = 1024
"""Tokens kept free for the reply unless --max-tokens says how many it may take; at most an eighth of the limit."""
LADDER = tuple(8192 * 2**step for step in range(12))
"""Sizes of num_ctx. Each change makes the server load the model anew: start large, grow rarely."""

CHARS_PER_TOKEN = 4.0
MESSAGE_OVERHEAD = 6
"""Tokens that a chat template puts around a message; smollm2 takes 5, others up to 8."""


class Turn:
    """A prompt and what was answered; `prompt` is None where damage took it."""

    __slots__ = ("answers", "prompt")

    def __init__(self, prompt: Record | None, answers: list[Record]) -> None:
        self.prompt = prompt
        self.answers = answers

    @property
    def messages(self) -> list[Record]:
        """The records, oldest first."""
        return [self.prompt, *self.answers] if self.prompt else self.answers

    @property
    def first_id(self) -> str | None:
        """The id of the record that the turn begins with."""
        return self.messages[0].get("id")

    @property
    def counted(self) -> int:
        """Tokens of the conversation that will be sent again, up to the end of this turn; 0 if not counted.

        A model's thinking is counted with its answer, but not sent again.
        """
        answer = self.answers[-1]
        sent, said = answer.get("prompt_tokens"), answer.get("tokens")
        if not isinstance(sent, int) or not isinstance(said, int):
            return 0
        thinking = answer.get("thinking")
        if isinstance(thinking, str) and thinking:
            said = said * len(answer["content"]) // (len(answer["content"]) + len(thinking))
        return sent + said

    @property
    def window(self) -> Record:
        """What the answer's record tells of the window that it saw; empty if nothing was left out."""
        window = self.answers[-1].get("window")
        return window if isinstance(window, dict) else {}


class Window:
    """What is sent: `turns` oldest first, about `tokens` tokens with the new prompt and the system prompt.

    `start` is the id that the window starts at; None if nothing is left out, "" if everything is.
    """

    __slots__ = ("start", "tokens", "turns")

    def __init__(self, turns: list[Turn], tokens: float, start: str | None) -> None:
        self.turns = turns
        self.tokens = round(tokens)
        self.start = start

    @property
    def messages(self) -> list[Record]:
        """The records of earlier messages that are sent, oldest first."""
        return [message for turn in self.turns for message in turn.messages]


def turns_back(newest_first: Iterable[Record]) -> Iterator[Turn]:
    """Records from the newest to the oldest → answered turns from the newest to the oldest.

    A prompt without an answer is no turn; what an undo names does not exist.
    """
    undone: set[str] = set()
    answers: list[Record] = []
    for record in newest_first:
        if record["type"] == "undo":
            undone.update(undone_ids(record))
        elif record["type"] != "message" or record.get("id") in undone:
            continue
        elif record["role"] == "assistant":
            answers.append(record)
        elif record["role"] == "user" and answers:
            yield Turn(record, answers[::-1])
            answers = []
    if answers:
        yield Turn(None, answers[::-1])


def estimate(text: str) -> float:
    """About how many tokens a text takes: a quarter of its ASCII characters, nearly one for each other."""
    if text.isascii():
        return len(text) / CHARS_PER_TOKEN
    extra = len(text.encode()) - len(text)  # 1 to 3 bytes more than characters
    return len(text) / CHARS_PER_TOKEN + extra * 0.375


def estimate_messages(messages: Iterable[Record]) -> float:
    """About how many tokens these messages take in a prompt."""
    return sum(estimate(message["content"]) + MESSAGE_OVERHEAD for message in messages)


def reply_room(limit: int, max_tokens: object) -> int:
    """Tokens to keep free for the reply."""
    if isinstance(max_tokens, int) and max_tokens > 0:
        return min(max_tokens, limit // 2)
    return min(REPLY_ROOM, limit // 8)


def choose(
    newest_first: Iterator[Turn], system: float, prompt: float, limit: int, room: int, scale: float = 0.0
) -> Window:
    """The window before a new prompt.

    `system` and `prompt` are estimates of what is sent anyway; `limit` and `room` are tokens. `scale` is by
    what factor the server's count of a refused request was above our figure, 0 if none was refused.
    Takes from `newest_first` only what the window needs.
    """
    full = min(FULL * limit, limit - room)
    run = _Run(system, prompt, scale or 1.0)
    start = None
    for turn, older in _pairs(newest_first):
        if not run.turns and not scale and turn.window.get("limit") == limit:
            start = turn.window.get("start")
        run.add(turn, older)
        if run.tokens > full:
            return run.newest(MARK * limit, full)
        if start is not None and turn.first_id == start:
            return run.window(start)
    return run.window(None)


def _pairs(turns: Iterator[Turn]) -> Iterator[tuple[Turn, Turn | None]]:
    """Each turn with the one before it in the conversation, None for the first of all."""
    turn = next(turns, None)
    while turn is not None:
        older = next(turns, None)
        yield turn, older
        turn = older


class _Run:
    """Turns, newest first, and how many tokens they take together with the new prompt."""

    def __init__(self, system: float, prompt: float, scale: float) -> None:
        self.turns: list[Turn] = []
        self.system = system
        self.prompt = prompt
        self.scale = scale
        self._sizes: list[tuple[float, float]] = []  # (counted or 0, estimated)
        self._counted = self._estimated_of_counted = self._uncounted = 0.0

    def add(self, turn: Turn, older: Turn | None) -> None:
        """Take one more, older turn."""
        estimated = estimate_messages(turn.messages)
        counted = _counted(turn, older, estimated, self.system)
        self.turns.append(turn)
        self._sizes.append((counted, estimated))
        self._counted += counted
        self._estimated_of_counted += estimated if counted else 0
        self._uncounted += 0 if counted else estimated

    @property
    def ratio(self) -> float:
        """What text takes to what we would estimate, learned from the turns that were counted."""
        return self._counted / self._estimated_of_counted if self._counted else 1.0

    @property
    def tokens(self) -> float:
        """What all of it takes."""
        return (self._counted + (self._uncounted + self.system + self.prompt) * self.ratio) * self.scale

    def newest(self, most: float, at_least_one: float) -> Window:
        """As many of the newest turns as fit `most` tokens; one, if only that fits `at_least_one`."""
        ratio = self.ratio
        fits = (self.system + self.prompt) * ratio * self.scale
        number = 0
        for counted, estimated in self._sizes:
            tokens = fits + (counted or estimated * ratio) * self.scale
            if tokens > (most if number else at_least_one):
                break
            fits, number = tokens, number + 1
        kept = self.turns[:number]
        return Window(kept[::-1], fits, (kept[-1].first_id or "") if kept else "")

    def window(self, start: str | None) -> Window:
        """All of it as a window."""
        return Window(self.turns[::-1], self.tokens, start)


def _counted(turn: Turn, older: Turn | None, estimated: float, system: float) -> float:
    """What the turn took as the server counted it; 0 where that is not known.

    Counts that cannot belong to this text (another program's, a merge's) are off by far more than any
    two tokenizers are, and not taken.
    """
    start = turn.window.get("start")
    if older is None or (start is not None and start == turn.first_id):
        counted = turn.counted - round(system)
    elif older.counted and older.window.get("start") == start:
        counted = turn.counted - older.counted
    else:
        return 0
    return counted if estimated / 8 < counted < estimated * 8 else 0


def num_ctx(needed: int, loaded: int | None, model_limit: int | None) -> int:
    """The window to ask for: the smallest step that holds `needed` tokens, reply included.

    Not less than what the model is loaded with, which would load it anew, nor more than its own limit.
    """
    step: int = next((size for size in LADDER if size >= needed), LADDER[-1])
    size = max(step, loaded or 0)
    return min(size, model_limit) if model_limit else size


def was_cut(answer: Record, tokens_before: int, asked_ctx: int | None) -> bool:
    """Whether the server's own counts show that it cut what was sent.

    `tokens_before` is what the part that was sent before had been counted as: a longer prompt cannot take
    less. And no window holds more than its size, which llama.cpp rounds up to a multiple of 256.
    """
    sent, said = answer.get("prompt_eval_count"), answer.get("eval_count")
    if not isinstance(sent, int) or not isinstance(said, int):
        return False
    held = -(-asked_ctx // 256) * 256 if asked_ctx else None
    return sent < tokens_before or (held is not None and sent + said > held)
