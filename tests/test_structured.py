"""What --format takes, and what an answer to it must be."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_prompt import render, structured
from ollama_prompt.errors import IncompleteAnswer
from ollama_prompt.text import DEEPEST

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

LARGEST = 2**63 - 1
SCHEMA: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


KEYWORDS = (
    "$schema", "$id", "$ref", "$anchor", "$dynamicRef", "$defs", "definitions", "type", "properties", "items", "allOf",
    "anyOf", "not", "if", "enum", "const", "default", "pattern", "minimum", "multipleOf", "required", "format",
)  # fmt: skip
VALUES = st.sampled_from(
    ["object", "string", "#", "#/$defs/a", "#a", "a", "http://[::1", "https://example.com/", 0, 5.5, None, True]
)
schemas = st.recursive(
    VALUES | st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4),
)


def nested(depth: int) -> Json:
    """A schema in a schema in a schema."""
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def reason(text: str) -> str:
    """Why this is no value of --format."""
    with pytest.raises(ValueError, match=r".") as caught:
        structured.read_format(text)
    return str(caught.value)


# -- the value of --format ---------------------------------------------------------------------------------


def test_json_is_any_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json").write_text(json.dumps(SCHEMA))
    assert structured.read_format("json") == "json", "also where there is a file of that name"


@pytest.mark.parametrize("space", ["", " ", "\n\t "])
def test_a_schema_as_it_is(space: str) -> None:
    assert structured.read_format(f"{space}{json.dumps(SCHEMA)}{space}") == SCHEMA


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_schema_from_a_file(tmp_path: Path, encoding: str, end: str) -> None:
    schema = {**SCHEMA, "description": "Größe 😀"}
    path = tmp_path / "schema.json"
    path.write_bytes((json.dumps(schema, ensure_ascii=False) + end).encode(encoding))
    assert structured.read_format(str(path)) == schema


def test_the_order_of_keys_stays() -> None:
    schema = {"required": ["b", "a"], "properties": {"b": {}, "a": {}}, "type": "object"}
    assert json.dumps(structured.read_format(json.dumps(schema))) == json.dumps(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "null"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "prefixItems": [{}]},
        {"$schema": "https://example.com/dialect-of-our-own"},
        {"$schema": "http://[::1"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$id": "https://example.com/a.json", "$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
        {"$defs": {"a": {"$id": "https://example.com/a.json", "$ref": "#/$defs/b", "$defs": {"b": {}}}}},
        {"$id": "not:an/address?", "type": "null"},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a"}}},
        {"$ref": "#/definitions/a%20b", "definitions": {"a b": {}}},
        {"enum": [{"$ref": "#/nowhere"}], "default": {"$ref": "https://example.com/x"}},
        {"x-order": 1, "unknown keyword": {"type": 5}},
        {"enum": [1, None, {"a": []}]},
        {"minimum": -LARGEST, "maximum": LARGEST, "multipleOf": 0.5},
        {"properties": {"$ref": {"type": "string"}}},
        {"pattern": r"^\p{L}+$"},  # of ECMA 262, which JSON Schema means; Python's differ
        {"patternProperties": {r"^\p{Lu}": {}}},
    ],
)
def test_every_schema_is_taken(schema: Json) -> None:
    assert structured.read_format(json.dumps(schema)) == schema


def test_schemas_of_a_usual_depth_are_taken() -> None:
    assert structured.read_format(json.dumps(nested(30))) == nested(30)


@pytest.mark.parametrize("depth", [DEEPEST, 300, 5000, 100_000])
def test_schemas_that_are_too_deep_are_not(depth: int) -> None:
    text = '{"properties":{"a":' * depth + "{}" + "}}" * depth
    assert "nested too deep" in reason(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not valid JSON"),
        ("{'type': 'object'}", "is not valid JSON"),
        ('{"minimum": NaN}', "NaN is no JSON"),
        ('{"minimum": -Infinity}', "-Infinity is no JSON"),
        ('{"minimum": 1e999}', "1e999 is too large"),
        ('{"minimum": ' + "1" * 5000 + "}", "too many digits"),
        (f'{{"minimum": {LARGEST + 1}}}', "too large"),
        (f'{{"minimum": {-LARGEST - 2}}}', "too large"),
        ('{"minimum": 1e19}', "too large"),
        ('{"default": "\\ud800"}', "no valid Unicode"),
        ('{"properties": {"caf\udce9": {}}}', "no valid Unicode"),
        ('{"type": 5}', "$.type"),
        ('{"type": "objekt"}', "$.type"),
        ('{"properties": {"a": {"type": ["string", 3]}}}', "$.properties.a.type"),
        ('{"properties": []}', "$.properties"),
        ('{"required": "name"}', "$.required"),
        ('{"minLength": -1}', "$.minLength"),
        ('{"enum": "abc"}', "$.enum"),
        ('{"$ref": 5}', "$ref"),
        ('{"$ref": "https://example.com/other.json"}', "not in it"),
        ('{"$ref": "other.json"}', "not in it"),
        ('{"$ref": "file:///etc/hostname"}', "not in it"),
        ('{"$ref": "http://[::1"}', "not in it"),
        ('{"$ref": "#/$defs/a", "$defs": {"b": {}}}', "not in it"),
        ('{"$ref": "#a"}', "not in it"),
        ('{"$ref": "#/required/a", "required": ["a"]}', "not in it"),
        ('{"$ref": "#/minimum/a", "minimum": 5}', "not in it"),
        ('{"$ref": "#/type/a", "type": "null"}', "not in it"),
        ('{"allOf": [{"properties": {"a": {"items": {"$ref": "#/nowhere"}}}}]}', "not in it"),
        ('{"$schema": []}', "$schema"),
        ('{"$schema": {}}', "$schema"),
        ('{"$schema": null}', "$schema"),
        ('{"$schema": 5}', "$schema"),
    ],
)
def test_what_is_no_schema(text: str, why: str) -> None:
    said = reason(text)
    assert why in said
    assert "JSON Schema" in said, "it is said what this is about"
    assert "Python" not in said
    assert "sys." not in said


@pytest.mark.parametrize(
    "data", [b"[1, 2]", b'"json"', b"true", b"5", b"null", b"[" + json.dumps(SCHEMA).encode() + b"]"]
)
def test_json_that_is_no_object(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(data)
    assert reason(str(path)) == "a JSON Schema must be a JSON object"


@pytest.mark.parametrize(
    "data", [b"", b"type: object\n", bytes(range(256)), b"\x89PNG\r\n\x1a\n", b"\xff\xfe", b"\xff\xfe\x00", b"{\0}"]
)
def test_files_that_are_no_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(data)
    assert "not valid JSON" in reason(str(path))


@pytest.mark.parametrize("name", ["missing.json", "folder", "", "a\0b", "JSON", "xml", "x" * 5000])
def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert reason(name).startswith("cannot read the JSON Schema ")


def test_what_is_wrong_is_said_in_few_words() -> None:
    assert len(reason(json.dumps({"properties": ["a" * 500] * 1000}))) < 500


@given(json_values)
def test_any_json_is_taken_or_refused(value: Any) -> None:
    text = json.dumps({"type": "object", "default": value})
    try:
        assert structured.read_format(text) == json.loads(text)
    except ValueError as error:
        assert "JSON Schema" in str(error)  # noqa: PT017  either is right


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        structured.read_format("{" + text)
    except ValueError as error:
        assert "JSON Schema" in str(error)  # noqa: PT017  either is right


# -- the answer --------------------------------------------------------------------------------------------


@given(json_values)
def test_answers_in_json_are_values_that_can_be_printed(value: Any) -> None:
    parsed = structured.parse(json.dumps(value))
    assert parsed == value
    assert json.loads(render.as_json({"parsed": parsed})) == {"parsed": value}
    assert json.loads(render.as_line({"parsed": parsed})) == {"parsed": value}


@pytest.mark.parametrize("text", ['  {"a": 1}\n', "[]", '"text"', "0", "null", "true", "-1.5e3", str(10**300)])
def test_any_kind_of_json_is_an_answer(text: str) -> None:
    assert structured.parse(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", '{"a": 1', '{"a": 1}}', '{"a": 1} {"b": 2}', "Sure! {}", "```json\n{}\n```", "NaN", "[Infinity]",
        "[-Infinity]", "1e999", "-1e999", "{'a': 1}", "[1,]", '"\n"', "nul", "\ufeff{}", "1" * 5000,
    ],
)  # fmt: skip
def test_all_else_is_no_answer(text: str) -> None:
    with pytest.raises(IncompleteAnswer, match="the answer is not valid JSON: ") as caught:
        structured.parse(text)
    assert "sys." not in caught.value.message


@pytest.mark.parametrize("depth", [DEEPEST + 1, 600, 980, 3000, 100_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_answers_that_are_too_deep_to_be_printed_are_none(depth: int, start: str, end: str) -> None:
    with pytest.raises(IncompleteAnswer, match="nested too deep"):
        structured.parse(start * depth + "1" + end * depth)


def test_an_answer_of_the_largest_depth_is_printed() -> None:
    value = structured.parse("[" * DEEPEST + "]" * DEEPEST)
    assert json.loads(render.as_json({"parsed": value})) == {"parsed": value}


def test_why_an_answer_may_be_no_json() -> None:
    """One that was cut needs more tokens; one that was not, another model."""
    hints = []
    for is_cut in (True, False):
        with pytest.raises(IncompleteAnswer) as caught:
            structured.parse('{"a', is_cut=is_cut)
        hints.append(caught.value.hint or "")
    assert "--max-tokens" in hints[0]
    assert "--format" in hints[1]


# -- the answer and the schema -----------------------------------------------------------------------------


def test_an_answer_as_the_schema_asks_for() -> None:
    assert structured.mismatch({"name": "x"}, SCHEMA) is None
    assert structured.mismatch(1.0, {"type": "integer"}) is None
    assert structured.mismatch("anything", {}) is None


@pytest.mark.parametrize(
    ("value", "schema", "said"),
    [
        ({}, SCHEMA, "$: 'name' is a required property"),
        ({"name": 5}, SCHEMA, "$.name: 5 is not of type 'string'"),
        (["a", 1], {"items": {"type": "string"}}, "$[1]: 1 is not of type 'string'"),
        (1, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, "$: 1 is not of type 'null'"),
        ("x", {"$schema": "https://example.com/ours", "type": "null"}, "$: 'x' is not of type 'null'"),
        ({"a": 1}, {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"]}}, "dependency"),
    ],
)
def test_an_answer_that_is_not(value: object, schema: Json, said: str) -> None:
    assert said in (structured.mismatch(value, schema) or "")


def test_what_does_not_match_is_said_in_few_words() -> None:
    """It is a remark on stderr, not the answer once more."""
    said = structured.mismatch({"text": "word\n" * 5000}, {"anyOf": [{"type": "null"}, {"type": "array"}]})
    assert said is not None
    assert len(said) < 500
    assert "\n" not in said


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1, {"$ref": "http://127.0.0.1:1/schema.json"}),
        (1, {"$ref": "file:///etc/hostname"}),
        (1, {"$ref": "#/nowhere"}),
        (1, {"$ref": "#"}),
        (1, {"$ref": "http://[::1"}),
        (1, {"$id": "http://[::1", "$ref": "x"}),
        (1, {"$dynamicRef": "#nowhere"}),
        (1, {"$ref": "#/a", "a": {"type": 5}}),
        (1, {"$ref": "#/a", "a": {"minimum": "b"}}),
        (1, {"$ref": "#/a", "a": {"multipleOf": 0}}),
        (1, {"$ref": "#/a", "a": 3}),
        ("x", {"$ref": "#/a", "a": {"pattern": "("}}),
        ("x", {"pattern": r"^\p{L}+$"}),
        ("a" * 50 + "!", {"pattern": "^(a+)+$"}),  # would take for ever
        ({"a" * 50 + "!": 1}, {"patternProperties": {"^(a+)+$": {}}}),
        ({"a" * 50 + "!": 1}, {"additionalProperties": False, "patternProperties": {"^(a+)+$": {}}}),
        ({"a" * 50 + "!": 1}, {"unevaluatedProperties": False, "allOf": [{"patternProperties": {"^(a+)+$": {}}}]}),
        ("x", {"not": {"pattern": "y"}}),
        (10**400, {"multipleOf": 0.5}),
    ],
)
def test_where_it_cannot_be_told_nothing_is_said(value: object, schema: Json) -> None:
    assert structured.mismatch(value, schema) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "$: [] is not of type 'object'"),
        ({}, "$: 'name' is a required property"),
        ({"name": None}, None),
        ({"name": 5}, "$.name: 5 is not valid under any of the given schemas"),
        ({"name": "b"}, None),
        ({"x": 1, "name": "a"}, "$: Additional properties are not allowed ('x' was unexpected)"),
    ],
)
def test_with_patterns_it_is_told_as_far_as_it_can(value: object, said: str | None) -> None:
    name = {"anyOf": [{"pattern": "^(a+)+$", "type": "string"}, {"type": "null"}]}
    more = {"additionalProperties": False, "properties": {"name": name}, "required": ["name"], "type": "object"}
    assert structured.mismatch(value, more) == said


def test_no_schema_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    schema = {"$ref": "http://127.0.0.1/schema.json", "properties": {"a": {"$ref": "https://example.com/x#/y"}}}
    assert "not in it" in reason(json.dumps(schema))
    assert structured.mismatch({"a": 1}, schema) is None


@given(st.dictionaries(st.sampled_from(KEYWORDS), schemas), json_values | schemas)
@settings(max_examples=300)
def test_whatever_looks_like_a_schema_is_taken_or_refused(schema: Json, value: Any) -> None:
    try:
        wanted = structured.read_format(json.dumps(schema))
    except ValueError as error:
        assert "JSON Schema" in str(error)  # noqa: PT017  either is right
    else:
        assert wanted == schema
    said = structured.mismatch(value, schema)
    assert said is None or len(said) < 500
