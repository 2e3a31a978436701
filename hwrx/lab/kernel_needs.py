"""What a guest needs of its kernel: what it boots with, and what a topology is made of.

A distribution's ordinary kernel has it all. A flavour for clouds has no 9p and no driver of an 82574L, and a kernel of
the user's own has what its configuration says. What is missing is told before anything boots, by the option to set.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hwrx.errors import MachineError
from hwrx.lab.initramfs import MODULES
from hwrx.lab.kernel import Kernel
from hwrx.wires import topology as topologies

# modules, and the option of the kernel's configuration that each is built by
OPTIONS = {
    "virtio_pci": "VIRTIO_PCI",
    "virtio_console": "VIRTIO_CONSOLE",
    "9p": "9P_FS",
    "9pnet_virtio": "NET_9P_VIRTIO",
    "overlay": "OVERLAY_FS",
    "veth": "VETH",
    "rdma_rxe": "RDMA_RXE",
    "e1000e": "E1000E",
    "ne2k_pci": "NE2K_PCI",
    "virtio_net": "VIRTIO_NET",
}
# what cannot be a module, or is needed before the first module is loaded
BUILT_IN = (
    "BLK_DEV_INITRD",
    "BINFMT_SCRIPT",
    "DEVTMPFS",
    "PROC_FS",
    "SYSFS",
    "TMPFS",
    "PCI",
    "UNIX",
    "TTY",
    "SERIAL_8250_CONSOLE",
    "NET_NS",
    "CGROUPS",
)


def need_bootable(kernel: Kernel, topology: Sequence[str] = ()) -> None:
    """See that a guest can boot a kernel, and put these topologies up in it.

    :raises MachineError: if the kernel lacks something; it names each option of its configuration.
    """
    config = configuration_of(kernel)
    missing = [f"CONFIG_{option}" for option in BUILT_IN if config and config.get(option) != "y"]
    missing += [_described(kernel, name) for name in missing_modules(kernel, MODULES)]
    what = "what hwrx's guests boot with"
    if not missing:
        what = " and ".join(f"what the topology {name} is made of" for name in topology)
        missing = [_described(kernel, name) for name in missing_modules(kernel, needs_of(topology))]
    if missing:
        raise MachineError(f"kernel {kernel.version} lacks {what}: {', '.join(missing)}", remedy=_remedy(kernel))


def needs_of(names: Iterable[str]) -> list[str]:
    """Return the modules without which these topologies cannot be put up."""
    found = [topologies.KNOWN[name] for name in names if name in topologies.KNOWN]
    return [module for each in found for module in each.modules if module not in each.optional]


def missing_modules(kernel: Kernel, names: Iterable[str]) -> list[str]:
    """Return those of the modules that a kernel has neither as a file nor built in."""
    there = _module_names(kernel.base / "lib/modules" / kernel.version)
    config = configuration_of(kernel)
    plain = [name.replace("-", "_") for name in names]
    return [name for name in plain if name not in there and config.get(OPTIONS.get(name, ""), "") != "y"]


def configuration_of(kernel: Kernel) -> dict[str, str]:
    """Return what a kernel was built with, by option without `CONFIG_`; empty if its configuration is not there."""
    modules = kernel.base / "lib/modules" / kernel.version
    places = (
        kernel.base / "boot" / f"config-{kernel.version}",
        modules / "build/.config",
        modules / "config",
        kernel.image.parent / f"config-{kernel.version}",
        kernel.base / ".config",
        kernel.base.parent / ".config",
    )
    found = next((path for path in places if path.is_file()), None)
    return {} if found is None else _read_configuration(found, found.stat().st_mtime_ns)


@functools.lru_cache(8)
def _read_configuration(path: Path, changed: int) -> dict[str, str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))


def _module_names(folder: Path) -> set[str]:
    """Return the names of the modules that depmod's index, and the list of those built in, have."""
    names: set[str] = set()
    for file in ("modules.dep", "modules.builtin"):
        if (folder / file).is_file():
            lines = (folder / file).read_text(encoding="utf-8", errors="replace").splitlines()
            names.update(Path(line.partition(":")[0]).name.partition(".")[0].replace("-", "_") for line in lines)
    return names


def _described(kernel: Kernel, name: str) -> str:
    option = OPTIONS.get(name)
    if option is None:
        return name
    state = configuration_of(kernel).get(option)
    return f"{name} (CONFIG_{option}{'=m, but its file is not there' if state == 'm' else ''})"


def _remedy(kernel: Kernel) -> str:
    if kernel.package:
        ordinary = re.sub(r"-(rt|cloud)(?=-)", "", kernel.version)
        return f"another kernel: --kernel {ordinary}" if ordinary != kernel.version else "another kernel: --kernel 6.1"
    return "scripts/config --enable OPTION for each; make olddefconfig; make bzImage modules"
