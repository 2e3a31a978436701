"""Results of tests as KTAP version 1 (Documentation/dev-tools/ktap.rst of Linux), for who runs kernel selftests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hwrx.errors import StoreError
from hwrx.host import disk
from hwrx.host.outside import clean_text

LINES = 40  # of a failure's words


class Result(NamedTuple):
    """How a test ended: `directive` is SKIP or XFAIL, or empty; `words` say why, or what failed."""

    name: str
    passed: bool
    directive: str = ""
    words: str = ""


def to_ktap(results: Sequence[Result]) -> str:
    """Return the results as KTAP: version, plan, then a line a test with its diagnostics before it."""
    lines = ["KTAP version 1", f"1..{len(results)}"]
    for number, result in enumerate(results, 1):
        words = clean_text(result.words).strip()
        if result.directive:
            end = f" # {result.directive} {' '.join(words.split())}".rstrip()
        else:
            end = ""
            lines += [f"# {line}".rstrip() for line in words.splitlines()[-LINES:]]
        name = re.sub(r"[#\s]+", " ", clean_text(result.name, lines=False)).strip()
        lines.append(f"{'ok' if result.passed else 'not ok'} {number} {name}{end}")
    return "\n".join(lines) + "\n"


def write_ktap(results: Mapping[str, Result], target: str) -> None:
    """Write results to a file.

    :raises StoreError: if it cannot be written
    """
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.replace_file(path, to_ktap(list(results.values())).encode())
    except OSError as error:
        raise StoreError(f"cannot write {target}: {disk.reason_of(error)}", remedy="--hwrx-ktap=FILE") from error
