"""Which CPU each end gets: on machines that are folders like /sys and /proc, of every shape that matters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hwrx.control.messages import Role, Setting
from hwrx.control.places import Place, Placed, Survey
from hwrx.errors import PathError, TrialError, UsageError
from hwrx.machine import placement
from hwrx.machine.placement import Wish
from hwrx.runs import experiment, planning

ROLES: tuple[Role, Role] = ("client", "server")


class Tree:
    """A machine in a folder. `cores` are the CPUs of each core, `nodes` those of each NUMA node."""

    def __init__(self, root: Path, cores: list[list[int]], nodes: list[list[int]] | None = None) -> None:
        self.root = root
        cpus = sorted(cpu for core in cores for cpu in core)
        self.write("proc/sys/kernel/random/boot_id", "boot\n")
        self.write("sys/devices/system/cpu/online", placement.show_cpus(cpus) + "\n")
        self.write("sys/devices/system/cpu/possible", f"0-{cpus[-1] + 2}\n")
        for core in cores:
            for cpu in core:
                self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", placement.show_cpus(core))
        for number, members in enumerate(nodes or [cpus]):
            self.write(f"sys/devices/system/node/node{number}/cpulist", placement.show_cpus(members))
        self.cpus = cpus
        self.lines: list[str] = [" " * 11 + "".join(f"CPU{cpu}".ljust(11) for cpu in cpus)]

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def nic(self, netdev: str, irqs: Mapping[int, int], node: int = -1, beneath: str = "") -> None:
        """A PCI device whose interrupts are handled by these CPUs; `beneath`: folders between it and its netdev."""
        pci = f"sys/devices/pci0000:00/0000:00:{len(self.lines):02d}.0"
        self.write(f"{pci}/numa_node", f"{node}\n")
        self.write(f"{pci}/irq", "11\n")
        for irq, cpu in irqs.items():
            self.write(f"{pci}/msi_irqs/{irq}", "msix\n")
            self.write(f"proc/irq/{irq}/effective_affinity_list", f"{cpu}\n")
            self.write(f"proc/irq/{irq}/smp_affinity_list", placement.show_cpus(self.cpus))
            counts = "".join(f"{1000 * irq * (other == cpu):10d} " for other in self.cpus)
            self.lines.append(f"{irq:4d}: {counts} PCI-MSIX-0000:00:04.0 {irq}-edge {netdev}-rx-0")
        (self.root / pci / beneath).mkdir(parents=True, exist_ok=True)
        self.write(f"sys/class/net/{netdev}/address", "02:00:00:00:00:01\n")
        (self.root / f"sys/class/net/{netdev}/device").symlink_to(self.root / pci / beneath)
        self.write("proc/interrupts", "\n".join([*self.lines, " NMI:   0 0   Non-maskable interrupts"]) + "\n")

    def survey(self, place: Place | None = None, allowed: list[int] | None = None) -> Survey:
        return placement.survey_cpus(place or Place(), allowed or self.cpus, self.root)


def chosen(
    tree: Tree, setting: Setting | None = None, wish: Wish = placement.OWN_CPUS, **options: Any
) -> list[tuple[int | None, int | None]]:
    survey = tree.survey(**options)
    cpus = placement.choose_cpus(wish, dict.fromkeys(ROLES, survey), setting or Setting(path="udp"))
    return [(pair["client"], pair["server"]) for pair in cpus]


def test_the_ends_are_on_two_cores_and_not_on_two_threads_of_one(tmp_path: Path) -> None:
    assert chosen(Tree(tmp_path, [[0, 4], [1, 5], [2, 6], [3, 7]])) == [(1, 2)]
    assert chosen(Tree(tmp_path / "paired", [[0, 1], [2, 3]])) == [(2, 0)]
    assert chosen(Tree(tmp_path / "one core", [[0, 1]])) == [(0, 1)]


def test_the_ends_keep_away_from_the_cpu_that_handles_the_interrupts_and_from_its_sibling(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0, 4], [1, 5], [2, 6], [3, 7]])
    tree.nic("eth9", {24: 1})
    assert chosen(tree, place=Place(netdev="eth9")) == [(2, 3)]
    assert tree.survey(Place(netdev="eth9")).irq_cpus == [1]
    two = Tree(tmp_path / "two", [[0], [1]])
    two.nic("eth9", {24: 1})
    assert chosen(two, place=Place(netdev="eth9")) == [(0, 1)]


def test_of_a_nic_with_a_queue_for_each_cpu_the_busy_queues_are_kept_away_from(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1], [2], [3]])
    tree.nic("eth9", {24: 3, 25: 2, 26: 1, 27: 0})  # counts grow with the number
    assert chosen(tree, place=Place(netdev="eth9")) == [(3, 2)]
    assert tree.survey(Place(netdev="eth9")).interrupts == {3: 24_000, 2: 25_000, 1: 26_000, 0: 27_000}


def test_the_node_of_the_device_comes_before_a_quieter_cpu(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1], [2], [3], [4], [5]], [[0, 1, 2], [3, 4, 5]])
    tree.nic("eth9", {24: 4}, node=1)
    assert chosen(tree, place=Place(netdev="eth9")) == [(3, 5)]
    assert chosen(tree, wish=Wish(numa=0), place=Place(netdev="eth9")) == [(1, 2)]


def test_a_device_is_found_beneath_virtio_vlans_and_rxe(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1], [2]])
    tree.nic("virt0", {30: 2}, beneath="virtio3")
    tree.write("sys/class/net/virt0.7/lower_virt0", "")
    tree.write("sys/class/infiniband/rxe9/parent", "virt0.7\n")
    for place in (Place(netdev="virt0"), Place(netdev="virt0.7"), Place(verbs="rxe9"), Place(pio="virt0")):
        assert tree.survey(place).irq_cpus == [2], place
        assert tree.survey(place).device.startswith("0000:00:")
    tree.write("sys/class/net/veth0/address", "")
    assert tree.survey(Place(netdev="veth0")).device == ""


def test_the_line_interrupt_is_taken_if_there_are_none_by_message(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1]])
    tree.nic("eth9", {})
    tree.write("proc/irq/11/smp_affinity_list", "0-1\n")
    assert tree.survey(Place(netdev="eth9")).irq_cpus == [0, 1]


def test_only_the_allowed_cpus_are_taken_by_default_and_one_alone_is_shared(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1], [2], [3]])
    assert chosen(tree, allowed=[0, 3]) == [(3, 0)]
    assert chosen(tree, allowed=[2]) == [(2, 2)]


def test_several_senders_go_round_over_what_is_left(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [[0], [1], [2], [3]])
    setting = Setting(path="udp", senders=3)
    assert chosen(tree, setting) == [(1, 2), (3, 0), (1, 2)]
    assert chosen(tree, setting, Wish(cpu=(3, 3))) == [(3, 3), (1, 2), (0, 1)]


def test_any_leaves_it_to_the_scheduler(tmp_path: Path) -> None:
    assert chosen(Tree(tmp_path, [[0], [1]]), wish=Wish(cpu="any")) == [(None, None)]


@pytest.mark.parametrize("wait", ["poll", "spin", "busy-poll"])
def test_two_pollers_on_one_cpu_are_refused_with_the_remedy(tmp_path: Path, wait: str) -> None:
    tree = Tree(tmp_path, [[0], [1]])
    setting = msgspec.convert({"path": "udp", "wait": wait}, Setting)
    assert chosen(tree, setting) == [(1, 0)]
    for wish, allowed in ((placement.OWN_CPUS, [1]), (Wish(cpu=(1, 1)), [0, 1])):
        with pytest.raises(TrialError, match=r"2 ends that wait by .* share CPU 1") as caught:
            chosen(tree, setting, wish, allowed=allowed)
        assert "--cpu CLIENT,SERVER" in caught.value.remedy
    with pytest.raises(TrialError, match="2 ends"):
        chosen(tree, msgspec.structs.replace(setting, senders=2))


def test_ends_on_two_machines_share_nothing(tmp_path: Path) -> None:
    here, there = Tree(tmp_path / "a", [[0], [1]]).survey(), Tree(tmp_path / "b", [[0], [1]]).survey()
    there = msgspec.structs.replace(there, boot="another")
    setting = Setting(path="udp", wait="poll")
    surveys: dict[Role, Survey] = {"client": here, "server": there}
    assert placement.choose_cpus(placement.OWN_CPUS, surveys, setting) == [{"client": 1, "server": 1}]
    assert placement.choose_cpus(Wish(cpu=(0, 0)), surveys, setting) == [{"client": 0, "server": 0}]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(cpu=(9,)), r"the client's machine has no CPU 9"),
        (Wish(cpu=(0, 3)), r"CPU 3 of the server is offline"),
        (Wish(cpu=(2,)), r"the client may not use CPU 2: the cpuset of its cgroup"),
        (Wish(numa=4), r"no CPU of node 4 \(the nodes of its machine: 0\)"),
    ],
)
def test_a_cpu_or_node_that_cannot_be_is_named(tmp_path: Path, wish: Wish, words: str) -> None:
    survey = Tree(tmp_path, [[0], [1], [2]]).survey(allowed=[0, 1])  # possible: 0-4
    with pytest.raises(UsageError, match=words):
        placement.choose_cpus(wish, dict.fromkeys(ROLES, survey), Setting(path="udp"))


def test_this_machine_is_surveyed_and_the_affinity_stays_what_it_was() -> None:
    before = os.sched_getaffinity(0)
    survey = placement.survey_cpus(Place(netdev="lo"), before)
    assert os.sched_getaffinity(0) == before
    assert survey.allowed == sorted(before)
    assert set(survey.allowed) <= set(survey.permitted) <= set(survey.online) <= set(survey.possible)
    assert all(cpu in survey.siblings[cpu] for cpu in survey.online)
    assert msgspec.json.decode(msgspec.json.encode(survey), type=Survey) == survey


def test_a_thread_is_bound_and_set_free_again() -> None:
    before = os.sched_getaffinity(0)
    cpu = max(before)
    try:
        placement.pin_thread(cpu, before)
        seen = placement.observe_placement(Place())
        assert (seen.allowed, seen.ran_on) == ([cpu], cpu)
        with pytest.raises(PathError, match="cannot run on CPU 4000"):
            placement.pin_thread(4000, before)
        placement.pin_thread(None, before)
        assert os.sched_getaffinity(0) == before
    finally:
        os.sched_setaffinity(0, before)


def placed(ran_on: int, siblings: list[int], irq_cpus: list[int]) -> Placed:
    return Placed(allowed=[ran_on], ran_on=ran_on, siblings=siblings, irq_cpus=irq_cpus)


@pytest.mark.parametrize(
    ("server", "shared", "words"),
    [
        (placed(1, [3], []), "nothing", "The client ran on CPU 0, the server on CPU 1 (chosen by hwrx)."),
        (placed(2, [0], [2]), "core", "on CPU 2, two threads of one core; the server beside the interrupts"),
        (placed(0, [2], []), "cpu", "Both ends shared CPU 0 and took turns on it"),
    ],
)
def test_what_the_ends_share_is_recorded_and_said(tmp_path: Path, server: Placed, shared: str, words: str) -> None:
    survey = Tree(tmp_path, [[0, 2], [1, 3]]).survey()
    found = placement.record_placement(
        placement.OWN_CPUS, dict.fromkeys(ROLES, survey), [{"client": placed(0, [2], []), "server": server}]
    )
    assert found["shared"] == shared
    assert words in placement.describe_placement(found)
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_an_experiment_says_where_its_ends_run_and_keeps_it() -> None:
    given = experiment.from_options(paths=["udp"], cpu=[2, 3], numa=1)
    assert experiment.wish_of(given) == Wish(cpu=(2, 3), numa=1)
    assert experiment.parse_experiment(experiment.dump_experiment(given), source="again") == given
    assert experiment.wish_of(experiment.from_options(paths=["udp"])) == placement.OWN_CPUS


def test_counted_instructions_are_in_one_scheduling_state_unless_said_otherwise() -> None:
    def schedules(**options: Any) -> set[str]:
        given = experiment.from_options(paths=["udp", "tcp"], topology="pair", **options)
        return {trial.setting.schedule for trial in planning.plan_run(given).trials}

    assert schedules(clock="icount") == {"batch"}
    assert schedules(clock="wall") == {"normal"}
    assert schedules(clock="icount", schedule="normal") == {"normal"}
    assert schedules(clock="icount", sweep={"schedule": ["normal", "batch"]}) == {"normal", "batch"}
    assert schedules(clock="icount", path={"tcp": {"schedule": "normal"}}) == {"normal", "batch"}


def test_pollers_that_would_share_a_cpu_are_left_out_of_the_plan_with_the_reason() -> None:
    given = experiment.from_options(paths=["udp"], topology="pair", clock="icount", waits=["event", "poll"])
    layout = planning.plan_run(given)
    assert {trial.setting.wait for trial in layout.trials} == {"event"}
    assert "one CPU" in layout.skipped[0].reason
    with pytest.raises(UsageError, match=r"both ends are to share CPU 1"):
        planning.plan_run(experiment.from_options(paths=["udp"], waits=["poll"], cpu=[1, 1]))


@pytest.mark.parametrize("text", ["", "0", "0-3", "0-1,4,6-7"])
def test_lists_of_cpus_are_read_and_written_as_the_kernel_does(text: str) -> None:
    assert placement.show_cpus(placement.parse_cpus(f"{text}\n")) == text


def test_what_is_no_list_of_cpus_is_none() -> None:
    assert placement.parse_cpus("?") == []
