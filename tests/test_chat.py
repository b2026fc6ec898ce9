"""Conversations: the real command in a terminal of its own, typed at as a person does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import tree
from standin import StandIn
from stores import TRACES, fail, files, new_id, records, said, succeed, the_file

from ollama_prompt import chat, config, editor, flags, history
from ollama_prompt.errors import SessionNotFound, UsageError
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import GITIGNORE, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from conftest import Run, Start

    class Talk(Protocol):
        """`talk("-c")`: a conversation, at its first prompt."""

        def __call__(
            self, *args: str, ready: bool = True, stdout: Path | None = None, shell: tuple[str, ...] = (), **env: str
        ) -> Terminal: ...


Json = dict[str, Any]

in_terminals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty to run a conversation in")

ENTER, CTRL_C, CTRL_D, CTRL_J, CTRL_Z, ALT_ENTER, TAB, UP = (
    "\r", "\x03", "\x04", "\n", "\x1a", "\x1b\r", "\t", "\x1b[A"
)  # fmt: skip
SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|$)|[=>]|$)|[\r\x07]")
"""What moves the cursor or colours text; at the end also one that has not come whole."""
PROMPT = "\n>>>"


class Terminal:
    """A terminal with a conversation in it. What is expected is looked for behind what was expected before."""

    def __init__(
        self,
        environment: dict[str, str],
        cwd: Path,
        *args: str,
        stdout: Path | None = None,
        shell: tuple[str, ...] = (),
    ) -> None:
        import pty  # not on Windows

        self._ours, theirs = pty.openpty()
        self.resize(80, 24)
        self.before = self.modes()
        self._bytes = b""
        self._at = 0
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(stdout.open("wb")) if stdout else theirs
            self.process = subprocess.Popen(
                [sys.executable, *shell, "-m", "ollama_prompt", "-i", *args], env=environment, cwd=cwd,
                stdin=theirs, stdout=out, stderr=theirs, start_new_session=True, preexec_fn=_take_terminal,  # noqa: PLW1509  no thread is running
            )  # fmt: skip
        os.close(theirs)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        """Whether it echoes, waits for whole lines, and so on."""
        import termios

        return termios.tcgetattr(self._ours)

    def is_in_order(self) -> bool:
        """Whether it is as a shell needs it: its modes, a cursor, and nothing around what is pasted."""
        return self.modes() == self.before and self.is_on(25, first=True) and not self.marks_pasted()

    def marks_pasted(self) -> bool:
        return self.is_on(2004, first=False)

    def is_on(self, mode: int, *, first: bool) -> bool:
        """Whether a mode was last switched on; `first` is what it was at first."""
        switched = re.findall(rb"\x1b\[\?%d([hl])" % mode, self._bytes)
        return switched[-1] == b"h" if switched else first

    @property
    def shown(self) -> str:
        """All that was written so far, without what is not text."""
        return SEQUENCE.sub("", self._bytes.decode("utf-8", "ignore"))

    def expect(self, text: str) -> str:
        """Wait until this is shown; what was shown before it."""
        end = time.monotonic() + 20
        while (found := self.shown.find(text, self._at)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come, but {self.shown[self._at :]!r}"
            assert self._read(left), f"it ended without {text!r}: {self.shown[self._at :]!r}"
        passed, self._at = self.shown[self._at : found], found + len(text)
        return passed

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            return False
        self._bytes += data
        return bool(data)

    def type(self, *keys: str) -> None:
        os.write(self._ours, "".join(keys).encode())

    def say(self, text: str, answer: str) -> str:
        """Type something; what is shown up to the next prompt, the answer in it."""
        self.type(text, ENTER)
        before = self.expect(answer)
        return before + answer + self.expect(PROMPT)

    def press(self, key: str, text: str) -> None:
        """Press until this is shown: `input` misses a Ctrl-C that comes while it takes in a letter."""
        while text not in self.shown[self._at :]:
            self.type(key)
            end = time.monotonic() + 1
            while text not in self.shown[self._at :] and time.monotonic() < end:
                assert self._read(end - time.monotonic()), f"it ended: {self.shown[self._at :]!r}"
        self.expect(text)

    def end(self, *keys: str) -> int:
        """Type this, and wait for the end; the exit code."""
        self.type(*keys)
        end = time.monotonic() + 20
        while time.monotonic() < end and self._read(0.5):
            pass
        code = self.process.wait(20)
        assert self.is_in_order(), "the terminal is left as it was"
        assert not any(trace in self.shown for trace in TRACES), self.shown
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    """Ctrl-C is for those whose terminal this is."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def talk(environment: dict[str, str], tmp_path: Path) -> Iterator[Talk]:
    open_: list[Terminal] = []

    def talk(
        *args: str, ready: bool = True, stdout: Path | None = None, shell: tuple[str, ...] = (), **env: str
    ) -> Terminal:
        environment_ = environment | {"TERM": "xterm", "NO_COLOR": "1"} | env
        terminal = Terminal(environment_, tmp_path, *args, stdout=stdout, shell=shell)
        open_.append(terminal)
        if ready:
            terminal.expect(PROMPT)
        return terminal

    yield talk
    for terminal in open_:
        terminal.close()


