"""QEMU as another user than the one that runs hwrx: what it may then reach, and the words that start it so.

A guest is root on emulated devices, and a fault in one of them would be QEMU's. hwrx as root starts QEMU as root, but
as the user that HWRX_QEMU_USER names. `setpriv` makes QEMU that user before it runs, without capabilities or a way back
(`-runas` of QEMU would do so after its start, and the kernel then forgets that QEMU is to die with hwrx: prctl(2),
PR_SET_PDEATHSIG). What root alone may open, the kernel's image and modules, QEMU inherits as open files.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools

VARIABLE = "HWRX_QEMU_USER"
KVM = Path("/dev/kvm")


class EmulatorUser(Struct, frozen=True):
    """A user that QEMU is to run as, with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    def start_words(self, *, kvm: bool = False) -> list[str]:
        """Return the words before a command that make it this user's. `kvm`: whether /dev/kvm is to be opened."""
        groups = {*self.groups, KVM.stat().st_gid} if kvm and KVM.exists() else {*self.groups}
        return [
            tools.find_tool("setpriv"), f"--reuid={self.uid}", f"--regid={self.gid}",
            f"--groups={','.join(map(str, sorted(groups)))}",
            "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
        ]  # fmt: skip

    def need_access(self, readable: Iterable[Path], writable: Iterable[Path] = ()) -> None:
        """Refuse a guest whose files this user could not reach, before it is booted: the kernel is asked, as that user.

        :param readable: files and folders that the guest reads through QEMU
        :param writable: folders that it is to write to
        :raises MachineError: that names the first one
        """
        for letter, verb, paths in (("r", "read", readable), ("w", "write to", writable)):
            if refused := self._refused(letter, [*dict.fromkeys(map(str, paths))]):
                raise MachineError(
                    f"the user '{self.name}' ({VARIABLE}) may not {verb} {refused[0]}, and a guest reaches this"
                    " machine's files through QEMU",
                    remedy=f"let that user in (setfacl -m u:{self.name}:{'rwx' if letter == 'w' else 'rx'}, for the"
                    f" folders above it x), put hwrx into a folder that all may read, or leave {VARIABLE} out",
                )

    def _refused(self, letter: str, paths: Sequence[str]) -> list[str]:
        # what a folder holds is reached with x
        script = f'for p; do test -{letter} "$p" && {{ test ! -d "$p" || test -x "$p"; }} || echo "$p"; done'
        done = subprocess.run(
            [*self.start_words(), "/bin/sh", "-c", script, "sh", *paths],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd="/",
            check=False,
        )
        if done.returncode:
            raise MachineError(f"no command can be started as the user '{self.name}': {done.stderr.strip()}")
        return done.stdout.splitlines()


def find_emulator_user() -> EmulatorUser | None:
    """Return the user that HWRX_QEMU_USER names; None if it is not set, or names whoever runs hwrx.

    :raises UsageError: if there is no such user, or only root could start QEMU as that one
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL
        raise UsageError(
            f"{VARIABLE}: this machine has no user '{name}'", remedy=f"{VARIABLE}=nobody, or make one: adduser --system"
        ) from None
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise UsageError(
            f"{VARIABLE} names '{name}', and only root can start QEMU as another user",
            remedy=f"use sudo, or leave {VARIABLE} out: QEMU then runs as you",
        )
    return EmulatorUser(name, found.pw_uid, found.pw_gid, tuple(os.getgrouplist(name, found.pw_gid)))


def files_of_hwrx() -> list[Path]:
    """Return what a guest reads of this machine to run hwrx: the interpreter, its libraries, hwrx, this folder."""
    tree = Path(__file__).parents[2]
    interpreter = Path("/proc/self/exe").resolve()
    paths = [Path("/"), Path(sys.prefix, "bin"), interpreter, tree / "hwrx", tree / "cython_ext"]
    return [*paths, *(Path(each) for each in sys.path if Path(each).is_dir()), Path.cwd()]
