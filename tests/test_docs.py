"""The docs tell the truth: every flag, code, key, link and module in them exists, and their commands run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import select
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import old_stores
import pytest
from conftest import tree
from stores import fail, succeed
from test_imports import MODULES, PACKAGE, own

import ollama_prompt
from ollama_prompt import errors, flags, records
from ollama_prompt.clock import new_id
from ollama_prompt.errors import OllamaPromptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Run
    from standin import StandIn

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
OTHER_PROGRAMS = re.compile(
    r"^\s*(git|pip|tar|grep|jq|cd|python3|systemctl) .*$|`git [^`]+`|jq -r|xargs .*$"
    r"|--(quote|keep-order|retries|unbuffered)|-(Recurse|Filter|List)\b",
    re.MULTILINE,
)


def text_of(page: Path | str) -> str:
    path = page if isinstance(page, Path) else ROOT / page
    return path.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def rows(page: str) -> Iterator[list[str]]:
    """The rows of all tables of a page, as cells."""
    for line in text_of(page).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows_below(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    below = text_of(page).partition(f"\n{heading}\n")[2].partition("\n#")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def named(cell: str) -> list[str]:
    """What a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell.replace("\\|", "|"))


# -- flags -------------------------------------------------------------------------------------------------


def declared() -> dict[str, argparse.Action]:
    return {name: action for action in flags.make_parser()._actions for name in action.option_strings}


def documented(page: str) -> dict[str, str]:
    """Flag → what follows it, for every flag in the first column of a table; where it is first named."""
    cells = [name for row in rows(page) for name in named(row[0]) if name.startswith("-")]
    return {cell.partition(" ")[0]: cell.partition(" ")[2] for cell in reversed(cells)}


@pytest.mark.parametrize("page", ["docs/cli.md", "README.md"])
def test_every_flag_has_its_row(page: str) -> None:
    there = set(documented(page))
    if page == "README.md":
        there.add("--max_tokens")  # only another spelling
    assert there == set(declared())


def test_values_are_named_as_in_the_help() -> None:
    for flag, value in documented("docs/cli.md").items():
        action = declared()[flag]
        expected = {action.metavar or ""} | set(action.choices or ())
        assert value in expected, flag


def test_flags_that_are_mentioned_exist() -> None:
    for page in PAGES:
        mentioned = set(FLAG.findall(OTHER_PROGRAMS.sub("", text_of(page))))
        unknown = {flag for flag in mentioned if flag.startswith("--")} - set(declared())
        assert unknown == set(), page.name


def test_the_limits_in_the_docs_are_the_defaults() -> None:
    defaults = flags.parse(["--list-sessions"])
    assert defaults.lock_timeout == 600
    assert "64000 by default" in text_of("docs/cli.md")


