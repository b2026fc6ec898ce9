"""What .gitignore files say of an entry that a walk comes to.

Each pattern is asked about the entry itself only: a walk does not go into a directory that is ignored, so what lies
below is never asked for, and a negation inside of it does nothing, as in git.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ollama_prompt.directories import Folder

    Pattern = tuple[re.Pattern[str], bool]

_LARGEST = 16 << 20


class Rules:
    """What the .gitignore files on the way to a directory say, the deepest and the last line first."""

    __slots__ = ("_levels",)

    def __init__(self, levels: tuple[tuple[str, list[Pattern]], ...]) -> None:
        self._levels = levels

    def within(self, folder: Folder) -> Rules:
        """These rules and the directory's own. Raises OSError: without its rules too much would be shown."""
        with suppress(FileNotFoundError):
            if stat.S_ISREG(folder.status(".gitignore").st_mode):  # git follows no link there either
                patterns = _patterns(folder.read(".gitignore", _LARGEST))
                return Rules(((_slashed(folder.path).rstrip("/") + "/", patterns), *self._levels))
        return self

    def cover(self, path: str, is_folder: bool) -> bool:
        """Whether an entry itself is ignored; what lies in an ignored directory is not asked for."""
        path = _slashed(path)
        for folder, patterns in self._levels:
            if path.startswith(folder):
                for pattern, includes in patterns:
                    if _means(pattern, path[len(folder) :], is_folder):
                        return includes
        return False


def _patterns(data: bytes) -> list[Pattern]:
    """The lines of a .gitignore, the last first, each with whether it ignores or takes that back."""
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    patterns: list[Pattern] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in data.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n"):
            with suppress(ValueError, re.error):  # git passes over lines that mean nothing, too
                pattern = GitIgnoreSpecPattern(_for_pathspec(line))
                if pattern.regex is not None and pattern.include is not None:
                    patterns.append((pattern.regex, pattern.include))
    return patterns[::-1]


def _for_pathspec(line: str) -> str:
    """A line so that pathspec reads it as git does.

    At its end git drops one CR and the spaces, pathspec any white space: `Icon` and two CRs, which everybody has from
    the template for macOS, would hide all folders Icon. And dir/**/ means all directories below dir, not dir itself.
    """
    line = line.removesuffix("\r")
    bare = line.rstrip(" ")
    if bare != line and bare.endswith("\\"):
        bare += " "
    bare = re.sub(r"\\?(\s)\Z", r"[\1]", bare)
    return re.sub(r"/\*\*/\Z", "/**/*/", bare)


def _means(pattern: re.Pattern[str], path: str, is_folder: bool) -> bool:
    """Whether a pattern names this very path.

    It also matches everything below a directory that it names. Then, and for a directory, its only group is the
    slash behind that directory.
    """
    found = pattern.search(path)
    if found and not found.lastindex:
        return True
    if not is_folder:
        return False
    return any(
        found.lastindex and found.end(found.lastindex) == len(path) + 1 for found in pattern.finditer(path + "/")
    )


def _slashed(path: str) -> str:
    """A path as git compares it: byte by byte."""
    return os.fsencode(path.replace(os.sep, "/")).decode("latin-1")
