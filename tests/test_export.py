"""What is exported of a conversation, and that nothing in one breaks, or does, anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from stores import header, line, message, new_id
from test_imports import own

from ollama_prompt import exporting, markup, page, render, session_file, transcript
from ollama_prompt.errors import ExportFailed
from ollama_prompt.folding import fold
from ollama_prompt.foreign_json import conversation
from ollama_prompt.transcript import Transcript

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"

HOSTILE = (
    "<script>document.title='EXECUTED'</script>",
    '"><img src=x onerror="document.title=\'EXECUTED\'">',
    "</style></title></textarea><svg onload=document.title='EXECUTED'>",
    "<!-- a comment that never ends",
    "<![CDATA[ <? <!DOCTYPE",
    "[a](javascript:document.title='EXECUTED') [b](JaVaScRiPt&colon;alert(1))",
    "[c](data:text/html,<script>alert(1)</script>)",
    "[d](vbscript:x) [e](file:///etc/passwd) [f](//evil.example/x) [g](../index.html) <javascript:alert(1)>",
    '![x" onerror="alert(1)](https://evil.example/pixel.png) ![y](data:image/svg+xml;base64,PHN2Zz4=)',
    '[h](https://example.org/"onmouseover="alert(1) "title\\" onclick=\\"x")',
    '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```',
    "```html onload=x\n<b onclick='alert(1)'>\n```",
    "| <script>alert(1)</script> | ` |\n|:--:|--|\n| `<b>` | <img src=x onerror=alert(1)> |",
    '<a href="https://x" style="position:fixed">`code` <https://example.org/a`b>',
    "# <iframe src=//evil.example>\n\n<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
)


def exported(*records: Json, **more: Any) -> Transcript:
    """These records as a conversation that is exported."""
    listed = {"session_id": new_id(1), "title": "A title", "model_name": "m", "created_at": "2026-11-22T10:30:00Z"}
    settings = {"system": more.pop("system")} if "system" in more else {}
    return Transcript(listed | more, settings, list(records), set())


def said(*contents: str, **more: Any) -> Transcript:
    """A conversation of prompts and answers in turn."""
    roles = ("user", "assistant") * len(contents)
    made = [message(number, role, content) for number, (role, content) in enumerate(zip(roles, contents, strict=False))]
    return exported(*made, **more)


def no_picture(name: str) -> None:
    """No picture is there."""


# -- what is taken -----------------------------------------------------------------------------------------


def test_what_was_taken_back_is_left_out(tmp_path: Path) -> None:
    records = [header(new_id(1)), *(message(number, "user", f"Prompt {number}") for number in range(3))]
    records.append({"type": "undo", "id": new_id(9), "created_at": "2026-11-22T10:30:00.000Z", "ids": [new_id(1)]})
    path = tmp_path / f"{new_id(1)}.jsonl"
    path.write_bytes(b"".join(map(line, records)))
    found, reading = session_file.load(str(path), new_id(1))
    made = Transcript(reading.summary.listed(), reading.summary.settings, found, reading.summary.undone)
    assert [said.content for said in made.said] == ["Prompt 0", "Prompt 2"]


def test_who_spoke_and_when() -> None:
    made = exported(
        message(0, "user", "Hi"),
        message(1, "assistant", "Ho", model="qwen3:8b", done_reason="interrupted"),
        message(2, "assistant", "Hu", done_reason="stop"),
        message(3, "tool", "42"),
        {"type": "message", "role": "user", "content": "by hand"},
    )
    heads = [said.head for said in made.said]
    assert heads == [
        "User · 2026-09-21 14:13 UTC", "qwen3:8b · 2026-09-21 14:13 UTC", "m · 2026-09-21 14:13 UTC",
        "Tool · 2026-09-21 14:13 UTC", "User",
    ]  # fmt: skip
    assert [said.remark for said in made.said] == ["", "interrupted", "", "", ""]


def test_first_words_repeat_no_title() -> None:
    assert said("A title\nand more", "An **answer**\nof `two` lines").first_words() == "and more An answer of two lines"
    assert len(said("x " * 1000, "y").first_words()) == transcript.FIRST_WORDS
    assert exported().first_words() == ""


def test_odd_records_are_exported_too() -> None:
    odd = message(0, " User ", "x", images="no list", typed=1, thinking=[], done_reason={}, model=7)
    picture = message(1, "user", "", images=[{"sha256": "a" * 64, "path": 5}, {"sha256": "../x"}, 3])
    made = exported(odd, picture, title=None, model_name=None, created_at=None)
    assert (made.title, made.said[0].role) == ("Conversation", "user")
    assert made.said[1].pictures == [("a" * 64, "a" * 12)]
    for form in (transcript.as_text(made), transcript.as_markdown(made), page.conversation(made, no_picture)):
        assert "a" * 12 in form
    assert json.loads(transcript.as_json(made, no_picture)) == [
        {"role": "user", "content": "x"},
        {"role": "user", "content": ""},
    ]


# -- JSON --------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "user", "assistant"])


@given(st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=8), TEXTS)
@example([("system", "a"), ("user", "\ufeff\x00\r\n\u2028\x85 \U0001f980")], "a")
@example([("user", "same"), ("user", "same"), ("assistant", "")], "")
def test_json_imported_again_is_the_same_conversation(spoken: list[tuple[str, str]], system: str) -> None:
    records = [message(number, role, content) for number, (role, content) in enumerate(spoken)]
    first = transcript.as_json(exported(*records, system=system), no_picture)
    known = json.loads(first)
    if not any(one["role"] not in {"system", "developer"} for one in known):
        return  # a system prompt alone is no conversation
    imported = conversation("talk.json", first.encode(), 0, pytest.fail)
    again = exported(*imported.records, system=imported.header.get("system", ""))
    assert transcript.as_json(again, no_picture) == first
    first_other = next(number for number, (role, _) in enumerate(spoken) if role not in {"system", "developer"})
    assert [(one["role"], one["content"]) for one in known][-len(spoken[first_other:]) :] == spoken[first_other:]


def test_json_has_the_system_prompt_first_and_pictures_as_ollama_takes_them() -> None:
    named = [{"sha256": name * 64, "path": "x.png"} for name in "ab"]
    made = exported(
        message(0, "user", "Look", images=named, typed="Look @./x"),
        message(1, "assistant", "Seen", thinking="hm", done_reason="stop"),
        system="Be brief.",
    )
    known = json.loads(transcript.as_json(made, lambda name: PNG if name[0] == "a" else None))
    assert known == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look", "images": ["iVBORw0KGgpwaWN0dXJl"]},
        {"role": "assistant", "content": "Seen"},
    ]
    imported = conversation("talk.json", json.dumps(known).encode(), 0, pytest.fail)
    assert list(imported.images.values()) == [PNG]


# -- text and Markdown -------------------------------------------------------------------------------------


def test_text() -> None:
    made = said("\n\n  indented\r\nred \x1b[31m\n", "Sure.\n\n", system="Be brief.")
    assert transcript.as_text(made) == (
        f"A title\n\nModel:   m\nDate:    2026-11-22 10:30 UTC\nSession: {new_id(1)}\n\n"
        "── System ──────────────────────────────────────────────────────────────\n\nBe brief.\n\n"
        "── User · 2026-09-21 14:13 UTC ─────────────────────────────────────────\n\n"
        "  indented\nred \\x1b[31m\n\n"
        "── m · 2026-09-21 14:13 UTC ────────────────────────────────────────────\n\nSure.\n"
    )


TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn what is read around."""


