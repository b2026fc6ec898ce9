"""Searching: the index finds what a scan finds, and that is what occurs; what is gone is in no byte of it."""

from __future__ import annotations

import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
import stores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stores import add, header, line, message, replace

from ollama_prompt import query, records, removal, search, search_index, selection
from ollama_prompt.errors import SessionNotFound, UsageError
from ollama_prompt.folding import fold, separate
from ollama_prompt.index import YOUNG
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout
from ollama_prompt.query import Scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANYWHERE = Scope()


@pytest.fixture
def indexer(home: Path) -> Indexer:
    """The store."""
    return Indexer(Layout(str(home)), lambda _: None)


def found(indexer: Indexer, text: str, scope: Scope = ANYWHERE, best: bool = False) -> list[str]:
    """The snippets of everything that matches."""
    matches, total = indexer.search(text, scope, None, best)
    assert len(matches) == total
    return [match["snippet"] for match in matches]


Answers = list[tuple[list[Any], int]]

WAYS = [(None, False), (3, False), (3, True)]
"""Limits, and whether the best come first."""


def scanned(indexer: Indexer, text: str, scope: Scope = ANYWHERE) -> Answers:
    """What a scan finds, in each way."""
    found = list(search._scan(indexer, query.words_of(text), scope, indexer.catalogue.stamps()))
    by_time = sorted(found, key=lambda each: (each[4], each[1], each[2], each[3]), reverse=True)
    by_rank = sorted(by_time, key=lambda each: each[5], reverse=True)
    return [(as_shown((by_rank if best else by_time)[:limit]), len(found)) for limit, best in WAYS]


