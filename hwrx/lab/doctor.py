"""What this machine can do, and for each thing that it cannot, the command that mends it.

Nothing is concluded from a version: a thing is tried, or looked for where it would be. The main job is `lab/run`:
sockets against verbs, in a virtual machine or on this kernel.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from hwrx.errors import HwrxError, MachineError
from hwrx.host import tools
from hwrx.lab import accelerator, initramfs, kernel
from hwrx.machine import description
from hwrx.verbs.rxe import RXE_MODULE

Part = Literal["main", "verbs", "measuring", "tracing", "nic", "peers"]
# what each part of hwrx is for, in the order of the listing
PARTS: dict[Part, str] = {
    "main": "the main job: lab/run, in a virtual machine",
    "verbs": "verbs on this machine's own kernel (--here)",
    "measuring": "steadier figures on this machine",
    "tracing": "stages and copies (--trace)",
    "nic": "the user-space NIC driver",
    "peers": "comparing with other programs (lab/bench)",
}
WANTED_LOCK = 64 << 20  # bytes; the largest buffers of the shipped experiments, twice
EXTENSIONS = ("core.clock", "core.payload", "core.transport", "core.pinned", "loops.loop")


class Finding(Struct, frozen=True):
    """One thing: whether it is there, what was seen, and what to type where it is not."""

    part: Part
    name: str
    fine: bool
    seen: str
    remedy: str = ""


def examine_machine(progress: kernel.Progress = kernel.quiet_boot) -> list[Finding]:
    """Look at everything. May boot a kernel for some seconds, to learn whether KVM does, once for each machine."""
    findings = []
    for part, name, look in _LOOKS:
        progress("doctor", name)
        try:
            findings.append(Finding(part, name, True, look()))
        except HwrxError as error:
            findings.append(Finding(part, name, False, str(error.args[0]), error.remedy))
    return findings


def is_healthy(findings: list[Finding]) -> bool:
    """Whether all that the main job needs is there."""
    return all(finding.fine for finding in findings if finding.part == "main")


def _python() -> str:
    for name in EXTENSIONS:
        try:
            importlib.import_module(f"cython_ext.{name}")
        except ImportError as error:
            raise MachineError(
                f"the extension cython_ext.{name} does not load: {error}", remedy="pip install -e ."
            ) from None
    return f"Python {sys.version.split()[0]}, extensions load"


def _tools(*names: str) -> Callable[[], str]:
    def look() -> str:
        missing = [name for name in names if not _has(name)]
        if missing:
            packages = sorted({tools.PACKAGES.get(name, name) for name in missing})
            raise MachineError(f"missing: {', '.join(missing)}", remedy=f"apt-get install {' '.join(packages)}")
        return ", ".join(names)

    return look


def _has(name: str) -> bool:
    return bool(shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"))


def _busybox() -> str:
    return str(initramfs.find_busybox())


def _lab_kernel() -> str:
    cached = kernel.cached_kernels()
    if cached:
        return ", ".join(found.version for found in cached)
    if not (_has("apt-get") and _has("dpkg")):
        raise MachineError(
            "none is cached, and without apt none can be downloaded", remedy="hwrx lab run --kernel /path/to/vmlinuz"
        )
    return "none is cached; the first run downloads it"


def _kvm() -> str:
    device = Path("/dev/kvm")
    if not device.exists():
        raise MachineError(
            "there is no /dev/kvm: guests are emulated in software",
            remedy="enable (nested) virtualisation in the firmware or hypervisor, then: modprobe kvm_intel, or kvm_amd",
        )
    cached = kernel.cached_kernels()
    if not cached:
        raise MachineError(
            "/dev/kvm is there; whether it boots a kernel is tried when one is cached",
            remedy="hwrx lab kernels --fetch",
        )
    found = accelerator.choose_accelerator(cached[-1])
    if found.emulated:
        raise MachineError(
            f"{found.reason}: guests are emulated in software",
            remedy="try: modprobe -r kvm_intel && modprobe kvm_intel (or kvm_amd); or another host",
        )
    return found.reason


def _libibverbs() -> str:
    version = description.find_versions()["libibverbs"]
    if version == "missing":
        raise MachineError("there is no libibverbs", remedy="apt-get install libibverbs-dev ibverbs-providers")
    return f"libibverbs.so.{version}"


def _pyverbs() -> str:
    try:
        importlib.import_module("pyverbs.device")
    except ImportError as error:
        raise MachineError(
            f"no pyverbs: {error}", remedy="apt-get install python3-pyverbs, and a .venv with --system-site-packages"
        ) from None
    return description.find_versions()["pyverbs"]


def _verbs_device() -> str:
    found = description.verbs_devices()
    if not found:
        raise MachineError("there is no verbs device", remedy="hwrx rxe up NETDEV, or use the virtual machine: lab/run")
    down = [device.name for device in found if all(port.state != "ACTIVE" for port in device.ports)]
    if len(down) == len(found):
        raise MachineError(f"no port is active: {', '.join(down)}", remedy="ip link set NETDEV up; hwrx devices")
    return ", ".join(f"{device.name} ({device.driver})" for device in found)


def _rxe_module() -> str:
    if Path("/sys/module", RXE_MODULE).exists():
        return "loaded"
    try:
        tools.run_tool("modprobe", "--dry-run", RXE_MODULE)
    except MachineError as error:
        raise MachineError(
            f"this kernel has no module {RXE_MODULE}: {error.args[0]}",
            remedy="use the virtual machine: lab/run; or boot a distribution's kernel",
        ) from None
    return "available"


def _root() -> str:
    if os.geteuid() != 0:
        raise MachineError(
            "not root: no namespaces, rxe devices or tracing on this machine", remedy="sudo, or the virtual machine"
        )
    return "root"


def _memlock() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() == 0 or soft == resource.RLIM_INFINITY:
        return "unlimited"
    if soft < WANTED_LOCK:
        raise MachineError(
            f"only {soft >> 10} KiB of memory may be locked",
            remedy='echo "$USER - memlock unlimited" | sudo tee /etc/security/limits.d/hwrx.conf, and log in again',
        )
    return f"{soft >> 20} MiB"


def _huge_pages() -> str:
    pages = {name: count for name, count in description.describe_memory()["huge_pages"].items() if count}
    if not pages:
        raise MachineError("none are reserved", remedy="echo 64 | sudo tee /proc/sys/vm/nr_hugepages")
    return ", ".join(f"{count} of {name}" for name, count in pages.items())


def _clock() -> str:
    current = description.describe_kernel()["clocksource"]
    if current != "tsc":
        raise MachineError(
            f"the clock source is {current or 'unknown'}: each reading is slow",
            remedy="echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
        )
    return "tsc"


def _governor() -> str:
    governor = str(description.describe_cpu()["governor"])
    if governor not in ("performance",) and not governor.startswith("none"):
        raise MachineError(
            f"the governor is {governor}: the clock rate moves", remedy="sudo cpupower frequency-set -g performance"
        )
    return governor


def _btf() -> str:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise MachineError(
            "this kernel has no BTF: CO-RE programs cannot be loaded",
            remedy="a kernel with CONFIG_DEBUG_INFO_BTF=y; the virtual machine has one",
        )
    if os.geteuid() != 0:
        raise MachineError("loading BPF programs needs root (CAP_BPF and CAP_PERFMON)", remedy="sudo")
    return "BTF is there"


def _tracepoints() -> str:
    for folder in (Path("/sys/kernel/tracing/events"), Path("/sys/kernel/debug/tracing/events")):
        if folder.is_dir():
            return str(folder)
    raise MachineError(
        "the kernel's tracepoints cannot be seen", remedy="sudo mount -t tracefs tracefs /sys/kernel/tracing"
    )


def _vfio() -> str:
    groups = Path("/sys/kernel/iommu_groups")
    if not Path("/dev/vfio/vfio").exists():
        raise MachineError("there is no /dev/vfio/vfio", remedy="modprobe vfio-pci")
    if not groups.is_dir() or not any(groups.iterdir()):
        raise MachineError(
            "no device is behind an IOMMU",
            remedy="boot with intel_iommu=on (AMD: amd_iommu=on), and enable it in the firmware",
        )
    return f"{len(list(groups.iterdir()))} IOMMU groups"


_LOOKS: tuple[tuple[Part, str, Callable[[], str]], ...] = (
    ("main", "Python", _python),
    ("main", "libibverbs", _libibverbs),
    ("main", "QEMU", _tools(accelerator.QEMU, "setpriv", "modprobe", "depmod")),
    ("main", "static busybox", _busybox),
    ("main", "kernel for the lab", _lab_kernel),
    ("main", "network tools", _tools("ip", "rdma", "ethtool")),
    ("verbs", "root", _root),
    ("verbs", "pyverbs", _pyverbs),
    ("verbs", "verbs device", _verbs_device),
    ("verbs", "SoftRoCE module", _rxe_module),
    ("verbs", "locked memory", _memlock),
    ("measuring", "KVM", _kvm),
    ("measuring", "huge pages", _huge_pages),
    ("measuring", "clock source", _clock),
    ("measuring", "CPU frequency", _governor),
    ("tracing", "BPF", _btf),
    ("tracing", "tracepoints", _tracepoints),
    ("tracing", "compiler for BPF", _tools("clang", "bpftool")),
    ("nic", "VFIO", _vfio),
    ("peers", "peers", _tools("ib_send_lat", "sockperf", "iperf3")),
)
