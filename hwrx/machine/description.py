"""What this machine is: the manifest of a run.

Everything that moves a figure and that the machine tells: kernel, processor, clock, network devices and how they are
set, verbs devices, versions, the commit. Nothing that identifies a user or opens anything: no host name, no hardware
address, no environment, and of the kernel's command line only the words that matter here.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from cython_ext.core import clock
from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.machine.placement import parse_cpus
from hwrx.verbs.devices import driver_of, place_of, verbs_devices
from hwrx.version import __version__

_NETDEVS = Path("/sys/class/net")
# what changes how packets are cut, merged and checked, of the sixty that `ethtool -k` prints
_OFFLOADS = (
    "rx-checksumming", "tx-checksumming", "scatter-gather", "tcp-segmentation-offload", "generic-segmentation-offload",
    "generic-receive-offload", "large-receive-offload", "rx-gro-hw", "tx-udp-segmentation", "ntuple-filters",
)  # fmt: skip
_MODULES = re.compile(r"rdma|^ib_|_ib$|rxe|siw|mlx|irdma|bnxt|veth|vfio|uio|e1000|ne2k|virtio|ixgbe|ice|i40e|iommu|kvm")
_CMDLINE = re.compile(
    r"^(isolcpus|nohz_full|rcu_nocbs|irqaffinity|idle|intel_idle|processor|intel_pstate|amd_pstate|mitigations|nosmt|"
    r"clocksource|tsc|intel_iommu|amd_iommu|iommu|hugepages|hugepagesz|default_hugepagesz|transparent_hugepage|preempt|"
    r"nopti|spectre_v2|maxcpus)\b"
)


def describe_machine() -> dict[str, Any]:
    """Return what this machine is, as JSON will hold it: the manifest's `machine`.

    What cannot be read is empty, and its key stays. Starts git and ethtool: nothing to be done between trials.

    :return: by subject: kernel, clock_cost_ns (what one reading of the clock takes), cpu, hypervisor, memory, modules,
        nics, verbs, versions, privileges, commit, command
    """
    return {
        "kernel": describe_kernel(),
        "clock_cost_ns": clock.cost(),
        "cpu": describe_cpu(),
        "hypervisor": find_hypervisor(),
        "memory": describe_memory(),
        "modules": describe_modules(),
        "nics": describe_nics(),
        "verbs": [msgspec.to_builtins(device) for device in verbs_devices()],
        "versions": find_versions(),
        "privileges": describe_privileges(),
        "commit": find_commit(),
        "command": sys.argv,
    }


def describe_kernel() -> dict[str, Any]:
    """Return the kernel's version, its clock, and those words of its command line that matter to a measurement."""
    clock = Path("/sys/devices/system/clocksource/clocksource0")
    words = _read(Path("/proc/cmdline")).split()
    return {
        "release": platform.release(),
        "version": platform.version(),
        "architecture": platform.machine(),
        "clocksource": _read(clock / "current_clocksource"),
        "clocksources": _read(clock / "available_clocksource").split(),
        "command_line": [word for word in words if _CMDLINE.match(word)],
        "preemption": _read(Path("/sys/kernel/debug/sched/preempt")),
    }


def describe_cpu() -> dict[str, Any]:
    """Return the processor, which of it this process may use, and how it is clocked."""
    info = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    folder = Path("/sys/devices/system/cpu")
    frequency = folder / "cpu0/cpufreq"
    return {
        "model": model[1] if model else platform.processor(),
        "online": os.cpu_count(),
        "online_cpus": parse_cpus(_read(folder / "online")),
        "usable": sorted(os.sched_getaffinity(0)),
        "nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "governor": _read(frequency / "scaling_governor") or "none: the processor or the hypervisor decides",
        "max_khz": _number(frequency / "scaling_max_freq"),
        "threads_per_core": "on" if _read(folder / "smt/active") == "1" else "off or unknown",
        "idle_driver": _read(folder / "cpuidle/current_driver"),
        "vulnerabilities": {path.name: _read(path) for path in sorted((folder / "vulnerabilities").glob("*"))},
    }


