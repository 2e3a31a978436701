"""The verbs paths: what a setting may be, and one end of one, in words where it cannot be had."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, TypedDict, Unpack

from hwrx.errors import MachineError, UsageError
from hwrx.paths import napi
from hwrx.paths.model import CONNECTIONS, MIXED, POLLED, Flooding, Look, Path
from hwrx.paths.verbs_end import choose_device, gid_network
from hwrx.paths.verbs_memory import check_memory
from hwrx.paths.verbs_port import open_port
from hwrx.verbs.rxe import VERBS

if TYPE_CHECKING:
    from cython_ext.verbs.verbs_path import VerbsTransport
    from hwrx.control.messages import Pattern, Prepare, Role, Setting

_QUEUE_PAIR = frozenset(
    {
        "window", "mtu", "gid", "gid_index", "traffic_class", "service_level", "pkey_index", "huge_pages", "mr",
        "senders", "netem",
    }
) | POLLED  # fmt: skip
_CONNECTED = frozenset({"ack_timeout", "retry_count", "rnr_retry", "connect"})  # RC: UD sends nothing again
_SENDING = frozenset({"signal_every", "inline", "registration"})
_RECEIVING = frozenset({"receives", "completions"})
_PASSIVE = "nobody receives: its sender asks for what comes, and has no more under way than its window"


class _More(TypedDict, total=False):
    """Fields of a Path that not all verbs paths have."""

    stream_seen_by: Role
    memory_alone: bool
    full_rtt: bool
    flooding: Flooding
    unflooded: str
    reads_in: dict[Pattern, frozenset[str]]


def _path(
    name: str, sentence: str, look: Look, reads: frozenset[str], way: str | None = None, **more: Unpack[_More]
) -> Path:
    atomic = way == "rdma-atomic"
    return Path(
        name=name,
        needs="verbs",
        sentence=sentence,
        way=way or name,
        look=look,
        reads=reads,
        copied_in=() if atomic else ("rxe_mr_copy from MR",),
        copied_out="do_atomic" if atomic else "rxe_mr_copied",
        **more,
    )


PATHS = (
    _path(
        "rdma-send",
        "RC SEND into a posted, pinned receive buffer",
        Look("#d55e00", "^", (0, (3, 1, 1, 1))),
        _QUEUE_PAIR | MIXED | _CONNECTED | _SENDING | _RECEIVING,
        flooding=Flooding(stops=True),
        reads_in={"pingpong": CONNECTIONS | {"srq"}},
    ),
    _path(
        "rdma-write",
        "RC WRITE into the peer's pinned buffer; the receiver polls memory",
        Look("#b98200", "D", (0, (1, 1))),
        _QUEUE_PAIR
        | MIXED
        | _CONNECTED
        | _SENDING
        | {"receives"},  # the slots to write to; no completions are received
        stream_seen_by="client",
        memory_alone=True,
        flooding=Flooding(),
        reads_in={"stream": CONNECTIONS},  # one-sided: its completion says that a message is there, and no answer does
    ),
    _path(
        "rdma-write-imm",
        "RC WRITE with immediate: as rdma-write, and the receiver gets a CQE",
        Look("#a0622f", "v", (0, (6, 1, 1, 1, 1, 1))),
        _QUEUE_PAIR | MIXED | _CONNECTED | _SENDING | _RECEIVING,
        unflooded="it takes a receive request for each message, and ends as rdma-send does",
    ),
    _path(
        "rdma-read",
        "RC READ from the peer's pinned buffer (full round trip)",
        Look("#cf5fa0", "P", (0, (2, 2))),
        # every READ is signalled, carries nothing out and takes no receive request
        _QUEUE_PAIR | MIXED | _CONNECTED | {"registration"},
        full_rtt=True,
        stream_seen_by="client",
        unflooded=_PASSIVE,
        reads_in={"pingpong": CONNECTIONS},
    ),
    _path(
        "rdma-fetch-add",
        "RC fetch-and-add on 8 bytes of the peer's memory (full round trip)",
        Look("#3f7f5f", "+", (0, (4, 1, 1, 1, 1, 1))),
        _QUEUE_PAIR | _CONNECTED,
        way="rdma-atomic",
        full_rtt=True,
        stream_seen_by="client",
        unflooded=_PASSIVE,
        reads_in={"pingpong": CONNECTIONS},
    ),
    _path(
        "rdma-cas",
        "RC compare-and-swap on 8 bytes of the peer's memory (full round trip)",
        Look("#8a6d1d", "x", (0, (2, 1, 4, 1))),
        _QUEUE_PAIR | _CONNECTED,
        way="rdma-atomic",
        full_rtt=True,
        stream_seen_by="client",
        unflooded=_PASSIVE,
        reads_in={"pingpong": CONNECTIONS},
    ),
    _path(
        "rdma-ud",
        "UD SEND: unconnected datagrams between queue pairs, may be lost",
        Look("#8e63c7", "X", (0, (4, 3))),
        _QUEUE_PAIR | MIXED | _SENDING | _RECEIVING,
        way="rdma-send",
        flooding=Flooding(datagrams=True),
        reads_in={"pingpong": CONNECTIONS | {"srq"}},
    ),
)
# path -> module of cython_ext.verbs, class
TRANSPORTS = {
    "rdma-send": ("rc", "RcSendTransport"),
    "rdma-write": ("rc_write", "RcWriteTransport"),
    "rdma-write-imm": ("rc", "RcWriteImmTransport"),
    "rdma-read": ("rc", "RcReadTransport"),
    "rdma-fetch-add": ("rc_atomic", "RcAtomicTransport"),
    "rdma-cas": ("rc_atomic", "RcAtomicTransport"),
    "rdma-ud": ("ud", "UdSendTransport"),
}
# the same with several connections, of the paths that read that
MANY = {
    "rdma-send": ("many_pairs", "ManyPairsTransport"),
    "rdma-write": ("many_pairs", "ManyPairsTransport"),
    "rdma-read": ("many_pairs", "ManyPairsTransport"),
    "rdma-fetch-add": ("many_atomics", "ManyAtomicsTransport"),
    "rdma-cas": ("many_atomics", "ManyAtomicsTransport"),
    "rdma-ud": ("many_datagrams", "ManyDatagramsTransport"),
}
WAITS = ("poll", "event")
LARGEST_MTU = 4096
ATOMIC = 8  # bytes


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be on any device; what a device cannot is said when it is opened."""
    if setting.wait not in WAITS:
        raise UsageError(
            f"{setting.path} cannot wait by '{setting.wait}'",
            remedy="poll, or event (asleep on a completion channel)",
        )
    if setting.pattern == "paced" and setting.rate is None:
        raise UsageError("paced needs a rate in messages a second", remedy="set rate")
    if setting.gid is not None:
        gid_network(setting.gid)
        if setting.gid_index is not None:
            raise UsageError("gid and gid_index both say which GID is used", remedy="give one of them")
    if setting.connect == "cm" and setting.gid_index is not None:
        raise UsageError(
            "RDMA-CM chooses the GID by the address, so that gid_index says nothing of the one that is used",
            remedy="--gid ADDRESS, or connect by the pipe",
        )
    if setting.connect == "cm" and setting.connections > 1:
        raise UsageError(
            "RDMA-CM connects one queue pair here, not one for each of several connections",
            remedy="connections = 1, or connect by the pipe",
        )
    if not setting.srq and setting.connections == 1:
        raise UsageError(
            "a receive queue is shared by several connections, or not: one has a queue of its own",
            remedy="--connections 100, say, or leave srq out",
        )
    if setting.path in ("rdma-fetch-add", "rdma-cas") and setting.size != ATOMIC:
        raise UsageError(f"an atomic is of {ATOMIC} bytes, not {setting.size}", remedy=f"--size {ATOMIC}")
    check_memory(setting)
    if setting.path == "rdma-ud" and setting.size > LARGEST_MTU:
        raise UsageError(
            f"a UD datagram carries at most the MTU, which is {LARGEST_MTU} bytes or less, not {setting.size}",
            remedy="a smaller size, or rdma-send",
        )


