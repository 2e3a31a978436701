"""A RoCEv2 packet: opcodes, headers and syndromes, by the names and sections of the InfiniBand specification, volume 1.

Ethernet, IPv4 or IPv6, and UDP to port 4791 (annex A17) carry the base transport header (BTH, 9.2), the extended
headers that its opcode asks for (9.3), the payload, padding to a multiple of 4 bytes, and the ICRC. What is known of an
opcode stands in one table, by which packets are both read and written.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.frames.packet cimport (
    CHECK_HEADER,
    ETHERNET,
    IPV4,
    IPV6,
    UDP,
    UDP_HEADER,
    Datagram,
    big16,
    fold,
    load32,
    load64,
    ones_add,
    parse,
    put16,
)
from cython_ext.roce.icrc cimport ICRC, icrc_of

cdef enum:
    ROCE_PORT = 4791        # UDP's destination port (A17.3.1)
    # bytes of the headers
    BTH = 12
    RETH = 16
    AETH = 4
    IMMDT = 4
    IETH = 4
    DETH = 8
    ATOMIC_ETH = 28
    ATOMIC_ACK_ETH = 8
    # in front of the payload, at most: an IPv6 packet with a tag and the longest extended header
    ROCE_HEADERS = ETHERNET + 4 + IPV6 + UDP_HEADER + BTH + ATOMIC_ETH
    PSN_MASK = 0xFFFFFF
    DEFAULT_PKEY = 0xFFFF
    ACK_REQUEST = 0x80000000U   # in the BTH's last word
    # in the BTH's second byte
    SOLICITED = 0x80
    MIGREQ = 0x40

cdef enum:
    # opcodes of the reliable connection (9.2.1); the upper three bits are the service, the lower five the operation
    RC_SEND_FIRST = 0x00
    RC_SEND_MIDDLE = 0x01
    RC_SEND_LAST = 0x02
    RC_SEND_LAST_WITH_IMMEDIATE = 0x03
    RC_SEND_ONLY = 0x04
    RC_SEND_ONLY_WITH_IMMEDIATE = 0x05
    RC_RDMA_WRITE_FIRST = 0x06
    RC_RDMA_WRITE_MIDDLE = 0x07
    RC_RDMA_WRITE_LAST = 0x08
    RC_RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x09
    RC_RDMA_WRITE_ONLY = 0x0A
    RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x0B
    RC_RDMA_READ_REQUEST = 0x0C
    RC_RDMA_READ_RESPONSE_FIRST = 0x0D
    RC_RDMA_READ_RESPONSE_MIDDLE = 0x0E
    RC_RDMA_READ_RESPONSE_LAST = 0x0F
    RC_RDMA_READ_RESPONSE_ONLY = 0x10
    RC_ACKNOWLEDGE = 0x11
    RC_ATOMIC_ACKNOWLEDGE = 0x12
    RC_COMPARE_SWAP = 0x13
    RC_FETCH_ADD = 0x14
    RC_SEND_LAST_WITH_INVALIDATE = 0x16
    RC_SEND_ONLY_WITH_INVALIDATE = 0x17
    UC_SERVICE = 0x20
    UD_SEND_ONLY = 0x64
    UD_SEND_ONLY_WITH_IMMEDIATE = 0x65
    CNP = 0x81              # congestion notification (A17.9)

cdef enum:
    # what an opcode means
    IS_SEND = 0x0001
    IS_WRITE = 0x0002
    IS_READ = 0x0004
    IS_ATOMIC = 0x0008
    IS_RESPONSE = 0x0010
    IS_FIRST = 0x0020       # begins a message
    IS_LAST = 0x0040        # ends one
    HAS_PAYLOAD = 0x0080    # may have one
    # the extended headers behind the BTH, in the order in which they stand there
    HAS_DETH = 0x0100
    HAS_RETH = 0x0200
    HAS_ATOMIC_ETH = 0x0400
    HAS_AETH = 0x0800
    HAS_ATOMIC_ACK_ETH = 0x1000
    HAS_IMMDT = 0x2000
    HAS_IETH = 0x4000
    IS_KNOWN = 0x8000
    EXTENDED = 0x7F00       # any of the extended headers

cdef enum:
    # AETH syndromes: two bits of kind, five of value (9.7.5.2). An ACK's value is the credit count; 31: not counted
    SYNDROME_ACK = 0x1F
    SYNDROME_RNR_NAK = 0x20
    NAK_PSN_SEQUENCE_ERROR = 0x60
    NAK_INVALID_REQUEST = 0x61
    NAK_REMOTE_ACCESS_ERROR = 0x62
    NAK_REMOTE_OPERATIONAL_ERROR = 0x63
    NAK_INVALID_RD_REQUEST = 0x64
    KIND_MASK = 0x60
    KIND_ACK = 0x00
    KIND_RNR_NAK = 0x20
    KIND_NAK = 0x60
    VALUE_MASK = 0x1F

cdef enum:
    # what `parse_roce` finds; the first one holds
    ROCE = 0
    NOT_ROCE = 1            # another protocol or port, or no whole datagram
    ROCE_TRUNCATED = 2      # ends before its headers, its padding or its ICRC
    BAD_VERSION = 3         # of the transport header, or IPv4 options, which RoCEv2 does not have (A17.3.2)
    UNKNOWN_OPCODE = 4
    BAD_PAYLOAD = 5         # where there must be none, or not a multiple of 4 bytes with its padding
    ROCE_VERDICTS = 6


cdef extern from *:
    """
    #include <stdint.h>

    /* send, write, read, atomic, response, first, last, payload; then the headers: cython_ext/roce/packet.pxd */
    #define HWRX_ONLY 0x0060
    #define HWRX_SERVICES(base) \\
        [base + 0x00] = 0x80A1, [base + 0x01] = 0x8081, [base + 0x02] = 0x80C1, [base + 0x03] = 0xA0C1, \\
        [base + 0x04] = 0x80E1, [base + 0x05] = 0xA0E1, \\
        [base + 0x06] = 0x82A2, [base + 0x07] = 0x8082, [base + 0x08] = 0x80C2, [base + 0x09] = 0xA0C2, \\
        [base + 0x0A] = 0x82E2, [base + 0x0B] = 0xA2E2
    static const uint16_t hwrx_opcodes[256] = {
        HWRX_SERVICES(0x00),
        [0x0C] = 0x8264, [0x0D] = 0x88B4, [0x0E] = 0x8094, [0x0F] = 0x88D4, [0x10] = 0x88F4,
        [0x11] = 0x8870, [0x12] = 0x9878, [0x13] = 0x8468, [0x14] = 0x8468,
        [0x16] = 0xC0C1, [0x17] = 0xC0E1,
        HWRX_SERVICES(0x20),
        [0x64] = 0x81E1, [0x65] = 0xA1E1,
        [0x81] = 0x80E0,
    };
    static inline uint32_t hwrx_swap32(uint32_t v) { return __builtin_bswap32(v); }
    static inline uint64_t hwrx_swap64(uint64_t v) { return __builtin_bswap64(v); }
    """
    const uint16_t[256] opcodes "hwrx_opcodes"
    uint32_t swap32 "hwrx_swap32"(uint32_t v) noexcept nogil
    uint64_t swap64 "hwrx_swap64"(uint64_t v) noexcept nogil


cdef struct Packet:
    # the BTH
    uint8_t opcode
    uint8_t flags               # SOLICITED, MIGREQ
    uint8_t pad                 # bytes behind the payload
    bint ack_request
    uint16_t kind               # of the opcode: IS_…, HAS_…
    uint16_t pkey
    uint32_t qpn                # of the destination
    uint32_t psn
    # extended headers; what the opcode does not have is not set
    uint64_t address            # RETH (9.3.3), AtomicETH (9.3.4)
    uint32_t key                # R_Key; of an IETH (9.3.7) the one to be made invalid
    uint32_t length             # RETH: of the whole message
    uint64_t swap               # AtomicETH: or what is to be added
    uint64_t compare
    uint64_t original           # AtomicAckETH
    uint8_t syndrome            # AETH (9.3.5)
    uint32_t msn
    uint32_t immediate          # ImmDt (9.3.6), as a number; it went in network order
    uint32_t qkey               # DETH (9.3.2)
    uint32_t source_qpn
    # in the frame
    const char *payload
    uint32_t size
    const char *ip
    uint32_t network            # bytes of the IP header
    const char *extended        # what follows the BTH
    uint32_t covered            # bytes from there to the ICRC
    uint32_t address_size       # 4 or 16 bytes
    const char *source
    const char *destination
    uint16_t source_port


cdef struct AddressVector:
    char[64] headers            # Ethernet, IP, UDP, lengths at 0
    uint32_t size               # 42 or 62 of them
    uint32_t network            # bytes of the IP header
    uint64_t sum                # of the IPv4 header, with a length and a checksum of 0


cdef inline uint32_t big32(const char *at) noexcept nogil:
    return swap32(load32(at))


cdef inline uint64_t big64(const char *at) noexcept nogil:
    return swap64(load64(at))


cdef inline void put32(char *at, uint32_t value) noexcept nogil:
    cdef uint32_t raw = swap32(value)
    memcpy(at, &raw, 4)


cdef inline void put64(char *at, uint64_t value) noexcept nogil:
    cdef uint64_t raw = swap64(value)
    memcpy(at, &raw, 8)


cdef inline int32_t psn_distance(uint32_t one, uint32_t other) noexcept nogil:
    """How far `one` lies behind `other` on the circle of 2^24, from -2^23 to 2^23 - 1 (9.7.1)."""
    return <int32_t> ((one - other) << 8) >> 8


cdef inline uint32_t extended_size(uint16_t kind) noexcept nogil:
    """Bytes of the extended headers that an opcode of this kind has."""
    cdef uint32_t size = 0
    if kind & HAS_DETH:
        size += DETH
    if kind & HAS_RETH:
        size += RETH
    if kind & HAS_ATOMIC_ETH:
        size += ATOMIC_ETH
    if kind & HAS_AETH:
        size += AETH
    if kind & HAS_ATOMIC_ACK_ETH:
        size += ATOMIC_ACK_ETH
    if kind & (HAS_IMMDT | HAS_IETH):
        size += IMMDT
    return size


# --- reading -------------------------------------------------------------------------------------------------------

cdef inline int parse_roce(const char *frame, uint32_t size, Packet *out) noexcept nogil:
    """The headers of a frame and where its payload is, or why not. Reads no byte outside of the `size` of the frame.

    The ICRC is not looked at: see `icrc_right`.
    """
    cdef Datagram datagram
    cdef const char *at
    cdef uint32_t word
    # UDP's checksum is not asked for: it may be 0, over IPv6 too, and the ICRC covers more (A17.3.1)
    if parse(<char *> frame, size, CHECK_HEADER, &datagram) != UDP or datagram.destination_port != ROCE_PORT:
        return NOT_ROCE
    at = datagram.payload
    out.address_size = datagram.address_size
    out.source = datagram.source
    out.destination = datagram.destination
    out.source_port = datagram.source_port
    out.network = IPV4 if datagram.address_size == 4 else IPV6
    out.ip = at - UDP_HEADER - out.network
    if datagram.size < BTH + ICRC:
        return ROCE_TRUNCATED
    # with IPv4 options the header would begin further in front, and its first byte say so
    if out.network == IPV4 and out.ip[0] != 0x45 or at[1] & 0x0F:
        return BAD_VERSION
    out.opcode = <uint8_t> at[0]
    out.kind = opcodes[out.opcode]
    out.flags = <uint8_t> at[1] & (SOLICITED | MIGREQ)
    out.pad = <uint8_t> at[1] >> 4 & 3
    out.pkey = big16(at + 2)
    out.qpn = big32(at + 4) & 0xFFFFFF
    word = big32(at + 8)
    out.ack_request = word >> 31
    out.psn = word & PSN_MASK
    out.extended = at + BTH
    out.covered = datagram.size - BTH - ICRC
    out.payload = out.extended
    out.size = out.covered
    return parse_extended(out)


cdef inline int parse_extended(Packet *out) noexcept nogil:
    """The headers behind the BTH, in their order, whose bytes are known to be there."""
    cdef const char *at = out.extended
    cdef uint32_t size
    if out.kind & (EXTENDED | HAS_PAYLOAD) == HAS_PAYLOAD:
        # most packets of long messages, and SEND ONLY: nothing between the BTH and the payload
        if out.covered < out.pad:
            return ROCE_TRUNCATED
        out.size = out.covered - out.pad
        return BAD_PAYLOAD if out.covered & 3 else ROCE
    if not out.kind:
        return UNKNOWN_OPCODE
    size = extended_size(out.kind)
    if out.covered < size + out.pad:
        return ROCE_TRUNCATED
    if out.kind & HAS_DETH:
        out.qkey = big32(at)
        out.source_qpn = big32(at + 4) & 0xFFFFFF
        at += DETH
    if out.kind & HAS_RETH:
        out.address = big64(at)
        out.key = big32(at + 8)
        out.length = big32(at + 12)
        at += RETH
    elif out.kind & HAS_ATOMIC_ETH:
        out.address = big64(at)
        out.key = big32(at + 8)
        out.swap = big64(at + 12)
        out.compare = big64(at + 20)
        at += ATOMIC_ETH
    if out.kind & HAS_AETH:
        out.syndrome = <uint8_t> at[0]
        out.msn = big32(at) & 0xFFFFFF
        at += AETH
    if out.kind & HAS_ATOMIC_ACK_ETH:
        out.original = big64(at)
        at += ATOMIC_ACK_ETH
    if out.kind & HAS_IMMDT:
        out.immediate = big32(at)
        at += IMMDT
    elif out.kind & HAS_IETH:
        out.key = big32(at)
        at += IETH
    out.payload = at
    out.size = out.covered - size - out.pad
    if out.covered & 3 or not out.kind & HAS_PAYLOAD and (out.size or out.pad):
        return BAD_PAYLOAD
    return ROCE


cdef inline bint icrc_right(const Packet *packet) noexcept nogil:
    """Whether the ICRC is that of the packet, which may have come with any verdict from BAD_VERSION's BTH on."""
    return icrc_of(packet.ip, packet.network, packet.extended, packet.covered) == load32(
        packet.extended + packet.covered)


