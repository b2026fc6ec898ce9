"""One function an action: data in, data out. Nothing is printed here, but for remarks through `note`."""

from __future__ import annotations

from contextlib import nullcontext, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from typing import Any

    from ollama_prompt.config import Request
    from ollama_prompt.embedded import Loaded
    from ollama_prompt.indexer import Indexer
    from ollama_prompt.model import Model
    from ollama_prompt.query import Scope
    from ollama_prompt.turn import Sink

    Note = Callable[[str], None]
    Progress = Callable[[int, int], None]


def ask(
    request: Request,
    indexer: Indexer | None,
    environ: Mapping[str, str],
    sink: Sink,
    note: Note,
    lean: bool = True,
    kept: KeptModel | None = None,
) -> dict[str, Any]:
    """Ask a prompt: the turn as it is printed. Without an indexer nothing is kept.

    `lean` imports less than is usual, for a process that does nothing else. `kept` is for the turns of a conversation.
    """
    from ollama_prompt.config import is_gguf
    from ollama_prompt.turn import take_turn

    def connect(name: str, deadline: float | None) -> Model:
        if is_gguf(name):
            from ollama_prompt.embedded import EmbeddedModel

            return EmbeddedModel(name, deadline=deadline, note=note, kept=kept.loaded() if kept else None)
        if kept:
            kept.close()
        return _connect_to_ollama(name, deadline, environ, request.serve, note, lean)

    if request.continues and indexer:
        request.session_id = indexer.newest()
    return take_turn(request, indexer, connect, sink, note)


def _connect_to_ollama(
    name: str, deadline: float | None, environ: Mapping[str, str], serve: bool, note: Note, lean: bool
) -> Model:
    from ollama_prompt.host import parse_host
    from ollama_prompt.lean import lean_imports

    host = parse_host(environ.get("OLLAMA_HOST"))
    if host.note:
        note(host.note)
    api_key = environ.get("OLLAMA_API_KEY") or None
    with lean_imports(host) if lean else nullcontext():
        from ollama_prompt.ollama import Ollama

        return Ollama(host, name, api_key=api_key, deadline=deadline, serve=serve, note=note)


class KeptModel:
    """The model of a `.gguf` file that stays in memory from turn to turn, until another one is asked or `close`."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None

    def loaded(self) -> Loaded:
        """What is in memory, if anything is."""
        if self._loaded is None:
            from ollama_prompt.embedded import Loaded

            self._loaded = Loaded()
        return self._loaded

    def close(self) -> None:
        """Release the memory, between two turns. It may be used again."""
        if self._loaded:
            self._loaded.free()


def list_with_windows(indexer: Indexer, limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """The listing as values, each with `max_context_tokens` too; and how many there are without `limit`."""
    import json

    from ollama_prompt.config import DEFAULT_MAX_CONTEXT_TOKENS

    lines, total = indexer.listing(limit)
    sessions = [json.loads(line) for line in lines]
    limits = indexer.window_limits(session["path"] for session in sessions)
    for session in sessions:
        session["max_context_tokens"] = limits.get(session["path"], DEFAULT_MAX_CONTEXT_TOKENS)
    return sessions, total


DEFAULT_MATCHES = 20
"""How many matches are shown unless --limit says otherwise."""


def search(indexer: Indexer, query: str, scope: Scope, limit: int | None, sort: str | None) -> dict[str, Any]:
    """What was said with these words in it."""
    limit = DEFAULT_MATCHES if limit is None else limit
    matches, total = indexer.search(query, scope, limit, sort == "best")
    return {"matches": matches, "total": total}


def session_info(indexer: Indexer, session_id: str) -> dict[str, Any]:
    """All that is kept of one session, with every message ever stored."""
    from ollama_prompt.config import DEFAULT_MAX_CONTEXT_TOKENS

    listed, found, reading = indexer.info(session_id)
    settings = reading.summary.settings
    limit = settings.get("max_context_tokens", DEFAULT_MAX_CONTEXT_TOKENS)
    return {
        **listed,
        **_origin(found),
        "max_context_tokens": limit,
        "context_usage_percent": round(100 * listed["context_tokens"] / limit, 1) if limit > 0 else None,
        "system_prompt": settings.get("system"),
        "options": settings.get("options", {}),
        "messages": [_message(record, reading.summary.undone) for record in found if record["type"] == "message"],
        "damage": [{"line": line, "reason": reason} for line, reason in reading.damage],
    }


_MESSAGE_KEYS = (
    "id",
    "role",
    "content",
    "created_at",
    "model",
    "prompt_tokens",
    "tokens",
    "done_reason",
    "thinking",
    "typed",
    "references",
    "images",
)


def _origin(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Where a session comes from that did not begin here."""
    header = next((record for record in found if record["type"] == "session"), {})
    return _printable(header, ("forked_from", "imported_from"))


