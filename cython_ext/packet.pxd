"""What a socket does with a frame, and the kernel does for it: whose is it, is it whole, where is the payload?

Ethernet, one VLAN tag, IPv4 and IPv6, UDP. Frames are read where they are, byte by byte or with memcpy: fields of a
frame are not aligned. The kernel does the same in ip_rcv_core, udp4_lib_lookup2 and udp_rcv; what each step costs can
be seen by leaving it out.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    # what `parse` finds; the first one holds
    UDP = 0
    OTHER_ETHERTYPE = 1     # ARP, for one
    OTHER_PROTOCOL = 2      # TCP, ICMP, an IPv6 extension header
    TRUNCATED = 3           # ends before its headers say
    BAD_HEADER = 4          # version or length of a header that cannot be
    BAD_HEADER_CHECKSUM = 5
    FRAGMENT = 6            # of a larger datagram: not put together here
    BAD_CHECKSUM = 7
    VERDICTS = 8

cdef enum:
    # what `parse` is to verify
    CHECK_NOTHING = 0
    CHECK_HEADER = 1        # the IPv4 header's checksum
    CHECK_PAYLOAD = 2       # UDP's

cdef enum:
    ETHERNET = 14
    IPV4 = 20
    IPV6 = 40
    UDP_HEADER = 8
    NOBODY = -1


cdef struct Datagram:
    char *payload
    uint32_t size
    uint32_t address_size       # 4 or 16 bytes
    const char *source          # in the frame, network order
    const char *destination
    uint16_t source_port        # host order
    uint16_t destination_port


cdef struct Owner:
    int32_t next                # of those on the same port, or NOBODY
    uint8_t local_size          # 0: any local address; else 4 or 16
    uint8_t remote_size         # 0: not connected
    uint16_t remote_port        # where connected
    char[16] local
    char[16] remote


cdef struct Ports:
    int32_t[65536] first        # of each port: index of an owner, or NOBODY
    Owner *owners


cdef class PortTable:
    cdef Ports ports
    cdef readonly uint32_t used
    cdef uint32_t room


cdef int32_t find(const Ports *ports, const Datagram *datagram) noexcept nogil


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* One's complement sum over `size` bytes, not folded (RFC 1071). Eight bytes an addition: the carry that leaves the
       64 bits is worth 1 again, because 2^64 = 1 modulo 2^16 - 1. */
    static inline uint64_t hwrx_sum(const char *at, uint32_t size, uint64_t sum)
    {
        uint64_t a, b, c, d, carry = 0;
        while (size >= 32) {
            memcpy(&a, at, 8); memcpy(&b, at + 8, 8); memcpy(&c, at + 16, 8); memcpy(&d, at + 24, 8);
            sum += a; carry += sum < a;
            sum += b; carry += sum < b;
            sum += c; carry += sum < c;
            sum += d; carry += sum < d;
            at += 32; size -= 32;
        }
        while (size >= 8) {
            memcpy(&a, at, 8);
            sum += a; carry += sum < a;
            at += 8; size -= 8;
        }
        if (size) {
            a = 0;
            memcpy(&a, at, size);
            sum += a; carry += sum < a;
        }
        sum += carry;
        return sum + (sum < carry);
    }

    static inline uint16_t hwrx_fold(uint64_t sum)
    {
        sum = (sum & 0xffffffff) + (sum >> 32);
        sum = (sum & 0xffffffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        return (uint16_t)sum;
    }
    """
    # the sum and its folded form are in the byte order of the frame; correct data sum up to 0xffff
    uint64_t ones_sum "hwrx_sum"(const char *at, uint32_t size, uint64_t sum) noexcept nogil
    uint16_t fold "hwrx_fold"(uint64_t sum) noexcept nogil


cdef inline uint16_t big16(const char *at) noexcept nogil:
    return <uint16_t> (<uint8_t> at[0] << 8 | <uint8_t> at[1])


cdef inline void put16(char *at, uint16_t value) noexcept nogil:
    at[0] = <char> (value >> 8)
    at[1] = <char> (value & 0xFF)


cdef inline uint64_t pseudo_header(const char *addresses, uint32_t both, uint16_t length) noexcept nogil:
    """The sum of what UDP's checksum covers besides itself: both addresses (`both` bytes, adjacent), 17, the length."""
    # 17 and the length are 16-bit numbers in network order; on a little-endian machine that means swapped
    cdef uint64_t sum = <uint64_t> 17 << 8
    sum += <uint64_t> (<uint16_t> (length << 8 | length >> 8))
    return ones_sum(addresses, both, sum)


cdef inline int parse(char *frame, uint32_t size, int check, Datagram *out) noexcept nogil:
    """UDP and where its payload is, or why not. Reads no byte outside of the `size` of the frame."""
    cdef char *at = frame + ETHERNET
    cdef uint32_t left = size - ETHERNET, header, length
    cdef uint16_t kind
    if size < ETHERNET + IPV4 + UDP_HEADER:
        return shorter(frame, size)
    kind = big16(frame + 12)
    if kind == 0x8100:
        kind = big16(frame + 16)
        at += 4
        left -= 4
        if left < IPV4 + UDP_HEADER:
            return shorter(frame, size)

    if kind == 0x0800:
        header = <uint32_t> (at[0] & 0x0F) * 4
        length = big16(at + 2)
        if <uint8_t> at[0] >> 4 != 4 or header < IPV4 or length < header:
            return BAD_HEADER
        if length > left:
            return TRUNCATED
        if check & CHECK_HEADER and fold(ones_sum(at, header, 0)) != 0xFFFF:
            return BAD_HEADER_CHECKSUM
        if at[9] != 17:
            return OTHER_PROTOCOL
        if big16(at + 6) & 0x3FFF:  # more fragments, or an offset
            return FRAGMENT
        out.address_size = 4
        out.source = at + 12
        out.destination = at + 16
        at += header
        left = length - header
    elif kind == 0x86DD:
        if left < IPV6 + UDP_HEADER:
            return TRUNCATED
        if <uint8_t> at[0] >> 4 != 6:
            return BAD_HEADER
        if at[6] != 17:
            return OTHER_PROTOCOL
        length = big16(at + 4)
        if length > left - IPV6:
            return TRUNCATED
        out.address_size = 16
        out.source = at + 8
        out.destination = at + 24
        at += IPV6
        left = length
    else:
        return OTHER_ETHERTYPE

    length = big16(at + 4)
    if left < UDP_HEADER or length > left:
        return TRUNCATED
    if length < UDP_HEADER:
        return BAD_HEADER
    # a checksum of 0 was not computed (RFC 768); over IPv6 it must be (RFC 8200)
    if check & CHECK_PAYLOAD:
        if at[6] | at[7]:
            if fold(ones_sum(at, length, pseudo_header(out.source, 2 * out.address_size, <uint16_t> length))) != 0xFFFF:
                return BAD_CHECKSUM
        elif out.address_size == 16:
            return BAD_CHECKSUM
    out.source_port = big16(at)
    out.destination_port = big16(at + 2)
    out.payload = at + UDP_HEADER
    out.size = length - UDP_HEADER
    return UDP


cdef int shorter(const char *frame, uint32_t size) noexcept nogil
cdef void write_headers(char *frame, const char *template, uint32_t payload) noexcept nogil
cdef void write_checksum(char *frame, uint32_t payload) noexcept nogil