NO_SESSION = new_id()[:-1]
BAD_INPUT: dict[str, list[str]] = {
    "-p": ["-p", " "],
    "-c": ["-c", "--list-sessions"],
    "-i": ["-i", "--output", "json"],
    "--prompt": ["--prompt", ""],
    "--prompt-file": ["--prompt-file", "no-such-file"],
    "--session-id": ["-p", "x", "--session-id", NO_SESSION],
    "--system-file": ["-p", "x", "--system-file", "no-such-file"],
    "--system": ["-p", "x", "--system", "a", "--system-file", "b"],
    "--title": ["--title", "x", "--list-sessions"],
    "--image": ["-p", "x", "--image", "no-such-file"],
    "--format": ["-p", "x", "--format", "{"],
    "--repo-root": ["-p", "x", "--repo-root", "no-such-folder"],
    "--max-file-bytes": ["-p", "x", "--max-file-bytes", "0"],
    "--timeout": ["-p", "x", "--timeout", "0"],
    "--lock-timeout": ["-p", "x", "--lock-timeout", "-1"],
    "--model": ["-p", "x", "--model", " "],
    "--temperature": ["-p", "x", "--temperature", "hot"],
    "--max-tokens": ["-p", "x", "--max-tokens", "0"],
    "--max_tokens": ["-p", "x", "--max_tokens", "many"],
    "--option": ["-p", "x", "--option", "seed"],
    "--think": ["-p", "x", "--think", "a lot"],
    "--max-context-tokens": ["-p", "x", "--max-context-tokens", "0"],
    "--num-ctx": ["-p", "x", "--num-ctx", "0"],
    "--keep-alive": ["-p", "x", "--keep-alive", "soon"],
    "--limit": ["--list-sessions", "--limit", "-1"],
    "--session-info": ["--session-info", NO_SESSION],
    "--purge": ["--purge", "-1"],
    "--delete": ["--delete", NO_SESSION],
    "--search": ["--search", " "],
    "--in": ["--search", "x", "--in", NO_SESSION],
    "--since": ["--search", "x", "--since", "yesterday"],
    "--sort": ["--search", "x", "--sort", "worst"],
    "--fork": ["--fork", NO_SESSION],
    "--at": ["--at", new_id(), "--list-sessions"],
    "--undo": ["--undo", NO_SESSION],
    "--retry": ["--retry", NO_SESSION],
    "--import": ["--import", ""],
    "--export": ["--export", NO_SESSION],
    "--as": ["--export", new_id(), "--as", "pdf"],
    "--to": ["--list-sessions", "--to", "x"],
    "--remote": ["--git-setup", "--remote", " "],
    "--completion": ["--completion", "tcsh"],
    "--output": ["-p", "x", "--output", "xml"],
}
"""What is wrong with each flag that takes a value. A long one that takes none is given one; -h cannot be wrong."""


@pytest.mark.parametrize("flag", [flag for flag in declared() if flag != "-h"])
def test_bad_input(flag: str, quick: Run, ollama: StandIn, tmp_path: Path) -> None:
    given = BAD_INPUT.get(flag, [f"{flag}=1"])
    before = tree(tmp_path)
    result = quick(*given)
    error = fail(result, "usage", 2)
    assert any(name in error["error"] for name in (*declared()[flag].option_strings, "the prompt is empty"))
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert ollama.requests() == []
    assert tree(tmp_path) == before


def test_debug_shows_a_traceback(run: Run) -> None:
    result = run("--debug", "-p", "x", "--model", "no-such-model")
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert (result.returncode, result.error["code"]) == (1, "model_not_found")


# -- codes, variables, keys --------------------------------------------------------------------------------


def kinds_of_errors() -> list[type[OllamaPromptError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, OllamaPromptError)]


def codes() -> dict[str, str]:
    """Error code → exit code, as users meet them."""
    kinds = [kind for kind in kinds_of_errors() if kind is not errors.OutputClosed]
    return {kind.code: str(kind.exit_code) for kind in kinds}


def test_error_codes() -> None:
    table = {named(row[0])[0]: row[1] for row in rows_below("docs/cli.md", "## Errors")}
    assert table == codes()


def test_exit_codes() -> None:
    table = {int(row[0]) for row in rows_below("docs/cli.md", "## Exit codes")}
    assert table == {0, 130, 143} | {kind.exit_code for kind in kinds_of_errors()}


def test_environment_variables() -> None:
    table = {name for row in rows_below("docs/cli.md", "## Environment") for name in named(row[0])}
    source = "".join(text_of(path) for path in PACKAGE.glob("*.py"))
    used = set(re.findall(r'"(OLLAMA_[A-Z_]+)"', source))
    assert {name for name in table if name.startswith("OLLAMA_")} == used


def test_the_turn_in_the_docs_has_the_keys_of_a_turn(run: Run) -> None:
    shown = json.loads(blocks("docs/cli.md", "json")[0])
    printed = succeed(run("-p", "Hi")).json
    assert list(shown) == list(printed)
    assert list(shown["window"]) == list(printed["window"])
    window = [named(row[0])[0] for row in rows_below("docs/session-management.md", "## What the model gets to see")]
    assert window == list(printed["window"])


