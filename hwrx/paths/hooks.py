"""Places on a packet's way in where one can look at it or change it: the catalogue, and switching one on for a trial.

In the order of the way. A hook is put on the device, the namespace or the socket of a trial's end and taken away with
its socket. Each does the least that it can do: it lets the packet pass. So what it costs is what being asked costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from hwrx import stages
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.own_sysfs import in_own_sysfs, own_sysfs_command
from hwrx.host.undo import Undo
from hwrx.probes import cgroups

if TYPE_CHECKING:
    from cython_ext.bpf.bpf_reader import Reader

SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35  # asm-generic/socket.h
ETH_P_ALL = 3
XDP_GENERIC = 2  # XDP_FLAGS_SKB_MODE

Put = Callable[[socket.socket, str, contextlib.ExitStack], None]


class Hook(Struct, frozen=True):
    """One hook. `sees` is what may be read there, `may` what may be done. `works`: whether it has work with each
    message; one that has none shows what a hook costs that is on and not used. `once`: it serves the whole machine, so
    only one end puts it up."""

    name: str
    where: str
    sees: str
    may: str
    put: Put
    works: bool = True
    once: bool = False


def _reader(stack: contextlib.ExitStack) -> Reader:
    # an endpoint in an emulated guest starts without BPF: few trials have a hook that is a program
    from cython_ext.bpf.bpf_reader import Reader
    from cython_ext.bpf.tracer import LoadError
    from hwrx.probes import attaching, build

    attaching.require_tracer()
    try:
        return stack.enter_context(Reader(build.find_or_build(stages.stage_header(), "hooks"), b""))
    except build.BuildError as error:
        raise MachineError(str(error), remedy=error.remedy) from None
    except LoadError as error:
        raise MachineError(f"the kernel refuses the hook's program: {attaching.last_word(error.said)}") from None


def _planned(stack: contextlib.ExitStack, what: str, *undoes: str) -> None:
    """Have a command undo a hook when the stack is closed, and after us if we are killed: said before it is put up."""
    stack.enter_context(Undo(what)).plan(*undoes)


def _xdp(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    if "prog/xdp" in tools.run_tool("ip", "link", "show", "dev", netdev):
        raise MachineError(
            f"there is an XDP program on {netdev} already, which is not ours", remedy="take it away, or another device"
        )
    reader = _reader(stack)
    _planned(stack, f"an XDP program on {netdev}", "ip", "link", "set", netdev, "xdpgeneric", "off")
    try:
        reader.attach_xdp("pass_frame", socket.if_nametoindex(netdev), XDP_GENERIC)
    except OSError as error:
        raise MachineError(f"no XDP program can be put on {netdev}: {error.strerror}") from None


def _rps(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    file = f"class/net/{netdev}/queues/rx-0/rps_cpus"
    before = in_own_sysfs(f"cat {file}").strip()
    _planned(stack, f"RPS of {netdev}", *own_sysfs_command(f"echo {before} > {file}"))
    in_own_sysfs(f"echo {sum(1 << cpu for cpu in os.sched_getaffinity(0)):x} > {file}")


def _gro(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    # GRO leaves datagrams for this machine's own sockets alone, and a veth does not even poll for them
    # (veth_skb_is_eligible_for_gro), unless it is told to join those too
    features = {"generic-receive-offload": "gro", "rx-udp-gro-forwarding": "rx-udp-gro-forwarding"}
    said = dict(line.split(":", 1) for line in tools.run_tool("ethtool", "-k", netdev).splitlines() if ":" in line)
    before = [
        word for long, short in features.items() if long in said for word in (short, said[long].split()[0])
    ]  # fmt: skip
    _planned(stack, f"GRO of {netdev}", "ethtool", "-K", netdev, *before)
    tools.run_tool("ethtool", "-K", netdev, *(word for short in features.values() for word in (short, "on")))


def _tap(device: str | None) -> Put:
    def put(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
        tap = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        # nobody reads it; with room for all, each frame is cloned and queued, as for a tcpdump that keeps up
        tap.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)
        tap.bind((device or netdev, ETH_P_ALL))

    return put


def _tc(direction: str) -> Put:
    def put(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
        _put_filter(netdev, direction, stack)

    return put


def _put_filter(netdev: str, direction: str, stack: contextlib.ExitStack) -> None:
    if "clsact" in tools.run_tool("tc", "qdisc", "show", "dev", netdev):
        raise MachineError(
            f"{netdev} has filters of traffic control already, which are not ours",
            remedy=f"tc qdisc delete dev {netdev} clsact, or another device",
        )
    _planned(stack, f"traffic control of {netdev}", "tc", "qdisc", "delete", "dev", netdev, "clsact")
    tools.run_tool("tc", "qdisc", "add", "dev", netdev, "clsact")
    tools.run_tool("tc", "filter", "add", "dev", netdev, direction, "matchall", "action", "ok")


def _netfilter(hook: str) -> Put:
    def put(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
        table = f"hwrx_{hook}_{os.getpid()}"
        rules = (
            f"table ip {table} {{\nchain c {{\ntype filter hook {hook} priority 0\nudp dport 1-65535 accept\n}}\n}}\n"
        )
        _planned(stack, f"the nft table {table}", "nft", "delete", "table", "ip", table)
        tools.run_tool("nft", "-f", "-", given=rules)

    return put


def _cgroup(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    with cgroups.opened_root() as descriptor:
        try:
            _reader(stack).attach_cgroup("pass_packet", descriptor)
        except OSError as error:
            raise MachineError(f"no program can be put on the cgroup: {error.strerror}") from None


def _socket_filter(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    # one classic instruction: return 0x40000, "take so many bytes of it"
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x40000))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _timestamp(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def _nothing(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    """Put up nothing."""


HOOKS: tuple[Hook, ...] = (
    Hook("none", "-", "-", "-", _nothing, works=False),
    Hook("rps", "in front of the stack (get_rps_cpu)", "the flow's hash", "choose the CPU; the backlog is taken", _rps),
    Hook("gro", "in the poll (napi_gro_receive)", "headers, and the packets before", "join packets of one flow", _gro),
    Hook("xdp", "generic XDP, in front of all protocols", "the frame", "change, drop, send back, redirect", _xdp),
    Hook("tap", "AF_PACKET, in front of tc and netfilter", "the frame, as a clone", "look; nothing else", _tap(None)),
    Hook("tap-elsewhere", "AF_PACKET on another device", "nothing of ours", "-", _tap("lo"), works=False),
    Hook("tc", "traffic control, ingress", "frame and metadata", "change, drop, redirect, police", _tc("ingress")),
    Hook("pre-routing", "netfilter, before routing", "packet, device", "change, drop, track", _netfilter("prerouting")),
    Hook("forward", "netfilter, of packets that pass through", "-", "-", _netfilter("forward"), works=False),
    Hook("local-in", "netfilter, behind routing", "packet, device, route", "drop, track", _netfilter("input")),
    Hook("cgroup", "cgroup BPF, when the socket is known", "packet, socket", "drop, count", _cgroup, once=True),
    Hook("socket-filter", "the socket's classic filter", "packet from UDP on", "drop, shorten", _socket_filter),
    Hook("local-out", "netfilter, on the way out, routed", "packet, device", "change, drop", _netfilter("output")),
    Hook("post-routing", "netfilter, last on the way out", "packet, device", "change, drop", _netfilter("postrouting")),
    Hook("tc-egress", "traffic control, egress", "frame, metadata", "change, drop, redirect", _tc("egress")),
    Hook("timestamp", "at the device, and at recvmsg", "time of arrival", "look; nothing else", _timestamp),
)
BY_NAME = {hook.name: hook for hook in HOOKS}


def find_hook(name: str) -> Hook:
    """Return the hook called `name`; UsageError names the ones that exist."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise UsageError(f"there is no hook '{name}'", remedy=f"choose of: {', '.join(BY_NAME)}") from None


def put_hook(name: str, sock: socket.socket, netdev: str | None, stack: contextlib.ExitStack, *, first: bool) -> None:
    """Switch a hook on for the end that `sock` is bound at, until `stack` is closed. `first`: of the trial's ends."""
    hook = find_hook(name)
    if hook.once and not first:
        return
    if netdev is None:
        raise UsageError(f"the hook '{name}' needs a device to be put on", remedy="use the topology netns or pair")
    tools.need_root(f"the hook '{name}'")
    hook.put(sock, netdev, stack)
