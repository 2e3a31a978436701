"""The tree is as its tools want it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What runs for every message, and what stamps it: barriers, hand-overs and orders, each of which has a reason.
HOT = [
    *("loop", "pingpong", "tracer"),
    *("udp", "tcp"),
    *("verbs_ring", "rc", "rc_write", "ud"),
    *("e1000e_ring", "packet_ring", "xdp_ring"),
]
COMMENTS_A_LINE = 0.15
ONE_WORD = 0.15  # of public functions: commands, and what has the field's own name


@pytest.mark.parametrize(
    "tool",
    [
        ["-m", "ruff", "check", "--no-cache", "."],
        ["-m", "ruff", "format", "--no-cache", "--check", "."],
        ["-m", "mypy"],
        ["-c", "from cython_lint.cython_lint import main; raise SystemExit(main(['cython_ext']))"],
    ],
    ids=["ruff check", "ruff format", "mypy", "cython-lint"],
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


def test_every_room_stands_in_the_build() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hwrx").rglob("__init__.py")}
    assert rooms == {name for name in listed if name.startswith("hwrx")}


def test_extensions_know_no_more_of_hwrx_than_its_errors_words_and_shapes() -> None:
    allowed = {"hwrx.errors", "hwrx.paths.verbs_end", "hwrx.verbs", "hwrx.nic.xdp"}
    for path in (*(ROOT / "cython_ext").rglob("*.pyx"), *(ROOT / "cython_ext").rglob("*.pxd")):
        known = set(re.findall(r"(?m)^\s*(?:from|import|cimport) (hwrx[\w.]*)", path.read_text()))
        assert known <= allowed, path.name


def test_public_functions_say_their_object() -> None:
    names = [
        node.name
        for path in (ROOT / "hwrx").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    alone = [name for name in names if "_" not in name]
    assert len(alone) <= ONE_WORD * len(names), sorted(alone)


def test_every_extension_has_a_stub_and_a_place_in_the_build() -> None:
    import tomllib

    built = {
        entry["name"]
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    }
    sources = {f"cython_ext.{path.stem}" for path in (ROOT / "cython_ext").glob("*.pyx")}
    stubs = {f"cython_ext.{path.stem}" for path in (ROOT / "cython_ext").glob("*.pyi")}
    assert sources == built
    assert sources - stubs == set()


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