@pytest.fixture
def run(quick: Run) -> Run:
    return quick


def answer_to(prompt: str, messages: int) -> str:
    return f"Answer to: {prompt} (messages: {messages})"


def answers(path: Path) -> list[Json]:
    return [record for record in records(path) if record.get("role") == "assistant"]


def listed(home: Path) -> list[str]:
    """What the history has."""
    return [json.loads(line)["text"] for line in (home / "history.jsonl").read_text(encoding="utf-8").splitlines()]


# -- turns -------------------------------------------------------------------------------------------------


@in_terminals
def test_three_turns(talk: Talk, home: Path) -> None:
    terminal = talk()
    for number, prompt in enumerate(("One", "Two", "Three")):
        terminal.say(prompt, answer_to(prompt, 2 * number + 1))
    assert terminal.end("/quit", ENTER) == 0
    terminal.expect(f"note: to go on: ollama-prompt -i --session-id {the_file(home).stem}")
    assert [content for role, content in said(the_file(home)) if role == "user"] == ["One", "Two", "Three"]
    assert [answer["done_reason"] for answer in answers(the_file(home))] == ["stop"] * 3


@in_terminals
def test_stdout_has_the_answers_and_nothing_else(talk: Talk, tmp_path: Path) -> None:
    terminal = talk(stdout=tmp_path / "out")
    terminal.type("One", ENTER)
    terminal.expect("waiting for smollm2")
    terminal.expect(">>>")
    terminal.say("/title A title", "the title is: A title")
    assert terminal.end(CTRL_D) == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == answer_to("One", 1) + "\n"
    assert "Answer to" not in terminal.shown


@in_terminals
def test_a_prompt_may_be_given(talk: Talk, run: Run, ollama: StandIn, home: Path) -> None:
    first = succeed(run("-p", "Before", "--title", "Rivers")).json
    terminal = talk("-c", "-p", "Hi", "--temperature", "0.5", "--system", "Be kind", ready=False)
    terminal.expect("Rivers: 2 messages, with smollm2")
    terminal.expect(">>> Hi\n")
    terminal.expect(answer_to("Hi", 4))
    terminal.expect(PROMPT)
    assert terminal.end(CTRL_D) == 0
    chat = ollama.chats()[-1]
    assert (chat["options"]["temperature"], chat["messages"][0]["content"]) == (0.5, "Be kind")
    assert the_file(home).stem == first["session_id"]


@in_terminals
def test_ctrl_c_stops_an_answer_and_keeps_what_came(talk: Talk, ollama: StandIn, home: Path) -> None:
    ollama.set(delay=0.05, answer_tokens=500)
    terminal = talk()
    terminal.type("Tell", ENTER)
    terminal.expect("word3")
    terminal.type(CTRL_C)
    terminal.expect("note: stopped; what had come is kept")
    terminal.expect(PROMPT)
    ollama.set(delay=0, answer_tokens=None)
    terminal.say("And?", answer_to("And?", 3))
    assert terminal.end(CTRL_D) == 0
    stopped, answered = answers(the_file(home))
    assert (stopped["done_reason"], answered["done_reason"]) == ("interrupted", "stop")
    assert stopped["content"].startswith("word0 word1 word2 word3")


@in_terminals
def test_ctrl_c_before_the_first_word(talk: Talk, ollama: StandIn, home: Path) -> None:
    ollama.fail("hang")
    terminal = talk()
    terminal.type("Hi", ENTER)
    ollama.wait(requests=1)
    terminal.type(CTRL_C)
    terminal.expect("stopped before the answer; /retry asks again")
    terminal.expect(PROMPT)
    terminal.say("/retry", answer_to("Hi", 1))
    assert terminal.end(CTRL_D) == 0
    assert len(files(home)) == 1


