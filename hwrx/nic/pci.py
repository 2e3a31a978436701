"""NICs on the PCI bus: finding them, taking them from the kernel's driver, and giving them back.

What a NIC was before it was taken (driver, name, addresses, up or down, the rxe device on it) is kept in
`/run/hwrx/nic`, so that it can be given back by another process too, after this one was killed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cython_ext.mmio import Bar
from hwrx.errors import MachineError, UsageError
from hwrx.nic import registers
from hwrx.verbs import rxe

DEVICES = Path("/sys/bus/pci/devices")
DRIVERS = Path("/sys/bus/pci/drivers")
PROBE = Path("/sys/bus/pci/drivers_probe")
KEPT = Path("/run/hwrx/nic")
UDEV = Path("/run/udev/control")  # there where udev runs
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
NETWORK_CLASS = "0x02"
DRIVER_OF = {"vfio": "vfio-pci", "uio": "uio_pci_generic"}
USER_DRIVERS = frozenset(DRIVER_OF.values())
# Realtek's NE2000 clone, which QEMU's ne2k_pci is
NE2K = (0x10EC, 0x8029)
_PATIENCE = 5.0  # seconds that a network device takes to come back, and its link to come up
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
    def model(self) -> str:
        """What hwrx calls it, or vendor and device number."""
        if self.vendor == registers.VENDOR and self.device in registers.DEVICES:
            return registers.DEVICES[self.device]
        if (self.vendor, self.device) == NE2K:
            return "ne2k_pci"
        return f"{self.vendor:04x}:{self.device:04x}"

    @property
    def supported(self) -> bool:
        """Whether hwrx has a driver for it."""
        return not self.model.startswith(f"{self.vendor:04x}:")


class Kept(Struct, kw_only=True):
    """What a NIC was before it was taken."""

    driver: str | None
    netdev: str | None = None
    mac: str | None = None
    up: bool = False
    addresses: list[str] = []  # 192.0.2.1/24, with the prefix
    neighbours: dict[str, str] = {}  # address and MAC of the permanent ones
    mtu: int = 1500
    carrier: bool = False
    rxe: str | None = None  # SoftRoCE device on the network device: it goes with it


def inspect_nic(address: str) -> Nic:
    """The NIC at a PCI address; UsageError where there is none."""
    path = DEVICES / address
    if not ADDRESS.fullmatch(address) or not path.exists():
        raise UsageError(f"there is no PCI device {address}", remedy="hwrx nic list")
    driver = path / "driver"
    group = path / "iommu_group"
    netdev = next((entry.name for entry in sorted(path.glob("net/*"))), None)
    kept = _kept(address)
    mac = kept.mac if kept else None
    if netdev is not None:
        with contextlib.suppress(OSError):  # it is being renamed, or going
            mac = (path / "net" / netdev / "address").read_text().strip()
    return Nic(
        address=address,
        vendor=int((path / "vendor").read_text(), 16),
        device=int((path / "device").read_text(), 16),
        driver=driver.resolve().name if driver.exists() else None,
        netdev=netdev,
        mac=mac,
        was=kept.netdev if kept and netdev is None else None,
        group=group.resolve().name if group.exists() else None,
    )


def list_nics() -> list[Nic]:
    """Every network device on the bus, in the order of their addresses."""
    return [
        inspect_nic(path.name)
        for path in sorted(DEVICES.glob("*"))
        if (path / "class").read_text().startswith(NETWORK_CLASS)
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
    raise UsageError(
        f"{'there is no NIC' if not found else 'more than one NIC is'} '{name}'",
        remedy="give a PCI address, network device or MAC address of: "
        + (", ".join(f"{nic.address} ({nic.netdev or nic.driver or 'no driver'})" for nic in present) or "none"),
    )


# --- may it be taken? ----------------------------------------------------------------------------------------------


def uses_of(nic: Nic, own: Collection[str] = (), tables: Mapping[str, list[dict[str, Any]]] | None = None) -> list[str]:
    """Why this NIC should not be taken, in words: default route, addresses, connections, whatever stands on it.

    `own` are addresses that the caller put there, and that do not count. `tables`: what `ip` has shown of it already.
    """
    if nic.driver in USER_DRIVERS or nic.driver is None:
        return []
    if nic.netdev is None:
        return ["its network device is in another network namespace"]
    reasons = []
    tables = tables or _tables(nic.netdev)
    if any(route.get("dst") == "default" for route in tables["route"]):
        reasons.append("it carries the default route")
    addresses = [address for address in _addresses(tables) if address.split("/")[0] not in own]
    if addresses:
        reasons.append(f"it has the address {', '.join(addresses)}")
    connections = _connections({address.split("/")[0] for address in addresses})
    if connections:
        reasons.append(f"{connections} open connection{'s use' if connections > 1 else ' uses'} its address")
    if (Path("/sys/class/net") / nic.netdev / "master").exists():
        reasons.append("it belongs to a bridge or bond")
    device = rxe.on_netdev(nic.netdev)
    if device is not None and (users := rxe.users_of(device)):
        reasons.append(f"the verbs device {device} on it has queue pairs of {', '.join(users)}")
    return reasons


def _tables(netdev: str) -> dict[str, list[dict[str, Any]]]:
    """What `ip` shows of a network device: `route`, `addr`, `neighbour`, of both families, from one process."""
    # of all tables, or `ip route` would show IPv4 alone
    commands = {"route": "route show table all", "addr": "addr show", "neighbour": "neighbour show"}
    answers = _ip([f"{words} dev {netdev}" for words in commands.values()], "-json").splitlines()  # a line for each
    return {
        what: [entry for entry in json.loads(answer) if entry] for what, answer in zip(commands, answers, strict=True)
    }


def _ip(commands: Sequence[str], *options: str) -> str:
    """Have `ip` do all of them in one process, which costs an emulated guest half a second; return what it printed."""
    words = ["ip", *options, "-batch", "-"]
    done = subprocess.run(words, input="\n".join(commands), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"ip {' '.join(options)}: {done.stderr.strip()} of: {'; '.join(commands)}")
    return done.stdout


def _addresses(tables: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Addresses with prefix; those that the kernel gives every IPv6 device by itself (link-local) are no use of it."""
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in tables["addr"]
        for entry in link.get("addr_info", [])
        if entry.get("scope") != "link"
    ]


