"""Making RDMA's places drop messages: on a pair of SoftRoCE devices, in this namespace.

What rxe turns away (no queue pair, wrong ICRC) is a packet that was made by hand. A datagram for which there is no
receive request is told by nobody: neither by its sender's completion, nor by a counter of the device. What a reliable
connection gives up is told by the sender's own completion: the work request that failed, and all that were posted
behind it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

from hwrx.control.messages import ENDS, Pattern, Prepare, Role, Setting
from hwrx.control.places import Place
from hwrx.drops.books import Balance, Books, Told
from hwrx.drops.scene import Scene
from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.paths.verbs_port import open_port
from hwrx.wires import topology

if TYPE_CHECKING:
    from cython_ext.verbs.rc import RcSendTransport
    from cython_ext.verbs.verbs_path import VerbsTransport
    from hwrx.paths import verbs_end

    End = TypeVar("End", bound=VerbsTransport)

PORT = 4791  # RoCE v2
SIZE = 64
ROUND = 4096  # messages posted to one queue pair before it fails
RECEIVES = 4  # that the receiver which runs out of them posts
NOBODY = 0xFFFFFE  # a queue pair number that no device of ours hands out
UD_SEND_ONLY, PKEY = 0x64, 0xFFFF
# An acknowledgement may be long in coming, but that a buffer lacks is said at once; on a dead wire nothing is.
ONE_MORE_ASKING = {"rnr_retry": 1}
ONE_MORE_TRY = {"timeout": 8, "retry_count": 1}  # after a millisecond


class Words(TypedDict, total=False):
    """What these trials set of a `Setting`."""

    pattern: Pattern
    messages: int
    rate: float
    receives: int
    window: int


def _prepare(role: Role, trial: int, path: str, **setting: Unpack[Words]) -> Prepare:
    ends = {
        end: Place(address=topology.ADDRESSES[end], netdev=topology.LINKS[end], verbs=topology.DEVICES[end])
        for end in ENDS
    }
    other: Role = "server" if role == "client" else "client"
    wanted = Setting(size=SIZE, warmup=0, cooldown=0, check_every=0, path=path, **setting)
    return Prepare(trial=trial, role=role, setting=wanted, here=ends[role], there=ends[other])


def _open(kind: type[End], prepare: Prepare) -> End:
    """Make one end of a verbs path, at its own device."""
    return kind(prepare, open_port(prepare, topology.DEVICES[prepare.role]))


# --- packets that rxe turns away --------------------------------------------------------------------------------------


def roce_packet(qpn: int, qkey: int, psn: int, message: bytes) -> bytes:
    """Return a RoCE datagram for a UD queue pair, from BTH to ICRC; the ICRC is wrong."""
    bth = struct.pack(">BBHII", UD_SEND_ONLY, 0, PKEY, qpn, psn & 0xFFFFFF)
    deth = struct.pack(">II", qkey, 1)
    return bth + deth + message + bytes(4)


def send_to(scene: Scene, qpn: int, qkey: int) -> None:
    """Let a scene send such packets instead of datagrams."""
    from cython_ext.core import payload
    from cython_ext.frames.packet import udp_frame, udp_template

    template = udp_template(
        topology.HARDWARE["client"], topology.HARDWARE["server"], topology.ADDRESSES["client"],
        topology.ADDRESSES["server"], PORT, PORT,
    )  # fmt: skip
    scene.raw()
    scene.make = lambda message: udp_frame(template, roce_packet(qpn, qkey, payload.sequence(message), message))


def no_queue_pair(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    """Send to a queue pair that does not exist."""
    send_to(scene, NOBODY, 0)


def wrong_icrc(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    """Send to one that does, with a wrong ICRC."""
    from cython_ext.verbs.ud import UdSendTransport
    from cython_ext.verbs.verbs_queue import QKEY

    ends = []
    for role in ENDS:
        end = _open(UdSendTransport, _prepare(role, scene.trial, path="rdma-ud"))
        stack.callback(end.close)
        ends.append(end)
    client, server = ends
    client.connect(server.describe())
    server.connect(client.describe())
    send_to(scene, server.qp.number, QKEY)


# --- datagrams that nobody has asked for ------------------------------------------------------------------------------


def send_unasked(books: Books, messages: int, trial: int) -> Balance:
    """Send datagrams to a queue pair that has a few receive requests, posts no more, and reads nothing meanwhile."""
    from cython_ext.loops import flood
    from cython_ext.verbs.ud import UdSendTransport

    setting: Words = {"pattern": "paced", "rate": 1.0, "messages": messages, "receives": RECEIVES}
    with contextlib.ExitStack() as stack:
        client, server = (
            stack.enter_context(
                contextlib.closing(_open(UdSendTransport, _prepare(end, trial, path="rdma-ud", **setting)))
            )
            for end in ENDS
        )
        client.connect(server.describe())
        server.connect(client.describe())
        wave = flood.Wave(messages=messages, size=SIZE, trial=trial, batch=16)
        status = flood.send(wave, [client], 0.0, 0)
        if status < 0:
            raise MachineError(f"datagrams cannot be sent: {client.explain(status)}")
        books.settle()
        return books.close(wave.posted, server.arrived())


# --- messages that a reliable connection gives up ---------------------------------------------------------------------


def given_up(place: str, books: Books, messages: int, trial: int, told: Told) -> Balance:
    """Post so many messages to queue pairs that fail, one after the other, and balance what became of them."""
    from cython_ext.verbs.verbs_device import WC_STATUS

    spoil, status, patience = GIVEN_UP[place]
    sent = delivered = unmet = 0
    while sent < messages:
        with spoil() as few:
            posted, arrived, failure = _round(min(ROUND, messages - sent), trial, few, patience)
        sent += posted
        delivered += arrived
        if failure is None or failure[0] != WC_STATUS[status]:
            raise MachineError(f"the queue pair was to fail with {status}, and did not: {failure}")
        unmet += failure[1]
        told(sent)
    return books.close(sent, delivered, {place: unmet})


def _round(messages: int, trial: int, few: bool, patience: dict[str, int]) -> tuple[int, int, tuple[int, int] | None]:
    """One connection: what was posted, what arrived, and how it failed. `few`: the receiver has few buffers."""
    from cython_ext.core.trial import Trial
    from cython_ext.loops import loop

    window: Words = {"pattern": "pingpong", "window": RECEIVES} if few else {"pattern": "stream", "window": 64}
    kind = _impatient(patience)
    receive = _prepare("server", trial, path="rdma-send", **window)
    stream = _prepare("client", trial, path="rdma-send", pattern="stream", messages=messages, window=messages)
    with (
        contextlib.closing(_open(kind, stream)) as client,
        contextlib.closing(_open(kind, receive)) as server,
    ):
        client.connect(server.describe())
        server.connect(client.describe())
        trial_of = Trial(messages=messages, size=SIZE, trial=trial, batch=16, limit_ns=10_000_000_000)
        loop.run(trial_of, client, "stream", "client")
        return trial_of.counts()["posted"], server.arrived(), client.failure()


def _impatient(patience: dict[str, int]) -> type[RcSendTransport]:
    from cython_ext.verbs.rc import RcSendTransport

    class Impatient(RcSendTransport):
        """Gives up soon."""

        def _connect(self, there: verbs_end.End) -> None:
            self.qp.connect(
                psn=self.end.psn, remote_psn=there.psn, remote_qpn=there.qpn, mtu=self.path_mtu,
                gid_index=self.gid.number, remote_gid=bytes.fromhex(there.gid), **patience,
            )  # fmt: skip

    return Impatient


@contextlib.contextmanager
def _few_buffers() -> Iterator[bool]:
    yield True


@contextlib.contextmanager
def _dead_wire() -> Iterator[bool]:
    """The wire loses everything, so that nothing is acknowledged."""
    qdisc = ("tc", "qdisc")
    device = ("dev", topology.LINKS["client"], "root")
    tools.run_tool(*qdisc, "add", *device, "netem", "loss", "100%")
    try:
        yield False
    finally:
        tools.run_tool(*qdisc, "delete", *device)


Spoil = Callable[[], contextlib.AbstractContextManager[bool]]
GIVEN_UP: dict[str, tuple[Spoil, str, dict[str, int]]] = {
    "rnr": (_few_buffers, "IBV_WC_RNR_RETRY_EXC_ERR", ONE_MORE_ASKING),
    "retry-exceeded": (_dead_wire, "IBV_WC_RETRY_EXC_ERR", ONE_MORE_TRY),
}
UNASKED = "no-receive"
TURNED_AWAY = {"rxe-no-qp": no_queue_pair, "rxe-icrc": wrong_icrc}
