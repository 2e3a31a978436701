"""Where a run takes place: two ends, the wire between them, and how to start an agent at each.

A testbed is this machine's loopback or namespaces, a guest that has a pair of rxe devices, verbs devices of this
machine, or a second machine behind ssh. Leaving the context takes down whatever entering it put up.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hwrx import paths
from hwrx.control.environment import Environment, Host, parse_environment
from hwrx.control.guest_boot import MACHINE, Boot
from hwrx.control.messages import Describe, Described, Role, Setting
from hwrx.control.peers import Peer
from hwrx.control.places import Place
from hwrx.errors import MachineError, SilenceError, UsageError
from hwrx.host.outside import clean_text
from hwrx.runs import experiment as experiments
from hwrx.runs import guests, traffic
from hwrx.runs.addresses import need_one_family, own_address
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.hosts import HostsBed, name_ends
from hwrx.verbs.rxe import RXE_MODULE
from hwrx.wires import topology

if TYPE_CHECKING:
    from hwrx.lab.vm import Guest

Say = Callable[[str, str], None]
LABS_OWN = Boot()
GUEST_MEMORY = 2 << 30  # bytes that a guest may come to use: see hwrx.lab.vm.Guest


class Wanted(Struct, frozen=True, kw_only=True):
    """What the user asked for on the command line, beyond the experiment."""

    here: bool = False
    devices: tuple[str, ...] = ()
    peer: str | None = None
    peer_device: str | None = None
    peer_address: str | None = None
    address: str | None = None  # the client's own; None: the one from which the peer's is reached
    log: Path | None = None  # file that takes the guest's console
    client: Host | None = None  # of the inventory
    server: Host | None = None
    hosts: tuple[Host, ...] = ()  # all that take part, if they are more than a client and a server

    @property
    def explicit(self) -> bool:
        """Whether the user named the two ends, so that no topology is to be made."""
        return bool(self.classic or self.client or self.server or self.hosts)

    @property
    def classic(self) -> bool:
        """Whether the user named an end by itself, not a host of the inventory."""
        return bool(self.devices or self.peer or self.peer_device or self.peer_address or self.address)

    def actions(self) -> list[str]:
        """Say which commands and hosts these words reach, a sentence each; empty if none but what hwrx itself makes."""
        commands = [
            (host.agent_command(), f"{host.name}'s end")
            for host in self._named()
            if host.hwrx or parse_environment(host.reach).kind not in ("local", "netns")
        ]
        if self.peer is not None and parse_environment(self.peer).kind not in ("local", "netns"):
            commands.append((parse_environment(self.peer).agent_command(), "the other end"))
        shown = [(clean_text(shlex.join(command), lines=False), whose) for command, whose in commands]
        return [f"`{command}`, which is to start {whose}" for command, whose in shown]

    @property
    def remote(self) -> bool:
        """Whether an end may run on another kernel than this machine's."""
        reached = [host.reach for host in self._named()] + ([self.peer] if self.peer is not None else [])
        return not all(parse_environment(reach).same_kernel for reach in reached)

    def _named(self) -> list[Host]:
        return [host for host in (self.client, self.server, *self.hosts) if host is not None]


class Bed:
    """Two places, reached by the peers' names."""

    alone = False
    boot: Boot | None = None

    def __init__(self, places: Mapping[Role, Place], peers: Mapping[Role, str | Host], about: dict[str, Any]) -> None:
        self.places = places
        self._peers = peers
        self._about = about

    def start(self, role: Role) -> Peer:
        """See `hwrx.runs.beds.Testbed`."""
        return Peer.start(self._peers[role], role)

    def namespace_of(self, role: Role) -> str | None:
        """Return the name of the network namespace that an end lives in; None if it is this process's own."""
        return _environment(self._peers[role]).netns

    def need_answer(self, trouble: SilenceError) -> None:
        """See run.Testbed: no guest is here."""

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """Start an agent on the kernel that both ends share; and name the network namespaces that they live in."""
        environments = [_environment(peer) for peer in self._peers.values()]
        if not all(each.same_kernel for each in environments):
            raise MachineError(
                "both ends must be on this machine to be traced: a message's stages are stamped by one kernel",
                remedy="leave out --trace, or compare here",
            )
        return Peer.start("local", "tracer"), sorted({each.netns for each in environments if each.netns})

    def manifest(self) -> dict[str, Any]:
        """See `hwrx.runs.beds.Testbed`: the client's machine, and the server's where that is another one."""
        # pyverbs and pyudev: not needed where only a guest is measured
        from hwrx.machine import description

        about: dict[str, Any] = {"emulated": False, **self._about}
        keys: dict[Role, str] = {"client": "machine", "server": "server machine"}
        for role, key in keys.items():
            if not _environment(self._peers[role]).same_kernel:
                with self.start(role) as peer:
                    about[key] = peer.ask(Describe(), Described).machine
        about.setdefault("machine", description.describe_machine())
        return about


