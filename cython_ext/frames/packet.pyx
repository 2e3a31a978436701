# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Frames: the port table, building, and what Python sees of both; the hot part is inline in packet.pxd."""

import ipaddress

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

VERDICT_NAMES = (
    "udp", "other ethertype", "other protocol", "truncated", "bad header", "bad header checksum", "fragment",
    "bad checksum",
)


cdef int parse_any(char *frame, uint32_t size, int check, Datagram *out) noexcept nogil:
    """As `parse`, for all that there is: a VLAN tag, options, fragments, IPv6, and what is cut or wrong."""
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

    # before UDP's length is read: behind the longest IPv4 header (60 bytes) the frame may end
    if left < UDP_HEADER:
        return TRUNCATED
    length = big16(at + 4)
    if length > left:
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


cdef int shorter(const char *frame, uint32_t size) noexcept nogil:
    """A frame that has no room for the smallest datagram: of another kind, or cut."""
    cdef uint16_t kind
    if size < ETHERNET:
        return TRUNCATED
    kind = big16(frame + 12)
    return TRUNCATED if kind == 0x0800 or kind == 0x86DD or kind == 0x8100 else OTHER_ETHERTYPE


# --- whose is it? --------------------------------------------------------------------------------------------------

cdef int32_t find_best(const Ports *ports, const Datagram *datagram) noexcept nogil:
    """The number of the owner whose datagram it is, or NOBODY."""
    cdef int32_t at = ports.first[datagram.destination_port], best = NOBODY
    cdef int score, highest = -1
    cdef const Owner *owner
    while at != NOBODY:
        owner = &ports.owners[at]
        score = 0
        if owner.local_size:
            if (owner.local_size != datagram.address_size
                    or memcmp(owner.local, datagram.destination, owner.local_size) != 0):
                score = -1
            else:
                score = 1
        if score >= 0 and owner.remote_size:
            if (owner.remote_port != datagram.source_port or owner.remote_size != datagram.address_size
                    or memcmp(owner.remote, datagram.source, owner.remote_size) != 0):
                score = -1
            else:
                score += 2
        if score > highest:
            highest = score
            best = at
        at = owner.next
    return best


cdef class PortTable:
    """Which owner a datagram belongs to: the kernel's question when it looks a UDP socket up.

    An owner is bound to a port, perhaps to a local address, and perhaps connected to a remote address and port. Of
    those that fit the one that says most wins, as compute_score in net/ipv4/udp.c has it; among equals the one added
    first.
    """

    def __cinit__(self):
        cdef uint32_t port
        for port in range(65536):
            self.ports.first[port] = NOBODY

    def __dealloc__(self):
        free(self.ports.owners)

    def add(self, uint16_t port, local=None, remote=None, uint16_t remote_port=0) -> int:
        """Bind an owner to a port.

        :param local, remote: addresses as strings, IPv4 or IPv6; None: any
        :param remote_port: 0: any; it comes together with `remote`
        :return: its number, which `lookup` gives back
        :raises ValueError: for an address that is not valid, or a remote address without a port
        """
        cdef Owner *grown
        cdef Owner *owner
        cdef int32_t *link
        cdef bytes packed
        if (remote is None) != (remote_port == 0):
            raise ValueError("a remote address and a remote port come together")
        local_bytes = b"" if local is None else ipaddress.ip_address(local).packed
        remote_bytes = b"" if remote is None else ipaddress.ip_address(remote).packed
        if self.used == self.room:
            grown = <Owner *> realloc(self.ports.owners, (self.room + 64) * sizeof(Owner))
            if grown == NULL:
                raise MemoryError
            self.ports.owners = grown
            self.room += 64
        owner = &self.ports.owners[self.used]
        memset(owner, 0, sizeof(Owner))
        owner.next = NOBODY
        owner.remote_port = remote_port
        packed = local_bytes
        owner.local_size = <uint8_t> len(packed)
        memcpy(owner.local, PyBytes_AS_STRING(packed), owner.local_size)
        packed = remote_bytes
        owner.remote_size = <uint8_t> len(packed)
        memcpy(owner.remote, PyBytes_AS_STRING(packed), owner.remote_size)
        owner.whole = owner.local_size == 4 and owner.remote_size == 4
        memcpy(&owner.pair, owner.remote, 4)
        memcpy(<char *> &owner.pair + 4, owner.local, 4)
        link = &self.ports.first[port]
        while link[0] != NOBODY:
            link = &self.ports.owners[link[0]].next
        link[0] = <int32_t> self.used
        self.used += 1
        return self.used - 1

    def lookup(self, frame):
        """Whose datagram a frame carries. Both checksums are verified before anybody is asked.

        :param frame: a buffer of a whole Ethernet frame
        :return: the number of its owner; None if it is nobody's, or not a good datagram
        """
        cdef Datagram datagram
        cdef const unsigned char[::1] at = frame
        cdef int32_t owner
        if at.shape[0] == 0 or parse(<char *> &at[0], <uint32_t> at.shape[0], CHECK_HEADER | CHECK_PAYLOAD, &datagram):
            return None
        owner = find(&self.ports, &datagram)
        return None if owner == NOBODY else owner


