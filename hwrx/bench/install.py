"""Putting this hwrx onto a host: what runs here, and the wheels that it needs, by the way that starts its agent.

Nothing is compiled for it: the extensions that are built here go there, so that both ends run the same code. A host of
another architecture, Python or an older C library is refused before anything is sent.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import Struct

from hwrx.bench.wheels import collect_wheels, find_needs
from hwrx.control.causes import find_remedy
from hwrx.control.environment import Host, parse_environment
from hwrx.errors import MachineError, PeerError
from hwrx.host.decoding import UNREADABLE
from hwrx.host.outside import clean_text, describe_status
from hwrx.version import __version__

LOOKS_WITHIN, INSTALLS_WITHIN = 60.0, 1800.0  # seconds

LOOK = """
import json, os, platform, shutil, sys
folder = os.path.abspath(os.path.expanduser(sys.argv[1]))
near = folder
while not os.path.isdir(near):
    near = os.path.dirname(near)
print(json.dumps({"architecture": platform.machine(), "python": list(sys.version_info[:2]), "folder": folder,
    "libc": list(platform.libc_ver()), "writable": os.access(near, os.W_OK), "free": shutil.disk_usage(near).free,
    "taken": os.path.isdir(folder) and bool(os.listdir(folder)) and not os.path.isfile(folder + "/pyvenv.cfg")}))
"""
# pip comes along as a wheel, which runs as it is: the host needs neither pip nor ensurepip
PUT = """
import glob, os, subprocess, sys, tarfile, tempfile
folder = sys.argv[1]
with tempfile.TemporaryDirectory(prefix="hwrx-install-") as wheels:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as stream:
        for member in stream:
            if not member.isfile() or os.path.basename(member.name) != member.name:
                sys.exit("the archive holds something else than wheels: " + member.name)
            with open(os.path.join(wheels, member.name), "wb") as file:
                file.write(stream.extractfile(member).read())
    run = lambda *words: subprocess.run(words, check=True, stdout=sys.stderr)
    run(sys.executable, "-P", "-m", "venv", "--without-pip", "--system-site-packages", folder)
    (pip,) = glob.glob(wheels + "/pip-*.whl")
    mine = glob.glob(wheels + "/hwrx-*.whl")
    run(folder + "/bin/python", pip + "/pip", "install", "-q", "--no-index", "--disable-pip-version-check",
        "--root-user-action=ignore", "--force-reinstall", "--find-links", wheels, *mine)
