"""@references: what is one and where it ends, what it brings, and that nothing outside of the root is ever read."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_prompt import directories, references
from ollama_prompt.errors import ReferenceFailed
from ollama_prompt.references import expand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST = 200_000
SECRET = "SECRET"

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, links or names")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such files or names")
with_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is what is compared with")


@pytest.fixture(params=["descriptors", "names"])
def repo(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root and current directory, beside a secret; directories are opened, or, as on Windows, only named."""
    if request.param == "names":
        monkeypatch.setattr(directories, "BY_DESCRIPTOR", False)
    elif not directories.BY_DESCRIPTOR:
        pytest.skip("directories cannot be opened here")
    put(tmp_path, {"outside/secret.txt": SECRET, "secret.txt": SECRET})
    folder = Path(os.path.realpath(tmp_path)) / "repo"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write files, with the folders that they lie in; a name that ends in / is a folder."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def link(folder: Path, links: dict[str, str]) -> None:
    """Make symbolic links: what each leads to."""
    for name, target in links.items():
        (folder / name).symlink_to(target)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def brought(prompt: str, root: str | Path = ".", most: int = MOST) -> str:
    """The expanded prompt."""
    return expand(prompt, str(root), most)[0]


def refused(prompt: str, root: str | Path = ".", most: int = MOST) -> ReferenceFailed:
    """The error that a prompt ends in."""
    with pytest.raises(ReferenceFailed) as raised:
        expand(prompt, str(root), most)
    error = raised.value
    assert error.code == "reference_failed"
    assert error.exit_code == 1
    assert error.hint
    assert SECRET not in error.message
    error.message.encode()
    return error


# --- What is a reference -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "", "@", "@@", "@.", "@..", "@...", "@name", "@decorator(x)", "@ ./x", "@~", "@~/x", "@-/x", "@x/y",
        "user@host", "a@b.c", "me@./x", "me@/x", "1@../x", "_@./x", "ü@./x", "f()@./x", "a.@./x", "/@./x", "@@./x",
        "scope/@/x", r"\\@./x", r"a\@./x", "@'x'", '@"x/y"', "@\"'./x", "@ '", "git@github.com:me/x.git",
    ],
)  # fmt: skip
def test_no_reference(prompt: str) -> None:
    assert expand(prompt, "/no/such/root", 1) == (prompt, [])


@given(st.text(st.characters(exclude_characters="/\\")))
@example("@.. @. x@y @")
def test_text_without_a_path_sign_is_unchanged(text: str) -> None:
    assert expand(text, "/no/such/root", 1) == (text, [])


@given(st.text(), st.sampled_from(["a", "Z", "9", "_", "é", "中", ")", "]", "@", "/", "."]), st.text())
def test_nothing_after_a_word_is_a_reference(before: str, last: str, after: str) -> None:
    before, after = before.replace("@", ""), after.replace("@", "")
    text = f"{before}{last}@./{after}"
    assert expand(text, "/no/such/root", 1) == (text, [])


@pytest.mark.parametrize("before", ["", " ", "\n", "\t", "\u3000", *"([{<\"'`,;:=>|*", *"—（「“，。："])  # noqa: RUF001
def test_what_a_reference_may_follow(repo: Path, before: str) -> None:
    put(repo, {"a": "A"})
    assert expand(f"{before}@./a", ".", MOST) == (f"{before}A", ["@./a"])


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        (r"\@./a", "@./a"),
        (r"see \@./a, @./a.", "see @./a, A."),
        (r"@./a,\@./a", "A,@./a"),
        (r'\@"./a"', '@"./a"'),
        (r"\@/etc \@../x", "@/etc @../x"),
        (r"\@name \@ \@~", r"\@name \@ \@~"),
        (r"(\@./a)", "(@./a)"),
    ],
)
def test_a_backslash_means_the_text_itself(repo: Path, prompt: str, meant: str) -> None:
    put(repo, {"a": "A"})
    assert brought(prompt) == meant


def test_references_are_told_as_typed(repo: Path) -> None:
    put(repo, {"a b": "1", "c": "2", "d/e": "3"})
    typed = ['@"./a b"', "@./c", "@./c", '@"./d":search:"3 ?"', "@./d/:tree", "@./d/:search:3", f"@{repo}/c"]
    prompt = " x, ".join(typed)
    assert expand(f"{prompt}.", ".", MOST)[1] == typed


def test_what_a_reference_brings_is_not_looked_through(repo: Path) -> None:
    put(repo, {"a": r"@./b \@./b", "b": "B", "@x": "", "d/@": "@./b"})
    assert brought("@./a @./d/:search:@") == r"@./b \@./b @:1: @./b"


