"""The options that describe an experiment, and what they make of its file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from hwrx.control.messages import MIX_FORMS, FrameCarrier, Pattern, XdpMode
from hwrx.control.nodes import Traffic
from hwrx.control.queue_pair import MemoryRegionKind, Registration
from hwrx.paths import PATHS
from hwrx.runs.experiment import WantedClock
from hwrx.wires import topology as topologies


class Many(click.ParamType[list[int] | list[str]]):
    """Several values in one option, separated by commas."""

    def __init__(self, kind: type[int] | type[str], metavar: str) -> None:
        self.kind = kind
        self.name = metavar

    def convert(
        self, value: str | list[int] | list[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int] | list[str]:
        """Split at commas; each part is of the wanted kind."""
        if not isinstance(value, str):
            return value
        if not value.strip(" ,"):
            self.fail(f"{value!r} names nothing", param, ctx)
        try:
            parts = [part for part in value.split(",") if part]
            return [int(part) for part in parts] if self.kind is int else parts
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers, such as 64,1400", param, ctx)


class Sizes(click.ParamType[list[int | str]]):
    """Sizes of messages: numbers, and distributions of them, whose own commas do not part them."""

    name = "BYTES|MIX,…"
    _PAIRS = re.compile(r"\d+\s*:\s*\d+(?:\s*,\s*\d+\s*:\s*\d+)*")
    _PART = re.compile(rf"\s*(file:[^,]*|{_PAIRS.pattern}|[^,(]*\([^)]*\)|[^,]+)")

    def convert(
        self, value: str | list[int | str], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int | str]:
        """Each part is a number of bytes, or what `hwrx.paths.mixes` is to make a distribution of."""
        if not isinstance(value, str):
            return value
        if not value.strip(" ,"):
            self.fail(f"{value!r} names nothing", param, ctx)
        found = [part.strip() for part in self._PART.findall(value) if part.strip()]
        parts = [re.sub(r"\s", "", part) if self._PAIRS.fullmatch(part) else part for part in found]
        for part in parts:
            if not (part.isascii() and part.isdecimal()) and not re.match(r"[A-Za-z]|\d+:", part):
                self.fail(f"{part!r} is no whole number, and no distribution: {MIX_FORMS}", param, ctx)
        return [int(part) if part.isascii() and part.isdecimal() else part for part in parts]


SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0}


class Duration(click.ParamType[float]):
    """A time, in seconds if it says nothing else."""

    name = "TIME"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A number and a unit."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(|s|ms|m)", value.strip())
        if found is None:
            self.fail(f"{value!r} is no time, such as 5s or 200ms", param, ctx)
        return float(found[1]) * SECONDS[found[2]]


class Nodes(click.ParamType[list[str]]):
    """Sets of hosts; commas belong to a set."""

    name = "HOST,…"

    def convert(self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """One set; what is in it the inventory says."""
        return [value] if isinstance(value, str) else value


class Cpus(click.ParamType[str | list[int]]):
    """The CPUs of both ends, or the word "any"."""

    name = "CLIENT[,SERVER]"

    def convert(
        self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | list[int]:
        """One or two numbers, or "any"."""
        if not isinstance(value, str) or value == "any":
            return value
        parts = value.split(",")
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not CLIENT or CLIENT,SERVER, such as 2,3, and not the word any", param, ctx)
        return [int(part) for part in parts]


SIZE_HELP = "Message sizes in bytes; or distributions: imix, 64:7,1500:1, lognormal(MEDIAN,SIGMA[,LARGEST]), file:PATH."
HUGE = "huge"  # as --mr: the name by which others know it. Sockets have huge pages, too, so the setting is huge_pages


def _take_huge(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A region in huge pages is a pinned one, whatever a file says: `_give_huge` says of which pages."""
    if value != HUGE:
        return value
    if ctx.params.get("huge_pages") is False:
        raise click.BadParameter("huge is a region in huge pages, and --no-huge-pages leaves them out", ctx, param)
    ctx.params["huge_pages"] = ctx.meta[HUGE] = True
    return "pinned"


def _give_huge(ctx: click.Context, param: click.Parameter, value: bool | None) -> bool | None:
    if ctx.meta.get(HUGE) and value is False:
        raise click.BadParameter("--mr huge is a region in huge pages", ctx, param)
    return value or ctx.meta.get(HUGE) or value


QUEUE_PAIR_OPTIONS = [
    click.option("--gid", metavar="ADDRESS|NETWORK", help="verbs: the GID that is it or lies in it: 192.0.2.0/24."),
    click.option("--traffic-class", "--tos", type=int, help="sockets, verbs: DSCP x 4 + ECN of what is sent [0]."),
    click.option("--service-level", type=int, help="verbs: 0 to 15; RoCE: the priority of a VLAN tag [0]."),
    click.option("--pkey-index", type=int, help="verbs: entry of the table of partition keys [0]."),
    click.option("--ack-timeout", type=int, help="verbs RC: send again after 4.096 µs x 2^N; 0: never [16]."),
    click.option("--retry-count", type=int, help="verbs RC: how often a lost packet is sent again [6]."),
    click.option("--connect", type=click.Choice(["pipe", "cm"]), help="verbs RC: who connects; cm: RDMA-CM [pipe]."),
    click.option("--connections", type=int, help="Of one process, a message under way on each: 1 to 1,000 [1]."),
    click.option("--srq/--no-srq", default=None, help="rdma-send, rdma-ud: connections share receive requests."),
    click.option(
        "--mr",
        type=click.Choice([*get_args(MemoryRegionKind), HUGE]),
        callback=_take_huge,
        help="verbs: kind of memory region; huge: pinned, with --huge-pages [pinned].",
    ),
    click.option(
        "--registration", type=click.Choice(get_args(Registration)), help="verbs: once, or of each message [once]."
    ),
    click.option("--rnr-retry", type=int, help="verbs RC: how often for want of a receive request; 7: ever [7]."),
]


