"""The plugin, compiled for the QEMU that is installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hwrx.errors import MachineError
from hwrx.lab import accelerator
from hwrx.probes.build import cache_folder

SOURCE = Path(__file__).parent / "plugin.c"
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
FLAGS = ("-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")
NEWEST = 10  # of QEMU's major versions that the plugin was written for


def api_of(version: str) -> int:
    """Return which interface a QEMU's plugins are built for: PLUGIN_API of plugin.c.

    :raises MachineError: if none is known for it.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    major, minor = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (4, 2) <= (major, minor) < (NEWEST + 1, 0):
        raise MachineError(
            f"the plugin interface of QEMU {version} is not known to this version of hwrx",
            remedy=f"install a QEMU from 4.2 to {NEWEST}.x",
        )
    if major < 9:
        return 1
    return 2 if (major, minor) == (9, 0) else 3


def find_or_build() -> Path:
    """Return the plugin, from the cache or compiled now.

    :raises MachineError: if there is no compiler, or no interface is known for this QEMU.
    """
    flags = (*FLAGS, f"-DPLUGIN_API={api_of(accelerator.qemu_version())}")
    digest = hashlib.sha256(
        b"".join(each.read_bytes() for each in (SOURCE, *HEADERS)) + " ".join(flags).encode()
    ).hexdigest()[:12]
    target = cache_folder() / f"anatomy-{digest}.so"
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CC", "cc").split()[-1])
    if compiler is None:
        raise MachineError("there is no C compiler to build the emulator's plugin", remedy="apt install gcc")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        made = Path(work, target.name)
        command = [compiler, *flags, "-o", str(made), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            raise MachineError(f"the emulator's plugin does not compile:\n{done.stderr.strip()[-2000:]}")
        made.chmod(0o755)  # whatever the umask: QEMU, which may run as another user, opens it again
        made.replace(target)
    return target