# --- Where it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("See @./a.py.", "See A."),
        ("Why @./a.py?", "Why A?"),
        ("@./a.py...", "A..."),
        ("@./a.py…", "A…"),
        ('"@./a.py"!', '"A"!'),
        ("`@./a.py`:", "`A`:"),
        ("(see [@./a.py])", "(see [A])"),
        ("<@./a.py>,", "<A>,"),
        ("**@./a.py**", "**A**"),
        ("见 @./a.py。", "见 A。"),
        ("“@./a.py”，", "“A”，"),  # noqa: RUF001
        ("@./a.py,@./b", "A,B"),
        ("@./a.py;@./b.", "A;B."),
        ("@./a.py=@./b", "A=B"),
        ("f(@./a.py)(@./b)", "f(A)(B)"),
        ("@./a.py\u3000x", "A\u3000x"),
        ("@./a.py\r\nx", "A\r\nx"),
        ("@./x@y.", "D."),
        ("Is @./a.py's end right?", "Is A's end right?"),
        ("(@./a.py\u2019s)", "(A\u2019s)"),
        ("'@./a.py's'", "'A's'"),
        ("<file>@./a.py</file>", "<file>A</file>"),
        ("<ls>@./:list.</ls>, <f>'@./b'</f>", "<ls>a.py\nb\nx@y.</ls>, <f>'B'</f>"),
    ],
)
def test_punctuation_at_the_end_is_the_sentences(repo: Path, prompt: str, meant: str) -> None:
    put(repo, {"a.py": "A", "b": "B", "x@y": "D"})
    assert brought(prompt) == meant


def test_a_file_of_that_very_name_wins(repo: Path) -> None:
    put(repo, {"a": "1", "a.": "2", "a.)": "3", "d/:list": "4", "d/x": "", "d/:search:x": "5", "e:tree": "6"})
    put(repo, {"it's": "7"})
    put(repo, {} if os.name == "nt" else {"f</g": "8"})
    if os.name != "nt":
        assert brought("@./a.).") == "3."
        assert brought("@./a.)") == "3"
        assert brought("@./a..") == "2."
    assert brought("@./a,") == "1,"
    assert brought("@./d/:list, @./d/:search:x") == "4, 5"
    assert brought("@./e:tree") == "6"
    assert brought("@./it's.") == "7."
    if os.name != "nt":
        assert brought("@./f</g</x>") == "8</x>"


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("@./d/.", "x."),
        ("@./d/...", "x..."),
        ("@./d/..", "d/"),
        ("@./d/..,", "d/,"),
        ("@./.", "d/."),
        ("@./...", "d/..."),
        ("@./", "d/"),
        ("(@./)", "(d/)"),
        ("@./:list.", "d/."),
    ],
)
def test_dots_at_the_end(repo: Path, prompt: str, meant: str) -> None:
    put(repo, {"d/x": ""})
    assert brought(prompt) == meant


def test_what_is_not_there_is_named_without_punctuation(repo: Path) -> None:
    assert "@./nope.py:" in refused("See (@./nope.py).").message
    assert "@./nope.py:" in refused("What is @./nope.py's job?").message
    assert "@./no/..:" not in refused("@./no/...").message
    assert r"\@" in str(refused("@./nope").hint)
    assert "@./<name>.py:" in refused("@./<name>.py").message
    assert '@"./my file.txt"' in str(refused("<file>@./nope</file>").hint)


def test_spaces_in_quotes(repo: Path) -> None:
    put(repo, {"my file.txt": "M", "it's": "I", "my dir/a b": "x y", "a": "A", "b": "B"})
    assert brought('@"./my file.txt".') == "M."
    assert brought("@'./my file.txt':12") == "M:12"
    assert brought('@"./it\'s"') == "I"
    assert brought('@"./my dir":list @"./my dir/":tree') == "a b ./my dir/\n└── a b"
    assert brought('@"./my dir":search:"x y" @\'./my dir\':search:y.') == "a b:1: x y a b:1: x y."
    assert brought('@"./a"@"./b"') == "AB"
    assert brought('@"./my dir":treehouse') == "a b:treehouse"
    assert refused('@"./a.": x').message


@pytest.mark.parametrize("prompt", ['@"./a', "@'./a\n'", '@./:search:"x', "@./:search:'x\n'"])
def test_a_quote_that_is_not_closed(repo: Path, prompt: str) -> None:
    put(repo, {"a": "A"})
    assert "not closed" in refused(prompt).message


def test_a_very_long_run_of_punctuation(repo: Path) -> None:
    refused("@./a" + "." * 100_000)
    refused("@./:search:(" + ")" * 20_000)
    refused("@./:search:" + "[" * 20_000 + ")" * 20_000)
    assert brought("@./:search:x" + "," * 20_000).startswith("(no matches),")


# --- Windows' paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "path"),
    [
        (r"@.\a\b.py", r".\a\b.py"),
        (r"@..\a", r"..\a"),
        (r"@C:\a.py, x", r"C:\a.py"),
        ("@c:/a.py", "c:/a.py"),
        ("@/a", "/a"),
        (r"@C:\a\:tree", "C:\\a\\"),
        (r"@\a", None),
        ("@C:a", None),
    ],
)
def test_path_signs_of_windows(monkeypatch: pytest.MonkeyPatch, prompt: str, path: str | None) -> None:
    monkeypatch.setattr(references, "_SIGN", references._WINDOWS_SIGN)
    monkeypatch.setattr(references, "_SLASHES", "/\\")
    start = references._starts().search(prompt)
    assert (start and references._parse(prompt, start.end(), lambda _: False).path) == path


# --- Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\n", "\n"),
        (b" a\r\nb\rc\t\n\n", " a\r\nb\rc\t\n\n"),
        ("ä€😀\x1b[1m\x7f\x01".encode(), "ä€😀\x1b[1m\x7f\x01"),
        (b"\xef\xbb\xbfA", "A"),
        ("Aä😀\r\n".encode("utf-16"), "Aä😀\r\n"),
        (b"\xfe\xff\x00A", "A"),
    ],
)
def test_a_file_as_it_is(repo: Path, data: bytes, text: str) -> None:
    put(repo, {"a": data})
    assert brought("<@./a>") == f"<{text}>"


