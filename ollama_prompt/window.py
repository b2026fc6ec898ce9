"""Which messages go to the model, and how large its window must be. Pure: records in, numbers out.

The window is the newest run of whole turns that fits what may be sent (`limit` tokens) less room for
the reply. The server keeps what it worked out for the messages of the last request, and goes on from
there if the next request starts with the same messages. So the window starts at the same turn again and
again (`start`), and moves only when it is over 90 % full: then in one large step, down to MARK. Moving
it by a turn each time would have everything worked out anew each time.

Sizes are real counts where there are any. An answer's record tells `prompt_tokens` (all that was sent)
and `tokens` (the answer): together what its whole window takes, and the difference between two answers
of the same window is the size of a turn. Text that was never counted is estimated, by what the counted
turns beside it took per character.

Where the window starts is kept in the answer's record, `window: {"start", "limit", "left_out"}`, as long
as something is left out; a changed limit chooses anew.
"""

from __future__ import annotations

from ollama_prompt.records import images_of, undone_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ollama_prompt.records import Record

FULL = 0.9
"""The window moves when more than this part of the limit would be sent."""
MARK = 0.5
"""It moves down to this part of the limit: the most that showing more of the history is cheap for (docs/design.md)."""
REPLY_ROOM = 1024
"""Tokens kept free for the reply unless --max-tokens says how many it may take; at most an eighth of the limit."""
LADDER = tuple(8192 * 2**step for step in range(12))
"""Sizes of num_ctx. Each change makes the server load the model anew: start large, grow rarely."""

CHARS_PER_TOKEN = 4.0
MESSAGE_OVERHEAD = 6
"""Tokens that a chat template puts around a message; smollm2 takes 5, others up to 8."""
IMAGE_TOKENS = 1000
"""Tokens of a picture that was never counted: models take from 256 (gemma3) to a few thousand."""
PREAMBLE = 100
"""Tokens that a template may put before the first message; they say nothing of what text takes."""
LOOK = 2
"""How far back turns are read, in full windows, before their counts must have told that they do not fit."""


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
    def model(self) -> object:
        """The model that answered."""
        return self.answers[-1].get("model")

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


def watched(newest_first: Iterable[Record], gone: set[str]) -> Iterator[Record]:
    """The same records; `gone` then has what was taken back after the last answer, and from in front of it.

    A merge does that. The count of that answer holds it still.
    """
    gone.clear()
    records = iter(newest_first)
    for record in records:
        yield record
        if record["type"] == "undo":
            gone.update(undone_ids(record))
        elif record.get("id") in gone:
            gone.discard(record["id"])
        elif record["type"] == "message" and record["role"] == "assistant":
            break
    yield from records


def estimate(text: str) -> float:
    """About how many tokens a text takes: a quarter of its ASCII characters, nearly one for each other.

    Tokenizers take a run of spaces, as code is indented by, for one or two.
    """
    if "  " in text or "\t\t" in text:
        text = " ".join(text.split())
    if text.isascii():
        return len(text) / CHARS_PER_TOKEN
    extra = len(text.encode()) - len(text)  # 1 to 3 bytes more than characters
    return len(text) / CHARS_PER_TOKEN + extra * 0.375


def estimate_messages(messages: Iterable[Record]) -> float:
    """About how many tokens these messages take in a prompt."""
    return sum(_estimate_message(message) for message in messages)


def _estimate_message(message: Record) -> float:
    images = IMAGE_TOKENS * len(images_of(message)) if "images" in message else 0
    return estimate(message["content"]) + images + MESSAGE_OVERHEAD


