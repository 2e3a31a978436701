"""Addresses of the kernel's symbols: they stay until the next boot, so they are looked up once a boot."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Sequence

from hwrx.probes import build

KALLSYMS = pathlib.Path("/proc/kallsyms")


def noted_symbols(kind: str, names: Sequence[str], find: Callable[[Sequence[str]], dict[str, int]]) -> dict[str, int]:
    """Return what `find` found for the names since the machine booted, asking it where nothing is noted; 0: not known.

    `kind` names the note, a file in the user's cache.
    """
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    note = build.cache_folder() / f"{kind}-{boot}"
    with contextlib.suppress(OSError, ValueError):
        kept = {name: int(value, 16) for name, value in map(str.split, note.read_text(encoding="utf-8").splitlines())}
        if kept.keys() == set(names):
            return kept
    found = dict.fromkeys(names, 0) | find(names)
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        for old in note.parent.glob(f"{kind}-*"):
            old.unlink()
        note.write_text("".join(f"{name} {value:x}\n" for name, value in found.items()))
    return found


def from_kallsyms(names: Sequence[str]) -> dict[str, int]:
    """Read the kernel's list, some hundred thousand lines; what it does not name or does not tell is left out.

    A static variable of a function may carry a number behind its name, which is not looked at.
    """
    pattern = re.compile(
        rb"^([0-9a-f]+) . (" + "|".join(map(re.escape, names)).encode() + rb")(?:\.\d+)?$", re.MULTILINE
    )
    try:
        text = KALLSYMS.read_bytes()
    except OSError:
        return {}
    return {match[2].decode(): int(match[1], 16) for match in pattern.finditer(text)}
