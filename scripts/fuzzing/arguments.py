"""The target `arguments`: any words as the command's arguments.

A case is a command line, a stdin and a few variables of the environment, as JSON. It is made of the command's own
flags, misspelled, cut short, doubled and with any values. It runs in this process through `cli.main`, in a folder, a
home and a store of its own, which are made anew for every case; each 500th runs as a process. No server is there: a
port of loopback that is closed. What may come of it is a documented exit code, one error on stderr that says what is
wrong, and on stdout what was asked for or nothing. Nothing may be written outside of those folders.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import stores

from fuzzing import runs
from fuzzing.promises import run_command
from ollama_prompt import (
    cli,
    errors,
    flags,
    ollama,  # noqa: F401  whole: the command leaves parts of it out, for a process that ends
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random
    from typing import Any

    Json = dict[str, Any]

PROCESS_EVERY = 500
ROOT = "{root}"
"""Stands for the folder of the case in an argument."""
IDS = (stores.new_id(1), stores.new_id(2).upper(), stores.new_id(99), stores.new_id(1)[:-1], "../" + stores.new_id(1))
TEXTS = (
    *("", " ", "\n", "x", "Hi there", "-", "--", "-x", "--prompt"),
    *("=", "a=b", "Größe 🌊", "\u202e\x1b[2J\x07", "\udcff\udce9"),
    *("x" * 3000, "%s%d{}", "$(touch y)"),
    *("`touch y`", "; touch y", "'", '"', "\\", "\x85\u2028"),
    *("@", "@./", "@./a.txt", "@./d/", "@./d/:list", "@./d/:tree", "@./d/:search:x(", "@./d/:search:(a+)+$", "@./gone"),
    *("@../x", "@/etc/passwd", "@./out", "@./bad.bin", "@./a.txt@./a.txt", "@~/x", "@./d/:list:x", "@./*"),
)  # fmt: skip
NUMBERS = (
    *("0", "-0", "1", "-1", "-2", "5", "1.5", "1e3", "1e999", "-1e999"),
    *("nan", "inf", "1_000", "0x10", " 7 ", "\u0665", "+3"),
    *("9223372036854775807", "9223372036854775808", "9" * 5000, "99999999999", "1e-400", ".", "1,5", "1\n"),
)  # fmt: skip
PATHS = (
    *(".", "..", "a.txt", "d", "d/b.txt", "list.json", "schema.json"),
    *("pic.png", "bad.bin", "out", "new.md", "new/new.md"),
    *("~", "~no-such-user/x", "x" * 300, "a/" * 2000, "d/../a.txt", "\udcff.txt"),
    *("x.gguf", "a.txt/x", "sp ace\n.md", ".gguf"),
    *(f"{ROOT}/w/a/b/c/abs.md", f"{ROOT}/gone/x", f"{ROOT}/home", f"{ROOT}/store", "/dev/null"),
)  # fmt: skip
WORDS = (
    *("json", "text", "ndjson", "JSON", "markdown", "html", "bash"),
    *("zsh", "fish", "powershell", "newest", "best", "true"),
    *("false", "low", "high", "max", "5m", "-1", "1h30m", "0", "µs"),
    *("2026-11-01", "2026-13-45T99:99", "30", "{}", "{", "[]"),
    *('{"type": "object"}', '{"type": 5}', '{"$ref": "#"}', '{"$ref": "http://127.0.0.1:1/x"}'),
    *("[" * 2000, "seed=1", "stop=["),
    *("num_ctx=1", "top_p=x", "=", "a=1e400", "b=" + "[" * 200, "smollm2", "x:cloud", "hf.co/a/b:c", "HTTP://x", "a b"),
    *("ext::sh -c touch% y", "--upload-pack=touch y", "file:///gone"),
    *("ssh://-oProxyCommand=touch/x", "git@127.0.0.1:x"),
)  # fmt: skip
POOLS = (TEXTS, NUMBERS, PATHS, WORDS, IDS)
OF_METAVAR = {
    "UUID": IDS,
    **dict.fromkeys(("N", "S", "F", "DAYS"), NUMBERS),
    **dict.fromkeys(("FILE", "DIR", "PATH"), PATHS),
}
"""What a flag wants; it gets something else too."""
VARIABLES = {
    "OLLAMA_PROMPT_MODEL": ("", " ", "x.gguf", "\udcff"), "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS": NUMBERS,
    "OLLAMA_PROMPT_HOME": (f"{ROOT}/w/a.txt", f"{ROOT}/w/new", "", "~no-such-user/x"),
    "COLUMNS": NUMBERS, "NO_COLOR": ("1",),
    "OLLAMA_API_KEY": ("k", "k\n", "é", "\udcff"),
    "OLLAMA_HOST": ("http://[", "ftp://x", "127.0.0.1:99999", "a@b", ":1"),
    "OLLAMA_PROMPT_DB_PATH": (f"{ROOT}/w/a/b/c/a.txt", f"{ROOT}/w/new.db", f"{ROOT}/w"),
}  # fmt: skip
STDINS = ("", "Hi\n", "\xff\xfe\x00", "\x00", "@./a.txt", "x" * 100_000)
EXIT_CODES = {0, 1, 2}
"""Of the documented ones those that can come of it here: nobody holds a lock, interrupts, or closes stdout."""


def _codes(kind: type[errors.OllamaPromptError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


CODES = _codes(errors.OllamaPromptError) - {"error"}


class Arguments:
    """The target; see the module."""

    name = "arguments"
    seconds = 20.0
    megabytes = 400.0

    def __init__(self) -> None:
        self._folder = runs.make_folder()
        self._root = self._folder / "root"
        self._actions = flags.make_parser()._option_string_actions
        self._names = sorted(self._actions)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self._host = f"http://127.0.0.1:{closed.getsockname()[1]}"

    def close(self) -> None:
        """Remove the folders."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- Making a case ---

    def make(self, chance: Random) -> bytes:
        """A command line."""
        words: list[str] = []
        for _ in range(chance.choice((1, 1, 2, 2, 3, 4, 8))):
            words += self._flag(chance)
        if chance.random() < 0.2:
            chance.shuffle(words)
        variables = {}
        if chance.random() < 0.15:
            name = chance.choice(list(VARIABLES))
            variables[name] = chance.choice(VARIABLES[name])
        return json.dumps({"argv": words, "env": variables, "stdin": chance.choice(STDINS)}).encode()

    def _flag(self, chance: Random) -> list[str]:
        """A flag with or without a value, or a value alone."""
        if chance.random() < 0.05:
            return [_value(chance, "")]
        if chance.random() < 0.01:
            return ["--to=/dev/full"]  # in one word: who reads from there never comes to an end
        name = chance.choice(self._names)
        action = self._actions[name]
        written = name if chance.random() < 0.92 else _misspelled(chance, name)
        wants = action.nargs != 0 if chance.random() < 0.95 else action.nargs == 0
        if not wants:
            return [written]
        value = _value(chance, str(action.metavar or ""), *(action.choices or ()))
        return [f"{written}={value}"] if chance.random() < 0.3 else [written, value]

    # --- Running it ---

    def run(self, data: bytes) -> None:
        """Run the command line."""
        case = json.loads(data)
        root = str(self._root)
        argv = [word.replace(ROOT, root) for word in case["argv"]]
        env = self._environment() | {name: value.replace(ROOT, root) for name, value in case["env"].items()}
        self._lay_out()
        before = _outside(self._folder)
        is_process = zlib.crc32(data) % PROCESS_EVERY == 0 and _can_be_passed([*argv, *env.values()])
        run = run_command if is_process else _run_here
        _check(argv, *run(argv, env, case["stdin"].encode("latin-1"), self._cwd))
        assert _outside(self._folder) == before, f"something was written: {_outside(self._folder)}"

    @property
    def _cwd(self) -> Path:
        return self._root / "w" / "a" / "b" / "c"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._root / "home"),
            "TMPDIR": str(self._root / "tmp"),
            "OLLAMA_HOST": self._host,
            "OLLAMA_PROMPT_HOME": str(self._root / "store"),
            "OLLAMA_PROMPT_NO_SERVE": "1",
            "GIT_ALLOW_PROTOCOL": "file",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def _lay_out(self) -> None:
        """The folders as they are before a case."""
        shutil.rmtree(self._root, ignore_errors=True)
        for folder in (self._cwd / "d", self._root / "home", self._root / "tmp"):
            folder.mkdir(parents=True)
        for number in (1, 2):
            stores.make(self._root / "store", number)
        picture = b"\x89PNG\r\n\x1a\n" + bytes(40)
        written = {
            "a.txt": b"some text\n", "d/b.txt": b"(a+)+ x\n" * 3, "bad.bin": b"\xff\0\xfe", "pic.png": picture,
            "schema.json": b'{"type": "object"}', "list.json": b'[{"role": "user", "content": "Hi"}]',
        }  # fmt: skip
        for name, content in written.items():
            (self._cwd / name).write_bytes(content)
        (self._cwd / "out").symlink_to("/etc/hostname")


