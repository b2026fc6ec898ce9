"""@references in a prompt → the text of what they name.

    Why does @./app.py fail?        the file's text, nothing added
    @./src/  or  @./src/:list       its entries, one a line
    @./src/:tree                    everything below, drawn as a tree
    @./src/:search:TODO             lines that match a regular expression, as path:line: text
    @"./my file.txt"                a path, or a pattern, with spaces
    \\@./app.py                      the text @./app.py itself

A reference is `@` and a path sign (./ ../ /), not after a word: `me@host`, `@name` and `@media` are text. It ends
at white space or where the next one starts; punctuation at its end, an 's or a </tag> belongs to the sentence, unless
a file has that very name. What a reference brings is not looked through for references.

- Nothing outside of the root is read, but for .gitignore files above it. A path is resolved, must lie inside, and is
  then opened step by step from an open root (`directories`): what has become a link meanwhile is refused.
- Nothing is shortened: what cannot be read, is binary, or is longer than allowed is `ReferenceFailed`, and no output
  or directory is held in memory beyond that length. Only a search passes over binary and too long files.
- .git, what .gitignore names, and links that lead out of the root or nowhere are left out of listings, trees and
  searches. Each directory is read through the descriptor that was checked. Links to directories are not descended.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from contextlib import closing, contextmanager

from ollama_prompt.directories import FILE, FOLDER, GONE, LINK, NotAFile, is_inside, open_folder
from ollama_prompt.errors import ReferenceFailed
from ollama_prompt.gitignore import Rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ollama_prompt.directories import Folder

_LITERALLY = "write \\@ to mean the text itself"
_DEEPEST = 100
"""Folders below the named one: each holds a descriptor while it is walked, and macOS gives a process 256."""
_MOST_ENTRIES = 1_000_000
"""In one directory of a search, which has to be sorted in memory."""
_LONGEST_NAME = 255
_LONGEST_BRACKETS = 1000
"""Of a pattern whose brackets are counted, which takes the square of its length."""


class _Refused(Exception):
    """Why a reference is not read, to follow its name in a sentence."""

    def __init__(self, reason: str, hint: str = _LITERALLY) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def expand(text: str, root: str, max_bytes: int) -> tuple[str, list[str]]:
    """The prompt with its @references replaced by what they name, and the references as typed ("@./a.py").

    Raises `ReferenceFailed`.
    """
    starts = _starts()
    if not starts.search(text):
        return text, []
    pieces, typed, at = [], [], 0
    with _opened_root(root, max_bytes) as reader:
        while start := starts.search(text, at):
            pieces.append(text[at : start.start()])
            if start["escape"]:
                pieces.append("@")
                at = start.end()
                continue
            reference = _parse(text, start.end(), reader.exists)
            pieces.append(reader.read(reference))
            typed.append(reference.typed)
            at = reference.end
    return "".join([*pieces, text[at:]]), typed


# --- What is written: text → references --------------------------------------------------------------

_POSIX_SIGN = r"\.{0,2}/"
_WINDOWS_SIGN = r"(?:\.{0,2}/|\.{1,2}\\|[A-Za-z]:[/\\])"
_SIGN = _WINDOWS_SIGN if os.name == "nt" else _POSIX_SIGN
_SLASHES = "/\\" if os.name == "nt" else "/"
_QUOTES = "\"'"

_BEFORE = "([{<\"'`,;:=>|*–—（【「『《〈“‘„«，。、；：！？"  # noqa: RUF001
"""What a reference may follow, besides white space."""
_SENTENCE = ".,;:!?\"'`…，。、；：！？）】」』》〉”’»"  # noqa: RUF001
"""Punctuation at the end of a path or pattern that is the sentence's."""
_AFTER_PATH = _SENTENCE + ")]}>" + _BEFORE
_PAIRS = {")": "(", "]": "[", "}": "{"}