def _printable(record: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """What a record has under these keys, but for what is nested deeper than can be printed."""
    from ollama_prompt.text import is_nested_too_deep

    return {key: record[key] for key in keys if key in record and not is_nested_too_deep(record[key])}


def _message(record: dict[str, Any], undone: AbstractSet[str]) -> dict[str, Any]:
    shown = _printable(record, _MESSAGE_KEYS)
    if "created_at" in shown:
        from ollama_prompt.clock import normal_time, whole_seconds

        shown["created_at"] = whole_seconds(normal_time(shown["created_at"]))
    return shown | {"undone": True} if record.get("id") in undone else shown


def purge(indexer: Indexer, days: int, dry_run: bool) -> dict[str, Any]:
    """Remove what was not used for more than `days` days."""
    removed, skipped = indexer.purge(days, dry_run)
    done = "would be removed" if dry_run else "removed"
    message = f"{_sessions(len(removed))} {done}"
    if skipped:
        message += f", {_sessions(len(skipped))} in use left alone"
    result = {"removed": len(removed), "message": message, "sessions": removed, "skipped": skipped}
    return result | {"dry_run": True} if dry_run else result


def _sessions(number: int) -> str:
    return "1 session" if number == 1 else f"{number} sessions"


def delete(indexer: Indexer, session_id: str) -> dict[str, Any]:
    """Remove one session for real."""
    indexer.delete(session_id)
    return {"deleted": session_id}


def fork(indexer: Indexer, session_id: str, message_id: str | None) -> dict[str, Any]:
    """Make a session that starts as a copy of another."""
    return {"session_id": indexer.fork(session_id, message_id), "forked_from": session_id}


def undo(indexer: Indexer, session_id: str, lock_timeout: float) -> dict[str, Any]:
    """Take back the last turn of a session."""
    return {"session_id": session_id, "undone": indexer.undo(session_id, lock_timeout)}


def set_title(indexer: Indexer, session_id: str, title: str, lock_timeout: float) -> None:
    """Label a session."""
    indexer.change(session_id, {"title": title}, lock_timeout)


def typed(indexer: Indexer) -> list[str]:
    """What was typed in conversations, oldest first."""
    return indexer.typed()


def remember(indexer: Indexer, session_id: str, text: str) -> None:
    """Add to what was typed."""
    indexer.remember(session_id, text)


def import_for_turns(indexer: Indexer, environ: Mapping[str, str]) -> None:
    """Import what every turn needs. A conversation does so where no interruption is heard: libraries expect none."""
    from ollama_prompt import turn  # noqa: F401  only to have it loaded
    from ollama_prompt.errors import UsageError
    from ollama_prompt.host import parse_host
    from ollama_prompt.lean import lean_imports

    indexer.import_for_turns()
    with suppress(UsageError), lean_imports(parse_host(environ.get("OLLAMA_HOST"))):
        from ollama_prompt import ollama  # noqa: F401  only to have it loaded


def import_(
    indexer: Indexer,
    path: str | None,
    environ: Mapping[str, str],
    lock_timeout: float,
) -> dict[str, Any]:
    """Bring conversations of other programs along; without a path those that ollama-prompt 1.x left.

    A database that cannot be read holds up no other; it is raised at the end.
    """
    from ollama_prompt.errors import OllamaPromptError

    imported: dict[str, None] = {}
    skipped = 0
    failed: list[OllamaPromptError] = []
    for place in [path] if path else _places_of_1x(indexer, environ):
        try:
            new, known = indexer.import_from(place, lock_timeout)
        except OllamaPromptError as error:
            failed.append(error)
            continue
        imported.update(dict.fromkeys(new))
        skipped += known
    if failed:
        raise failed[0]
    return {"imported": len(imported), "skipped": skipped, "sessions": list(imported)}


def _places_of_1x(indexer: Indexer, environ: Mapping[str, str]) -> list[str]:
    from ollama_prompt import foreign
    from ollama_prompt.errors import ImportFailed

    found = foreign.left_by_1x(environ, indexer.layout.set_aside())
    if not found:
        raise ImportFailed(
            f"there is no database of ollama-prompt 1.x at {' or '.join(foreign.usual_places(environ))}",
            hint="name the file: ollama-prompt --import PATH",
        )
    return found


def export(indexer: Indexer, session_id: str, form: str) -> str:
    """A session as a document: markdown, text, json or html."""
    from ollama_prompt import exporting

    return exporting.document(indexer, session_id, form)


def export_to(indexer: Indexer, session_id: str, form: str, path: str) -> dict[str, Any]:
    """Write a session as a document to a file, whole or not at all."""
    import os

    from ollama_prompt import exporting

    exporting.check_place(indexer, path)
    exporting.write(path, [exporting.document(indexer, session_id, form)], durable=True)
    return {"session_id": session_id, "path": os.path.abspath(path)}


def export_all(indexer: Indexer, folder: str, lock_timeout: float) -> dict[str, Any]:
    """Bring a folder of web pages up to date."""
    from ollama_prompt import archive, exporting

    exporting.check_place(indexer, folder)
    return archive.export(indexer, folder, lock_timeout)


def check(indexer: Indexer, repair: bool = False, secrets: bool = False) -> dict[str, Any]:
    """Read every file whole and say what is damaged; with `repair` what was mended, with `secrets` what leaks."""
    more: dict[str, Any] = {}
    if repair:
        more["repaired"] = indexer.repair()
    sessions, damage, index = indexer.check()
    if secrets:
        more["secrets"] = indexer.secrets()
    ok = not damage and index not in {"corrupt", "foreign"} and not more.get("secrets")
    return {"ok": ok, "sessions": sessions, "damage": damage, "index": index, **more}


def reindex(indexer: Indexer, lock_timeout: float) -> dict[str, Any]:
    """Build the index again from the files."""
    return {"sessions": indexer.reindex(lock_timeout)}


def git_setup(indexer: Indexer, remote: str | None, note: Note) -> dict[str, Any]:
    """Put the store under git."""
    from ollama_prompt.sync import set_up

    return set_up(indexer, remote, note)


def sync(indexer: Indexer, lock_timeout: float, note: Note, step: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Commit, merge and push; `step` is told what is done."""
    from ollama_prompt import sync

    return sync.sync(indexer, lock_timeout, note, step)


def make_indexer(environ: Mapping[str, str], note: Note, progress: Progress = lambda *_: None) -> Indexer:
    """The store that the environment names."""
    from ollama_prompt.config import store_layout
    from ollama_prompt.indexer import Indexer

    layout = store_layout(environ)
    if exposed := layout.exposed():
        note(exposed)
    indexer = Indexer(layout, note, progress)
    indexer.adopt_1x()
    return indexer
