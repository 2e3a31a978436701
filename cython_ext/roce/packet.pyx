# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""RoCEv2 packets for Python: names, building, taking apart; the hot part is inline in packet.pxd."""

import ipaddress

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from cython_ext.frames.packet cimport ETHERNET, IPV4, IPV6, UDP_HEADER, ones_sum
from cython_ext.roce.icrc cimport ICRC, icrc_of, write_icrc

from cython_ext.frames.packet import mac_bytes

VERDICT_NAMES = ("roce", "not roce", "truncated", "bad version", "unknown opcode", "bad payload")

# as <rdma/ib_pack.h> of the kernel forms them: service, operation
OPCODES = {
    f"{service}_{operation}": base + number
    for service, base in (("RC", 0), ("UC", UC_SERVICE))
    for number, operation in enumerate((
        "SEND_FIRST", "SEND_MIDDLE", "SEND_LAST", "SEND_LAST_WITH_IMMEDIATE", "SEND_ONLY", "SEND_ONLY_WITH_IMMEDIATE",
        "RDMA_WRITE_FIRST", "RDMA_WRITE_MIDDLE", "RDMA_WRITE_LAST", "RDMA_WRITE_LAST_WITH_IMMEDIATE",
        "RDMA_WRITE_ONLY", "RDMA_WRITE_ONLY_WITH_IMMEDIATE",
    ))
} | {
    "RC_RDMA_READ_REQUEST": RC_RDMA_READ_REQUEST,
    "RC_RDMA_READ_RESPONSE_FIRST": RC_RDMA_READ_RESPONSE_FIRST,
    "RC_RDMA_READ_RESPONSE_MIDDLE": RC_RDMA_READ_RESPONSE_MIDDLE,
    "RC_RDMA_READ_RESPONSE_LAST": RC_RDMA_READ_RESPONSE_LAST,
    "RC_RDMA_READ_RESPONSE_ONLY": RC_RDMA_READ_RESPONSE_ONLY,
    "RC_ACKNOWLEDGE": RC_ACKNOWLEDGE,
    "RC_ATOMIC_ACKNOWLEDGE": RC_ATOMIC_ACKNOWLEDGE,
    "RC_COMPARE_SWAP": RC_COMPARE_SWAP,
    "RC_FETCH_ADD": RC_FETCH_ADD,
    "RC_SEND_LAST_WITH_INVALIDATE": RC_SEND_LAST_WITH_INVALIDATE,
    "RC_SEND_ONLY_WITH_INVALIDATE": RC_SEND_ONLY_WITH_INVALIDATE,
    "UD_SEND_ONLY": UD_SEND_ONLY,
    "UD_SEND_ONLY_WITH_IMMEDIATE": UD_SEND_ONLY_WITH_IMMEDIATE,
    "CNP": CNP,
}
OPCODE_NAMES = {value: name for name, value in OPCODES.items()}
NAK_NAMES = {
    NAK_PSN_SEQUENCE_ERROR: "PSN sequence error",
    NAK_INVALID_REQUEST: "invalid request",
    NAK_REMOTE_ACCESS_ERROR: "remote access error",
    NAK_REMOTE_OPERATIONAL_ERROR: "remote operational error",
    NAK_INVALID_RD_REQUEST: "invalid RD request",
}
LONGEST_PAYLOAD = 65535 - 8 - BTH - ATOMIC_ETH - 3 - ICRC - IPV6


def syndrome_name(uint8_t syndrome) -> str:
    """What an AETH's syndrome says: `ACK`, `RNR NAK` with its timer code, or `NAK` with its reason (9.7.5.2)."""
    if syndrome & KIND_MASK == KIND_ACK and not syndrome & 0x80:
        return "ACK"
    if syndrome & KIND_MASK == KIND_RNR_NAK and not syndrome & 0x80:
        return f"RNR NAK, timer {syndrome & VALUE_MASK}"
    if syndrome in NAK_NAMES:
        return f"NAK, {NAK_NAMES[syndrome]}"
    return f"reserved syndrome {syndrome:#04x}"


# --- building ------------------------------------------------------------------------------------------------------