def indexed(indexer: Indexer, text: str, scope: Scope = ANYWHERE) -> Answers:
    """What the index finds, in each way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_scan", None)
        words, stamps = query.words_of(text), indexer.catalogue.stamps()
        found = [search._matching(indexer, words, scope, stamps, limit, best) for limit, best in WAYS]
    return [(as_shown(first), total) for first, total in found]


def as_shown(found: list[Any]) -> list[Any]:
    """Without the rank, which is known only where it matters."""
    return [each[:5] for each in found]


def keep(home: Path, *texts: str, number: int = 1, **more: Any) -> Path:
    """A session with these messages."""
    session_id = stores.new_id(number)
    said = [message(100 * number + at, "user", text) for at, text in enumerate(texts)]
    return stores.make(home, number, b"".join(map(line, [header(session_id, **more), *said])))


def bytes_of(home: Path) -> bytes:
    """Every byte in the store."""
    return b"\0".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


# --- What is found -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sought"),
    [
        ("I don't know", "don't"),
        ("write to foo@bar.example", "foo@bar"),
        ("see POL-358.", "pol-358"),
        ('he said "no"', '"no"'),
        ("a * b", "*"),
        ("f(x)", "("),
        ("AND OR NOT NEAR", "and or"),
        ("100 %", "%"),
        ("a_b", "_"),
        ("party 🎉 time", "🎉"),
        ("I ❤️ it", "❤"),
        ("今天天气很好", "天气"),
        ("今天天气很好", "气"),
        ("今天天气很好", "天天气很"),
        ("明日は雨でしょう", "雨でし"),
        ("カタカナ", "タカ"),
        ("สวัสดีครับ", "ดีค"),
        ("한국어를 배웁니다", "국어"),
        ("Größe in Straße", "strasse grosse"),
        ("Größe", "größe"),
        ("Größe", "GRO\u0308SSE"),
        ("cafe\u0301", "café"),
        ("naïve café", "naive CAFE"),
        ("Smørrebrød", "smorrebrod"),
        ("Łódź", "lodz"),
        ("ﬁnd", "find"),
        ("\uff21\uff22\uff23", "abc"),
        ("Ελλάδα", "ελλαδα"),
        ("ПРИВЕТ", "привет"),
        ("unbelievable", "liev"),
        ("x" * 50_000 + "needle" + "y" * 50_000, "xneedley"),
        ("z" * 100_000, "z" * 9_000),
        ("я" * 20_000 + "конец", "конец"),
        ("한" * 11_000 + "끝", "한끝"),
        ("hello world", "o w"),
        ("C:\\temp\\new", "temp\\new"),
        ("line one\nline two", "two one"),
        ("nul \0 inside", "inside"),
        ("it \u00b4 is an accent", "\u00b4"),
        ("don\u00b4t", "n\u00b4t"),
        ("a\u00a0b", "a b"),
    ],
)
def test_a_word_is_found_wherever_it_occurs(indexer: Indexer, home: Path, text: str, sought: str) -> None:
    keep(home, text)
    keep(home, "nothing of it", number=2)
    assert len(found(indexer, sought)) == 1
    assert indexed(indexer, sought) == scanned(indexer, sought)


@pytest.mark.parametrize("sought", ["helloworld", "wor ld!", "天地", "café au", "ello-"])
def test_what_does_not_occur_is_not_found(indexer: Indexer, home: Path, sought: str) -> None:
    keep(home, "hello world, don't: 天气地 café")
    assert found(indexer, sought) == []


@pytest.mark.parametrize("sought", ["", " ", "\u0301", "\ufe0f"])
def test_nothing_to_search_for(indexer: Indexer, sought: str) -> None:
    with pytest.raises(UsageError, match="nothing to search for"):
        found(indexer, sought)


def test_all_words_in_one_message(indexer: Indexer, home: Path) -> None:
    keep(home, "red green", "green blue", number=1)
    keep(home, "red", "blue", number=2)
    assert found(indexer, "blue green") == ["⟦green⟧ ⟦blue⟧"]
    assert found(indexer, "red blue") == []


def test_a_title_a_system_prompt_what_was_typed_and_thought(indexer: Indexer, home: Path) -> None:
    path = keep(home, "hello", title="About pelicans", system="Speak like a pirate")
    add(path, line(message(900, "user", "long text", typed="@./walrus.txt")))
    add(path, line(message(901, "assistant", "short", thinking="the ostrich")))
    matches, _ = indexer.search("pelican", ANYWHERE, 5, False)
    keys = ("session_id", "title", "message_id", "role", "snippet")
    assert [matches[0][key] for key in keys] == [path.stem, "About pelicans", None, None, "About ⟦pelican⟧s"]
    matches, _ = indexer.search("pirate", ANYWHERE, 5, False)
    assert (matches[0]["role"], matches[0]["message_id"]) == ("system", None)
    assert len(found(indexer, "walrus")) == len(found(indexer, "ostrich")) == 1


def test_what_a_match_says(indexer: Indexer, home: Path) -> None:
    path = keep(home, "first question", "the second one")
    matches, total = indexer.search("second", ANYWHERE, 5, False)
    assert total == 1
    assert matches == [
        {
            "session_id": path.stem,
            "title": "first question",
            "message_id": stores.new_id(101),
            "role": "user",
            "created_at": message(101, "user", "")["created_at"][:19] + "Z",
            "snippet": "the ⟦second⟧ one",
        }
    ]


def test_what_was_taken_back_or_replaced_is_not_found(indexer: Indexer, home: Path) -> None:
    path = keep(home, "walrus", "pelican", title="ostrich")
    assert len(found(indexer, "walrus")) == len(found(indexer, "ostrich")) == 1
    add(path, line(records.undo([stores.new_id(100)])))
    add(path, line(records.meta({"title": "flamingo"})))
    assert found(indexer, "walrus") == found(indexer, "ostrich") == []
    assert len(found(indexer, "pelican")) == len(found(indexer, "flamingo")) == 1


def test_newest_and_best_first(indexer: Indexer, home: Path) -> None:
    keep(home, "the cat sat", "catalogue", "concatenate", "a cat and a category")
    assert found(indexer, "cat") == [
        "a ⟦cat⟧ and a ⟦cat⟧egory", "con⟦cat⟧enate", "⟦cat⟧alogue", "the ⟦cat⟧ sat"
    ]  # fmt: skip
    assert found(indexer, "cat", best=True) == [
        "a ⟦cat⟧ and a ⟦cat⟧egory", "the ⟦cat⟧ sat", "⟦cat⟧alogue", "con⟦cat⟧enate"
    ]  # fmt: skip


def test_scopes(indexer: Indexer, home: Path) -> None:
    one = keep(home, "walrus one", number=1, model="smollm2:latest")
    keep(home, "walrus two", number=2, model="qwen3")
    keep(home, "walrus three", number=50_000, model="smollm2x")
    assert found(indexer, "walrus", Scope(session_id=one.stem)) == ["⟦walrus⟧ one"]
    for model in ("smollm2", "smollm2:latest"):
        assert found(indexer, "walrus", Scope(model=model)) == ["⟦walrus⟧ one"]
    later = message(1_000_000, "user", "")["created_at"]
    assert found(indexer, "walrus", Scope(since=later)) == ["⟦walrus⟧ three"]
    for scope in (Scope(session_id=one.stem), Scope(model="smollm2"), Scope(since=later)):
        assert indexed(indexer, "walrus", scope) == scanned(indexer, "walrus", scope)


def test_a_snippet_of_a_long_text(indexer: Indexer, home: Path) -> None:
    keep(home, "word " * 500 + "NEEDLE in a\nhaystack " + "word " * 500)
    (shown,) = found(indexer, "needle haystack")
    assert "⟦NEEDLE⟧ in a ⟦haystack⟧" in shown
    assert (shown[0], shown[-1]) == ("…", "…")
    assert len(shown) < query.SNIPPET_LENGTH + 30


def test_a_snippet_shows_the_place_with_most_of_the_words(indexer: Indexer, home: Path) -> None:
    keep(home, "red " + "word " * 500 + "blue, red, green. " + "word " * 500 + "green")
    assert "⟦blue⟧, ⟦red⟧, ⟦green⟧." in found(indexer, "red green blue")[0]


def test_a_snippet_of_a_long_word(indexer: Indexer, home: Path) -> None:
    keep(home, "a" * 50_000)
    assert found(indexer, "a" * 40_000) == ["⟦" + "a" * query.SNIPPET_LENGTH + "⟧…"]


# --- The same as a scan ------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("abe c-'\"*(é\u0301天气地カで한국ß\0_A\nﬁ🎉"), max_size=12)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_header_makes_no_message_void(indexer: Indexer, home: Path, is_first: bool) -> None:
    """One that was written by hand may have the id of a message."""
    head = line(header(stores.new_id(1), id=stores.new_id(5), title="needle in the title"))
    said = line(message(5, "user", "needle in a message"))
    stores.make(home, 1, head + said if is_first else said + head)
    assert sorted(found(indexer, "needle")) == ["⟦needle⟧ in a message", "⟦needle⟧ in the title"]


@given(texts=st.lists(TEXT, min_size=1, max_size=5), sought=TEXT)
@settings(max_examples=300, deadline=None)
def test_a_word_fits_as_its_pieces_say(texts: list[str], sought: str) -> None:
    """Whoever has the word has its pieces; of an exact one, also the other way round, and as well."""
    for word in query.words_of(sought):
        for text in texts:
            folded = fold(text)
            terms = search_index._WORD.findall(separate(text))
            vocabulary = "\n".join(["", *terms, ""])
            fitting = [search_index._terms(vocabulary, piece) or set() for piece in word.pieces]
            fitting = [each & set(terms) for each in fitting]
            if word.text in folded:
                assert all(fitting)
            elif word.is_exact:
                assert not all(fitting)
            if word.is_exact and word.text in folded:
                piece = word.pieces[0][0]
                assert word.rank(folded) == max(query.rank_of_term(piece, term) for term in fitting[0])


@given(text=st.text(max_size=20), start=st.integers(0, 20), length=st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_what_occurs_in_a_text_occurs_in_it_folded(text: str, start: int, length: int) -> None:
    import unicodedata

    text = unicodedata.normalize("NFC", text)
    part = text[start : start + length]
    if unicodedata.normalize("NFC", part) == part and not (part and unicodedata.combining(part[0])):
        assert fold(part) in fold(text)
        assert fold(part.upper()) == fold(part) or fold(part.upper()) != part


class Searching(RuleBasedStateMachine):
    """Whatever happens to the files, the index finds what a scan finds."""

    home: Path
    index_is_kept = 0

    @initialize()
    def begin(self) -> None:
        for path in stores.files(self.home):
            path.unlink()
        self.indexer = Indexer(Layout(str(self.home)), lambda _: None)
        self.numbers = iter(range(1, 10_000))
        self.paths: list[Path] = []
        keep(self.home, "a", number=0)

    @rule(texts=st.lists(TEXT, max_size=3), title=TEXT)
    def new(self, texts: list[str], title: str) -> None:
        self.paths.append(keep(self.home, *texts, number=next(self.numbers), title=title))

    @rule(text=TEXT, data=st.data())
    def append(self, text: str, data: st.DataObject) -> None:
        if self.paths:
            add(data.draw(st.sampled_from(self.paths)), line(message(1000 + next(self.numbers), "user", text)))

    @rule(data=st.data(), title=TEXT)
    def change_settings(self, data: st.DataObject, title: str) -> None:
        if self.paths:
            record = {"type": "meta", "id": stores.new_id(1000 + next(self.numbers)), "title": title, "model": "m"}
            add(data.draw(st.sampled_from(self.paths)), line(record))

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        if self.paths:
            path = data.draw(st.sampled_from(self.paths))
            ids = [record["id"] for record in map(records.decode, path.read_bytes().splitlines()) if "id" in record]
            if ids:
                add(path, line(records.undo([data.draw(st.sampled_from(ids))])))

    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        """As a merge does it: other lines in between; or as an editor, with a line removed."""
        if self.paths:
            path = data.draw(st.sampled_from(self.paths))
            lines = path.read_bytes().splitlines(keepends=True)
            extra = line(message(1000 + next(self.numbers), "user", data.draw(TEXT)))
            at = data.draw(st.integers(min(1, len(lines)), len(lines)))
            if data.draw(st.booleans()):
                lines.insert(at, extra)
            else:
                lines[max(at - 1, 0) : at] = []
            replace(path, b"".join(lines))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.paths:
            path = data.draw(st.sampled_from(self.paths))
            self.paths.remove(path)
            path.unlink()

    @rule(sought=TEXT.filter(lambda text: bool(fold(text).split())), scoped=st.booleans())
    def search(self, sought: str, scoped: bool) -> None:
        scope = Scope(model="m") if scoped else ANYWHERE
        assert indexed(self.indexer, sought, scope) == scanned(self.indexer, sought, scope)

    @invariant()
    def words_are_in_files(self) -> None:
        path = self.home / "search.db"
        if path.exists() and self.current():
            words = {word for file in stores.files(self.home) for word in all_words(file)}
            with search_index.opened(str(path)) as index:
                terms = {row[0] for row in index._database.execute("SELECT term FROM terms")}
                assert terms <= words

    def current(self) -> bool:
        """Whether the index is of the files as they are now."""
        stamps = self.indexer.catalogue.stamps()
        with search_index.opened(str(self.home / "search.db")) as index:
            return index.is_current(stamps)


def all_words(path: Path) -> set[str]:
    """The words of all text in a file."""
    texts = (records.text_of(each) for each in path.read_bytes().splitlines())
    return {word for text in texts for word in search_index._WORD.findall(separate(text))}


def test_the_index_finds_what_a_scan_finds(home: Path) -> None:
    Searching.home = home
    case = Searching.TestCase
    case.settings = settings(
        max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case("runTest").runTest()


# --- The file ----------------------------------------------------------------------------------------


def test_it_is_made_by_the_first_search_only(indexer: Indexer, home: Path) -> None:
    keep(home, "walrus")
    indexer.sessions()
    assert not (home / "search.db").exists()
    found(indexer, "walrus")
    assert (home / "search.db").exists()
    if os.name == "posix":
        assert (home / "search.db").stat().st_mode & 0o777 == 0o600


def test_only_what_changed_is_read(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch, late: None) -> None:
    paths = [keep(home, f"walrus {number}", number=number) for number in range(1, 5)]
    found(indexer, "walrus")
    taken: list[str] = []
    take = search_index.SearchIndex._take

    def taking(self: search_index.SearchIndex, path: str, *more: Any, **named: Any) -> None:
        taken.append(path)
        take(self, path, *more, **named)

    monkeypatch.setattr(search_index.SearchIndex, "_take", taking)
    found(indexer, "walrus")
    assert taken == []
    add(paths[2], line(message(999, "user", "walrus again")))
    assert len(found(indexer, "walrus")) == 5
    assert [os.path.basename(path) for path in taken] == [paths[2].name]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read long after they changed."""
    import time

    from ollama_prompt import catalogue

    monkeypatch.setattr(catalogue, "read_time_ns", lambda: time.time_ns() + 3600 * 10**9)


