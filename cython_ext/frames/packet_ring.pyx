# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""PacketRing: TPACKET_V3 both ways (Documentation/networking/packet_mmap.rst)."""

import mmap
import socket
import struct

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.frames.link cimport Frame, FrameLink, Link, sleep_until
from cython_ext.headers.linux_if_packet cimport *
from cython_ext.headers.sys_socket cimport MSG_DONTWAIT, send

from hwrx.errors import MachineError

SOL_PACKET = 263   # linux/socket.h, which user space does not have
ETH_P_ALL = 3
SO_ATTACH_FILTER = 26  # asm-generic/socket.h

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint32_t hwrx_load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void hwrx_store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    """
    uint32_t load "hwrx_load"(const uint32_t *word) noexcept nogil
    void store "hwrx_store"(uint32_t *word, uint32_t value) noexcept nogil


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline tpacket_block_desc *block(PacketRingState *s, uint32_t number) noexcept nogil:
    # Free-running numbers: their difference tells none of the blocks from all of them.
    return <tpacket_block_desc *> (s.blocks + <size_t> (number % s.count) * s.block_size)


cdef inline bint open_block(PacketRingState *s) noexcept nogil:
    """Whether there is a frame to take: the rest of a block, or the next block, if the kernel has closed one."""
    cdef tpacket_block_desc *b
    while s.unread == 0:
        if s.reading - s.oldest == s.count:
            return False  # all are handed out
        b = block(s, s.reading)
        # The acquire pairs with prb_close_block, which writes count and offsets, then smp_wmb, then TP_STATUS_USER.
        # Set, the whole block is ours until `give_blocks`: the kernel finds it in use (prb_dispatch_next_block).
        if not load(&b.hdr.bh1.block_status) & TP_STATUS_USER:
            return False
        s.unread = b.hdr.bh1.num_pkts
        # All of its frames count as held from here on, also those that `take` has not reached.
        s.left[s.reading % s.count] = s.unread
        s.next = <tpacket3_hdr *> (<char *> b + b.hdr.bh1.offset_to_first_pkt)
        s.reading += 1
        if s.unread == 0:
            give_blocks(s)  # prb_retire_rx_blk_timer_expired closes no empty block; if one came, it goes back
    return True


cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    cdef PacketRingState *s = <PacketRingState *> me
    cdef uint32_t taken = 0
    while taken < most and open_block(s):
        # In place: tpacket_rcv has copied the frame to `tp_mac` of its header (skb_copy_bits).
        out[taken].data = <char *> s.next + s.next.tp_mac
        out[taken].size = s.next.tp_snaplen
        s.copied += s.next.tp_snaplen
        # The block, not the frame: blocks are what goes back.
        out[taken].slot = (s.reading - 1) % s.count
        out[taken].flags = s.next.tp_status & (TP_STATUS_CSUMNOTREADY | TP_STATUS_CSUM_VALID) != 0
        # Of the last frame 0 (prb_close_block), but `unread` ends the block before that is used.
        s.next = <tpacket3_hdr *> (<char *> s.next + s.next.tp_next_offset)
        s.unread -= 1
        taken += 1
    return <int> taken


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    (<PacketRingState *> me).left[frame.slot] -= 1


cdef void give_blocks(PacketRingState *s) noexcept nogil:
    """Give the kernel every block at the ring's old end of which nothing is held and nothing is unread."""
    # In order only: the kernel fills block by block, and stops at the first that is still ours (prb_freeze_queue).
    while s.oldest != s.reading and s.left[s.oldest % s.count] == 0:
        # A release, so no read of a frame is left behind it: from here prb_open_block may reset this block and fill it
        # anew.
        store(&block(s, s.oldest).hdr.bh1.block_status, TP_STATUS_KERNEL)
        s.oldest += 1


cdef int give(void *me, uint32_t count) noexcept nogil:
    """Frames come and go in order, so the oldest blocks' are the oldest."""
    cdef PacketRingState *s = <PacketRingState *> me
    cdef uint32_t at = s.oldest, held, n
    while count and at != s.reading:
        held = s.left[at % s.count]
        # Of the block being read only what was taken can be given back.
        if at == s.reading - 1:
            held -= s.unread
        n = min(held, count)
        s.left[at % s.count] -= n
        count -= n
        at += 1
    # One store a block, and no system call: the kernel looks at the status when it needs the block.
    give_blocks(s)
    return 0


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    cdef PacketRingState *s = <PacketRingState *> me
    cdef uint32_t looks = 0
    cdef int status
    while not open_block(s):
        looks += 1
        if not s.poll:
            # packet_poll says readable when the block before the current one is ours. A frame alone waits for the
            # block's timer.
            status = sleep_until(s.fd, deadline)
            if status <= 0:
                return status
        elif looks % LOOKS == 0 and now() >= deadline:
            return 0
    return 1


# --- sending -------------------------------------------------------------------------------------------------------

cdef inline tpacket3_hdr *slot_header(PacketRingState *s, uint32_t k) noexcept nogil:
    return <tpacket3_hdr *> (s.slots + <size_t> ((s.slot + k) % s.slot_count) * s.slot_size)


