"""Wrong flags, impossible values: exit 2, a message that names the culprit, and nothing done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from conftest import tree
from stores import fail, header, line, make, new_id, succeed, the_file

from ollama_prompt import __version__, config, flags, text
from ollama_prompt.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn

ID = new_id(1)

CONTRADICTIONS = [
    ("-p", "x", "--prompt-file", "f"),
    ("-p", "x", "--session-id", ID, "--no-session"),
    ("-p", "x", "--system", "a", "--system-file", "f"),
    ("-p", "x", "--num-ctx", "1024", "--option", "num_ctx=2048"),
    ("-p", "x", "--temperature", "0.1", "--option", "temperature=0.9"),
    ("-p", "x", "--option", "num_predict=5", "--max-tokens", "9"),
    ("-p", "x", "--list-sessions"),
    ("--prompt", "", "--list-sessions"),
    ("--prompt-file", "f", "--check"),
    ("--stdin", "--check"),
    ("--session-id", ID, "--list-sessions"),
    ("--no-session", "--list-sessions"),
    ("--title", "t", "--reindex"),
    ("--list-sessions", "--check"),
    ("--purge", "0", "--delete", ID),
    ("--purge", "0", "--model", "smollm2"),
    ("--session-info", ID, "--reindex"),
    ("--dry-run", "--list-sessions"),
    ("-p", "x", "--dry-run"),
    ("--limit", "1", "--check"),
    ("-p", "x", "--limit", "1"),
    ("-p", "x", "--session-id", ID, "--continue"),
    ("-p", "x", "-c", "--no-session"),
    ("-p", "x", "--think", "--no-think"),
    ("-p", "x", "--think=high", "--no-think"),
    ("-p", "x", "--at", ID),
    ("--undo", ID, "--at", ID),
    ("--fork", ID, "--undo", ID),
    ("--retry", ID, "-p", "x"),
    ("--retry", ID, "--prompt-file", "f"),
    ("--retry", ID, "--stdin"),
    ("--retry", ID, "--continue"),
    ("--retry", ID, "--session-id", ID),
    ("--retry", ID, "--no-session"),
    ("--retry", ID, "--image", "f"),
    ("--fork", ID, "-p", "x"),
    ("--undo", ID, "--continue"),
    ("--undo", ID, "--format", "json"),
    ("--list-sessions", "--think"),
    ("--check", "--no-think"),
    ("--list-sessions", "--image", "f"),
    ("--import", "-p", "x"),
    ("--import", "f", "--check"),
    ("--completion", "bash", "--list-sessions"),
    ("--completion", "bash", "-p", "x"),
]
WRONG_VALUES = [
    ("-p", ""),
    ("-p", " \n\t"),
    ("-p",),
    ("-p", "x", "--session-id", "zzz"),
    ("-p", "x", "--session-id", ID[:-1]),
    ("-p", "x", "--session-id", ""),
    ("--session-info", "../../etc/passwd"),
    ("--delete", "last"),
    ("-p", "x", "--model", " "),
    ("-p", "x", "--temperature", "hot"),
    ("-p", "x", "--temperature", "nan"),
    ("-p", "x", "--temperature", "inf"),
    ("-p", "x", "--temperature", "-0.1"),
    ("-p", "x", "--max-tokens", "0"),
    ("-p", "x", "--max-tokens", "1.5"),
    ("-p", "x", "--max_tokens", "99999999999999999999"),
    ("-p", "x", "--max-context-tokens", "0"),
    ("-p", "x", "--max-context-tokens", "1e4"),
    ("-p", "x", "--num-ctx", "-1"),
    ("-p", "x", "--option", "num_ctx=0"),
    ("-p", "x", "--option", "seed"),
    ("-p", "x", "--option", "=1"),
    ("-p", "x", "--option", "seed=1.5"),
    ("-p", "x", "--option", "top_p=high"),
    ("-p", "x", "--option", "foo=99999999999999999999999"),
    ("-p", "x", "--option", "foo=[99999999999999999999999]"),
    ("-p", "x", "--option", 'foo={"a": -99999999999999999999999}'),
    ("-p", "x", "--option", "foo=1e400"),
    ("-p", "x", "--option", "stop=[1e400]"),
    ("-p", "x", "--option", "foo=" + "[" * 150 + "]" * 150),
    ("-p", "x", "--option", "foo=" + '{"a":' * 150 + "1" + "}" * 150),
    ("-p", "x", "--option", "foo=" + "[" * 9999),
    ("-p", "x", "--temperature", "1_0"),
    ("-p", "x", "--keep-alive", "soon"),
    ("-p", "x", "--keep-alive", "\u0665m"),
    ("-p", "x", "--keep-alive", "\u0665"),
    ("-p", "x", "--keep-alive", "5 m"),
    ("-p", "x", "--keep-alive", ""),
    ("-p", "x", "--timeout", "0"),
    ("-p", "x", "--timeout", "-1"),
    ("-p", "x", "--timeout", "5m"),
    ("-p", "x", "--timeout", "1_000"),
    ("-p", "x", "--timeout", "\u0665"),
    ("-p", "x", "--lock-timeout", "-1"),
    ("-p", "x", "--output", "xml"),
    ("-p", "x", "--prompt-file", "no such file"),
    ("--prompt-file", "no such file"),
    ("--prompt-file", "."),
    ("-p", "x", "--system-file", "no such file"),
    ("--purge", "-1"),
    ("--purge", "x"),
    ("--purge",),
    ("--list-sessions", "--limit", "-1"),
    ("--bogus",),
    ("hello", "there"),
    ("--list-session",),
    ("--list-sessions", "extra"),
    ("-p", "x", "--think", "a lot"),
    ("-p", "x", "--think", ""),
    ("-p", "x", "--think=false"),
    ("-p", "x", "--format", ""),
    ("-p", "x", "--format", "no such file"),
    ("-p", "x", "--format", "."),
    ("-p", "x", "--format", "{"),
    ("-p", "x", "--format", '{"type": "strin"}'),
    ("-p", "x", "--format"),
    ("-p", "x", "--image", "no such file"),
    ("-p", "x", "--image", "."),
    ("-p", "x", "--image", ""),
    ("-p", "x", "--image", "/dev/zero"),
    ("-p", "x", "--image", __file__),
    ("-p", "x", "--repo-root", "no such folder"),
    ("-p", "x", "--repo-root", __file__),
    ("-p", "x", "--repo-root", ""),
    ("-p", "x", "--max-file-bytes", "0"),
    ("-p", "x", "--max-file-bytes", "1k"),
    ("--fork", "zzz"),
    ("--fork",),
    ("--fork", ID, "--at", ""),
    ("--undo", ID[:-1]),
    ("--undo",),
    ("--retry", ""),
    ("--retry",),
    ("--import", ""),
    ("--import", " "),
    ("--completion", "tcsh"),
    ("--completion", ""),
    ("--completion",),
    ("-c",),
    ("-p", "x", "--session-id=--"),
    ("-p", "x", "--temperature=--"),
    ("-p", "x", "--output=--"),
    ("-p", "x", "--think=--"),
    ("-p", "x", "--option=--"),
]


def parse(arguments: tuple[str, ...]) -> None:
    """As much as is checked before anything is imported, stored or sent."""
    parsed = flags.parse(arguments)
    if parsed.action is None:
        config.Request(parsed, {}, config.read_prompt(parsed))


@pytest.mark.parametrize("word", ["--prompt=--", "-p=--", "-p--"])
def test_two_dashes_are_a_prompt_too(word: str) -> None:
    assert flags.parse([word]).prompt == "--"
    assert flags.parse([word, "--system=--", "--title=--"]).system == "--"


@pytest.mark.parametrize("arguments", [*CONTRADICTIONS, *WRONG_VALUES], ids=lambda words: " ".join(words)[:60])
def test_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "x", "--temperature", "0", "--max-tokens", "-1", "--timeout", "0.5", "--lock-timeout", "0"),
        ("-p", "x", "--keep-alive", "-1"),
        ("-p", "x", "--keep-alive", "1h30m"),
        ("-p", "x", "--keep-alive=-5m"),
        ("-p", "x", "--num-ctx", "2048", "--option", "num_ctx=2048"),
        ("-p", "-x is no flag here"),
        ("--prompt=--purge", "--no-session"),
        ("-p", "x", "--title", ""),
        ("-p", "x", "--system", ""),
        ("--list-sessions", "--model", "m", "--temperature", "0", "--num-ctx", "1"),
        ("--session-info", ID.upper()),
        ("--delete", f" {ID} "),
    ],
    ids=" ".join,
)
def test_is_no_usage_error(arguments: tuple[str, ...]) -> None:
    parse(arguments)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (r'foo="\ud800"', "foo", "\ufffd"),
        (r'foo={"\ud800": ["\udc80"]}', "foo", {"\ufffd": ["\ufffd"]}),
        (r'stop=["\ud800", "b"]', "stop", ["\ufffd", "b"]),
        ("foo=\udcff", "foo", "\ufffd"),
        ("caf\udce9=1", "caf\ufffd", 1),
        ("foo=9223372036854775807", "foo", 2**63 - 1),
        ("foo=" + "[" * 100 + "]" * 100, "foo", json.loads("[" * 100 + "]" * 100)),
    ],
)
def test_an_option_becomes_what_can_be_stored_and_sent(text: str, name: str, value: object) -> None:
    assert config.option(text) == (name, value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bogus",), "--bogus"),
        (("hello",), "hello"),
        (("-p", "x", "--temperature", "hot"), "--temperature"),
        (("-p", "x", "--system", "a", "--system-file", "f"), "--system-file"),
        (("--prompt-file", "no such file"), "no such file"),
        (("--list-sessions", "--check"), "--check"),
        (("-p", "x", "--option", "seed=1.5"), "--option: seed must be a whole number"),
        (("-p", "x", "--option", "foo=[1e400]"), "--option: foo has a number that is too large"),
    ],
)
def test_a_usage_error_as_json(
    run: Run, ollama: StandIn, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = tree(tmp_path)
    result = run(*arguments)
    error = fail(result, "usage", 2)
    assert list(error) == [key for key in ("error", "code", "hint") if key in error]
    assert said in error["error"]
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert ollama.requests() == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "output",
    [
        ("--output", "text"),
        ("--output=text",),
        ("--output", "json", "--output", "text"),
        ("--output=json", "--output=text"),
    ],
)
def test_a_usage_error_as_text(run: Run, output: tuple[str, ...]) -> None:
    result = run("--bogus", *output)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == ("error: unrecognized arguments: --bogus\nhint: ollama-prompt --help shows all flags\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("--serach", "x"), "did you mean --search?"),
        (("--serach=x",), "did you mean --search?"),
        (("--list-session",), "did you mean --list-sessions?"),
        (("-p", "Hi", "--modle", "m"), "did you mean --model?"),
        (("--bogus",), "ollama-prompt --help"),
        (("-x",), "ollama-prompt --help"),
    ],
)
def test_a_misspelt_flag(run: Run, typed: tuple[str, ...], meant: str) -> None:
    assert fail(run(*typed), "usage", 2)["hint"].startswith(meant)


def test_the_last_output_counts_for_errors_too(run: Run) -> None:
    fail(run("--output=text", "--bogus", "--output", "json"), "usage", 2)


@pytest.mark.parametrize("words", ["What is this?", ""])
def test_a_prompt_without_its_flag(run: Run, words: str) -> None:
    assert "--prompt" in fail(run(words), "usage", 2)["hint"]


@pytest.mark.parametrize("piped", [b"", b"\n", b" \r\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_stdin_is_no_prompt(run: Run, ollama: StandIn, piped: bytes) -> None:
    fail(run(input=piped), "usage", 2)
    assert ollama.requests() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_a_closed_stdin_is_no_prompt(environment: dict[str, str]) -> None:
    command = ["bash", "-c", f"{sys.executable} -m ollama_prompt <&-"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert b'"code": "usage"' in done.stderr
    with_prompt = ["bash", "-c", f"{sys.executable} -m ollama_prompt -p Hi --no-session <&-"]
    assert subprocess.run(with_prompt, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no bash, and no device without an end")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt-file", "/dev/zero"], "--prompt-file: '/dev/zero'"),
        (["-p", "Hi", "--system-file", "/dev/zero"], "--system-file: '/dev/zero'"),
        (["-p", "Hi", "--format", "/dev/zero"], "--format: '/dev/zero'"),
        (["--prompt", "-"], "stdin"),
        (["-p", "Hi", "--stdin"], "stdin"),
    ],
)
def test_what_has_no_end_is_read_up_to_a_limit(
    environment: dict[str, str], ollama: StandIn, home: Path, arguments: list[str], named: str
) -> None:
    limited = f'ulimit -v 4000000; exec {sys.executable} -m ollama_prompt "$@" </dev/zero'
    done = subprocess.run(["bash", "-c", limited, "-", *arguments], env=environment, capture_output=True, check=False)
    error = json.loads(done.stderr)
    assert (done.returncode, done.stdout, error["code"]) == (2, b"", "usage")
    assert error["error"] == f"{named} has more than 100 MB"
    assert error["hint"]
    assert ollama.requests() == []
    assert not home.exists()


@pytest.mark.parametrize("flag", ["--prompt-file", "--system-file", "--format"])
@pytest.mark.parametrize(("size", "is_taken"), [(1000, True), (1001, False)])
def test_the_longest_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, size: int, is_taken: bool
) -> None:
    monkeypatch.setattr(text, "LONGEST", 1000)
    (tmp_path / "file").write_text("{}".ljust(size), encoding="utf-8")
    with nullcontext() if is_taken else pytest.raises(UsageError, match="has more than"):
        parsed = flags.parse([flag, str(tmp_path / "file")])
        config.Request(parsed, {}, config.read_prompt(parsed) if parsed.prompt_file else None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_PROMPT_MAX_CONTEXT_TOKENS", "many"),
        ("OLLAMA_PROMPT_MAX_CONTEXT_TOKENS", "0"),
        ("OLLAMA_PROMPT_MODEL", " "),
        ("OLLAMA_HOST", "ftp://127.0.0.1"),
        ("OLLAMA_HOST", "http://bad host"),
        ("OLLAMA_API_KEY", "two\nlines"),
    ],
)
def test_an_impossible_variable_is_named(run: Run, home: Path, ollama: StandIn, name: str, value: str) -> None:
    error = fail(run("-p", "Hi", env={name: value}), "usage", 2)
    assert name in error["error"]
    assert ollama.requests() == []
    assert not home.exists()


def test_a_port_that_is_none_is_noted(run: Run) -> None:
    result = run("-p", "Hi", "--no-session", env={"OLLAMA_HOST": "https://127.0.0.1:x/nowhere"})
    assert result.returncode == 1
    note, error = result.stderr.splitlines()
    assert note.startswith("note: OLLAMA_HOST: 'x' is not a port")
    assert error.startswith('{"error"'), "the error is the last line"


def test_a_bad_port_is_noted_when_a_session_is_continued(run: Run, home: Path) -> None:
    make(home, 1)
    result = run("-p", "Hi", "--session-id", ID, env={"OLLAMA_HOST": "https://127.0.0.1:x"})
    assert result.stderr.startswith("note: OLLAMA_HOST: 'x' is not a port")
    assert result.stderr.count("note: ") == 1


@pytest.mark.parametrize("where", ["flag", "variable", "session"])
def test_an_impossible_host_is_no_matter_to_a_file(run: Run, home: Path, where: str) -> None:
    make(home, 1, line(header(ID, model="/absent.gguf")))
    flags = {"flag": ("--model", "/absent.gguf"), "variable": (), "session": ("--session-id", ID)}[where]
    env = {"OLLAMA_HOST": "ftp://nonsense", "OLLAMA_PROMPT_MODEL": "/absent.gguf" if where == "variable" else ""}
    fail(run("-p", "Hi", *flags, env=env), "model_not_found")


def test_an_impossible_host_is_named_when_a_session_is_continued(run: Run, home: Path) -> None:
    make(home, 1)
    before = tree(home / "sessions")
    result = run("-p", "Hi", "--session-id", ID, env={"OLLAMA_HOST": "ftp://x"})
    assert "OLLAMA_HOST" in fail(result, "usage", 2)["error"]
    assert tree(home / "sessions") == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pwd")
def test_who_has_no_home_is_told_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that no account has, as in a container."""
    import pwd

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(UsageError, match="no home directory") as info:
        config.store_layout({})
    assert "OLLAMA_PROMPT_HOME" in str(info.value.hint)