@in_terminals
def test_ctrl_c_clears_the_line(talk: Talk, ollama: StandIn) -> None:
    terminal = talk()
    terminal.type("Half a pro", CTRL_C)
    terminal.expect(PROMPT)
    terminal.type(CTRL_C)
    terminal.expect("Ctrl-D or /quit ends the conversation")
    terminal.expect(PROMPT)
    terminal.say("Whole", answer_to("Whole", 1))
    assert terminal.end(CTRL_D) == 0
    assert len(ollama.chats()) == 1


@in_terminals
def test_keys_that_come_during_an_answer_wait_for_the_prompt(talk: Talk, ollama: StandIn) -> None:
    ollama.hold()
    terminal = talk()
    terminal.type("One", ENTER)
    ollama.wait(held=1)
    terminal.type("Two", ENTER, CTRL_D)
    ollama.release()
    passed = terminal.expect(answer_to("One", 1))
    assert "Two" not in passed
    terminal.expect(answer_to("Two", 3))
    assert terminal.end() == 0


LINES = ("One", "/title A title", "Two", "/system Be kind", "Three", "/quit")


@in_terminals
@pytest.mark.parametrize("pause", [0, 0.001, 0.01, 0.05, None], ids=str)
def test_lines_that_are_typed_ahead(talk: Talk, home: Path, pause: float | None) -> None:
    """One by one, so that keys meet every moment between two prompts; or all at once."""
    terminal = talk()
    for line in LINES if pause is not None else ():
        terminal.type(line, ENTER)
        time.sleep(pause or 0)
    assert terminal.end(*(f"{line}{ENTER}" for line in LINES if pause is None)) == 0
    assert [content for role, content in said(the_file(home)) if role == "user"] == ["One", "Two", "Three"]
    assert listed(home) == ["One", "Two", "Three"]


@in_terminals
@pytest.mark.parametrize("pause", [0, 0.1, 0.2, 0.3], ids=str)
def test_lines_that_are_typed_before_the_first_prompt(talk: Talk, home: Path, pause: float) -> None:
    terminal = talk(ready=False)
    time.sleep(pause)
    assert terminal.end("One", ENTER, "Größe", ENTER, "/quit", ENTER) == 0
    assert [content for role, content in said(the_file(home)) if role == "user"] == ["One", "Größe"]


SHELL = """
import contextlib, os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
with contextlib.suppress(PermissionError):  # the child did so itself, and runs its program already
    os.setpgid(child, 0)
os.tcsetpgrp(0, child or os.getpid())
if not child:
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgrp())
    input("$ ")
    os.tcsetpgrp(0, child)
    os.killpg(child, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A shell that stops a job and goes on with it, and leaves the terminal to that."""


@in_terminals
@pytest.mark.parametrize("no_color", ["", "1"], ids=["colour", "plain"])
def test_ctrl_z_stops_and_fg_goes_on(talk: Talk, ollama: StandIn, home: Path, no_color: str) -> None:
    terminal = talk(shell=("-c", SHELL), NO_COLOR=no_color)
    terminal.type("Half")
    terminal.expect("Half")
    terminal.type(CTRL_Z)
    terminal.expect("$ ")
    assert terminal.is_in_order()
    terminal.type("fg", ENTER)
    terminal.expect(">>> Half")
    ollama.set(delay=0.05, answer_tokens=40)
    terminal.type(" a prompt", ENTER)
    terminal.expect("word3")
    ollama.set(delay=0)  # for the answer after this one
    terminal.type(CTRL_Z)
    terminal.expect("$ ")
    assert terminal.is_in_order()
    terminal.type("fg", ENTER)
    terminal.expect("word9")
    assert terminal.marks_pasted()
    terminal.type("Two", ENTER)
    assert "Two" not in terminal.expect(PROMPT)
    terminal.expect("word39")
    terminal.expect(PROMPT)
    assert terminal.end(CTRL_D) == 0
    assert [content for role, content in said(the_file(home)) if role == "user"] == ["Half a prompt", "Two"]


DEAF = """
import sys, time
from ollama_prompt import __main__, held_session
held_session.HeldSession.begin = lambda *_: print("deaf", flush=True) or time.sleep(60)
del sys.argv[1:3]
__main__.main()
"""
"""A conversation with a disk that hangs."""


