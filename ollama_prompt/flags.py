"""The flags: argparse, and which of them go together. docs/cli.md is compared with them.

Flags only, no sub-commands; one action at a time. Whatever is wrong is a `UsageError` with a hint.
"""

from __future__ import annotations

import argparse
import os

from ollama_prompt import __version__, config
from ollama_prompt.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

ACTIONS = (
    "list_sessions", "session_info", "search", "purge", "delete", "fork", "undo", "retry", "import", "export", "check",
    "reindex", "git_setup", "sync", "completion",
)  # fmt: skip
"""Flags that are an action of their own; without one the prompt is asked."""
PROMPTING = ("prompt", "prompt_file", "stdin", "interactive", "session_id", "continue", "no_session", "image")
"""Flags that say what is asked, and in which session: they make no sense beside an action."""
ASKING_ONLY = (*PROMPTING, "title", "system", "system_file", "think", "no_think", "format")
"""Flags that make no sense beside an action that asks nothing. Others, such as --model in an alias, do no harm."""
COMPANIONS = {
    "dry_run": ("purge",), "limit": ("list_sessions", "search"), "in": ("search",), "since": ("search",),
    "sort": ("search",), "at": ("fork",), "repair": ("check",), "secrets": ("check",), "remote": ("git_setup",),
    "as": ("export",), "to": ("export",), "all": ("export",),
}  # fmt: skip
"""Flags that go with certain actions only."""
EXAMPLES = {
    "--prompt": "what is a monad?", "--system": "you are terse", "--title": "a title", "--search": "some words",
}  # fmt: skip
"""Flags whose value is text that somebody writes, in several words perhaps, and what that may be."""
CONTRADICTIONS = (
    ("session_id", "continue"), ("session_id", "no_session"), ("continue", "no_session"), ("prompt", "prompt_file"),
    ("system", "system_file"), ("think", "no_think"),
)  # fmt: skip

NOT_INTERACTIVE = {
    "stdin": "stdin is the keyboard there; --prompt-file brings a text along",
    "no_session": "a conversation needs a session; --delete removes it afterwards",
    "format": "it is for one answer, which --prompt asks for",
    "output": "a conversation is text; a program asks turn by turn, with --session-id",
}
"""Flags that make no sense in a conversation, and what to do."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags, checked each by itself and against each other. Raises `UsageError`."""
    parser = make_parser()
    parser.arguments = arguments
    flags = parser.parse_args(arguments)
    flags.action = _action(flags)
    if flags.interactive:
        _check_interactive(flags)
    flags.output = flags.output or ("text" if flags.interactive else "json")
    return flags


class _Parser(argparse.ArgumentParser):
    arguments: Sequence[str] = ()
    color: bool

    def error(self, message: str) -> NoReturn:
        hint = "ollama-prompt --help shows all flags"
        if message.startswith("unrecognized arguments: "):
            words = message.split(": ", 1)[1]
            hint = (self._hint_for_flag(words) or hint) if words.startswith("-") else self._hint_for_words(words)
        elif "'' is no session id" in message:
            hint = "is the variable empty that should hold it?"
        elif message.endswith(": expected one argument"):
            hint = self._hint_for_value(message.removesuffix(": expected one argument").rpartition("--")[2])
        raise UsageError(message, hint=hint)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """A value of --, as in --prompt=--, is taken for the end of the flags by Python 3.12.4 and older."""
        if action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _hint_for_words(self, words: str) -> str:
        """What somebody meant with words that stand alone."""
        for flag, first, second in zip(self.arguments, self.arguments[1:], self.arguments[2:], strict=False):
            if flag in {*EXAMPLES, "-p"} and f"{words} ".startswith(f"{second} "):
                return f'several words go in quotes: {flag} "{first} {words}"'
        return 'the prompt goes behind --prompt, in quotes: ollama-prompt --prompt "…"'

    def _hint_for_flag(self, words: str) -> str | None:
        """The flag that is written most like this one, if any is."""
        from difflib import get_close_matches

        name = words.partition(" ")[0].partition("=")[0]
        like = get_close_matches(name, self._option_string_actions, 1, 0.75)
        return f"did you mean {like[0]}? ollama-prompt --help shows all flags" if like else None

    def _hint_for_value(self, name: str) -> str:
        """What a flag wants."""
        flag = f"--{name}"
        if flag in EXAMPLES:
            joined = f'what begins with a dash is joined on with an equals sign: {flag}="-5 degrees"'
            return f'{flag} "{EXAMPLES[flag]}"; {joined}'
        action = self._option_string_actions[flag]
        if action.metavar == "UUID":
            return "--list-sessions shows the ids; or is the variable empty that should hold one?"
        return f"{flag} {action.metavar or '|'.join(action.choices or ())}: {action.help}"