def _environment(peer: str | Host) -> Environment:
    return parse_environment(peer.reach if isinstance(peer, Host) else peer)


class GuestBed:
    """The topology inside a guest; its agents are processes there."""

    alone = True

    def __init__(self, guest: Guest, boot: Boot = LABS_OWN) -> None:
        self.guest = guest
        self.boot: Boot | None = boot
        self.places: Mapping[Role, Place] = {role: guest.places[role] for role in ("client", "server")}

    def start(self, role: Role) -> Peer:
        """See `hwrx.runs.beds.Testbed`."""
        return Peer.greet(self.guest.agent(role), role)

    def need_answer(self, trouble: SilenceError) -> None:
        """See run.Testbed."""
        self.guest.need_answer(trouble)

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """As Bed.start_tracer, in the guest."""
        return Peer.greet(self.guest.agent("client"), "tracer"), []

    def describe(self) -> dict[str, Any]:
        """Return what is to be known of the guest itself."""
        return {**self.guest.describe(), "boot": msgspec.to_builtins(self.boot)}

    def manifest(self) -> dict[str, Any]:
        """See `hwrx.runs.beds.Testbed`: the guest's machine, asked of an agent in it, and the host's around it."""
        # pyverbs and pyudev: not needed where only a guest is measured
        from hwrx.machine import description

        with self.start("client") as peer:
            inside = peer.ask(Describe(), Described).machine
        return {
            "wire": f"in the guest: {topology.find_topology(self.guest.topology).sentence}",
            "guest": self.describe(),
            "emulated": self.guest.describe()["emulated"],
            "machine": inside,
            "host": description.describe_machine(),
        }


Booted = GuestBed | guests.GuestsBed  # with all that is in it


# --- what can be had where -----------------------------------------------------------------------------------------


def settle_clock(experiment: Experiment, wanted: Wanted, say: Say = lambda stage, text: None) -> Experiment:
    """Return the experiment with its clock decided: `auto` counts instructions unless time means something.

    Time means something on devices and kernels of real machines, and in a guest that hardware executes. Several guests
    have no other clock in common than the wall's.
    """
    if experiment.clock != "auto":
        return experiment
    if in_guest(experiment, wanted) and not topology.find_topology(experiment.topology).many:
        # what runs in a guest imports this module, too, and starts no machine
        from hwrx.lab import accelerator, kernel

        found = accelerator.remembered_choice() or accelerator.choose_accelerator(
            kernel.find_kernel(experiment.kernel, say), say
        )
        if found.emulated:
            return msgspec.structs.replace(experiment, clock="icount")
    return experiments.without_counting(experiment)


