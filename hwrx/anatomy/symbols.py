"""Names for addresses: the guest's kernel, its modules and BPF programs, and what its processes have mapped.

The kernel says its own (/proc/kallsyms); of files `nm` and `readelf` of binutils do, which come with the compiler. Of a
function that a stripped file has for itself only the bounds are known: it is named by its address in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx.errors import MachineError
from hwrx.host import tools

NO_SYMBOL = "no symbol"
OWN = "cython_ext"
LARGEST = 1 << 20  # bytes: kallsyms has no sizes, and behind the last function of a module comes something else
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp ([0-9a-f]+) \S+ \d+\s*(.*)")
_SEGMENT = re.compile(r"\s+LOAD\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)\s.*E")
# a function of a file without symbols: the tables for unwinding its stack have its bounds (LSB, .eh_frame)
_UNWOUND = re.compile(r"FDE cie=[0-9a-f]+ pc=([0-9a-f]+)\.\.([0-9a-f]+)")
_STUBS = re.compile(r"\s*\[\s*\d+\]\s+\.plt\S*\s+\S+\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)")
# names of the same address: those that say least about what runs there
_DULL = re.compile(
    r"^(__pfx_|_?_?(text|stext|init_begin|entry_text_start|irqentry_text_start|softirqentry_text_start)$)"
)


class Function(Struct, frozen=True, order=True):
    """A function, and what it is of: `vmlinux`, a module, `bpf`, `vdso`, or a file's name."""

    name: str
    of: str

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel executes it."""
        return self.of in ("vmlinux", "bpf") or self.of.startswith("[")

    def __str__(self) -> str:
        """A kernel's function by its name alone, others with what they are of."""
        return self.name if self.of == "vmlinux" else f"{self.name} {self.of}"


class Symbols:
    """Pieces of memory with names. Later ones do not hide earlier ones: of two at one address the first counts."""

    def __init__(self, pieces: Iterable[tuple[int, int, Function]]) -> None:
        """Take pieces as (first address, address behind the last, function)."""
        known: dict[int, tuple[int, Function]] = {}
        for start, end, function in pieces:
            known.setdefault(start, (end, function))
        self._starts = np.array(sorted(known), np.uint64)
        self._ends = np.array([known[int(start)][0] for start in self._starts], np.uint64)
        self.functions = [known[int(start)][1] for start in self._starts]
        self.functions.append(Function(NO_SYMBOL, ""))

    def find(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return for each address the number of its function in `functions`; the last one is that of no symbol."""
        index = np.searchsorted(self._starts, addresses, side="right").astype(np.int64) - 1
        unknown = (index < 0) | (addresses >= self._ends[np.maximum(index, 0)])
        return np.where(unknown, len(self.functions) - 1, index)

    def starts_of(self, chosen: Callable[[Function], bool]) -> npt.NDArray[np.uint64]:
        """Return the first addresses of those functions, ascending."""
        return self._starts[[chosen(function) for function in self.functions[:-1]]]


def kernel_pieces(kallsyms: str) -> list[tuple[int, int, Function]]:
    """Read /proc/kallsyms, of which each line is an address, a type, a name and perhaps a module.

    :raises MachineError: if it has no addresses.
    """
    found: dict[int, Function] = {}
    for line in kallsyms.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[1] not in "tTwW":
            continue
        address, function = int(fields[0], 16), Function(fields[2], fields[3] if len(fields) > 3 else "vmlinux")
        if function.of == "[bpf]":
            function = Function(function.name, "bpf")
        if address not in found or _DULL.match(found[address].name):
            found[address] = function
    if not any(found):
        raise MachineError(
            "the guest's kernel names no addresses of functions", remedy="one built with CONFIG_KALLSYMS"
        )
    order = sorted(found)
    behind = [*order[1:], order[-1] + LARGEST]
    return [(start, min(end, start + LARGEST), found[start]) for start, end in zip(order, behind, strict=True)]


def process_pieces(maps: str) -> list[tuple[int, int, Function]]:
    """Read lines of /proc/PID/maps, and the symbols of the files that are named in them.

    The files are read here: a guest of hwrx sees the host's.
    """
    pieces: list[tuple[int, int, Function]] = []
    for mapping in dict.fromkeys(_MAPPING.findall(maps)):
        start, end, offset = (int(each, 16) for each in mapping[:3])
        name = mapping[3].strip()
        if name == "[vdso]":
            pieces.append((start, end, Function("clock_gettime", "vdso")))
        elif name.startswith("/"):
            pieces += _pieces_of_file(Path(name), start, end, offset)
    return pieces


def _pieces_of_file(file: Path, start: int, end: int, offset: int) -> list[tuple[int, int, Function]]:
    of = file.name.split(".cpython-")[0]
    if own := OWN in file.parts:
        of = ".".join([*file.parts[file.parts.index(OWN) : -1], of])
    segments = [[int(each, 16) for each in found] for found in _SEGMENT.findall(_run("readelf", "-lW", str(file)))]
    shift = next((start - offset + at - address for at, address, _ in segments if at // 4096 * 4096 == offset), None)
    if shift is None:
        return []
    pieces = []
    for line in [*_run("nm", "-S", "--defined-only", str(file)).splitlines(), *_dynamic(file)]:
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tTwWiu":
            first, size = int(fields[0], 16) + shift, int(fields[1], 16)
            if start <= first < end and size:
                name = fields[3].split("@")[0]
                pieces.append((first, first + size, Function(_own_name(name, of) if own else name, of)))
    for address, size_of in _STUBS.findall(_run("readelf", "-SW", str(file))):
        first = int(address, 16) + shift
        pieces.append((first, first + int(size_of, 16), Function("plt", of)))
    for address, behind in _UNWOUND.findall(_run("readelf", "-wfN", str(file))):
        first = int(address, 16)
        pieces.append((first + shift, int(behind, 16) + shift, Function(f"static_{first:x}", of)))
    return pieces


def _own_name(name: str, module: str) -> str:
    """Take Cython's ornament off: it puts a module's name, with its length, before that of a function."""
    stem = module.rsplit(".", 1)[-1]
    if not name.startswith("__pyx_"):
        return name
    return name.split(f"{len(stem)}{stem}_", 1)[-1].lstrip("0123456789") or name


def _dynamic(file: Path) -> Sequence[str]:
    return _run("nm", "-S", "-D", "--defined-only", str(file)).splitlines()


def _run(*words: str) -> str:
    try:
        return tools.run_tool(*words)
    except MachineError:  # a file that is none of these, or has no symbols
        tools.find_tool(words[0])
        return ""