class _Reference:
    """One reference: `mode` is "" (what the path turns out to be), "list", "tree" or "search"."""

    __slots__ = ("end", "mode", "path", "pattern", "typed")

    def __init__(self, text: str, at: int, path: str, mode: str, end: int) -> None:
        self.path = path
        self.mode = mode
        self.pattern = ""
        self.end = end
        if mode == "search":
            self.pattern, self.end = _parse_pattern(text, end, text[max(at - 2, 0) : at - 1])
        self.typed = text[at - 1 : self.end]


def _starts() -> re.Pattern[str]:
    """Finds the @ of a reference, or its escape; a path sign is ahead of its end."""
    return re.compile(rf"(?<![^\s{re.escape(_BEFORE)}])(?P<escape>\\?)@(?=[{_QUOTES}]?{_SIGN})")


def _parse(text: str, at: int, exists: Callable[[str], bool]) -> _Reference:
    """The reference whose @ stands right before `at`. Raises `ReferenceFailed` for a quote that is not closed."""
    if text[at] in _QUOTES:
        return _parse_quoted(text, at)
    run = re.compile(rf"(?:(?!{_starts().pattern})\S)+").match(text, at)
    token = run.group() if run else ""
    path = token
    for path in _candidates(token):
        if exists(path):
            return _Reference(text, at, path, "", at + len(path))
    folder, search, _ = token.partition(":search:")
    if search:
        return _Reference(text, at, folder, "search", at + len(folder + search))
    for mode in ("list", "tree"):
        if path.endswith(f":{mode}"):
            return _Reference(text, at, path.removesuffix(f":{mode}"), mode, at + len(path))
    return _Reference(text, at, path, "", at + len(path))


def _parse_quoted(text: str, at: int) -> _Reference:
    close = text.find(text[at], at + 1)
    path = text[at + 1 : close]
    if close < 0 or "\n" in path:
        line = text[at : at + 60].partition("\n")[0]
        raise ReferenceFailed(f"the quote in @{line} is not closed", hint=_LITERALLY)
    mode = re.compile(r":(?P<search>search):|:(?P<other>list|tree)(?!\w)").match(text, close + 1)
    if not mode:
        return _Reference(text, at, path, "", close + 1)
    return _Reference(text, at, path, mode["search"] or mode["other"], mode.end())


def _candidates(token: str) -> Iterator[str]:
    """The token, and what is left of it as its end is given to the sentence. `dir/.` means dir/ and a full stop."""
    sign = re.match(_SIGN, token)
    bare = token.partition("</")[0].rstrip(_AFTER_PATH)  # as in <file>@./a.py</file>
    bare = bare.removesuffix("'s").removesuffix("\u2019s")
    shortest = max(sign.end() if sign else 0, len(bare))
    for end in range(min(len(token), shortest + _LONGEST_NAME), shortest - 1, -1):
        if not _ends_in_full_stop(token, end):
            yield token[:end]


def _ends_in_full_stop(token: str, end: int) -> bool:
    """Whether there is a dot before `end` that can be no part of a path: in `dir/.`, in the midst of `dir/...`."""
    dots = end - len(token[:end].rstrip("."))
    if not dots:
        return False
    if token[end - dots - 1] in _SLASHES:
        return dots == 1 or (dots == 2 and token[end : end + 1] == ".")
    return os.name == "nt"  # where `a.py.` is another way to write `a.py`


def _parse_pattern(text: str, at: int, before: str) -> tuple[str, int]:
    """The pattern at this place, and where it ends; `before` is what stands before the reference."""
    quoted = re.compile(r"""(["'])((?:\\.|(?!\1)[^\\\n])*)\1""").match(text, at)
    if quoted:
        return quoted[2], quoted.end()
    run = re.compile(r"(?:(?!</)\S)*" if before == ">" else r"\S*").match(text, at)  # <x>@./:search:y</x>
    pattern = run.group() if run else ""
    if pattern[:1] in {'"', "'"}:
        message = f"the quote in :search:{pattern[:60]} is not closed"
        raise ReferenceFailed(message, hint="a \\ before a quote searches for the quote")
    end = len(pattern)
    while end and len(pattern) - end < _LONGEST_NAME and _is_the_sentences(pattern[:end], before):
        end -= 1
    pattern = pattern[: end or len(pattern)]
    return pattern, at + len(pattern)


