"""What runs here as wheels: hwrx with its extensions as they are built, and the packages that it needs.

Each is packed as it is installed. So a host gets the files that run here, byte for byte, and no network is needed on
either side. A package that the system's own package manager has installed lists no files that could be packed, and is
fetched by its version.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from hwrx.errors import MachineError
from hwrx.host.outside import clean_text
from hwrx.version import __version__

TREE = Path(__file__).parents[2]
PACKAGES = ("hwrx", "cython_ext")
LEAVES_OUT = {".pyx", ".c"}  # of cython_ext: what only building needs
NOT_PACKED = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}  # what an installer writes itself


def collect_wheels(folder: Path) -> None:
    """Put hwrx as it runs here, what it needs, and pip into a folder, all as wheels.

    :raises MachineError: if one can neither be packed nor fetched.
    """
    pack_hwrx(folder)
    fetched = [f"{known.name}=={known.version}" for known in find_needs() if not pack_distribution(known, folder)]
    if not fetched:
        return
    pip = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--no-deps", "-d", str(folder), *fetched], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise MachineError(
            f"{', '.join(fetched)} cannot be fetched: {clean_text(done.stderr.strip())[-1000:]}",
            remedy="pip install them into this environment, so that they can be packed as they are here",
        )


def find_needs() -> list[importlib.metadata.Distribution]:
    """Return the packages that hwrx needs, and pip, as they are installed here, each once."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen = set()
    wanted = ["pip", "hwrx"]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            known = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        found[name] = known
        for line in known.requires or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
                wanted.append(match[0])
    del found["hwrx"]
    return [found[name] for name in sorted(found)]


def pack_hwrx(folder: Path) -> Path:
    """Write the hwrx that runs here as a wheel: modules, extensions as they are built, and data; return its file."""
    known = importlib.metadata.distribution("hwrx")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    tag = f"{tag}-{tag}-linux_{platform.machine()}"
    info = f"hwrx-{__version__}.dist-info"
    kept = {name: (known.read_text(name) or "").encode() for name in ("METADATA", "entry_points.txt")}
    kept["WHEEL"] = f"Wheel-Version: 1.0\nGenerator: hwrx\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    target = folder / f"hwrx-{__version__}-{tag}.whl"
    own = ((file.relative_to(TREE).as_posix(), file.read_bytes()) for file in _own_files())
    _write_wheel(target, info, [*own, *((f"{info}/{name}", content) for name, content in kept.items())])
    return target


def pack_distribution(known: importlib.metadata.Distribution, folder: Path) -> Path | None:
    """Write an installed package as a wheel; None if it does not say which files are its own.

    Left out is what pip makes anew (commands, byte code), and what lies outside of its folder, such as man pages.
    """
    wheel, files = known.read_text("WHEEL"), known.files
    if wheel is None or not files:
        return None
    tags = re.findall(r"^Tag: (\S+)$", wheel, re.MULTILINE)
    # a wheel's name has all its tags in one: those of each part are joined by dots
    parts = [".".join(dict.fromkeys(part)) for part in zip(*(tag.split("-") for tag in tags), strict=True)]
    inside = [PurePosixPath(str(file)) for file in files if ".." not in file.parts and "__pycache__" not in file.parts]
    infos = {path.parts[0] for path in inside if path.parts[0].endswith(".dist-info")}
    if len(infos) != 1 or len(parts) != 3:
        return None
    (info,) = infos
    target = folder / f"{info.removesuffix('.dist-info')}-{'-'.join(parts)}.whl"
    packed = [path for path in inside if not (path.parts[0] == info and path.name in NOT_PACKED)]
    try:
        _write_wheel(target, info, ((str(path), Path(str(known.locate_file(path))).read_bytes()) for path in packed))
    except FileNotFoundError:  # somebody has taken a file away: not what was installed
        target.unlink(missing_ok=True)
        return None
    return target


def _write_wheel(target: Path, info: str, files: Iterable[tuple[str, bytes]]) -> None:
    record: list[tuple[str, str, int | str]] = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for name, content in files:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append((name, f"sha256={digest}", len(content)))
            wheel.writestr(name, content)
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([*record, (f"{info}/RECORD", "", "")])
        wheel.writestr(f"{info}/RECORD", lines.getvalue())


def _own_files() -> Iterator[Path]:
    for package in PACKAGES:
        for file in sorted((TREE / package).rglob("*")):
            built = file.suffix in LEAVES_OUT and package == "cython_ext"
            if file.is_file() and "__pycache__" not in file.parts and not built:
                yield file