def test_what_would_be_read_in_another_order_is_seen() -> None:
    name = f"evil{TURNING}gpj.exe"
    picture = [{"sha256": "a" * 64, "path": name}]
    user = message(0, "user", f"See {name}", typed=f"Say {name}", images=picture)
    answer = message(1, "assistant", f"```\n{name}\n```", thinking=name, model=name)
    made = exported(user, answer, message(2, name, name), title=name, model_name=name, system=name)
    forms = (transcript.as_text(made), transcript.as_markdown(made), page.conversation(made, no_picture))
    for form in forms:
        assert not set(form) & set(TURNING)
        assert r"\u202e\u2066\u2067\u2068\u2069gpj" in form
    assert not set(made.first_words()) & set(TURNING)
    assert json.loads(transcript.as_json(made, no_picture))[1]["content"] == f"See {name}", "JSON is exact"


ODD_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


@pytest.mark.parametrize("end", [*ODD_ENDS, "\r\n", "\n"])
def test_an_odd_end_of_a_line_makes_no_line_of_ours(end: str) -> None:
    """A title, a model or a role with one stays on its line; so do the lines of archive.jsonl and of the list."""
    odd = f"a{end}# b{end}── System ──"
    made = exported(message(0, odd, odd, model=odd), title=odd, model_name=odd)
    text, markdown = transcript.as_text(made), transcript.as_markdown(made)
    assert text.split("\n")[0].startswith("a # b")
    assert markdown.split("\n")[0].startswith(r"# a \# b")
    assert [tag for tag, _ in outline(markdown)][:2] == ["h1", "h2"]
    for form in (text, markdown, page.conversation(made, no_picture)):
        assert not set(form) & set(ODD_ENDS) - {"\u2028", "\u2029"}
    assert "\u2028" not in made.title + made.model + made.said[0].speaker + made.first_words()
    row = json.dumps([new_id(1), odd], ensure_ascii=False)
    data = "".join(page.index([row])).partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data) == [json.loads(row)]


