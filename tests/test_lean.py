"""What is imported only when it is used is the same as ever for whoever uses it."""

from __future__ import annotations
import __future__

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ollama_prompt.lean import PUT_OFF

if TYPE_CHECKING:
    from pathlib import Path

DATACLASSES = """
import dataclasses, functools
from typing import ClassVar, Generic, TypeVar

T = TypeVar("T")
KW_ONLY = dataclasses.KW_ONLY

@dataclasses.dataclass
class Bare:
    one: int
    two: list[str] = dataclasses.field(default_factory=list)
    three: ClassVar[int] = 3

@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Child(Generic[T]):
    four: T
    _: KW_ONLY
    five: dataclasses.InitVar[int] = 5

@dataclasses.dataclass(kw_only=True)
class Heir(Bare):
    six: float = 6.0

@dataclasses.dataclass
class Empty:
    pass

def wrapped(method):
    return functools.wraps(method)(lambda self: method(self))

@dataclasses.dataclass(slots=True)
class Wrapped:
    seven: int

    @wrapped
    def is_mine(self):
        return __class__ is Wrapped

def told(class_):
    fields = [(f.name, f.type, f.default is dataclasses.MISSING, f.kw_only) for f in dataclasses.fields(class_)]
    return class_.__name__, fields, sorted(class_.__annotations__)

print([told(class_) for class_ in (Bare, Child, Heir, Empty)])
print(Bare(1), Child(4, five=3), Heir(1, six=2), Empty(), Child(1) < Child(2), dataclasses.replace(Bare(1), one=2))
print(Wrapped(7).is_mine())
"""


def run(code: str, path: Path | None = None) -> str:
    """What a new process prints that runs this."""
    start = [sys.executable, "-c", code]
    done = subprocess.run(start, capture_output=True, text=True, check=False, cwd=path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def late(code: str, path: Path | None = None) -> str:
    """The same where imports are put off."""
    return run(f"import sys; from ollama_prompt import lean; lean.put_off_imports()\n{code}", path)


@pytest.mark.parametrize("name", PUT_OFF)
def test_a_module_is_imported_when_it_is_used(name: str) -> None:
    code = f"""
import {name}
late = {name}
assert type(late) is lean._Later, "it was put off"
assert late.__doc__ is None and late.__file__, "so it was used"
import {name}
assert {name} is sys.modules["{name}"] and type({name}) is type(sys)
assert all(getattr(late, each) is getattr({name}, each) for each in vars({name}) if not each.startswith("__"))
"""
    late(code)


def test_names_can_be_imported_from_it() -> None:
    assert late("from shutil import which; import idna.core; print(idna.encode('ä'), which.__name__)") == (
        "b'xn--4ca' which\n"
    )


def test_no_part_of_a_package_is_imported_twice() -> None:
    """It is if it is the first that is used of the package."""
    code = """
import httpx, prompt_toolkit.shortcuts, rich.console
names = [name for name in sys.modules if name.startswith(("asyncio.", "idna."))]
parts = [(sys.modules[name.partition(".")[0]], name.partition(".")[2], sys.modules[name]) for name in names]
print(len(parts) > 3, {part for package, part, module in parts if getattr(package, part) is not module})
"""
    assert late(code) == "True set()\n"


def test_what_is_there_already_stays() -> None:
    code = "import sys, inspect; from ollama_prompt import lean; lean.put_off_imports(); import inspect as it"
    assert run(f"{code}; print(it is inspect and type(it) is type(sys))") == "True\n"


def test_a_name_that_it_lacks_is_missing_as_ever() -> None:
    for code in ("import locale; locale.bogus", "from locale import bogus", "import locale.bogus"):
        wrapped = f"try:\n    {code}\nexcept (AttributeError, ImportError) as error: print(type(error).__name__, error)"
        assert late(wrapped).partition("(")[0] == run(wrapped).partition("(")[0]


@pytest.mark.parametrize("flags", [0, __future__.annotations.compiler_flag], ids=["types", "strings"])
def test_dataclasses_are_the_same(flags: int) -> None:
    code = f"exec(compile({DATACLASSES!r}, 'code', 'exec', {flags}))"
    put_off = "print(type(sys.modules['inspect']).__name__)"
    assert late(f"{code}; {put_off}") == f"{run(code)}_Later\n"


def test_all_others_get_real_signatures() -> None:
    code = "import inspect; print(inspect.signature(lambda one, *, two=2: None))"
    assert late(f"import dataclasses; {code}") == "(one, *, two=2)\n"


def test_an_import_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "cut.py").write_text("import sys\nif sys.argv.pop(): raise KeyboardInterrupt\nvalue = 1\n")
    code = """
sys.path.insert(0, ".")
sys.argv = [False, True]
lean.PUT_OFF = ("cut",)
lean.put_off_imports()
import cut
try:
    cut.value
except KeyboardInterrupt:
    print("interrupted")
print(cut.value)
"""
    assert late(code, tmp_path) == "interrupted\n1\n"