def _is_the_sentences(pattern: str, before: str) -> bool:
    """Whether the last character is punctuation around the pattern. If it was meant, more is found, never less."""
    last, rest = pattern[-1], pattern[:-1]
    if (len(rest) - len(rest.rstrip("\\"))) % 2:
        return False
    if last in _SENTENCE:
        return True
    if last == ">":  # `->` is searched for as well
        return before == "<"
    if last not in _PAIRS or len(pattern) > _LONGEST_BRACKETS:
        return False
    without_sets = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", pattern)
    return without_sets.endswith(last) and without_sets.count(last) > without_sets.count(_PAIRS[last])


# --- What is named: references → text ------------------------------------------------------------------


@contextmanager
def _opened_root(root: str, max_bytes: int) -> Iterator[_Reader]:
    try:
        folder = open_folder(os.path.realpath(root))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ReferenceFailed(f"cannot read {root!r}: {reason}", hint="--repo-root names a directory") from None
    with closing(folder):
        yield _Reader(folder, max_bytes)


class _Reader:
    """Reads references inside of one open root."""

    __slots__ = ("max_bytes", "root")

    def __init__(self, root: Folder, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes

    def exists(self, path: str) -> bool:
        """Whether something has this very name."""
        return os.path.lexists(self._located(path))

    def read(self, reference: _Reference) -> str:
        """The text that a reference names. Raises `ReferenceFailed`, for foreign errors too."""
        hint = _LITERALLY
        try:
            return self._content(reference)
        except _Refused as error:
            raise ReferenceFailed(f"{reference.typed} {error.reason}", hint=error.hint) from None
        except NotAFile:
            reason = "it is neither a file nor a directory"
        except RecursionError:  # os.path.realpath follows a chain of links by recursion
            reason = os.strerror(errno.ELOOP)
        except FileNotFoundError as error:
            reason = self._reason(error, reference)
            hint = f'quotes say where a path ends: @"./my file.txt"; {_LITERALLY}'
        except OSError as error:
            reason = self._reason(error, reference)
        except ValueError:  # a NUL, or half of a surrogate pair
            reason = "nothing can have this name"
        raise ReferenceFailed(f"cannot read {reference.typed}: {reason}", hint=hint)

    def _reason(self, error: OSError, reference: _Reference) -> str:
        """What the operating system said, and of what, unless that is the path as it was typed or a part of it."""
        reason, path = error.strerror or str(error), error.filename
        named = os.path.realpath(self._located(reference.path))
        if not isinstance(path, str) or is_inside(named, path):
            return reason
        return f"{_shown(os.path.relpath(path, named) if is_inside(path, named) else path)}: {reason}"

    def _located(self, path: str) -> str:
        """A path as typed → from the current directory; if that leads out of the root, from the root."""
        try:
            here = os.path.join(os.getcwd(), path)
        except OSError:  # the current directory was removed
            here = path
        return here if is_inside(os.path.normpath(here), self.root.path) else os.path.join(self.root.path, path)

    def _content(self, reference: _Reference) -> str:
        path = os.path.realpath(self._located(reference.path))
        if not is_inside(path, self.root.path):
            hint = f"--repo-root says how far references may lead; {_LITERALLY}"
            raise _Refused(f"leads out of {self.root.path}", hint)
        if self._is_folder(path):
            with self._opened(path) as folder:
                return self._folder_content(folder, reference)
        if reference.mode or reference.path.endswith(tuple(_SLASHES)):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._file_content(path)

    def _is_folder(self, path: str) -> bool:
        if path == self.root.path:
            return True
        with self._opened(os.path.dirname(path)) as folder:
            return stat.S_ISDIR(folder.status(os.path.basename(path)).st_mode)

    @contextmanager
    def _opened(self, path: str) -> Iterator[Folder]:
        """The directory at a resolved path inside the root, opened step by step."""
        folder = self.root
        try:
            for name in filter(None, path[len(self.root.path) :].split(os.sep)):
                folder, above = folder.below(name), folder
                if above is not self.root:
                    above.close()
            yield folder
        finally:
            if folder is not self.root:
                folder.close()

    def _file_content(self, path: str) -> str:
        with self._opened(os.path.dirname(path)) as folder:
            data = folder.read(os.path.basename(path), self.max_bytes + 1)
            size = folder.status(os.path.basename(path)).st_size
        if len(data) > self.max_bytes:
            has = f"has {size:,} bytes, more" if size > self.max_bytes else "has more"
            raise _Refused(f"{has} than --max-file-bytes {self.max_bytes:,}", "--max-file-bytes can be raised")
        try:
            return _decode(data)
        except ValueError:
            raise _Refused("is binary, not text") from None

    def _folder_content(self, folder: Folder, reference: _Reference) -> str:
        lines = _Lines(self.max_bytes)
        rules = self._rules(folder.path)
        if reference.mode == "tree":
            self._draw_tree(folder, rules, reference, lines)
        elif reference.mode == "search":
            self._search(folder, rules, _compiled(reference.pattern), lines)
        else:
            for entry in self._entries(folder, rules, self.max_bytes):
                lines.add(entry.shown)
        return lines.text or ("(no matches)" if reference.mode == "search" else "(empty)")

    def _draw_tree(self, folder: Folder, rules: Rules, reference: _Reference, lines: _Lines) -> None:
        lines.add(reference.path.rstrip(_SLASHES) + "/")
        stems: list[str] = []
        with closing(self._walk(folder, rules, self.max_bytes)) as walk:
            for within, path, entry, is_last in walk:
                del stems[path.count("/") :]
                target = f" -> {entry.target_from(within.path)}" if entry.kind == LINK else ""
                lines.add("".join(stems) + ("└── " if is_last else "├── ") + entry.shown + target)
                stems.append("    " if is_last else "│   ")

    def _search(self, folder: Folder, rules: Rules, pattern: re.Pattern[str], lines: _Lines) -> None:
        with closing(self._walk(folder, rules, _MOST_ENTRIES)) as walk:
            for within, path, entry, _ in walk:
                text = None if entry.is_folder else self._searchable(within, entry)
                for number, line in _matches(pattern, text or ""):
                    lines.add(f"{_shown(path)}:{number}: {line}")

    def _searchable(self, folder: Folder, entry: _Entry) -> str | None:
        """The text of a file; None if it is binary, too long, gone, or only a link to what is left out."""
        try:
            if entry.kind == FILE:
                data = folder.read(entry.name, self.max_bytes + 1)
                return _decode(data) if len(data) <= self.max_bytes else None
            return None if self._is_left_out(entry.target) else self._file_content(entry.target)
        except (_Refused, NotAFile, ValueError):
            return None
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    # --- Walking

    def _walk(
        self, folder: Folder, rules: Rules, most: int, above: str = "", depth: int = 0
    ) -> Generator[tuple[Folder, str, _Entry, bool], None, None]:
        """Everything below a folder in the order of a tree: its folder, its path from the first one, and if it is last.

        What vanishes meanwhile, or becomes a link, is not descended into.
        """
        if depth > _DEEPEST:
            raise _Refused(f"has folders nested more than {_DEEPEST} deep", "name one further down")
        entries = self._entries(folder, rules, most)
        for entry in entries:
            yield folder, above + entry.name, entry, entry is entries[-1]
            below = folder.below_if_there(entry.name) if entry.kind == FOLDER else None
            if below:
                with closing(below):
                    yield from self._walk(below, rules.within(below), most, f"{above}{entry.name}/", depth + 1)

    def _entries(self, folder: Folder, rules: Rules, most: int) -> list[_Entry]:
        """What is in a directory, sorted, without what is left out."""
        found = []
        with closing(folder.scan()) as entries:
            for name, kind in entries:
                path = os.path.join(folder.path, name)
                if name == ".git" or rules.cover(path, kind == FOLDER):
                    continue
                if target := self._target(path) if kind == LINK else path:
                    found.append(_Entry(name, kind, target))
                if len(found) > most:
                    raise _Refused(f"has a folder with more than {most:,} entries", "name one further down")
        return sorted(found, key=lambda entry: entry.name)

    def _target(self, link: str) -> str | None:
        """Where a link leads; None if that is outside of the root, or nowhere."""
        try:
            target = os.path.realpath(link, strict=True)
            mode = os.lstat(target).st_mode
        except (OSError, ValueError, RecursionError):
            return None
        is_shown = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        return target if is_shown and is_inside(target, self.root.path) else None

    # --- Leaving out

    def _rules(self, path: str) -> Rules:
        """The rules inside of a directory: of all .gitignore files from the top of its repository, else from the root.

        The top may lie above the root.
        """
        rules = Rules(())
        for ancestor in self._from_top(path):
            if is_inside(ancestor, self.root.path):
                with self._opened(ancestor) as folder:
                    rules = rules.within(folder)
            else:
                with closing(open_folder(ancestor)) as folder:
                    rules = rules.within(folder)
        return rules

    def _from_top(self, path: str) -> list[str]:
        """The directories from the top of the repository down to this one."""
        ancestors = [path]
        while ancestors[-1] != os.path.dirname(ancestors[-1]):
            ancestors.append(os.path.dirname(ancestors[-1]))
        tops = (n for n, ancestor in enumerate(ancestors) if os.path.lexists(os.path.join(ancestor, ".git")))
        top = next(tops, ancestors.index(self.root.path))
        return ancestors[top::-1]

    def _is_left_out(self, path: str) -> bool:
        """Whether a walk from the top of the repository would not come to this file."""
        rules = self._rules(os.path.dirname(path))
        _, *below = [*self._from_top(os.path.dirname(path)), path]
        return any(
            os.path.basename(step) == ".git" or rules.cover(step, is_folder=step != path) for step in below
        )  # fmt: skip


class _Entry:
    """Something in a directory; `target` is where it really lies."""

    __slots__ = ("is_folder", "kind", "name", "target")

    def __init__(self, name: str, kind: str, target: str) -> None:
        self.name = name
        self.kind = kind
        self.target = target
        self.is_folder = kind == FOLDER or (kind == LINK and os.path.isdir(target))

    @property
    def shown(self) -> str:
        """As a listing shows it."""
        return _shown(self.name) + ("/" if self.is_folder else "")

    def target_from(self, folder: str) -> str:
        """Where it leads, from the directory it is in."""
        return _shown(os.path.relpath(self.target, folder).replace(os.sep, "/")) + ("/" if self.is_folder else "")


class _Lines:
    """Output, as long as allowed."""

    __slots__ = ("_lines", "_most", "_size")

    def __init__(self, most: int) -> None:
        self._lines: list[str] = []
        self._most = most
        self._size = -1  # the last line gets no newline

    def add(self, line: str) -> None:
        """Add a line, or refuse the whole."""
        self._size += len(line.encode()) + 1
        if self._size > self._most:
            reason = f"brings more than --max-file-bytes {self._most:,}"
            raise _Refused(reason, "name a folder further down, or raise --max-file-bytes")
        self._lines.append(line)

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self._lines)


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """The lines that match, with their numbers; a newline at the end begins no line."""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        line_alone = line.removesuffix("\r")
        if pattern.search(line_alone):
            yield number, line_alone


def _compiled(pattern: str) -> re.Pattern[str]:
    if not pattern:
        raise _Refused("has no pattern", ":search:PATTERN takes a regular expression")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what another version of Python will read differently
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        hint = "write \\ before ( ) [ ] { } + * ? . | ^ $ \\ to search for them"
        raise _Refused(f"is no regular expression: {error}", hint) from None


def _decode(data: bytes) -> str:
    """Text from UTF-8, or UTF-16 with a mark. Raises ValueError for anything else."""
    text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    if "\0" in text:
        raise ValueError("binary")
    return text


def _shown(name: str) -> str:
    """A file's name as valid Unicode on one line."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