def preload_endpoints() -> None:
    """Import what endpoints need, so that whoever is forked from this process has it.

    To list the devices loads the drivers' libraries (`load_drivers` of libibverbs), of which a distribution has twenty.
    """
    from cython_ext.verbs.verbs_device import device_names

    for module in dict.fromkeys(module for module, _ in (*TRANSPORTS.values(), *MANY.values())):
        importlib.import_module(f"cython_ext.verbs.{module}")
    device_names()


def open_endpoint(prepare: Prepare) -> VerbsTransport:
    """Return one end of a trial, its queue pair in INIT and its buffers pinned; the caller closes it."""
    check_setting(prepare.setting)
    try:
        from cython_ext.verbs.verbs_device import device_names

        kinds = MANY if prepare.setting.connections > 1 else TRANSPORTS
        module, name = kinds[prepare.setting.path]
        transport = getattr(importlib.import_module(f"cython_ext.verbs.{module}"), name)
    except ImportError as error:
        raise MachineError(
            f"the verbs library cannot be used: {error}",
            remedy="apt install libibverbs1 ibverbs-providers (libibverbs-dev before hwrx is built)",
        ) from error
    device = choose_device(prepare.here, device_names())
    # rxe and siw name the netdev that they stand on
    if napi.asked_of_napi(prepare.setting) and not (VERBS / device / "parent").exists():
        raise MachineError(
            f"what {device} receives passes the kernel's NAPI by, so how that polls says nothing of it",
            remedy="leave threaded_napi, napi_defer_hard_irqs and gro_flush_timeout out, or use an rxe device",
        )
    endpoint: VerbsTransport = transport(prepare, open_port(prepare, device))
    return endpoint
