"""A long conversation on a real Ollama, with each program in turn: what the model really saw of it.

The conversation outgrows Ollama's default window, but not the model's own limit. Its first turn names a code word, its
last one asks for it. A `Witness` between program and server reads what the server says of every answer. Programs run
with their defaults; answers are kept short by the model itself, a copy of one that is there, made for the run with
`num_predict` and removed at its end (`Program.short` where a program would override that). Each program begins with
the model unloaded, and is given up after PATIENCE seconds.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from environment import say

from benchmarking.peers import Missing
from benchmarking.servers import Witness
from benchmarking.tables import Cell, Table

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarking.costs import Cost
    from benchmarking.peers import Program

Json = dict[str, Any]
COPY = "ollama-prompt-bench"
CODE_WORD = "heliotrope"
DEFAULT_WINDOW = 4096
PATIENCE = 600
WORDS = 280
"""In a turn's prompt: about 320 tokens."""
NOUNS = ("river", "stone", "window", "garden", "paper", "bridge", "winter", "letter", "copper", "forest", "market")


class Server:
    """The real one, asked directly."""

    def __init__(self) -> None:
        given = os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434"
        parts = urlsplit(given if "//" in given else f"http://{given}")
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 11434

    def ask(self, path: str, body: Json | None = None, method: str | None = None) -> Json:
        """One request and its answer, the last line of it if there are many."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.host}:{self.port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=600) as response:
            lines = response.read().strip().splitlines()
        answer: Json = json.loads(lines[-1]) if lines else {}
        return answer

    def smallest_model(self) -> str:
        """The smallest model there that answers. Raises Missing when there is none, or no server."""
        try:
            models = self.ask("/api/tags")["models"]
        except (OSError, ValueError) as error:
            raise Missing(f"no Ollama at {self.host}:{self.port}") from error
        able = [model for model in models if "completion" in model.get("capabilities", ["completion"])]
        local = [model for model in able if not model["name"].endswith("cloud") and not model["name"].startswith(COPY)]
        if not local:
            raise Missing("the Ollama there has no model of its own")
        return str(min(local, key=lambda model: model["size"])["name"])

    def make_copy(self, model: str) -> None:
        """The model that is asked: answers of few tokens, the same every time."""
        self.ask("/api/create", {"model": COPY, "from": model, "parameters": {"num_predict": 40, "temperature": 0}})

    def unload(self) -> None:
        """As if nobody had asked yet."""
        self.ask("/api/generate", {"model": COPY, "keep_alive": 0})

    def window(self) -> int:
        """The window that the model is loaded with."""
        loaded = self.ask("/api/ps")["models"]
        return next((int(model.get("context_length", 0)) for model in loaded if model["name"].startswith(COPY)), 0)

    def tokens(self, messages: list[Json], window: int | None) -> int:
        """How many tokens of a conversation the model sees, in this window or the default one."""
        options = {"num_predict": 1, **({"num_ctx": window} if window else {})}
        body = {"model": COPY, "messages": messages, "stream": False, "options": options}
        return int(self.ask("/api/chat", body)["prompt_eval_count"])

    def limit(self) -> int:
        """The model's own."""
        known: Json = self.ask("/api/show", {"model": COPY})["model_info"]
        return next(int(value) for name, value in known.items() if name.endswith(".context_length"))


def prompts(turns: int) -> list[str]:
    """What is said; the same in every run."""
    chance = random.Random(1)
    texts = [" ".join(chance.choices(NOUNS, k=WORDS)) for _ in range(turns - 1)]
    asked = [f"Note {number}: {text}. Answer with OK only." for number, text in enumerate(texts, 1)]
    first = f"The code word is {CODE_WORD}. Remember it. {asked[0]}"
    return [first, *asked[1:], "What is the code word? Answer with that one word."]