def address_vector(str source_mac, str destination_mac, str source, str destination, *, int source_port=0xC000,
                   int traffic_class=0, int hop_limit=64) -> bytes:
    """The headers up to UDP's, with lengths and checksums at 0, as an address vector describes the way (11.2.2.1).

    :param source_mac, destination_mac: like 52:54:00:12:34:56
    :param source, destination: both IPv4 or both IPv6 addresses
    :param source_port: UDP's, 0 to 65535; switches spread flows by it
    :param traffic_class: DSCP and ECN, 0 to 255
    :param hop_limit: or IPv4's time to live, 0 to 255
    :return: 42 bytes for IPv4 and 62 for IPv6: Ethernet, IP, UDP
    :raises ValueError: for an address or a number that is not valid, or one address of each kind
    """
    ends = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if ends[0].version != ends[1].version:
        raise ValueError(f"{source} and {destination} are not of one version of IP")
    for value, most in ((source_port, 0xFFFF), (traffic_class, 0xFF), (hop_limit, 0xFF)):
        if not 0 <= value <= most:
            raise ValueError(f"{value} is not between 0 and {most}")
    pair = ends[0].packed + ends[1].packed
    if ends[0].version == 4:
        # identification 0 and "don't fragment": a datagram that is never in pieces needs no number (RFC 6864)
        kind = b"\x08\x00"
        network = bytes((0x45, traffic_class, 0, 0, 0, 0, 0x40, 0, hop_limit, 17, 0, 0)) + pair
    else:
        kind = b"\x86\xdd"
        network = (6 << 28 | traffic_class << 20).to_bytes(4, "big") + bytes((0, 0, 17, hop_limit)) + pair
    udp = source_port.to_bytes(2, "big") + (<int> ROCE_PORT).to_bytes(2, "big") + bytes(4)
    return mac_bytes(destination_mac) + mac_bytes(source_mac) + kind + network + udp


cdef int fill_address_vector(AddressVector *way, bytes headers) except -1:
    """Take what `address_vector` has made; ValueError if it is anything else."""
    if len(headers) != ETHERNET + IPV4 + UDP_HEADER and len(headers) != ETHERNET + IPV6 + UDP_HEADER:
        raise ValueError("an address vector has 42 bytes (IPv4) or 62 (IPv6)")
    memset(way, 0, sizeof(AddressVector))
    memcpy(way.headers, PyBytes_AS_STRING(headers), len(headers))
    way.size = <uint32_t> len(headers)
    way.network = way.size - ETHERNET - UDP_HEADER
    way.sum = ones_sum(way.headers + ETHERNET, IPV4, 0)
    return 0


def build_packet(headers, opcode, *, uint32_t qpn, uint32_t psn, bint ack_request=False, bint solicited=False,
                 payload=b"", address=0, key=0, length=0, swap=0, compare=0, uint8_t syndrome=SYNDROME_ACK,
                 uint32_t msn=0, original=0, immediate=0, qkey=0, uint32_t source_qpn=0, bint spoil=False) -> bytes:
    """A whole frame, from the Ethernet header to the ICRC. Fields that the opcode has no header for are not looked at.

    :param headers: what `address_vector` returns
    :param opcode: a name out of OPCODES, or a number
    :param qpn, psn: of the destination, and the packet's, 24 bits each
    :param payload: a buffer
    :param address, key, length: RETH or AtomicETH; `key` also IETH
    :param swap, compare: AtomicETH; FETCH_ADD adds `swap`
    :param syndrome, msn: AETH
    :param original: AtomicAckETH
    :param immediate: ImmDt
    :param qkey, source_qpn: DETH
    :param spoil: write an ICRC that is wrong
    :raises ValueError: for headers or an opcode that are not valid, or a payload that no packet holds
    """
    cdef AddressVector way
    cdef uint8_t number
    cdef uint16_t kind
    cdef bytes data = bytes(payload)
    cdef uint32_t size = <uint32_t> len(data), pad = -size & 3, behind
    cdef char *frame
    cdef char *bth
    cdef char *at
    if isinstance(opcode, str) and opcode not in OPCODES:
        raise ValueError(f"there is no opcode {opcode}")
    number = OPCODES[opcode] if isinstance(opcode, str) else opcode
    if len(data) > LONGEST_PAYLOAD:
        raise ValueError(f"a packet carries at most {LONGEST_PAYLOAD} bytes, not {len(data)}")
    fill_address_vector(&way, bytes(headers))
    kind = opcodes[number]
    behind = BTH + extended_size(kind) + size + pad + ICRC
    # the addresses are written as 64 bytes, of which a short packet may not use all
    built = PyBytes_FromStringAndSize(NULL, way.size + behind + 16)
    frame = PyBytes_AS_STRING(built)
    memset(frame, 0, way.size + behind + 16)
    bth = write_addresses(frame, &way, behind)
    at = write_bth(bth, number, <uint8_t> (MIGREQ | (SOLICITED if solicited else 0)), pad, qpn,
                   psn & PSN_MASK | (ACK_REQUEST if ack_request else 0))
    if kind & HAS_DETH:
        put32(at, qkey)
        put32(at + 4, source_qpn & 0xFFFFFF)
        at += DETH
    if kind & HAS_RETH:
        at = write_reth(at, address, key, length)
    elif kind & HAS_ATOMIC_ETH:
        at = write_atomic_eth(at, address, key, swap, compare)
    if kind & HAS_AETH:
        at = write_aeth(at, syndrome, msn)
    if kind & HAS_ATOMIC_ACK_ETH:
        put64(at, original)
        at += ATOMIC_ACK_ETH
    if kind & (HAS_IMMDT | HAS_IETH):
        put32(at, immediate if kind & HAS_IMMDT else key)
        at += IMMDT
    memcpy(at, PyBytes_AS_STRING(data), size)
    memset(at + size, 0, pad)
    at += size + pad
    write_icrc(at, icrc_of(frame + ETHERNET, way.network, bth + BTH, at - bth - BTH) ^ (1 if spoil else 0))
    return built[:way.size + behind]


