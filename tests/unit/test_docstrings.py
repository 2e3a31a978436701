"""The public interface says what it takes, returns and raises: so many lines of docstrings to a line of its code.

Counted are the public functions and methods, and of classes what is public: who calls an interface does not read what
begins with an underscore, nor what only C can call.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import hwrx
from hwrx.report.model import Cost, Row, Summary
from hwrx.report.reported import ReportedRun
from hwrx.runs.reading import Run, TrialSamples
from hwrx.stats import Digest, Estimate

ROOT = Path(__file__).parents[2]
LEAST = 0.4
# what `hwrx.load` returns, and what that hands out
REACHED = (ReportedRun, Run, TrialSamples, Summary, Row, Cost, Estimate, Digest)

Counts = tuple[int, int]  # lines of docstrings, and of code


def test_the_python_interface_says_what_it_does() -> None:
    found = {f"{each.__module__}.{each.__name__}": counts_in_python(each) for each in public_objects()}
    assert share(found.values()) >= LEAST, worst(found)


def test_the_cython_classes_say_what_they_do() -> None:
    found = {
        f"{path.stem}.{name}": counts
        for path in sorted((ROOT / "cython_ext").rglob("*.pyx"))
        for name, counts in counts_in_cython(path.read_text())
    }
    assert len(found) > 40
    assert share(found.values()) >= LEAST, worst(found)


def test_what_is_private_or_for_c_alone_is_not_counted() -> None:
    source = (
        "cdef class Ring(Base):\n"
        '    """A ring.\n'
        "\n"
        "    :param size: in bytes\n"
        '    """\n'
        "\n"
        "    cdef int at\n"
        "\n"
        "    def __init__(self, size):\n"
        "        self.at = 0\n"
        "\n"
        "    cdef int step(self) noexcept nogil:\n"
        "        return 1\n"
        "\n"
        "    @property\n"
        "    def place(self) -> int:\n"
        '        """Where it stands."""\n'
        "        # a comment\n"
        "        return self.at\n"
        "\n"
        "    def go(self, a,\n"
        "           b=1):\n"
        '        """Go on."""\n'
        "        return a\n"
        "\n"
        "    def _hidden(self):\n"
        "        return 1\n"
        "\n"
        "cdef int outside():\n"
        "    return 2\n"
    )
    assert list(counts_in_cython(source)) == [("Ring", (2 + 1 + 1, 1 + 3 + 3))]
    assert counts_in_python(share) == (1, 3)


# --- counting ------------------------------------------------------------------------------------------------------


def public_objects() -> Iterator[type | object]:
    """The functions and classes of the package itself, of every `__all__` in it, and what `load` leads to."""
    yield hwrx.load
    for path in sorted((ROOT / "hwrx").rglob("*.py")):
        if "__all__ = [" in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            for name in module.__all__:
                each = inspect.unwrap(getattr(module, name))
                if (inspect.isfunction(each) or inspect.isclass(each)) and each.__module__.startswith("hwrx."):
                    yield each
    yield from REACHED


def share(found: Iterable[Counts]) -> float:
    """Lines of docstrings to a line of code, of all together."""
    docs, code = (sum(column) for column in zip(*found, strict=True))
    return docs / code


def worst(found: dict[str, Counts]) -> str:
    """The ones that lack most, for who has to mend it."""
    lacking = sorted(found, key=lambda name: found[name][0] - LEAST * found[name][1])
    return ", ".join(f"{name}: {found[name][0]} lines to {found[name][1]} of code" for name in lacking[:10])


def counts_in_python(each: object) -> Counts:
    """Of a function, or of a class without its private methods."""
    text = Path(inspect.getsourcefile(each)).read_text()  # type: ignore[arg-type]
    definitions = (one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef | ast.ClassDef))
    (node,) = (one for one in definitions if one.name == each.__name__)  # type: ignore[attr-defined]
    lines = text.splitlines()
    docs: set[int] = set()
    left_out: set[int] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            whole = set(range(min([one.lineno, *(d.lineno for d in one.decorator_list)]), one.end_lineno + 1))
            if one is not node and one.name.startswith("_"):
                left_out |= whole
            elif ast.get_docstring(one, clean=False) is not None:
                docs.update(range(one.body[0].lineno, one.body[0].end_lineno + 1))
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    counted = {
        number
        for number in range(first, node.end_lineno + 1)
        if number not in left_out and lines[number - 1].strip() and not lines[number - 1].strip().startswith("#")
    }
    return len(counted & docs), len(counted - docs)


def counts_in_cython(text: str) -> Iterator[tuple[str, Counts]]:
    """Of each class of a Cython file, which no parser of ours reads: by indentation, as it is written here."""
    for found in re.finditer(r"^(?:cdef )?class (\w+).*\n((?:(?: .*|#.*|\))?\n)*)", text, re.MULTILINE):
        docs, code = 0, 1
        for member in members(found[2].splitlines()):
            head = next((line.strip() for line in member if not line.strip().startswith("@")), "")
            if head.startswith('"""'):
                docs += sum(1 for line in member if line.strip())
            elif re.match(r"def [a-z]", head):
                own = counts_in_member(member)
                docs, code = docs + own[0], code + own[1]
        yield found[1], (docs, code)


def members(lines: list[str]) -> Iterator[list[str]]:
    """What stands in a class one after the other: a docstring, an attribute, a method with its decorators."""
    held: list[str] = []
    for line in lines:
        begins = re.match(r" {4}[^ #)]", line) is not None
        if (
            begins
            and held
            and not held[-1].startswith("    @")
            and not (line == '    """' and held[0].strip()[:3] == '"""')
        ):
            yield held
            held = []
        held.append(line)
    yield held


def counts_in_member(lines: list[str]) -> Counts:
    docs = code = 0
    state = "head"  # then "first", in "docs", and "body"
    for line in (line.strip() for line in lines):
        if state == "docs":
            docs += bool(line)
            state = "body" if line.endswith('"""') else state
        elif not line or line.startswith("#"):
            continue
        elif state == "first" and line.startswith('"""'):
            docs += 1
            state = "body" if line.endswith('"""') and len(line) > 3 else "docs"
        else:
            code += 1
            ended = state == "head" and re.search(r":( +#.*)?$", line)
            state = "first" if ended else "body" if state == "first" else state
    return docs, code
