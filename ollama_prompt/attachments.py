"""Pictures of conversations, each once in the store: attachments/<sha256>.

A message names its pictures by the SHA-256 of their bytes, so the same picture in ten sessions is one file, and
a session stays readable text. Invariants: a file is whole before it has its name; its name tells its content,
which is checked when it is read; it is there before a record names it. One lock guards all of them, so that none
is removed as unused between a turn's look at it and the record that names it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

from ollama_prompt.layout import cannot_write
from ollama_prompt.records import is_sha256
from ollama_prompt.session_file import create, opened, remove, sync_folder, unfinished

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ollama_prompt.layout import Layout


class Attachments:
    """The pictures of one store; `lock` is taken while some are added or removed."""

    def __init__(self, layout: Layout, lock: Callable[[], AbstractContextManager[None]]) -> None:
        self._layout = layout
        self.lock = lock

    @contextmanager
    def keeping(self, images: dict[str, bytes]) -> Iterator[None]:
        """Keep these pictures, by their SHA-256; inside, they are named, and if that fails, not kept.

        Raises `StoreWriteFailed`.
        """
        if not images:
            yield
            return
        with self.lock():
            made: list[str] = []
            try:
                self._keep_all(images, made)
                yield
            except BaseException:
                self.discard(made)
                raise

    def _keep_all(self, images: dict[str, bytes], made: list[str]) -> None:
        """Keep each; `made` gets the names of those that were not there before."""
        try:
            self._make_folder()
            for name, data in images.items():
                path = self._layout.attachment(name)
                is_new = not os.path.lexists(path)
                self._keep(path, data)
                made += [name] if is_new else []
        except OSError as error:
            raise cannot_write(error) from error

    def _make_folder(self) -> None:
        if not os.path.isdir(self._layout.attachments):
            self._layout.make(self._layout.attachments)
            sync_folder(self._layout.home)

    def _keep(self, path: str, data: bytes) -> None:
        if _content(path) != data:
            with suppress(FileNotFoundError):  # what has this name has other bytes: damaged
                os.unlink(path)
            create(path, data)

    def read(self, name: str) -> bytes | None:
        """The picture with this SHA-256; None if it is missing or damaged."""
        from hashlib import sha256

        data = _content(self._layout.attachment(name)) if is_sha256(name) else None
        return data if data is not None and sha256(data).hexdigest() == name else None

    def fault_of(self, name: str) -> str | None:
        """What is wrong with a picture that a message names; None if nothing is."""
        if self.read(name) is not None:
            return None
        is_there = os.path.lexists(self._layout.attachment(name))
        return f"the picture {name} is {'damaged' if is_there else 'missing'}"

    def names(self) -> set[str]:
        """Every picture that is there, also those that no session names, and what was left of unfinished ones."""
        try:
            found = os.listdir(self._layout.attachments)
        except OSError:
            return set()
        bare = (name.removeprefix(".").removesuffix(".tmp") for name in found)
        return {name for name in bare if is_sha256(name)}

    def discard(self, names: Iterable[str]) -> None:
        """Remove pictures that nothing names any more; what cannot be removed stays."""
        for path in map(self._layout.attachment, names):
            for there in (path, unfinished(path)):
                with suppress(OSError):
                    remove(there)


def _content(path: str) -> bytes | None:
    try:
        with opened(path) as file:
            return file.read()
    except OSError:
        return None
