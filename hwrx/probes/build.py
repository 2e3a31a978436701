"""The BPF objects: compiled by clang when hwrx is installed, or else when one is first asked for.

They depend on no kernel (CO-RE), so one object serves every kernel with BTF. Its name carries a digest of all that went
into it, so an object of another version is never taken for this one's. Standard library only: `pip install` runs it.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sysconfig
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE / "bpf"
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
# what is compiled when hwrx is installed: the source's name without .bpf.c
PROGRAMS = tuple(sorted(path.name.removesuffix(".bpf.c") for path in SOURCES.glob("*.bpf.c")))
FLAGS = ("-O2", "-g", "-Wall", "-target", "bpf")


class BuildError(Exception):
    """The object cannot be built: what is missing, and in `remedy` what to type."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def digest_sources(header: str) -> str:
    """Return what names the object: a digest of the sources, the stages' numbers and the architecture."""
    total = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".c", ".h"):
            total.update(source.name.encode() + b"\0" + source.read_bytes())
    total.update(header.encode() + platform.machine().encode() + " ".join(FLAGS).encode())
    return total.hexdigest()[:12]


def object_name(header: str, program: str = "ledger") -> str:
    """Return the file name of the object that belongs to these sources; `program` is the source that is compiled."""
    return f"{program}-{digest_sources(header)}.bpf.o"


def cache_folder() -> pathlib.Path:
    """Return the folder for objects that were built after installation."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "hwrx"


def compile_into(folder: pathlib.Path, header: str, program: str = "ledger") -> pathlib.Path:
    """Compile the programs into `folder`; the file appears there whole or not at all. BuildError in words."""
    machine = ARCHITECTURES.get(platform.machine())
    if machine is None:
        raise BuildError(f"tracing knows no {platform.machine()}", f"it is written for {', '.join(ARCHITECTURES)}")
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        raise BuildError("clang, which compiles the tracing programs, is not installed", "apt install clang libbpf-dev")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / object_name(header, program)
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        pathlib.Path(work, "stage_numbers.h").write_text(header, encoding="utf-8")
        made = pathlib.Path(work, f"{program}.bpf.o")
        command = [clang, *FLAGS, f"-D__TARGET_ARCH_{machine}", f"-I/usr/include/{multiarch}", f"-I{work}"]
        # the same bytes wherever it is built: no folder of this machine goes into the debugging information
        command += [f"-ffile-prefix-map={SOURCES}=bpf", f"-ffile-prefix-map={work}=.", "-fdebug-compilation-dir=."]
        command += ["-c", str(SOURCES / f"{program}.bpf.c"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            missing = "bpf/bpf_helpers.h" in done.stderr and "file not found" in done.stderr
            raise BuildError(
                f"clang could not compile the tracing programs:\n{done.stderr.strip()[-2000:]}",
                "apt install libbpf-dev linux-libc-dev" if missing else "clang 12 or newer is needed; set CLANG",
            )
        made.replace(target)
    return target


def find_or_build(header: str, program: str = "ledger") -> pathlib.Path:
    """Return the object, from the installation, from the cache, or compiled now. BuildError in words."""
    for folder in (HERE, cache_folder()):
        if (path := folder / object_name(header, program)).exists():
            return path
    return compile_into(cache_folder(), header, program)
