"""UDP over whole frames: what a socket does, done by the process that wants the message."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from cython_ext.core.credit cimport Credit
from cython_ext.core.transport cimport Transport
from cython_ext.frames.link cimport FrameLink, Link
from cython_ext.frames.packet cimport Ports, PortTable
from cython_ext.frames.stamps cimport StageStamps, Stamps

cdef enum:
    HEADERS = 42        # Ethernet, IPv4, UDP
    FRAMES = 256        # most frames taken at once


cdef struct DatagramState:
    const Link *link
    const Ports *ports
    Credit credit           # what is said besides messages, and the message size
    uint32_t batch
    int check               # what `parse` is to verify
    uint32_t vouched_mask   # the link's: see FrameLink.checksum_mask
    uint32_t vouched
    bint look_up            # ask the port table whose a datagram is
    bint sum                # compute UDP's checksum of what is sent
    int32_t owner           # our number in the table
    char[42] template       # headers of a message
    char[42] plain          # the same without what depends on its size
    char[42] control        # headers of a Control
    char[4] address         # ours
    char[6] mac
    uint64_t arp_answered
    uint64_t nobodys        # datagrams that belong to no owner of the table
    uint64_t[8] verdicts    # frames by what `parse` found
    Stamps *stamps          # NULL: the stages are not stamped


cdef class DatagramTransport(Transport):
    cdef DatagramState state
    cdef readonly FrameLink link
    cdef readonly PortTable table
    cdef readonly StageStamps stamps
    cdef readonly str address
    cdef readonly int port
    cdef dict notes