@in_terminals
def test_a_third_ctrl_c_leaves_the_terminal_in_order(talk: Talk) -> None:
    terminal = talk(shell=("-c", DEAF))
    terminal.type("One", ENTER)
    terminal.expect("deaf")
    for _ in range(50):
        if terminal.process.poll() is None:
            terminal.type(CTRL_C)
            time.sleep(0.3)
    assert terminal.end() == -signal.SIGINT


@in_terminals
def test_what_is_pasted_during_an_answer_keeps_its_lines(talk: Talk, ollama: StandIn, home: Path) -> None:
    ollama.hold()
    terminal = talk()
    terminal.type("One", ENTER)
    ollama.wait(held=1)
    assert "One: 1 message, with" in talk("-c").shown
    terminal.expect("waiting for")
    assert terminal.marks_pasted(), "or each line would be sent alone"
    terminal.type("\x1b[200~two\rlines\x1b[201~", ENTER, CTRL_D)
    ollama.release()
    assert terminal.end() == 0
    assert [content for role, content in said(the_file(home)) if role == "user"] == ["One", "two\nlines"]


MARKDOWN = """# Rivers

Three **long** ones:

- the `Rhine`
- the Danube

```python
print("Volga")
```

The end.
"""


@in_terminals
def test_an_answer_is_markdown_at_a_terminal_with_colour(talk: Talk, ollama: StandIn, home: Path) -> None:
    """It is drawn while it arrives, and the next prompt stands below all of it."""
    ollama.set(answer=MARKDOWN, delay=0.03)
    terminal = talk(NO_COLOR="")
    terminal.type("Tell", ENTER)
    terminal.expect("ong")
    assert "The end" not in terminal.shown
    terminal.expect("The end.")
    terminal.expect(PROMPT)
    rendered = terminal._bytes.decode()
    assert "\x1b[1mlong\x1b[0m" in rendered
    assert " • " in rendered
    last = terminal.shown.rpartition("Rivers")[2]
    assert [word for word in ("# ", "**", "```") if word in last] == []
    terminal.say("Again", "The end.")
    ollama.set(delay=0.05, answer=None, answer_tokens=500)
    terminal.type("Long", ENTER)
    terminal.expect("word3")
    terminal.type(CTRL_C)
    terminal.expect("note: stopped; what had come is kept")
    terminal.expect(PROMPT)
    assert terminal.is_on(25, first=True)
    assert terminal.end(CTRL_D) == 0
    assert [answer["content"] for answer in answers(the_file(home))[:2]] == [MARKDOWN] * 2


# -- what goes on meanwhile --------------------------------------------------------------------------------


@in_terminals
def test_another_process_uses_the_session_in_between(talk: Talk, run: Run, ollama: StandIn, home: Path) -> None:
    terminal = talk()
    terminal.say("One", answer_to("One", 1))
    session_id = the_file(home).stem
    other = succeed(run("--session-id", session_id, "-p", "From a script", "--model", "thinker", "--lock-timeout", "0"))
    assert other.json["response"] == answer_to("From a script", 3)
    terminal.say("Three", answer_to("Three", 5))
    assert terminal.end(CTRL_D) == 0
    last = ollama.chats()[-1]
    assert [message["content"] for message in last["messages"]][2] == "From a script"
    assert last["model"] == "thinker", "what others set counts as well"


@in_terminals
def test_a_session_in_use_is_waited_for(talk: Talk, run: Run, start: Start, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run("-p", "One")).json["session_id"]
    ollama.hold()
    script = start("--session-id", session_id, "-p", "From a script")
    ollama.wait(held=1)
    terminal = talk("--session-id", session_id)
    assert "One: 3 messages, with" in terminal.shown
    terminal.type("Two", ENTER)
    terminal.expect("is in use by another process; waiting for it")
    terminal.type(CTRL_C)
    terminal.expect("note: stopped")
    terminal.expect(PROMPT)
    assert terminal.end(CTRL_D) == 0
    short = talk("--session-id", session_id, "--lock-timeout", "0")
    assert "hint: --lock-timeout waits longer" in short.say("Two", "error: session")
    ollama.release()
    assert script.wait(20) == 0
    short.say("/retry", answer_to("Two", 5))
    assert short.end(CTRL_D) == 0