class _HelpFormatter(argparse.HelpFormatter):
    """Help as wide as the terminal, up to 100 columns. With a width given, argparse does not import shutil."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_help_width())


def _help_width() -> int:
    try:
        return max(min(int(os.environ.get("COLUMNS", "")) - 2, 100), 40)
    except ValueError:
        pass
    try:
        return max(min((os.get_terminal_size(1).columns or 100) - 2, 100), 40)
    except (OSError, ValueError):
        return 98


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """A check of config's, whose message argparse shows."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def make_parser() -> _Parser:
    """All flags; docs/cli.md is compared with them."""
    parser = _Parser(
        prog="ollama-prompt",
        usage='ollama-prompt --prompt "…" [--session-id UUID] [options]\n       ollama-prompt ACTION',
        description="Send a prompt to an Ollama model and keep the conversation.",
        epilog="Conversations are plain files below ~/.ollama-prompt/sessions (OLLAMA_PROMPT_HOME moves them).",
        allow_abbrev=False,
        add_help=False,
        formatter_class=_HelpFormatter,
    )
    parser.color = False  # from 3.14 on help would have colors, and cost half as much again
    _add_asking(parser.add_argument_group("asking"))
    _add_model(parser.add_argument_group("the model"))
    _add_actions(parser.add_argument_group("actions"))
    _add_general(parser.add_argument_group("general"))
    return parser


def _add_asking(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-p", "--prompt", metavar="TEXT", help="the prompt; - reads it from stdin, as does no prompt at all")
    add("--prompt-file", metavar="FILE", help="the prompt from a file")
    add("--stdin", action="store_true", help="what is on stdin goes under the prompt")
    add("-i", "--interactive", action="store_true", help="a conversation at the terminal; a prompt is its first")
    add("--session-id", metavar="UUID", type=_checked(config.session_id), help="continue that session")
    add("-c", "--continue", action="store_true", help="continue the session that was used last")
    add("--no-session", action="store_true", help="keep nothing: read and write no session")
    add("--system", metavar="TEXT", help="the system prompt; kept with the session")
    add("--system-file", metavar="FILE", help="the system prompt from a file")
    add(
        "--title",
        metavar="TEXT",
        type=_checked(config.title),
        help="a label for people, shown by --list-sessions",
    )
    add("--image", metavar="FILE", action="append", help="a picture for a model that sees: PNG, JPEG, WebP; repeatable")
    add(
        "--format", metavar="json|FILE|{…}", type=_checked(config.answer_format),
        help="structured output: any JSON, or what a JSON Schema says, from a file or as it is",
    )  # fmt: skip
    add("--repo-root", metavar="DIR", type=_checked(config.folder), help="where @references may lead (.)")
    add(
        "--max-file-bytes", metavar="N", type=_checked(config.positive_integer), default=config.DEFAULT_MAX_FILE_BYTES,
        help="the longest text that an @reference may bring (200000)",
    )  # fmt: skip
    add("--timeout", metavar="S", type=_checked(config.positive_number), help="seconds for the whole answer")
    add(
        "--lock-timeout", metavar="S", type=_checked(config.number_from_0), default=config.DEFAULT_LOCK_TIMEOUT,
        help="seconds to wait for a session that is in use (600); 0 does not wait",
    )  # fmt: skip


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model", metavar="NAME", type=_checked(config.model_name),
        help="any name that Ollama takes, or a .gguf file, which runs without Ollama; kept with the session",
    )  # fmt: skip
    add("--temperature", metavar="F", type=_checked(config.number_from_0), help="kept with the session")
    add(
        "--max-tokens", "--max_tokens", metavar="N", type=_checked(config.token_count),
        help="longest answer in tokens; kept with the session",
    )  # fmt: skip
    add(
        "--option", metavar="NAME=VALUE", action="append", type=_checked(config.option),
        help="any other option of Ollama's; repeatable; kept with the session",
    )  # fmt: skip
    add(
        "--think", metavar="LEVEL", nargs="?", const=True, type=_checked(config.think),
        help="have the model think first: true, low, medium, high or max; kept with the session",
    )  # fmt: skip
    add("--no-think", action="store_true", help="have the model not think; kept with the session")
    add(
        "--max-context-tokens", metavar="N", type=_checked(config.positive_integer),
        help="how much of the conversation may be sent, in tokens (64000); kept with the session",
    )  # fmt: skip
    add(
        "--num-ctx", metavar="N", type=_checked(config.positive_integer),
        help="fix the model's window instead of having it chosen",
    )  # fmt: skip
    add(
        "--keep-alive", metavar="DURATION", type=_checked(config.keep_alive),
        help="how long the model stays loaded: 5m, -1 for ever, 0 for not at all",
    )  # fmt: skip