@pytest.mark.parametrize("how", ["delete", "purge", "gone", "edited"])
def test_what_is_removed_is_in_no_byte_of_the_store(indexer: Indexer, home: Path, how: str) -> None:
    path, other = keep(home, "walrusflamingo 天气预报"), keep(home, "pelican", number=2)
    assert len(found(indexer, "flamingo")) == 1
    assert b"walrusflamingo" in (home / "search.db").read_bytes()
    if how == "delete":
        indexer.delete(path.stem)
    elif how == "purge":
        add(other, line(message(10**9, "user", "now")))
        assert indexer.purge(1, False)[0] == [path.stem]
    elif how == "gone":
        path.unlink()
        assert found(indexer, "flamingo") == []
    else:
        replace(path, path.read_bytes().replace(b"walrusflamingo", b"").replace("天气预报".encode(), b""))
        assert found(indexer, "flamingo") == []
    assert b"flamingo" not in bytes_of(home)
    assert "预报".encode() not in bytes_of(home)
    assert len(found(indexer, "pelican")) == 1


def test_a_session_that_was_deleted_while_its_words_were_kept(indexer: Indexer, home: Path) -> None:
    path = keep(home, "walrusflamingo")
    found(indexer, "flamingo")
    path.unlink()
    with pytest.raises(SessionNotFound):
        indexer.delete(path.stem)
    assert not (home / "search.db").exists()


