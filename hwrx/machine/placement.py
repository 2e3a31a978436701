"""Which CPU each end of a path runs on: looked up where it runs, chosen by the controller, recorded with every trial.

An end that the scheduler may move, or that shares a core with the other end or with the device's interrupt handler, is
measured in one of several ways by chance. By default each end therefore has a CPU of its own: on another physical core
than the other end's (not the second thread of the same core), away from the CPU that handles the interrupts of the
device, and on the device's NUMA node. If a machine has too few CPUs, the ends share them, and that is recorded.

`survey` and `observe` run in the agent, where the end is; `choose` in the controller, from what both ends' agents told.
Agents that are on one machine know it by the kernel's boot id. Files: Documentation/admin-guide/cputopology.rst,
Documentation/core-api/irq/irq-affinity.rst, Documentation/ABI/testing/sysfs-bus-pci (`msi_irqs`) of the kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from hwrx.control.messages import ENDS, Role, Setting, Wait
from hwrx.control.places import Place, Placed, Survey
from hwrx.errors import PathError, TrialError, UsageError
from hwrx.machine import scheduling
from hwrx.verbs.rxe import netdev_of

POLLING = ("poll", "spin", "busy-poll")  # of Wait: these keep a CPU busy until a message comes
DROPS = ("rx_dropped", "rx_missed_errors", "rx_fifo_errors", "rx_errors", "tx_dropped", "tx_errors")
BOOT_ID = "proc/sys/kernel/random/boot_id"
CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"


class Wish(Struct, frozen=True, kw_only=True):
    """What the user asked for: CPUs of the client and the server, or "any" for wherever the scheduler puts them.

    `numa`: the CPUs that are not given are taken from this node.
    """

    cpu: tuple[int, ...] | Literal["any"] = ()
    numa: int | None = None


OWN_CPUS = Wish()  # what is done if nobody asks for anything: each end has a CPU of its own


# --- where the end is ----------------------------------------------------------------------------------------------


def survey_cpus(place: Place, allowed: Collection[int], root: Path = Path("/")) -> Survey:
    """Return what a place's machine has of CPUs, and which of them handle the interrupts of the place's device.

    `allowed`: the CPUs that the process was started on.
    """
    online = parse_cpus(read_text(root / CPUS / "online")) or sorted(allowed)
    permitted = find_permitted(online) if root == Path("/") else sorted(allowed)
    device = find_device(place, root)
    irqs = find_irqs(device)
    return Survey(
        boot=read_text(root / BOOT_ID),
        allowed=_allow_cpus(place, allowed, permitted, root),
        permitted=permitted,
        online=online,
        possible=parse_cpus(read_text(root / CPUS / "possible")) or online,
        siblings={cpu: find_siblings(cpu, root) for cpu in online},
        nodes=find_nodes(root),
        device="" if device is None else device.name,
        device_node=_node_of(device),
        irq_cpus=find_irq_cpus(irqs, root),
        interrupts=count_interrupts(irqs, root),
        drops=count_drops(place.netdev or (netdev_of(place.verbs) if place.verbs else None), root),
    )


def count_drops(netdev: str | None, root: Path = Path("/")) -> dict[str, int]:
    """Return what a network device counts of packets that it has lost (Documentation/networking/statistics.rst)."""
    if netdev is None:
        return {}
    folder = root / "sys/class/net" / netdev / "statistics"
    found = {name: read_text(folder / name) for name in DROPS}
    return {name: int(text) for name, text in found.items() if text.isdecimal()}


def _allow_cpus(place: Place, allowed: Collection[int], permitted: Collection[int], root: Path) -> list[int]:
    """Return the CPUs of which hwrx may choose: those that the place names, of its node, else all of the process's.

    :raises UsageError: if the process may run on none of them.
    """
    if not place.cpus and place.numa is None:
        return sorted(allowed)
    nodes = find_nodes(root) if place.numa is not None else {}
    named = [cpu for cpu in place.cpus or sorted(allowed) if place.numa in (None, nodes.get(cpu))]
    if found := [cpu for cpu in named if cpu in permitted]:
        return found
    wanted = f"CPUs {show_cpus(place.cpus)}" if place.cpus else f"a CPU of node {place.numa}"
    raise UsageError(
        f"the inventory gives this host {wanted}, and an agent there may use {show_cpus(sorted(permitted))}",
        remedy="set `cpus` and `numa` of the host in the inventory, or leave them out",
    )


def find_device(place: Place, root: Path = Path("/")) -> Path | None:
    """Return the hardware beneath a place: the folder of its PCI (or platform) device; None for links of software."""
    if place.verbs is not None:
        folder = root / "sys/class/infiniband" / place.verbs
        if (folder / "device").exists():
            return _with_interrupts((folder / "device").resolve(), root)
        parent = read_text(folder / "parent")  # rxe and siw stand on a network device
        return _beneath_netdev(parent, root) if parent else None
    netdev = place.netdev or place.pio
    return _beneath_netdev(netdev, root) if netdev else None


def _beneath_netdev(name: str, root: Path) -> Path | None:
    folder = root / "sys/class/net" / name
    if (folder / "device").exists():
        return _with_interrupts((folder / "device").resolve(), root)
    # a VLAN, a bond, a bridge: the first device beneath it that is one
    for lower in sorted(folder.glob("lower_*")):
        found = _beneath_netdev(lower.name.removeprefix("lower_"), root)
        if found is not None:
            return found
    return None


def _with_interrupts(device: Path, root: Path) -> Path:
    """Return the nearest folder upwards that has interrupts: virtio's devices lie in that of their PCI device."""
    top = (root / "sys/devices").resolve()
    for folder in (device, *device.parents):
        if folder == top or top not in folder.parents:
            break
        if (folder / "msi_irqs").is_dir() or (folder / "irq").is_file():
            return folder
    return device