def _add_actions(group: argparse._ArgumentGroup) -> None:
    add, uuid = group.add_argument, _checked(config.session_id)
    add("--list-sessions", action="store_true", help="all sessions, newest use first")
    add("--limit", metavar="N", type=_checked(config.natural_number), help="list or find only the first N")
    add("--search", metavar="TEXT", type=_checked(config.search_text), help="what was said with all these words in it")
    add("--in", metavar="UUID", type=uuid, help="with --search: in this session only")
    add(
        "--since", metavar="TIME", type=_checked(config.since),
        help="with --search: not older than this time (2026-11-01) or so many days",
    )  # fmt: skip
    add("--sort", choices=("newest", "best"), help="with --search: what comes first (newest)")
    add("--session-info", metavar="UUID", type=uuid, help="one session, with every message ever stored")
    add(
        "--purge", metavar="DAYS", type=_checked(config.natural_number),
        help="remove sessions last used more than DAYS days ago; 0: all",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="with --purge: only say what would be removed")
    add("--delete", metavar="UUID", type=uuid, help="remove one session for real")
    add("--fork", metavar="UUID", type=uuid, help="a new session that starts as a copy of one")
    add("--at", metavar="MESSAGE_ID", type=_checked(config.some_text), help="with --fork: copy up to this message")
    add("--undo", metavar="UUID", type=uuid, help="take back the last prompt and its answer")
    add("--retry", metavar="UUID", type=uuid, help="ask the last prompt again")
    add(
        "--import", metavar="PATH", nargs="?", const=True, type=_checked(config.path),
        help="bring conversations along from ollama-prompt 1.x, from llm, or from a JSON list of messages",
    )  # fmt: skip
    _add_export(group)
    _add_upkeep(group)
    add(
        "--completion", type=str.lower, choices=("bash", "zsh", "fish", "powershell"),
        help="print a script that completes flags and sessions in this shell",
    )  # fmt: skip


def _add_export(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--export", metavar="UUID", nargs="?", const=True, type=_checked(config.session_id),
        help="one session as a document, on stdout or --to a file",
    )  # fmt: skip
    add(
        "--as", choices=("markdown", "text", "json", "html"),
        help="with --export: markdown (the default), text, json (messages as Ollama takes them) or html",
    )  # fmt: skip
    add("--to", metavar="FILE", type=_checked(config.path), help="with --export: write to this file; - is stdout")
    add("--all", action="store_true", help="with --export --to DIR: a folder of web pages with all sessions")