def _misspelled(chance: Random, name: str) -> str:
    at = chance.randrange(len(name))
    return chance.choice(
        (name[:at], name[:at] + name[at + 1 :], name + "x", name.upper(), name.replace("-", "_"), name[1:])
    )


def _value(chance: Random, metavar: str, *choices: str) -> str:
    """What is wanted or anything else, and harmless: it names no place outside of the case's folder."""
    pool = choices or OF_METAVAR.get(metavar, TEXTS)
    value = chance.choice(pool if chance.random() < 0.7 else chance.choice(POOLS))
    if chance.random() < 0.1:
        at = chance.randint(0, len(value))
        value = value[:at] + chance.choice(TEXTS) + value[at:]
    value = value.replace("\0", "")
    is_known = value in PATHS or not value.startswith("/")
    return value if is_known and value.count("..") < 3 else "x" + value.replace("..", ".")


def _can_be_passed(words: list[str]) -> bool:
    """Whether the operating system takes these as arguments."""
    try:
        return sum(len(os.fsencode(word)) for word in words) < 100_000
    except UnicodeEncodeError:
        return False


def _outside(folder: Path) -> list[list[str]]:
    """What lies where nothing may be written."""
    return [sorted(os.listdir(place)) for place in ("/", folder, folder / "root", os.path.expanduser("~root"))
            if os.path.isdir(place)]  # fmt: skip