# --- writing -------------------------------------------------------------------------------------------------------

cdef inline char *write_addresses(char *frame, const AddressVector *way, uint32_t behind) noexcept nogil:
    """Ethernet, IP and UDP in front of `behind` bytes, from the BTH to the ICRC. Where the BTH is to stand.

    Writes up to 64 bytes of the frame, whatever the packet's size.
    """
    cdef uint16_t sum, length
    cdef char *ip = frame + ETHERNET
    memcpy(frame, way.headers, 64)    # a constant size becomes four stores; the BTH overwrites the rest
    put16(frame + way.size - 4, <uint16_t> (UDP_HEADER + behind))
    if way.network == IPV4:
        put16(ip + 2, <uint16_t> (IPV4 + UDP_HEADER + behind))
        # all but the length is the same in every packet (RFC 1624)
        put16(<char *> &length, <uint16_t> (IPV4 + UDP_HEADER + behind))
        sum = <uint16_t> ~fold(ones_add(way.sum, length))
        memcpy(ip + 10, &sum, 2)
    else:
        put16(ip + 4, <uint16_t> (UDP_HEADER + behind))
    return frame + way.size


cdef inline char *write_bth(char *at, uint8_t opcode, uint8_t flags, uint32_t pad, uint32_t qpn,
                            uint32_t psn) noexcept nogil:
    """The base transport header; `psn` with ACK_REQUEST where an acknowledgement is wanted. Where it ends."""
    at[0] = <char> opcode
    at[1] = <char> (flags | pad << 4)
    put16(at + 2, DEFAULT_PKEY)
    put32(at + 4, qpn & 0xFFFFFF)
    put32(at + 8, psn)
    return at + BTH


cdef inline char *write_reth(char *at, uint64_t address, uint32_t key, uint32_t length) noexcept nogil:
    put64(at, address)
    put32(at + 8, key)
    put32(at + 12, length)
    return at + RETH


cdef inline char *write_atomic_eth(char *at, uint64_t address, uint32_t key, uint64_t swap,
                                   uint64_t compare) noexcept nogil:
    put64(at, address)
    put32(at + 8, key)
    put64(at + 12, swap)
    put64(at + 20, compare)
    return at + ATOMIC_ETH


cdef inline char *write_aeth(char *at, uint8_t syndrome, uint32_t msn) noexcept nogil:
    put32(at, <uint32_t> syndrome << 24 | msn & 0xFFFFFF)
    return at + AETH


cdef int fill_address_vector(AddressVector *way, bytes headers) except -1
