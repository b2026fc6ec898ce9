"""Dispatch and output: the only place that prints results and decides the exit code.

Data goes to stdout, everything else to stderr. An error is one JSON object on stderr, or `error:` and
`hint:` lines with --output text; remarks are `note:` lines before it. No traceback reaches a user but
with --debug. Flags are checked before anything heavier than argparse is imported.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from itertools import pairwise

from ollama_prompt import config, console, interrupts
from ollama_prompt import flags as flags_
from ollama_prompt.errors import Interrupted, OllamaPromptError, OutputClosed, OutputFailed, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import Any

    from ollama_prompt.indexer import Indexer

BUG_HINT = "this is a bug in ollama-prompt: please report it, with what --debug prints"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    gc.disable()  # a process this short ends before collecting pays
    try:
        interrupts.install()
        console.prepare()
        code = _run(arguments)
        console.finish()
        return code
    except Exception as error:
        return _fail(error, arguments)
    except Interrupted as interruption:
        return interruption.exit_code
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    try:
        flags = flags_.parse(arguments)
    except SystemExit as done:  # --help or --version was printed
        return int(done.code or 0)
    if flags.interactive:
        return _chat(flags)
    if flags.action in {None, "retry"}:
        return _ask(flags)
    _refuse_closed_stdout()
    if flags.action == "completion":
        return _completion(flags)
    from ollama_prompt import commands

    return _ACTIONS[flags.action](commands.make_indexer(os.environ, console.note, console.show_progress), flags)


def _fail(error: Exception, arguments: list[str]) -> int:
    """Say what went wrong; the exit code."""
    from ollama_prompt import render

    console.clear()
    if "--debug" in arguments:
        import traceback

        console.write_error(render.visible("".join(traceback.format_exception(error))))
    if isinstance(error, OutputClosed):
        return error.exit_code
    if not isinstance(error, OllamaPromptError):
        error = OllamaPromptError(f"{type(error).__name__}: {error}", hint=BUG_HINT)
    output = _wanted_output(arguments)
    if output == "ndjson" and not isinstance(error, OutputFailed):
        with suppress(OutputClosed, OutputFailed):
            console.write(render.error_as_event(error))
    console.write_error(render.error_as_text(error) if output == "text" else render.error_as_json(error))
    return error.exit_code


def _wanted_output(arguments: list[str]) -> str:
    """The value of --output, also where the flags could not be parsed; the last one counts."""
    wanted = "text" if {"-i", "-ic", "-ci", "--interactive"}.intersection(arguments) else ""
    for first, second in pairwise(["", *arguments]):
        if first == "--output":
            wanted = second
        elif second.startswith("--output="):
            wanted = second.removeprefix("--output=")
    return wanted


def _ask(flags: Namespace) -> int:
    _refuse_terminal_as_prompt(flags)
    request = config.Request(flags, os.environ, config.read_prompt(flags) if flags.retry is None else None)
    _check_host(request)
    _refuse_closed_stdout()
    from ollama_prompt import commands

    sink = _sink(flags)
    indexer = commands.make_indexer(os.environ, sink.note, console.show_progress) if request.keep else None
    try:
        turn = commands.ask(request, indexer, os.environ, sink, sink.note)
    except Interrupted as interruption:
        with suppress(OutputClosed, OutputFailed):  # Ctrl-C ends the reader of a pipe as well
            sink.end(interruption.turn)
        raise
    finally:
        sink.close()
    try:
        sink.end(turn)
    except OutputFailed as error:
        error.session_id = turn.get("session_id")
        raise
    return 0


def _sink(flags: Namespace) -> console.JsonSink:
    """Where the turn is shown."""
    sinks = {"json": console.JsonSink, "ndjson": console.NdjsonSink}
    return sinks[flags.output]() if flags.output in sinks else _text_sink(flags)


def _text_sink(flags: Namespace) -> console.TextSink:
    """Where a person reads an answer."""
    if flags.plain or flags.format is not None or os.environ.get("NO_COLOR") or not console.is_terminal(sys.stdout):
        return console.TextSink()
    from ollama_prompt.terminal import MarkdownSink

    return MarkdownSink()


def _is_rich(flags: Namespace) -> bool:
    """Whether a person looks at it."""
    return flags.output == "text" and not flags.plain and console.is_terminal(sys.stdout)


def _chat(flags: Namespace) -> int:
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise UsageError(
            "--interactive needs a terminal, for stdin and for stderr",
            hint="a script asks turn by turn: --prompt, then --session-id",
        )
    has_prompt = flags.prompt is not None or flags.prompt_file is not None
    request = config.Request(flags, os.environ, config.read_prompt(flags) if has_prompt else None)
    _check_host(request)
    _refuse_closed_stdout()
    gc.enable()
    from ollama_prompt import chat

    chat.converse(request, flags, os.environ, lambda: _text_sink(flags))
    return 0


def _check_host(request: config.Request) -> None:
    """Find an impossible OLLAMA_HOST before anything is imported; where it may not be needed, only then."""
    from ollama_prompt.host import parse_host

    is_from_session = (request.session_id is not None or request.continues) and "model" not in request.given
    if not is_from_session and not config.is_gguf((request.defaults | request.given)["model"]):
        parse_host(os.environ.get("OLLAMA_HOST"))


def _refuse_closed_stdout() -> None:
    """Nothing is asked or changed that nobody could be told of."""
    if sys.stdout is None:
        raise OutputFailed("stdout is closed")


def _refuse_terminal_as_prompt(flags: Namespace) -> None:
    """Without a prompt stdin is read, but nobody knows to type one there."""
    if flags.prompt is flags.prompt_file is flags.retry is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(
            "there is no prompt", hint='ollama-prompt --prompt "…", or pipe one in; --help shows all flags'
        )


def _list_sessions(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import render

    if _is_rich(flags):
        from ollama_prompt import commands
        from ollama_prompt.terminal import show_listing

        show_listing(*commands.list_with_windows(indexer, flags.limit))
        return 0
    lines, total = indexer.listing(flags.limit)
    if flags.output == "text":
        console.write(render.listing_as_text(lines))
    elif flags.output == "ndjson":
        console.write(render.listing_as_line(lines, total))
    else:
        console.write_parts(render.listing_as_json(lines, total))
    return 0


def _search(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render
    from ollama_prompt.query import Scope

    scope = Scope(getattr(flags, "in"), flags.model, flags.since or "")
    data = commands.search(indexer, flags.search, scope, flags.limit, flags.sort)
    if _is_rich(flags):
        from ollama_prompt.terminal import show_matches

        show_matches(data["matches"], data["total"])
        return 0
    return _print(data, flags, render.matches_as_text)


def _session_info(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    data = commands.session_info(indexer, flags.session_info)
    if _is_rich(flags):
        from ollama_prompt.terminal import show_conversation

        show_conversation(data, as_markdown=not os.environ.get("NO_COLOR"))
        return 0
    return _print(data, flags, render.info_as_text)


def _purge(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    return _print(commands.purge(indexer, flags.purge, flags.dry_run), flags, render.purge_as_text)


def _delete(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands

    return _print(commands.delete(indexer, flags.delete), flags, lambda data: f"deleted {data['deleted']}\n")


def _fork(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands

    data = commands.fork(indexer, flags.fork, flags.at)
    return _print(data, flags, lambda data: f"{data['session_id']}\n")


def _undo(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands

    data = commands.undo(indexer, flags.undo, flags.lock_timeout)
    return _print(data, flags, lambda data: f"messages taken back: {len(data['undone'])}\n")


def _import(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands

    named = getattr(flags, "import")
    path = None if named is True else named
    data = commands.import_(indexer, path, os.environ, flags.lock_timeout)
    return _print(data, flags, lambda data: f"imported: {data['imported']}, nothing new in: {data['skipped']}\n")


def _export(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    form = getattr(flags, "as") or "markdown"
    if flags.all:
        data = commands.export_all(indexer, flags.to, flags.lock_timeout)
        numbers = ", ".join(f"{name}: {data[name]}" for name in ("exported", "unchanged", "removed"))
        return _print(data, flags, lambda _: f"{numbers}\n")
    if flags.to in {None, "-"}:
        console.write(commands.export(indexer, flags.export, form))
        return 0
    data = commands.export_to(indexer, flags.export, form, flags.to)
    return _print(data, flags, lambda data: f"{render.visible(data['path'])}\n")


def _check(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    data = commands.check(indexer, flags.repair, flags.secrets)
    _print(data, flags, render.check_as_text)
    return 0 if data["ok"] else 1


def _reindex(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands

    data = commands.reindex(indexer, flags.lock_timeout)
    return _print(data, flags, lambda data: f"sessions in the index: {data['sessions']}\n")


def _git_setup(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    return _print(commands.git_setup(indexer, flags.remote, console.note), flags, render.git_setup_as_text)


def _sync(indexer: Indexer, flags: Namespace) -> int:
    from ollama_prompt import commands, render

    return _print(
        commands.sync(indexer, flags.lock_timeout, console.note, console.show_step), flags, render.sync_as_text
    )


_ACTIONS = {
    "list_sessions": _list_sessions,
    "session_info": _session_info,
    "search": _search,
    "purge": _purge,
    "delete": _delete,
    "fork": _fork,
    "undo": _undo,
    "import": _import,
    "export": _export,
    "check": _check,
    "reindex": _reindex,
    "git_setup": _git_setup,
    "sync": _sync,
}


def _print(data: dict[str, Any], flags: Namespace, as_text: Callable[[dict[str, Any]], str]) -> int:
    from ollama_prompt import render

    as_wanted = {"json": render.as_json, "ndjson": render.as_line, "text": as_text}[flags.output]
    try:
        console.write(as_wanted(data))
    except OutputFailed as error:
        error.session_id = data.get("session_id")
        raise
    return 0


def _completion(flags: Namespace) -> int:
    from ollama_prompt import completion

    console.write(completion.script(flags.completion))
    return 0
