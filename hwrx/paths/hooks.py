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
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools

if TYPE_CHECKING:
    from cython_ext.bpf_reader import Reader

SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35  # asm-generic/socket.h
ETH_P_ALL = 3
XDP_GENERIC = 2  # XDP_FLAGS_SKB_MODE
CGROUPS = Path("/sys/fs/cgroup")

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
    from cython_ext.bpf_reader import Reader
    from cython_ext.tracer import LoadError
    from hwrx import stages
    from hwrx.probes import attaching, build

    attaching.require_tracer()
    try:
        return stack.enter_context(Reader(build.find_or_build(stages.stage_header(), "hooks"), b""))
    except build.BuildError as error:
        raise MachineError(str(error), remedy=error.remedy) from None
    except LoadError as error:
        raise MachineError(f"the kernel refuses the hook's program: {attaching.last_word(error.said)}") from None


def _xdp(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    try:
        _reader(stack).attach_xdp("pass_frame", socket.if_nametoindex(netdev), XDP_GENERIC)
    except OSError as error:
        raise MachineError(f"no XDP program can be put on {netdev}: {error.strerror}") from None
    stack.callback(tools.run_tool, "ip", "link", "set", netdev, "xdpgeneric", "off")


def _rps(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    file = f"class/net/{netdev}/queues/rx-0/rps_cpus"
    in_own_sysfs(f"echo {sum(1 << cpu for cpu in os.sched_getaffinity(0)):x} > {file}")
    stack.callback(in_own_sysfs, f"echo 0 > {file}")


def in_own_sysfs(command: str) -> str:
    """Run a shell command in a sysfs that shows this network namespace's devices, as its working directory.

    The one on /sys may show those of another namespace, and a device of the same name among them. The mount is the
    shell's own and goes with it.
    """
    return tools.run_tool("unshare", "--mount", "sh", "-c", f"mount -t sysfs sysfs /mnt && cd /mnt && {command}")


def _gro(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    # GRO leaves datagrams for this machine's own sockets alone, and a veth does not even poll for them
    # (veth_skb_is_eligible_for_gro), unless it is told to join those too
    words = ("gro", "rx-udp-gro-forwarding")
    tools.run_tool("ethtool", "-K", netdev, words[0], "on", words[1], "on")
    stack.callback(tools.run_tool, "ethtool", "-K", netdev, words[1], "off", words[0], "off")


def _tap(device: str | None) -> Put:
    def put(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
        tap = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        # nobody reads it; with room for all, each frame is cloned and queued, as for a tcpdump that keeps up
        tap.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)
        tap.bind((device or netdev, ETH_P_ALL))

    return put


def _tc(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    tools.run_tool("tc", "qdisc", "add", "dev", netdev, "clsact")
    stack.callback(tools.run_tool, "tc", "qdisc", "delete", "dev", netdev, "clsact")
    tools.run_tool("tc", "filter", "add", "dev", netdev, "ingress", "matchall", "action", "ok")


def _netfilter(hook: str) -> Put:
    def put(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
        table = f"hwrx_{hook}_{os.getpid()}"
        rules = (
            f"table ip {table} {{\nchain c {{\ntype filter hook {hook} priority 0\nudp dport 1-65535 accept\n}}\n}}\n"
        )
        tools.run_tool("nft", "-f", "-", given=rules)
        stack.callback(tools.run_tool, "nft", "delete", "table", "ip", table)

    return put


def _cgroup(sock: socket.socket, netdev: str, stack: contextlib.ExitStack) -> None:
    if not (CGROUPS / "cgroup.procs").exists():
        raise MachineError(f"no second cgroup hierarchy is mounted on {CGROUPS}")
    descriptor = os.open(CGROUPS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _reader(stack).attach_cgroup("pass_packet", descriptor)
    except OSError as error:
        raise MachineError(f"no program can be put on the cgroup: {error.strerror}") from None
    finally:
        os.close(descriptor)


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
    Hook("tc", "traffic control, ingress", "frame and metadata", "change, drop, redirect, police", _tc),
    Hook("pre-routing", "netfilter, before routing", "packet, device", "change, drop, track", _netfilter("prerouting")),
    Hook("forward", "netfilter, of packets that pass through", "-", "-", _netfilter("forward"), works=False),
    Hook("local-in", "netfilter, behind routing", "packet, device, route", "drop, track", _netfilter("input")),
    Hook("cgroup", "cgroup BPF, when the socket is known", "packet, socket", "drop, count", _cgroup, once=True),
    Hook("socket-filter", "the socket's classic filter", "packet from UDP on", "drop, shorten", _socket_filter),
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
