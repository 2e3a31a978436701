"""NICs on the PCI bus: finding them, taking them from the kernel's driver, and giving them back.

What a NIC was before it was taken (its driver, and all that its network device had) is kept in
`/run/hwrx/nic`, so that it can be given back by another process too, after this one was killed.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
from msgspec import Struct

from cython_ext.nics.mmio import Bar
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.undo import Undo, hold_lock, mend_leftovers, own_folder
from hwrx.nic import registers
from hwrx.nic.belongings import Belongings, Tables, read_belongings, read_tables, restore_belongings
from hwrx.nic.models import Model, find_model
from hwrx.nic.uses import find_uses

DEVICES = Path("/sys/bus/pci/devices")
DRIVERS = Path("/sys/bus/pci/drivers")
PROBE = Path("/sys/bus/pci/drivers_probe")
KEPT = Path("/run/hwrx/nic")
UDEV = Path("/run/udev/control")  # there where udev runs
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
NETWORK_CLASS = "0x02"
DRIVER_OF = {"vfio": "vfio-pci", "uio": "uio_pci_generic"}
USER_DRIVERS = frozenset(DRIVER_OF.values())
_PATIENCE = 20.0  # seconds that a network device takes to come back
_RENAME = 1.0  # seconds that udev is given to name it


class Nic(Struct, frozen=True, kw_only=True):
    """A network device on the PCI bus, as sysfs has it now."""

    address: str
    vendor: int
    device: int
    driver: str | None
    netdev: str | None = None  # None where another driver, or another network namespace, has it
    mac: str | None = None
    was: str | None = None  # its network device before it was taken
    group: str | None = None  # of the IOMMU

    @property
    def known(self) -> Model | None:
        """Its model, if hwrx has a driver for it."""
        return find_model(self.vendor, self.device)

    @property
    def model(self) -> str:
        """What hwrx calls it, or vendor and device number."""
        return self.known.name if self.known is not None else f"{self.vendor:04x}:{self.device:04x}"

    @property
    def supported(self) -> bool:
        """Whether hwrx has a driver for it."""
        return self.known is not None


class Kept(Struct, kw_only=True):
    """What a NIC was before it was taken: its driver, and all that its network device had."""

    driver: str | None
    device: Belongings | None = None
    holder: str = ""  # the journal of who took it; "": somebody who gives it back by hand


def inspect_nic(address: str) -> Nic:
    """The NIC at a PCI address; UsageError where there is none."""
    path = DEVICES / address
    if not ADDRESS.fullmatch(address) or not path.exists():
        raise UsageError(f"there is no PCI device {address}", remedy="hwrx nic list")
    driver = path / "driver"
    group = path / "iommu_group"
    netdev = next((entry.name for entry in sorted(path.glob("net/*"))), None)
    kept = kept_state(address)
    had = kept.device if kept else None
    mac = had.mac if had else None
    if netdev is not None:
        with contextlib.suppress(OSError):  # it is being renamed, or going
            mac = (path / "net" / netdev / "address").read_text(encoding="utf-8").strip()
    return Nic(
        address=address,
        vendor=int((path / "vendor").read_text(encoding="utf-8"), 16),
        device=int((path / "device").read_text(encoding="utf-8"), 16),
        driver=driver.resolve().name if driver.exists() else None,
        netdev=netdev,
        mac=mac,
        was=had.netdev if had and netdev is None else None,
        group=group.resolve().name if group.exists() else None,
    )


def list_nics() -> list[Nic]:
    """Every network device on the bus, in the order of their addresses."""
    return [
        inspect_nic(path.name)
        for path in sorted(DEVICES.glob("*"))
        if (path / "class").read_text(encoding="utf-8").startswith(NETWORK_CLASS)
    ]


def find_nic(name: str) -> Nic:
    """A NIC by PCI address (0000:00:04.0 or 00:04.0), network device or MAC address."""
    if ADDRESS.fullmatch(name):
        return inspect_nic(name)
    if ADDRESS.fullmatch(f"0000:{name}"):
        return inspect_nic(f"0000:{name}")
    present = list_nics()
    found = [nic for nic in present if name in (nic.netdev, nic.was) or name.lower() == nic.mac]
    if len(found) == 1:
        return found[0]
    if not present:
        raise UsageError(
            f"there is no NIC '{name}': this machine has none on its PCI bus",
            remedy="use the topology nic, whose guest has two",
        )
    raise UsageError(
        f"{'there is no NIC' if not found else 'more than one NIC is'} '{name}'",
        remedy="give a PCI address, network device or MAC address of: "
        + ", ".join(f"{nic.address} ({nic.netdev or nic.driver or 'no driver'})" for nic in present),
    )


def uses_of(nic: Nic, own: Collection[str] = (), tables: Tables | None = None) -> list[str]:
    """Why this NIC should not be taken, in words: addresses, routes, sockets, programs, whatever stands on it.

    `own` are addresses that the caller put there, and that do not count. `tables`: what `ip` has shown of it already.
    """
    if nic.driver in USER_DRIVERS or nic.driver is None:
        return []
    if nic.netdev is None:
        return ["its network device is in another network namespace"]
    return find_uses(nic.netdev, tables or read_tables(nic.netdev), own)


# --- taking and giving back ----------------------------------------------------------------------------------------


def take_nic(nic: Nic, driver: str, *, force: bool = False, own: Collection[str] = (), holder: str = "") -> Nic:
    """Bind the NIC to a user-space driver's kernel side (vfio-pci, uio_pci_generic).

    Refuses, with MachineError, a NIC that is in use (`uses`), unless `force`. What it was is written down before it
    changes.

    :param holder: whose journal is to give it back; see `give_back`.
    """
    with _alone_with(nic.address):
        return _take(inspect_nic(nic.address), driver, force, own, holder)


def _take(nic: Nic, driver: str, force: bool, own: Collection[str], holder: str) -> Nic:
    if nic.driver == driver:
        return nic
    tables = read_tables(nic.netdev) if nic.netdev is not None else None
    reasons = uses_of(nic, own, tables)
    if reasons and not force:
        raise MachineError(
            f"{nic.netdev or nic.address} is in use: {'; '.join(reasons)}",
            remedy="take it out of use first, or insist (--force): what stands on it is then lost, what it has itself "
            "comes back with it",
        )
    _modprobe(driver)
    if nic.driver not in USER_DRIVERS:
        _keep(nic, tables, holder)
    try:
        _rebind(nic.address, nic.driver, driver)
    except BaseException:
        _give_back(nic.address, kept_state(nic.address))
        raise
    return inspect_nic(nic.address)


class HeldNic:
    """A NIC that this process has taken from the kernel's driver; `give_back` gives it back, and so does its keeper.

    One that was bound to a user-space driver before is nobody's to give back.
    """

    def __init__(self, nic: Nic, driver: str, *, force: bool = False, own: Collection[str] = ()) -> None:
        """Take it: see `take_nic`. One that a process which is dead has left is given back first, and taken then."""
        mend_leftovers()
        nic = inspect_nic(nic.address)
        self._undo = contextlib.ExitStack()
        holder = ""
        with contextlib.ExitStack() as stack:
            if nic.driver not in USER_DRIVERS:
                undo = stack.enter_context(Undo(f"{nic.netdev or nic.address}, driven from user space"))
                undo.plan(
                    *("call", __name__, give_back.__name__, nic.address, undo.token),
                    here=lambda: give_back(nic.address, undo.token),
                )
                holder = undo.token
            self.nic = take_nic(nic, driver, force=force, own=own, holder=holder)
            self._undo = stack.pop_all()

    def give_back(self) -> None:
        """Give the NIC back if it was taken here; harmless if called twice. Raises as `pci.give_back`."""
        self._undo.close()


def list_kept() -> list[Nic]:
    """NICs that hwrx has bound to a user-space driver, and whose state is kept to be given back."""
    return [nic for nic in list_nics() if nic.driver in USER_DRIVERS and (KEPT / f"{nic.address}.json").exists()]


def give_back(address: str, holder: str | None = None) -> Nic:
    """Bind the NIC to the driver it had, and give the network device its state and addresses back.

    Where nothing is known about it (it was not hwrx that took it), the kernel chooses the driver.

    :param holder: nothing is done unless it was this one who took it: somebody may have given it back already, and
        another may have it now. None: whoever it was.
    """
    with _alone_with(address):
        kept = kept_state(address)
        if holder is not None and (kept is None or kept.holder != holder):
            return inspect_nic(address)
        return _give_back(address, kept)


def _alone_with(address: str) -> contextlib.AbstractContextManager[None]:
    """Keep others from binding this NIC meanwhile: a keeper, `hwrx nic unbind` and a new run may come at once.

    Who finds it bound to vfio-pci, and stops it when the kernel's driver has it again, would leave that without DMA.
    """
    return hold_lock(KEPT.parent / f"{address}.lock")


def _give_back(address: str, kept: Kept | None) -> Nic:
    nic = inspect_nic(address)
    driver = kept.driver if kept else None
    if nic.driver in USER_DRIVERS or nic.driver is None:
        _quiet(nic)
        if driver:
            _modprobe(driver)
        elif kept is None:
            _modprobe((DEVICES / address / "modalias").read_text(encoding="utf-8").strip(), required=False)
        if kept is None or driver:
            _rebind(address, nic.driver, driver)
        else:
            _unbind(address, nic.driver)
    nic = inspect_nic(address)
    if kept is not None:
        if kept.device is not None:
            nic = _restore(nic, kept.device)
        (KEPT / f"{address}.json").unlink(missing_ok=True)
    return nic


def _quiet(nic: Nic) -> None:
    """Stop a NIC that a killed process may have left receiving, before anybody lets it master the bus again.

    The kernel's driver does that first and resets afterwards: in between, a NIC that still has our ring would write
    frames to addresses that were I/O virtual ones, and mean other memory now.
    """
    stop: Callable[[Bar], None] | None = getattr(nic.known.driver, "stop_receiving", None) if nic.known else None
    if stop is None:
        return
    path = DEVICES / nic.address
    with (path / "config").open("r+b", buffering=0) as config:
        config.seek(registers.PCI_COMMAND)
        command = int.from_bytes(config.read(2), "little")
        command = command & ~registers.PCI_COMMAND_MASTER | registers.PCI_COMMAND_MEMORY
        config.seek(registers.PCI_COMMAND)
        config.write(command.to_bytes(2, "little"))
    with (path / "resource0").open("r+b", buffering=0) as resource, mmap.mmap(resource.fileno(), 0x20000) as memory:
        bar = Bar(memory)
        try:
            stop(bar)
        finally:
            bar.close()


def _unbind(address: str, driver: str | None) -> None:
    (DEVICES / address / "driver_override").write_text("\n")
    if driver is not None:
        (DRIVERS / driver / "unbind").write_text(address)


def _rebind(address: str, old: str | None, new: str | None) -> None:
    """From one driver to another; `new` None leaves the choice to the kernel."""
    override = DEVICES / address / "driver_override"
    user = new in USER_DRIVERS
    try:
        override.write_text(f"{new}\n" if user else "\n")
        if old is not None:
            (DRIVERS / old / "unbind").write_text(address)
        PROBE.write_text(address, encoding="utf-8")
    except PermissionError as error:
        raise MachineError(f"cannot bind {address} to {new}: {error.strerror}", remedy="run as root") from error
    except OSError as error:
        raise MachineError(f"cannot bind {address} to {new}: {error.strerror} ({error.filename})") from error
    bound = inspect_nic(address).driver
    if new is not None and bound != new:
        raise MachineError(
            f"{address} did not bind to {new} but to {bound or 'no driver'}",
            remedy="see the last lines of dmesg; vfio-pci needs an IOMMU (intel_iommu=on)" if user else "see dmesg",
        )


def _restore(nic: Nic, had: Belongings) -> Nic:
    """The network device comes back a moment after its driver, perhaps under another name: give it all that it had."""
    deadline = time.monotonic() + _PATIENCE
    ours_from = time.monotonic() + _RENAME
    while (name := inspect_nic(nic.address).netdev) != had.netdev:
        if time.monotonic() > deadline:
            raise MachineError(
                f"{nic.address} went back to {nic.driver}, and its network device is"
                f" {name or 'missing'} instead of {had.netdev}"
            )
        # udev names it, where there is one; where there is none, or it leaves the name, we do
        if name is not None and (time.monotonic() > ours_from or not UDEV.exists()):
            with contextlib.suppress(MachineError):  # udev may be doing it
                tools.run_tool("ip", "link", "set", name, "name", had.netdev)
        time.sleep(0.02)
    restore_belongings(had)
    return inspect_nic(nic.address)


def _keep(nic: Nic, tables: Tables | None, holder: str) -> None:
    had = read_belongings(nic.netdev, tables) if nic.netdev is not None and tables is not None else None
    own_folder(KEPT)
    path = KEPT / f"{nic.address}.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(Kept(driver=nic.driver, device=had, holder=holder)))
    fresh.replace(path)


def kept_state(address: str) -> Kept | None:
    """What is kept about a NIC that somebody has taken; None if nothing is. MachineError if it cannot be read."""
    try:
        return msgspec.json.decode((KEPT / f"{address}.json").read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise MachineError(
            f"what was kept about {address} cannot be read: {error}", remedy=f"rm {KEPT / address}.json, then try again"
        ) from error


def _modprobe(module: str, *, required: bool = True) -> None:
    if (DRIVERS / module).exists():
        return
    done = subprocess.run(["modprobe", module], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode and required and not (DRIVERS / module).exists():
        raise MachineError(
            f"the kernel has no driver {module}: {done.stderr.strip()}",
            remedy="install the package of this kernel's modules (linux-image-…), or boot the lab's guest",
        )
