"""Structured output: what --format takes, and what an answer to it must be.

The server is told to let the model say nothing but JSON, or nothing but what a JSON Schema allows. It may still
break off in the middle, and a server that knows no schemas ignores them: so the answer is looked at again here.
"""

from __future__ import annotations

import json
from contextlib import suppress

from ollama_prompt.errors import IncompleteAnswer
from ollama_prompt.text import is_nested_too_deep, read_text, sendable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

LONGEST_NUMBER = 1000
"""Digits of the longest whole number that is taken. Python may refuse to print more than 4300."""
LONGEST_REASON = 300
"""What does not fit the schema may be the whole answer: of that, no more is shown than these characters."""
_DATA = ("const", "default", "enum", "examples")
"""Keywords below which there are values, not schemas."""
_WITH_PATTERNS = ("pattern", "patternProperties", "unevaluatedProperties")
"""Keywords that search by regular expressions, besides additionalProperties beside one of them."""


def read_format(text: str) -> str | dict[str, Any]:
    """The value of --format: "json", a schema as it is, or the name of a file with one.

    Raises ValueError, for a file that is too long `UsageError`.
    """
    if text == "json":
        return text
    source = text if text.lstrip().startswith("{") else _read(text)
    try:
        schema = _load(source)
    except ValueError as error:
        raise ValueError(f"the JSON Schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError("a JSON Schema must be a JSON object")
    try:
        if sendable(schema) != schema:
            raise ValueError("has text that is no valid Unicode")
        _check(schema)
    except ValueError as error:
        raise ValueError(f"the JSON Schema {_shortened(str(error))}") from None
    return schema


def parse(answer: str, is_cut: bool = False) -> Any:
    """The value that an answer says in JSON. `is_cut` tells that it was at its end. Raises `IncompleteAnswer`."""
    try:
        return _load(answer)
    except ValueError as error:
        hint = "not every model and server heeds --format: ask again, or another model"
        if is_cut:
            hint = "it was cut off: --max-tokens, or --max-context-tokens, is too low"
        raise IncompleteAnswer(f"the answer is not valid JSON: {error}", hint=hint) from None


def mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    """Where a value is not what the schema asks for; None if it is, or if that cannot be told."""
    from jsonschema.exceptions import best_match

    try:
        found = best_match(_errors(value, schema))
    except Exception:  # it compares them by what a schema says that may be nonsense
        return None
    return _shortened(f"{found.json_path}: {found.message}") if found else None


def _errors(value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """What is wrong with a value, as far as it can be told."""
    from referencing import Registry

    # Its own registry: the default one would fetch what a "$ref" names from the network.
    checker = _without_patterns(_validator(schema))(schema, registry=Registry())
    with suppress(Exception):  # a schema may refer to itself without end
        yield from checker.iter_errors(value)


def _without_patterns(validator: Any) -> Any:
    """The class, ending where it had to try a pattern: it is one of ECMA 262, and may take Python for ever."""
    from jsonschema import validators

    extend: Any = validators.extend  # its stubs have no types

    def untried(_: Any, __: Any, value: Any, ___: dict[str, Any]) -> None:
        if isinstance(value, (str, dict)):
            raise ValueError("a pattern is not tried")

    def additional(checker: Any, keyword: Any, value: Any, schema: dict[str, Any]) -> Any:
        check = untried if "patternProperties" in schema else validator.VALIDATORS["additionalProperties"]
        return check(checker, keyword, value, schema)

    return extend(validator, {**dict.fromkeys(_WITH_PATTERNS, untried), "additionalProperties": additional})


def _check(schema: dict[str, Any]) -> None:
    """Raises ValueError for what is no JSON Schema."""
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError('is wrong: its "$schema" is no text')
    try:
        # No formats are checked: a pattern is one of ECMA 262, and Python knows only its own.
        _validator(schema).check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        raise ValueError(f"is wrong: {error.json_path}: {error.message}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    _check_references(schema)


def _validator(schema: dict[str, Any]) -> Any:
    """The class that knows the schema's dialect; for one of somebody's own the latest."""
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        return validator_for(schema, default=Draft202012Validator)
    except ValueError:  # not even an address
        return Draft202012Validator


def _check_references(schema: dict[str, Any]) -> None:
    """Raises ValueError for a "$ref" to what is not in the schema: no server fetches it."""
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    whole = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource(whole.id() or "", whole).crawl().resolver(whole.id() or "")
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Exception:  # besides its own errors those of a pointer into what is neither object nor list
            raise ValueError(f'refers to {reference!r} ("$ref"), which is not in it') from None


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for key, item in value.items():
            has_base = isinstance(item, dict) and isinstance(item.get("$id"), str)  # its references begin there
            if key not in _DATA and not has_base:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return read_text(file, f"--format: {_shortened(repr(path))}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read the JSON Schema {_shortened(repr(path))}: {reason}") from None


def _load(text: str) -> Any:
    """JSON as the standard has it: Python would also take NaN, and what it cannot write again."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if is_nested_too_deep(value):
        raise ValueError("nested too deep")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError(f"{_shortened(text)} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("a number has too many digits")
    return int(text)