# --- taking apart --------------------------------------------------------------------------------------------------

def dissect_roce(frame) -> dict:
    """What a frame is, header by header.

    :param frame: a buffer of a whole Ethernet frame, without CRC
    :return: `verdict` (one of VERDICT_NAMES); where the BTH is whole also its fields and `icrc`, True if it is right;
        where the packet is good also the fields of its extended headers, by the names that `build_packet` gives them,
        and `payload`, bytes
    """
    cdef const unsigned char[::1] at = frame
    cdef Packet packet
    cdef int verdict = NOT_ROCE
    memset(&packet, 0, sizeof(Packet))
    if at.shape[0]:
        verdict = parse_roce(<const char *> &at[0], <uint32_t> at.shape[0], &packet)
    found = {"verdict": VERDICT_NAMES[verdict]}
    if verdict == NOT_ROCE:
        return found
    found["source"] = str(ipaddress.ip_address(packet.source[:packet.address_size]))
    found["destination"] = str(ipaddress.ip_address(packet.destination[:packet.address_size]))
    found["source_port"] = packet.source_port
    if verdict in (ROCE_TRUNCATED, BAD_VERSION):
        return found
    found |= {
        "opcode": OPCODE_NAMES.get(packet.opcode, f"opcode {packet.opcode:#04x}"),
        "qpn": packet.qpn, "psn": packet.psn, "pkey": packet.pkey, "pad": packet.pad,
        "ack_request": bool(packet.ack_request), "solicited": bool(packet.flags & SOLICITED),
        "icrc": bool(icrc_right(&packet)),
    }
    if verdict != ROCE:
        return found
    if packet.kind & HAS_DETH:
        found |= {"qkey": packet.qkey, "source_qpn": packet.source_qpn}
    if packet.kind & (HAS_RETH | HAS_ATOMIC_ETH):
        found |= {"address": packet.address, "key": packet.key}
    if packet.kind & HAS_RETH:
        found["length"] = packet.length
    if packet.kind & HAS_ATOMIC_ETH:
        found |= {"swap": packet.swap, "compare": packet.compare}
    if packet.kind & HAS_AETH:
        found |= {"syndrome": packet.syndrome, "msn": packet.msn}
    if packet.kind & HAS_ATOMIC_ACK_ETH:
        found["original"] = packet.original
    if packet.kind & HAS_IMMDT:
        found["immediate"] = packet.immediate
    if packet.kind & HAS_IETH:
        found["key"] = packet.key
    found["payload"] = packet.payload[:packet.size]
    return found