def test_the_keys_of_the_actions(run: Run) -> None:
    session_id = succeed(run("-p", "Hi")).json["session_id"]
    table = {row[0]: named(row[1]) for row in rows_below("docs/cli.md", "## Output")}
    listing = run("--list-sessions").json
    assert table["`--list-sessions`"] == [*listing, *listing["sessions"][0]]
    info = run("--session-info", session_id).json
    assert table["`--session-info`"][:-2] == list(info)[len(listing["sessions"][0]) :]
    assert set(info["messages"][1]) <= set(table["… `messages`"])
    assert table["`--purge`"][:-2] == list(run("--purge", "30").json)
    assert table["`--check`"][:3] == ["ok", "sessions", "damage"]
    assert set(run("--check").json) <= set(table["`--check`"])
    assert table["`--reindex`"] == list(run("--reindex").json)
    assert table["`--git-setup`"] == ["repository", "remote", "null", "created"]
    assert table["`--delete`"] == list(run("--delete", session_id).json)


def test_the_records_in_the_docs_are_those_that_are_written() -> None:
    header, *shown = [json.loads(line) for block in blocks("docs/format.md", "json") for line in block.splitlines()]
    settings = {"model": "m", "max_context_tokens": 64000}
    assert list(header) == list(records.header(new_id(), settings))
    answer = {"model": "m", "prompt_tokens": 1, "tokens": 1, "done_reason": "stop"}
    made = [
        records.message("user", ""), records.message("assistant", "", **answer),
        records.meta({"model": "m"}), records.undo([]),
    ]  # fmt: skip
    assert [list(record) for record in shown] == [list(record) for record in made]
    assert {name for row in rows_below("docs/format.md", "## Lines") for name in named(row[0])} >= {"session", "undo"}
    assert all(f"`{name}`" in text_of("docs/format.md") for name in records.SETTINGS)
    assert f"version {records.VERSION}\n" in text_of("docs/format.md")


def test_the_changelog_begins_with_this_release() -> None:
    assert re.findall(r"^## (.+)$", text_of("docs/changelog.md"), re.MULTILINE)[0] == ollama_prompt.__version__


# -- modules, links ----------------------------------------------------------------------------------------


def drawn() -> Iterator[tuple[int, str]]:
    """(depth, module) of the picture in design.md."""
    picture = text_of("docs/design.md").partition("## Modules\n\n")[2].partition("\n\n")[0]
    for line in picture.splitlines():
        found = re.match(r"    ([ │├└─]*)(\w+(?:, \w+)*) ", line)
        assert found, line
        for name in found[2].split(", "):
            yield len(found[1]) // 4, name


def test_the_picture_has_every_module() -> None:
    assert sorted(name for _, name in drawn()) == [name for name in MODULES if not name.startswith("__")]


def test_the_arrows_in_the_picture_are_real() -> None:
    above: list[str] = []
    for depth, name in drawn():
        del above[depth:]
        assert not depth or name in own(above[-1]), f"{above[-1]} does not import {name}"
        above.append(name)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.is_file(), target
        assert not anchor or anchor in anchors(other), target


def test_what_is_said_of_security_has_its_test() -> None:
    page = "docs/security.md"
    shown_by = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
    for file, name in shown_by.findall(text_of(page)):
        assert f"\ndef {name}(" in text_of(f"tests/{file}"), f"{file}::{name}"
    lines = [
        line for line in text_of(page).splitlines() if line.startswith("|") and not line.endswith(("---|", "test |"))
    ]
    assert [line for line in lines if not shown_by.search(line)] == []


def test_the_set_up_commands_exist() -> None:
    scripts = re.findall(r"^python3 (scripts/\w+\.py)$", text_of("README.md"), re.MULTILINE)
    assert scripts == ["scripts/try.py", "scripts/test.py"]
    assert all((ROOT / script).is_file() for script in scripts)


# -- commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def shell(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a user who follows the docs: the command on the PATH, the store where it belongs."""
    command = tmp_path / "bin" / "ollama-prompt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ollama_prompt "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    del environment["OLLAMA_PROMPT_HOME"]
    who = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    config = str(Path(__file__).with_name("gitconfig"))
    return environment | who | {"PATH": f"{command.parent}:{environment['PATH']}", "GIT_CONFIG_GLOBAL": config}