subprocess.run([folder + "/bin/hwrx", "--version"], check=True)
"""


class Found(Struct, forbid_unknown_fields=True):
    """What a host is, as far as what is installed there depends on it."""

    architecture: str
    python: tuple[int, int]
    libc: tuple[str, str]
    folder: str
    writable: bool
    free: int  # bytes
    taken: bool  # the folder holds something else than an environment of Python's


def install_host(
    host: Host, into: str | None, python: str, *, dry_run: bool, say: Callable[[str], None] = lambda words: None
) -> str:
    """Look at a host, collect what it needs, and install it there. Return what was done, and what to write down.

    :param into: folder there; None: that of `hwrx` in the inventory, or ~/.hwrx
    :param python: the Python there
    :raises MachineError: if the host cannot run what is built here
    :raises PeerError: if it is not reached, or the installation fails there
    """
    folder = into or _folder_of(host)
    say(f"looking at {host.name}")
    found = _look_at(host, python, folder)
    check_host(host.name, found)
    command = shlex.join(parse_environment(host.reach).run_command([python, "-I", "-c", "…", found.folder]))
    if dry_run:
        fits = f"{found.architecture}, Python {found.python[0]}.{found.python[1]}, {' '.join(found.libc)}"
        return (
            f"{host.name}: {fits}: fits\n"
            f"would pack hwrx {__version__} and what it needs as it is here: {len(find_needs())} packages\n"
            f"would send them through `{clean_text(command, lines=False)}`, into {found.folder}"
        )
    with tempfile.TemporaryDirectory(prefix="hwrx-wheels-") as wheels:
        say("packing hwrx and what it needs")
        collect_wheels(Path(wheels))
        size = sum(file.stat().st_size for file in Path(wheels).iterdir())
        if found.free < 4 * size:
            raise MachineError(
                f"{host.name} has {found.free >> 20} MiB free for {found.folder}, and {size >> 18} are needed",
                remedy="another folder: --into FOLDER",
            )
        say(f"sending {size >> 20} MiB to {host.name}, and installing them there")
        said = _run_there(host, [python, "-I", "-c", PUT, found.folder], INSTALLS_WITHIN, Path(wheels))
    line = f'hwrx = "{found.folder}/bin/hwrx"'
    note = "" if host.hwrx == f"{found.folder}/bin/hwrx" else f"\nwrite into the inventory, for {host.name}: {line}"
    return f"{host.name}: {clean_text(said.strip())} in {found.folder}{note}"


def check_host(name: str, found: Found) -> None:
    """MachineError if what is built here cannot run on a host that is like this."""
    here = platform.machine()
    if found.architecture != here:
        raise MachineError(
            f"{name} is {found.architecture}, and what is built here is for {here}",
            remedy=f"set hwrx up there by hand: ./lab/run of a source tree on {name}",
        )
    if found.python != sys.version_info[:2]:
        raise MachineError(
            f"{name} has Python {found.python[0]}.{found.python[1]}, and the extensions here are built for "
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            remedy="--python names another one there",
        )
    ours = platform.libc_ver()
    if found.libc[0] != ours[0] or _numbers(found.libc[1]) < _numbers(ours[1]):
        raise MachineError(
            f"{name} has {' '.join(found.libc).strip() or 'an unknown C library'}; what is built here needs "
            f"{' '.join(ours)}",
            remedy="install from the machine with the older C library, or set hwrx up there by hand",
        )
    if found.taken:
        raise MachineError(f"{name}: {found.folder} holds something else", remedy="another folder: --into FOLDER")
    if not found.writable:
        raise MachineError(f"{name}: {found.folder} cannot be written", remedy="another folder: --into FOLDER")


def _folder_of(host: Host) -> str:
    path = PurePosixPath(host.hwrx)
    return str(path.parent.parent) if path.is_absolute() and path.parent.name == "bin" else "~/.hwrx"


def _look_at(host: Host, python: str, folder: str) -> Found:
    said = _run_there(host, [python, "-I", "-c", LOOK, folder], LOOKS_WITHIN)
    try:
        return msgspec.convert(json.loads(said.strip().splitlines()[-1]), Found)
    except (IndexError, *UNREADABLE):
        raise PeerError(
            f"{host.name} answered with something else: {clean_text(said)[:200]}",
            remedy="does a login script print to standard output there?",
        ) from None


def _run_there(host: Host, words: Sequence[str], limit: float, wheels: Path | None = None) -> str:
    """Run a program at a host, with the files of a folder as a tar on its standard input; return what it prints."""
    command = parse_environment(host.reach).run_command(list(words))
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=printed, stderr=errors)
        except OSError as error:
            raise PeerError(
                f"{host.name}: `{clean_text(command[0])}` cannot be run: {error.strerror}", remedy="is it installed?"
            ) from None
        try:
            assert process.stdin is not None  # a pipe, above
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                if wheels is not None:
                    with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                        for file in sorted(wheels.iterdir()):
                            archive.add(file, arcname=file.name)
                process.stdin.close()
            code = process.wait(timeout=limit)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise PeerError(
                    f"{host.name} did not end within {limit:g} s", remedy="is it overloaded, or the way there slow?"
                ) from None
            raise
        printed.seek(0)
        errors.seek(0)
        if code:
            why = clean_text(errors.read()[-2000:].strip())
            said = f"{describe_status(code)}: {why}" if why else describe_status(code)
            raise PeerError(f"{host.name}: {said}", remedy=find_remedy(said) or "what it says is from that host")
        return printed.read(1 << 20).decode(errors="replace")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
