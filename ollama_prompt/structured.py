"""Structured output: what --format takes, and what an answer to it must be.

The server is told to let the model say nothing but JSON, or nothing but what a JSON Schema allows. It may still
break off in the middle, and a server that knows no schemas ignores them: so the answer is looked at again here.
"""

from __future__ import annotations

import json

from ollama_prompt.errors import IncompleteAnswer
from ollama_prompt.text import decode, sendable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def wanted(text: str) -> str | dict[str, Any]:
    """The value of --format: "json", a schema as it is, or the name of a file with one. Raises ValueError."""
    if text == "json":
        return text
    source = text if text.lstrip().startswith("{") else _read(text)
    try:
        schema = _load(source)
    except ValueError as error:
        raise ValueError(f"the JSON Schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError("a JSON Schema must be a JSON object; json, without a file of that name, asks for any JSON")
    _check(schema)
    try:
        return dict(sendable(schema))
    except ValueError as error:
        raise ValueError(f"the JSON Schema {error}") from None


def parse(answer: str) -> Any:
    """The value that an answer says in JSON. Raises `IncompleteAnswer`."""
    try:
        return _load(answer)
    except ValueError as error:
        hint = "was it cut off? --max-tokens, or --max-context-tokens, may be too low"
        raise IncompleteAnswer(f"the answer is not valid JSON: {error}", hint=hint) from None


def mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    """Where a value is not what the schema asks for; None if it is, or if that cannot be told."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        # Its own registry: the default one would fetch what a "$ref" names from the network.
        found = best_match(validator_for(schema)(schema, registry=Registry()).iter_errors(value))
    except (Unresolvable, RecursionError, ValueError):
        return None
    return f"{found.json_path}: {found.message}" if found else None


def _check(schema: dict[str, Any]) -> None:
    """Raises ValueError for what is no JSON Schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}") from None
    except RecursionError:
        raise ValueError("the JSON Schema is nested too deep") from None


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read {path!r}: {reason}") from None


def _load(text: str) -> Any:
    """JSON as the standard has it: Python would also take NaN, and numbers that it cannot write again."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError(f"{text} is too large a number")
    return number
