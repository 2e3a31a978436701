"""What a test may need of a machine, and whether this one has it: a reason in words if not."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from hwrx import paths
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.errors import HwrxError, UsageError
from hwrx.host import tools
from hwrx.lab import accelerator, initramfs, kernel
from hwrx.runs import lanes, testbed
from hwrx.wires import guest_nics
from hwrx.wires import topology as topologies

VERBS = Path("/sys/class/infiniband")
COMMAND = "command:"  # before the name of a program


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


@functools.cache
def _namespaces() -> str:
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else "" if shutil.which("ip") else "there is no `ip` (iproute2)"


@functools.cache
def _rxe() -> str:
    done = subprocess.run(["modprobe", "rdma_rxe"], capture_output=True, text=True, check=False)
    return f"no module rdma_rxe: {done.stderr.strip()}" if done.returncode else ""


def _verbs() -> str:
    return "" if VERBS.is_dir() and any(VERBS.iterdir()) else "there is no verbs device"


def _nic() -> str:
    # an rxe device has a `parent`; hardware has a PCI device beneath it
    return "" if any(VERBS.glob("*/device")) else "there is no verbs NIC"


def _two_cpus() -> str:
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is one CPU only"


def _queues() -> str:
    subprocess.run(["modprobe", "-a", *guest_nics.QUEUES_MODULES], capture_output=True, check=False)
    found = {file.read_text(encoding="utf-8").strip() for file in Path("/sys/class/net").glob("*/address")}
    return "" if guest_nics.QUEUES_HARDWARE["server"] in found else "there is no NIC with several queues"


@functools.cache
def _io_uring() -> str:
    """Whether this kernel lets this process make the ring that hwrx wants."""
    setting = Setting(path="udp-uring")
    try:
        paths.open_endpoint(Prepare(trial=1, role="client", setting=setting, here=Place(), there=Place())).close()
    except HwrxError as error:
        return str(error)
    return ""


@functools.cache
def _pyverbs() -> str:
    try:
        __import__("pyverbs.device")
    except ImportError as error:
        return f"no pyverbs: {error}"
    return ""


@functools.cache
def _guest() -> str:
    """Whether a virtual machine can be booted; not whether it will."""
    try:
        tools.find_tool(accelerator.QEMU)
        initramfs.find_busybox()
        kernel.find_kernel()
    except HwrxError as error:
        return str(error)
    return ""


def _two_guests() -> str:
    """Whether two guests of one CPU can run at the same time."""
    return "" if lanes.has_room(2, testbed.GUEST_MEMORY) else "there is no CPU or no memory for two guests"


CAPABILITIES: dict[str, Callable[[], str]] = {
    "root": _root,
    "namespaces": _namespaces,
    "rxe": _rxe,
    "verbs": _verbs,
    "nic": _nic,
    "queues": _queues,
    "two CPUs": _two_cpus,
    "io_uring": _io_uring,
    "pyverbs": _pyverbs,
    "guest": _guest,
    "two guests": _two_guests,
}
OF_A_WIRE = ("rxe", "verbs")  # that a topology of the lab may have, whatever this machine has


def what_lacks(name: str) -> str:
    """Return why this machine cannot do something, "" if it can.

    :param name: a capability, or "command:NAME" for a program
    :raises UsageError: if it is neither
    """
    if name.startswith(COMMAND):
        program = name.removeprefix(COMMAND)
        return "" if shutil.which(program) else f"there is no command `{program}`"
    if name not in CAPABILITIES:
        raise UsageError(
            f"a test cannot need '{name}'", remedy=f"choose of: {', '.join(CAPABILITIES)}, or {COMMAND}PROGRAM"
        )
    return CAPABILITIES[name]()


def what_lacks_for(topology: str, needs: Iterable[str], *, guest: bool) -> str:
    """Return why a test on a topology cannot be run here, "" if it can.

    :param needs: what the test asks for; verbs devices are the topology's, if hwrx puts it up
    :param guest: whether the topology is to be had in a virtual machine
    :raises UsageError: if there is no such topology, or a need is none
    """
    found = topologies.KNOWN.get(topology)
    if found is None or found.where == "named":
        known = [name for name, each in topologies.KNOWN.items() if each.where != "named"]
        raise UsageError(f"there is no topology '{topology}' for a lab", remedy=f"choose of: {', '.join(known)}")
    own = ["guest"] if guest else ["root", "namespaces"] if found.make is not None else []
    for name in needs:
        if name in OF_A_WIRE and found.make is not None:
            if not found.verbs:
                return f"the topology {topology} has no verbs devices"
        elif reason := what_lacks(name):
            return reason
    return next(filter(None, map(what_lacks, own)), "")
