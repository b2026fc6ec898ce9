"""Web pages: one of a conversation, and the list of an archive. Pure: text in, text out.

A page is one file that needs nothing else, and does nothing: what it may load and run stands in its policy
(Content-Security-Policy), which is style and script of ours, told by their hash, and pictures that are inside of it.
So whatever a conversation has in it, there is nothing that it could be but text and pictures; that text is escaped
everywhere is the first wall, the policy the second.

The same conversation gives the same page, byte for byte.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from html import escape

from ollama_prompt import __version__, markup
from ollama_prompt.images import kind_of
from ollama_prompt.render import plain
from ollama_prompt.transcript import date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ollama_prompt.transcript import Picture, Said, Transcript

MARK = b'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="generator" content="ollama-prompt '
"""How each page begins, and no file of anybody else's."""
_SOURCES = (
    "page.css", "archive.js", "page.py", "markup.py", "tables.py", "transcript.py", "images.py", "render.py",
    "archive.py",
)  # fmt: skip
"""What makes the pages. No number has to be raised when one of them changes."""


def conversation(transcript: Transcript, picture: Picture, index: str | None = None) -> str:
    """The page of a conversation; `index` is where the list is that it belongs to."""
    back = f'<nav class="back"><a href="{index}">All conversations</a></nav>\n' if index else ""
    facts = [value for _, value in transcript.facts()]
    head = f'{back}<header>\n<h1 dir="auto">{escape(transcript.title)}</h1>\n{_facts(facts)}\n</header>\n'
    said = [_message(number, said, picture) for number, said in enumerate(transcript.said, 1)]
    if transcript.system:
        said.insert(0, _article("system", "system", "System", "", markup.as_typed(plain(transcript.system))))
    body = f"{head}<main>\n{''.join(said)}</main>\n"
    return _page(transcript.title, body)


def index(rows: Iterable[str]) -> Iterator[str]:
    """The list of an archive in pieces; each row is JSON: [id, title, model, time, messages, first words]."""
    before, after = _page("Conversations", _LIST, _asset("archive.js")).split("@ROWS@")
    yield before
    comma = ""
    for row in rows:
        yield comma + row.replace("<", r"\u003c")  # else </script> in a title would be the end of it
        comma = ",\n"
    yield after


_LIST = """\
<header>
<h1>Conversations</h1>
<p class="facts" id="status" role="status"></p>
<input type="search" id="search" placeholder="Search titles, models, dates, first words" aria-label="Search" \
autocomplete="off" spellcheck="false" hidden>
<noscript><p>Without JavaScript there is no list. The conversations are in the folder “sessions”.</p></noscript>
</header>
<main>
<ol class="list" id="list"></ol>
<p><button type="button" id="end" hidden>More</button></p>
</main>
<script type="application/json" id="data">[@ROWS@]</script>
"""


def _page(title: str, body: str, script: str = "") -> str:
    style = _asset("page.css")
    allowed = f"script-src '{_hash(script)}'; " if script else ""
    allowed += f"style-src '{_hash(style)}'; img-src data:"
    head = f"""\
{MARK.decode()}{__version__}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
"""
    foot = f"<footer>Exported by ollama-prompt {__version__}</footer>\n"
    return f"{head}\n{body}{foot}" + (f"<script>{script}</script>\n" if script else "") + "</html>\n"


@cache
def _asset(name: str) -> str:
    """A file of the package."""
    from pkgutil import get_data

    return (get_data("ollama_prompt", name) or b"").decode().replace("\r\n", "\n")


@cache
def _hash(source: str) -> str:
    """How a policy names a style or a script."""
    from base64 import b64encode
    from hashlib import sha256

    return f"sha256-{b64encode(sha256(source.encode()).digest()).decode()}"


def fingerprint() -> str:
    """What changes whenever the pages that are made here may: with the release, with the code, with the libraries."""
    parts = [__version__, markup.READERS]
    with suppress(OSError):  # a program that was frozen has no source; its release tells as much
        parts += [_asset(name) for name in _SOURCES]
    return _hash("\n".join(parts))


# --- A message -------------------------------------------------------------------------------------


def _message(number: int, said: Said, picture: Picture) -> str:
    kind = said.role if said.role in {"user", "assistant"} else "system"
    parts = [_thinking(said), _content(said), *(_picture(name, picture(hash_)) for hash_, name in said.pictures)]
    if said.remark:
        parts.append(f'<p class="remark">[{escape(said.remark)}]</p>')
    return _article(kind, f"m{number}", said.speaker, said.time or "", "\n".join(filter(None, parts)))


def _article(kind: str, anchor: str, speaker: str, time: str, body: str) -> str:
    when = f'<a href="#{anchor}"><time datetime="{time}">{date(time)}</time></a>' if time else ""
    head = f"<h2><bdi>{escape(speaker)}</bdi>{when}</h2>"
    return f'<article class="{kind}" id="{anchor}">\n{head}\n<div class="body" lang="">\n{body}\n</div>\n</article>\n'


def _content(said: Said) -> str:
    content = plain(said.content)
    if said.role == "assistant":
        return markup.html_of(content)
    if not said.typed or said.typed == said.content:
        return markup.html_of_typed(content)
    sent = f"<details><summary>As it was sent, with what it names</summary>{markup.as_typed(content)}</details>"
    return f"{markup.html_of_typed(plain(said.typed))}\n{sent}"


def _thinking(said: Said) -> str:
    if not said.thinking:
        return ""
    return f"<details><summary>Thinking</summary>{markup.as_typed(plain(said.thinking))}</details>"


def _picture(name: str, data: bytes | None) -> str:
    from base64 import b64encode

    kind = kind_of(data) if data else None
    if data is None or kind is None:
        return f'<p class="remark">[picture: <bdi>{escape(name)}</bdi>, which is missing]</p>'
    source = f"data:{kind};base64,{b64encode(data).decode()}"
    caption = f'<figcaption dir="auto">{escape(name)}</figcaption>'
    return f'<figure><img src="{source}" alt="{escape(name)}">{caption}</figure>'


def _facts(facts: list[str]) -> str:
    return f'<p class="facts">{"".join(f"<span><bdi>{escape(fact)}</bdi></span>" for fact in facts)}</p>'
