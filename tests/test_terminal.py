"""What people see at a terminal; and that nobody else sees any of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import screens
import stores
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import fail, header, line, message, succeed

from ollama_prompt import clock

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ANSWER = """# Rivers

Three **long** ones:

1. The Rhine

   It has a `delta`.
2. The Danube

```python
print("Volga")
```

| river | km |
|---|---|
| Volga | 3530 |
"""


def screen(environment: dict[str, str], *args: str, rows: int = 50, columns: int = 100, **more: str) -> str:
    """What the command shows in a terminal of this size, as text."""
    return run_in_terminal(environment | more, ["-m", "ollama_prompt", *args, "--output", "text"], rows, columns)


def run_in_terminal(environment: dict[str, str], python: list[str], rows: int = 50, columns: int = 100) -> str:
    """What Python shows in a terminal of this size."""
    code, shown = screens.shown(python, {"TERM": "xterm-256color", "PAGER": "cat"} | environment, rows, columns)
    assert code == 0, shown
    return shown.replace("\r\n", "\n")


def words(shown: str) -> str:
    """Without colours, and without what was drawn over."""
    return ANSI.sub("", shown)


@pytest.fixture
def path(home: Path) -> Path:
    """A session that was used three hours ago."""
    session_id = stores.new_id(1)
    at = clock.format_time((int(time.time()) - 3 * 3600 - 60) * 1000)
    said = [
        message(1, "user", "Name rivers."),
        message(2, "assistant", ANSWER, prompt_tokens=5000, tokens=2000, model="smollm2") | {"created_at": at},
    ]
    return stores.make(home, 1, b"".join(map(line, [header(session_id, title="Rivers [bold]x"), *said])))


def test_a_listing(environment: dict[str, str], path: Path) -> None:
    wide = words(screen(environment, "--list-sessions", columns=130))
    head, row, *_ = wide.splitlines()
    assert head.split() == ["TITLE", "MODEL", "USED", "MESSAGES", "WINDOW", "SESSION"]
    assert re.split(r"\s{2,}", row.strip()) == ["Rivers [bold]x", "smollm2", "3 h ago", "2", "11 %", path.stem]
    assert "MODEL" not in screen(environment, "--list-sessions", columns=100)
    narrow = words(screen(environment, "--list-sessions", columns=40)).splitlines()
    assert [line.strip() for line in narrow] == ["Rivers [bold]x", "3 h ago · 2 messages · 11 % · smollm2", path.stem]


def test_matches(environment: dict[str, str], path: Path) -> None:
    shown = screen(environment, "--search", "danube")
    assert "\x1b[1;7mDanube\x1b[0m" in shown
    assert f"3 h ago · assistant · {path.stem}" in words(shown)
    assert "1 found" in words(shown)


def test_a_conversation(environment: dict[str, str], path: Path) -> None:
    shown = screen(environment, "--session-info", path.stem)
    plain = words(shown)
    assert re.search(r"window\s+7000 of 64000 tokens, 10\.9 %", plain)
    assert "smollm2  3 h ago" in plain
    assert "**" not in plain
    assert "\x1b[1mlong\x1b[0m" in shown
    raw = words(screen(environment, "--session-info", path.stem, NO_COLOR="1"))
    assert "Three **long** ones" in raw


def test_what_belongs_to_a_message(environment: dict[str, str], home: Path, run: Run) -> None:
    """What the model thought, pictures, how an answer ended, and the id for --fork --at: also where text is plain."""
    picture = {"sha256": "a" * 64, "bytes": 9, "type": "image/png", "path": "./cat\x1b[31m.png"}
    said = [
        message(1, "user", "Look.", images=[picture, 5]),
        message(2, "assistant", "A **cat", thinking="It has\x1b[31m\r\n\r\nears.", done_reason="interrupted"),
    ]
    path = stores.make(home, 1, b"".join(map(line, [header(stores.new_id(1)), *said])))
    rich = words(screen(environment, "--session-info", path.stem))
    plain = succeed(run("--session-info", path.stem, "--output", "text")).stdout
    for shown in (rich, plain):
        for part in (r"[picture: ./cat\x1b[31m.png]", r"It has\x1b[31m", "ears.", "interrupted", stores.new_id(2)):
            assert part in shown
        assert shown.index("ears.") < shown.index("A **cat")


@pytest.mark.parametrize("odd", [5, [], {"a": 1}, "", [None], "\x1b[31m"])
def test_a_message_written_by_hand(environment: dict[str, str], home: Path, run: Run, odd: Any) -> None:
    keys = ("typed", "thinking", "images", "done_reason", "model", "tokens", "references")
    said = [message(1, "user", "Hi"), message(2, "assistant", "Ho"), {**message(3, "x", "Ha"), "created_at": odd}]
    data = b"".join(line({**record, **dict.fromkeys(keys, odd)}) for record in said)
    path = stores.make(home, 1, line(header(stores.new_id(1))) + data)
    for shown in (screen(environment, "--session-info", path.stem), screen(environment, "--list-sessions")):
        assert "\x1b[31m" not in shown
        assert "error" not in shown
    succeed(run("--session-info", path.stem, "--output", "text"))


def test_an_empty_store(environment: dict[str, str]) -> None:
    for columns in (40, 130):
        assert words(screen(environment, "--list-sessions", columns=columns)) == "no sessions yet\n"


def test_a_long_title_takes_one_line(environment: dict[str, str], home: Path) -> None:
    data = line(header(stores.new_id(1), title="日本\r\n" + "a long title " * 20)) + line(message(1, "user", "danube"))
    stores.make(home, 1, data)
    for args in (["--list-sessions"], ["--search", "danube"]):
        first, second, *_ = words(screen(environment, *args, columns=40)).splitlines()
        assert first.startswith("日本 a long title")
        assert first.endswith("…")
        assert "ago" in second


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_an_answer_is_markdown(environment: dict[str, str], ollama: StandIn, delay: float) -> None:
    ollama.set(answer=ANSWER, delay=delay)
    shown = screen(environment, "-p", "Hi", "--no-session", rows=12)
    last = words(shown.rpartition("waiting for")[2])
    for text in ("Rivers", "long", "The Rhine", "delta", 'print("Volga")', "Volga", "3530"):
        assert text in last
    assert "```" not in last.rpartition("3530")[2]
    assert last.endswith("\n")


BETWEEN = (
    "one\n\n- two\n\n> three\n\n1. four\n\n```\nfive\n```\n\n|six|\n|-|\n|seven|\n\n- eight\n\n# nine\n\n---\n\nten\n"
)


def test_one_empty_line_between_blocks() -> None:
    shown = rendered(BETWEEN, 40)
    assert "\n\n\n" not in shown
    assert not re.search(r"^\n| \n|\n\n$", shown), "spaces at the end of a line would wrap in a narrower window"


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_an_answer_that_comes_slowly_looks_the_same(environment: dict[str, str], ollama: StandIn, delay: float) -> None:
    ollama.set(answer=BETWEEN, delay=delay)
    shown = screen(environment, "-p", "Hi", "--no-session", columns=40)
    assert screens.visible(shown) == rendered(BETWEEN, 40)


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"flag": "--plain"}])
def test_an_answer_as_it_came(environment: dict[str, str], ollama: StandIn, more: dict[str, str]) -> None:
    ollama.set(answer=ANSWER)
    flags = [more.pop("flag")] if "flag" in more else []
    shown = screen(environment | more, "-p", "Hi", "--no-session", *flags)
    assert shown.rpartition("\x1b[K")[2] == ANSWER


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_move_its_cursor(environment: dict[str, str], ollama: StandIn, term: str) -> None:
    ollama.set(answer=ANSWER)
    assert screen(environment | {"TERM": term}, "-p", "Hi", "--no-session") == ANSWER


def test_an_answer_that_moves_the_cursor(environment: dict[str, str], ollama: StandIn) -> None:
    ollama.set(answer="Red: \x1b[31m, [link](javascript:x) and [red]no markup[/red]")
    shown = words(screen(environment, "-p", "Hi", "--no-session"))
    assert r"Red: \x1b[31m" in shown
    assert "[red]no markup[/red]" in shown


def test_tags_and_line_ends_of_others(environment: dict[str, str], ollama: StandIn) -> None:
    ollama.set(answer="Run `git` checkout <branch>\r\n\r\n- a\r\n- b\r\n\r\n<think>\nsecret\n</think>")
    shown = words(screen(environment, "-p", "Hi", "--no-session"))
    for text in ("checkout <branch>", "<think>", "secret", "• a", "• b"):
        assert text in shown
    assert "\\r" not in shown


def rendered(markdown: str, width: int) -> str:
    """Markdown as text, in a terminal of this width."""
    from rich.console import Console

    from ollama_prompt.terminal import make_markdown

    out = Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)
    out.print(make_markdown(markdown))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_cells_wrap() -> None:
    long = "a_word_that_is_wider_than_its_column_can_be"
    table = f"| name | what it is |\n|---|---|\n| {long} | {'some words ' * 20}end |\n| 日本語の長い言葉 | - |\n"
    shown = rendered(table, 40)
    assert "…" not in shown
    assert long in "".join(row.split("  ")[0].strip() for row in shown.splitlines())
    assert (shown.count("words"), shown.count("end")) == (20, 1)


def test_a_table_without_room_is_a_list() -> None:
    names = [f"name{number}" for number in range(8)]
    table = f"|{'|'.join(names)}|\n{'|-' * 8}|\n|{'|'.join('abcdefgh')}|\n"
    assert rendered(table, 100).split()[:8] == names
    rows = [f"{name}: {cell}" for name, cell in zip(names, "abcdefgh", strict=True)]
    assert rendered(table, 20).strip().split("\n") == rows


@pytest.mark.parametrize("width", [80, 14])
@pytest.mark.parametrize("prefix", ["", "> ", "  "])
def test_a_row_with_more_cells_than_columns_keeps_them(width: int, prefix: str) -> None:
    rows = ["|a|b|", "|-|-|", "|count|`ls | wc`|last| |", "|x|y| |", "|only|"]
    shown = " ".join(rendered("\n".join(prefix + row for row in rows), width).replace("▌", "").split())
    assert "ls | wc|last" in shown
    assert "last|" not in shown
    assert "y|" not in shown


def test_pictures_and_links_keep_their_addresses() -> None:
    shown = rendered("See ![a *map*](img/map.png) and [![one](in.png)](https://out) or <https://auto>.", 100)
    assert shown.strip() == "See a map (img/map.png) and one (in.png) (https://out) or https://auto."
    assert "here (x.png)" in rendered("|a|\n|-|\n|![here](x.png)|\n", 40)


def test_verses_stay_lines_and_notes_stay() -> None:
    shown = rendered("one\ntwo [there][1]\n\n- a\n  b\n\n[1]: https://x.y\n[2]: https://z\n", 60)
    assert shown == "one\ntwo [there][1]\n\n • a\n   b\n\n[1]: https://x.y\n[2]: https://z\n"


def test_entities_are_made_visible() -> None:
    shown = rendered("&#x202e;turned, &#27;[31m, &#13;over", 60)
    assert not set("\u202e\x1b\r") & set(shown)
    assert "\\u202eturned" in shown


BLOCKS = [
    "# {}",
    "> > {}\n>\n> {}",
    "- {}\n  - {}\n    1. {}\n       - {}",
    "|{}|{}|{}|\n|-|-|-|\n|{}|{}|{}|",
    "`{}` **{}**",
]
BLOCKS += ["```\n{} {}\n```", "![{}]({}) [{}]({})", "100. {}\n\n     {}"]


@given(blocks=st.lists(st.sampled_from(BLOCKS), max_size=4), width=st.integers(5, 100), wrap=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost(blocks: list[str], width: int, wrap: int) -> None:
    text = "\n\n".join("> " * wrap + block.replace("\n", "\n" + "> " * wrap) for block in blocks)
    said = [f"w{number:02}" for number in range(text.count("{}"))]
    shown = rendered(text.format(*said), width)
    assert sorted(re.findall(r"w\d\d", "".join(shown.split()))) == said
    assert all(len(row) <= width for row in shown.splitlines())


OBEYED = "\x1b[31m \x1b]0;title\x07 \x9b31m \x08 \x7f \r over"
LISTINGS = [["--list-sessions"], ["--session-info", "ID"], ["--search", "over"]]
EXPORTS = [["--export", "ID", "--as", form] for form in ("markdown", "text", "html", "json")]


@pytest.mark.parametrize("args", [*LISTINGS, *EXPORTS, ["--retry", "ID"], ["--export", "ID", "--to", "\x1b[31m.md"]])
@pytest.mark.parametrize("output", ["text", "json", "ndjson"])
def test_a_terminal_obeys_nothing_that_was_said(
    environment: dict[str, str], home: Path, ollama: StandIn, tmp_path: Path, args: list[str], output: str
) -> None:
    ollama.set(answer=OBEYED)
    said = [message(number, role, OBEYED) for number, role in enumerate(("user", "assistant"))]
    head = header(stores.new_id(1), title=OBEYED, model="smollm2", system=OBEYED)
    path = stores.make(home, 1, b"".join(map(line, [head, *said])))
    command = ["-m", "ollama_prompt", *(path.stem if arg == "ID" else arg for arg in args), "--output", output]
    code, shown = screens.shown(command, environment | {"TERM": "xterm", "PAGER": "cat"}, folder=tmp_path)
    assert code == 0, shown
    assert not re.search("\x1b\\[31m|\x1b\\]|\x9b|\x08|\x7f|\r(?!\n|\x1b)", shown), shown


def test_nothing_of_it_reaches_a_pipe(run: Run, path: Path, ollama: StandIn) -> None:
    ollama.set(answer=ANSWER)
    term = {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    for flags in (["--list-sessions"], ["--search", "danube"], ["--session-info", path.stem], ["-p", "Hi"]):
        done = succeed(run(*flags, "--output", "text", env=term))
        assert "\x1b" not in done.stdout + done.stderr
    assert succeed(run("-p", "Hi", "--output", "text", env=term)).stdout == ANSWER


def test_json_stays_json_at_a_terminal(environment: dict[str, str], path: Path) -> None:
    shown = run_in_terminal(environment, ["-m", "ollama_prompt", "--list-sessions"])
    assert json.loads(shown)["total"] == 1


def test_what_is_higher_than_the_screen_goes_through_the_pager(
    environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    for number in range(20):
        stores.make(home, number)
    pager = tmp_path / "pager"
    pager.write_text('#!/bin/sh\necho "paged $(wc -l)"\n', encoding="utf-8")
    pager.chmod(0o755)
    assert screen(environment, "--list-sessions", rows=10, PAGER=str(pager)).split() == ["paged", "21"]
    assert "paged" not in screen(environment, "--list-sessions", rows=40, PAGER=str(pager))


PAGERS = [
    ("false", "Question 0"), ("none/such", "Question 0"), ("", "Question 0"), ("exit 7", "Question 0"),
    ("true", ""), ("kill -INT $$", ""), ("cat | wc -l", "21"), ("wc -l | sed 's/^/lines: /'", "lines: 21"),
    ("grep -c Question", "20"), ("X=y; echo $X", "y"),
]  # fmt: skip


@pytest.mark.parametrize(("pager", "shown"), PAGERS)
def test_the_pager_is_a_command_of_the_shell(environment: dict[str, str], home: Path, pager: str, shown: str) -> None:
    """As git and man take it; what one that fails did not show is shown without it."""
    for number in range(20):
        stores.make(home, number)
    got = words(screen(environment, "--list-sessions", rows=10, PAGER=pager))
    assert shown in got if shown.startswith("Question") else got.strip() == shown


def test_a_bar_is_gone_before_the_pager_begins(environment: dict[str, str]) -> None:
    script = (
        "from ollama_prompt import console, terminal; console._Progress.DELAY = 0; console.show_progress(1, 3);"
        "terminal._print_paged(terminal.make_console(), 'row\\n' * 50)"
    )
    shown = run_in_terminal(environment | {"PAGER": "sleep 0.4; echo begun; cat >/dev/null; sleep 0.4"}, ["-c", script])
    before, _, after = words(shown).partition("begun")
    assert "1/3" in before
    assert after.strip() == ""


def test_how_long_it_takes_is_told(environment: dict[str, str], ollama: StandIn) -> None:
    ollama.set(delay=0.8, answer="one two three")
    shown = run_in_terminal(environment, ["-m", "ollama_prompt", "-p", "Hi", "--no-session"])
    assert re.search(r"waiting for smollm2 … 2 s, [123] tokens, [12] a second", shown)
    assert json.loads(shown.rpartition("\x1b[K")[2])["response"] == "one two three"


def test_the_status_is_one_line(environment: dict[str, str], ollama: StandIn) -> None:
    """A longer one would wrap, and only its last row be removed."""
    name = "hf.co/日本語/a-name-of-some-length:q4"
    ollama.set(delay=0.8, answer="one two", models={name: {"limit": 9, "capabilities": []}})
    command = ["-m", "ollama_prompt", "-p", "Hi", "--no-session", "--model", name]
    widths = (10, 20, 30, 40, 60)
    with ThreadPoolExecutor(len(widths)) as pool:  # each only waits for its answer
        screens = list(pool.map(lambda columns: run_in_terminal(environment, command, columns=columns), widths))
    for columns, shown in zip(widths, screens, strict=True):
        drawn = [row for row in words(shown).partition("{")[0].split("\r") if row]
        assert drawn
        assert all(len(row) + len(re.findall("[日本語]", row)) < columns for row in drawn)
        assert any("1 s" in row for row in drawn) or columns < 20


def test_how_far_it_has_come(environment: dict[str, str]) -> None:
    script = (
        "from ollama_prompt import console; console._Progress.DELAY = 0;"
        "[console.show_progress(number, 3) for number in range(3)]; console.write('done\\n')"
    )
    shown = run_in_terminal(environment, ["-c", script])
    assert "2/3" in words(shown)
    assert words(shown.rpartition("\x1b[2K")[2]).strip().endswith("done")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_steps_of_a_sync(environment: dict[str, str], home: Path, run: Run, tmp_path: Path) -> None:
    """Each with what it does and to how many sessions; and of all of it nothing in a pipe, or where no cursor moves."""
    remote = tmp_path / "remote"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True, capture_output=True)
    stores.make(home, 1)
    succeed(run("--git-setup", "--remote", str(remote)))
    stores.make(home, 2)
    shown = screen(environment, "--sync", GIT_ASKPASS="false")
    at = (
        "0/5 looking for what changed",
        "1/5 committing 1 session",
        "2/5 fetching from origin",
        "4/5 pushing 2 sessions",
    )
    places = [words(shown).index(step) for step in at]
    assert places == sorted(places)
    assert "writing objects, 1 of " in shown
    assert words(shown.rpartition("\x1b[2K")[2]) == "sessions committed: 1, received: 0, sent: 2\n"
    assert shown.count("\x1b[?25h") >= shown.count("\x1b[?25l") > 0
    dumb = screen(environment, "--sync", TERM="dumb")
    assert dumb == "sessions committed: 0, received: 0, sent: 0\n"
    assert succeed(run("--sync", "--output", "text", env={"TERM": "xterm", "FORCE_COLOR": "1"})).stderr == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_says_beside_its_progress_is_the_error(run: Run, home: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True, capture_output=True)
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    stores.make(home, 1)
    succeed(run("--git-setup", "--remote", str(remote)))
    said = fail(run("--sync"), "git_failed")["error"]
    assert "not today" in said
    assert not re.search(r"objects|%|Total|Delta", said)


@pytest.mark.parametrize(
    ("args", "passes"),
    [
        (["--reindex"], 1), (["--search", "question"], 2), (["--check"], 1), (["--check", "--secrets"], 2),
        (["--check", "--repair", "--secrets"], 4), (["--import", "messages.json"], 1), (["--list-sessions"], 1),
    ],
)  # fmt: skip
def test_what_takes_long_has_a_bar(
    environment: dict[str, str], home: Path, tmp_path: Path, args: list[str], passes: int
) -> None:
    stores.make(home, 1)
    stores.make(home, 2)
    (tmp_path / "messages.json").write_text('[{"role": "user", "content": "Hi"}]', encoding="utf-8")
    script = (
        "import sys; from ollama_prompt import cli, console;"
        "console._Progress.show = lambda done, total: print('bar', done, total, file=sys.stderr);"
        f"sys.exit(cli.main({args!r}))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.count("bar 0 ") == passes, done.stderr


@pytest.mark.parametrize("columns", [10, 20, 40, 80, 200])
def test_a_bar_fits(environment: dict[str, str], columns: int) -> None:
    script = (
        "from ollama_prompt import console; console._Progress.DELAY = 0; console.show_progress(123, 999);"
        "console.clear(); console.show_step('doing [x] with \x1b[31m many words', 3, 5); console.write('done')"
    )
    shown = words(run_in_terminal(environment, ["-c", script], columns=columns))
    assert all(len(row) <= columns for row in re.split(r"[\r\n]+", shown))
    if columns >= 20:
        assert "123/999" in shown
        assert "3/5 do" in shown
    if columns >= 80:
        assert r"doing [x] with \x1b[31m many words" in shown


@given(text=st.text(st.sampled_from("a \n-#`>1.*|\t"), max_size=60), cut=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_what_has_ended_does_not_change(text: str, cut: int) -> None:
    """Blocks before the last one are the same, whatever comes."""
    from ollama_prompt.terminal import ended, make_markdown

    def kinds(markdown: str) -> list[Any]:
        return [(token.type, token.content) for token in make_markdown(markdown).parsed]

    start, whole = ended(text[:cut]), kinds(text)
    assert kinds(text[:start]) == whole[: len(kinds(text[:start]))]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "just now"), (59, "just now"), (60, "1 min ago"), (3 * 3600 + 5, "3 h ago"), (86_400, "1 d ago"),
     (40 * 86_400, "1 mo ago"), (800 * 86_400, "2 y ago"), (-500, "just now")],
)  # fmt: skip
def test_ago(seconds: int, shown: str) -> None:
    from ollama_prompt.terminal import ago

    assert ago(clock.format_time((int(time.time()) - seconds) * 1000)) == shown
    assert ago("nonsense") == ago(None) == ""
