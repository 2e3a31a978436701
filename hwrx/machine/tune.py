"""What of this machine spoils a measurement: what it does to the figures, how to switch it off, and back on.

A `Knob` is a setting of the kernel in files under /sys and /proc, with the value that disturbs a measurement least.
`apply` writes those values and notes the old ones under /run, where they vanish with the settings themselves at the
next boot; `restore` writes them back. What no file can mend (a virtualised clock, other load) is a warning only.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from msgspec import Struct

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools

CPU = "sys/devices/system/cpu"
DEEP_US = 10  # an idle state that takes longer to leave than this shows in a half round trip
NOTES = "run/hwrx/tune.json"


class Knob(Struct, frozen=True, kw_only=True):
    """A setting that `apply` can change. `find` yields the files that it stands in and what to write there."""

    name: str
    effect: str
    remedy: str
    find: Callable[[pathlib.Path], Iterator[tuple[pathlib.Path, str]]]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that spoils figures: what it is now, what it does to them, and how to switch it off."""

    name: str
    state: str
    effect: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.state}. {self.effect} {self.remedy}"


# --- what can be switched ------------------------------------------------------------------------------------------


def _governor(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    for folder in sorted((root / CPU).glob("cpu[0-9]*/cpufreq")):
        if "performance" in read_tuning(folder / "scaling_available_governors").split():
            yield folder / "scaling_governor", "performance"


def _turbo(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    if (root / CPU / "intel_pstate/no_turbo").exists():
        yield root / CPU / "intel_pstate/no_turbo", "1"
    elif (root / CPU / "cpufreq/boost").exists():
        yield root / CPU / "cpufreq/boost", "0"


def _idle(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    for state in sorted((root / CPU).glob("cpu[0-9]*/cpuidle/state[0-9]*")):
        if _number(state / "latency") > DEEP_US:
            yield state / "disable", "1"


def _smt(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    if read_tuning(root / CPU / "smt/control") in ("on", "off"):
        yield root / CPU / "smt/control", "off"


def _watchdog(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    if (root / "proc/sys/kernel/nmi_watchdog").exists():
        yield root / "proc/sys/kernel/nmi_watchdog", "0"


def _balancing(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    if len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) > 1:
        yield root / "proc/sys/kernel/numa_balancing", "0"


KNOBS = (
    Knob(
        name="frequency scaling",
        effect="An idle core is clocked down, and the first messages after each pause take several times as long.",
        remedy="Every core's governor to 'performance'",
        find=_governor,
    ),
    Knob(
        name="turbo",
        effect="The clock depends on temperature and on the other cores, so that figures drift within the turbo range.",
        remedy="Turbo (boost) off",
        find=_turbo,
    ),
    Knob(
        name="deep C-states",
        effect=f"A core that sleeps deeply takes more than {DEEP_US} µs to wake, in each message it waits for.",
        remedy=f"Idle states that take longer than {DEEP_US} µs to leave are disabled",
        find=_idle,
    ),
    Knob(
        name="SMT",
        effect="What runs on the sibling of the measuring core takes up to half of its speed, at times of its own.",
        remedy="Sibling threads off",
        find=_smt,
    ),
    Knob(
        name="NMI watchdog",
        effect="A non-maskable interrupt every few seconds on every core: rare samples that are microseconds late.",
        remedy="kernel.nmi_watchdog = 0",
        find=_watchdog,
    ),
    Knob(
        name="NUMA balancing",
        effect="Pages are unmapped to see who touches them: page faults in the middle of a trial.",
        remedy="kernel.numa_balancing = 0",
        find=_balancing,
    ),
)


# --- looking -------------------------------------------------------------------------------------------------------


def find_noise(root: pathlib.Path = pathlib.Path("/")) -> list[Finding]:
    """Look at this machine; an empty list is a quiet one. Nothing is changed, no privilege is needed."""
    found = []
    for knob in KNOBS:
        off = [(file, wanted) for file, wanted in knob.find(root) if read_tuning(file) != wanted]
        if off:
            values = sorted({read_tuning(file) for file, _ in off})
            places = "" if len(off) == 1 else f" ({len(off)} places)"
            state = f"{off[0][0].name} is {' and '.join(values) or 'unreadable'}{places}"
            remedy = f"`hwrx tune --apply` switches it: {knob.remedy[0].lower()}{knob.remedy[1:]}."
            found.append(Finding(name=knob.name, state=state, effect=knob.effect, remedy=remedy))
    return [*found, *_interrupts(root), *_clock(root), *_hypervisor(root), *_load(root)]


def _interrupts(root: pathlib.Path) -> Iterator[Finding]:
    """Interrupts of network devices that may come to every core, the measuring one among them."""
    cpus = len(list((root / CPU).glob("cpu[0-9]*")))
    free = []
    for irq in (root / "sys/class/net").glob("*/device/msi_irqs/*"):
        listed = read_tuning(root / "proc/irq" / irq.name / "smp_affinity_list")
        if cpus > 1 and listed and _count(listed) == cpus:
            free.append(irq.name)
    if free:
        yield Finding(
            name="interrupt affinity",
            state=f"interrupts {', '.join(sorted(free, key=int)[:4])} of network devices may come to every core",
            effect="An interrupt on the measuring core takes microseconds out of a message, at random.",
            remedy="Bind them: echo 0 > /proc/irq/N/smp_affinity_list; stop irqbalance, which would move them back.",
        )


def _clock(root: pathlib.Path) -> Iterator[Finding]:
    source = read_tuning(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source and source not in ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page"):
        yield Finding(
            name="clock",
            state=f"the clocksource is {source}",
            effect="Each reading is a device access of a microsecond or more, twice in every message.",
            remedy="Boot with clocksource=tsc tsc=reliable where the processor's TSC is constant.",
        )


def _hypervisor(root: pathlib.Path) -> Iterator[Finding]:
    if re.search(r"^flags\s*:.*\bhypervisor\b", read_tuning(root / "proc/cpuinfo"), re.MULTILINE):
        yield Finding(
            name="virtual machine",
            state="a hypervisor is beneath this kernel",
            effect="It takes the processor away without a trace, interrupts cost more, and the clock is its own.",
            remedy="Measure on bare metal, or pin the virtual processors and say so beside the figures.",
        )


def _load(root: pathlib.Path) -> Iterator[Finding]:
    fields = read_tuning(root / "proc/loadavg").split()
    cpus = max(1, len(list((root / CPU).glob("cpu[0-9]*"))))
    if fields and float(fields[0]) > 0.25 * cpus:
        yield Finding(
            name="other load",
            state=f"{fields[0]} threads were runnable in the last minute, on {cpus} cores",
            effect="Endpoints wait for a core, and caches are shared: the distribution's tail is that of the load.",
            remedy="Stop what else runs, or wait until it is done.",
        )


def find_merging(machine: dict[str, Any], netdevs: Collection[str]) -> list[Finding]:
    """Look whether the network devices of a measurement merge packets. `machine`: see hwrx.machine.description."""
    found = []
    for nic in machine.get("nics", []):
        offloads = nic.get("offloads", {})
        if isinstance(offloads, str):  # why they are not known
            if nic["name"] in netdevs:
                found.append(_unseen_merging(nic["name"], offloads))
            continue
        merge = [name for name in _MERGING if offloads.get(name)]
        if nic["name"] in netdevs and merge:
            finding = Finding(
                name="offloads",
                state=f"{nic['name']} merges or cuts packets ({', '.join(merge)})",
                effect="A stream's messages travel and arrive in bunches: rates rise, gaps between deliveries do not "
                "show the wire, and a message may wait for others.",
                remedy=f"ethtool -K {nic['name']} {' '.join(_MERGING[name] + ' off' for name in merge)} (back: on).",
            )
            found.append(finding)
    return found


def _unseen_merging(netdev: str, reason: str) -> Finding:
    return Finding(
        name="offloads",
        state=f"whether {netdev} merges or cuts packets is {reason}",
        effect="If it does, a stream's messages travel and arrive in bunches.",
        remedy=f"ethtool -k {netdev} (apt-get install ethtool) says it.",
    )


_MERGING = {
    "generic-receive-offload": "gro",
    "large-receive-offload": "lro",
    "rx-gro-hw": "rx-gro-hw",
    "tcp-segmentation-offload": "tso",
    "generic-segmentation-offload": "gso",
}


# --- changing ------------------------------------------------------------------------------------------------------


def apply_tuning(root: pathlib.Path = pathlib.Path("/")) -> list[str]:
    """Set every knob to the quiet value and note the old ones; return a line for each that was changed.

    A second call adds to the notes and never overwrites what was noted first. Needs root.
    """
    _need_root(root)
    notes = _notes(root)
    changed = []
    for knob in KNOBS:
        for file, wanted in knob.find(root):
            before = read_tuning(file)
            if before == wanted:
                continue
            # noted before it is changed: whatever happens in between, `restore` knows the old value
            notes.setdefault(str(file.relative_to(root)), before)
            _keep(root, notes)
            _write(file, wanted)
            changed.append(f"{knob.name}: {file} {before} -> {wanted}")
    return changed


def restore_tuning(root: pathlib.Path = pathlib.Path("/")) -> list[str]:
    """Write back what `apply` changed; return a line for each. UsageError where nothing is noted. Needs root."""
    _need_root(root)
    notes = _notes(root)
    if not notes:
        raise UsageError("there is nothing to restore: `hwrx tune --apply` has changed nothing since the last boot")
    changed = []
    # the last changed first: a core that SMT took away has no files until it is back
    for name, before in sorted(notes.items(), key=lambda note: "smt/control" not in note[0]):
        file = root / name
        now = read_tuning(file)
        if now != before:
            _write(file, before)
            changed.append(f"{file} {now} -> {before}")
    (root / NOTES).unlink()
    return changed


def _need_root(root: pathlib.Path) -> None:
    if root == pathlib.Path("/"):
        tools.need_root("changing settings of the kernel")


def _notes(root: pathlib.Path) -> dict[str, str]:
    try:
        notes = json.loads((root / NOTES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MachineError(
            f"{root / NOTES} is damaged: {error}", remedy="set what it names by hand, and remove it"
        ) from None
    return {str(name): str(before) for name, before in notes.items()}


def _keep(root: pathlib.Path, notes: dict[str, str]) -> None:
    file = root / NOTES
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(notes, indent=1))
    fresh.replace(file)


def _write(file: pathlib.Path, value: str) -> None:
    try:
        file.write_text(value, encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"cannot write {value} to {file}: {os.strerror(error.errno or 0).lower()}",
            remedy="hwrx tune --restore puts back what was changed before it",
        ) from error


def read_tuning(file: pathlib.Path) -> str:
    """Return a file's text without the blanks around it; empty where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: pathlib.Path) -> int:
    text = read_tuning(file)
    return int(text) if text.isdecimal() else 0


def _count(listed: str) -> int:
    """How many CPUs a list such as 0-3,8 names."""
    total = 0
    for part in listed.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
