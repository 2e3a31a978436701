"""The catalogue: every stage that a message passes on its way, in packet order, and how to probe it.

One enumeration serves every path; the numbers go into the BPF programs at build time (`header()`), so Python and C
cannot disagree. Names are the kernel's own (function, tracepoint or netfilter hook) wherever the kernel has one.
Standard library only: the build imports this file by itself.

A stage is in the *chain* when it stamps a message once, in packet order, so that differences of neighbouring stamps add
up to the one-way time. Stages outside of the chain count bytes (extra copies, passes) or have no probe that can be tied
to one message; `why_not` then says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["sender", "wire", "receiver"]
Actor = Literal["user thread", "softirq", "hard IRQ", "kernel worker", "device", "kernel"]
Kind = Literal["user", "tp_btf", "fentry", "fexit", "netfilter", "cgroup_skb", "none"]
Handling = Literal["", "copied", "passed", "DMA"]

UDP = frozenset({"udp"})
TCP = frozenset({"tcp"})
SOCKETS = UDP | TCP
SEND = frozenset({"rdma-send", "rdma-ud"})
IMM = frozenset({"rdma-write-imm"})
WRITE = frozenset({"rdma-write"})
READ = frozenset({"rdma-read"})
VERBS = SEND | IMM | WRITE | READ
KERNEL = SOCKETS | VERBS  # what crosses the kernel's stack where the HCA is rxe
NIC = frozenset({"nic-ring", "nic-pio"})
RINGS = frozenset({"packet-ring", "xdp"})
HCA = frozenset({"hca"})  # a hardware verbs device: the kernel takes no part
ALL = KERNEL | NIC | RINGS | HCA


@dataclass(frozen=True)
class Probe:
    """One way of stamping a stage.

    `programs` are BPF programs of the object that belong together (IPv4 and IPv6, or the system calls of a family); the
    probe works when one of them does. `along` are loaded with them (the exit that ends what an entry began). `stand_in`
    says what is really measured where that is not the stage itself. A `fallback` is for kernels that let no function be
    probed; elsewhere it would only add to what is measured.
    """

    kind: Kind
    target: str
    programs: tuple[str, ...] = ()
    stand_in: str = ""
    along: tuple[str, ...] = ()
    fallback: bool = False


@dataclass(frozen=True)
class Stage:
    """A point that a message passes.

    `unless` names the condition under which a message legitimately skips it ("" = every message passes), on all paths
    or on those of `unless_on`. `last` takes the last of several stamps (a message of many packets has arrived with its
    last one), otherwise the first counts.
    `handles` says what happens to the payload's bytes there, if anything.
    """

    name: str
    sentence: str
    side: Side
    actor: Actor
    paths: frozenset[str]
    probes: tuple[Probe, ...] = ()
    unless: str = ""
    unless_on: frozenset[str] | None = None
    last: bool = False
    chain: bool = True
    handles: Handling = ""
    why_not: str = ""
    number: int = field(default=0, compare=False)

    def conditional(self, path: str) -> bool:
        """Whether a message of this path may legitimately skip the stage."""
        return bool(self.unless) and (self.unless_on is None or path in self.unless_on)

    @property
    def ident(self) -> str:
        """The name as a C constant: STAGE_IP_RCV."""
        return "STAGE_" + "".join(c if c.isalnum() else "_" for c in self.name).upper().strip("_")


def _tp(target: str, program: str, stand_in: str = "") -> Probe:
    return Probe("tp_btf", target, (program,), stand_in)


def _entry(target: str, *programs: str, stand_in: str = "") -> Probe:
    return Probe("fentry", target, programs, stand_in)


def _exit(target: str, *programs: str, stand_in: str = "") -> Probe:
    return Probe("fexit", target, programs, stand_in)


def _hook(target: str, *programs: str, stand_in: str = "") -> Probe:
    return Probe("netfilter", target, programs, stand_in, fallback=True)


_USER = (Probe("user", "CLOCK_MONOTONIC"),)
_DEVICE = "it happens inside the device; only its counters tell"
_OWN = "it happens inside the endpoint's own loop, which no kernel probe sees; lab/bench/nic takes its cost apart"
_SHARED = "one run serves many messages and does not know which"

_CATALOGUE: tuple[Stage, ...] = (
    # --- the sender -------------------------------------------------------------------------------------------------
    Stage(
        "intended",
        "the time at which an open loop meant to send, which is where its latency starts",
        "sender",
        "user thread",
        ALL,
        _USER,
        unless="the pattern is not paced",
    ),
    Stage("posted", "user space is about to hand the message over", "sender", "user thread", ALL, _USER),
    Stage(
        "sys_enter send",
        "the send system call has been entered: user mode is left",
        "sender",
        "user thread",
        SOCKETS,
        (_entry("__sys_sendto, __sys_sendmsg", "sys_sendto__fentry", "sys_sendmsg__fentry", "sys_sendmmsg__fentry"),),
        unless="the call carries several messages, or none that starts at its first byte",
    ),
    Stage(
        "rxe_post_send",
        "the doorbell: on rxe a system call tells the driver that work requests wait in the send queue",
        "sender",
        "user thread",
        VERBS - READ,
        (_entry("rxe_post_send", "rxe_post_send__fentry"),),
        unless="rxe was already at work on the queue when the request was posted",
    ),
    Stage(
        "ip_generic_getfrag",
        "the payload has been copied from the user's memory into the skb",
        "sender",
        "user thread",
        UDP,
        (_exit("ip_generic_getfrag", "ip_generic_getfrag__fexit"),),
        last=True,
        handles="copied",
    ),
    Stage(
        "tcp_write_xmit",
        "TCP, with the bytes copied into its send queue, starts to transmit what window and congestion control allow",
        "sender",
        "user thread",
        TCP,
        (_entry("tcp_write_xmit", "tcp_write_xmit__fentry"),),
        unless="the segment was sent later, by an incoming ACK or a timer",
    ),
    Stage(
        "rxe_mr_copy from MR",
        "rxe's stand-in for the HCA's DMA engine has copied the payload from the registered memory into the skb",
        "sender",
        "kernel",
        VERBS,
        (_exit("rxe_mr_copy", "rxe_mr_copy__fexit"),),
        unless="the payload was posted inline",
        handles="copied",
    ),
    Stage(
        "rxe_xmit_packet",
        "the packet is complete and rxe hands it on",
        "sender",
        "kernel",
        VERBS,
        (_entry("rxe_xmit_packet", "rxe_xmit_packet__fentry"),),
    ),
    Stage(
        "rxe_icrc_generate",
        "the CPU has read the whole payload to compute the ICRC that an HCA computes in hardware",
        "sender",
        "kernel",
        VERBS,
        (_exit("rxe_icrc_generate", "rxe_icrc_generate__fexit"),),
        handles="passed",
    ),
    Stage(
        "LOCAL_OUT",
        "netfilter's hook for what this host sends",
        "sender",
        "kernel",
        KERNEL,
        (_hook("LOCAL_OUT", "local_out__netfilter"),),
    ),
    Stage(
        "ip_output",
        "the IP header stands, the route is known",
        "sender",
        "kernel",
        KERNEL,
        (_entry("ip_output, ip6_output", "ip_output__fentry", "ip6_output__fentry"),),
    ),
    Stage(
        "POST_ROUTING",
        "netfilter's last hook before the device",
        "sender",
        "kernel",
        KERNEL,
        (_hook("POST_ROUTING", "post_routing__netfilter"),),
    ),
    Stage(
        "ip_finish_output2",
        "POST_ROUTING has been passed, fragments, if any, are made; the neighbour's address is put on",
        "sender",
        "kernel",
        KERNEL,
        (_entry("ip_finish_output2", "ip_finish_output2__fentry", "ip6_finish_output2__fentry"),),
    ),
    Stage(
        "net_dev_queue",
        "the packet is handed to the device's queueing discipline",
        "sender",
        "kernel",
        KERNEL,
        (_tp("net_dev_queue", "net_dev_queue__tp"),),
    ),
    Stage(
        "net_dev_start_xmit",
        "the driver is asked to send it",
        "sender",
        "kernel",
        KERNEL,
        (_tp("net_dev_start_xmit", "net_dev_start_xmit__tp"),),
    ),
    # --- the wire, and the receiver's device ------------------------------------------------------------------------
    Stage(
        "wire",
        "the bits are on the cable (for a veth pair: nowhere, the skb changes hands)",
        "wire",
        "device",
        ALL,
        chain=False,
        why_not="no clock of ours is on the cable",
    ),
    Stage(
        "mac filter",
        "the NIC compares the destination address with its filters (or is promiscuous) and accepts the frame",
        "receiver",
        "device",
        ALL,
        chain=False,
        why_not=_DEVICE,
    ),
    Stage(
        "DMA",
        "the NIC writes the frame into the buffers of its RX ring and marks the descriptors done",
        "receiver",
        "device",
        ALL,
        chain=False,
        handles="DMA",
        why_not=_DEVICE,
    ),
    Stage(
        "irq_handler_entry",
        "the NIC's interrupt has reached a CPU and its handler starts",
        "receiver",
        "hard IRQ",
        KERNEL | NIC | RINGS,
        chain=False,
        why_not=_SHARED,
    ),
    Stage(
        "softirq_raise",
        "the handler has masked the NIC's interrupt and raised NET_RX_SOFTIRQ (napi_schedule)",
        "receiver",
        "hard IRQ",
        KERNEL | RINGS,
        chain=False,
        why_not=_SHARED,
    ),
    Stage(
        "netif_rx",
        "a device without NAPI of its own hands the skb to the stack",
        "receiver",
        "softirq",
        KERNEL,
        (_tp("netif_rx", "netif_rx__tp"),),
        unless="the driver polls with NAPI",
    ),
    Stage(
        "enqueue_to_backlog",
        "the skb is queued for a CPU: the one that RPS chose, or this one",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("enqueue_to_backlog", "enqueue_to_backlog__fentry"),),
        unless="neither RPS nor netif_rx is used",
    ),
    Stage(
        "net_rx_action",
        "the CPU has begun the softirq that will handle the packet (in ksoftirqd where it has much to do)",
        "receiver",
        "softirq",
        KERNEL,
        (_tp("softirq_entry", "softirq_entry__tp"),),
        unless="the softirq was already running when the packet came",
    ),
    Stage(
        "napi poll",
        "NAPI calls the driver's poll function (process_backlog for what was queued for this CPU)",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("__napi_poll", "napi_poll__fentry"),),
        unless="the poll was already running when the packet came",
    ),
    Stage(
        "build_skb",
        "the driver builds an skb around the frame (or copies a short frame into a fresh one: copybreak)",
        "receiver",
        "softirq",
        KERNEL,
        chain=False,
        why_not="the frame's headers have not been read yet, so whose message it is is not known",
    ),
    Stage(
        "napi_gro_receive",
        "the driver's poll offers the skb to GRO",
        "receiver",
        "softirq",
        KERNEL,
        (_tp("napi_gro_receive_entry", "napi_gro_receive_entry__tp"),),
        unless="the device hands frames over without NAPI (loopback, veth without GRO)",
    ),
    Stage(
        "inet_gro_receive",
        "GRO compares the packet with those it holds, and merges neighbours of one flow",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("inet_gro_receive, ipv6_gro_receive", "inet_gro_receive__fentry", "ipv6_gro_receive__fentry"),),
        unless="the device hands frames over without NAPI",
    ),
    Stage(
        "netif_receive_skb",
        "__netif_receive_skb_core begins: the packet is shown to taps and handed to its protocol",
        "receiver",
        "softirq",
        KERNEL,
        (_tp("netif_receive_skb", "netif_receive_skb__tp"),),
    ),
    Stage(
        "packet_rcv",
        "an AF_PACKET socket (tcpdump, packet-ring) takes a clone or a copy",
        "receiver",
        "softirq",
        KERNEL | frozenset({"packet-ring"}),
        (_entry("packet_rcv, tpacket_rcv", "packet_rcv__fentry", "tpacket_rcv__fentry"),),
        unless="nobody taps the device",
    ),
    Stage(
        "ip_rcv",
        "the IP layer has the packet and checks its header",
        "receiver",
        "softirq",
        KERNEL,
        (
            _entry("ip_rcv_core, ip6_rcv_core", "ip_rcv_core__fentry", "ip6_rcv_core__fentry"),
            _entry("ip_rcv, ipv6_rcv", "ip_rcv__fentry", "ipv6_rcv__fentry"),
        ),
    ),
    Stage(
        "PRE_ROUTING",
        "netfilter's first hook for what comes in",
        "receiver",
        "softirq",
        KERNEL,
        (_hook("PRE_ROUTING", "pre_routing__netfilter"),),
    ),
    Stage(
        "ip_route_input",
        "after PRE_ROUTING: the routing decision is looked up: for this host, to be forwarded, or dropped",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("ip_route_input_noref, ip6_route_input", "ip_route_input__fentry", "ip6_route_input__fentry"),),
        unless="the socket's cached route serves (early demux)",
    ),
    Stage(
        "ip_forward",
        "the packet is not for this host and is forwarded",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("ip_forward, ip6_forward", "ip_forward__fentry", "ip6_forward__fentry"),),
        unless="the packet is for this host",
    ),
    Stage(
        "ip_local_deliver",
        "the packet is for this host; fragments are put together here",
        "receiver",
        "softirq",
        KERNEL,
        (_entry("ip_local_deliver, ip6_input", "ip_local_deliver__fentry", "ip6_input__fentry"),),
    ),
    Stage(
        "LOCAL_IN",
        "netfilter's hook for what is for this host",
        "receiver",
        "softirq",
        KERNEL,
        (_hook("LOCAL_IN", "local_in__netfilter"),),
    ),
    Stage(
        "udp_rcv",
        "UDP has the datagram, whole",
        "receiver",
        "softirq",
        UDP | VERBS,
        (_entry("udp_rcv, udpv6_rcv", "udp_rcv__fentry", "udpv6_rcv__fentry"),),
    ),
    Stage(
        "tcp_rcv",
        "TCP has the segment, with its checksum verified",
        "receiver",
        "softirq",
        TCP,
        (_entry("tcp_v4_rcv, tcp_v6_rcv", "tcp_v4_rcv__fentry", "tcp_v6_rcv__fentry"),),
    ),
    Stage(
        "udp_queue_rcv_one_skb",
        "the socket has been looked up: this datagram is for it",
        "receiver",
        "softirq",
        UDP | VERBS,
        (
            _entry(
                "udp_queue_rcv_one_skb, udpv6_queue_rcv_one_skb",
                "udp_queue_rcv_one_skb__fentry",
                "udpv6_queue_rcv_one_skb__fentry",
            ),
        ),
    ),
    Stage(
        "sk_filter",
        "the socket's BPF filter, the cgroup's and the security module are asked",
        "receiver",
        "softirq",
        SOCKETS,
        (
            _entry("sk_filter_trim_cap", "sk_filter_trim_cap__fentry"),
            Probe(
                "cgroup_skb",
                "ingress",
                ("sk_filter__cgroup",),
                "the cgroup's ingress program, which runs inside",
                fallback=True,
            ),
        ),
    ),
    Stage(
        "tcp_do_rcv",
        "the socket has been looked up and its filter passed: the connection's state machine takes the segment",
        "receiver",
        "softirq",
        TCP,
        (_entry("tcp_v4_do_rcv, tcp_v6_do_rcv", "tcp_v4_do_rcv__fentry", "tcp_v6_do_rcv__fentry"),),
    ),
    Stage(
        "__udp_enqueue_schedule_skb",
        "the receive buffer is checked for room and the datagram queued (or dropped: RcvbufErrors)",
        "receiver",
        "softirq",
        UDP,
        (_entry("__udp_enqueue_schedule_skb", "udp_enqueue__fentry"),),
    ),
    Stage(
        "tcp_queue_rcv",
        "the segment is appended to the receive queue",
        "receiver",
        "softirq",
        TCP,
        (_entry("tcp_queue_rcv", "tcp_queue_rcv__fentry"),),
        last=True,
    ),
    Stage(
        "sk_data_ready",
        "the socket tells its reader that there is something (sock_def_readable)",
        "receiver",
        "softirq",
        SOCKETS,
        (
            Probe("fentry", "sock_def_readable", ("sock_def_readable__fentry",), along=("sock_def_readable__fexit",)),
            _tp("sk_data_ready", "sk_data_ready__tp"),
        ),
        last=True,
        unless="the reader looked by itself and took the message before the socket could tell",
    ),
    # --- verbs on rxe -----------------------------------------------------------------------------------------------
    Stage(
        "rxe_udp_encap_recv",
        "the datagram is for UDP port 4791: rxe takes it out of the kernel's stack and makes it linear",
        "receiver",
        "softirq",
        VERBS,
        (_entry("rxe_udp_encap_recv", "rxe_udp_encap_recv__fentry"),),
    ),
    Stage(
        "rxe_rcv",
        "rxe reads the transport header and finds the queue pair",
        "receiver",
        "softirq",
        VERBS,
        (_entry("rxe_rcv", "rxe_rcv__fentry"),),
    ),
    Stage(
        "rxe_icrc_check",
        "the ICRC is about to be checked",
        "receiver",
        "softirq",
        VERBS,
        (_entry("rxe_icrc_check", "rxe_icrc_check__fentry"),),
    ),
    Stage(
        "rxe_icrc_checked",
        "the CPU has read the whole payload to check the ICRC",
        "receiver",
        "softirq",
        VERBS,
        (_exit("rxe_icrc_check", "rxe_icrc_check__fexit"),),
        handles="passed",
    ),
    Stage(
        "rxe_resp_queue_pkt",
        "the packet is queued for the responder (for READ: for the completer, rxe_comp_queue_pkt)",
        "receiver",
        "softirq",
        VERBS,
        (_entry("rxe_resp_queue_pkt, rxe_comp_queue_pkt", "rxe_resp_queue_pkt__fentry", "rxe_comp_queue_pkt__fentry"),),
    ),
    Stage(
        "rxe_responder",
        "the responder (a tasklet or softirq in 6.1, a kernel worker in 6.12: rxe_receiver) takes the packet up",
        "receiver",
        "kernel worker",
        VERBS,
        chain=False,
        why_not=_SHARED + "; the entry of rxe_mr_copy is where it reaches a message",
    ),
    Stage(
        "rxe_mr_copy to MR",
        "the responder has found the receive buffer or checked the rkey, and is about to copy",
        "receiver",
        "kernel worker",
        VERBS,
        (_entry("rxe_mr_copy", "rxe_mr_copy__fentry"),),
    ),
    Stage(
        "rxe_mr_copied",
        "the payload stands in the user's pinned pages, copied there by rxe's stand-in for the HCA's DMA engine",
        "receiver",
        "kernel worker",
        VERBS,
        (_exit("rxe_mr_copy", "rxe_mr_copy__fexit"),),
        unless="a reader that polls its memory saw the last byte before the copying function returned",
        unless_on=WRITE,
        last=True,
        handles="copied",
    ),
    Stage(
        "rxe_cq_post",
        "the completion is about to be written",
        "receiver",
        "kernel worker",
        SEND | IMM | READ,
        (_entry("rxe_cq_post", "rxe_cq_post__fentry"),),
        last=True,
    ),
    Stage(
        "rxe_cq_posted",
        "the completion stands in the completion queue, which the user's poll reads",
        "receiver",
        "kernel worker",
        SEND | IMM | READ,
        (_exit("rxe_cq_post", "rxe_cq_post__fexit"),),
        last=True,
        chain=False,  # 6.12 sends the completion event before it returns, 6.1 afterwards: no one order
    ),
    Stage(
        "ib_uverbs_comp_handler",
        "the completion channel gets its event",
        "receiver",
        "kernel worker",
        SEND | IMM | READ,
        (
            Probe(
                "fentry",
                "ib_uverbs_comp_handler",
                ("ib_uverbs_comp_handler__fentry",),
                along=("ib_uverbs_comp_handler__fexit",),
            ),
        ),
        last=True,
        unless="the completion queue was not armed (polling)",
    ),
    # --- the reader wakes and takes it ------------------------------------------------------------------------------
    Stage(
        "sched_waking",
        "the sleeping reader is about to be made runnable",
        "receiver",
        "kernel",
        KERNEL,
        (_tp("sched_waking", "sched_waking__tp"),),
        last=True,
        unless="the reader does not sleep",
    ),
    Stage(
        "sched_switch",
        "the reader has been switched in on a CPU",
        "receiver",
        "kernel",
        KERNEL,
        (_tp("sched_switch", "sched_switch__tp"),),
        last=True,
        unless="the reader does not sleep",
    ),
    Stage(
        "__skb_recv_udp",
        "the reader has taken the datagram from the queue",
        "receiver",
        "user thread",
        UDP,
        (_exit("__skb_recv_udp", "skb_recv_udp__fexit"),),
    ),
    Stage(
        "copied to the user",
        "the payload has been copied into the user's buffer",
        "receiver",
        "user thread",
        SOCKETS,
        (
            Probe("fentry", "skb_consume_udp, tcp_recvmsg (exit)", ("skb_consume_udp__fentry", "tcp_recvmsg__fexit")),
            _tp("sock_recv_length", "sock_recv_length__tp"),
        ),
        last=True,
        handles="copied",
    ),
    Stage(
        "sys_exit recv",
        "the receive system call is about to return to user mode",
        "receiver",
        "user thread",
        SOCKETS,
        (
            _exit("__sys_recvfrom, __sys_recvmsg", "sys_recvfrom__fexit", "sys_recvmsg__fexit", "sys_recvmmsg__fexit"),
            _tp("sys_exit", "sys_exit__tp"),
        ),
        last=True,
    ),
    Stage(
        "descriptor seen",
        "the endpoint has found the descriptor (or the ring's slot) done, and knows length and errors",
        "receiver",
        "user thread",
        NIC | RINGS,
        chain=False,
        why_not=_OWN,
    ),
    Stage(
        "parsed",
        "the endpoint has gone through Ethernet, IP and UDP, verified the checksums, and knows where the payload is",
        "receiver",
        "user thread",
        NIC | RINGS,
        chain=False,
        handles="passed",
        why_not=_OWN,
    ),
    Stage(
        "looked up",
        "the endpoint's port table has said whose the datagram is",
        "receiver",
        "user thread",
        NIC | RINGS,
        chain=False,
        why_not=_OWN,
    ),
    Stage("delivered", "user space has the message", "receiver", "user thread", ALL, _USER),
    # --- a hardware HCA: the kernel takes no part -------------------------------------------------------------------
    Stage(
        "doorbell",
        "user space writes the HCA's doorbell register; the HCA fetches the work request and the payload by DMA",
        "sender",
        "device",
        HCA,
        chain=False,
        handles="DMA",
        why_not="a store to device memory, inside libibverbs",
    ),
    Stage(
        "CQE",
        "the HCA has written the payload and the completion by DMA (its time stamp where the device has one)",
        "receiver",
        "device",
        HCA,
        chain=False,
        handles="DMA",
        why_not="needs a device with completion time stamps (ibv_query_device_ex); rxe has none",
    ),
    # --- beside the chain: what else touches the payload ------------------------------------------------------------
    Stage(
        "tcp_sendmsg",
        "bytes copied from the user's memory into TCP's send queue",
        "sender",
        "user thread",
        TCP,
        (_exit("tcp_sendmsg", "tcp_sendmsg__fexit"), _tp("sock_send_length", "sock_send_length__tp")),
        chain=False,
        handles="copied",
    ),
    Stage(
        "sock_send_length",
        "bytes that a UDP send call took from the user's memory",
        "sender",
        "user thread",
        UDP,
        (Probe("tp_btf", "sock_send_length", ("sock_send_length__tp",), fallback=True),),
        chain=False,
        handles="copied",
        why_not="stands in for ip_generic_getfrag where that cannot be probed",
    ),
    Stage(
        "tcp_zerocopy_receive",
        "bytes whose pages were mapped into the reader instead of copied",
        "receiver",
        "user thread",
        TCP,
        (_exit("tcp_zerocopy_receive", "tcp_zerocopy_receive__fexit"),),
        chain=False,
        unless="TCP_ZEROCOPY_RECEIVE is not asked for",
    ),
    Stage(
        "skb_copy",
        "an extra copy: the whole packet into a new skb",
        "receiver",
        "kernel",
        KERNEL,
        (_entry("skb_copy", "skb_copy__fentry"),),
        chain=False,
        handles="copied",
        unless="nothing asks for a private copy",
    ),
    Stage(
        "skb_copy_ubufs",
        "an extra copy: zero-copy pages are replaced by kernel pages (MSG_ZEROCOPY over loopback or to a tap)",
        "sender",
        "kernel",
        KERNEL,
        (_entry("skb_copy_ubufs", "skb_copy_ubufs__fentry"),),
        chain=False,
        handles="copied",
        unless="no page of the user travels in the packet",
    ),
    Stage(
        "pskb_expand_head",
        "an extra copy: the linear part moves to a larger buffer",
        "receiver",
        "kernel",
        KERNEL,
        (_entry("pskb_expand_head", "pskb_expand_head__fentry"),),
        chain=False,
        handles="copied",
        unless="headroom suffices and the head is not shared",
    ),
    Stage(
        "__pskb_pull_tail",
        "an extra copy: page fragments are pulled into the linear part (linearisation, header pull)",
        "receiver",
        "kernel",
        KERNEL,
        (_entry("__pskb_pull_tail", "pskb_pull_tail__fentry"),),
        chain=False,
        handles="copied",
        unless="the packet is linear already",
    ),
    Stage(
        "__skb_checksum_complete",
        "a pass: the CPU reads the payload to verify the checksum",
        "receiver",
        "kernel",
        SOCKETS,
        (_entry("__skb_checksum_complete", "skb_checksum_complete__fentry"),),
        chain=False,
        handles="passed",
        unless="the device (or a veth's other end) vouches for the checksum",
    ),
    Stage(
        "skb_checksum_help",
        "a pass: the CPU reads the payload to fill in the checksum that the device cannot",
        "sender",
        "kernel",
        KERNEL,
        (_entry("skb_checksum_help", "skb_checksum_help__fentry"),),
        chain=False,
        handles="passed",
        unless="the device computes checksums",
    ),
    Stage(
        "napi_complete_done",
        "the ring is empty: NAPI ends and the device's interrupt is enabled again",
        "receiver",
        "softirq",
        KERNEL,
        chain=False,
        why_not=_SHARED,
    ),
)


def _numbered(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    # `replace` would need every field; the number is the one thing that the literal above does not say
    for number, stage in enumerate(stages, 1):
        object.__setattr__(stage, "number", number)
    return stages


STAGES: tuple[Stage, ...] = _numbered(_CATALOGUE)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
COUNT = len(STAGES) + 1  # numbers start at 1: 0 in an event would be memory that nobody wrote


def of_path(path: str) -> list[Stage]:
    """Return the stages of a path in packet order; empty where there is no such path."""
    return [stage for stage in STAGES if path in stage.paths]


def chain(path: str) -> list[Stage]:
    """Return the stages of a path whose stamps follow each other, `posted` first and `delivered` last."""
    return [stage for stage in of_path(path) if stage.chain and stage.name != "intended"]


def header(stages: Iterable[Stage] = STAGES) -> str:
    """Return the C header that gives the BPF programs the catalogue's numbers."""
    lines = ["/* made from hwrx/stages.py */", "#pragma once"]
    lines += [f"#define {stage.ident} {stage.number}" for stage in stages]
    lines.append(f"#define STAGES {COUNT}")
    return "\n".join(lines) + "\n"