READER = MarkdownIt("commonmark", {"html": True}).enable("table")
"""Who reads the Markdown, and takes HTML for HTML."""
WITHOUT_HTML = MarkdownIt("commonmark", {"html": False}).enable("table")


def outline(markdown: str) -> list[tuple[str, str]]:
    """The headings that stand in no list or quotation; nothing in the document may be HTML."""
    tokens = READER.parse(markdown)
    pieces = [piece for token in tokens for piece in (token, *(token.children or ()))]
    assert [piece.content for piece in pieces if piece.type in {"html_block", "html_inline"}] == []
    headings = [number for number, token in enumerate(tokens) if token.type == "heading_open" and not token.level]
    texts = ["".join(child.content for child in tokens[number + 1].children or ()) for number in headings]
    return [(tokens[number].tag, text) for number, text in zip(headings, texts, strict=True)]


def ours(made: Transcript) -> list[tuple[str, str]]:
    return [("h1", made.title), *(("h2", said.head) for said in made.said)]


FRAGMENTS = st.sampled_from([
    "```", "~~~", "````", "# ", "###### x", "\n", "\n", "\n\n", "---", "===", "> ", "- ", "1. ", "    ", "\t", "`",
    "``", "<b>", "<!--", "-->", "<script>", "</div>", "<div\n", "<?", '<a href="', '"', ">", "<", "\\", "|", "|-|-|",
    "[x]: /u", "[x](<b>)", "<https://x.y`z>", "<a@b.c>", "&lt;", "a", " ", "*", "\r", "\x0c", "\u2028", "{",
    "<![CDATA[",
])  # fmt: skip


@given(st.lists(st.lists(FRAGMENTS, max_size=14).map("".join), min_size=1, max_size=3), st.lists(FRAGMENTS, max_size=5))
@example(["| ` | <b> | ` |\n|-|-|-|\n"], [])
@example(["``~`\n<!--``"], [])
@example(["```\nnever closed", "\n# Title\n"], ["<b>"])
def test_a_message_stays_between_its_headings_in_markdown(contents: list[str], title: list[str]) -> None:
    made = said(*contents, title="".join(title), model_name="".join(title))
    found = outline(transcript.as_markdown(made))
    above = [(tag, text) for tag, text in found if tag in {"h1", "h2"}]
    assert [tag for tag, _ in above] == [tag for tag, _ in ours(made)]
    assert [" ".join(text.split()) for _, text in above] == [" ".join(text.split()) for _, text in ours(made)]


@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_markdown_is_text(content: str) -> None:
    made = said(content, content, system=content, title=content, model_name=content)
    heads = [text for tag, text in outline(transcript.as_markdown(made)) if tag in {"h1", "h2"}]
    assert heads == [made.title, "System", *(said.head for said in made.said)]


def test_markdown_is_changed_only_where_it_must_be() -> None:
    kept = (
        "Some *text* with `List<T>` and a < b, x<3, <https://example.org>.\n\n```html\n<b>\n# no heading\n```\n\n"
        "    <i>indented</i>\n\n---\n\n| a | `<b>` |\n|---|---|\n\n- [x] done\n\n> said"
    )
    assert markup.contained(kept, 1) == kept
    assert markup.contained("# One\n\n## Two\n\n- # Three", 1) == "### One\n\n#### Two\n\n- ### Three"
    assert markup.contained("## Two\n\n##### Five", 1) == "### Two\n\n###### Five"
    assert markup.contained("### Three", 1) == "### Three"
    assert markup.contained("One\nline #\n===\ntext\n\nTwo\n---", 1) == "### One line # ###\ntext\n\n#### Two"
    assert markup.contained("a <b>bold</b> <!-- word", 1) == r"a \<b>bold\</b> \<!-- word"
    assert markup.contained("~~~~py\ncode\n~~~", 1) == "~~~~py\ncode\n~~~\n~~~~"
    assert markup.contained("```\na\n```", 1) == "```\na\n```"