@pytest.mark.parametrize(
    "data", [b"a\0b", b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xff\xfeA", b"\xff\xfe\0\xd8", "A\0".encode("utf-16")]
)
def test_a_binary_file_is_refused(repo: Path, data: bytes) -> None:
    put(repo, {"a.bin": data})
    assert "binary" in refused("@./a.bin").message


def test_a_file_that_is_too_long_is_refused(repo: Path) -> None:
    put(repo, {"a": "ä" * 50})
    assert brought("@./a", most=100) == "ä" * 50
    put(repo, {"a": "ä" * 50 + "x" * 5000})
    error = refused("@./a", most=100)
    assert "5,100 bytes" in error.message
    assert "--max-file-bytes 100" in error.message


def test_a_file_that_grows_while_it_is_read(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "x"})
    real = os.read

    def growing(descriptor: int, most: int) -> bytes:
        real(descriptor, most)
        return b"x" * min(most, 10)

    monkeypatch.setattr(os, "read", growing)
    assert "more than --max-file-bytes 1,000" in refused("@./a", most=1000).message


@posix
def test_the_root_of_the_file_system(repo: Path) -> None:
    put(repo, {"a": "x", ".gitignore": "b\n", "b": "x", ".git/": ""})
    assert brought(f"@{repo}/ @./a @{repo}/:search:x", root="/") == ".gitignore\na x a:1: x"


@linux
def test_a_file_that_says_it_is_empty(repo: Path) -> None:
    assert brought("@/proc/version", root="/").startswith("Linux")
    refused("@/proc/self/mem", root="/")


def test_a_file_is_no_directory(repo: Path) -> None:
    put(repo, {"a.py": "A"})
    for prompt in ("@./a.py/", "@./a.py:tree", "@./a.py/:list", "@./a.py:search:x", "@./a.py/b", "@./a.py/."):
        assert "irectory" in refused(prompt).message, prompt


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000, "\ud800"])
def test_names_that_nothing_can_have(repo: Path, name: str) -> None:
    with pytest.raises(ReferenceFailed):
        brought(f'@"./{name}"')
    with pytest.raises(ReferenceFailed):
        brought(f"@./{name}")


@pytest.mark.parametrize("prompt", ["@./a", "@./d/a", "@./d/", "@./:tree", "@./:search:x"])
def test_no_permission(repo: Path, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    put(repo, {"a": "A", "d/a": "A"})
    real: dict[str, Callable[..., Any]] = {"open": os.open, "scandir": os.scandir}

    def denied(call: str) -> Callable[..., Any]:
        def deny(path: Any, *args: Any, **named: Any) -> Any:
            if path != str(repo) and (call == "scandir" or path == "a" or str(path).endswith("/a")):
                raise PermissionError(13, "Permission denied", path)
            return real[call](path, *args, **named)

        return deny

    monkeypatch.setattr(os, "open", denied("open"))
    monkeypatch.setattr(os, "scandir", denied("scandir"))
    assert "Permission denied" in refused(prompt).message


@posix
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_what_may_be_entered_but_not_listed(repo: Path) -> None:
    put(repo, {"d/a": "A"})
    (repo / "d").chmod(0o100 | (0 if hasattr(os, "O_PATH") else 0o400))
    try:
        assert brought("@./d/a") == "A"
    finally:
        (repo / "d").chmod(0o700)


# --- Directories: list, tree, search -------------------------------------------------------------------


def test_a_listing(repo: Path) -> None:
    put(repo, {"d/b.py": "", "d/a": "", "d/B/x": "", "d/.hidden": "", "d/é": "", "d/c/": "", "e/": ""})
    listing = ".hidden\nB/\na\nb.py\nc/\né"
    for prompt in ("@./d", "@./d/", "@./d/:list", "@./d:list"):
        assert brought(prompt) == listing
    assert brought("@./e/ @./e/:tree") == "(empty) ./e/"
    assert brought("@./") == "d/\ne/"


def test_a_tree(repo: Path) -> None:
    put(repo, {"d/b/c/x.py": "", "d/b/y": "", "d/b/c/w/": "", "d/a.py": "", "d/z/q": ""})
    tree = "./d/\n├── a.py\n├── b/\n│   ├── c/\n│   │   ├── w/\n│   │   └── x.py\n│   └── y\n└── z/\n    └── q"
    assert brought("@./d:tree") == brought("@./d/:tree") == tree


def test_a_search(repo: Path) -> None:
    put(repo, {"d/b/x.py": "def main():\r\n  pass\r\n", "d/a": "main\n\nno\nmain", "d/b.py": "Main", "e": "main"})
    assert brought("@./d/:search:main") == "a:1: main\na:4: main\nb/x.py:1: def main():"
    assert brought("@./d:search:(?i)^main") == "a:1: main\na:4: main\nb.py:1: Main"
    assert brought("@./d:search:^$") == "a:2: "
    assert brought("@./d:search:nothing.") == "(no matches)."
    assert brought("@./d:search:pass$") == "b/x.py:2:   pass"


def test_a_search_passes_over_binary_and_long_files(repo: Path) -> None:
    put(repo, {"a": b"x\0", "b": b"x\xff", "c": "x" * 101, "d": "x", "e": "x".encode("utf-16"), "f": ""})
    assert brought("@./:search:x", most=100) == "d:1: x\ne:1: x"


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("foo", "foo"), ("foo.", "foo"), ("foo...", "foo"), ("foo,", "foo"), ("foo!?", "foo"), ("foo).", "foo"),
        (r"foo\(", r"foo\("), (r"foo\()", r"foo\("), (r"foo\(.*\)", r"foo\(.*\)"), (r"foo\(.*\).", r"foo\(.*\)"),
        ("(foo)", "(foo)"), ("(foo))", "(foo)"), ("fo[)o]", "fo[)o]"), ("fo[(o])", "fo[(o]"),
        (r"fo[\])o])", r"fo[\])o]"), ("[^]o)]", "[^]o)]"), ("foo]", "foo"),
        ("foo[0-9]", "foo[0-9]"), ("o{2}", "o{2}"), ("foo}", "foo"),
        (r"foo\.", r"foo\."), (r"foo\\.", r"foo\\"), (".", "."), ("->", "->"), ("foo.*", "foo.*"), ("foo`", "foo"),
        ("foo。", "foo"), ("@/x", "@/x"), ("x,@./b", "x,@./b"), ("foo\"'", "foo"), ('"a b"', "a b"),
        ("'a \"b'", 'a "b'), (r'"a \"b"', r'a \"b'),
    ],
)  # fmt: skip
def test_where_a_pattern_ends(typed: str, pattern: str) -> None:
    prompt = f"@./:search:{typed}"
    assert references._parse(prompt, 1, lambda _: False).pattern == pattern