cdef int room(void *me, uint32_t most) noexcept nogil:
    """Slots are sent in order, so that the free ones are those in front of the first busy one."""
    cdef PacketRingState *s = <PacketRingState *> me
    cdef uint32_t k, status
    # Only as many as are asked for: to look at all of them costs a cache line each.
    most = min(most, s.slot_count)
    for k in range(most):
        # The acquire pairs with tpacket_destruct_skb, which sets TP_STATUS_AVAILABLE when the driver has freed the skb.
        # Until then the NIC may still read the slot, because its pages hang in that skb (tpacket_fill_skb).
        status = load(&slot_header(s, k).tp_status)
        # tpacket_snd has not sent it and does not move past it (out_status): the slot must be requested again.
        if status & TP_STATUS_WRONG_FORMAT:
            s.rejected += 1
            store(&slot_header(s, k).tp_status, TP_STATUS_AVAILABLE)  # counted once
        elif status & (TP_STATUS_SEND_REQUEST | TP_STATUS_SENDING):
            # A send that was told EAGAIN or ENOBUFS has left requested slots: without another call nobody sends them.
            if k == 0:
                kick(s)
            return <int> k
    return <int> most


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    cdef PacketRingState *s = <PacketRingState *> me
    # Where tpacket_parse_header looks for it without PACKET_TX_HAS_OFF: behind the header, aligned.
    return <char *> slot_header(s, k) + s.slot_offset


cdef int kick(PacketRingState *s) noexcept nogil:
    """Have the kernel look at the ring: it hangs each requested slot into an skb, which it hands to the driver."""
    # Only the Ethernet header is copied (tpacket_fill_skb). MSG_DONTWAIT: tpacket_snd would otherwise wait until every
    # skb is freed. It walks from its own head on and ends at the first slot that is not requested.
    if send(s.fd, NULL, 0, MSG_DONTWAIT) < 0 and errno != EAGAIN and errno != ENOBUFS and errno != EINTR:
        return -errno
    return 0


cdef int send_frames(void *me, uint32_t count, uint32_t size) noexcept nogil:
    cdef PacketRingState *s = <PacketRingState *> me
    cdef tpacket3_hdr *header
    cdef uint32_t k
    for k in range(count):
        header = slot_header(s, k)
        header.tp_len = size
        # tpacket_parse_header refuses anything but 0.
        header.tp_next_offset = 0
        # Last of the slot: it hands the frame over, and a release keeps length and payload before it
        # (packet_current_frame).
        store(&header.tp_status, TP_STATUS_SEND_REQUEST)
    s.slot = (s.slot + count) % s.slot_count
    # One call for all of them, behind the last store.
    return kick(s)


# --- for Python ----------------------------------------------------------------------------------------------------

def port_filter(int port) -> bytes:
    """Classic BPF for a packet socket: ARP, and UDP over IPv4 to `port`; nothing else (linux/filter.h).

    :param port: 0 to 65535
    :return: instructions of 8 bytes, as SO_ATTACH_FILTER takes them
    """
    return b"".join(struct.pack("HBBI", *instruction) for instruction in (
        (0x28, 0, 0, 12),            # ldh [12]: the EtherType
        (0x15, 6, 0, 0x0806),        # ARP: take it
        (0x15, 0, 6, 0x0800),        # not IPv4: leave it
        (0x30, 0, 0, 23),            # ldb [23]: the protocol
        (0x15, 0, 4, 17),            # not UDP: leave it
        (0xb1, 0, 0, 14),            # ldxb 4 * ([14] & 15): bytes of the IPv4 header
        (0x48, 0, 0, 16),            # ldh [x + 16]: the destination port
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xffffffff),    # take it, whole
        (0x06, 0, 0, 0),             # leave it
    ))


