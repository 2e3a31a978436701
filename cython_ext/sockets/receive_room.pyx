# cython: language_level=3
"""How many datagrams the buffer of a receiving socket holds, as the kernel counts the memory that they lie in."""

import mmap

PAGE = mmap.PAGESIZE
PACKET_MEMORY = 2816   # bytes of memory that a received packet lies in, at most, up to an MTU of 1500
ONE_PACKET = 1472      # bytes of a datagram that comes in one packet
FRAGMENT = 1256        # bytes of a fragment where the MTU is 1280, the least that IPv6 allows
UDP_HEADER = 8


def truesize(size: int, zerocopy: bool = False) -> int:
    """Bytes of SO_RCVBUF that a datagram of `size` bytes takes up, at most (net/core/skbuff.c, SKB_TRUESIZE).

    Counted is the memory that a packet lies in: 832 bytes to 2304 on a veth, and with a NIC's driver a whole receive
    buffer (2752 bytes on e1000e) however short the packet. A longer datagram comes in fragments, the shortest of an MTU
    of 1280, or in one piece, for which memory is taken in powers of two. With MSG_ZEROCOPY every page that it lies in
    counts whole.
    """
    fragments = 1 if size <= ONE_PACKET else -(-(size + UDP_HEADER) // FRAGMENT)
    pages = (size + 2 * PAGE - 2) // PAGE * PAGE + 1280 if zerocopy else 0
    return max(fragments * PACKET_MEMORY, pages)


def datagrams_held(buffer: int, size: int, zerocopy: bool = False) -> int:
    """How many datagrams of `size` bytes a socket with an SO_RCVBUF of `buffer` bytes holds for certain; 1 at least.

    Three quarters of it are counted on: what a reader has taken is given back late, up to a quarter of the buffer
    at a time (net/ipv4/udp.c, udp_rmem_release).
    """
    return max(1, (buffer - buffer // 4) // truesize(size, zerocopy))


def buffer_for(datagrams: int, size: int) -> int:
    """The smallest SO_RCVBUF that holds so many datagrams: what an end that has no socket tells one that asks."""
    return -(-datagrams * truesize(size) * 4 // 3)