def check_wanted(experiment: Experiment, wanted: Wanted) -> None:
    """Refuse what would be ignored: a figure is by the clock, kernel and wire that its run names.

    :raises UsageError: if the experiment or the command line asks for something that this testbed does not have.
    """
    if wanted.explicit and experiment.topology != "hosts":
        raise UsageError(
            f"the two ends are named (--device, --peer), so that the topology '{experiment.topology}' is not put up",
            remedy="leave out either",
        )
    if not wanted.explicit and experiment.topology == "hosts":
        raise UsageError(
            f"the topology '{experiment.topology}' needs its two ends named",
            remedy="--client HOST --server HOST of an inventory; --device CLIENT,SERVER; or --peer ssh:HOST with"
            " --peer-device or --peer-address",
        )
    _check_named(experiment, wanted)
    if experiment.between_guests:
        guests.check_guests(experiment.topology, experiment.clock, traffic.hosts_of(experiment), here=wanted.here)
    where = _kind(experiment, wanted)
    if where != "a guest":
        _need_no_guest(experiment, wanted, where)
    if experiment.wire_mtu is not None and (wanted.explicit or experiment.topology not in topology.WITH_MTU):
        raise UsageError(
            f"wire_mtu is for a wire that hwrx puts up ({', '.join(topology.WITH_MTU)}); {where} has none",
            remedy="leave wire_mtu out, or set the MTU yourself: ip link set NETDEV mtu BYTES",
        )
    if experiment.anatomy and (where != "a guest" or experiment.clock != "icount"):
        raise UsageError(
            "anatomy is of an emulated guest that counts instructions: the emulator cannot see into a real machine",
            remedy='clock = "icount" and a topology in a guest, or leave anatomy out',
        )
    if experiment.trace and wanted.remote:
        raise UsageError(
            "a message's stages are stamped by one kernel, and the two ends are on two machines",
            remedy="leave out --trace, or compare here",
        )
    if wanted.peer_address is not None and wanted.peer in (None, "local") and (wanted.peer_device or wanted.devices):
        raise UsageError(
            f"both ends' devices are of this machine, so that --peer-address {wanted.peer_address} has no meaning",
            remedy="leave it out, or name the peer: --peer ssh:HOST",
        )


def _check_named(experiment: Experiment, wanted: Wanted) -> None:
    """UsageError if hosts of the inventory are named beside what says the same in another way."""
    if wanted.classic and (wanted.hosts or wanted.client or wanted.server):
        raise UsageError(
            "the ends are hosts of the inventory, which says their devices and addresses",
            remedy="leave out --device, --peer, --peer-device, --peer-address and --address",
        )
    several = [] if experiment.between_guests else traffic.hosts_of(experiment)
    if several and not wanted.hosts:
        raise UsageError(
            f"the experiment is between {len(several)} hosts, and no inventory says how they are reached",
            remedy="--bench FILE, or bench.toml here: hwrx bench --help",
        )
    if several and (wanted.client or wanted.server):
        raise UsageError("the experiment names its hosts", remedy="leave out --client and --server")
    if wanted.hosts and not several:
        raise UsageError("an experiment of two ends takes a client and a server", remedy="--client HOST --server HOST")


def _need_no_guest(experiment: Experiment, wanted: Wanted, where: str) -> None:
    """UsageError if the experiment asks for what only a guest has."""
    instead = "a topology in a guest: --topology netns, pair or nic, without --here, --device and --peer"
    if experiment.clock == "icount":
        raise UsageError(f"the clock icount counts a guest's instructions, and {where} is none", remedy=instead)
    if experiment.kernel is not None:
        raise UsageError(
            f"the kernel '{experiment.kernel}' is for a guest, and {where} runs this machine's", remedy=instead
        )
    if experiment.boot:
        raise UsageError(f"boot is for a guest's kernel, and {where} runs this machine's", remedy=instead)
    for field in sorted(experiments.given_fields(experiment).intersection(MACHINE)):
        raise UsageError(f"{field} is what a guest is booted with, and {where} is none", remedy=instead)
    if wanted.log is not None:
        raise UsageError(f"--log takes what a guest prints, and {where} is none", remedy="leave out --log")


def _kind(experiment: Experiment, wanted: Wanted) -> str:
    """Name what the run takes place on, for sentences."""
    if wanted.explicit:
        return "what --device and --peer name"
    if experiment.topology == "here":
        return "the loopback device"
    return "a guest" if in_guest(experiment, wanted) else "this machine"


def in_guest(experiment: Experiment, wanted: Wanted) -> bool:
    """Whether a virtual machine is booted: for rxe or NICs, for another kernel, or to count instructions."""
    if wanted.explicit or wanted.here or experiment.topology == "here":
        return False
    found = topology.find_topology(experiment.topology)
    return found.where == "guest" or experiment.kernel is not None or experiment.clock == "icount"