def find_irqs(device: Path | None) -> list[int]:
    """Return the numbers of a device's interrupts: those by message if it has any, else the line's."""
    if device is None:
        return []
    messages = sorted(int(file.name) for file in device.glob("msi_irqs/*") if file.name.isdecimal())
    if messages:
        return messages
    line = read_text(device / "irq")
    return [int(line)] if line.isdecimal() and line != "0" else []


def find_irq_cpus(irqs: Iterable[int], root: Path = Path("/")) -> list[int]:
    """Return the CPUs that handle these interrupts."""
    cpus: set[int] = set()
    for irq in irqs:
        folder = root / "proc/irq" / str(irq)
        # the effective mask is the CPU that was picked from the allowed ones
        cpus.update(
            parse_cpus(read_text(folder / "effective_affinity_list") or read_text(folder / "smp_affinity_list"))
        )
    return sorted(cpus)


def count_interrupts(irqs: Collection[int], root: Path = Path("/")) -> dict[int, int]:
    """Return how many of these interrupts each CPU has handled since boot, from /proc/interrupts."""
    if not irqs:
        return {}
    header, *lines = (read_text(root / "proc/interrupts") or "-").splitlines()
    cpus = [int(word.removeprefix("CPU")) for word in header.split() if word.startswith("CPU")]
    counts: Counter[int] = Counter()
    wanted = {f"{irq}:" for irq in irqs}
    for line in lines:
        name, *words = line.split()
        if name in wanted:
            for cpu, word in zip(cpus, words, strict=False):
                counts[cpu] += int(word) if word.isdecimal() else 0
    return dict(counts)


def find_siblings(cpu: int, root: Path = Path("/")) -> list[int]:
    """Return the CPUs that are threads of the same physical core, the CPU itself among them."""
    folder = root / CPUS / f"cpu{cpu}/topology"
    text = read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")
    return parse_cpus(text) or [cpu]


def find_nodes(root: Path = Path("/")) -> dict[int, int]:
    """Return the NUMA node of each CPU."""
    found: dict[int, int] = {}
    names = os.listdir(root / NODES) if (root / NODES).is_dir() else []  # noqa: PTH208 -- an agent does this each trial
    for name in names:
        if (number := name.removeprefix("node")).isdecimal():
            found |= dict.fromkeys(parse_cpus(read_text(root / NODES / name / "cpulist")), int(number))
    return found


