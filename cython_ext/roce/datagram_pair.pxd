"""DatagramPair: a queue pair of unreliable datagrams, over a link."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.frames.link cimport FrameLink, Link
from cython_ext.headers.infiniband_verbs cimport ibv_wc_status
from cython_ext.roce.connection cimport ASIDE, ReceiveRequest
from cython_ext.roce.memory_region cimport MemoryRegion, ProtectionDomain, Regions
from cython_ext.roce.packet cimport AddressVector


cdef struct DatagramRequest:
    uint64_t wr_id
    uint64_t local          # address of the own memory, and its key
    uint32_t lkey
    uint32_t length         # bytes
    uint32_t qpn            # of the destination
    uint32_t qkey
    uint32_t immediate
    bint has_immediate
    AddressVector way


cdef struct DatagramCompletion:
    uint64_t wr_id
    ibv_wc_status status
    uint32_t size           # bytes; of a message that came with the 40 in front of it
    uint32_t source_qpn
    uint32_t immediate
    bint has_immediate


cdef struct DatagramQueue:
    DatagramCompletion *ring
    uint32_t mask
    uint32_t head           # free-running: the next to be written
    uint32_t tail           # the next to be polled


cdef struct DatagramCounters:
    uint64_t packets        # that came, and were delivered
    uint64_t strangers      # to another queue pair or address, or with another partition key
    uint64_t malformed
    uint64_t wrong_icrc
    uint64_t wrong_qkey
    uint64_t no_receive     # dropped: no receive request was posted
    uint64_t too_long       # dropped: longer than the MTU or the receive request
    uint64_t sent
    uint64_t copied         # bytes that our CPU has put into the user's memory


cdef struct Datagrams:
    const Link *link
    const Regions *regions
    uint32_t qpn
    uint32_t qkey
    uint32_t mtu            # bytes of the longest message
    uint32_t psn            # of the next packet
    uint32_t address_size   # of `address`, 4 or 16
    char[16] address        # ours, as a packet's destination has it
    DatagramRequest *sends
    uint32_t send_mask
    uint32_t send_oldest
    uint32_t send_posted
    ReceiveRequest *receives
    uint32_t receive_mask
    uint32_t receive_oldest
    uint32_t receive_posted
    DatagramQueue done
    DatagramQueue received
    DatagramCounters counters
    uint32_t aside_size     # of a frame that whoever has our address must answer; 0: none
    char[ASIDE] aside


cdef class DatagramPair:
    cdef Datagrams datagrams
    cdef readonly FrameLink link
    cdef readonly ProtectionDomain domain

    cdef checked_range(self, MemoryRegion region, offset, size)