def setting_checker(experiment: Experiment, wanted: Wanted) -> Callable[[Setting], None]:
    """Return what `experiment.plan` asks of each setting: whether its path, and this testbed, can do it.

    :raises UsageError: if the experiment names a kernel of the user's own, and there is none.
    :raises MachineError: if a kernel that needs no download cannot be booted, or the topology not put up in it.
    """
    without = _without_rxe(experiment, wanted)

    def check_setting(setting: Setting) -> None:
        paths.check_setting(setting)
        if wanted.explicit and paths.find_path(setting.path).needs == "nic":
            raise UsageError(
                f"{setting.path} drives the NICs of the topology `nic`, not what --device and --peer name",
                remedy="hwrx lab run with topology `nic`",
            )
        made = not wanted.explicit and experiment.topology in topology.TOPOLOGIES
        for needed, thing, having in (
            (paths.find_path(setting.path).needs == "verbs", "verbs devices", topology.WITH_VERBS),
            (_takes_nic(setting), "NICs that hwrx drives", topology.WITH_NICS),
        ):
            if made and needed and experiment.topology not in having:
                raise UsageError(
                    f"{setting.path} needs {thing}, and the topology {experiment.topology} has none",
                    remedy=f"--topology {' or '.join(having)}",
                )
        if without and paths.find_path(setting.path).needs == "verbs":
            raise UsageError(
                f"{setting.path} needs a verbs device, and kernel {without} has no SoftRoCE ({RXE_MODULE})"
            )
        blind = paths.find_path(setting.path).memory_alone and setting.pattern != "stream"
        if blind and experiment.clock == "icount" and experiment.topology == "nic":
            raise UsageError(
                "its receiver learns of a message by looking at memory alone; on the one CPU of a guest that counts"
                " instructions it would fill the time that the NIC holds its interrupt back (128 µs) with looks, and"
                " they would be the figure",
                remedy="rdma-write-imm, which wakes its receiver; the stream has rdma-write's own cost",
            )

    return check_setting


def _takes_nic(setting: Setting) -> bool:
    """Whether the path works on nothing but a NIC that hwrx drives; the kernel carries the frames of some, too."""
    if paths.find_path(setting.path).needs != "nic":
        return False
    return setting.link in ("nic", "uio") or not paths.reads_field(setting.path, setting.pattern, "link")


def _without_rxe(experiment: Experiment, wanted: Wanted) -> str:
    """Return the version of the guest's kernel if that has no SoftRoCE; "" if it has, or is not here yet.

    A kernel that is still to be downloaded is one of the distribution's, and is looked at when a guest boots it.
    """
    if not in_guest(experiment, wanted):
        return ""
    # as above
    from hwrx.lab import kernel, kernel_needs

    if not kernel.is_at_hand(experiment.kernel):
        return ""
    found = kernel.find_kernel(experiment.kernel)
    kernel_needs.need_bootable(found, [experiment.topology])
    return found.version if kernel_needs.missing_modules(found, [RXE_MODULE]) else ""