def experiment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe an experiment, or change what a file describes."""
    options = [
        click.option("--paths", type=Many(str, "PATH,…"), help=f"Delivery paths: {', '.join(PATHS)}."),
        click.option("--size", "sizes", type=Sizes(), help=SIZE_HELP),
        click.option("--pattern", "patterns", type=Many(str, "NAME,…"), help=f"{', '.join(get_args(Pattern))}."),
        click.option("--wait", "waits", type=Many(str, "NAME,…"), help="poll, event; sockets also block, epoll, …"),
        click.option("--budget", type=float, help="Seconds that the whole run may take."),
        click.option("--messages", type=int, help="Measured messages of a trial."),
        click.option("--duration", type=Duration(), help="Measure for so long instead: 5s, 200ms."),
        click.option("--repeats", type=int, help="How often each setting is measured."),
        click.option("--rate", type=float, help="paced: messages a second."),
        click.option("--window", type=int, help="Messages that may be outstanding, where a path reads it."),
        click.option("--batch", type=int, help="Most messages in one post or receive."),
        click.option("--signal-every", type=int, help="verbs: one signalled send in so many."),
        click.option("--inline", type=int, help="verbs: send inline up to so many bytes."),
        click.option("--check-every", type=int, help="Check each N-th message to its last byte; 0: headers only."),
        click.option("--socket-buffer", type=int, help="SO_SNDBUF and SO_RCVBUF in bytes."),
        click.option(
            "--zerocopy-send/--no-zerocopy-send", default=None, help="sockets: send with MSG_ZEROCOPY, or SEND_ZC."
        ),
        click.option(
            "--zerocopy-receive/--no-zerocopy-receive", default=None, help="tcp: map pages (TCP_ZEROCOPY_RECEIVE)."
        ),
        click.option("--multishot/--no-multishot", default=None, help="udp-uring: one request receives all."),
        click.option("--threaded-napi/--no-threaded-napi", default=None, help="Poll each end's device in a thread."),
        click.option("--napi-defer-hard-irqs", type=int, help="Idle polls before interrupts are on again."),
        click.option("--gro-flush-timeout", type=int, help="Nanoseconds between such polls."),
        click.option("--mtu", type=int, help="verbs: path MTU (256, 512, 1024, 2048, 4096)."),
        click.option("--gid-index", type=int, help="verbs: which GID, instead of the one that hwrx chooses."),
        *QUEUE_PAIR_OPTIONS,
        click.option("--huge-pages/--no-huge-pages", default=None, callback=_give_huge, help="Buffers in huge pages."),
        click.option("--link", type=click.Choice(get_args(FrameCarrier)), help="roce: what carries the frames [auto]."),
        click.option("--xdp-mode", type=click.Choice(get_args(XdpMode)), help="xdp: auto: zero-copy if it can [auto]."),
        click.option("--limit", type=float, help="Seconds without any message that end a trial."),
        click.option("--clients", type=Nodes(), help="Hosts of the inventory that send: a,b or node[1-8]."),
        click.option("--servers", type=Nodes(), help="Hosts that receive [the clients]."),
        click.option("--traffic", type=click.Choice(get_args(Traffic)), help="Which of them to which [incast]."),
        click.option(
            "--clock",
            type=click.Choice(get_args(WantedClock)),
            help="icount: guest instructions; auto: those where the guest is emulated.",
        ),
        click.option("--kernel", help="Kernel of the guest: 6.12, 6.12-rt, or the path of a built tree."),
        click.option("--wire-mtu", type=int, help=f"MTU of the wire of {', '.join(topologies.WITH_MTU)} [1500]."),
        click.option("--seed", type=int, help="Seed of the order of trials."),
        click.option("--cpu", type=Cpus(), help="CPUs of the ends [of their own]; any: let the scheduler choose."),
        click.option("--numa", type=click.IntRange(0), metavar="NODE", help="NUMA node from which CPUs are taken."),
        click.option(
            "--trace/--no-trace", default=None, help="Stamp each message's stages, count time by actor (needs root)."
        ),
        click.option(
            "--anatomy/--no-anatomy", default=None, help="icount: take messages apart, each instruction and byte."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return machine_options(command)


def machine_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the axes of the machine: of several values each has a guest of its own. See `split_axes`."""
    options = [
        click.option(
            "--copies-priced", type=Many(str, "PRICE,…"), help="icount: an instruction a copied byte, or word."
        ),
        click.option("--iommu", type=Many(str, "STATE,…"), help="of the guest: off, passthrough, lazy, strict."),
        click.option("--mitigations", type=Many(str, "STATE,…"), help="of the guest's kernel: off, auto."),
        click.option("--init-on-alloc", type=Many(int, "0,1"), help="Whether the guest's kernel zeroes allocations."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def counting(file: Path | None, options: dict[str, object]) -> dict[str, object]:
    """Return options of which those without a file count instructions where a guest is emulated, as kernels need it."""
    return {**options, "clock": "auto"} if file is None and options.get("clock") is None else options