def test_a_pattern_in_angle_brackets() -> None:
    assert references._parse("<@./:search:x>", 2, lambda _: False).pattern == "x"
    assert references._parse("<x>@./:search:(<b>|y)</x>", 4, lambda _: False).pattern == "(<b>|y)"
    assert references._parse("@./:search:</x>", 1, lambda _: False).pattern == "</x>"


@pytest.mark.parametrize("pattern", ["(", "*", "[", "a{9999999999999}", "(?P<a", "(" * 5000, "(?<=a*)b", "\\"])
def test_no_regular_expression(repo: Path, pattern: str) -> None:
    assert "regular expression" in refused(f"@./:search:{pattern}").message


def test_no_pattern(repo: Path) -> None:
    assert "no pattern" in refused("@./:search: x").message
    assert "no pattern" in refused('@./:search:""').message


def test_a_pattern_that_python_warns_of(repo: Path) -> None:
    put(repo, {"a": "[x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert brought("@./:search:[[x]") == "a:1: [x"


def test_output_that_is_too_long(repo: Path) -> None:
    put(repo, {f"d/{n:04}": "x" for n in range(10)})
    assert len(brought("@./d", most=49)) == 49
    assert brought("@./d:search:1", most=49) == "(no matches)"
    for prompt in ("@./d", "@./d:tree", "@./d:search:x"):
        error = refused(prompt, most=48)
        assert "--max-file-bytes 48" in error.message


def test_an_endless_directory(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"d/": ""})
    monkeypatch.setattr(directories, "scan_entries", lambda _: ((f"{n}", directories.FILE) for n in itertools.count()))
    monkeypatch.setattr(references, "_MOST_ENTRIES", 1000)
    for prompt in ("@./d", "@./d:tree", "@./d:search:x"):
        assert "more than 1,000" in refused(prompt, most=1000).message


def test_deep_folders(repo: Path) -> None:
    put(repo, {"d/" + "x/" * 100 + "f": "found"})
    assert brought("@./d/:search:found").endswith("f:1: found")
    assert brought("@./d/:tree").endswith("└── f")
    put(repo, {"d/" + "x/" * 150 + "f": "found"})
    for mode in ("tree", "search:found"):
        assert "nested more than 100 deep" in refused(f"@./d/:{mode}").message
    assert brought("@./d/" + "x/" * 150 + "f") == "found"


@linux
def test_names_that_are_no_text(repo: Path) -> None:
    for name in (b"caf\xe9", b"a\nb", b"c\rd", "😀\x1b[1m".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(repo), name))).write_bytes(b"x")
    assert brought("@./") == "a\\nb\nc\\rd\ncaf\\udce9\n😀\x1b[1m"
    assert brought("@./:search:x").count("\n") == 3
    brought("@./ @./:tree @./:search:x").encode()


def test_what_vanishes_during_a_walk_is_left_out(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "x", "b": "x", "c/d": "x", "e/f": "x"})
    real = references._Reader._entries

    def entries(reader: Any, folder: Any, *args: Any) -> Any:
        found = real(reader, folder, *args)
        for name in ("a", "c"):
            if (repo / name).exists():
                remove(repo / name)
        return found

    monkeypatch.setattr(references._Reader, "_entries", entries)
    assert brought("@./:search:x") == "b:1: x\ne/f:1: x"


# --- Only inside the root ------------------------------------------------------------------------------


def test_relative_to_the_current_directory(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "root", "sub/a": "sub", "sub/deep/": ""})
    monkeypatch.chdir(repo / "sub")
    assert brought("@./a @../a", root="..") == "sub root"
    assert brought(f"@{repo}/a @{repo}/sub/../a @./deep/../a", root="..") == "root root sub"
    refused("@../a")
    refused("@../../secret.txt", root="..")


def test_elsewhere_it_is_relative_to_the_root(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "root", "sub/b": "sub"})
    monkeypatch.chdir(repo.parent)
    assert brought("@./a @./sub/../a @./sub", root="repo") == "root root b"
    assert brought("@./repo/a", root="repo") == "root"  # from here, that is inside
    refused("@./secret.txt", root="repo")
    refused("@../secret.txt", root="repo")


