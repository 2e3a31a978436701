"""What happens at the limits of memory that may be held: tried in a child that has no privilege to exceed them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import traceback
from collections.abc import Callable, Collection

from msgspec import Struct

from cython_ext.core.pinned import PinnedBuffer
from hwrx.errors import HwrxError, MachineError
from hwrx.host import tools
from hwrx.host.outside import name_signal
from hwrx.host.undo import Undo
from hwrx.memory import forces
from hwrx.memory.subjects import no_nic, open_domain, register_buffer
from hwrx.nic import pci
from hwrx.nic.vfio import VfioDevice

ASKED, LOCKED_LIMIT = 1 << 20, 64 << 10  # bytes
CGROUP_ASKED, CGROUP_LIMIT = 64 << 20, 16 << 20
CAP_IPC_LOCK = 14  # linux/capability.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
LACKS, REFUSED, GIVEN = b"L", b"R", b"G"

Attempt = Callable[[int], object]
Prepare = Callable[[contextlib.ExitStack], Attempt]
_libc = ctypes.CDLL(None, use_errno=True)


class Limit(Struct, frozen=True):
    """One attempt to hold `asked` bytes where `allowed` are.

    `outcome`: refused by the call, killed by the kernel, or given all the same. `said`: the error in hwrx's words.
    """

    limit: str
    call: str
    allowed: int
    asked: int
    outcome: str
    said: str


def find_limits(
    *, device: str | None = None, nic: str | None = None, own: Collection[str] = ()
) -> tuple[list[Limit], dict[str, str]]:
    """Exceed RLIMIT_MEMLOCK and a cgroup's memory.max by mlock, ibv_reg_mr and a VFIO mapping, each in a child.

    The children have no CAP_IPC_LOCK, for with it RLIMIT_MEMLOCK does not count (mlock(2), can_do_mlock of the kernel).

    :param device: verbs device, by default the first
    :param nic: that is taken from the kernel for the VFIO mapping; `own`: addresses that may go with it
    :return: what happened at each limit, and by call or limit what could not be tried and why
    :raises MachineError: without root
    """
    tools.need_root("setting limits of memory")
    found: list[Limit] = []
    unavailable: dict[str, str] = {}
    with Undo("a limit of memory") as undo, contextlib.ExitStack() as stack:
        calls: dict[str, Prepare] = {"mlock": _locking, "ibv_reg_mr": lambda child: _registering(child, device)}
        try:
            calls["VFIO_IOMMU_MAP_DMA"] = _mapping(_lent(stack, nic, own))
        except MachineError as error:
            unavailable["VFIO_IOMMU_MAP_DMA"] = str(error.args[0])
        cgroup = None
        try:
            cgroup = forces.Cgroup(undo)
            cgroup.limit(CGROUP_LIMIT)
        except MachineError as error:
            unavailable["memory.max"] = str(error.args[0])
        for call, prepare in calls.items():
            outcome, said = _in_a_child(prepare, ASKED, _little_may_be_locked)
            if outcome == "lacks":
                unavailable[call] = said
                continue
            found.append(Limit("RLIMIT_MEMLOCK", call, LOCKED_LIMIT, ASKED, outcome, said))
            if cgroup is not None:
                outcome, said = _in_a_child(prepare, CGROUP_ASKED, cgroup.join)
                found.append(Limit("memory.max", call, CGROUP_LIMIT, CGROUP_ASKED, outcome, said))
    return found, unavailable


def _locking(stack: contextlib.ExitStack) -> Attempt:
    return lambda size: stack.enter_context(PinnedBuffer(size, fault_in=False))


def _registering(stack: contextlib.ExitStack, device: str | None) -> Attempt:
    pd = open_domain(stack, device)
    return lambda size: register_buffer(stack, pd, stack.enter_context(PinnedBuffer(size, lock=False, fault_in=False)))


def _mapping(address: str) -> Prepare:
    def prepare(stack: contextlib.ExitStack) -> Attempt:
        from cython_ext.nics.dma import DmaRegion

        device = VfioDevice(address)
        stack.callback(device.close)
        return lambda size: device.share(DmaRegion(size, lock=False, fault_in=False))

    return prepare


def _lent(stack: contextlib.ExitStack, nic: str | None, own: Collection[str]) -> str:
    """Take a NIC from the kernel for the children, one of which may be killed; return its address."""
    if nic is None:
        raise no_nic()
    held = pci.HeldNic(pci.find_nic(nic), pci.DRIVER_OF["vfio"], own=own)
    stack.callback(held.give_back)
    return held.nic.address


def _little_may_be_locked() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LOCKED_LIMIT, LOCKED_LIMIT))
    _drop(CAP_IPC_LOCK)


def _drop(capability: int) -> None:
    """Give up a capability (capset(2)); being root without it is being without it."""
    header = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable of 0 to 31, then of 32 to 63
    if _libc.capget(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    words = [word & ~(1 << capability) if place < 3 else word for place, word in enumerate(struct.unpack("6I", data))]
    data = ctypes.create_string_buffer(struct.pack("6I", *words), 24)
    if _libc.capset(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _in_a_child(prepare: Prepare, size: int, limited: Callable[[], object]) -> tuple[str, str]:
    """Prepare, set the limit and try, in a forked child. Returns how that ended, and what was said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            _attempt(write, prepare, size, limited)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return "killed", f"the kernel killed it ({name_signal(-status)})"
    if not said:
        raise MachineError("a child that was to exceed a limit of memory ended without a word")
    return {LACKS: "lacks", REFUSED: "refused", GIVEN: "given"}[said[:1]], said[1:].decode()


def _attempt(answer: int, prepare: Prepare, size: int, limited: Callable[[], object]) -> None:
    with contextlib.ExitStack() as stack:
        try:
            attempt = prepare(stack)
        except (HwrxError, OSError) as error:
            os.write(answer, LACKS + str(error.args[0]).encode())
            return
        try:
            limited()
            attempt(size)
            os.write(answer, GIVEN)
        except (HwrxError, OSError) as error:
            os.write(answer, REFUSED + str(error).encode())