def test_what_a_killed_search_left_beside_a_good_index(indexer: Indexer, home: Path) -> None:
    path = keep(home, "walrus")
    found(indexer, "walrus")
    secret = keep(home, "flamingo", number=2)
    (home / "search.db.tmp").write_bytes(b"flamingo")
    indexer.delete(secret.stem)
    assert b"flamingo" not in bytes_of(home)
    assert (home / "search.db").exists()
    assert path.exists()


def test_an_index_that_cannot_be_made_leaves_nothing(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, "walrus")
    monkeypatch.setattr(search_index.SearchIndex, "_keep_vocabulary", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search_index.update(str(home / "search.db"), {}, str(home / "sessions"), lambda *_: None)
    assert not list(home.glob("search.db*"))


def test_a_deletion_does_not_wait_for_ever(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(home, "walrus")
    found(indexer, "walrus")
    monkeypatch.setattr(removal, "WORDS_SECONDS", 0.1)
    with indexer.lock("search", 0):
        Indexer(Layout(str(home)), lambda _: None).delete(path.stem)
    assert b"walrus" not in bytes_of(home)


def test_what_a_killed_search_left_goes_with_a_deletion(indexer: Indexer, home: Path) -> None:
    path = keep(home, "walrus")
    (home / "search.db.tmp").write_bytes(b"walrus")
    indexer.delete(path.stem)
    assert not (home / "search.db.tmp").exists()


def test_a_folder_in_its_place_is_left_alone(indexer: Indexer, home: Path) -> None:
    path = keep(home, "walrus")
    (home / "search.db").mkdir()
    indexer.delete(path.stem)
    assert not path.exists()
    assert (home / "search.db").is_dir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "holes": lambda path: path.write_bytes(path.read_bytes()[:8192] + bytes(8192) + path.read_bytes()[16384:]),
    "another database": lambda path: lay(path, "CREATE TABLE a (b)"),
    "another release": lambda path: sql(path, "PRAGMA user_version = 99"),
    "without a table": lambda path: sql(path, "DROP TABLE documents"),
    "without words": lambda path: sql(path, "DROP TABLE vocabulary"),
    "a folder": lambda path: lay(path, None),
}


def lay(path: Path, statement: str | None) -> None:
    """Something else in its place: a database, or a folder."""
    path.unlink()
    if statement is None:
        path.mkdir()
    else:
        sql(path, statement)


def sql(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_is_made_anew_where_it_is_damaged(indexer: Indexer, home: Path, damage: str) -> None:
    for number in range(1, 40):
        keep(home, *(f"walrus {number} {at} " + "filler text " * 20 for at in range(5)), number=number)
    assert len(found(indexer, "walrus")) == 195
    DAMAGE[damage](home / "search.db")
    for _ in range(2):
        assert len(found(indexer, "walrus 7")) >= 5
        assert indexed(indexer, "filler 12") == scanned(indexer, "filler 12") if damage != "a folder" else True


def test_without_fts5_or_a_place_to_write(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(home, "walrus")
    monkeypatch.setattr(search_index, "_SCHEMA", search_index._SCHEMA.replace("fts5(", "fts77("))
    assert found(indexer, "walrus") == ["⟦walrus⟧"]
    assert not (home / "search.db").exists()
    monkeypatch.setattr(indexer.layout, "search", str(home / "no such folder" / "search.db"))
    assert found(indexer, "walrus") == ["⟦walrus⟧"]


@pytest.mark.parametrize("terms", [1, 3, 100])
@pytest.mark.parametrize("newest", [4, 80])
def test_many_documents(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch, newest: int, terms: int) -> None:
    """Looked at from the newest on or all, word by word or at once, what is found is the same."""
    monkeypatch.setattr(selection, "MANY_DOCUMENTS", newest)
    monkeypatch.setattr(selection, "NEWEST", newest)
    monkeypatch.setattr(selection, "MANY_TERMS", terms)
    monkeypatch.setattr(search_index, "MANY_NEW", 1_000)
    paths = [
        keep(home, *(f"walrus{number} sea{at} pelican's" for at in range(3)), number=number, model=f"m{number % 2}")
        for number in range(1, 30)
    ]
    keep(home, *["the same time"] * 9, number=40)
    for number, path in enumerate((paths[2], paths[20], paths[11])):  # not in the order in which they began
        add(path, line(message(10**6 - number, "user", "walrus2 sea1 pelican's")))
    for sought in ("walrus", "walrus2", "walrus1 sea", "alrus2 sea2", "sea1", "pelican's", "e", "same"):
        for scope in (ANYWHERE, Scope(model="m1"), Scope(session_id=stores.new_id(12))):
            assert indexed(indexer, sought, scope) == scanned(indexer, sought, scope)


def test_the_newest_are_looked_at_where_many_match(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MANY_DOCUMENTS", 0)
    monkeypatch.setattr(selection, "NEWEST", 20)
    for number in range(1, 30):
        keep(home, "walrus", number=number)
    asked = []
    rows = selection.Selection._rows

    def asking(self: selection.Selection, tables: list[str], *more: Any) -> list[Any]:
        asked.append(tables[0])
        return rows(self, tables, *more)

    monkeypatch.setattr(selection.Selection, "_rows", asking)
    assert len(indexer.search("walrus", ANYWHERE, 3, best_first=False)[0]) == 3
    assert asked == ["documents INDEXED BY by_time"]
    assert len(indexer.search("walrus", ANYWHERE, 25, best_first=False)[0]) == 25
    assert asked[1:] == ["documents INDEXED BY by_time", "postings"]


def test_many_words_and_many_updates(indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "MANY_WORDS", 3)
    monkeypatch.setattr(search_index, "MANY_BYTES", 100)
    monkeypatch.setattr(search_index, "PARTS", 3)
    path = keep(home, "walrusa walrusb walrusc walrusd walruse")
    for number in range(9):
        add(path, line(message(200 + number, "user", f"walrus{number} pelican" + "x" * 30 * (number % 2))))
        for sought in ("walrus", "walrus pelican", "alrus3", "ican"):
            assert indexed(indexer, sought) == scanned(indexer, sought)


def current(indexer: Indexer, home: Path, stamps: dict[str, bytes]) -> bool:
    """Whether an index of the files as they are now is of these ones."""
    path = str(home / "search.db")
    search_index.update(path, indexer.catalogue.stamps(), str(home / "sessions"), lambda *_: None)
    with search_index.opened(path) as index:
        return index.is_current(stamps)


def test_an_index_of_young_files_is_not_current(indexer: Indexer, home: Path) -> None:
    """They may change without showing it: the same stamps do not mean the same text."""
    keep(home, "walrus")
    stamps = indexer.catalogue.stamps()
    assert [*stamps.values()] == [YOUNG]
    assert not current(indexer, home, stamps)


@pytest.mark.usefixtures("late")
def test_the_same_files_in_another_order_are_the_same(indexer: Indexer, home: Path) -> None:
    for number in range(1, 4):
        keep(home, "walrus", number=number)
    stamps = indexer.catalogue.stamps()
    assert current(indexer, home, stamps)
    assert current(indexer, home, dict(reversed(stamps.items())))
    assert not current(indexer, home, dict([*stamps.items()][:-1]))


def test_several_at_once(home: Path) -> None:
    for number in range(1, 30):
        keep(home, f"walrus {number}", number=number)
    counts: list[int] = []

    def run() -> None:
        counts.append(len(found(Indexer(Layout(str(home)), lambda _: None), "walrus")))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [29] * 6