@posix
def test_a_current_directory_that_is_gone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "root", "gone/": ""})
    monkeypatch.chdir(repo / "gone")
    (repo / "gone").rmdir()
    assert brought("@./a", root=repo) == "root"


def test_a_root_that_is_none(repo: Path) -> None:
    put(repo, {"a": ""})
    for root in ("nope", "a", "a\0"):
        refused("@./a", root=root)


OUTSIDE = [
    "../secret.txt", "../outside/", "../outside/:tree", "../outside/secret.txt", "../", "..//secret.txt",
    "./../secret.txt", "./d/../../secret.txt", "./././../secret.txt", "../repo/../secret.txt",
    "../repo-evil/secret.txt", "../repo-evil/", "{above}/secret.txt", "{above}/repo-evil/secret.txt",
    "{above}/repo/../secret.txt", "{above}/",
    "/etc/passwd", "/", "//etc/passwd", "/nope", "{above}/repo-evil/:search:S", "./d/../../", "../outside/:search:S",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_outside_of_the_root(repo: Path, path: str) -> None:
    put(repo, {"d/x": "", "../repo-evil/secret.txt": SECRET})
    prompt = path.format(above=repo.parent)
    assert "leads out of" in refused(f"@{prompt}").message
    assert "--repo-root" in str(refused(f"@{prompt}").hint)
    if ":" not in path:
        assert "leads out of" in refused(f'@"{prompt}"').message


def test_an_absolute_path_inside(repo: Path) -> None:
    put(repo, {"a": "A"})
    assert brought(f"@{repo}/a @{repo}/:list @{repo}//./a") == "A a A"
    assert brought(f"@{repo.parent}/repo-evil/../repo/a @../repo/a") == "A A"


@posix
def test_a_root_behind_a_link(repo: Path) -> None:
    put(repo, {"a": "A"})
    link(repo.parent, {"link": "repo"})
    root = repo.parent / "link"
    assert brought(f"@./a @{root}/a @{repo}/a", root=root) == "A A A"
    refused(f"@{root}/../secret.txt", root=root)


@posix
def test_links_that_stay_inside(repo: Path) -> None:
    put(repo, {"a": "A", "d/x": "X", "e/": ""})
    link(repo, {"e/file": "../a", "e/folder": "../d", "chain": "e/file", "chain2": "chain"})
    link(repo, {"abs": f"{repo}/a", "e/out-and-in": "../../repo/a"})
    assert brought("@./e/file @./chain2 @./abs @./e/folder/x @./e/out-and-in") == "A A A X A"
    assert brought("@./e/folder/") == brought("@./e/folder:list") == "x"
    assert brought("@./e/folder/../a") == "A", "as the operating system reads it"
    assert brought("@./e/") == "file\nfolder/\nout-and-in"
    tree = "./e/\n├── file -> ../a\n├── folder/ -> ../d/\n└── out-and-in -> ../a"
    assert brought("@./e:tree") == tree
    assert brought("@./e:search:.").splitlines() == ["file:1: A", "out-and-in:1: A"]


@posix
def test_links_that_lead_out(repo: Path) -> None:
    put(repo, {"a": "A", "d/": ""})
    link(repo, {"file": "../secret.txt", "folder": "../outside", "abs": f"{repo.parent}/secret.txt", "d/up": "../.."})
    link(repo, {"chain": "d/up/secret.txt", "dangling": "../nope", "root": "/", "proc": "/proc/self/environ"})
    for path in (
        "file", "folder", "folder/", "folder/secret.txt", "folder:tree", "folder/:search:S", "folder/../secret.txt",
        "abs", "d/up", "d/up/secret.txt", "d/up/outside/secret.txt", "chain", "dangling", "root", "root/etc/passwd",
        "proc",
    ):  # fmt: skip
        assert "leads out of" in refused(f"@./{path}").message, path
    assert brought("@./") == "a\nd/"
    assert brought("@./:tree") == "./\n├── a\n└── d/"
    assert brought(f"@./:search:{SECRET}") == "(no matches)"


@posix
def test_links_that_lead_nowhere(repo: Path) -> None:
    put(repo, {"a": "A"})
    link(repo, {"dangling": "nope", "self": "self", "one": "two", "two": "one", "up": "."})
    put(repo, {"chain/": ""})
    link(repo / "chain", {f"{n}": f"{n - 1}" for n in range(1, 1500)} | {"0": "../a"})
    put(repo, {"end/": ""})
    link(repo / "end", {"link": "../chain/1499"})
    for path in ("dangling", "self", "self/x", "one", "one/", "up/self"):
        assert "cannot read" in refused(f"@./{path}").message
    with suppress(ReferenceFailed):  # some versions of Python resolve it
        assert brought("@./end/link") == "A"
    assert brought("@./up/up/a") == "A"
    brought("@./end/:tree @./end/:search:A")
    remove(repo / "chain")
    remove(repo / "end")
    assert brought("@./:tree") == "./\n├── a\n└── up/ -> ./"
    assert brought("@./:search:A") == "a:1: A"


@posix
def test_a_search_does_not_reach_what_is_left_out_through_a_link(repo: Path) -> None:
    ignore = "secret\n/hidden/\n"
    put(repo, {".git/config": "x", ".gitignore": ignore, "secret": "x", "hidden/a/b": "x", "shown/a": "x", "d/": ""})
    link(repo / "d", {"1": "../.git/config", "2": "../secret", "3": "../hidden/a/b", "4": "../shown/a"})
    link(repo / "d", {"5": "../hidden", "6": "../hidden/a"})
    assert brought("@./d/:search:x") == "4:1: x"


# --- Only files and directories ------------------------------------------------------------------------


@posix
def test_special_files_are_refused_and_nothing_waits(repo: Path) -> None:
    os.mkfifo(repo / "fifo")
    os.mkfifo(repo / ".gitignore")
    put(repo, {"a": "A"})
    link(repo, {"link": "fifo"})
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in ("fifo", "link", "socket", ".gitignore"):
            assert "neither a file nor a directory" in refused(f"@./{path}").message
        assert brought("@./") == "a"
        assert brought("@./:search:A") == "a:1: A"


@posix
@pytest.mark.parametrize("device", ["zero", "null", "random", "tty", "full"])
def test_devices_are_refused(repo: Path, device: str) -> None:
    if not os.path.exists(f"/dev/{device}"):
        pytest.skip("no such device here")
    assert "neither a file nor a directory" in refused(f"@/dev/{device}", root="/").message
    link(repo, {"link": f"/dev/{device}"})
    assert "leads out of" in refused("@./link").message


@posix
def test_a_file_that_becomes_a_fifo_is_refused(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"a": "A"})

    def swap() -> None:
        (repo / "a").unlink()
        os.mkfifo(repo / "a")

    before(monkeypatch, "_open", swap)
    assert "neither a file nor a directory" in refused("@./a").message