# --- building ------------------------------------------------------------------------------------------------------

cdef void write_headers(char *frame, const char *template, uint32_t payload) noexcept nogil:
    """Ethernet, IPv4 and UDP before a payload of so many bytes: 42 bytes, by a template with zero lengths and sums."""
    cdef uint16_t sum
    memcpy(frame, template, ETHERNET + IPV4 + UDP_HEADER)
    put16(frame + ETHERNET + 2, <uint16_t> (IPV4 + UDP_HEADER + payload))
    put16(frame + ETHERNET + IPV4 + 4, <uint16_t> (UDP_HEADER + payload))
    sum = ~fold(ones_sum(frame + ETHERNET, IPV4, 0))
    memcpy(frame + ETHERNET + 10, &sum, 2)


cdef void write_checksum(char *frame, uint32_t payload) noexcept nogil:
    """UDP's checksum, over IPv4, once headers and payload are there."""
    cdef uint32_t length = UDP_HEADER + payload
    cdef char *udp = frame + ETHERNET + IPV4
    cdef uint16_t sum = 0
    memcpy(udp + 6, &sum, 2)
    sum = ~fold(ones_sum(udp, length, pseudo_header(frame + ETHERNET + 12, 8, <uint16_t> length)))
    if sum == 0:
        sum = 0xFFFF  # RFC 768: 0 says that there is none
    memcpy(udp + 6, &sum, 2)


def mac_bytes(str address) -> bytes:
    """Six bytes of an address like 52:54:00:12:34:56.

    :raises ValueError: for anything else
    """
    parts = address.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"'{address}' is no MAC address")
    return bytes(int(part, 16) for part in parts)


def udp_template(str source_mac, str destination_mac, str source, str destination, uint16_t source_port,
                 uint16_t destination_port) -> bytes:
    """The headers of a UDP datagram over IPv4, lengths and checksums left at 0.

    :param source_mac, destination_mac: like 52:54:00:12:34:56
    :param source, destination: IPv4 addresses
    :return: 42 bytes: Ethernet, IPv4, UDP
    :raises ValueError: for an address that is not valid
    """
    return (
        mac_bytes(destination_mac) + mac_bytes(source_mac) + b"\x08\x00"
        + b"\x45\x00\x00\x00\x00\x00\x40\x00\x40\x11\x00\x00"
        + ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
        + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big") + bytes(4)
    )


def udp_frame(template, payload, *, bint checksum=True) -> bytes:
    """A whole frame with its lengths and checksums. Not padded: the NIC does that.

    :param template: 42 bytes, as `udp_template` makes them
    :param payload: a buffer of at most 65507 bytes
    :param checksum: whether UDP's is computed; without it 0 stands there
    :raises ValueError: if one of them has another length
    """
    cdef bytes headers = bytes(template), data = bytes(payload)
    if len(headers) != ETHERNET + IPV4 + UDP_HEADER or len(data) > 65507:
        raise ValueError("a template has 42 bytes and a payload at most 65507")
    frame = PyBytes_FromStringAndSize(NULL, len(headers) + len(data))
    cdef char *at = PyBytes_AS_STRING(frame)
    write_headers(at, PyBytes_AS_STRING(headers), <uint32_t> len(data))
    memcpy(at + len(headers), PyBytes_AS_STRING(data), len(data))
    if checksum:
        write_checksum(at, <uint32_t> len(data))
    return frame


# --- for Python ----------------------------------------------------------------------------------------------------

def internet_checksum(const unsigned char[::1] data not None) -> int:
    """The one's complement of the one's complement sum (RFC 1071), as it stands in a header, network order."""
    cdef uint16_t sum = 0xFFFF
    if data.shape[0]:
        sum = ~fold(ones_sum(<const char *> &data[0], <uint32_t> data.shape[0], 0))
    return <uint16_t> (sum << 8 | sum >> 8)


def dissect(frame, *, bint checksum=True) -> dict:
    """What a frame is.

    :param frame: a buffer of a whole Ethernet frame
    :param checksum: whether IPv4's and UDP's are verified
    :return: `verdict` (one of VERDICT_NAMES) and, for UDP, addresses, ports, and `offset` and `size`, bytes of the
        payload in the frame
    """
    cdef const unsigned char[::1] at = frame
    cdef Datagram datagram
    cdef int verdict = TRUNCATED
    if at.shape[0]:
        verdict = parse(<char *> &at[0], <uint32_t> at.shape[0],
                        CHECK_HEADER | CHECK_PAYLOAD if checksum else CHECK_NOTHING, &datagram)
    if verdict != UDP:
        return {"verdict": VERDICT_NAMES[verdict]}
    return {
        "verdict": "udp",
        "source": str(ipaddress.ip_address(datagram.source[:datagram.address_size])),
        "destination": str(ipaddress.ip_address(datagram.destination[:datagram.address_size])),
        "source_port": datagram.source_port,
        "destination_port": datagram.destination_port,
        "offset": datagram.payload - <const char *> &at[0],
        "size": datagram.size,
    }
