"""The invariant CRC of RoCEv2 (InfiniBand specification, volume 1, annex A17.3.3): a CRC-32 over what no hop changes.

It covers 8 bytes of ones, where InfiniBand's local route header would stand, and the packet from the IP header to the
end of the padding. What a router may change counts as ones: of IPv4 the type of service, the time to live and the
checksum; of IPv6 the traffic class, the flow label and the hop limit; UDP's checksum; the BTH's byte `resv8a`.

A sum runs over pieces, wherever they lie: `icrc_begin`, `crc_update` for each piece, `icrc_end`.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from cython_ext.frames.link cimport Piece

cdef enum:
    ICRC = 4                # bytes, behind the padding, the lowest first

# The register over the headers up to the BTH, which follow one another from `ip`; `network` is 20 or 40.
cdef uint32_t icrc_begin(const char *ip, uint32_t network) noexcept nogil
# The same without the BTH's last word, the PSN's: of packets that have all before it in common.
cdef uint32_t icrc_before_psn(const char *ip, uint32_t network) noexcept nogil
# The register after `size` bytes more.
cdef uint32_t crc_update(uint32_t register, const char *at, size_t size) noexcept nogil
# Begin, one piece that follows the BTH, and end.
cdef uint32_t icrc_of(const char *ip, uint32_t network, const char *at, size_t size) noexcept nogil


cdef struct Icrc:
    # Of packets over IPv4 whose headers up to the PSN are the same, by the way of this CPU, with no choice at each: 16
    # bytes of sum over headers of IPv4, UDP and BTH that follow one another from `ip`, with a PSN of 0,
    void (*sum)(const char *ip, void *out) noexcept nogil
    # the ICRC of such a packet with that PSN, as it stands in the BTH, and a payload of `size` bytes with its padding,
    uint32_t (*one)(const void *sum, uint32_t psn, const char *at, size_t size) noexcept nogil
    # and that of several, each with its PSN and payload, into `end`.
    void (*run)(const void *sum, Piece *pieces, size_t count, size_t size) noexcept nogil
    # The register after 8 bytes more, which a number has as they lie in memory.
    uint32_t (*word)(uint32_t register, uint64_t bytes) noexcept nogil


# Those of one of WAYS; the first one is this CPU's.
cdef Icrc quick_icrc(str way=*) except *


cdef inline uint32_t icrc_end(uint32_t register) noexcept nogil:
    return ~register


cdef inline void write_icrc(char *at, uint32_t value) noexcept nogil:
    # the CRC's bytes go out lowest first, unlike every other field of the packet
    at[0] = <char> (value & 0xFF)
    at[1] = <char> (value >> 8 & 0xFF)
    at[2] = <char> (value >> 16 & 0xFF)
    at[3] = <char> (value >> 24)