def _connections(addresses: set[str]) -> int:
    """TCP connections from any of the addresses."""
    if not addresses:
        return 0
    command = ["ss", "--numeric", "--no-header", "--tcp", "state", "established"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # columns: receive queue, send queue, local address and port, remote address and port
    rows = [line.split() for line in done.stdout.splitlines()]
    local = [row[2].rsplit(":", 1)[0].strip("[]").split("%")[0] for row in rows if len(row) >= 4]
    return sum(address in addresses for address in local)


# --- taking and giving back ----------------------------------------------------------------------------------------


def take_nic(nic: Nic, driver: str, *, force: bool = False, own: Collection[str] = ()) -> Nic:
    """Bind the NIC to a user-space driver's kernel side (vfio-pci, uio_pci_generic).

    Refuses, with MachineError, a NIC that is in use (`uses`), unless `force`. What it was is written down before it
    changes.
    """
    if nic.driver == driver:
        return nic
    tables = _tables(nic.netdev) if nic.netdev is not None else None
    reasons = uses_of(nic, own, tables)
    if reasons and not force:
        raise MachineError(
            f"{nic.netdev or nic.address} is in use: {'; '.join(reasons)}",
            remedy=f"take it out of use first, or insist: hwrx nic bind --force {nic.address}",
        )
    _modprobe(driver)
    if nic.driver not in USER_DRIVERS:
        _keep(nic, tables)
    try:
        _rebind(nic.address, nic.driver, driver)
    except BaseException:
        give_back(nic.address)
        raise
    return inspect_nic(nic.address)


def give_back(address: str) -> Nic:
    """Bind the NIC to the driver it had, and give the network device its state and addresses back.

    Where nothing is known about it (it was not hwrx that took it), the kernel chooses the driver.
    """
    nic = inspect_nic(address)
    kept = _kept(address)
    driver = kept.driver if kept else None
    if nic.driver in USER_DRIVERS or nic.driver is None:
        _quiet(nic)
        if driver:
            _modprobe(driver)
        elif kept is None:
            _modprobe((DEVICES / address / "modalias").read_text().strip(), required=False)
        if kept is None or driver:
            _rebind(address, nic.driver, driver)
        else:
            _unbind(address, nic.driver)
    nic = inspect_nic(address)
    if kept is not None:
        if kept.netdev is not None:
            nic = _restore(nic, kept)
        (KEPT / f"{address}.json").unlink(missing_ok=True)
    return nic


def _quiet(nic: Nic) -> None:
    """Stop an 82574 that a killed process may have left receiving, before anybody lets it master the bus again.

    The kernel's driver does that first and resets afterwards: in between, a NIC that still has our ring would write
    frames to addresses that were I/O virtual ones, and mean other memory now.
    """
    if nic.vendor != registers.VENDOR or nic.device not in registers.DEVICES:
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
            bar.write(registers.IMC, registers.INT_ALL)
            bar.write(registers.RCTL, 0)
            bar.write(registers.TCTL, 0)
            bar.write(registers.CTRL, bar.read(registers.CTRL) | registers.CTRL_RST)
            time.sleep(0.001)
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
        PROBE.write_text(address)
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


def _restore(nic: Nic, kept: Kept) -> Nic:
    """The network device comes back a moment after its driver, perhaps under another name: give it all that it had."""
    if kept.netdev is None:
        return nic
    deadline = time.monotonic() + _PATIENCE
    ours_from = time.monotonic() + _RENAME
    while (name := inspect_nic(nic.address).netdev) != kept.netdev:
        if time.monotonic() > deadline:
            raise MachineError(
                f"{nic.address} went back to {nic.driver}, and its network device is"
                f" {name or 'missing'} instead of {kept.netdev}"
            )
        # udev names it, where there is one; where there is none, or it leaves the name, we do
        if name is not None and (time.monotonic() > ours_from or not UDEV.exists()):
            subprocess.run(["ip", "link", "set", name, "name", kept.netdev], capture_output=True, check=False)
        time.sleep(0.02)
    device = f"dev {kept.netdev}"
    commands = [f"link set {device} mtu {kept.mtu}"]
    commands += [f"addr replace {address} {device}{' nodad' if ':' in address else ''}" for address in kept.addresses]
    if kept.up:
        commands.append(f"link set {device} up")
    for address, mac in kept.neighbours.items():
        commands.append(f"neighbour replace {address} lladdr {mac} {device} nud permanent")
    try:
        _ip(commands)
        if kept.up and kept.carrier:
            carrier = Path("/sys/class/net") / kept.netdev / "carrier"
            _until(lambda: carrier.read_text().strip() == "1", time.monotonic() + _PATIENCE)
        if kept.rxe is not None:
            rxe.restore_rxe(kept.rxe, kept.netdev, [address.split("/")[0] for address in kept.addresses])
    except MachineError as error:
        raise MachineError(f"{kept.netdev} is back, but not as it was: {error}") from error
    return inspect_nic(nic.address)


def _until(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _keep(nic: Nic, tables: Mapping[str, list[dict[str, Any]]] | None) -> None:
    kept = Kept(driver=nic.driver, netdev=nic.netdev, mac=nic.mac)
    if nic.netdev is not None and tables is not None:
        netdev = Path("/sys/class/net") / nic.netdev
        kept.up = bool(int((netdev / "flags").read_text(), 16) & 1)  # IFF_UP
        kept.carrier = kept.up and (netdev / "carrier").read_text().strip() == "1"
        kept.mtu = int((netdev / "mtu").read_text())
        kept.rxe = rxe.on_netdev(nic.netdev)
        kept.addresses = _addresses(tables)
        kept.neighbours = {
            entry["dst"]: entry["lladdr"]
            for entry in tables["neighbour"]
            if "PERMANENT" in entry.get("state", []) and "lladdr" in entry
        }
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{nic.address}.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(kept))
    fresh.replace(path)


def _kept(address: str) -> Kept | None:
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
    done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
    if done.returncode and required and not (DRIVERS / module).exists():
        raise MachineError(
            f"the kernel has no driver {module}: {done.stderr.strip()}",
            remedy="install the package of this kernel's modules (linux-image-…), or boot the lab's guest",
        )