def follow(page: str, shell: dict[str, str], tmp_path: Path, program: str = "bash") -> str:
    """Run every shell block of a page, one after the other in one shell; what was printed."""
    script = "set -euo pipefail\n" + "\n".join(blocks(page, "sh"))
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run([program, "-c", script], env=shell, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stderr == "", done
    return done.stdout


def block_with(text: str) -> str:
    """The shell block of the page for scripts that has this in it."""
    (block,) = [block for block in blocks("docs/scripting.md", "sh") if text in block]
    return block


needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "jq", "git", "tar", "grep"))), reason="needs bash, jq, git, tar and grep"
)


@needs_tools
def test_the_quickstart_runs(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    printed = follow("docs/quickstart.md", shell, tmp_path)
    chats = ollama.chats()
    assert [len(chat["messages"]) for chat in chats[:3]] == [1, 3, 5], "full context"
    assert "Answer to: What is the capital of France? (messages: 1)\n" in printed
    assert len(list((tmp_path / ".ollama-prompt").glob("sessions/*/*.jsonl"))) == 3
    assert "A secret question." not in "".join(map(text_of, (tmp_path / ".ollama-prompt").glob("sessions/*/*.jsonl")))


@needs_tools
def test_the_recipes_for_sessions_run(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    printed = follow("docs/session-management.md", shell, tmp_path)
    assert '"messages_left_out": 0' in printed
    assert "user: Name three rivers in Europe.\n" in printed
    assert re.search(r"^\d+\tRivers$", printed, re.MULTILINE)
    assert (tmp_path / "work" / "conversations.tar.gz").stat().st_size > 0


# -- commands: version control -----------------------------------------------------------------------------


class Machine:
    """The shell of a machine that has a home of its own."""

    def __init__(self, home: Path, shell: dict[str, str]) -> None:
        self.home = home
        self.shell = shell | {"HOME": str(home)}
        home.mkdir()

    def run(self, script: str) -> str:
        """Run this, which must go well and say nothing on stderr; what it printed."""
        done = self.attempt(script)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def attempt(self, script: str) -> subprocess.CompletedProcess[str]:
        return bash(script, self.shell, self.home)

    def titles(self) -> set[str]:
        return {session["title"] for session in json.loads(self.run("ollama-prompt --list-sessions"))["sessions"]}


RECIPES = blocks("docs/version-control.md", "sh")


def recipe(text: str) -> str:
    """The shell block of the page on version control that has this in it."""
    (block,) = [block for block in RECIPES if text in block]
    return block


@pytest.fixture
def machines(shell: dict[str, str], tmp_path: Path) -> tuple[Machine, Machine]:
    """Two machines that know each other, each with a conversation, set up as the page says."""
    there = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{tmp_path}/laptop/.insteadOf"}
    first, second = Machine(tmp_path / "laptop", shell), Machine(tmp_path / "desktop", shell)
    second.shell |= there | {"GIT_CONFIG_VALUE_0": "laptop:"}
    first.run("ollama-prompt --prompt 'Name a river.'")
    second.run("ollama-prompt --prompt 'Name a tree.'")
    first.run(RECIPES[0])
    second.run(RECIPES[1])
    return first, second


@needs_tools
def test_conversations_are_on_two_machines(machines: tuple[Machine, Machine], ollama: StandIn) -> None:
    first, second = machines
    printed = json.loads(first.run("ollama-prompt --sync"))
    table = {named(row[0])[0] for row in rows_below("docs/version-control.md", "## Two machines")}
    (keys,) = [row[1] for row in rows_below("docs/cli.md", "## Output") if row[0] == "`--sync`"]
    assert set(named(keys)) == table == set(printed)
    assert first.titles() == second.titles() == {"Name a river.", "Name a tree."}
    first.run("ollama-prompt --continue --prompt 'And a lake.' && ollama-prompt --sync")
    second.run("ollama-prompt --continue --prompt 'And a pond.' && ollama-prompt --sync")
    assert json.loads(first.run("ollama-prompt --sync"))["received"] == 1
    contents = [
        {path.name: path.read_bytes() for path in machine.home.glob(".ollama-prompt/sessions/*/*.jsonl")}
        for machine in machines
    ]
    assert contents[0] == contents[1]
    assert b"And a lake." in b"".join(contents[0].values())
    assert b"And a pond." in b"".join(contents[0].values())


@needs_tools
def test_git_shows_a_conversation_as_a_person_reads_it(machines: tuple[Machine, Machine], ollama: StandIn) -> None:
    first, _ = machines
    first.run("ollama-prompt --prompt 'Name a hill.' && ollama-prompt --sync")
    shown = first.run(recipe("git log -p -1 --no-merges\n"))
    assert re.search(r"^\+user · \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n\+Name a hill\.\n\+$", shown, re.MULTILINE)
    assert '+{"type":"message"' in first.run(recipe("--no-textconv"))


@needs_tools
def test_plain_git_will_do(machines: tuple[Machine, Machine], ollama: StandIn) -> None:
    first, second = machines
    first.run("ollama-prompt --prompt 'Name a hill.' && ollama-prompt --sync")
    second.run("ollama-prompt --prompt 'Name a bird.'")
    second.run(recipe("git pull"))
    first.run("ollama-prompt --sync")
    everything = {"Name a river.", "Name a tree.", "Name a hill.", "Name a bird."}
    assert first.titles() == second.titles() == everything


@needs_tools
def test_conversations_beside_the_code(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    machine = Machine(tmp_path / "laptop", shell)
    machine.run("git init --quiet project && echo 'print()' > project/main.py")
    machine.run(recipe("cd ~/project"))
    kept = machine.run("git -C project ls-files").split()
    assert [path for path in kept if path.endswith(".jsonl")]
    assert not [path for path in kept if "sessions.db" in path or "locks/" in path or path == "main.py"]
    assert not (machine.home / ".ollama-prompt").exists()


def install_hook(repository: Path, store: str | None = None) -> None:
    """The hook of the page on version control; in a project with the folder of the store."""
    text = recipe("checkout-index")
    if store:
        text = re.sub(r"store=\..*", f"store={store}", text)
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(text, encoding="utf-8")
    hook.chmod(0o755)


KEY = "AKIA" + "QYLPMN5HFIQR7XYA"


@needs_tools
def test_a_hook_holds_up_keys_and_passwords(machines: tuple[Machine, Machine], ollama: StandIn) -> None:
    first, _ = machines
    install_hook(first.home / ".ollama-prompt")
    first.run("ollama-prompt --prompt 'Name a hill.' && ollama-prompt --sync")
    first.run(f"ollama-prompt --prompt 'My key is {KEY}.'")
    done = first.attempt("ollama-prompt --sync")
    assert (done.returncode, json.loads(done.stderr)["code"]) == (1, "git_failed")
    (path,) = [path for path in first.home.glob(".ollama-prompt/sessions/*/*.jsonl") if KEY in text_of(path)]
    first.run(f"ollama-prompt --delete {path.stem} && ollama-prompt --sync")


@needs_tools
def test_a_hook_looks_at_what_is_committed(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    machine = Machine(tmp_path / "laptop", shell)
    machine.run("git init --quiet project && mkdir project/conversations")
    install_hook(machine.home / "project", "conversations")
    ask = "cd ~/project; export OLLAMA_PROMPT_HOME=$PWD/conversations; ollama-prompt --output text --prompt"
    machine.run(f"{ask} 'Name a hill.' && git add conversations")
    machine.run(f"{ask} 'My key is {KEY}.'")
    assert machine.attempt("cd ~/project; git commit --quiet --message 'Without the key'").returncode == 0
    machine.run("cd ~/project; git add conversations; rm -r conversations/sessions")
    done = machine.attempt("cd ~/project; git commit --quiet --message 'It is staged'")
    assert done.returncode == 1
    assert "AWS" in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr


@needs_tools
def test_a_hook_knows_the_pictures(machines: tuple[Machine, Machine], ollama: StandIn) -> None:
    first, _ = machines
    install_hook(first.home / ".ollama-prompt")
    (first.home / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first.run("ollama-prompt --prompt 'What is this?' --model viewer --image ~/a.png && ollama-prompt --sync")
    first.run("ollama-prompt --continue --prompt 'And this?' && ollama-prompt --sync")


@pytest.fixture
def project(shell: dict[str, str], tmp_path: Path) -> Path:
    """What the recipes for scripts work on: a repository with a change, and 50 invoices."""
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    (work / "src" / "main.py").write_text("print('Hello')  # TODO: greet by name\n", encoding="utf-8")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run(["git", *command], cwd=work, env=shell, check=True)
    (work / "src" / "main.py").write_text("print('Hello, you')  # TODO: greet by name\n", encoding="utf-8")
    (work / "invoices").mkdir()
    for number in range(50):
        (work / "invoices" / f"No {number}.txt").write_text(f"Customer {number} pays {number}.\n", encoding="utf-8")
    return work


@needs_tools
@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
@pytest.mark.parametrize("program", ["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def test_the_recipes_for_scripts_run(
    program: str, shell: dict[str, str], project: Path, tmp_path: Path, ollama: StandIn
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    printed = follow("docs/scripting.md", shell, tmp_path, program)
    prompts = (project / "prompts.txt").read_text(encoding="utf-8").splitlines()
    asked = [chat["messages"][-1]["content"] for chat in ollama.chats()]
    assert [asked.count(prompt) for prompt in prompts[1:]] == [6] * len(prompts[1:]), "in each of the six ways"
    in_one_session = [len(chat["messages"]) for chat in ollama.chats() if chat["messages"][-1]["content"] == prompts[2]]
    assert sorted(in_one_session) == [1, 1, 1, 1, 1, 7]
    assert len(list((project / "answers").iterdir())) == len(prompts)
    ordered = [line for line in printed.splitlines() if line.startswith("Answer to: ")]
    assert [f"Answer to: {prompt} (messages: 1)" for prompt in prompts] in windows(ordered, len(prompts))
    table = (project / "invoices.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 50
    assert '"invoices/No 7.txt.json","text",1.5' in table
    assert len([text for text in asked if text.startswith("Extract: Customer ")]) == 50
    review = next(text for text in asked if text.startswith("Review this change."))
    assert "+print('Hello, you')" in review
    assert any("main.py" in text for text in asked if text.startswith("Here is the tree"))
    assert any(
        "main.py:1: print('Hello, you')" in text for text in asked if text.startswith("Here are the open points")
    )
    assert "\nmodel_not_found: " in printed


def bash(script: str, shell: dict[str, str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f"set -euo pipefail\n{script}"]
    return subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, check=False)


@needs_tools
def test_the_prompts_that_failed_are_kept(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    (tmp_path / "prompts.txt").write_text("One\n'Two'\n-three\n", encoding="utf-8")
    ollama.fail("status", times=1, after=1, status=500, body={"error": "no more memory"})
    done = bash(block_with("failed.txt"), shell, tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("error: no more memory\n")
    assert done.stdout == "Answer to: One (messages: 1)\nAnswer to: -three (messages: 1)\n"
    assert text_of(tmp_path / "failed.txt") == "'Two'\n"


@needs_tools
@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_a_batch_tells_that_some_failed(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    (tmp_path / "prompts.txt").write_text("One\nTwo\nThree\n", encoding="utf-8")
    ollama.fail("status", times=2, status=500, body={"error": "no more memory"})
    done = bash(block_with("xargs -0 -P 8 -I {} sh -c 'ollama-prompt --prompt"), shell, tmp_path)
    assert done.returncode == 123
    assert len(done.stderr.splitlines()) == 2
    ollama.fail("status", times=2, status=500, body={"error": "no more memory"})
    done = bash(block_with("--keep-order"), shell, tmp_path)
    assert done.returncode == 2
    ollama.fail("status", times=2, status=500, body={"error": "no more memory"})
    done = bash(block_with("--retries"), shell, tmp_path)
    assert done.returncode == 0
    empty, answers = [line for line in done.stdout.splitlines() if line.startswith("answers/")], done.stdout
    assert len(empty) == 2
    assert answers.count("Answer to: ") == 3


@needs_tools
@pytest.mark.parametrize(
    "fault", ["cut", "error_line", "status"], ids=["incomplete_answer", "ollama_error", "ollama_error at once"]
)
def test_a_call_is_tried_again(fault: str, shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    details: Json = {"status": 500, "body": {"error": "no"}} if fault == "status" else {"chunks": 3}
    ollama.fail(fault, times=2, **details)
    done = bash("sleep() { :; }\n" + block_with("for pause in"), shell, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Answer to: Name a tree. (messages: 1)\n"
    assert len(ollama.chats()) == 3


@needs_tools
def test_a_call_that_is_wrong_is_not_tried_again(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    block = "sleep() { :; }\n" + block_with("for pause in")
    done = bash(block.replace("--no-session", "--model no-such-model"), shell, tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "model_not_found"
    assert (done.stdout, ollama.chats()) == ("", [])


@needs_tools
def test_what_broke_off_goes_on_where_it_was(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    ollama.fail("cut", times=1, chunks=3)
    done = bash(block_with("Name a fish."), shell, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(text_of(tmp_path / "answer.json"))["response"] == "Answer to: Name a fish. (messages: 1)"
    assert len(list((tmp_path / ".ollama-prompt").glob("sessions/*/*.jsonl"))) == 1


@needs_tools
def test_an_answer_is_shown_while_it_arrives(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    ollama.fail("hang_middle", chunks=3)
    command = ["bash", "-c", block_with("--unbuffered").splitlines()[0]]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=shell, cwd=tmp_path, **pipes) as process:
        assert process.stdout
        came = select.select([process.stdout], [], [], 30)[0]
        ollama.reset()
        assert came
        assert process.stdout.read().startswith(b"Answer to:")


def test_the_codes_to_try_again() -> None:
    table = {tuple(named(row[0])): row[1] for row in rows_below("docs/scripting.md", "## When it fails")}
    assert all(codes()[code] == exit_code for listed, exit_code in table.items() for code in listed)
    again = {code for listed in table for code in listed}
    assert again > {kind.code for kind in kinds_of_errors() if getattr(kind, "keeps_prompt", False)}
    assert all(f"`{code}`" in text_of("docs/embedding.md") for code in again)
    (by_retry,) = [set(listed) for listed in table if "timeout" in listed]
    stored = {named(row[0])[0] for row in rows_below("docs/cli.md", "## Errors") if row[3].startswith("the prompt")}
    assert by_retry == stored, "--retry of a prompt that is not stored would take an earlier answer back"


@pytest.fixture
def old_programs(shell: dict[str, str], tmp_path: Path) -> None:
    """What other programs have left: a database of ollama-prompt 1.x, and llm with a database of its own."""
    talk = [old_stores.said(1, "user", "What is a monad?"), old_stores.said(1, "assistant", "A burrito.")]
    session = old_stores.session_1x(str(uuid.UUID(int=1)), talk, model_name="smollm2")
    old_stores.make_1x(tmp_path / ".config" / "ollama-prompt" / "sessions.db", session)
    rows = [old_stores.response("r", None, "Name a river.", "The Rhine.", model="gpt-5")]
    logs = old_stores.make(tmp_path / "logs.db", old_stores.TABLES_LLM_27, rows)
    llm = tmp_path / "bin" / "llm"
    llm.write_text(f'#!/bin/sh\n[ "$*" = "logs path" ] && echo "{logs}"\n', encoding="utf-8")
    llm.chmod(0o755)


@needs_tools
@pytest.mark.parametrize("program", ["bash", "zsh"])
def test_the_recipes_for_importing_run(
    program: str, shell: dict[str, str], old_programs: None, tmp_path: Path, ollama: StandIn
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    printed = follow("docs/importing.md", shell, tmp_path, program)
    asked = [[message["content"] for message in chat["messages"]] for chat in ollama.chats()]
    assert asked == [
        ["What is a monad?", "A burrito.", "And in one sentence?"],
        ["Name a river.", "The Rhine.", "Where does it rise?"],
        ["Answer briefly.", "Name a tree.", "The oak.", "How old does it get?"],
    ]
    origins = [json.loads(line) for line in printed.splitlines() if line.startswith('{"format"')]
    assert {origin["format"] for origin in origins} == {"ollama-prompt 1.x", "llm", "json"}


@needs_tools
def test_the_recipes_for_exporting_run(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    printed = follow("docs/exporting.md", shell, tmp_path)
    made = {path.name for path in (tmp_path / "work").iterdir()}
    assert made == {"rivers.md", "rivers.html", "rivers.json", "archive"}
    assert text_of(tmp_path / "work" / "rivers.md").startswith("# Rivers\n")
    done = [json.loads(found) for found in re.findall(r'^\{\n  "exported".*?^\}', printed, re.MULTILINE | re.DOTALL)]
    table = {row[0]: named(row[1]) for row in rows_below("docs/cli.md", "## Output")}
    assert [list(one) for one in done] == [table["`--export --all`"]] * 2
    assert done[0]["exported"] == 2
    assert done[1]["exported"] + done[1]["unchanged"] == 2
    forms = [named(row[0])[0] for row in rows_below("docs/exporting.md", "## The forms")]
    assert forms == list(declared()["--as"].choices or ())


FLAGS_OF_1X = (
    "--prompt", "--model", "--temperature", "--max_tokens", "--repo-root", "--max-file-bytes", "--think",
    "--session-id", "--no-session", "--max-context-tokens", "--list-sessions", "--purge", "--session-info",
)  # fmt: skip


def test_every_flag_of_1x_is_there() -> None:
    assert set(FLAGS_OF_1X) <= set(declared())
    parsed = flags.parse(["--prompt", "x", "--think", "--model", "m", "--temperature", "0.1", "--max_tokens", "2048"])
    assert (parsed.think, parsed.temperature, parsed.max_tokens) == (True, 0.1, 2048)


def windows(lines: list[str], size: int) -> list[list[str]]:
    """Every run of so many lines."""
    return [lines[start : start + size] for start in range(len(lines) - size + 1)]


@pytest.mark.parametrize("number", range(len(blocks("docs/embedding.md", "python"))))
def test_the_python_programs_run(number: int, shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    program = blocks("docs/embedding.md", "python")[number]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout


def test_the_python_functions_are_told_as_they_are() -> None:
    table = rows_below("docs/embedding.md", "## As Python functions")
    gives = {row[0].partition("(")[0].strip("`"): named(row[1]) for row in table}
    assert gives["ask"][1:] == ["text", "session_id", "thinking", "parsed", "window", "turn"]
    assert all(hasattr(ollama_prompt.Answer("", {"window": {}}), name) for name in gives["ask"][1:])
    listed = [field.name for field in dataclasses.fields(ollama_prompt.Session)]
    assert gives["list_sessions"] == ["Session", *listed]
    loaded = [field.name for field in dataclasses.fields(ollama_prompt.Conversation)]
    assert gives["load_session"] == ["Conversation", "Session", *loaded[len(listed) :]]
    (keywords,) = re.findall(r"take the flags as keywords: ([^.]+)\.", text_of("docs/embedding.md"))
    assert named(keywords) == list(ollama_prompt.Settings.__annotations__)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_javascript_program_runs(shell: dict[str, str], tmp_path: Path, ollama: StandIn) -> None:
    command = ["node", "-e", blocks("docs/embedding.md", "javascript")[0]]
    done = subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == "Answer to: Which is the longest? (messages: 3)\n"


def test_each_step_is_there_for_powershell_too() -> None:
    steps = re.split(r"^## ", text_of("docs/quickstart.md"), flags=re.MULTILINE)[1:]
    assert [step.splitlines()[0] for step in steps if "```sh" in step and "```powershell" not in step] == []


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="PowerShell is not installed")
@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/scripting.md"])
def test_the_recipes_run_in_powershell(page: str, shell: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Name a tree.\nName a fish.\n", encoding="utf-8")
    script = "$ErrorActionPreference = 'Stop'\n" + "\n".join(blocks(page, "powershell"))
    command = ["pwsh", "-NoProfile", "-Command", script]
    done = subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