@in_terminals
def test_a_session_that_was_deleted(talk: Talk, run: Run, ollama: StandIn, home: Path) -> None:
    terminal = talk("--system", "Be kind", "--model", "thinker")
    terminal.say("A walrus", answer_to("A walrus", 2))
    gone = the_file(home).stem
    succeed(run("--delete", gone))
    assert "/retry asks this in a new one" in terminal.say("Two", "error: this session was deleted meanwhile")
    terminal.say("/retry", answer_to("Two", 2))
    assert the_file(home).stem != gone
    last = ollama.chats()[-1]
    assert (last["model"], last["messages"][0]["content"]) == ("thinker", "Be kind")
    succeed(run("--delete", the_file(home).stem))
    assert "the next prompt begins a new one" in terminal.say("/undo", "was deleted meanwhile")
    assert terminal.end(CTRL_D) == 0
    assert "walrus" not in "".join(str(data) for data in tree(home).values())


@in_terminals
def test_the_server_dies_and_comes_back(talk: Talk, home: Path) -> None:
    server = StandIn()
    port = int(server.url.rpartition(":")[2])
    terminal = talk(OLLAMA_HOST=server.url)
    terminal.say("One", answer_to("One", 1))
    server.close()
    assert "hint: " in terminal.say("Two", "error: ")
    server = StandIn(port)
    terminal.say("/retry", answer_to("Two", 3))
    server.fail("cut", chunks=3)
    shown = terminal.say("Three", "error: ")
    assert "/retry asks it again" in shown
    assert "--retry" not in shown
    terminal.say("/retry", answer_to("Three", 5))
    assert terminal.end(CTRL_D) == 0
    server.close()
    prompts = [content for role, content in said(the_file(home)) if role == "user"]
    assert prompts == ["One", "Two", "Three", "Three"], "refused, nothing is stored; broken off, it is"


@in_terminals
def test_errors_end_a_turn_only(talk: Talk, ollama: StandIn, home: Path) -> None:
    terminal = talk("--model", "no-such", "--timeout", "0.2")
    assert "/model NAME takes another" in terminal.say("Hi", "error: model 'no-such")
    terminal.say("/model smollm2", "the next answer is by smollm2")
    ollama.fail("hang")
    terminal.say("Slow", "error: ")
    terminal.say("@./none.txt", "error: cannot read @./none.txt")
    terminal.say("Hi", answer_to("Hi", 1))
    assert terminal.end(CTRL_D) == 0


@in_terminals
def test_a_stdout_that_is_gone_ends_it(talk: Talk) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    terminal = talk(stdout=Path("/dev/full"))
    assert terminal.end("Hi", ENTER) == 1
    terminal.expect("error: cannot write to stdout")


@in_terminals
def test_term_leaves_the_terminal_in_order(talk: Talk, ollama: StandIn, home: Path) -> None:
    terminal = talk()
    terminal.say("One", answer_to("One", 1))
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 143
    terminal.expect("to go on: ")
    ollama.set(delay=0.05, answer_tokens=500)
    terminal = talk("-c", "-p", "Two", ready=False)
    terminal.expect("word3")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 143
    assert answers(the_file(home))[-1]["done_reason"] == "interrupted"


COUNTING = """
import sys
from ollama_prompt import __main__, embedded
load, free = embedded._load, embedded.Loaded.free
def tell_load(*arguments):
    print("LOADED", file=sys.stderr)
    return load(*arguments)
def tell_free(loaded):
    print("FREED" if loaded.server else "", end="\\n", file=sys.stderr)
    free(loaded)
embedded._load, embedded.Loaded.free = tell_load, tell_free
del sys.argv[1:3]
__main__.main()
"""
"""A conversation that tells when a file's model comes into memory, and goes."""


@in_terminals
def test_a_file_stays_in_memory_until_the_model_changes(talk: Talk, gguf: str, home: Path) -> None:
    settings = ("--max-tokens", "4", "--option", "num_thread=1")
    terminal = talk("--model", gguf, *settings, shell=("-c", COUNTING))
    terminal.type("One", ENTER)
    terminal.expect("LOADED")
    terminal.expect(PROMPT)
    for number in range(2):
        terminal.type(f"More {number}", ENTER)
        assert not {"LOADED", "FREED"}.intersection(terminal.expect(PROMPT).split())
    terminal.say("/model smollm2", "the next answer is by smollm2")
    assert "FREED" in terminal.say("Four", "Answer to: Four")
    terminal.say(f"/model {gguf}", "the next answer is by ")
    terminal.type("Five", ENTER)
    terminal.expect("LOADED")
    terminal.expect(PROMPT)
    assert terminal.end(CTRL_D) == 0
    terminal.expect("FREED")
    assert len(answers(the_file(home))) == 5