# --- putting it up -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_bed(
    experiment: Experiment,
    wanted: Wanted,
    say: Say = lambda stage, text: None,
    *,
    boot: Boot = LABS_OWN,
    qemu: Sequence[str] = (),
    descriptors: Sequence[int] = (),
    held: Callable[[Guest], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[Testbed]:
    """Put up what the experiment needs and yield it.

    :param say: told the stage and what is being done.
    :param boot: what a guest is booted with.
    :param qemu: more arguments for the emulator of a guest.
    :param descriptors: open files that it inherits; they stay the caller's.
    :param held: a context that a guest is within from before it boots until it has ended.
    :raises UsageError: see `check`.
    :raises MachineError: if this machine lacks something.
    :raises GuestError: if a guest does not come up.
    """
    check_wanted(experiment, wanted)
    if wanted.hosts:
        yield HostsBed(wanted.hosts)
    elif wanted.explicit:
        yield explicit_bed(wanted, experiment.setting.get("gid_index"))
    elif experiment.topology == "here":
        about = {"wire": "the loopback device"}
        yield Bed({"client": Place(), "server": Place()}, {"client": "local", "server": "local"}, about)
    elif not in_guest(experiment, wanted):
        say("topology", experiment.topology)
        with topology.build_topology(experiment.topology, **_options(experiment)) as made:
            yield Bed(made.places, made.peers, {"wire": topology.find_topology(experiment.topology).sentence})
    else:
        # as above
        from hwrx.lab import vm
        from hwrx.lab.boot import kernel_words

        words = kernel_words(boot, huge_pages="huge_pages" in experiments.given_fields(experiment))
        append, options = (*experiment.boot, *words), _options(experiment)
        if experiment.between_guests:
            with guests.guests_on_a_wire(
                traffic.hosts_of(experiment), say, boot=boot, kernel=experiment.kernel, append=append, options=options,
                log=wanted.log, held=held,
            ) as several:  # fmt: skip
                yield several
            return
        assert experiment.clock != "auto"  # settled before the plan
        guest = vm.Guest(
            experiment.topology,
            kernel=experiment.kernel,
            clock=experiment.clock,
            copies_priced=boot.copies_priced,
            append=append,
            qemu=qemu,
            descriptors=descriptors,
            options=options,
            log=wanted.log,
            progress=say,
        )
        with held(guest), guest:
            yield GuestBed(guest, boot)


def _options(experiment: Experiment) -> dict[str, Any]:
    """Return what the experiment says of the wire."""
    return {} if experiment.wire_mtu is None else {"mtu": experiment.wire_mtu}


def explicit_bed(wanted: Wanted, gid_index: int | None = None) -> Bed:
    """Return the ends that the user named: verbs devices of this machine, or one here and one at the peer.

    `gid_index`: the entry of the devices' GID tables that the user chose; sockets then share its wire.
    """
    if wanted.client or wanted.server:
        return Bed(*name_ends(wanted.client, wanted.server))
    peer = wanted.peer or "local"
    parse_environment(peer)  # refuses what is no peer before anything is started
    if len(wanted.devices) > 2 or (len(wanted.devices) == 2 and wanted.peer_device):
        raise UsageError("there are two ends, so at most two devices", remedy="give --device CLIENT[,SERVER]")
    here = wanted.devices[0] if wanted.devices else None
    there = wanted.peer_device or (wanted.devices[1] if len(wanted.devices) == 2 else None)
    if peer == "local" and here and not there:
        raise UsageError(
            "both ends on one device measure nothing of the network (rxe even hands packets over without any)",
            remedy="give two: --device CLIENT,SERVER, or --peer ssh:HOST --peer-device DEV",
        )
    client = _place(here, gid_index) if here else _without_device(wanted, peer, there)
    if here and wanted.address:
        raise UsageError(
            f"the client's address is that of a GID of {here}, so that --address {wanted.address} has no meaning",
            remedy="leave out --address; --gid-index chooses another GID (hwrx devices lists them)",
        )
    if peer == "local" and there:
        server = _place(there, gid_index)
    else:
        server = Place(address=wanted.peer_address or Place().address, verbs=there)
    need_one_family(client.address, server.address)
    about = {"wire": f"{here or 'sockets'} to {peer} {there or ''}".strip()}
    return Bed({"client": client, "server": server}, {"client": "local", "server": peer}, about)


def _without_device(wanted: Wanted, peer: str, there: str | None) -> Place:
    """Return where the client of sockets alone lives: at the address from which it reaches the peer's."""
    if wanted.peer_address is None:
        if wanted.address or not (there or peer == "local"):
            raise UsageError(
                f"the address that the server at {peer} is reached by is not given",
                remedy="--peer-address ADDRESS, or verbs devices at both ends: --device DEV --peer-device DEV",
            )
        return Place()
    return Place(address=wanted.address or own_address(wanted.peer_address))


def _place(device: str, gid_index: int | None = None) -> Place:
    """Return where a verbs device of this machine lives: its netdev and that one's address."""
    # pyverbs and pyudev: not needed where only a guest is measured
    from hwrx.verbs import devices

    found = {entry.name: entry for entry in devices.verbs_devices()}
    if device not in found:
        raise MachineError(
            f"there is no verbs device '{device}'",
            remedy=f"choose of: {', '.join(found)}" if found else "hwrx doctor says what is missing; `hwrx devices`",
        )
    return devices.place_of(found[device], gid_index)
