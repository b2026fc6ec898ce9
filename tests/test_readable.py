"""Session files as git shows them: `git diff`, `git log -p` and `git show` with the driver, and never a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_prompt.readable import block, textconv_command

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(record: Json | bytes) -> str:
    return block(record if isinstance(record, bytes) else stores.line(record)).decode()


# -- one record --------------------------------------------------------------------------------------------


def test_a_message() -> None:
    assert shown(stores.message(0, "user", "Name three rivers.\nOr four.")) == (
        "user · 2026-09-21 14:13:20\nName three rivers.\nOr four.\n\n"
    )


def test_an_answer_says_of_which_model_and_how_it_ended() -> None:
    answer = stores.message(1, "assistant", "The Rhine", model="smollm2", done_reason="interrupted", tokens=3)
    assert shown(answer) == "assistant · 2026-09-21 14:13:21 · smollm2 · interrupted\nThe Rhine\n\n"
    assert shown({**answer, "done_reason": "stop"}).startswith("assistant · 2026-09-21 14:13:21 · smollm2\n")


def test_what_goes_with_a_message() -> None:
    image = {"sha256": "0" * 64, "bytes": 3, "type": "image/png", "path": "cat.png"}
    prompt = {"type": "message", "role": "user", "content": "Look: text", "typed": "Look: @./x", "images": [image]}
    assert shown(prompt) == "user\n[typed] Look: @./x\n[image] cat.png\nLook: text\n\n"
    answer = {"type": "message", "role": "assistant", "content": "A cat.", "thinking": "Whiskers.\nSo:"}
    assert shown(answer) == "assistant\n[thinking] Whiskers.\nSo:\nA cat.\n\n"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (stores.header(stores.new_id(0), title="A", system="B.\nBe."),
         r"session · 2026-09-21 20:26:40 · model: smollm2 · max_context_tokens: 64000 · title: A · system: B.\nBe."),
        ({"type": "meta", "id": "x", "created_at": "2026-09-21T20:26:40.000Z", "options": {"seed": 1, "stop": ["é"]}},
         'settings · 2026-09-21 20:26:40 · options: {"seed": 1, "stop": ["é"]}'),
        ({"type": "meta", "id": "x", "created_at": "2026-09-21T20:26:40.000Z"}, "settings · 2026-09-21 20:26:40"),
        ({"type": "undo", "id": "x", "created_at": "2026-09-21T20:26:40.000Z", "ids": ["a", "b"]},
         "undo · 2026-09-21 20:26:40 · messages taken back: 2"),
        ({"type": "undo", "ids": "all"}, "undo · ids: all"),
        ({"type": "bookmark", "id": "x", "page": 3, "of": None}, "bookmark · page: 3 · of: null"),
    ],
)  # fmt: skip
def test_everything_else_is_a_line(record: Json, expected: str) -> None:
    assert shown(record) == expected + "\n\n"


@pytest.mark.parametrize("time", ["yesterday", "2026-09-21T20:26:40+02:00", 5, None, ["x"]])
def test_a_time_written_by_hand_stays_as_it_is(time: Any) -> None:
    expected = time if isinstance(time, str) else json.dumps(time)
    record = {"type": "message", "role": "user", "content": "Hi", "created_at": time}
    assert shown(record) == f"user · {expected}\nHi\n\n"


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"message","role":"user","content":"torn', "<<<<<<< HEAD", "[1, 2]", '{"no":"type"}', '{"type":3}',
        '{"type":"message","role":"user"}', '{"type":"message","role":1,"content":"x"}', '{"type":"x","n":NaN}',
        "[" * 9999, '{"type":"x","deep":' + "[" * 9999 + "]" * 9999 + "}", '{"type":"x","long":' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_shown_as_it_is(line: str) -> None:
    if line.startswith('{"type":"x","long"') and not hasattr(sys, "set_int_max_str_digits"):
        pytest.skip("here, numbers may be as long as they like")
    assert shown(line.encode() + b"\n") == line + "\n\n"


def test_bytes_that_are_no_text_are_shown() -> None:
    assert shown(b"caf\xe9\n") == "caf\\xe9\n\n"


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n", b"\0\0\0\n"])
def test_blank_lines_are_nothing(line: bytes) -> None:
    assert block(line) == b""


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\0\0", b"  "])
def test_what_a_crash_or_an_editor_leaves_hides_nothing(before: bytes) -> None:
    line = stores.line(stores.message(0, "user", "Hi"))
    assert block(before + line) == block(line) == block(line.replace(b"\n", b"\r\n"))


def test_utf_16_is_shown_as_bytes_not_as_other_text() -> None:
    line = stores.line(stores.message(0, "user", "䅂䍄")).decode()
    for codec in ("utf-16-le", "utf-16-be"):
        assert b'"\\x00t\\x00y\\x00p\\x00e\\x00"' in block(line.encode(codec))


def test_a_conversation_does_not_drive_the_terminal() -> None:
    evil = "\x1b]0;title\x07\x9b2J\u202e\r\ud800"
    record = {"type": "message", "role": evil, "content": evil, "model": evil, "thinking": evil, "created_at": evil}
    for each in (record, {"type": evil, evil: evil}, {**record, "images": [{"path": evil}]}):
        assert not FORBIDDEN.search(shown(json.dumps(each).encode()))
    assert not FORBIDDEN.search(shown("torn \x1b[2J \x9b2J".encode()))
    assert r"\x1b]0;title\x07" in shown(json.dumps(record).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
odd_keys = ("role", "content", "created_at", "ids", "images", "model", "done_reason", "typed", "thinking")
odd_records = st.fixed_dictionaries(
    {"type": st.sampled_from(["session", "message", "meta", "undo", "x"]) | json_values},
    optional=dict.fromkeys(odd_keys, json_values),
)
any_lines = st.binary() | odd_records.map(lambda record: json.dumps(record).encode())


@given(st.lists(any_lines))
def test_any_bytes_give_valid_text_and_each_line_its_own(lines: list[bytes]) -> None:
    whole = [line + b"\n" for part in lines for line in part.split(b"\n")]
    text = b"".join(map(block, whole)).decode()
    assert not FORBIDDEN.search(text)
    assert not text or text.endswith("\n\n")
    assert text == b"".join(map(block, whole)).decode()


# -- the program -------------------------------------------------------------------------------------------


def show(*args: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ollama_prompt.readable", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=60)


@settings(max_examples=15)
@given(data=st.lists(any_lines).map(b"\n".join))
def test_any_file_is_shown(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_bytes(data)
    done = show(str(path), cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(block(line + b"\n") for line in data.split(b"\n"))


def test_output_is_utf8_with_newlines_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LC_ALL", "C"), ("PYTHONIOENCODING", "latin-1"), ("PYTHONUTF8", "0")):
        monkeypatch.setenv(name, value)
    path = tmp_path / "x.jsonl"
    path.write_bytes(stores.line(stores.message(0, "user", "Grüße 🌊")))
    assert show(str(path), cwd=tmp_path).stdout == "user · 2026-09-21 14:13:20\nGrüße 🌊\n\n".encode()


@pytest.mark.parametrize("args", [["missing.jsonl"], ["."], []])
def test_a_file_that_cannot_be_opened(args: list[str], tmp_path: Path) -> None:
    done = show(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    path = stores.make(tmp_path, data=stores.lines(stores.new_id(1), turns=5000))
    command = [sys.executable, "-m", "ollama_prompt.readable", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_it_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import ollama_prompt.readable; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("ollama_prompt.")}
    assert ours == {"ollama_prompt.readable", "ollama_prompt.render"}
    assert not {"orjson", "typing", "subprocess", "datetime", "pathlib"} & set(done.stdout.split())


# -- git ---------------------------------------------------------------------------------------------------


class Repository:
    """A repository with a session in it, and the driver in its configuration."""

    def __init__(self, folder: Path, executable: str = sys.executable) -> None:
        self.folder = folder
        self.git("init", "--quiet")
        (folder / ".gitattributes").write_text("*.jsonl diff=ollama-prompt\n", encoding="utf-8")
        self.git("config", "diff.ollama-prompt.textconv", textconv_command(executable))
        self.session = stores.make(folder)
        self.commit()

    def git(self, *args: str) -> str:
        who = {
            f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(["git", *args], cwd=self.folder, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "Conversations")

    def add(self, record: Json | bytes) -> None:
        stores.add(self.session, record if isinstance(record, bytes) else stores.line(record))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    folder = tmp_path / "a store"
    folder.mkdir()
    return Repository(folder)


def added(diff: str) -> str:
    """The lines that a diff adds."""
    return "".join(line[1:] + "\n" for line in diff.splitlines() if re.match(r"\+(?!\+\+ )", line))


def removed(diff: str) -> str:
    return "".join(line[1:] + "\n" for line in diff.splitlines() if re.match(r"-(?!-- )", line))


QUESTION = stores.message(10, "user", "And in Asia?")
ASKED = "user · 2026-09-21 14:13:30\nAnd in Asia?\n\n"


def test_git_diff_shows_the_records_that_were_added(repository: Repository) -> None:
    repository.add(QUESTION)
    diff = repository.git("diff")
    assert (added(diff), removed(diff)) == (ASKED, "")
    assert "\n Answer 1\n" in diff


def test_git_log_and_show(repository: Repository) -> None:
    repository.add(QUESTION)
    repository.commit()
    assert added(repository.git("show")) == ASKED
    log = repository.git("log", "-p")
    assert added(log).startswith(ASKED)
    assert "+assistant · 2026-09-21 14:13:21 · smollm2\n+Answer 0\n" in log
    assert '"content"' not in log
    assert '"content"' in repository.git("log", "-p", "--no-textconv")


def test_git_shows_what_damage_there_is(repository: Repository) -> None:
    repository.add(b'{"type":"message","role":"us\n\xff\xfe\0\0\x1b[2J\n<<<<<<< HEAD\n')
    diff = repository.git("diff")
    expected = '{"type":"message","role":"us\n\n\\xff\\xfe\\x1b[2J\n\n<<<<<<< HEAD\n\n'
    assert (added(diff), removed(diff)) == (expected, "")


def test_git_shows_a_deleted_session_as_text(repository: Repository) -> None:
    repository.session.unlink()
    assert "Question 1\n" in removed(repository.git("diff"))


def test_files_in_the_repository_are_not_run(repository: Repository) -> None:
    trap = "import os\nopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ran'), 'w')\n"
    (repository.folder / "ollama_prompt").mkdir()
    for name in ("json.py", "re.py", "site.py", "ollama_prompt/__init__.py", "ollama_prompt/readable.py"):
        (repository.folder / name).write_text(trap, encoding="utf-8")
    repository.add(QUESTION)
    assert added(repository.git("diff")) == ASKED
    assert not list(repository.folder.rglob("ran"))


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "$HOME `x` \\ ; & # %", "naïve"])
@pytest.mark.skipif(sys.platform == "win32", reason="such names are for POSIX")
def test_where_python_lies(name: str, tmp_path: Path) -> None:
    python = tmp_path / name / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    folder = tmp_path / "store"
    folder.mkdir()
    repository = Repository(folder, str(python))
    repository.add(QUESTION)
    assert added(repository.git("diff")) == ASKED


def test_where_python_lies_on_windows() -> None:
    command = textconv_command(r"C:\Program Files\It's Python\python.exe")
    assert r"'C:/Program Files/It'\''s Python/python.exe' -c '" in command
    assert "'//server/share/python.exe'" in textconv_command(r"\\server\share\python.exe")


@pytest.mark.parametrize("executable", ["/gone/bin/python", "/bin/false", ""])
def test_git_shows_files_as_they_are_when_the_program_is_gone(executable: str, tmp_path: Path) -> None:
    repository = Repository(tmp_path, executable)
    repository.add(QUESTION)
    assert added(repository.git("diff")) == stores.line(QUESTION).decode()
