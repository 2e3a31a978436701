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
    bint whole                  # IPv4, and local and remote are both given
    uint64_t pair               # then: remote and local as they stand in a frame from there


cdef struct Ports:
    int32_t[65536] first        # of each port: index of an owner, or NOBODY
    Owner *owners


cdef class PortTable:
    cdef Ports ports
    cdef readonly uint32_t used
    cdef uint32_t room


cdef int32_t find_best(const Ports *ports, const Datagram *datagram) noexcept nogil


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Fields of a frame are not aligned; these become single loads. */
    static inline uint16_t hwrx_load16(const char *at) { uint16_t v; memcpy(&v, at, 2); return v; }
    static inline uint32_t hwrx_load32(const char *at) { uint32_t v; memcpy(&v, at, 4); return v; }
    static inline uint64_t hwrx_load64(const char *at) { uint64_t v; memcpy(&v, at, 8); return v; }

    /* One's complement addition: the carry that leaves the 64 bits is worth 1, because 2^64 = 1 modulo 2^16 - 1. */
    static inline uint64_t hwrx_add(uint64_t a, uint64_t b)
    {
        a += b;
        return a + (a < b);
    }

    /* The one's complement sum over `size` bytes, not folded (RFC 1071). */
    static inline uint64_t hwrx_sum(const char *at, uint32_t size, uint64_t sum)
    {
        uint64_t rest = 0;
    #if defined(__x86_64__)
        while (size >= 64) {
            __asm__("addq 0(%[p]), %[s]; adcq 8(%[p]), %[s]; adcq 16(%[p]), %[s]; adcq 24(%[p]), %[s]; "
                    "adcq 32(%[p]), %[s]; adcq 40(%[p]), %[s]; adcq 48(%[p]), %[s]; adcq 56(%[p]), %[s]; "
                    "adcq $0, %[s]"
                    : [s] "+r"(sum) : [p] "r"(at), "m"(*(const char (*)[64])at) : "cc");
            at += 64;
            size -= 64;
        }
    #endif
        while (size >= 8) {
            sum = hwrx_add(sum, hwrx_load64(at));
            at += 8;
            size -= 8;
        }
        if (size & 4) {
            rest = hwrx_load32(at);
            at += 4;
        }
        sum = hwrx_add(sum, rest);
        rest = 0;
        if (size & 2) {
            rest = hwrx_load16(at);
            at += 2;
        }
        if (size & 1)
            rest += (uint64_t)(uint8_t)*at << (size & 2 ? 16 : 0);
        return hwrx_add(sum, rest);
    }

    static inline uint16_t hwrx_fold(uint64_t sum)
    {
        /* a sum plus itself turned by half its width has the folded sum in its upper half, carry included */
        uint32_t half = (uint32_t)((sum + (sum << 32 | sum >> 32)) >> 32);
        return (uint16_t)((half + (half << 16 | half >> 16)) >> 16);
    }
    """
    uint16_t load16 "hwrx_load16"(const char *at) noexcept nogil
    uint32_t load32 "hwrx_load32"(const char *at) noexcept nogil
    uint64_t load64 "hwrx_load64"(const char *at) noexcept nogil
    uint64_t ones_add "hwrx_add"(uint64_t a, uint64_t b) noexcept nogil
    # the sum and its folded form are in the byte order of the frame; correct data sum up to 0xffff
    uint64_t ones_sum "hwrx_sum"(const char *at, uint32_t size, uint64_t sum) noexcept nogil
    uint16_t fold "hwrx_fold"(uint64_t sum) noexcept nogil


cdef inline uint16_t big16(const char *at) noexcept nogil:
    cdef uint16_t raw = load16(at)
    return <uint16_t> (raw << 8 | raw >> 8)


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
    """UDP and where its payload is, or why not. Reads no byte outside of the `size` of the frame.

    The plain case in line: Ethernet, an IPv4 header without options, no fragment, UDP of the length that IP says. All
    others are judged by `parse_any`, and the plain ones too in the same words.
    """
    cdef uint32_t length
    # ethertype and the header's first byte; flags and offset (without "don't fragment"), and the protocol
    if (size < ETHERNET + IPV4 + UDP_HEADER or load32(frame + 12) & 0x00FFFFFF != 0x00450008
            or load32(frame + 20) & 0xFF00FF3FU != 0x11000000):
        return parse_any(frame, size, check, out)
    length = big16(frame + 38)
    if big16(frame + 16) != length + IPV4 or length < UDP_HEADER or length + ETHERNET + IPV4 > size:
        return parse_any(frame, size, check, out)
    if check & CHECK_HEADER and fold(ones_add(ones_add(load64(frame + 14), load64(frame + 22)),
                                              load32(frame + 30))) != 0xFFFF:
        return BAD_HEADER_CHECKSUM
    # a checksum of 0 was not computed (RFC 768). Both addresses, 17 and the length, in network order, count as well
    if check & CHECK_PAYLOAD and load16(frame + 40) and fold(ones_sum(
            frame + 34, length, ones_add(load64(frame + 26), (17 << 8) + <uint64_t> load16(frame + 38)))) != 0xFFFF:
        return BAD_CHECKSUM
    out.address_size = 4
    out.source = frame + 26
    out.destination = frame + 30
    out.source_port = big16(frame + 34)
    out.destination_port = big16(frame + 36)
    out.payload = frame + ETHERNET + IPV4 + UDP_HEADER
    out.size = length - UDP_HEADER
    return UDP


cdef inline int32_t find(const Ports *ports, const Datagram *datagram) noexcept nogil:
    """The number of the owner whose datagram it is, or NOBODY. In line: a connected one that is alone on its port."""
    cdef int32_t at = ports.first[datagram.destination_port]
    cdef const Owner *owner
    if at == NOBODY:
        return NOBODY
    owner = &ports.owners[at]
    if (owner.whole and owner.remote_port == datagram.source_port and datagram.address_size == 4
            and owner.pair == load64(datagram.source)):
        return at
    return find_best(ports, datagram)


cdef int parse_any(char *frame, uint32_t size, int check, Datagram *out) noexcept nogil
cdef int shorter(const char *frame, uint32_t size) noexcept nogil
cdef void write_headers(char *frame, const char *template, uint32_t payload) noexcept nogil
cdef void write_checksum(char *frame, uint32_t payload) noexcept nogil
