"""What agents need is imported once, where they are forked from: every repeat has new ones."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from hwrx.paths import families

FAMILIES = [each.name for each in pkgutil.iter_modules(families.__path__)]


def run_program(program: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_endpoints_import_is_there_before_an_agent_is_forked(family: str) -> None:
    source = Path(importlib.import_module(f"hwrx.paths.families.{family}").__file__ or "").read_text()
    imports = [
        node
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    wanted = {name for name in names if name and name.startswith(("cython_ext", "hwrx"))}
    loaded = run_program(
        f"import sys\nfrom hwrx.paths.families import {family}\n{family}.preload_endpoints()\nprint(*sys.modules)\n"
    )
    assert wanted
    assert wanted <= loaded


def test_a_socket_imports_nothing_more_when_it_is_opened() -> None:
    """Not the codec either, that getaddrinfo encodes names of hosts by."""
    assert not run_program(
        "import socket, sys\nfrom hwrx.paths.families import sockets\nsockets.preload_endpoints()\n"
        "before = set(sys.modules)\n"
        "socket.getaddrinfo('198.18.0.1', 0, 0, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)\n"
        "print(*set(sys.modules) - before)\n"
    )