@pytest.mark.parametrize("home", ["~nobody-of-this-name", "~nobody-of-this-name/store"])
def test_a_home_that_is_not_known(run: Run, tmp_path: Path, home: str) -> None:
    before = tree(tmp_path)
    error = fail(run("-p", "Hi", env={"OLLAMA_PROMPT_HOME": home}), "usage", 2)
    assert "OLLAMA_PROMPT_HOME" in error["error"]
    assert tree(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the current directory")
def test_a_current_directory_that_is_gone(environment: dict[str, str], tmp_path: Path) -> None:
    command = f'mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m ollama_prompt "$@"'

    def from_nowhere(*arguments: str, home: str) -> subprocess.CompletedProcess[bytes]:
        env = environment | {"OLLAMA_PROMPT_HOME": home}
        shell = ["bash", "-c", command, "bash", *arguments]
        return subprocess.run(shell, env=env, cwd=tmp_path, capture_output=True, check=False)

    assert from_nowhere("-p", "Hi", home=str(tmp_path / "store")).returncode == 0
    for arguments, said in (
        (["--list-sessions"], b"OLLAMA_PROMPT_HOME"),
        (["-p", "x", "--model", "m.gguf"], b"--model"),
        (["--export", ID, "--to", "file.md"], b"--to"),
        (["--export", "--all", "--to", "./folder"], b"--to"),
        (["--import", "talk.json"], b"--import"),
        (["--git-setup", "--remote", "../repository"], b"--remote"),
    ):
        done = from_nowhere(*arguments, home="relative")
        assert done.returncode == 2, done
        assert said in done.stderr
    session_id = the_file(tmp_path / "store").stem
    for arguments in (["--to", str(tmp_path / "file.md")], ["--to", "-"], []):
        done = from_nowhere("--export", session_id, *arguments, home=str(tmp_path / "store"))
        assert (done.returncode, done.stderr) == (0, b""), done
    assert b"Hi" in (tmp_path / "file.md").read_bytes()


def test_a_flag_beats_a_variable_that_is_impossible(run: Run) -> None:
    env = {"OLLAMA_PROMPT_MODEL": " ", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS": "many"}
    succeed(run("-p", "Hi", "--no-session", "--model", "smollm2", "--max-context-tokens", "100", env=env))


def test_a_value_that_looks_like_a_flag(run: Run, ollama: StandIn) -> None:
    assert '--prompt="-5 degrees"' in fail(run("-p", "--purge"), "usage", 2)["hint"]
    succeed(run("--prompt=-v", "--no-session"))
    assert ollama.chats()[0]["messages"][0]["content"] == "-v"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--search",), '--search "some words"; '),
        (("--search", "--limit", "3"), '--search "some words"; '),
        (("--title",), '--title "'),
        (("--completion",), "--completion bash|zsh|fish|powershell: print"),
        (("--purge",), "--purge DAYS: remove sessions"),
        (("-p", "x", "--limit"), "--limit N: "),
        (("--max_tokens",), "--max_tokens N: longest answer"),
        (("--delete",), "--list-sessions shows the ids"),
        (("--session-id", "--prompt", "x"), "is the variable empty"),
    ],
)
def test_a_flag_without_its_value(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in fail(run(*arguments), "usage", 2)["hint"]


def test_every_flag_says_what_it_wants(run: Run) -> None:
    for action in flags.make_parser()._actions:
        if action.nargs is None:
            with pytest.raises(UsageError) as info:
                flags.parse([action.option_strings[-1]])
            assert info.value.hint, action
            assert "None" not in info.value.hint


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--search", "blue", "danube"), '--search "blue danube"'),
        (("-p", "What", "is", "this?"), '-p "What is this?"'),
        (("--title", "My", "trip", "--continue"), '--title "My trip"'),
        (("What", "is", "this?"), "--prompt"),
        (("--list-sessions", "all"), "--prompt"),
    ],
)
def test_words_without_quotes(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in fail(run(*arguments), "usage", 2)["hint"]


def test_version_and_help(run: Run, ollama: StandIn, home: Path) -> None:
    assert succeed(run("--version")).stdout == f"ollama-prompt {__version__}\n"
    shown = succeed(run("--help"))
    assert shown.stdout == run("-h").stdout
    assert max(map(len, shown.stdout.splitlines())) <= 98
    assert not home.exists()


@pytest.mark.parametrize(("columns", "widest"), [("60", 58), ("10", 60), ("500", 100), ("", 98)])
def test_help_is_as_wide_as_the_terminal(run: Run, columns: str, widest: int) -> None:
    lines = succeed(run("--help", env={"COLUMNS": columns})).stdout.splitlines()
    # A word longer than the line is not broken; the first lines are laid out by hand.
    assert all(len(text) <= max(widest, len(text.split()[-1]) + 34) for text in lines[4:] if text), columns


def test_help_names_every_flag(run: Run) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", run("--help").stdout))
    declared = {name for action in flags.make_parser()._actions for name in action.option_strings}
    assert {name for name in declared if name.startswith("--")} <= shown


def test_help_into_a_pipe_that_closes(start: Start) -> None:
    import os

    reader, writer = os.pipe()
    os.close(reader)
    process = start("--help", stdout=writer)
    os.close(writer)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 141
