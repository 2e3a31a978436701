"""The tree is as its tools want it."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]

# What runs for every message, and what stamps it: barriers, hand-overs and orders, each of which has a reason.
HOT = [
    *("loop", "pingpong", "tracer"),
    *("udp", "tcp"),
    *("verbs_ring", "rc", "rc_write", "ud"),
    *("e1000e_ring", "packet_ring", "xdp_ring"),
    *("responder", "requester"),
]
COMMENTS_A_LINE = 0.15
ONE_WORD = 0.15  # of public functions: commands, and what has the field's own name
WITH_ANY = 159  # functions whose signature has an Any within: of JSON that another program wrote, and arrays of records
LONGEST_CHAIN = 14  # modules that import one another in turn, from a command down to what imports nothing


@pytest.mark.parametrize(
    "tool",
    [
        ["-m", "ruff", "check", "--no-cache", "."],
        ["-m", "ruff", "format", "--no-cache", "--check", "."],
        ["-m", "mypy"],
        ["-m", "mypy", "--config-file", "tests/mypy.ini"],
        ["-c", "from cython_lint.cython_lint import main; raise SystemExit(main(['cython_ext']))"],
    ],
    ids=["ruff check", "ruff format", "mypy", "mypy of tests", "cython-lint"],
)
def test_the_tree_is_clean(tool: list[str]) -> None:
    # cython-lint calls pycodestyle, which stands beside it
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, *tool], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_arrows_between_the_rooms_go_down() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def longest_chain(imports: Mapping[str, set[str]]) -> list[str]:
    """The longest way through the modules, each of which imports the next."""
    order = graphlib.TopologicalSorter(imports).static_order()  # what is imported before those that import it
    chains: dict[str, list[str]] = {}
    for module in order:
        chains[module] = [module, *max((chains[other] for other in imports.get(module, ())), key=len, default=[])]
    return max(chains.values(), key=len)


def test_no_chain_of_imports_is_long() -> None:
    # imports in functions and for type checking are counted: whoever follows one has to read them, too
    graph = grimp.build_graph("hwrx", exclude_type_checking_imports=False, cache_dir=None)
    chain = longest_chain({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_the_longest_chain_is_found_whatever_is_beside_it() -> None:
    assert longest_chain({"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}) == ["a", "b", "c", "d"]


def annotations_of(function: ast.FunctionDef) -> list[ast.expr]:
    """The types that a signature says."""
    arguments = function.args
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    said = [each.annotation for each in several if each is not None]
    return [each for each in (*said, function.returns) if each is not None]


def is_any(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "Any"


def signatures_with_any(source: str) -> tuple[list[str], list[str]]:
    """The functions whose signature has an Any anywhere, and those of them in which a whole type is Any.

    Who has no other way says why, in a comment of the function that begins with "Any: ".
    """
    within, bare = [], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            said = annotations_of(node)
            if any(is_any(inner) for each in said for inner in ast.walk(each)):
                within.append(node.name)
            if any(map(is_any, said)) and "# Any: " not in (ast.get_source_segment(source, node) or ""):
                bare.append(node.name)
    return within, bare


def test_signatures_say_what_they_take_and_return() -> None:
    found = {path: signatures_with_any(path.read_text()) for path in sorted((ROOT / "hwrx").rglob("*.py"))}
    assert {str(path.relative_to(ROOT)): bare for path, (_, bare) in found.items() if bare} == {}
    assert sum(len(within) for within, _ in found.values()) <= WITH_ANY


def test_any_is_seen_wherever_it_stands_in_a_signature() -> None:
    source = (
        "def a(x: Any) -> int: ...\n"
        "def b(*x: Any) -> int:\n    # Any: a library without types\n    ...\n"
        "class C:\n    def c(self) -> Any: ...\n"
        "def d(x: dict[str, Any], *, y: int | None = None) -> int: ...\n"
        "def e(x: object) -> int: ...\n"
    )
    within, bare = signatures_with_any(source)
    assert (sorted(within), sorted(bare)) == (["a", "b", "c", "d"], ["a", "c"])


def unexplained_imports(source: str) -> list[int]:
    """The lines in functions that import a module of ours, and have no comment: beside them, or above them."""
    lines = source.splitlines()
    found = []
    for function in ast.walk(ast.parse(source)):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(node, ast.Import | ast.ImportFrom) and "hwrx" in lines[node.lineno - 1]:
                above = node.lineno - 2
                while lines[above].strip().startswith(("import ", "from ")):  # one comment for several
                    above -= 1
                if "#" not in lines[node.lineno - 1] and not lines[above].strip().startswith("#"):
                    found.append(node.lineno)
    return sorted(set(found))


def test_what_is_imported_late_says_why() -> None:
    found = {
        str(path.relative_to(ROOT)): unexplained_imports(path.read_text()) for path in (ROOT / "hwrx").rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_late_import_without_a_reason_is_seen() -> None:
    source = (
        "def a():\n    from hwrx import b\n"
        "def c():\n    # slow\n    from hwrx import d\n    from hwrx import e\n"
        "def f():\n    from hwrx import g  # slow\n"
    )
    assert unexplained_imports(source) == [2]


def test_the_help_starts_without_what_commands_need() -> None:
    heavy = {"numpy", "scipy", "pyarrow", "matplotlib", "rich", "msgspec", "hwrx.paths", "hwrx.runs", "hwrx.commands"}
    ask = f"import sys, hwrx.cli; hwrx.cli.main(['--help']); print('loaded:', *sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_every_room_stands_in_the_build() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for tree in ("hwrx", "cython_ext")
        for path in (ROOT / tree).rglob("__init__.py")
    }
    assert rooms == set(listed)


def test_no_extension_stands_outside_of_a_room() -> None:
    extensions = ROOT / "cython_ext"
    for kind in ("*.pyx", "*.pxd", "*.pyi"):
        for path in extensions.rglob(kind):
            assert path.parent.parent == extensions, path.name


def test_public_functions_say_their_object() -> None:
    names = [
        node.name
        for path in (ROOT / "hwrx").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    alone = [name for name in names if "_" not in name]
    assert len(alone) <= ONE_WORD * len(names), sorted(alone)


def test_the_shell_scripts_parse_and_can_be_run() -> None:
    for name in ("lab/run", "lab/test", "lab/setup.sh", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    for name in ("lab/run", "lab/test"):
        assert (ROOT / name).stat().st_mode & 0o111


@pytest.mark.parametrize("name", HOT)
def test_a_hot_file_says_why(name: str) -> None:
    (path,) = (ROOT / "cython_ext").rglob(f"{name}.pyx")
    comments, code = comments_and_code(path)
    assert comments / code >= COMMENTS_A_LINE, f"{path.name}: {comments} comments in {code} lines of code"


def test_docstrings_and_blank_lines_are_neither_comment_nor_code(tmp_path: Path) -> None:
    source = tmp_path / "made.pyx"
    source.write_text(
        '"""A module."""\n'
        "\n"
        "cdef extern from *:\n"
        '    """\n'
        "    /* C is code, # and so are its comments */\n"
        '    """\n'
        "    void leap() nogil\n"
        "\n"
        "# why\n"
        "cdef int step(int k) noexcept nogil:\n"
        '    """Two\n'
        '    lines."""\n'
        "    return k + 1  # because\n"
    )
    assert comments_and_code(source) == (2, 7)


def comments_and_code(path: Path) -> tuple[int, int]:
    """How many lines of a Cython file hold a comment, and how many hold code. A docstring is neither.

    A string that begins with an empty line is C for the compiler, and so code.
    """
    comments: set[int] = set()
    code: set[int] = set()
    begins = True  # a statement: a string that begins one is a docstring
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            lines = range(token.start[0], token.end[0] + 1)
            if token.type == tokenize.COMMENT:
                comments.update(lines)
            elif token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING):
                begins = True
            elif token.type not in (tokenize.NL, tokenize.ENDMARKER):
                if not begins or token.type != tokenize.STRING or token.string.startswith('"""\n'):
                    code.update(lines)
                begins = False
    blank = {number for number, line in enumerate(path.read_text().splitlines(), 1) if not line.strip()}
    return len(comments), len(code - blank)