# --- Races: what is checked is what is read ---------------------------------------------------------------


def before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Do something once, right before a method of an open folder."""
    once = iter([act])
    for kind in (directories.Folder, directories.NamedFolder):
        real = getattr(kind, name)

        def call(folder: Any, *args: Any, real: Any = real) -> Any:
            next(once, lambda: None)()
            return real(folder, *args)

        monkeypatch.setattr(kind, name, call)


@posix
@pytest.mark.parametrize("moment", ["status", "_open"])
def test_a_file_that_becomes_a_link(repo: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    put(repo, {"a": "A"})

    def swap() -> None:
        (repo / "a").unlink()
        link(repo, {"a": "../secret.txt"})

    before(monkeypatch, moment, swap)
    assert "cannot read @./a" in refused("@./a").message


@posix
@pytest.mark.parametrize("prompt", ["@./d/secret.txt", "@./d/", "@./d/:tree", "@./d/:search:."])
def test_a_folder_that_becomes_a_link(repo: Path, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    put(repo, {"d/secret.txt": "A"})

    def swap() -> None:
        (repo / "d").rename(repo / "aside")
        link(repo, {"d": "../outside"})

    before(monkeypatch, "below", swap)
    assert "cannot read @./d" in refused(prompt).message


CALLS = ("open", "stat", "lstat", "fstat", "scandir", "readlink", "read", "close")


@contextmanager
def at_calls(acts: dict[int, Callable[[], None]]) -> Iterator[list[str]]:
    """Do something right before the calls of the operating system with these numbers."""
    made: list[str] = []

    def counting(name: str, real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            acts.pop(len(made), lambda: None)()
            made.append(name)
            return real(*args, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(name, getattr(os, name)))
        yield made


@posix
@pytest.mark.parametrize(
    "prompt", ["@./d/e/f", "@./d/e/", "@./d/:tree", "@./d/:search:.", "@./:search:.", "@./link/f", "@./link/:tree"]
)
@pytest.mark.parametrize("swapped", ["d", "d/e", "d/e/f"])
@pytest.mark.parametrize("steps", [None, 1, 2])
def test_swapped_at_any_moment(repo: Path, prompt: str, swapped: str, steps: int | None) -> None:
    """Whenever something becomes a link that leads out, and is put back some steps later: nothing outside is read."""
    put(repo, {"../evil/e/f": SECRET, "../evil/e/hidden": "", ".gitignore": "x", "d/.gitignore": "y", "d/e/f": "A"})
    link(repo, {"link": "d/e"})
    path, aside, evil = repo / swapped, repo.parent / "aside", repo.parent / f"evil{swapped[1:]}"

    def swap() -> None:
        path.rename(aside)
        path.symlink_to(evil)

    def put_back() -> None:
        path.unlink()
        aside.rename(path)

    for number in itertools.count():
        acts = {number: swap} if steps is None else {number: swap, number + steps: put_back}
        with at_calls(acts) as made:
            try:
                text = brought(prompt)
            except ReferenceFailed as error:
                text = error.message
        assert SECRET not in text, made
        # Where a directory is only named, it can be another one just while it is listed: names are not protected.
        assert "hidden" not in text or (steps and not directories.BY_DESCRIPTOR), made
        if len(made) <= number:
            break
        if aside.exists():
            put_back()
    assert number > 5


# --- Any path, any text ----------------------------------------------------------------------------------

STEPS = st.sampled_from(
    ["..", ".", "d", "link", "up", "a", "secret.txt", "outside", "repo", "repo-evil", "", "...", "d:list", ":tree", "x"]
)


@pytest.fixture(scope="module")
def maze() -> Iterator[Path]:
    """A root with links that lead everywhere, beside secrets."""
    with tempfile.TemporaryDirectory() as made:
        above = Path(os.path.realpath(made))
        put(above, {"secret.txt": SECRET, "outside/secret.txt": SECRET, "repo-evil/secret.txt": SECRET, "repo/a": "A"})
        put(above, {"repo/d/a": "A", "repo/d/secret.txt": "mine", "repo/secret.txt": "mine"})
        if sys.platform != "win32":
            link(above / "repo", {"link": "d", "up": "..", "d/up": "../..", "d/link": "../link", "x": "../secret.txt"})
        yield above / "repo"


SIGNS = st.sampled_from(["./", "../", "/", "{root}/", "{above}/"])
MODES = st.sampled_from(["", "/", ":tree", ":search:."])


@given(SIGNS, st.lists(STEPS, max_size=8), MODES)
def test_no_path_leads_out(maze: Path, sign: str, steps: list[str], mode: str) -> None:
    path = sign.format(root=maze, above=maze.parent) + "/".join(steps) + mode
    for root, here in ((maze, maze), (maze, maze / "d"), (maze, maze.parent), (maze / "d", maze)):
        with at(here), suppress(ReferenceFailed):
            assert SECRET not in brought(f"@{path}", root=root)


@contextmanager
def at(folder: Path) -> Iterator[None]:
    """With this current directory."""
    previous = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)


PIECES = st.sampled_from(
    ["@", "./", "../", "/", "@./", "@../", "@/", "\\", '"', "'", ":search:", ":list", ":tree", ".", ",", " ", "a", "d",
     "(", ")", "[", "*", "\0", "\ud800", "\udcff", "é", "\n", "link", "up", "~", "@./a", "@./d/", "secret.txt"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map("".join))
def test_any_text_is_expanded_or_refused(maze: Path, text: str) -> None:
    with at(maze):
        try:
            expanded, found = expand(text, ".", MOST)
        except ReferenceFailed:
            return
    assert SECRET not in expanded
    assert all(typed in text for typed in found)
    if not found:
        assert expanded == text or "\\@" in text


# --- .gitignore ------------------------------------------------------------------------------------------


def files(prompt: str = "@./:search:^x$", root: Path | str = ".") -> list[str]:
    """The paths that a search of files that say x finds."""
    found = brought(prompt, root)
    return [] if found == "(no matches)" else [line.rpartition(":1: ")[0] for line in found.splitlines()]


def test_git_and_what_gitignore_names_are_left_out(repo: Path) -> None:
    ignore = "# comment\n*.log\n!keep.log\nbuild/\n/top\na/*.o\n\n"
    put(repo, {".git/config": "x", ".gitignore": ignore, ".hidden": "x", "x.log": "x", "keep.log": "x"})
    put(repo, {"build/x": "x", "sub/build/x": "x", "sub/build2": "x", "top": "x", "sub/top": "x"})
    put(repo, {"a/x.o": "x", "sub/a/x.o": "x"})
    kept = [".hidden", "keep.log", "sub/a/x.o", "sub/build2", "sub/top"]
    assert files() == kept
    assert brought("@./") == ".gitignore\n.hidden\na/\nkeep.log\nsub/"
    assert "build/" not in brought("@./:tree")
    assert brought("@./sub/") == "a/\nbuild2\ntop"


def test_deeper_files_override(repo: Path) -> None:
    put(repo, {".gitignore": "*.o\n/d/y\n", "d/.gitignore": "!*.o\nz\n", "d/e/.gitignore": "*.o\n!z\n"})
    put(repo, {f"{folder}{name}": "x" for folder in ("", "d/", "d/e/") for name in ("a.o", "y", "z")})
    assert files() == ["d/a.o", "d/e/y", "d/e/z", "y", "z"]
    assert files("@./d/e/:search:^x$") == ["y", "z"]


def test_a_folder_that_is_ignored_is_shown_when_it_is_named(repo: Path) -> None:
    put(repo, {".git/HEAD": "x", ".gitignore": "build/\n*.o\n", "build/a": "x", "build/b.o": "x", "build/c/d": "x"})
    assert brought("@./build") == "a\nc/"
    assert files("@./build/c/:search:x") == ["d"]
    assert brought("@./build/b.o") == "x", "a file that is named is read"
    assert brought("@./.git/") == "HEAD"


def test_rules_from_above_the_root(repo: Path) -> None:
    put(repo, {"../.gitignore": "*\n", ".git/HEAD": "", ".gitignore": "*.o\n/sub/y\n", "sub/.gitignore": "z\n"})
    put(repo, {"sub/d/a.o": "x", "sub/x": "x", "sub/y": "x", "sub/d/y": "x", "sub/d/z": "x"})
    assert files("@./sub/:search:^x$", root="sub") == ["d/y", "x"]


def test_without_a_repository_rules_begin_at_the_root(repo: Path) -> None:
    put(repo, {".gitignore": "*\n", "sub/.gitignore": "z\n", "sub/d/x": "x", "sub/d/z": "x"})
    assert files("@./sub/d/:search:x", root="sub") == ["x"]
    put(repo, {"sub/d/.git": ""})
    assert files("@./sub/d/:search:x", root="sub") == ["x", "z"], "a repository of its own"


def test_odd_gitignores(repo: Path) -> None:
    ignore = b"\xef\xbb\xbfa\r\nb  \n\\#c\n[\n\\\n!\n/\ncaf\xe9\n\\!d"
    put(repo, {".gitignore": ignore, "a": "x", "b": "x", "#c": "x", "!d": "x", "e/.gitignore/x": "x", "f": "x"})
    assert files() == ["e/.gitignore/x", "f"]


@linux
def test_white_space_at_the_end_of_a_line(repo: Path) -> None:
    put(repo, {".gitignore": b"Icon\r\r\na\t\r\nb\\  \nc\\\t\nsp \r\n\xc3\xa0\n?y\n \n\t\n"})
    ignored = ["Icon\r", "a\t", "b ", "c\t", "sp", "\u00e0", "xy"]
    kept = ["Icon/x", "a", "b", "c", "\u00c3", "\u00e9y"]
    put(repo, {"Icon\r": "x", **dict.fromkeys([*ignored, *kept], "x")})
    assert files() == sorted(kept)


@posix
def test_a_gitignore_that_is_a_link_is_none(repo: Path) -> None:
    put(repo, {"rules": "a\n", "a": "x", ".gitignore": ""})
    (repo / ".gitignore").unlink()
    link(repo, {".gitignore": "rules"})
    assert files() == ["a"]


def test_a_gitignore_that_cannot_be_read(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repo, {"d/.gitignore": "a\n", "d/e/a": "x"})
    real = directories.Folder.read

    def read(folder: Any, name: str, most: int) -> bytes:
        if name == ".gitignore":
            raise PermissionError(13, "Permission denied", os.path.join(folder.path, name))
        return real(folder, name, most)

    monkeypatch.setattr(directories.Folder, "read", read)
    assert "@./:tree: d/.gitignore: Permission denied" in refused("@./:tree").message.replace(os.sep, "/")
    assert os.path.join(repo, "d", ".gitignore") in refused("@./d/e").message


def git(folder: Path, *args: str) -> str:
    """What git says, without a configuration of the user."""
    nowhere = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "XDG_CONFIG_HOME": os.devnull}
    done = subprocess.run(["git", *args], cwd=folder, env=os.environ | nowhere, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


NAME = st.sampled_from(["a", "b", "ab", "a.o", "b.o", "src"])
PARTS = st.sampled_from(["a", "b", "ab", "*", "**", "a*", "*.o", "?", "*b*", "src", "[ab]", "[!a]", "a.o"])
PATTERN = st.builds(
    lambda negated, slash, parts, folder: negated + slash + "/".join(parts) + folder,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)
FOLDERS = st.lists(st.lists(NAME, max_size=3).map("/".join), min_size=1, max_size=6)
IGNORES = st.dictionaries(st.integers(0, 9), st.lists(PATTERN, min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def repository() -> Iterator[Path]:
    """A git repository whose files a test makes anew."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(os.path.realpath(made))
        git(folder, "init", "-q", ".")
        yield folder