def find_permitted(online: Iterable[int]) -> list[int]:
    """Return the CPUs that the kernel lets this thread be bound to: its cgroup's cpuset, whatever its affinity is."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, online)  # the kernel leaves out what the cpuset does not have
        return sorted(os.sched_getaffinity(0))
    except OSError:
        return sorted(before)
    finally:
        os.sched_setaffinity(0, before)


def pin_thread(cpu: int | None, started_on: Collection[int]) -> None:
    """Bind the calling thread to a CPU, or if that is None to those that its process was started on.

    Raises PathError if the kernel refuses.
    """
    try:
        os.sched_setaffinity(0, started_on if cpu is None else {cpu})
    except OSError as error:
        raise PathError(
            f"the endpoint cannot run on CPU {cpu}: {error.strerror}",
            remedy=f"choose one of {show_cpus(sorted(os.sched_getaffinity(0)))}",
        ) from None


def observe_placement(place: Place, root: Path = Path("/")) -> Placed:
    """Return where the calling thread runs and what is beside it there, as the kernel has it now."""
    allowed = sorted(os.sched_getaffinity(0))
    fields = read_text(root / "proc/thread-self/stat").rpartition(")")[2].split()
    ran_on = int(fields[36]) if len(fields) > 36 else -1  # field 39 of proc_pid_stat(5), the third is the first here
    device = find_device(place, root)
    return Placed(
        allowed=allowed,
        ran_on=ran_on,
        siblings=[cpu for cpu in find_siblings(ran_on, root) if cpu != ran_on],
        node=find_nodes(root).get(ran_on),
        device="" if device is None else device.name,
        device_node=_node_of(device),
        irq_cpus=find_irq_cpus(find_irqs(device), root),
        features_off=scheduling.features_off(root / "sys/kernel/debug/sched/features"),
    )


def _node_of(device: Path | None) -> int | None:
    text = "" if device is None else read_text(device / "numa_node")
    return int(text) if text.isdecimal() else None  # -1: the firmware does not say


# --- the choice ----------------------------------------------------------------------------------------------------


def choose_cpus(wish: Wish, surveys: Mapping[Role, Survey], setting: Setting) -> list[dict[Role, int | None]]:
    """Return the CPU of both ends of each sender; None if the scheduler is to choose.

    Raises UsageError if a CPU or node that the user gave is not one that an end may use, TrialError if two ends that
    poll would share a CPU.
    """
    if wish.cpu != "any":
        check_wish(wish, surveys)
    return choose_between(wish, [surveys] * setting.senders, setting.wait)


def choose_between(wish: Wish, senders: Sequence[Mapping[Role, Survey]], wait: Wait) -> list[dict[Role, int | None]]:
    """As `choose_cpus`, of senders that may each be between other machines. What the user gave is the first one's."""
    if wish.cpu == "any":
        return [dict.fromkeys(ENDS) for _ in senders]
    given = dict(zip(ENDS, wish.cpu, strict=False))
    surveys = [survey for ends in senders for survey in ends.values()]
    used: dict[str, Counter[int]] = {survey.boot: Counter() for survey in surveys}
    for role, cpu in given.items():
        used[senders[0][role].boot][cpu] += 1
    busy = {boot: _irq_load(boot, surveys) for boot in used}
    chosen: list[dict[Role, int | None]] = []
    for sender, between in enumerate(senders):
        ends: dict[Role, int | None] = {}
        for role in ENDS:
            survey = between[role]
            if sender == 0 and role in given:
                ends[role] = given[role]
                continue
            ends[role] = cpu = _best_cpu(wish, survey, used[survey.boot], busy[survey.boot])
            used[survey.boot][cpu] += 1
        chosen.append(ends)
    if wait in POLLING:
        _refuse_sharing(wait, used)
    return chosen


def check_wish(wish: Wish, surveys: Mapping[Role, Survey]) -> None:
    """Raise UsageError if a CPU or node that the user gave does not exist, is offline, or may not be used."""
    if wish.cpu == "any":
        return
    for role, cpu in zip(ENDS, wish.cpu, strict=False):
        survey = surveys[role]
        if cpu not in survey.possible:
            raise UsageError(
                f"--cpu: the {role}'s machine has no CPU {cpu}", remedy=f"choose of {show_cpus(survey.permitted)}"
            )
        if cpu not in survey.online:
            raise UsageError(
                f"--cpu: CPU {cpu} of the {role} is offline",
                remedy=f"choose of {show_cpus(survey.permitted)}, or as root: echo 1 > /{CPUS}/cpu{cpu}/online",
            )
        if cpu not in survey.permitted:
            raise UsageError(
                f"--cpu: the {role} may not use CPU {cpu}: the cpuset of its cgroup leaves it out",
                remedy=f"choose of {show_cpus(survey.permitted)}",
            )
    for role, survey in surveys.items():
        if wish.numa is not None and not _on_node(survey, wish.numa):
            nodes = ", ".join(map(str, sorted(set(survey.nodes.values())))) or "none"
            raise UsageError(
                f"--numa: the {role} may use no CPU of node {wish.numa} (the nodes of its machine: {nodes})",
                remedy="choose another node, or leave --numa out",
            )


def _on_node(survey: Survey, node: int | None) -> list[int]:
    """Return the CPUs that an end may use without having been told to, of one node if it is given."""
    return [cpu for cpu in survey.allowed if cpu in survey.online and node in (None, survey.nodes.get(cpu))]


def _irq_load(boot: str, surveys: Iterable[Survey]) -> dict[int, int]:
    """Return the interrupts that each CPU of a machine handles for either end's device: the CPU, and how many it had.

    If every CPU handles some (a NIC with a queue for each), the ones that had most tell where the traffic is.
    """
    load: dict[int, int] = {}
    for survey in surveys:
        if survey.boot == boot:
            for cpu in survey.irq_cpus:
                load[cpu] = max(load.get(cpu, 0), survey.interrupts.get(cpu, 0))
    return load