def links(markdown: str) -> list[str]:
    """Where the links and pictures of a text lead."""
    pieces = [piece for token in WITHOUT_HTML.parse(markdown) for piece in token.children or ()]
    return [
        str(piece.attrs.get("href") or piece.attrs.get("src"))
        for piece in pieces
        if piece.type in {"link_open", "image"}
    ]


def test_labels_are_those_of_their_message() -> None:
    one = "Read [this][1], [1] and [it][].\n\n[1]: https://one.example/\n[it]: <https://one.example/a b> 'Title'"
    two = "No `[1]` here, [or][1] [1](https://two.example/x) [1](no target).\n\n> [1]: https://two.example/"
    none = "What does [1] say, and [this][1]?"
    made = transcript.as_markdown(said(one, two, none, system="[1]: /system"))
    assert links(made) == [
        "https://one.example/", "https://one.example/", "https://one.example/a%20b",
        "https://two.example/", "https://two.example/x", "https://two.example/",
    ]  # fmt: skip
    assert "Read [this][1-m1], [1][1-m1] and [it][it-m1]." in made
    assert "No `[1]` here" in made
    assert none in made


def test_footnotes_are_those_of_their_message() -> None:
    assert markup.contained("One.[^1] Two.[^b]\n\n[^1]: A note.\n[^b]: another\n\n- [^x]", 3) == (
        "One.[^1-m3] Two.[^b-m3]\n\n[^1-m3]: A note.\n[^b-m3]: another\n\n- [^x]"
    )


LINKING = st.sampled_from([
    "[a]", "[b]", "[A]", "[c]", "[]", "[a\nb]", "[a [b]]", "[^1]", "[<b>]", '[x <a href="]', "(/x)", "(<x y>)", "(<b>)",
    "[a]: /u\n", "\n\n[a]: /u\n", "\n\n[b]: <x y> 't'\n\n", "\n\n[a\nb]: /v\n\n", "\n\n[<b>]: /w\n\n",
    "\n[c]:\n<div>\n", '\n\n[x <a href="]: /w\n\n', "\n[c]: javascript:x '<b>'\n", "\n|-|-|\n", " ", "\n",
    "`", "!", "*", "[", "x", ":", "> ", "- ", "<b>", "|", '">',
])  # fmt: skip


@settings(max_examples=300)
@given(st.lists(LINKING, max_size=14).map("".join), st.lists(LINKING, max_size=8).map("".join))
@example("[a][b][a]\n\n[a]: /u\n[b]: /v", "[a][c] [b][][a]")
@example("[c](<x y>) [d](\n<div>)", "[d]:\n<div>\n\n[d]")
def test_links_lead_where_they_led(one: str, two: str) -> None:
    made = transcript.as_markdown(said(one, two))
    outline(made)
    # No label in the first, but markdown-it takes it for one; the second becomes a definition without the space in it.
    if not re.search(r"\]\[[^\]]*\[|\]:\s*\[", one + two):
        assert links(made) == [link for content in (one, two) for link in links(render.plain(content))]


def test_an_address_in_angle_brackets() -> None:
    kept = "[l](<https://x/a b>) ![p]( <mailto:a b> )"
    assert markup.contained(kept, 1) == kept
    assert markup.contained(r"[l](<a \> (b) c.md> 'title') [e](<>) \](<b>)", 1) == (
        r"[l](a%20\>%20%28b%29%20c.md 'title') [e](<>) \](\<b>)"
    )


