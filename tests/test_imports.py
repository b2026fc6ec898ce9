"""Arrows between modules go one way, each heavy library has one owner, and a command pays only for what it uses."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

import ollama_prompt
from ollama_prompt.lean import PUT_OFF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Run
    from standin import StandIn

PACKAGE = Path(ollama_prompt.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

LAYERS = (
    "__main__ api",
    "cli",
    "chat",
    "completion",
    "flags commands",
    "sync archive",
    "editor",
    "exporting",
    "page",
    "transcript",
    "markup",
    "terminal",
    "config console",
    "turn",
    "plan interrupts",
    "indexer",
    "importing checkup removal search",
    "search_index",
    "repair",
    "catalogue held_session",
    "attachments",
    "locks index session_file",
    "summary window foreign",
    "foreign_1x foreign_llm",
    "foreign_json foreign_database",
    "drafts foreign_values",
    "selection",
    "query documents history",
    "records layout",
    "ollama embedded",
    "references structured images",
    "gitignore directories",
    "readable render progress host gguf loopback lean model git checkouts credentials folding tables",
    "text",
    "clock",
    "errors",
    "__init__",
)
"""A module imports from layers below its own only, or from its own if it stands before the other there."""
ORDER = " ".join(LAYERS).split()

UNDER_COVER = {
    "session_file": {
        "search",
        "search_index",
        "indexer",
        "checkup",
        "removal",
        "catalogue",
        "held_session",
        "attachments",
        "repair",
    },
    "index": {"indexer", "checkup", "catalogue", "held_session", "search_index"},
    "locks": {"indexer"},
    "importing": {"indexer"},
    "search": {"indexer"},
    "search_index": {"search", "removal"},
    "selection": {"search_index"},
    "documents": {"search", "search_index"},
    "checkup": {"indexer"},
    "removal": {"indexer", "checkup"},
    "repair": {"checkup"},
    "sync": {"commands"},
    "git": {"sync"},
    "archive": {"commands"},
    "exporting": {"commands", "archive"},
    "page": {"exporting", "archive"},
    "markup": {"transcript", "page"},
    "checkouts": {"indexer", "held_session"},
    "credentials": {"checkup"},
    "catalogue": {"indexer", "importing", "checkup", "search", "search_index"},
    "held_session": {"indexer"},
    "records": {
        "turn",
        "plan",
        "window",
        "indexer",
        "held_session",
        "session_file",
        "summary",
        "attachments",
        "repair",
        "checkup",
        "sync",
        "search",
        "documents",
        "drafts",
        "foreign_values",
        "transcript",
    },
    "attachments": {"indexer"},
    "foreign": {"indexer", "importing", "commands"},
    "foreign_1x": {"foreign"},
    "foreign_llm": {"foreign"},
    "foreign_json": {"foreign", "foreign_1x"},
    "foreign_database": {"foreign"},
    "foreign_values": {"foreign_1x", "foreign_llm", "foreign_json", "foreign_database"},
    "drafts": {"foreign_llm", "foreign_json"},
    "references": {"config"},
    "directories": {"references"},
    "gitignore": {"references"},
    "structured": {"config", "turn"},
    "images": {"config", "drafts", "foreign_json", "page"},
    "completion": {"cli"},
    "terminal": {"cli"},
    "tables": {"markup", "terminal"},
    "progress": {"console"},
    "indexer": {"commands"},
    "ollama": {"commands"},
    "embedded": {"commands"},
    "loopback": {"ollama"},
    "gguf": {"embedded"},
    "turn": {"commands"},
    "plan": {"turn"},
    "window": {"plan"},
    "commands": {"cli", "chat", "api"},
    "chat": {"cli"},
    "editor": {"chat"},
    "history": {"indexer", "removal"},
    "flags": {"cli", "completion", "api"},
    "api": {"__init__"},
    "cli": {"__main__"},
}
"""Who may import these at all. The rest of the program reaches a file of the store only through `indexer`."""

OWNERS = {
    "argparse": {"flags"},
    "sqlite3": {"index", "search_index", "foreign_database"},
    "jsonschema": {"structured"},
    "referencing": {"structured"},
    "pathspec": {"gitignore"},
    "filelock": {"locks"},
    "httpx": {"ollama", "loopback"},
    "httpcore": set(),
    "orjson": {"records", "ollama"},
    "xllamacpp": {"embedded"},
    "markdown_it": {"markup", "terminal", "tables"},
    "pygments": {"markup"},
    "prompt_toolkit": {"editor"},
    "subprocess": {"ollama", "git", "terminal"},
    "rich": {"terminal", "progress"},
    "socket": {"ollama"},
    "signal": {"interrupts"},
    "asyncio": set(),
    "anyio": set(),
    "click": set(),
    "typing": {"api"},
    "dataclasses": {"api"},
    "pathlib": set(),
    "uuid": set(),
    "logging": set(),
}
"""Libraries that cost, or that only one module may touch."""

HEAVY = (
    "sqlite3", "jsonschema", "pathspec", "hashlib", "httpx", "httpcore", "filelock", "orjson", "json", "xllamacpp",
    "typing", "dataclasses", "pathlib", "uuid", "datetime", "inspect", "logging", "socket", "subprocess", "asyncio",
    "shutil", "tempfile", "urllib.request", "markdown_it", "pygments",
)  # fmt: skip


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that happen when the program runs, inside functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not is_for_types(child):
            yield from import_nodes(child)


@cache
def imported(module: str) -> set[str]:
    """The dotted names of everything that a module imports."""
    names: set[str] = set()
    for node in import_nodes(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif node.module == "ollama_prompt":
            names.update(f"ollama_prompt.{alias.name}" for alias in node.names)
        else:
            assert node.module, "relative imports are not used"
            names.add(node.module)
    return names


def own(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    prefix = "ollama_prompt."
    found = {name.removeprefix(prefix) for name in imported(module) if name.startswith(prefix)}
    return {name for name in found if name in MODULES}


def libraries(module: str) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imported(module)} - {"ollama_prompt", "__future__"}


def test_every_module_has_its_layer() -> None:
    assert sorted(ORDER) == MODULES


def test_arrows_go_one_way() -> None:
    inside = [module for module in MODULES if module != "__init__"]  # which only shows what is in `api`
    up = [(module, other) for module in inside for other in own(module) if ORDER.index(other) <= ORDER.index(module)]
    assert up == []


def test_details_stay_under_cover() -> None:
    wrong = [
        (module, other) for module in MODULES for other in own(module) if module not in UNDER_COVER.get(other, {module})
    ]
    assert wrong == []


def test_heavy_libraries_have_one_owner() -> None:
    found = {library: {module for module in MODULES if library in libraries(module)} for library in OWNERS}
    assert {library: who for library, who in found.items() if not who <= OWNERS[library]} == {}


def test_only_what_is_declared_is_imported() -> None:
    third_party = {library for module in MODULES for library in libraries(module)} - set(sys.stdlib_module_names)
    declared = {"filelock", "httpx", "jsonschema", "markdown_it", "orjson", "pathspec", "pygments", "rich"}
    declared |= {"prompt_toolkit"}
    assert third_party == declared | {"referencing", "xllamacpp"}, "referencing comes with jsonschema"


def loaded(environment: dict[str, str], *args: str) -> set[str]:
    """The modules that a run of the command loads, beyond those that Python starts with; not what it puts off."""
    code = (
        "import os, sys; before = set(sys.modules);"
        "real = lambda: {name for name, it in sys.modules.items() if type(it).__name__ != '_Later'};"
        "os._exit = lambda code: open(3, 'w').write('\\n'.join(real() - before));"
        "from ollama_prompt.__main__ import main; main()"
    )
    command = ["bash", "-c", 'exec 3>&1 >/dev/null 2>&1; exec "$0" -c "$@"', sys.executable, code, *args]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return set(done.stdout.decode().split())


def none_of(modules: set[str], *allowed: str) -> None:
    heavy = {name for name in HEAVY if name in modules} - set(allowed)
    assert heavy == set(), "a command imports what it does not need"


def test_help_and_version_import_next_to_nothing(environment: dict[str, str]) -> None:
    for flag in ("--version", "--help"):
        modules = loaded(environment, flag)
        none_of(modules)
        ours = {name.removeprefix("ollama_prompt.") for name in modules if name.startswith("ollama_prompt.")}
        assert ours == {"__main__", "cli", "config", "console", "errors", "flags", "interrupts", "lean", "text"}
        assert not modules & {"gettext", "locale"}


def test_usage_errors_are_found_before_anything_is_imported(environment: dict[str, str]) -> None:
    for wrong in (["--bogus"], ["-p", "x", "--timeout", "0"], ["-p", ""], ["-p", "x", "--output", "text", "--check"]):
        modules = loaded(environment, *wrong)
        none_of(modules, "json")  # the error is printed as JSON
        assert "ollama_prompt.commands" not in modules
    hosts = loaded(environment | {"OLLAMA_HOST": "ftp://x"}, "-p", "Hi")
    none_of(hosts, "json")


def test_listing_with_a_good_index(environment: dict[str, str], run: Run) -> None:
    run("-p", "Hi")
    # Read twice: a row that was read right after the file changed is read once more.
    time.sleep(0.1)
    run("--list-sessions")
    modules = loaded(environment, "--list-sessions")
    assert "sqlite3" in modules
    none_of(modules, "sqlite3", "datetime")  # sqlite3 imports datetime; lines of JSON are in the index
    assert not modules & {"ollama_prompt.records", "ollama_prompt.session_file", "ollama_prompt.locks"}


def test_an_export_imports_what_its_form_needs(environment: dict[str, str], run: Run) -> None:
    session_id = run("-p", "Hi").json["session_id"]
    for form in ("json", "text"):
        modules = loaded(environment, "--export", session_id, "--as", form)
        assert "ollama_prompt.transcript" in modules
        assert not modules & {"markdown_it", "pygments", "httpx", "ollama_prompt.page", "ollama_prompt.markup"}
    assert {"markdown_it", "pygments"} <= loaded(environment, "--export", session_id, "--as", "html")


def test_a_turn_without_a_session_needs_neither_locks_nor_index(environment: dict[str, str], ollama: StandIn) -> None:
    modules = loaded(environment, "-p", "Hi", "--no-session")
    assert "httpx" in modules
    assert not modules & {"sqlite3", "filelock", "asyncio", "anyio", "httpcore", "xllamacpp", "click"}
    assert "subprocess" not in modules or sys.version_info < (3, 11), "there, orjson imports uuid, and that it"
    assert not modules & {"ollama_prompt.indexer", "ollama_prompt.embedded"}


def test_a_turn_needs_no_rich_where_somebody_has_click(
    environment: dict[str, str], ollama: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "click.py").write_text("raise AssertionError('httpx imported it')", encoding="utf-8")
    paths = os.pathsep.join(filter(None, (str(tmp_path), environment.get("PYTHONPATH"))))
    assert not loaded(environment | {"PYTHONPATH": paths}, "-p", "Hi") & {"rich", "pygments", "markdown_it"}


def test_a_turn_needs_no_async(environment: dict[str, str], ollama: StandIn) -> None:
    modules = loaded(environment, "-p", "Hi")
    assert {"httpx", "filelock", "sqlite3", "orjson"} <= modules
    assert not modules & {"anyio", "httpcore", "xllamacpp", "click", "rich", "gettext", "encodings.idna"}


def test_a_turn_uses_nothing_of_what_is_put_off(environment: dict[str, str], ollama: StandIn) -> None:
    by_uuid = {"selectors"} if sys.version_info < (3, 11) else set()
    by_filelock = {"inspect", "shutil"} if filelock.__version__.startswith(("3.", "4.0", "4.1", "4.2")) else set()
    assert loaded(environment, "-p", "Hi") & set(PUT_OFF) <= by_uuid | by_filelock
