"""The programs that are compared: how each is installed, asked and listed, and how its store is filled.

Every program is driven as its user drives it: its own command, its own store, its own defaults. A store is filled in
the program's own format, from one turn that the program made itself: 100,000 turns would take a day. Where a
program cannot do something, its method raises `Missing`, which says why.

Sessions of a filled store have turns of about 100 tokens, last used now, or OLD_DAYS ago.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sqlite3
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stores
from environment import Environment

from benchmarking.costs import Cost, Process

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
OLD_DAYS = 60
MODEL = "smollm2"
QUESTION = "Question {} of session {}, and why it is so."
ANSWER = "An answer of some length, as models like to give them. " * 7


class Missing(Exception):
    """The program cannot do this; the message says why."""


class Program:
    """What all have in common. A store is a folder, the program's whole home."""

    name: str
    requirements: tuple[str, ...]
    """For pip; the first is the program itself, whose version is told."""
    script: str
    url: str
    """The server's; set before anything is asked."""
    model = MODEL
    short: tuple[str, ...] = ()
    """Arguments that keep answers short, where the program overrides what the model itself says."""
    note = ""
    """What a reader of its figures must know."""

    def __init__(self) -> None:
        self.environment = Environment(f".venv-bench-{self.script}")

    def install(self) -> None:
        """Have it in an environment of its own."""
        self.environment.make()
        self.environment.install("-q", *self.requirements)

    def version(self) -> str:
        """Which releases these are."""
        names = [requirement.partition("=")[0] for requirement in self.requirements]
        code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
        command = [str(self.environment.python), "-I", "-c", code, *names]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return ", ".join(f"{name} {number}" for name, number in zip(names, told, strict=True))

    def variables(self, home: Path) -> dict[str, str]:
        """Its settings in the environment."""
        raise NotImplementedError

    def start(self, arguments: list[str], home: Path) -> Process:
        """Start its command on a store."""
        home.mkdir(parents=True, exist_ok=True)
        given = {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8", "COLUMNS": "80", "OLLAMA_HOST": self.url}
        command = [str(self.environment.command(self.script)), *arguments]
        return Process(command, {**given, **self.variables(home)})

    def run(self, arguments: list[str], home: Path) -> Cost:
        """Run its command on a store."""
        return self.start(arguments, home).end()

    def must(self, arguments: list[str], home: Path) -> Cost:
        """The same, which must go well."""
        cost = self.run(arguments, home)
        if cost.code:
            raise Missing(last_line(cost.complaint) or last_line(cost.output) or f"exit code {cost.code}")
        return cost

    def new(self, prompt: str) -> list[str]:
        """The arguments of a first turn."""
        raise NotImplementedError

    def continued(self, session: str, prompt: str) -> list[str]:
        """The arguments of a later turn."""
        raise NotImplementedError

    def listing(self) -> list[str]:
        """The arguments that list all sessions."""
        raise NotImplementedError

    def purge(self) -> list[str]:
        """The arguments that remove what was not used for half of OLD_DAYS."""
        raise Missing("has no command for it")

    def fill(self, home: Path, sessions: int, turns: int, *, old: bool = False) -> list[str]:
        """Add sessions to a store; their ids."""
        raise NotImplementedError

    def settle(self, home: Path) -> None:
        """Have the store as it is some time after it was filled."""

    def session_of(self, cost: Cost, home: Path) -> str:
        """The session that a first turn, the last so far, began."""
        raise NotImplementedError

    def answer_of(self, cost: Cost) -> str:
        """What the model said."""
        return cost.output.strip()

    def texts(self, home: Path) -> list[str]:
        """All messages in a store."""
        raise NotImplementedError


def last_line(text: str) -> str:
    """The last line that says something; of JSON, its error."""
    line = next((line for line in reversed(text.splitlines()) if line.strip(" │╯╰─")), "").strip(" │")
    try:
        return str(json.loads(line)["error"])
    except (ValueError, KeyError, TypeError):
        return line


class OllamaPrompt(Program):
    """The project, of any release."""

    script = "ollama-prompt"

    def listing(self) -> list[str]:
        return ["--list-sessions"]

    def purge(self) -> list[str]:
        return ["--purge", str(OLD_DAYS // 2)]

    def session_of(self, cost: Cost, home: Path) -> str:  # noqa: ARG002
        return str(json.loads(cost.output)["session_id"])

    def answer_of(self, cost: Cost) -> str:
        return str(json.loads(cost.output)["response"])


class Ours(OllamaPrompt):
    """The project as it is now."""

    name = "ollama-prompt"
    requirements = ("ollama-prompt",)

    def __init__(self) -> None:
        super().__init__()
        self.environment = Environment(".venv-bench")

    def install(self) -> None:
        """The checkout, not editable: as users have it."""
        self.environment.install_as_users_do()

    def variables(self, home: Path) -> dict[str, str]:
        return {"OLLAMA_PROMPT_HOME": str(home), "OLLAMA_PROMPT_MODEL": self.model, "OLLAMA_PROMPT_NO_SERVE": "1"}

    def new(self, prompt: str) -> list[str]:
        return ["--prompt", prompt]

    def continued(self, session: str, prompt: str) -> list[str]:
        return ["--session-id", session, "--prompt", prompt]

    def fill(self, home: Path, sessions: int, turns: int, *, old: bool = False) -> list[str]:
        at = long_ago() if old else datetime.datetime.now(datetime.timezone.utc)
        first = int(at.timestamp() * 1000) - sessions
        at_text = at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return [lay_down(home, stores.new_id(number, first), number, turns, at_text) for number in range(sessions)]

    def settle(self, home: Path) -> None:
        """What was read right after it changed is read once more."""
        self.must(self.listing(), home)
        time.sleep(0.1)
        self.must(self.listing(), home)

    def texts(self, home: Path) -> list[str]:
        return [text for path in stores.files(home) for _, text in stores.said(path)]


def long_ago() -> datetime.datetime:
    """When an old session was used."""
    return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=OLD_DAYS)


def lay_down(home: Path, session: str, number: int, turns: int, created_at: str) -> str:
    """A session of ours as we write it; its id."""
    lines = [stores.header(session, created_at=created_at)]
    for turn in range(turns):
        counts = {"model": MODEL, "prompt_tokens": 20 + 100 * turn, "tokens": 80, "done_reason": "stop"}
        question = QUESTION.format(turn, number)
        lines.append(stores.message(2 * turn, "user", question, created_at=created_at))
        lines.append(stores.message(2 * turn + 1, "assistant", ANSWER, created_at=created_at, **counts))
    return stores.put(home, session, b"".join(map(stores.line, lines))).stem


class Database:
    """Rows like those that a program wrote itself."""

    def __init__(self, link: sqlite3.Connection) -> None:
        self.link = link
        self.link.row_factory = sqlite3.Row

    def row(self, table: str, where: str = "1") -> Json:
        """The newest row of a table."""
        return dict(self.link.execute(f"select * from {table} where {where} order by rowid desc").fetchone())

    def add(self, table: str, row: Json) -> None:
        """One more row."""
        marks = ",".join("?" * len(row))
        self.link.execute(f"insert into {table} ({','.join(row)}) values ({marks})", list(row.values()))

    def column(self, query: str) -> list[str]:
        """The first column of all rows."""
        return [str(row[0]) for row in self.link.execute(query)]


class FirstMajor(OllamaPrompt):
    """ollama-prompt 1.2.0: one row a session, its history in it."""

    name = "ollama-prompt 1.2.0"
    requirements = ("ollama-prompt==1.2.0",)
    short = ("--max_tokens", "40")
    note = (
        "ollama-prompt 1.2.0 refuses to begin a session beside 1,000 others, and first removes those not used for "
        "30 days. Of a session it keeps about 51,000 tokens and removes what is older."
    )

    def __init__(self) -> None:
        super().__init__()
        self.environment = Environment(".venv-bench-1.2.0")

    def variables(self, home: Path) -> dict[str, str]:
        return {"OLLAMA_PROMPT_DB_PATH": str(home / "sessions.db")}

    def new(self, prompt: str) -> list[str]:
        return ["--model", self.model, "--prompt", prompt]

    def continued(self, session: str, prompt: str) -> list[str]:
        return [*self.new(prompt), "--session-id", session]

    def fill(self, home: Path, sessions: int, turns: int, *, old: bool = False) -> list[str]:
        ids = [str(uuid.uuid4()) for _ in range(sessions)]
        if not (home / "sessions.db").exists():
            self.must(self.new("Hello."), home)
        with opened(home / "sessions.db") as database:
            pattern = database.row("sessions")
            if old:
                pattern["created_at"] = pattern["last_used"] = long_ago().replace(tzinfo=None).isoformat()
            for number, session in enumerate(ids):
                database.add("sessions", {**pattern, "session_id": session, **first_major_history(number, turns)})
        return ids

    def texts(self, home: Path) -> list[str]:
        with opened(home / "sessions.db") as database:
            histories = database.column("select history_json from sessions")
        return [message["content"] for history in histories for message in json.loads(history)["messages"]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Database]:
    """A database, and at the end what was added to it."""
    link = sqlite3.connect(path)
    link.execute("pragma cache_size = -500000")  # ids lie in no order: a small cache would write each page many times
    link.execute("pragma synchronous = off")
    try:
        with link:
            yield Database(link)
    finally:
        link.close()


def first_major_history(number: int, turns: int) -> Json:
    """What a row of 1.2.0 holds of a conversation."""
    said = [pair for turn in range(turns) for pair in (("user", QUESTION.format(turn, number)), ("assistant", ANSWER))]
    at = datetime.datetime.now().isoformat()
    messages = [{"role": role, "content": text, "timestamp": at, "tokens": len(text) // 4} for role, text in said]
    context = "\n\n".join(f"{role.capitalize()}: {text}" for role, text in said)
    return {"history_json": json.dumps({"messages": messages}), "context": context}


class Llm(Program):
    """llm with llm-ollama: a database of messages, each with a hash of what came before it."""

    name = "llm"
    requirements = ("llm", "llm-ollama")
    script = "llm"
    note = "llm lists turns, not sessions. It has no command that removes old ones."

    def variables(self, home: Path) -> dict[str, str]:
        return {"LLM_USER_PATH": str(home)}

    def new(self, prompt: str) -> list[str]:
        return ["-m", f"ollama/{self.model}:latest", prompt]

    def continued(self, session: str, prompt: str) -> list[str]:
        return ["--cid", session, *self.new(prompt)]

    def listing(self) -> list[str]:
        return ["logs", "list", "--short", "-n", "0"]

    def fill(self, home: Path, sessions: int, turns: int, *, old: bool = False) -> list[str]:  # noqa: ARG002
        if not (home / "logs.db").exists():
            self.must(self.new("Hello."), home)
        with opened(home / "logs.db") as database:
            filling = LlmFilling(database)
            return [filling.session(number, turns) for number in range(sessions)]

    def session_of(self, cost: Cost, home: Path) -> str:  # noqa: ARG002
        with opened(home / "logs.db") as database:
            return database.column("select id from threads order by id desc limit 1")[0]

    def texts(self, home: Path) -> list[str]:
        with opened(home / "logs.db") as database:
            return database.column("select text from parts")


class LlmFilling:
    """Sessions added to llm's database; hashes and ids are made up, for nothing reads them as such."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.thread, self.turn, self.words = map(database.row, ("threads", "turns", "turn_search"))
        self.message, self.part = database.row("messages"), database.row("parts")

    def new_id(self) -> str:
        """An id that sorts before those of the program's own turns to come."""
        return str(self.thread["id"])[:6] + uuid.uuid4().hex[:20]

    def session(self, number: int, turns: int) -> str:
        """One session; its id."""
        session = self.new_id()
        tip: str | None = None
        for turn in range(turns):
            tip = self.add_turn(session, tip, QUESTION.format(turn, number))
        self.database.add("threads", {**self.thread, "id": session, "tip_message_hash": tip})
        return session

    def add_turn(self, session: str, tip: str | None, question: str) -> str:
        """A question and its answer; the hash of the answer."""
        asked = self.add_message(tip, "user", question)
        answered = self.add_message(asked, "assistant", ANSWER)
        id_ = self.new_id()
        ends = {"parent_message_hash": asked, "tip_message_hash": answered}
        self.database.add("turns", {**self.turn, "id": id_, "thread_id": session, **ends})
        words = {name: value for name, value in self.words.items() if name != "id"}
        self.database.add("turn_search", {**words, "turn_id": id_, "prompt": question, "response": ANSWER})
        return answered

    def add_message(self, parent: str | None, role: str, text: str) -> str:
        """A message; its hash."""
        digest = "b2:" + uuid.uuid4().hex
        self.database.add("messages", {**self.message, "hash": digest, "parent_hash": parent, "role": role})
        part = {name: value for name, value in self.part.items() if name != "id"}
        self.database.add("parts", {**part, "message_hash": digest, "text": text})
        return digest


class ShellGpt(Program):
    """shell-gpt: one JSON file a chat, written anew at every turn."""

    name = "shell-gpt"
    requirements = ("shell-gpt", "click")
    script = "sgpt"
    note = (
        "shell-gpt asks as OpenAI's clients do. It keeps the newest 100 messages of a session and removes the rest. "
        "It has no command that removes old sessions. Where it does not declare that it needs `click`, that has to be "
        "installed beside it, as here."
    )

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    def variables(self, home: Path) -> dict[str, str]:
        return {
            "API_BASE_URL": self.url + "/v1",
            "OPENAI_API_KEY": "none",
            "DEFAULT_MODEL": self.model,
            "CHAT_CACHE_PATH": str(home / "chats"),
            "CACHE_PATH": str(home / "cache"),
            "REQUEST_TIMEOUT": "600",
        }

    def new(self, prompt: str) -> list[str]:
        self.begun += 1
        return self.continued(f"new-{self.begun}", prompt)

    def continued(self, session: str, prompt: str) -> list[str]:
        return ["--chat", session, prompt]

    def listing(self) -> list[str]:
        return ["--list-chats"]

    def fill(self, home: Path, sessions: int, turns: int, *, old: bool = False) -> list[str]:  # noqa: ARG002
        self.must(self.continued("pattern", "Hello."), home)
        system = json.loads((home / "chats" / "pattern").read_text(encoding="utf-8"))[:1]
        (home / "chats" / "pattern").unlink()
        ids = [f"chat-{number}-{uuid.uuid4().hex[:8]}" for number in range(sessions)]
        for number, session in enumerate(ids):
            asked = [{"role": "user", "content": QUESTION.format(turn, number)} for turn in range(turns)]
            messages = [message for one in asked for message in (one, {"role": "assistant", "content": ANSWER})]
            (home / "chats" / session).write_text(json.dumps(system + messages[-100:]), encoding="utf-8")
        return ids

    def session_of(self, cost: Cost, home: Path) -> str:  # noqa: ARG002
        return f"new-{self.begun}"

    def texts(self, home: Path) -> list[str]:
        return [text for path in (home / "chats").iterdir() for text in chat_texts(path)]


def chat_texts(path: Path) -> list[str]:
    """The messages in a file of shell-gpt's; none if two processes wrote it at once."""
    try:
        return [message["content"] for message in json.loads(path.read_text(encoding="utf-8"))]
    except ValueError:
        return []