def _add_upkeep(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--check", action="store_true", help="read every file whole and report damage")
    add("--repair", action="store_true", help="with --check: mend what can be mended, and keep what is replaced")
    add("--secrets", action="store_true", help="with --check: also report what looks like keys and passwords")
    add("--reindex", action="store_true", help="build the index again from the files")
    add("--git-setup", action="store_true", help="put the conversations under git, for --sync and for your own use")
    add("--remote", metavar="URL", type=_checked(config.remote), help="with --git-setup: where --sync pushes to")
    add("--sync", action="store_true", help="commit what changed, merge what other machines pushed, push")


def _add_general(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output", choices=("json", "text", "ndjson"),
        help="json (the default), text for people, or ndjson: events as they happen",
    )  # fmt: skip
    add("--plain", action="store_true", help="text without tables, colours and Markdown, as in a pipe")
    add("--debug", action="store_true", help="show a traceback when something unexpected happens")
    add("--version", action="version", version=f"ollama-prompt {__version__}")
    add("-h", "--help", action="help", help="show this help")


def _action(flags: argparse.Namespace) -> str | None:
    """The action that the flags name; None for asking. Raises `UsageError` for two, or for one with a prompt."""
    named = [name for name in ACTIONS if _is_given(flags, name)]
    if len(named) > 1:
        raise UsageError(f"{_flag(named[0])} and {_flag(named[1])}: one action at a time")
    action = named[0] if named else None
    asking = [name for name in _unwanted(action) if _is_given(flags, name)]
    if asking:
        raise UsageError(f"{_flag(named[0])} and {_flag(asking[0])} contradict each other")
    for companion, actions in COMPANIONS.items():
        if _is_given(flags, companion) and action not in actions:
            raise UsageError(f"{_flag(companion)} goes with {_flag(actions[0])}")
    if action == "export":
        _check_export(flags)
    for one, other in CONTRADICTIONS:
        if _is_given(flags, one) and _is_given(flags, other):
            raise UsageError(f"{_flag(one)} and {_flag(other)} contradict each other")
    return action


def _check_export(flags: argparse.Namespace) -> None:
    """Raises `UsageError` unless the flags name one session, or all and a folder."""
    of_all = "all sessions become a folder of web pages: ollama-prompt --export --all --to DIR"
    form = getattr(flags, "as")
    if not flags.all and flags.export is True:
        raise UsageError("--export says which session: its UUID, or --all", hint="--list-sessions shows the ids")
    if flags.all and flags.export is not True:
        raise UsageError("--export UUID and --all contradict each other", hint=of_all)
    if flags.all and form not in {None, "html"}:
        raise UsageError(f"--all and --as {form} contradict each other", hint=of_all)
    if flags.all and flags.to in {None, "-"}:
        raise UsageError("--all needs a folder: --to DIR", hint=of_all)


def _check_interactive(flags: argparse.Namespace) -> None:
    """Refuse what makes no sense in a conversation."""
    for name, hint in NOT_INTERACTIVE.items():
        if _is_given(flags, name) and (name, flags.output) != ("output", "text"):
            raise UsageError(f"--interactive and {_flag(name)} contradict each other", hint=hint)
    if "-" in {flags.prompt, flags.prompt_file}:
        raise UsageError("--interactive and a prompt from stdin contradict each other", hint=NOT_INTERACTIVE["stdin"])


def _unwanted(action: str | None) -> tuple[str, ...]:
    """The flags that contradict this action."""
    if action is None:
        return ()
    if action == "purge":  # of one model only, as with --search: that would be a misunderstanding for good
        return (*ASKING_ONLY, "model")
    return PROMPTING if action == "retry" else ASKING_ONLY


def _is_given(flags: argparse.Namespace, name: str) -> bool:
    """Whether a flag has a value: 0, of --purge 0, is one."""
    value = getattr(flags, name)
    return value is not None and value is not False


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