# -- commands ----------------------------------------------------------------------------------------------


@in_terminals
def test_commands(talk: Talk, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("Remember the milk.", encoding="utf-8")
    terminal = talk()
    terminal.say("/undo", "error: there is no turn to take back")
    terminal.say("/retry", "error: there is no prompt to ask again")
    terminal.say("/title", "there is no title")
    terminal.say("/title  Three \t rivers", "the title is: Three rivers")
    terminal.say("One", answer_to("One", 1))
    terminal.say("/title Two rivers", "the title is: Two rivers")
    terminal.say("Two", answer_to("Two", 3))
    terminal.say("/undo", "taken back: Two")
    terminal.say("/retry", answer_to("One", 1))
    terminal.say("/model", "the model is smollm2")
    terminal.say("/model thinker", "the next answer is by thinker")
    terminal.say("/system Be kind", "counts from the next answer on")
    terminal.say("/system", "the system prompt is: Be kind")
    terminal.say("/file none.txt", "error: cannot read @./none.txt")
    terminal.say("/file my notes.txt", 'with the next prompt: @"./my notes.txt"')
    terminal.say("Read it", "Answer to: Read it\n\nRemember the milk. (messages: 4)")
    terminal.say("//etc", answer_to("/etc", 6))
    assert "/undo? /help shows all" in terminal.say("/umdo it", "error: there is no command /umdo")
    terminal.say("/undo it", "error: /undo takes nothing behind it")
    terminal.say("/model  ", "the model is thinker")
    assert "/file PATH" in terminal.say("/help", "/undo ")
    assert terminal.end("/quit", ENTER) == 0
    assert len(ollama.chats()) == 5
    read = next(record for record in records(the_file(home)) if record.get("typed"))
    assert (read["typed"], read["references"]) == ('Read it\n\n@"./my notes.txt"', ['@"./my notes.txt"'])
    header, *rest = records(the_file(home))
    assert header["title"] == "Three rivers"
    metas = [record for record in rest if record["type"] == "meta"]
    assert [record.get("title") for record in metas] == ["Two rivers", None]
    assert (metas[1]["model"], metas[1]["system"]) == ("thinker", "Be kind")
    assert listed(home) == ["One", "Two", "Read it", "//etc"]


def test_every_command_is_there() -> None:
    done = {name.removeprefix("_do_") for name in vars(chat.Conversation) if name.startswith("_do_")}
    assert {f"/{name}" for name in done} | {"/quit"} == set(chat.COMMANDS)
    lines = [f"{name + argument:<14}{what}" for name, (argument, what) in chat.COMMANDS.items()]
    assert all(len(line) < 40 for line in [*lines, *chat.KEYS.splitlines()]), "narrow terminals show it whole"


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        ("notes.txt", "@./notes.txt"), ("./notes.txt", "@./notes.txt"), ("../a/b.py", "@../a/b.py"),
        ("my notes.txt", '@"./my notes.txt"'), ('"my notes.txt"', '@"./my notes.txt"'), ("@./a.py", "@./a.py"),
        ("a.", '@"./a."'), ('5" disk', "@'./5\" disk'"), ("/etc/hosts", "@/etc/hosts"), (".", "@./"), ("..", "@../"),
    ],
)  # fmt: skip
def test_a_path_becomes_a_reference(path: str, reference: str) -> None:
    assert chat._reference(path) == reference


def test_a_path_that_cannot_be_written() -> None:
    with pytest.raises(UsageError):
        chat._reference("""a "b' c""")


# -- the line ----------------------------------------------------------------------------------------------


@in_terminals
@pytest.mark.parametrize(
    "keys",
    [
        ("one", ALT_ENTER, "two"),
        ("one", CTRL_J, "two"),
        ("one\\", ENTER, "two"),
        ("\x1b[200~one\rtwo\x1b[201~",),
    ],
    ids=["alt-enter", "ctrl-j", "backslash", "pasted"],
)
def test_several_lines(talk: Talk, home: Path, keys: tuple[str, ...]) -> None:
    terminal = talk()
    terminal.type(*keys)
    terminal.expect("two")
    terminal.say("", "(messages: 1)")
    assert terminal.end(CTRL_D) == 0
    assert said(the_file(home))[0] == ("user", "one\ntwo")