cdef class PacketRing(FrameLink):
    """A packet socket on `netdev` with a receive and a transmit ring.

    :param netdev: name of a network device
    :param mac: frames to this address are ours; the device is told to take them, and as it is not the kernel's own
        address, the stack drops its copy as somebody else's
    :param poll: look into the ring instead of sleeping
    :param block_size: bytes of a block of the receive ring
    :param blocks: how many
    :param block_ms: milliseconds after which the kernel hands over a block that is not full, which is how long a lone
        frame may wait
    :param slots: of the transmit ring, 2 KiB each; of longer frames as few as fit the same memory
    :param bypass: send past the device's queueing discipline
    :param only_port: UDP to this port and ARP are received, and nothing else; None: every frame
    :param largest: bytes of a frame; longer than 1,514 where the device's MTU is
    :raises MachineError: if the socket or its rings cannot be had
    """

    def __init__(self, str netdev, str mac, *, bint poll=False, uint32_t block_size=65536, uint32_t blocks=32,
                 uint32_t block_ms=1, uint32_t slots=256, bint bypass=True, only_port=None,
                 uint32_t largest=1514):
        cdef PacketRingState *s = &self.state
        cdef tpacket_req3 request
        cdef packet_mreq membership
        cdef Py_buffer view
        cdef bytes address
        # A slot holds its header and a frame. Both rings are cut into slots of a power of two, so that blocks are full.
        cdef uint32_t offset = TPACKET_ALIGN(sizeof(tpacket3_hdr)), slot = 2048
        while slot < offset + largest:
            slot *= 2
        s.fd = -1
        try:
            index = socket.if_nametoindex(netdev)
        except OSError as error:
            raise MachineError(
                f"there is no network device '{netdev}'", remedy="ip link shows those there are"
            ) from error
        self.mac = mac
        self.totals = {"tp_packets": 0, "tp_drops": 0, "tp_freeze_q_cnt": 0}
        try:
            # protocol 0: nothing is received before the ring is there
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            # Version before rings, rings before the mapping, bind last: bound before, the socket would queue copies.
            self.sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self.sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, bypass)
            if only_port is not None:
                program = port_filter(only_port)
                request_filter = struct.pack("HP", len(program) // 8, <uintptr_t> <const char *> program)
                self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, request_filter)
            memset(&request, 0, sizeof(request))
            request.tp_block_size = block_size
            request.tp_block_nr = blocks
            request.tp_frame_size = slot
            request.tp_frame_nr = block_size // slot * blocks
            request.tp_retire_blk_tov = block_ms
            self.sock.setsockopt(SOL_PACKET, PACKET_RX_RING, (<char *> &request)[:sizeof(request)])
            memset(&request, 0, sizeof(request))
            request.tp_block_size = 65536
            request.tp_block_nr = max(1, slots // 32)
            request.tp_frame_size = slot
            request.tp_frame_nr = 65536 // slot * request.tp_block_nr
            self.sock.setsockopt(SOL_PACKET, PACKET_TX_RING, (<char *> &request)[:sizeof(request)])
            memset(&membership, 0, sizeof(membership))
            membership.mr_ifindex = index
            membership.mr_type = PACKET_MR_UNICAST
            membership.mr_alen = 6
            address = bytes.fromhex(mac.replace(":", ""))
            memcpy(membership.mr_address, <const char *> address, 6)
            self.sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, (<char *> &membership)[:sizeof(membership)])
            size = block_size * blocks + 65536 * request.tp_block_nr
            self.memory = mmap.mmap(self.sock.fileno(), size)
            self.sock.bind((netdev, ETH_P_ALL))
        except OSError as error:
            self.close()
            raise MachineError(
                f"no packet ring on {netdev}: {error.strerror}",
                remedy="run as root" if error.errno == EPERM else "use fewer or smaller blocks",
            ) from error
        self.view = memoryview(self.memory)
        PyObject_GetBuffer(self.view, &view, PyBUF_WRITABLE)
        s.blocks = <char *> view.buf
        PyBuffer_Release(&view)  # self.view keeps the memory where it is
        free(self.left)
        self.left = <uint32_t *> calloc(blocks, sizeof(uint32_t))
        if self.left == NULL:
            raise MemoryError
        s.left = self.left
        s.fd = self.sock.fileno()
        s.poll = poll
        s.block_size = block_size
        s.count = blocks
        s.reading = s.oldest = s.unread = 0
        # packet_mmap lays the transmit ring right behind the receive ring, in one mapping.
        s.slots = s.blocks + <size_t> block_size * blocks
        s.slot_size = slot
        s.slot_count = request.tp_frame_nr
        s.slot_offset = offset
        s.slot = 0
        self.frames = block_size // slot * blocks
        self.largest = largest
        # the kernel says that the NIC has looked, or that the frame comes from this machine and has no checksum yet
        self.checksum_mask = self.checksum_good = 1
        self.table = Link(s, take, refuse, give, wait, room, buffer, send_frames)

    def __dealloc__(self):
        free(self.left)

    def statistics(self) -> dict:
        """Of the socket since it was opened.

        :return: a dict: `tp_packets` frames, `tp_drops` of them dropped for want of a block, `tp_freeze_q_cnt` times
            that this began; `rejected` sends; and FrameLink's
        """
        cdef tpacket_stats_v3 counts
        cdef bytes raw
        if self.state.fd >= 0:
            # the kernel starts from 0 again at each reading
            raw = self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, sizeof(counts))
            memcpy(&counts, <const char *> raw, sizeof(counts))
            self.totals["tp_packets"] += counts.tp_packets
            self.totals["tp_drops"] += counts.tp_drops
            self.totals["tp_freeze_q_cnt"] += counts.tp_freeze_q_cnt
        return {**self.totals, "rejected": self.state.rejected, "cpu_copied_bytes": self.state.copied,
                "cpu_sent_bytes": 0}

    def close(self):
        """Unmap the rings and close the socket; harmless when called twice.

        The views before the mapping, for they point into it. Blocks that were not released are lost.
        """
        FrameLink.close(self)
        self.state.fd = -1
        if self.view is not None:
            self.view.release()
            self.view = None
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        if self.sock is not None:
            self.sock.close()
            self.sock = None
