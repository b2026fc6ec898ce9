"""A session file as a person reads it, for `git diff`, `git log -p` and `git show`.

git runs `textconv_command` with the name of a file and compares what that prints. So each record gives one block that
depends on nothing else: a line that was added to the file is a block that was added. And nothing in a file makes it
fail, because git would show no difference at all: a line that is no record is shown as it is.

It runs once for each file on each side of a difference, so it starts with next to nothing, and without orjson.
"""

from __future__ import annotations

import json
import re
import sys

from ollama_prompt.render import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Record = dict[str, Any]

_TOLD_BY_THE_PLACE = {"type", "id", "created_at", "version", "session_id"}

# git starts it in the repository. With -m, or with the empty entry that -c puts into the path, a file json.py that
# somebody pushed there would be run.
_PROGRAM = (
    "import sys; sys.path = [p for p in sys.path if p]; from ollama_prompt.readable import main; sys.exit(main())"
)


def textconv_command(executable: str) -> str:
    """This Python's path → the value of git's `diff.ollama-prompt.textconv`.

    It is for a shell, on Windows too: the one that git brings.
    Where the Python or the package is gone, files are shown as they are, which is what git does without a driver.
    """
    if not executable.startswith("/"):
        executable = executable.replace("\\", "/")
    python = "'" + executable.replace("'", r"'\''") + "'"
    return f"""show() {{ {python} -c '{_PROGRAM}' "$1" 2>/dev/null || cat -- "$1"; }}; show"""


def block(line: bytes) -> bytes:
    """One line of a session file → its text, in UTF-8, with an empty line behind it; nothing for a blank one."""
    line = re.sub(rb"\0{2,}", b"", line).strip(b"\0 \t\r\n")
    if not line:
        return b""
    try:
        text = _record(json.loads(line.lstrip(b"\xef\xbb\xbf").decode(), parse_constant=_refuse))
    except (ValueError, RecursionError):
        text = visible(line.decode(errors="backslashreplace"))
    return f"{text}\n\n".encode()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _record(record: Any) -> str:
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise ValueError("not a record")
    if record["type"] == "message":
        return _message(record)
    if record["type"] == "undo" and isinstance(ids := record.get("ids"), list):
        return _joined("undo", _time(record), f"messages taken back: {len(ids)}")
    told = [f"{key}: {_in_a_line(value)}" for key, value in record.items() if key not in _TOLD_BY_THE_PLACE]
    return _joined("settings" if record["type"] == "meta" else record["type"], _time(record), *told)


def _message(record: Record) -> str:
    role, content, reason = record.get("role"), record.get("content"), record.get("done_reason")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("a message without role or content")
    head = _joined(role, _time(record), record.get("model"), None if reason == "stop" else reason)
    notes = [f"[{key}] {record[key]}" for key in ("typed", "thinking") if isinstance(record.get(key), str)]
    images = record["images"] if isinstance(record.get("images"), list) else []
    notes += [f"[image] {_in_a_line(image.get('path'))}" for image in images if isinstance(image, dict)]
    return "\n".join([head, *map(visible, [*notes, content])])


def _time(record: Record) -> str:
    """When it was made, as far as seconds; a time that is not written as ours are stays as it is."""
    made = record.get("created_at", "")
    return made[:19].replace("T", " ") if isinstance(made, str) and made.endswith("Z") else _in_a_line(made)


def _joined(*parts: Any) -> str:
    return " · ".join(_in_a_line(part) for part in parts if part)


def _in_a_line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return visible(text).replace("\n", r"\n")


def main() -> int:
    """Print the file that is named; the exit code."""
    try:
        with open(sys.argv[1], "rb") as file, open(1, "wb", closefd=False) as out:
            out.writelines(map(block, file))
    except BrokenPipeError:
        pass  # nobody reads on
    except KeyboardInterrupt:
        return 130
    except (IndexError, OSError) as error:
        reason = f"cannot show a file: {error}" if isinstance(error, OSError) else "which file?"
        print(f"error: {visible(reason)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