def _best_cpu(wish: Wish, survey: Survey, used: Counter[int], load: Mapping[int, int]) -> int:
    """Return the CPU that is shared least, in this order: itself, its core, another node, interrupts."""

    def cost(cpu: int) -> tuple[int, ...]:
        core = survey.siblings.get(cpu, [cpu])
        abroad = survey.device_node is not None and survey.nodes.get(cpu) not in (None, survey.device_node)
        return (
            used[cpu],
            sum(used[sibling] for sibling in core),
            abroad,
            cpu in load,
            load.get(cpu, 0),
            any(sibling in load for sibling in core),
            0 in core,  # what belongs to no CPU in particular runs there more often than elsewhere
            cpu,
        )

    candidates = _on_node(survey, wish.numa) or survey.allowed
    return min(candidates, key=cost)


def _refuse_sharing(wait: Wait, used: Mapping[str, Counter[int]]) -> None:
    for counts in used.values():
        for cpu, ends in sorted(counts.items()):
            if ends > 1:
                raise TrialError(
                    f"{ends} ends that wait by {wait} share CPU {cpu}: each would measure how long the "
                    "scheduler leaves it to the other",
                    remedy="wait by event, or let the ends have CPUs of their own: --cpu CLIENT,SERVER, fewer senders",
                )


# --- the record ----------------------------------------------------------------------------------------------------


def record_placement(
    wish: Wish, surveys: Mapping[Role, Survey], placed: Sequence[Mapping[Role, Placed]]
) -> dict[str, Any]:
    """Return what stands with a trial as `placement`: of both ends of the first sender, and what they share.

    `shared`: "nothing", "core" or "cpu"; with several senders `senders` has [client, server] of each, CPUs as run on.
    """
    ends = placed[0]
    found: dict[str, Any] = {"by": _by(wish)}
    for role, end in ends.items():
        found[role] = {
            "cpu": end.ran_on,
            "pinned": len(end.allowed) == 1,
            "siblings": end.siblings,
            "node": end.node,
            "device": end.device,
            "device_node": end.device_node,
            "irq_cpus": end.irq_cpus,
            "beside_irq": end.ran_on in end.irq_cpus,
        }
    client, server = ends["client"], ends["server"]
    same_machine = surveys["client"].boot == surveys["server"].boot
    if same_machine and client.ran_on == server.ran_on:
        found["shared"] = "cpu"
    elif same_machine and server.ran_on in client.siblings:
        found["shared"] = "core"
    else:
        found["shared"] = "nothing"
    if client.features_off:
        found["features_off"] = client.features_off
    if len(placed) > 1:
        found["senders"] = [[pair["client"].ran_on, pair["server"].ran_on] for pair in placed]
    return found


def _by(wish: Wish) -> str:
    if wish.cpu == "any":
        return "the scheduler"
    return "the user" if wish.cpu else "hwrx"


def describe_placement(placement: Mapping[str, Any]) -> str:
    """Say in a sentence where the ends of a trial ran. `placement` is what `record` returned."""
    client, server = placement["client"], placement["server"]
    if placement["by"] == "the scheduler":
        return "The ends were not bound to CPUs: they ran wherever the scheduler put them."
    if placement["shared"] == "cpu":
        said = f"Both ends shared CPU {client['cpu']} and took turns on it"
    else:
        said = f"The client ran on CPU {client['cpu']}, the server on CPU {server['cpu']}"
        said += ", two threads of one core" if placement["shared"] == "core" else ""
    beside = [role for role in ENDS if placement[role]["beside_irq"]]
    if beside:
        said += f"; the {' and the '.join(beside)} beside the interrupts of the device"
    said = f"{said} (chosen by {placement['by']})."
    if off := placement.get("features_off"):
        said += (
            f" The guest's scheduler took turns alike in every trial: {', '.join(off)} off, and the ends SCHED_BATCH."
        )
    return said


# --- text ----------------------------------------------------------------------------------------------------------


def parse_cpus(text: str) -> list[int]:
    """Return the CPUs of a list as the kernel prints it: "0-3,8"."""
    found: list[int] = []
    with contextlib.suppress(ValueError):
        for part in filter(None, text.strip().split(",")):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


def show_cpus(cpus: Sequence[int]) -> str:
    """Return CPUs as the kernel prints them; the inverse of `parse_cpus`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def read_text(file: Path) -> str:
    """Return what a file of /sys or /proc says, "" if it says nothing."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
