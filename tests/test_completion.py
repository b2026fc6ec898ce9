"""The completion scripts, in the shells themselves: what they offer, and what a press of TAB makes of a line.

What is offered a shell can be asked without a terminal, but for zsh. What is inserted is seen at a terminal
only: the line is typed, TAB is pressed, and a key of ours writes down what the line is then.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import header, line, make, message, new_id, succeed

from ollama_prompt import completion, flags

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

ACTIONS = flags.make_parser()._actions
NAMES = [name for action in ACTIONS for name in action.option_strings]
OF_SESSIONS = [action.option_strings[0] for action in ACTIONS if action.metavar == "UUID"]

TITLES = (
    "Three rivers of Europe",
    "River cruise: cost & time",
    "$(touch executed) `touch executed` ${IFS} !touch",
    'a "quoted" back\\slash \\n it\'s',
    "tab\there \x1b[31mred\x07 end",
    "[bracket] {brace,s} *glob* ? %F{red} %s #hash ~ ; touch executed",
    "emoji \N{CRAB} Übergröße",
    "turned \N{RIGHT-TO-LEFT OVERRIDE}around",
    '", "path": "/etc", "title": "false',
)
"""The title of each session, the oldest first."""
IDS = [new_id(number) for number in range(len(TITLES))]


class Desk:
    """Where somebody works with a shell: the script in a file, the command on the PATH, a folder with files."""

    def __init__(self, shell: str, folder: Path, environment: dict[str, str]) -> None:
        self.shell = shell
        self.script = folder / f"_ollama-prompt.{shell}"
        self.script.write_text(completion.script(shell), encoding="utf-8")
        self.command = folder / "bin" / "ollama-prompt"
        self.command.parent.mkdir()
        self.be(f'exec "{sys.executable}" -m ollama_prompt "$@"')
        self.here = folder / "here"
        self.here.mkdir()
        path = f"{self.command.parent}{os.pathsep}{environment['PATH']}"
        self.environment = environment | {"PATH": path, "LC_ALL": "C.UTF-8", "TERM": "xterm"}

    def be(self, body: str) -> None:
        """What the command does."""
        self.command.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        self.command.chmod(0o755)

    def shown(self, typed: str) -> str:
        """What is offered behind `ollama-prompt` and what was typed, one candidate a line; "" if nothing is."""
        return _SHOWN[self.shell](self, f"ollama-prompt {typed}")

    def run(self, *command: str) -> str:
        """What a shell prints, which must print no error."""
        done = subprocess.run(command, env=self.environment, cwd=self.here, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def after_tab(self, typed: str) -> str:
        """What the line is when TAB was pressed once."""
        if self.shell == "powershell":
            return _only_match(self, f"ollama-prompt {typed}")
        return _at_a_terminal(self, f"ollama-prompt {typed}")[0].removeprefix("ollama-prompt ").rstrip()


# -- asking a shell ----------------------------------------------------------------------------------------


def _bash_shown(desk: Desk, text: str) -> str:
    """The function is called as bash calls it. Bash makes a word of its own of an equals sign."""
    words = re.findall(r"=|[^ =]+", text) + [""] * text.endswith(" ")
    word, before = "" if words[-1] == "=" else words[-1], words[-2]
    asked = f"""
        compopt() {{ :; }}
        source {shlex.quote(str(desk.script))}
        COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1} COMP_TYPE=63 COLUMNS=200
        _ollama_prompt ollama-prompt "$1" "$2"
        if [[ ${{#COMPREPLY[@]}} -gt 0 ]]; then printf '%s\\n' "${{COMPREPLY[@]}}"; fi
    """
    return desk.run("bash", "--noprofile", "--norc", "-c", asked, "bash", word, before)


def _zsh_shown(desk: Desk, text: str) -> str:
    """What is on the screen when the list is asked for, which inserts nothing."""
    screen = _at_a_terminal(desk, text, b"\x04")[1]
    return re.sub(r"\x1b\[\??[\d;]*[A-Za-z]", "", screen).replace("\r", "").replace("o\b", "")


def _fish_shown(desk: Desk, text: str) -> str:
    asked = f"source {shlex.quote(str(desk.script))}; complete -C {shlex.quote(text)}"
    return desk.run("fish", "--no-config", "-c", asked)


def _powershell_shown(desk: Desk, text: str) -> str:
    """Null, which says that there is nothing, was an error for TabExpansion2 until PowerShell 7.7."""
    asked = f"""
        [Console]::OutputEncoding = [System.Text.UTF8Encoding]::new($false)
        . {_quoted(str(desk.script))}
        $text = {_quoted(text)}
        try {{ $matches_ = (TabExpansion2 $text $text.Length).CompletionMatches }} catch {{ $matches_ = @() }}
        foreach ($match in $matches_) {{ "$($match.CompletionText)`t$($match.ListItemText)`t$($match.ToolTip)" }}
    """
    return desk.run("pwsh", "-NoProfile", "-NonInteractive", "-Command", asked)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _only_match(desk: Desk, text: str) -> str:
    """What PowerShell makes of the last word, if it finds one match for it."""
    (match,) = _powershell_shown(desk, text).splitlines()
    return text.removeprefix("ollama-prompt ").rpartition(" ")[0] + " " + match.partition("\t")[0]


_SHOWN: dict[str, Callable[[Desk, str], str]] = {
    "bash": _bash_shown, "zsh": _zsh_shown, "fish": _fish_shown, "powershell": _powershell_shown
}  # fmt: skip


def version(shell: str) -> int:
    printed = subprocess.run([shell, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", printed)[0])


# -- at a terminal -----------------------------------------------------------------------------------------

READY = "ready> "
SETUP = {
    "bash": """
        PS1='ready> '; source {script}
        bind 'set bell-style none'
        bind -x '"\\C-x\\C-p": printf "%s\\n" "$READLINE_LINE" >{line}'
    """,
    "zsh": """
        PS1='ready> ' LISTMAX=1000; unsetopt beep
        autoload -Uz compinit; compinit -u -d {folder}/../zcompdump; source {script}
        write-line() {{ print -r -- "$BUFFER" >{line} }}
        zle -N write-line; bindkey '^X^P' write-line
    """,
    "fish": """
        function fish_prompt; echo 'ready> '; end
        function fish_title; end
        source {script}
        bind \\cx\\cp 'commandline -b >{line}'
    """,
}
START = {
    "bash": "exec bash --noprofile --rcfile {setup} -i",
    "zsh": "ZDOTDIR={folder} exec zsh -d -i",
    "fish": "exec fish --no-config -C 'source {setup}'",
}


def _at_a_terminal(desk: Desk, text: str, key: bytes = b"\t") -> tuple[str, str]:
    """What the line is after a key, and what came on the screen since."""
    if desk.shell == "bash" and version("bash") < 4:
        pytest.skip("bash 3.2 tells no key of ours what the line is")
    folder = desk.script.parent
    setup, written = folder / ".zshrc", folder / "line"
    written.unlink(missing_ok=True)
    names = {"script": desk.script, "line": written, "setup": setup, "folder": folder}
    setup.write_text(SETUP[desk.shell].format(**names), encoding="utf-8")
    with closing(Terminal(START[desk.shell].format(**names), desk)) as terminal:
        terminal.wait(lambda: READY in terminal.screen)
        terminal.screen = ""
        terminal.type(text.encode() + key)
        terminal.type(b"\x18\x10")
        terminal.wait(lambda: written.exists() and written.read_text(encoding="utf-8").endswith("\n"))
    return written.read_text(encoding="utf-8").rstrip("\n"), terminal.screen


class Terminal:
    """A terminal of 250 lines, in which every list has room, and a shell in it."""

    def __init__(self, command: str, desk: Desk) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.screen = ""
        self._end, self._end_of_shell = pty.openpty()
        fcntl.ioctl(self._end_of_shell, termios.TIOCSWINSZ, struct.pack("HHHH", 250, 200, 0, 0))
        # A new session gets its terminal when it opens one.
        command = f"exec <>{os.ttyname(self._end_of_shell)} >&0 2>&0; {command}"
        self._shell = subprocess.Popen(
            ["sh", "-c", command], env=desk.environment, cwd=desk.here, start_new_session=True
        )

    def close(self) -> None:
        """Take the terminal away."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._end)
        os.close(self._end_of_shell)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._end, keys)

    def wait(self, until: Callable[[], bool]) -> None:
        """Look at the screen until something is so, and nothing more comes."""
        end = time.monotonic() + 60
        while self._look() or not until():
            assert time.monotonic() < end, self.screen

    def _look(self) -> bool:
        """Whether something came within a moment."""
        if not select.select([self._end], [], [], 0.05)[0]:
            return False
        came = os.read(self._end, 65536)
        self.screen += came.decode("utf-8", "replace")
        if re.search(rb"\x1b\[0?c", came):  # fish 4 asks what terminal this is
            self.type(b"\x1b[?1;2c")
        return True


# -- tests -------------------------------------------------------------------------------------------------


PROGRAMS = {"bash": "bash", "zsh": "zsh", "fish": "fish", "powershell": "pwsh"}
PARSE = {
    "bash": ["bash", "-n", "{}"],
    "zsh": ["zsh", "-n", "{}"],
    "fish": ["fish", "--no-execute", "{}"],
    "powershell": ["pwsh", "-NoProfile", "-Command", "$null = [scriptblock]::Create((Get-Content -Raw '{}'))"],
}


@pytest.fixture(params=list(PROGRAMS))
def shell(request: pytest.FixtureRequest) -> str:
    """Each shell that is installed here."""
    name: str = request.param
    if os.name == "nt":
        pytest.skip("the command of these tests is a shell script")
    if shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"{PROGRAMS[name]} is not installed")
    return name


@pytest.fixture
def desk(shell: str, tmp_path: Path, home: Path, environment: dict[str, str]) -> Desk:
    """A desk with files, and with sessions in the store."""
    desk = Desk(shell, tmp_path, environment)
    for name in ("notes.txt", "two words.md", "small.gguf", "big one.GGUF"):
        (desk.here / name).touch()
    (desk.here / "folder").mkdir()
    for number, title in enumerate(TITLES):
        make(home, number, line(header(IDS[number], title=title)) + line(message(number, "user", "Hi")))
    return desk


def test_the_script_parses(desk: Desk) -> None:
    desk.run(*(word.format(desk.script) for word in PARSE[desk.shell]))


def test_every_flag_is_offered(desk: Desk) -> None:
    words = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", desk.shown("-")))
    assert words >= set(NAMES)


def test_flags_have_descriptions(desk: Desk) -> None:
    shown = desk.shown("--session-i")
    assert "--session-id" in shown
    assert "--session-info" in shown
    assert "--stdin" not in shown
    assert desk.shell == "bash" or "continue that session" in shown


@pytest.mark.parametrize("joint", [" ", "="])
def test_sessions_are_offered_with_their_titles_newest_first(desk: Desk, joint: str) -> None:
    shown = desk.shown(f"--session-id{joint}")
    places = [shown.index(session_id) for session_id in IDS]
    assert places == sorted(places, reverse=True)
    for text in (TITLES[0], TITLES[1], TITLES[2], "2026-09-21", "[bracket] {brace,s} *glob* ? %F{red} %s #hash ~ ;"):
        assert text in shown
    assert 'a "quoted" back\\slash \\n it\'s' in shown
    assert '", "path": "/etc", "title": "false' in shown
    assert "tab here " in shown
    assert not set(shown) & {"\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"}
    assert "\x1b[31mred" not in shown


def test_every_flag_that_takes_a_session_offers_them(desk: Desk) -> None:
    for flag in OF_SESSIONS:
        assert IDS[0] in desk.shown(f"{flag} ")


def test_an_id_is_completed(desk: Desk) -> None:
    assert desk.after_tab(f"--session-id {IDS[3][:-1]}") == f"--session-id {IDS[3]}"
    assert desk.after_tab(f"--session-id={IDS[3][:-1]}") == f"--session-id={IDS[3]}"


@pytest.mark.parametrize(
    ("word", "number"),
    [("three", 0), ("CRUISE", 1), ("executed)", 2), ("quoted", 3), ("%F{red}", 5), ("größe", 6), ("/etc", 8)],
)
def test_a_word_of_a_title_is_completed(desk: Desk, word: str, number: int) -> None:
    if desk.shell == "fish" and version("fish") < 4:
        pytest.skip("fish 3 lets no completion replace a word")
    if desk.shell == "powershell" and not word.isalnum():
        pytest.skip("to PowerShell this is no word")
    word = word.replace(")", r"\)")
    assert desk.after_tab(f"--session-id {word}") == f"--session-id {IDS[number]}"


def test_a_word_of_a_title_is_completed_behind_an_equals_sign(desk: Desk) -> None:
    if desk.shell == "fish" and version("fish") < 4:
        pytest.skip("fish 3 lets no completion replace a word")
    assert desk.after_tab("--session-id=three") == f"--session-id={IDS[0]}"


def test_a_word_of_several_titles(desk: Desk) -> None:
    """Bash and fish leave it as it is, zsh goes through them."""
    after = desk.shown("--session-id riv") if desk.shell == "powershell" else desk.after_tab("--session-id riv")
    expected = {
        "bash": "--session-id riv", "fish": "--session-id riv", "zsh": f"--session-id {IDS[1]}",
        "powershell": after if IDS[0] in after and IDS[1] in after and IDS[2] not in after else "",
    }  # fmt: skip
    assert after == expected[desk.shell]


def test_nothing_of_a_title_is_executed(desk: Desk, tmp_path: Path) -> None:
    for typed in ("--session-id ", "--session-id touch", f"--session-id {IDS[2]}"):
        desk.shown(typed)
        if desk.shell != "powershell":
            desk.after_tab(typed)
    assert not list(tmp_path.rglob("executed"))


def test_words_are_completed(desk: Desk) -> None:
    assert desk.after_tab("--output t") == "--output text"
    assert desk.after_tab("--output=t") == "--output=text"
    assert desk.after_tab("--completion f") == "--completion fish"
    assert desk.after_tab("--think h") == "--think high"
    assert desk.after_tab("--format j") == "--format json"
    assert "--stdin" in desk.shown("--think -")


def test_files_are_completed(desk: Desk) -> None:
    quoted = "'./two words.md'" if desk.shell == "powershell" else r"two\ words.md"
    assert desk.after_tab("--prompt-file two").replace("'two", "'./two") == f"--prompt-file {quoted}"
    assert desk.after_tab("--system-file=note").replace("./", "") == "--system-file=notes.txt"
    assert desk.after_tab("--format note").replace("./", "") == "--format notes.txt"
    assert desk.after_tab("--repo-root fo").replace("./", "").rstrip("/") == "--repo-root folder"
    assert desk.after_tab("--model sm").replace("./", "") == "--model small.gguf"
    assert "big one.GGUF" in desk.after_tab("--model big").replace("\\", "")


@pytest.mark.parametrize("typed", ["--model n", "--repo-root n", "--limit n", "--limit ", "--prompt n", "--stdin n"])
def test_no_files_where_none_are_meant(desk: Desk, typed: str) -> None:
    if desk.shell == "zsh" and typed in {"--model n", "--repo-root n"}:
        pytest.skip("zsh offers other files where none fit, in all completions")
    if desk.shell == "powershell":
        assert desk.shown(typed) == ""
    else:
        assert desk.after_tab(typed) == typed.rstrip()


@pytest.mark.parametrize(
    "body", ['echo noise >&2; echo \'{"error": "noise"}\'; exit 1', "echo '{\"session_id\": noise'; kill -9 $$", ""]
)
def test_a_command_that_fails_says_nothing(desk: Desk, body: str) -> None:
    desk.be(body)
    shown = desk.shown("--session-id 0")
    assert "noise" not in shown
    assert shown.strip() == ("ollama-prompt --session-id 0" if desk.shell == "zsh" else "")
    desk.command.unlink()
    assert "not found" not in desk.shown("--session-id 0")


def test_zsh_finds_the_script_in_a_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    desk = Desk("zsh", tmp_path, environment)
    desk.script.rename(tmp_path / "_ollama-prompt")
    desk.script = tmp_path / "empty"
    desk.script.touch()
    desk.environment["FPATH"] = subprocess.run(
        ["zsh", "-fc", "print -r -- $FPATH"], capture_output=True, text=True, check=True
    ).stdout.strip()
    desk.environment["FPATH"] += f":{tmp_path}"
    assert desk.after_tab("--session-inf") == "--session-info="


# -- without a shell ---------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.none() | st.just("2026-09-21T14:13:20Z"))
def test_no_title_leads_the_pattern_astray(title: str, model: str, last_used: str | None) -> None:
    session = {"session_id": IDS[0], "model_name": model, "created_at": None, "last_used": last_used}
    listed = json.dumps({**session, "message_count": 1, "context_tokens": 0, "title": title, "path": title})
    found = re.match(completion._LINE, listed)
    assert found
    assert (found[1], found[3]) == (IDS[0], last_used and "2026-09-21")
    assert json.loads(f'"{found[5]}"') == title


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell", "PowerShell"])
def test_the_command_prints_the_script(shell: str, quick: Run, home: Path) -> None:
    assert succeed(quick("--completion", shell)).stdout == completion.script(shell.lower())
    assert not home.exists()


def test_powershell_gets_ascii() -> None:
    assert completion.script("powershell").isascii()


def test_no_placeholder_is_left() -> None:
    for shell in PROGRAMS:
        assert re.findall(r"@[A-Z]+@", completion.script(shell)) == []