def find_hypervisor() -> dict[str, Any]:
    """Return what is beneath this machine, as far as it says so."""
    dmi = Path("/sys/class/dmi/id")
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    model = str(cpu_model())
    return {
        "present": flags is not None or "QEMU" in model,
        "emulated": "TCG" in model,  # "QEMU TCG CPU version …": every instruction is software
        "vendor": _read(dmi / "sys_vendor"),
        "product": _read(dmi / "product_name"),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    match = re.search(r"^model name\s*: (.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1] if match else platform.processor()


def describe_memory() -> dict[str, Any]:
    """Return sizes in bytes."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+)", _read(Path("/proc/meminfo")), re.MULTILINE))
    pages = {
        path.name.removeprefix("hugepages-"): _number(path / "nr_hugepages")
        for path in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*"))
    }
    return {
        "total": int(fields.get("MemTotal", 0)) * 1024,
        "huge_pages": pages,
        "transparent_huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
    }


def describe_privileges() -> dict[str, bool | int | None]:
    """Return what this process may do: whether it is root, and the bytes that it may lock (None: any number)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    root = os.geteuid() == 0
    return {"root": root, "memlock": None if root or soft == resource.RLIM_INFINITY else soft}


def describe_modules() -> list[str]:
    """Return the loaded modules that have to do with networks, verbs and devices."""
    loaded = [line.split()[0] for line in _read(Path("/proc/modules")).splitlines()]
    return sorted(name for name in loaded if _MODULES.search(name))


def describe_nics() -> list[dict[str, Any]]:
    """Return the network devices: driver, speed, offloads, interrupts and where those may go."""
    return [_nic(path) for path in sorted(_NETDEVS.iterdir()) if (path / "ifindex").exists()]


def _nic(path: Path) -> dict[str, Any]:
    device = path / "device"
    interrupts = {
        irq.name: _read(Path("/proc/irq") / irq.name / "smp_affinity_list")
        for irq in sorted((device / "msi_irqs").glob("*"), key=lambda irq: int(irq.name))
    }
    about: dict[str, Any] = {
        "name": path.name,
        "driver": (device / "driver").resolve().name if (device / "driver").exists() else _kind(path.name),
        "bus": device.resolve().name if device.exists() else "",
        "mtu": _number(path / "mtu"),
        "state": _read(path / "operstate"),
        "speed_mbps": _number(path / "speed"),  # None where the device has none to tell
        "queues": {side: len(list((path / "queues").glob(f"{side}-*"))) for side in ("rx", "tx")},
        "interrupts": interrupts,
    }
    try:
        features = dict(re.findall(r"^\s*([\w-]+): (on|off)", tools.run_tool("ethtool", "-k", path.name), re.MULTILINE))
        about["offloads"] = {name: features[name] == "on" for name in _OFFLOADS if name in features}
    except MachineError as error:
        about["offloads"] = f"unknown: {error.args[0]}"
    if device.exists():
        about["coalescing"] = _coalescing(path.name)
    return about


def _kind(name: str) -> str:
    """Return the driver of a netdev without a device beneath it, as the kernel names it."""
    try:
        match = re.search(r"^driver: (\S+)", tools.run_tool("ethtool", "-i", name), re.MULTILINE)
    except MachineError:
        match = None
    return match[1] if match else "virtual"


def _coalescing(name: str) -> dict[str, str]:
    try:
        text = tools.run_tool("ethtool", "-c", name)
    except MachineError:
        return {}  # the driver has no such thing
    return dict(re.findall(r"^(rx-usecs|rx-frames|tx-usecs|tx-frames): (\d+)", text, re.MULTILINE))


def find_versions() -> dict[str, str]:
    """Return the versions of all software that a figure goes through."""
    found = {"hwrx": __version__, "python": platform.python_version()}
    for package in ("numpy", "pyverbs", "pyudev", "msgspec", "pyarrow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    if found["pyverbs"] == "missing":
        found["pyverbs"] = _package_version("python3-pyverbs")
    found["libc"] = " ".join(platform.libc_ver())
    found["libibverbs"] = _library_version("libibverbs.so.1")
    found["libbpf"] = _library_version("libbpf.so.1")
    return found


def _library_version(name: str) -> str:
    """Return what the library's file is called behind its links: libibverbs.so.1.14.44.0 is rdma-core 44.0."""
    for folder in (Path("/usr/lib") / f"{platform.machine()}-linux-gnu", Path("/usr/lib64"), Path("/usr/lib")):
        if (folder / name).exists():
            return (folder / name).resolve().name.partition(".so.")[2]
    return "missing"


def _package_version(name: str) -> str:
    # pyverbs of the distribution carries no metadata of Python's
    status = _read(Path("/var/lib/dpkg/status"))
    match = re.search(rf"^Package: {re.escape(name)}\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE)
    return match[1] if match else "missing"


def find_commit() -> dict[str, Any]:
    """Return the commit that hwrx runs from and whether the tree differs from it.

    :return: `id`, 40 hexadecimal digits, and `changed`, which counts no untracked files; empty outside a git tree, and
        in a guest, whose host says it
    """
    tree = Path(__file__).parents[2]
    if not (tree / ".git").exists() or os.environ.get("HWRX_IN_GUEST"):
        return {}  # a guest runs its host's tree, and would be long in looking for changes
    git = ["git", "-c", f"safe.directory={tree}", "-C", str(tree), "--no-optional-locks"]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"id": head.stdout.strip(), "changed": bool(changes.stdout.strip())}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if re.fullmatch(r"\d+", text) else None


__all__ = ["describe_machine", "driver_of", "find_commit", "place_of", "verbs_devices"]