class Conversation:
    """One program's, turn after turn."""

    def __init__(self, program: Program, server: Server, home: Path) -> None:
        self.program, self.server, self.home = program, server, home
        self.witness = Witness(server.host, server.port)
        program.url, program.model = self.witness.url, COPY
        self.said: list[Json] = []
        self.clocks: list[float] = []
        self.windows: list[int] = []
        self.session = ""

    def hold(self, asked: list[str]) -> None:
        """All turns."""
        self.server.unload()
        for number, prompt in enumerate(asked, 1):
            if sum(self.clocks) > PATIENCE:
                raise Missing(f"given up at turn {number} of {len(asked)}: more than {PATIENCE} seconds")
            say(f"measuring: {self.program.name}, turn {number} of {len(asked)} on the real Ollama …")
            self.turn(prompt)

    def turn(self, prompt: str) -> None:
        """One more."""
        program = self.program
        arguments = program.continued(self.session, prompt) if self.session else program.new(prompt)
        cost: Cost = program.must([*arguments, *program.short], self.home)
        self.session = self.session or program.session_of(cost, self.home)
        self.clocks.append(cost.clock)
        self.windows.append(self.server.window())
        answer = {"role": "assistant", "content": program.answer_of(cost)}
        self.said += [{"role": "user", "content": prompt}, answer]

    def seen(self) -> int:
        """Tokens that the model saw in the last turn: as the server said, or says of the same messages asked again."""
        if self.witness.counts:
            return self.witness.counts[-1]
        return self.server.tokens((self.witness.asked or {})["messages"], None)

    def reloads(self) -> int:
        """How often the model was loaded again with another window."""
        return sum(before != after for before, after in zip(self.windows, self.windows[1:], strict=False))

    def fill(self, table: Table, limit: int) -> None:
        """The program's column."""
        seen, said = self.seen(), self.server.tokens(self.said[:-1], limit)
        knows = CODE_WORD in self.said[-1]["content"].lower()
        late = statistics.median(self.clocks[-4:])
        cells: dict[str, Cell] = {
            "tokens said": {"tokens": said, "text": f"{said:,}"},
            "tokens seen in the last turn": {"tokens": seen, "text": f"{seen:,}"},
            "part seen": {"value": round(min(seen / said, 1), 2), "text": f"{100 * min(seen / said, 1):.0f} %"},
            "names the code word": {"value": int(knows), "text": "yes" if knows else "no"},
            "seconds for all turns": {
                "value": -sum(self.clocks),
                "text": f"{sum(self.clocks):.1f}",
                "each": self.clocks,
            },
            "seconds for one of the last four": {"value": -late, "text": f"{late:.2f}"},
            "model loaded again": {"value": -self.reloads(), "text": str(self.reloads())},
        }
        for case, cell in cells.items():
            table.add(case, self.program.name, cell)


def measure(programs: list[Program], folder: Path, turns: int) -> Table:
    """The table; with a reason in every cell if there is no server to ask."""
    server = Server()
    table = Table("On a real Ollama", "", best="most")
    try:
        model = server.smallest_model()
        table.about = (
            f"A conversation of {turns} turns with {model}. Ollama's default window has {DEFAULT_WINDOW} tokens."
        )
        server.make_copy(model)
        for program in programs:
            hold(program, server, folder / "real" / program.name, table, turns)
    except Missing as missing:
        for program in programs:
            table.add("tokens seen in the last turn", program.name, {"why": str(missing)})
        return table
    finally:
        forget(server)
    return table


def hold(program: Program, server: Server, home: Path, table: Table, turns: int) -> None:
    """One program's conversation; where it breaks off, why."""
    conversation = Conversation(program, server, home)
    try:
        conversation.hold(prompts(turns))
        conversation.fill(table, server.limit())
    except (Missing, OSError, ValueError, KeyError) as trouble:
        table.add("tokens seen in the last turn", program.name, {"why": str(trouble)})
    finally:
        conversation.witness.close()


def forget(server: Server) -> None:
    """Remove the copy, if there is one."""
    try:
        server.ask("/api/delete", {"model": COPY}, "DELETE")
    except (OSError, ValueError):
        return