@in_terminals
def test_history_and_completion(talk: Talk, home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Milk.", encoding="utf-8")
    first = talk()
    first.say("One\\\rmore", "(messages: 1)")
    assert first.end(CTRL_D) == 0
    path = home / "history.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.name in GITIGNORE
    second = talk()
    second.type(UP)
    second.expect("more")
    second.say("", "(messages: 1)")
    second.type("See @./no", TAB)
    second.expect("notes.txt")
    second.say("", "Answer to: See Milk. (messages: 3)")
    second.type("/und", TAB)
    second.expect("/und")
    second.expect("o")
    second.say("", "taken back: See @./notes.txt")
    assert second.end(CTRL_D) == 0
    assert listed(home) == ["One\nmore", "One\nmore", "See @./notes.txt"]


@in_terminals
def test_no_history(talk: Talk, home: Path) -> None:
    terminal = talk(OLLAMA_PROMPT_NO_HISTORY="1")
    terminal.say("One", answer_to("One", 1))
    terminal.type(UP)
    terminal.expect("One")
    assert terminal.end(CTRL_C, CTRL_D) == 0
    assert not (home / "history.jsonl").exists()


@in_terminals
def test_the_terminal_changes_its_size(talk: Talk, home: Path) -> None:
    terminal = talk()
    prompt = "a prompt that is longer than the window will be"
    terminal.type(prompt)
    terminal.expect("will be")
    terminal.resize(20, 10)
    terminal.type("!")
    terminal.expect("!")
    terminal.say("", "(messages: 1)")
    assert terminal.end(CTRL_D) == 0
    assert said(the_file(home))[0] == ("user", f"{prompt}!")


WITHOUT = "raise ImportError('it is not installed')\n"


@in_terminals
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_without_prompt_toolkit(talk: Talk, ollama: StandIn, home: Path, tmp_path: Path, term: str) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "prompt_toolkit.py").write_text(WITHOUT, encoding="utf-8")
    terminal = talk(TERM=term, PYTHONPATH=str(tmp_path / "lib"))
    assert ('"ollama-prompt[chat]"' in terminal.shown) == (term == "xterm")
    terminal.type("One\\", ENTER)
    terminal.expect("... ")
    terminal.say("more", "(messages: 1)")
    terminal.type("Half")
    terminal.expect("Half")
    terminal.press(CTRL_C, PROMPT)
    ollama.set(delay=0.05, answer_tokens=500)
    terminal.type("Tell", ENTER)
    terminal.expect("word3")
    terminal.type(CTRL_C)
    terminal.expect("what had come is kept")
    terminal.expect(PROMPT)
    terminal.say("/undo", "taken back: Tell")
    assert terminal.end(CTRL_D) == 0
    assert said(the_file(home))[0] == ("user", "One\nmore")
    if term == "dumb":
        assert b"\x1b" not in terminal._bytes


def offered(before: str) -> list[str]:
    """What the line may become."""
    length, texts = editor.candidates(before, list(chat.COMMANDS))
    return [before[: len(before) - length] + text for text in texts]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("a.py", "a b.py", ".hidden", "docs/c.md", "docs/d e.md"):
        (tmp_path / name).touch()
    assert offered("/ti") == ["/title"]
    assert offered("/") == list(chat.COMMANDS)
    assert offered("//") == offered("say /u") == offered("me@host") == offered("/title a") == offered("@no") == []
    assert offered("see @./") == ['see @"./a b.py"', "see @./a.py", "see @./docs/"]
    assert offered("see @./.") == ["see @./.hidden"]
    assert offered('(@"./docs/d') == ['(@"./docs/d e.md"']
    assert offered("@./docs/d") == ['@"./docs/d e.md"']
    assert offered("/file a") == ["/file a b.py", "/file a.py"]
    assert offered("/file a ") == ["/file a b.py"]
    assert offered("/file none/x") == []


# -- the history, as a file --------------------------------------------------------------------------------


@pytest.fixture
def store(home: Path) -> Indexer:
    home.mkdir()
    return Indexer(Layout(str(home)), fail_at_once)


def fail_at_once(text: str) -> None:
    raise AssertionError(text)


ONE, TWO = new_id(1), new_id(2)


def test_what_was_typed_goes_with_its_session(store: Indexer) -> None:
    for session_id, text in ((ONE, "Größe\nzwei"), (TWO, "walrus"), (ONE, "")):
        store.remember(session_id, text)
    assert store.typed() == ["Größe\nzwei", "walrus", ""]
    history.forget(store.layout, store.lock_history, {TWO})
    assert store.typed() == ["Größe\nzwei", ""]
    assert [name for name in os.listdir(store.layout.home) if "history" in name] == ["history.jsonl"]
    assert b"walrus" not in Path(store.layout.history).read_bytes()