@with_git
@given(FOLDERS, st.lists(NAME, min_size=1, max_size=8), IGNORES)
@example(["src/a", "src/b"], ["a", "a.o"], {0: ["src/**", "!src/**/", "!src/**/*.o"]})
@example(["src", "a"], ["a.o", "b"], {0: ["*", "!*/", "!*.o"]})
@example(["src/a"], ["b"], {0: ["a/", "!src/"]})
def test_what_git_would_leave_out(
    repository: Path, folders: list[str], names: list[str], ignores: dict[int, list[str]]
) -> None:
    for entry in repository.iterdir():
        if entry.name != ".git":
            remove(entry)
    made = [repository]
    for name in set(folders) - {""}:
        (repository / name).mkdir(parents=True, exist_ok=True)
        made.append(repository / name)
    for path in [folder / name for folder, name in itertools.product(made, names)]:
        if not path.exists():
            path.write_text("x")
    for number, lines in ignores.items():
        (made[number % len(made)] / ".gitignore").write_text("x\n" + "\n".join(lines))
    expected = sorted(git(repository, "ls-files", "-co", "--exclude-standard", "-z").split("\0")[:-1])
    with at(repository):
        assert sorted(files()) == expected


# --- What it costs -----------------------------------------------------------------------------------------


def test_pathspec_is_imported_for_a_gitignore_only(tmp_path: Path) -> None:
    put(tmp_path, {"a": "A", "d/x": "", "e/.gitignore": "x\n"})
    code = (
        "import sys; from ollama_prompt.references import expand; seen = lambda: print('pathspec' in sys.modules);"
        "expand('a@b.c', '.', 9); seen(); expand('@./a', '.', 9); seen(); expand('@./d', '.', 9); seen();"
        "expand('@./e', '.', 99); seen()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().split() == ["False", "False", "False", "True"]


@linux
def test_no_descriptor_is_left_open(repo: Path) -> None:
    put(repo, {"a": "A" * 200, "b": b"\0", "d/.gitignore": "y", "d/e/f": "A"})
    link(repo, {"d/link": "../a"})
    before = len(os.listdir("/proc/self/fd"))
    paths = ("a", "b", "nope", "d", ":tree", ":search:A", ":search:(", "d/e/f/x", "d/link")
    for path, most in itertools.product(paths, (10, 100, 1000)):
        with suppress(ReferenceFailed):
            brought(f"@./{path}", most=most)
    assert len(os.listdir("/proc/self/fd")) == before


def test_flags_of_a_file_do_not_wait_or_follow() -> None:
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"):
        flag = getattr(os, name, 0)
        assert directories.OPEN_FILE & flag == flag
    assert stat.S_ISREG(os.stat(__file__).st_mode)