def reply_room(limit: int, max_tokens: object) -> int:
    """Tokens to keep free for the reply."""
    if isinstance(max_tokens, int) and max_tokens > 0:
        return min(max_tokens, limit // 2)
    return min(REPLY_ROOM, limit // 8)


def choose(
    newest_first: Iterator[Turn],
    system: float,
    prompt: float,
    limit: int,
    room: int,
    scale: float = 0.0,
    system_before: float | None = None,
) -> Window:
    """The window before a new prompt.

    `system` and `prompt` are estimates of what is sent anyway, `system_before` of the system prompt that the
    last answer saw, if it was another; `limit` and `room` are tokens. `scale` is by what factor the server's
    count of a refused request was above our figure, 0 if none was refused. Takes from `newest_first` only
    what the window needs.
    """
    full = min(FULL * limit, limit - room)
    run = _Run(system, prompt, scale or 1.0, system if system_before is None else system_before)
    seen = start = found = None
    for turn, older in _pairs(newest_first):
        if seen is None and (turn.counted or turn.window):  # what broke off without a count tells nothing
            seen = turn.window
            start = seen.get("start") if seen.get("limit") == limit else None
        run.add(turn, older)
        if start is not None and turn.first_id == start:
            found = start
            break
        if run.tokens > LOOK * full:
            break
    return run.window(found) if run.tokens <= full else run.newest(full * MARK / FULL, full)


def _pairs(turns: Iterator[Turn]) -> Iterator[tuple[Turn, Turn | None]]:
    """Each turn with the one before it in the conversation, None for the first of all."""
    turn = next(turns, None)
    while turn is not None:
        older = next(turns, None)
        yield turn, older
        turn = older


class _Run:
    """Turns, newest first, and how many tokens they take together with the system prompt and the new prompt.

    `last` is the newest turn that was counted: its count is the truth about all that it saw. Differences say
    how that is shared out, and what they leave (the system prompt with the first turn, a turn that moved the
    window) is shared by the estimates as soon as the run reaches the start of that window.
    """

    def __init__(self, system: float, prompt: float, scale: float, system_before: float) -> None:
        self.turns: list[Turn] = []
        self.system = system
        self.prompt = prompt
        self.scale = scale
        self.last: Turn | None = None
        self._system_before = system_before
        self._share = 0.0  # what the server counts for one estimated token of what differences leave
        self._newer = 0  # turns behind `last`
        self._sizes: list[tuple[float, float]] = []  # (counted or 0, estimated)
        self._counted = self._uncounted = 0.0
        self._text = self._estimated_text = 0.0  # of turns whose own size was counted
        self._first_ratio = 1.0

    def add(self, turn: Turn, older: Turn | None) -> None:
        """Take one more, older turn."""
        if self.last is None and turn.counted:
            self.last, self._newer = turn, len(self.turns)
        estimated = estimate_messages(turn.messages)
        counted = self._difference(turn, older, estimated)
        self.turns.append(turn)
        self._sizes.append((counted, estimated))
        self._counted += counted
        self._uncounted += 0 if counted else estimated
        self._text += counted
        self._estimated_text += estimated if counted else 0
        if self.last:
            start = self.last.window.get("start")
            begins = older is None if start is None else turn.first_id == start
            if begins:
                self._share_out(self.last.counted)

    def _difference(self, turn: Turn, older: Turn | None, estimated: float) -> float:
        """What the turn took as the server counted it; 0 where two counts of one window do not tell."""
        if self.last is None or older is None or not older.counted:
            return 0
        same_model = turn.model == older.model == self.last.model
        if not same_model or older.window.get("start") != turn.window.get("start"):
            return 0
        counted = turn.counted - older.counted
        return counted if _is_plausible(counted, estimated) else 0

    def _share_out(self, whole: float) -> None:
        """Give what no difference tells the rest of `whole`, which is all that `last` saw."""
        inside = self._sizes[self._newer :]
        estimated = self._system_before + sum(estimated for counted, estimated in inside if not counted)
        rest = whole - sum(counted for counted, _ in inside)
        if not _is_plausible(rest, estimated):
            return
        self._share = share = rest / estimated
        self._first_ratio = min(share, max(1.0, (rest - PREAMBLE) / estimated))
        self._sizes[self._newer :] = [(counted or estimated * share, estimated) for counted, estimated in inside]
        self._counted = sum(counted for counted, _ in self._sizes)
        self._uncounted = sum(estimated for counted, estimated in self._sizes if not counted)

    @property
    def ratio(self) -> float:
        """What text takes to what we would estimate, learned from the turns that were counted."""
        return self._text / self._estimated_text if self._text else self._first_ratio

    @property
    def fixed(self) -> float:
        """What the system prompt and the new prompt take."""
        known = self._share and self.system == self._system_before
        return self.system * (self._share if known else self.ratio) + self.prompt * self.ratio

    @property
    def tokens(self) -> float:
        """What all of it takes."""
        return (self._counted + self._uncounted * self.ratio + self.fixed) * self.scale

    def newest(self, most: float, at_least_one: float) -> Window:
        """As many of the newest turns as fit `most` tokens; one, if only that fits `at_least_one`."""
        ratio = self.ratio
        fits = self.fixed * self.scale
        number = 0
        for counted, estimated in self._sizes:
            tokens = fits + (counted or estimated * ratio) * self.scale
            if tokens > (most if number else at_least_one):
                break
            fits, number = tokens, number + 1
        if not self.turns:  # the prompt alone is as long, and nothing is left out
            return self.window(None)
        kept = self.turns[:number]
        return Window(kept[::-1], fits, (kept[-1].first_id or "") if kept else "")

    def window(self, start: str | None) -> Window:
        """All of it as a window."""
        return Window(self.turns[::-1], self.tokens, start)


def _is_plausible(counted: float, estimated: float) -> bool:
    """Whether a count can belong to a text.

    Those that cannot (another program's, a merge's) are off by far more than any two tokenizers are.
    """
    return estimated / 8 < counted < estimated * 8


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