def test_what_a_killed_writer_left_goes_with_the_session(store: Indexer) -> None:
    """Also where the whole file was deleted since."""
    left = Path(f"{store.layout.history}.tmp")
    left.write_text(json.dumps({"session_id": ONE, "text": "walrus"}), encoding="utf-8")
    with pytest.raises(SessionNotFound):
        store.delete(ONE)
    assert not left.exists()


DAMAGED = b"""{"session_id":"x"
[]
"a"
\xff
{"session_id":1,"text":2}
{"text":"a"}
{"session_id":"x","text":"\\ud800"}

{"session_id":"x","text":"torn"""


def test_damaged_lines_are_nobodys(store: Indexer) -> None:
    Path(store.layout.history).write_bytes(DAMAGED)
    store.remember(ONE, "kept")
    store.remember(TWO, "dropped")
    assert store.typed() == ["kept", "dropped"]
    history.forget(store.layout, store.lock_history, {TWO})
    assert store.typed() == ["kept"]


def test_it_does_not_grow_for_ever(store: Indexer) -> None:
    lines = [json.dumps({"session_id": ONE, "text": str(number)}) + "\n" for number in range(2 * history.KEPT)]
    Path(store.layout.history).write_text("".join(lines), encoding="utf-8")
    store.remember(ONE, "last")
    assert len(store.typed()) == history.KEPT
    assert store.typed()[-1] == "last"
    assert len(Path(store.layout.history).read_bytes().splitlines()) == history.KEPT


def test_a_history_that_cannot_be_had_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Indexer(Layout(str(tmp_path / "file" / "none")), fail_at_once)
    store.remember(ONE, "text")
    assert store.typed() == []


def test_many_type_and_forget_at_once(store: Indexer) -> None:
    def converse(number: int) -> None:
        for turn in range(20):
            store.remember(ONE, f"{number} {turn}")
            store.remember(gone := new_id(number), "walrus")
            history.forget(store.layout, store.lock_history, {gone})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(converse, range(2, 6)))
    assert sorted(store.typed()) == sorted(f"{number} {turn}" for number in range(2, 6) for turn in range(20))


@pytest.mark.parametrize("remove", [("--delete", ONE), ("--purge", "0")])
def test_removing_a_session_removes_what_was_typed_in_it(run: Run, home: Path, remove: tuple[str, ...]) -> None:
    import stores

    stores.make(home, 1)
    store = Indexer(Layout(str(home)), fail_at_once)
    store.remember(ONE, "walrus")
    store.remember(TWO, "flamingo")
    succeed(run(*remove))
    assert store.typed() == ["flamingo"]


# -- which flags go together -------------------------------------------------------------------------------

CONTRADICTIONS = [
    ("--no-session",),
    ("--stdin",),
    ("--format", "json"),
    ("--output", "json"),
    ("--output", "ndjson"),
    ("-p", "-"),
    ("--prompt-file", "-"),
    ("--list-sessions",),
    ("--retry", ONE),
    ("--undo", ONE),
    ("-p", "a", "--prompt-file", "b"),
    ("-c", "--session-id", ONE),
]


@pytest.mark.parametrize("arguments", CONTRADICTIONS, ids=" ".join)
def test_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        flags.parse(["-i", *arguments])
    assert caught.value.hint or len(arguments) != 1 or arguments == ("--list-sessions",)


def test_output_is_text() -> None:
    assert flags.parse(["-i"]).output == flags.parse(["-i", "--output", "text"]).output == "text"
    assert flags.parse(["-p", "x"]).output == "json"


def test_it_needs_a_terminal(run: Run, ollama: StandIn, home: Path) -> None:
    result = run("-i", input="Hi\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --interactive needs a terminal")
    assert "hint: a script asks turn by turn" in result.stderr
    assert fail(run("-i", "--output", "json"), "usage", 2)
    assert ollama.requests() == []
    assert not home.exists()


@in_terminals
def test_an_unknown_session_is_told_at_once(talk: Talk, home: Path) -> None:
    terminal = talk("--session-id", ONE, ready=False)
    assert terminal.end() == 1
    terminal.expect(f"error: no session has the id {ONE}")
    assert not home.exists()


def test_a_prompt_is_typed_as_given() -> None:
    parsed = flags.parse(["-i", "-p", "Hi"])
    assert config.read_prompt(parsed).text == "Hi"