@pytest.mark.parametrize(
    "text", ["| a | `b` | <i> |\n", "word <b>\n", "- a\n", "[", "> ", "# a\n", "```` x\n", "[1]: /u\n"]
)
def test_a_huge_message_takes_no_longer_than_its_length(text: str) -> None:
    """As Markdown it could take the square of it, so beyond a limit it is shown as it is."""
    huge = "| a | b | c |\n|-|-|-|\n" + text * (1_000_000 // len(text))
    start = time.process_time()
    made = transcript.as_markdown(said(huge, huge))
    page.conversation(said(huge, huge), no_picture)
    assert time.process_time() - start < 2
    assert [tag for tag, _ in outline(made)] == ["h1", "h2", "h2"]
    assert huge.rstrip() in made


# -- HTML --------------------------------------------------------------------------------------------------

ELEMENTS = {
    "html", "meta", "link", "title", "style", "nav", "header", "h1", "h2", "h3", "h4", "h5", "h6", "p", "span", "bdi",
    "main", "article", "div", "a", "time", "footer", "pre", "code", "strong", "em", "s", "ul", "ol", "li", "blockquote",
    "hr", "br", "table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption", "details", "summary",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "rel", "href", "class", "id", "dir", "datetime", "title", "src",
    "alt", "start",
}  # fmt: skip


class Checked(HTMLParser):
    """A page, every element and attribute of which must be one that we write."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag in ELEMENTS, tag
        assert set(values) <= ATTRIBUTES, attrs
        if tag == "a":
            assert re.match(r"https?://|mailto:|#m\d+$|\.\./index\.html$", values["href"] or ""), attrs
            self.links.append(values["href"] or "")
        if "src" in values:
            assert re.fullmatch(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+", values["src"] or ""), attrs
        if tag not in {"meta", "link", "br", "hr", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data}")


def hostile() -> Transcript:
    """A conversation that is hostile wherever it can be."""
    records = [
        message(number, role, text) for role in ("user", "assistant", "tool") for number, text in enumerate(HOSTILE)
    ]
    everything = "\n\n".join(HOSTILE)
    picture = [{"sha256": "a" * 64, "path": HOSTILE[1]}, {"sha256": "b" * 64, "path": HOSTILE[0]}]
    more = message(90, "user", everything, typed=everything + ".", images=picture)
    answer = message(91, "assistant", everything, model=HOSTILE[1], thinking=everything)
    return exported(*records, more, answer, system=everything, title=HOSTILE[2], model_name=HOSTILE[1])


def test_a_hostile_conversation_is_text_and_pictures() -> None:
    text = page.conversation(hostile(), lambda name: PNG if name[0] == "a" else None, "../index.html")
    found = Checked(text)
    assert "https://evil.example/pixel.png" in found.links, "a picture elsewhere is a link"
    assert not [link for link in found.links if "passwd" in link]
    assert text.count("<script") == text.count("<iframe") == text.count(" onerror=x") == 0
    assert text.count("<style>") == text.count("</style>") == 1


@given(st.lists(FRAGMENTS | st.sampled_from(HOSTILE) | TEXTS, max_size=10).map("".join))
def test_whatever_is_said_gives_a_sound_page(content: str) -> None:
    Checked(page.conversation(said(content, content, title=content, system=content), no_picture))


def test_the_policy_of_a_page() -> None:
    text = page.conversation(said("Hi"), no_picture)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; img-src data:; base-uri 'none'; form-action 'none'",
        policy,
    )
    assert "@import" not in text
    assert "url(" not in text
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text


def test_markdown_and_code_in_a_page() -> None:
    answer = (
        "# Top\n\nOne\ntwo\n\n```python title=x\ndef f(): return 'ä'\n```\n\n```nonsense\n<b>\n```\n\n|a|\n|--:|\n|1|"
    )
    text = page.conversation(said("# no heading\n  *stars*\n\n```sh\nls\n```", answer), no_picture)
    assert '<div class="typed" dir="auto"># no heading\n  *stars*</div><div class="code">' in text
    assert '<h3 dir="auto">Top</h3>\n<p dir="auto">One<br>\ntwo</p>' in text.replace("<br />", "<br>")
    assert '<span class="k">def </span><span class="f">f</span>(): ' in text
    assert '<span class="language">nonsense</span><pre><code>&lt;b&gt;\n</code></pre>' in text
    assert '<td class="right">1</td>' in text


def test_a_prompt_with_references_shows_what_was_typed() -> None:
    made = exported(message(0, "user", "Review print(1)", typed="Review @./a.py"))
    text = page.conversation(made, no_picture)
    assert text.index("Review @./a.py") < text.index("<summary>") < text.index("Review print(1)")


def test_a_row_with_more_cells_than_columns_keeps_them() -> None:
    made = markup.html_of("|a|b|\n|-|-|\n|count|`ls | wc`|<i>last|\n")
    assert "<td>count</td>\n<td><code>ls | wc</code>|&lt;i&gt;last</td>" in made


def test_what_is_too_long_is_not_read_as_markdown() -> None:
    assert markup.html_of("![" * 60_000).startswith('<div class="typed"')
    code = "x = 1\n" * 20_000
    assert markup.html_of(f"```python\n{code}```").startswith('<div class="typed"')
    assert "<span" not in markup.html_of("```python\n" + "x = 1\n" * 9_000 + "```").partition("<pre>")[2]


def test_the_list_of_an_archive_is_data() -> None:
    rows = [json.dumps([new_id(1), "</script><script>alert(1)</script><!--", "m", "", 1, "\u2028"])]
    text = "".join(page.index(rows))
    assert text.count("<script") == text.count("</script>") == 2
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data) == [json.loads(rows[0])]
    assert "script-src 'sha256-" in text


NODE = shutil.which("node")


@pytest.mark.skipif(
    NODE is None, reason="node is not installed: the script of the list is not compared with folding.py"
)
def test_the_list_folds_as_a_search_does() -> None:
    """Every character that Unicode has had since 3.2, alone and between others; ends of words, marks in any order."""
    known = [
        chr(code)
        for code in range(0x20, 0x2FFFF)
        if unicodedata.ucd_3_2_0.category(chr(code)) not in {"Cn", "Cs", "Co"}
    ]
    known = [
        char for char in known if "CHEROKEE" not in unicodedata.name(char, "")
    ]  # the only one with case turned over
    texts = [
        "Größe STRASSE ẞ",
        "ΟΔΥΣΣΕΥΣ Οδυσσεύς ς",
        "Ørsted Æsir IĞDIR \u0131s\u0131 İ\u0131",
        "Zu\u0308rich Z\u00fcrich",
        "a\u0345\u0301\u0334",
        "ﬃ №",
    ]
    texts += [*known, *(f"A{char}\u0301\u0323B" for char in known[:20_000])]
    script = page._asset("archive.js")
    folding_part = script[script.index("  const FOLDED") : script.index("  const byId")]
    code = f"{folding_part}; const texts = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
    code += "process.stdout.write(JSON.stringify(texts.map(fold)))"
    done = subprocess.run([str(NODE), "-e", code], input=json.dumps(texts).encode(), capture_output=True, check=True)
    found = zip(texts, json.loads(done.stdout), strict=True)
    assert [(text, folded, fold(text)) for text, folded in found if folded != fold(text)] == []


# -- files -------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    assert exporting.write(str(path), ["ä", "b"]) == 3
    path.chmod(0o640)

    def failing() -> Any:
        yield "half"
        raise OSError(28, "No space left on device")

    with pytest.raises(ExportFailed, match="No space left"):
        exporting.write(str(path), failing())
    assert path.read_text(encoding="utf-8") == "äb"
    exporting.write(str(path), ["new"])
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ("new", 0o640)
    assert [found.name for found in tmp_path.iterdir()] == ["talk.md"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_an_unfinished_file_is_private_and_cannot_be_foreseen(tmp_path: Path) -> None:
    """Whoever can write to the folder as well must not be able to put a link in its place."""
    seen: list[tuple[str, int]] = []

    def looking() -> Any:
        seen.extend((found.name, found.stat().st_mode & 0o777) for found in tmp_path.iterdir())
        yield "text"

    before = os.umask(0o027)
    try:
        exporting.write(str(tmp_path / "talk.md"), looking())
        assert os.umask(0o027) == 0o027
        (tmp_path / "talk.md").rename(tmp_path / "other.md")
        exporting.write(str(tmp_path / "talk.md"), looking())
    finally:
        os.umask(before)
    assert (tmp_path / "talk.md").stat().st_mode & 0o777 == 0o640, "as any new file"
    unfinished = [(name, mode) for name, mode in seen if exporting.is_unfinished(name)]
    assert len({name for name, _ in unfinished}) == 2
    assert [mode for _, mode in unfinished] == [0o600, 0o600]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.md").symlink_to("real.md")
    exporting.write(str(tmp_path / "link.md"), ["text"])
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "text"


@pytest.mark.parametrize("changed", ["release", "library", "code", "style"])
def test_the_fingerprint_changes_with_whatever_makes_pages(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    before, asset = page.fingerprint(), page._asset
    assert page.fingerprint() == before
    if changed == "release":
        monkeypatch.setattr(page, "__version__", "3")
    elif changed == "library":
        monkeypatch.setattr(markup, "READERS", "Pygments 999")
    else:
        name = "markup.py" if changed == "code" else "page.css"
        monkeypatch.setattr(page, "_asset", lambda asked: asset(asked) + (" " if asked == name else ""))
    assert page.fingerprint() != before


def test_the_fingerprint_knows_all_that_makes_pages() -> None:
    makers = {"page", "archive"} | own("page") | own("markup")
    assert {f"{name}.py" for name in makers} <= set(page._SOURCES)


def test_a_page_says_what_made_it() -> None:
    assert page.conversation(said("Hi"), no_picture).encode().startswith(page.MARK)
