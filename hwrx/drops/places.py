"""The places where a message can be lost, in the order of its way, and how a loss there is told.

The kernel names its reason when it frees an skb, since 5.17, and more of them with each version; where it names none,
the function that freed it tells. Names are the kernel's own, without SKB_DROP_REASON_.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Fate = Literal["", "starved", "broken"]  # there was no receive request for it; its queue pair was in error


class Place(Struct, frozen=True):
    """One place. `routed`: a packet that has a route (True), has none yet (False), or either (None).

    `paired`: likewise, of a RoCE packet whose queue pair was found. `fate`: what became of a UD datagram there, where
    rxe frees it like one that it has delivered.

    `kind`: a loss of the message; of a copy that was made of it, so that the message itself lives; or no loss at all.
    `witness`: the kernel's own counter of the same, by its name in `books.witnesses`, where it has one.
    """

    name: str
    sentence: str
    reasons: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    routed: bool | None = None
    paired: bool | None = None
    fate: Fate = ""
    kind: Literal["loss", "copy", "none"] = "loss"
    witness: str = ""


def _place(name: str, sentence: str, reasons: str = "", functions: str = "", **more: object) -> Place:
    return Place(name, sentence, frozenset(reasons.split()), frozenset(functions.split()), **more)  # type: ignore[arg-type]


RXE_LOOKS = "rxe_rcv rxe_udp_encap_recv rxe_rcv_pkt rxe_rcv_mcast_pkt"  # rxe's functions before any queue pair's own
# rxe's functions that free what a queue pair has had
RXE_FREES = """free_pkt rxe_responder rxe_receiver rxe_completer rxe_sender rxe_requester do_complete cleanup
    rxe_drain_resp_pkts drain_resp_pkts drain_req_pkts"""
PLACES: tuple[Place, ...] = (
    _place("wire", "dropped by the queueing discipline, which netem uses to lose",
           "QDISC_DROP QDISC_OVERLIMIT QDISC_CONGESTED FQ_BAND_LIMIT FQ_HORIZON_LIMIT FQ_FLOW_LIMIT TC_EGRESS",
           "netem_enqueue kfree_skb_list kfree_skb_list_reason __fq_codel_dequeue fq_codel_dequeue", witness="qdisc"),
    _place("device", "no room in the device's ring, or the device is not up",
           "FULL_RING DEV_READY DEV_HDR NOMEM", "veth_xmit veth_xdp_rx loopback_xmit", witness="device"),
    _place("segment", "sent by one NIC and never received by the other: the difference of their counters"),
    _place("nic-ring", "the NIC had no descriptor or no buffer: seen by its counters alone"),
    _place("xdp", "an XDP program said XDP_DROP", "XDP",
           "veth_xdp_rcv_skb veth_xdp_rcv do_xdp_generic netif_receive_generic_xdp bpf_prog_run_generic_xdp"),
    _place("backlog", "the CPU's backlog was full (netdev_max_backlog)", "CPU_BACKLOG",
           "enqueue_to_backlog enqueue_to_backlog.constprop.0", witness="softnet"),
    _place("af-packet", "a packet socket had no room for its copy; the message itself goes on",
           "PACKET_SOCK_ERROR", "packet_rcv tpacket_rcv packet_rcv_spkt", kind="copy"),
    _place("tc-ingress", "a traffic control action dropped it", "TC_INGRESS", "sch_handle_ingress"),
    _place("header", "the IP header is wrong, or the packet is for another host",
           "IP_INHDR IP_CSUM PKT_TOO_SMALL OTHERHOST IP_NOPROTO UNHANDLED_PROTO IPV6DISABLED UNICAST_IN_L2_MULTICAST"),
    _place("pre-routing", "netfilter dropped it before routing", "NETFILTER_DROP", "nf_hook_slow", routed=False),
    _place("rp-filter", "its source would not be reached by the device that it came in by", "IP_RPFILTER",
           witness="IpReversePathFilter"),
    _place("not-local", "it is for an address that is not ours, and forwarding is off", "IP_INADDRERRORS IP_INNOROUTES",
           "ip_error ip6_pkt_drop ip6_pkt_discard", witness="IpInAddrErrors"),
    _place("local-in", "netfilter dropped it behind the routing", "NETFILTER_DROP", "nf_hook_slow", routed=True),
    _place("no-socket", "nobody is bound to its address and port", "NO_SOCKET", witness="UdpNoPorts"),
    _place("checksum", "the payload's checksum is wrong; UDP looks when the datagram is read",
           "UDP_CSUM TCP_CSUM SKB_CSUM", "udp_recvmsg udpv6_recvmsg __first_packet_length", witness="UdpInCsumErrors"),
    _place("filter", "the socket's filter, or a cgroup's, let it not pass", "SOCKET_FILTER BPF_CGROUP_INGRESS"),
    _place("receive-buffer", "the socket's receive buffer was full", "SOCKET_RCVBUFF", witness="UdpRcvbufErrors"),
    _place("memory", "all UDP sockets together had no more memory (udp_mem)", "PROTO_MEM", witness="UdpMemErrors"),
    _place("closed", "the socket was closed before it was read", "SOCKET_CLOSE QUEUE_PURGE",
           "udp_destruct_common skb_queue_purge skb_queue_purge_reason inet_sock_destruct"),
    _place("truncated", "the reader's buffer was smaller than the message (MSG_TRUNC)"),
    _place("rxe-no-qp", "RoCE: there is no queue pair of that number, or it is of another kind, state or key",
           functions=RXE_LOOKS, paired=False),
    _place("rxe-icrc", "RoCE: the packet's checksum (ICRC) is wrong", functions=RXE_LOOKS, paired=True),
    _place("no-receive", "RDMA datagram (UD): the receiver had no receive request posted, and says nothing of it",
           functions=RXE_FREES, fate="starved"),
    _place("queue-pair", "RDMA: the queue pair was in the error state", functions=RXE_FREES, fate="broken"),
    _place("overwritten", "RDMA WRITE: a later message was written over it before the receiver looked"),
    _place("rnr", "RDMA: the receiver had no receive request ready, however often it was asked"),
    _place("retry-exceeded", "RDMA: the receiver acknowledged nothing, however often it was sent"),
    _place("rxe-not-ready", "RoCE: the queue pair had failed before the packet left", functions="rxe_xmit_packet"),
    _place("rxe-handled", "SoftRoCE frees each good request like a drop; it is none",
           functions=RXE_FREES, kind="none"),
)  # fmt: skip
BY_NAME = {place.name: place for place in PLACES}


def place_of(reason: str, function: str, routed: bool, paired: bool = False, fate: Fate = "") -> Place | None:
    """Return the place of a drop; None where the catalogue knows neither reason nor function."""
    bare = function.split(" ", 1)[0].split("+", 1)[0]
    for by_function in (True, False):
        # a function is the more exact of the two where a kernel gives one reason to several places
        for place in PLACES:
            known = bare in place.functions if by_function else reason in place.reasons
            if known and place.routed in (None, routed) and place.paired in (None, paired) and place.fate in ("", fate):
                return place
    return None
