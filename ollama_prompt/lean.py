"""Leave out of an import what this program needs none of.

Only for a process that is ours alone, so only for the command: a module keeps what it was given, or not given,
while it was imported.
"""

from __future__ import annotations

import sys
from _thread import RLock
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ollama_prompt.host import Host


PUT_OFF = ("asyncio", "idna", "inspect", "locale", "mimetypes", "selectors", "shutil", "traceback")
"""What orjson, httpx, filelock and modules that they import take along, and use for few commands, or for none."""


def _unwrapped(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


_FOR_DATACLASSES: dict[str, Callable[..., Any]] = {
    "signature": lambda *_, **__: "",
    "get_annotations": lambda class_: dict(vars(class_).get("__annotations__") or {}),
    "unwrap": _unwrapped,
}
"""What `dataclasses` takes of `inspect`, on one Python or another: part of docstrings that nobody reads, and little."""


_FIRST_USE = RLock()
"""Of two threads one takes a stand-in away. Not held for the import, which has locks of its own."""


class _Later(type(sys)):  # type: ignore[misc]  # the type of modules
    """Stands for a module that is imported as soon as something of it is used.

    An interruption undoes the import, and the next use makes it again. A part of a package would be imported twice if
    it were the first that is used of it, as by `import idna.core`.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _FOR_DATACLASSES and sys._getframe(1).f_globals.get("__name__") == "dataclasses":
            return _FOR_DATACLASSES[name]
        with _FIRST_USE:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        from importlib import import_module

        return getattr(import_module(self.__name__), name)


def put_off_imports() -> None:
    """Import from now on what few commands use only when they use it: it is a seventh of what a turn costs.

    Python 3.15 could do that by itself (PEP 810), but an interruption of such an import crashed it.
    """
    for name in PUT_OFF:
        sys.modules.setdefault(name, _Later(name))


@contextmanager
def without_translations() -> Iterator[None]:
    """Inside, import argparse: it looks for no translations of its messages. They are English here, as ours are.

    At every start it would import gettext and locale and look through the system's folders: 6 % of --help.
    """
    untranslated = type(sys)("gettext")
    untranslated.gettext = lambda message: message  # type: ignore[attr-defined]
    untranslated.ngettext = lambda one, many, n: one if n == 1 else many  # type: ignore[attr-defined]
    real = sys.modules.get("gettext")
    sys.modules["gettext"] = untranslated
    try:
        yield
    finally:
        del sys.modules["gettext"]
        if real:
            sys.modules["gettext"] = real


@contextmanager
def lean_imports(host: Host) -> Iterator[None]:
    """Inside, import `ollama` and make its client; for plain http to this machine TLS is left out.

    For all other hosts httpcore is kept from importing anyio, and with it asyncio: a client that never
    awaits needs neither. Where somebody has click, httpx would import that, rich and Pygments, for a command
    of its own. shutil, for archives, would import bz2 and lzma. All of these are imported in a `try`, by modules that
    do without.
    """
    unneeded = ("bz2", "click", "lzma", *(("ssl",) if host.is_plain_loopback else ("anyio", "trio")))
    hidden = [name for name in unneeded if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