def _run_here(argv: list[str], env: dict[str, str], stdin: bytes, cwd: Path) -> tuple[int, bytes, bytes]:
    """Run the command here: exit code, stdout, stderr."""
    out, err = io.BytesIO(), io.BytesIO()
    with _replaced(env, cwd):
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        sys.stdout, sys.stderr = io.TextIOWrapper(out, encoding="utf-8"), io.TextIOWrapper(err, encoding="utf-8")
        code = cli.main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        return code, out.getvalue(), err.getvalue()


@contextmanager
def _replaced(env: dict[str, str], cwd: Path) -> Iterator[None]:
    """Inside, all that the command changes or takes from its process is the case's."""
    streams, environment, folder = (sys.stdin, sys.stdout, sys.stderr), dict(os.environ), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.enable()


# --- What may come of it ---------------------------------------------------------------------------


def _check(argv: list[str], code: int, stdout: bytes, stderr: bytes) -> None:
    out, err = stdout.decode(), stderr.decode()
    about = f"exit {code}\nstdout: {out[:500]}\nstderr: {err[:3000]}\nof {argv}"
    assert code in EXIT_CODES, about
    output = cli._wanted_output(argv)
    is_check = code == 1 and "--check" in argv and not err.rstrip().endswith("}")
    if "--debug" in argv:
        assert "this is a bug" not in err, about
    else:
        assert not any(trace in err for trace in stores.TRACES), about
        rest = [line for line in err.splitlines() if not line.startswith("note: ")]
        _check_error(rest, code and not (is_check and not rest), output, about)
    _check_stdout(argv, out, code, output, about)


def _check_error(lines: list[str], code: int, output: str, about: str) -> None:
    """One error, in the form that was asked for, if there is one."""
    if not code:
        assert not lines, about
    elif output == "text":
        assert lines[0].startswith("error: "), about  # of several lines where what it quotes has them
    else:
        assert len(lines) == 1, about
        error = json.loads(lines[0])
        assert error["error"], about
        assert error["code"] in CODES, about


_NOT_JSON = re.compile(r"--(?:help|version|completion|export)\b|-h\b")


def _check_stdout(argv: list[str], out: str, code: int, output: str, about: str) -> None:
    """Nothing, or JSON where that is what was asked for."""
    if any(map(_NOT_JSON.match, argv)) or output == "text":
        return
    if output == "ndjson":
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines()), about
    elif code == 1 and "--check" in argv and out:
        assert isinstance(json.loads(out), dict), about
    else:
        assert bool(out) == (code == 0), about
        assert not out or isinstance(json.loads(out), dict), about
