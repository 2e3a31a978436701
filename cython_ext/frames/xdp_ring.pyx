# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: needs libbpf and its headers
"""XdpRing: AF_XDP (Documentation/networking/af_xdp.rst); libbpf loads the program and attaches it."""

import mmap
import os
import socket
import time

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EBUSY, EINTR, ENETDOWN, ENOBUFS, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.frames.link cimport Frame, FrameLink, Link, sleep_until
from cython_ext.headers.bpf_syscalls cimport *
from cython_ext.headers.linux_if_xdp cimport *
from cython_ext.headers.sys_socket cimport MSG_DONTWAIT, recv, send

from cython_ext.frames.xdp_program import steer_port
from hwrx.errors import MachineError, UsageError

AF_XDP = 44       # linux/socket.h; Python's socket module has neither
SOL_XDP = 283
RELEASED_AFTER = 3.0  # seconds
HEADROOM = 256    # bytes in front of each frame that is received (XDP_PACKET_HEADROOM, include/uapi/linux/bpf.h)

cdef extern from "sys/socket.h" nogil:
    struct sockaddr:
        pass
    int bind(int fd, const sockaddr *address, unsigned int size)

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint32_t hwrx_acquire(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void hwrx_release(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    """
    uint32_t acquire "hwrx_acquire"(const uint32_t *word) noexcept nogil
    void publish "hwrx_release"(uint32_t *word, uint32_t value) noexcept nogil


# --- receiving -----------------------------------------------------------------------------------------------------

cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    cdef XdpState *s = <XdpState *> me
    # The acquire is (C) of net/xdp/xsk_queue.h: no entry is read before the producer that covers it (xskq_prod_submit).
    cdef uint32_t there = acquire(s.received.producer), taken = 0, slot
    cdef const xdp_desc *entry
    while taken < most and s.fresh != there:
        slot = s.fresh & s.received.mask
        entry = <const xdp_desc *> s.received.entries + slot
        # In place: `addr` already has the offset of the frame in its chunk (xp_get_handle). The chunk is the loop's
        # now.
        out[taken].data = s.umem + entry.addr
        out[taken].size = entry.len
        s.bytes += entry.len
        out[taken].slot = slot
        out[taken].flags = 0
        # Our own counter. The shared one moves in `give`, so the kernel cannot write over an entry that we still need.
        s.fresh += 1
        taken += 1
    return <int> taken


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    (<XdpState *> me).refused[frame.slot] = 1


cdef int give(void *me, uint32_t count) noexcept nogil:
    """Chunks go back to the fill ring in the order in which they came; the entries of the receive ring become free."""
    cdef XdpState *s = <XdpState *> me
    # A plain read: nobody but us writes the producer of the fill ring.
    cdef uint32_t to = s.fill.producer[0], slot
    cdef uint32_t before = s.oldest
    while s.oldest != s.fresh:
        slot = s.oldest & s.received.mask
        if s.refused[slot]:
            s.refused[slot] = 0
        elif count == 0:
            break
        else:
            count -= 1
        # where the frame began in its chunk does not matter: the kernel is told the chunk
        (<uint64_t *> s.fill.entries)[to & s.fill.mask] = (
            (<const xdp_desc *> s.received.entries + slot).addr & ~<uint64_t> (s.chunk - 1))
        to += 1
        s.oldest += 1
    if s.oldest != before:
        # A release, (B) of xsk_queue.h: entries before producer. The chunks are the kernel's from here (xp_alloc takes
        # them). As many went out of this ring as came by the other one, so it never overflows.
        publish(s.fill.producer, to)
        # A release, (D): our reads of the entries are over before the kernel sees them free.
        publish(s.received.consumer, s.oldest)
    return 0


cdef inline bint ready(const XdpState *s) noexcept nogil:
    # The kernel moves its producer once for all frames of a NAPI poll, in skb mode for each (xsk_flush).
    return acquire(s.received.producer) != s.fresh


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    cdef XdpState *s = <XdpState *> me
    cdef uint32_t looks = 0
    cdef int status
    while not ready(s):
        looks += 1
        if not s.poll:
            # xsk_poll wakes a driver that needs it and, in copy mode, drives what is left to send.
            status = sleep_until(s.fd, deadline)
            if status <= 0:
                return status
        elif looks % LOOKS == 0 and now() >= deadline:
            return 0
        # Only who does not call poll must wake the driver: the flag says that it has gone to sleep (af_xdp.rst).
        if s.poll and acquire(s.fill.flags) & XDP_RING_NEED_WAKEUP:
            recv(s.fd, NULL, 0, MSG_DONTWAIT)  # a driver that went to sleep for want of chunks
    return 1


# --- sending -------------------------------------------------------------------------------------------------------

cdef int kick(XdpState *s) noexcept nogil:
    # The flag spares the call if the driver is awake. In copy mode it is always set (xsk_setsockopt): sending needs a
    # call. It may be read before the store to the producer is seen; `room` and xsk_poll repeat a kick that was missed
    # so.
    if not acquire(s.transmit.flags) & XDP_RING_NEED_WAKEUP:
        return 0
    # MSG_DONTWAIT because __xsk_sendmsg knows no other: it returns EOPNOTSUPP if it may wait.
    if send(s.fd, NULL, 0, MSG_DONTWAIT) < 0:
        # EAGAIN: more is left than one call sends, or the driver is busy. EBUSY: the frame was dropped, and its chunk
        # comes back all the same (__xsk_generic_xmit). A later kick sends the rest.
        if errno not in (EAGAIN, EBUSY, ENOBUFS, EINTR, ENETDOWN):
            return -errno
    return 0


cdef int kick_out(XdpState *s, uint32_t upto) noexcept nogil:
    """Kick until all is sent, or none goes: one call takes 32 frames at most (TX_BATCH_SIZE of net/xdp/xsk.c)."""
    cdef uint32_t before
    cdef int status
    while True:
        # The kernel moves the consumer of the transmit ring: what lies behind it has been taken.
        before = acquire(s.transmit.consumer)
        status = kick(s)
        if status < 0 or acquire(s.transmit.consumer) in (upto, before):
            return status


cdef int room(void *me, uint32_t most) noexcept nogil:
    """Chunks that are ours to build in; those that were sent come back first."""
    cdef XdpState *s = <XdpState *> me
    # The acquire: an address is not read before the producer that covers it. xsk_destruct_skb, or the driver, puts it
    # there.
    cdef uint32_t there = acquire(s.completed.producer), at = s.completed.consumer[0]
    cdef uint32_t before = at
    while at != there:
        # The hand-over back: the frame has left, and its chunk is ours to build in again.
        s.spare[s.free & (s.slots - 1)] = (<uint64_t *> s.completed.entries)[at & s.completed.mask]
        s.free += 1
        at += 1
    # Soon: the kernel reserves a completion entry before it sends (xskq_prod_reserve), so a full ring stops sending.
    if at != before:
        publish(s.completed.consumer, at)
    if acquire(s.transmit.consumer) != s.transmit.producer[0]:
        kick_out(s, s.transmit.producer[0])  # a driver that was busy has left some
    # Every chunk is under way. In copy mode the call makes the kernel look at its own queue again.
    elif s.free == s.next:
        kick(s)
    return <int> (s.free - s.next)


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    cdef XdpState *s = <XdpState *> me
    # Ours until `send_frames`: neither in the transmit ring nor in the completion ring.
    return s.umem + s.spare[(s.next + k) & (s.slots - 1)]


cdef int send_frames(void *me, uint32_t count, uint32_t size) noexcept nogil:
    cdef XdpState *s = <XdpState *> me
    # A plain read: nobody but us writes the producer of the transmit ring.
    cdef uint32_t at = s.transmit.producer[0], _
    cdef xdp_desc *entry
    for _ in range(count):
        entry = <xdp_desc *> s.transmit.entries + (at & s.transmit.mask)
        entry.addr = s.spare[s.next & (s.slots - 1)]
        entry.len = size
        # xskq_cons_is_valid_desc takes an entry with unknown options for invalid and drops it.
        entry.options = 0
        s.next += 1
        at += 1
    # A release: payload and entry before producer. The chunks are the kernel's until they come back by completion.
    publish(s.transmit.producer, at)
    # Behind the store, or the kernel would not see what it is called for.
    return kick_out(s, at)


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class XdpRing(FrameLink):
    """An AF_XDP socket on one receive queue of a device, with a program that steers UDP to a port to it.

    The chunks are the frames' buffers: what came is seen where the kernel, or the NIC, put it.

    `zero_copy` and `mode` (driver: native XDP; skb: the generic hook behind the driver) say what was had, `why_copy`
    why not zero-copy. The program goes with this object, whatever ends it.

    :param netdev: name of a network device
    :param mac: the device's own
    :param port: UDP port whose datagrams come here
    :param queue: number of the receive queue
    :param poll: look into the ring instead of sleeping
    :param frames: chunks to receive into, and as many to send from; a power of two of at least 64
    :param largest: bytes of a frame, for which chunks have 2 or 4 KiB
    :param qpn: of the datagrams only those to this queue pair, as RoCEv2 has them; None: all
    :param zero_copy: True demands it, False forbids it, None takes it if the driver has it
    :raises MachineError: if any of it cannot be had
    :raises ValueError: if `frames` is not such a number
    :raises UsageError: if a frame does not fit a chunk
    """

    def __init__(self, str netdev, str mac, int port, *, uint32_t queue=0, bint poll=False, uint32_t frames=512,
                 zero_copy=None, uint32_t largest=1514, qpn=None):
        cdef XdpState *s = &self.state
        cdef xdp_mmap_offsets offsets
        cdef bytes raw
        if frames < 64 or frames & (frames - 1):
            raise ValueError("frames is a power of two of at least 64")
        # a page is the largest chunk that the kernel takes (xdp_umem_reg)
        if largest + HEADROOM > 4096:
            raise UsageError(
                f"a frame of {largest} bytes does not fit a chunk of AF_XDP's, which has 4096 with {HEADROOM} in front",
                remedy="--mtu 2048 or less, or --link packet-ring",
            )
        s.chunk = 2048 if largest + HEADROOM <= 2048 else 4096
        s.fd = -1
        self.maps = []
        self.views = []
        self.descriptors = []
        try:
            index = socket.if_nametoindex(netdev)
        except OSError as error:
            raise MachineError(
                f"there is no network device '{netdev}'", remedy="ip link shows those there are"
            ) from error
        self.mac = mac
        try:
            self.umem = PinnedBuffer(2 * <size_t> frames * s.chunk)
            # Before the registration: while the kernel has it as UMEM, nobody may unmap it.
            self.umem.users += 1
            self.sock = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
            self.sock.setsockopt(SOL_XDP, XDP_UMEM_REG, self.umem_request())
            # All four rings before bind, which refuses a socket without them (xsk_validate_queues).
            for option in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
                self.sock.setsockopt(SOL_XDP, option, frames)
            raw = self.sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, sizeof(offsets))
            if len(raw) < <Py_ssize_t> sizeof(offsets):
                raise OSError(0, "the kernel's XDP_MMAP_OFFSETS are those of before 5.4")
            memcpy(&offsets, <const char *> raw, sizeof(offsets))
            self.ring(&s.fill, offsets.fr, frames, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING)
            self.ring(&s.completed, offsets.cr, frames, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING)
            self.ring(&s.received, offsets.rx, frames, sizeof(xdp_desc), XDP_PGOFF_RX_RING)
            self.ring(&s.transmit, offsets.tx, frames, sizeof(xdp_desc), XDP_PGOFF_TX_RING)
            # The fill ring is filled before bind, so the first frame finds a chunk.
            self.lay_out(frames)
            self.bind(index, queue, zero_copy)
            self.attach(index, queue, port, qpn)
        except OSError as error:
            self.close()
            if zero_copy and self.why_copy:
                raise MachineError(
                    f"AF_XDP on {netdev} cannot be zero-copy: {self.why_copy}",
                    remedy="leave zero-copy out, or use a NIC whose driver has it (ethtool -i names the driver)",
                ) from error
            raise MachineError(
                f"no AF_XDP socket on {netdev}: {error.strerror or error}",
                remedy="run as root, on a kernel with CONFIG_XDP_SOCKETS; one program fits on a device at a time",
            ) from error
        except BaseException:
            self.close()
            raise
        s.fd = self.sock.fileno()
        s.poll = poll
        self.frames = frames
        self.largest = largest
        self.table = Link(s, take, refuse, give, wait, room, buffer, send_frames)

    def __dealloc__(self):
        free(self.spare)

    def umem_request(self):
        """What XDP_UMEM_REG takes: the whole buffer, in chunks.

        :return: the bytes of a struct xdp_umem_reg (include/uapi/linux/if_xdp.h), without headroom
        """
        cdef xdp_umem_reg request
        memset(&request, 0, sizeof(request))
        request.addr = <uintptr_t> self.umem.base
        request.len = self.umem.size
        request.chunk_size = self.state.chunk
        return (<char *> &request)[:sizeof(request)]

    cdef object ring(self, Ring32 *ring, object offsets, uint32_t entries, size_t width, unsigned long long page):
        cdef Py_buffer view
        memory = mmap.mmap(self.sock.fileno(), offsets["desc"] + entries * width, offset=page)
        self.maps.append(memory)
        held = memoryview(memory)
        self.views.append(held)
        PyObject_GetBuffer(held, &view, PyBUF_WRITABLE)
        cdef char *base = <char *> view.buf
        PyBuffer_Release(&view)  # `held` keeps the memory where it is
        ring.producer = <uint32_t *> (base + <size_t> offsets["producer"])
        ring.consumer = <uint32_t *> (base + <size_t> offsets["consumer"])
        ring.flags = <uint32_t *> (base + <size_t> offsets["flags"])
        ring.entries = base + <size_t> offsets["desc"]
        ring.mask = entries - 1

    def lay_out(self, uint32_t frames):
        """The first half of the chunks is received into, the second is sent from.

        The first half is handed over to the kernel in the fill ring, which must be empty; the second is ours.

        :param frames: chunks of each half
        :raises MemoryError: if there is no room for the list of those that are free to send from
        """
        cdef XdpState *s = &self.state
        cdef uint32_t i
        self.refused = bytearray(frames)
        s.refused = self.refused
        s.umem = self.umem.base
        s.fresh = s.oldest = 0
        for i in range(frames):
            (<uint64_t *> s.fill.entries)[i] = <uint64_t> i * s.chunk
        # The first hand-over: these chunks are the kernel's.
        publish(s.fill.producer, frames)
        free(self.spare)
        self.spare = <uint64_t *> malloc(frames * sizeof(uint64_t))
        if self.spare == NULL:
            raise MemoryError
        s.spare = self.spare
        s.slots = frames
        for i in range(frames):
            s.spare[i] = <uint64_t> (frames + i) * s.chunk
        s.next = 0
        s.free = frames

    def bind(self, uint32_t index, uint32_t queue, zero_copy):
        """Bind the socket to a queue, in the first of the wanted modes that the device allows.

        A queue that another socket has just left is waited for, up to RELEASED_AFTER seconds. Sets `zero_copy` to what
        the kernel says afterwards (XDP_OPTIONS), and `why_copy`.

        :param index: number of the network device
        :param queue: of its receive queues
        :param zero_copy: as the class has it
        :raises OSError: if the device allows none of them
        """
        cdef sockaddr_xdp address
        cdef int status = -1, why = 0
        wanted = {None: (XDP_ZEROCOPY, XDP_COPY), True: (XDP_ZEROCOPY,), False: (XDP_COPY,)}[zero_copy]
        self.why_copy = ""
        memset(&address, 0, sizeof(address))
        address.sxdp_family = AF_XDP
        address.sxdp_ifindex = index
        address.sxdp_queue_id = queue
        # the kernel lets go of a queue a moment after the socket that had it was closed
        deadline = time.monotonic() + RELEASED_AFTER
        while True:
            for flag in wanted:
                # With the flag a driver that lacks zero-copy refuses; without any, xp_assign_dev copies and does not
                # say why.
                address.sxdp_flags = <unsigned short> (flag | XDP_USE_NEED_WAKEUP)
                status = bind(self.sock.fileno(), <const sockaddr *> &address, sizeof(address))
                if status == 0:
                    break
                why = errno
                if flag == XDP_ZEROCOPY and why != EBUSY:
                    # EOPNOTSUPP is xp_assign_dev's if the driver lacks it, the rest is the driver's own
                    self.why_copy = (
                        "the device's driver has no zero-copy" if why == EOPNOTSUPP
                        else f"the device's driver has zero-copy and refuses it ({os.strerror(why)})"
                    )
            if status == 0 or why != EBUSY or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        if status < 0:
            raise OSError(why, f"bind: {os.strerror(why)}")
        options = self.sock.getsockopt(SOL_XDP, XDP_OPTIONS, 4)
        self.zero_copy = bool(int.from_bytes(options, "little") & XDP_OPTIONS_ZEROCOPY)

    def attach(self, int index, uint32_t queue, int port, qpn):
        """Map, program, link; the link goes, and the program with it, when its descriptor is closed.

        All three descriptors belong to this object. Sets `mode` to the hook that was had.

        :param index: number of the network device
        :param queue: entry of the map that holds our socket
        :param port: UDP port that is steered to it
        :param qpn: and queue pair, or None
        :raises OSError: naming the command of bpf(2) that failed
        """
        cdef int sockets, program, link = -1, own = self.sock.fileno()
        cdef bytes instructions
        cdef bpf_link_create_opts options
        sockets = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "hwrx_sockets", 4, 4, queue + 1, NULL)
        if sockets < 0:
            raise OSError(-sockets, f"BPF_MAP_CREATE: {os.strerror(-sockets)}")
        self.descriptors.append(sockets)
        # The socket into the map before the program runs: what it would steer meanwhile would be lost.
        if bpf_map_update_elem(sockets, &queue, &own, BPF_ANY) < 0:
            raise OSError(errno, f"BPF_MAP_UPDATE_ELEM: {os.strerror(errno)}")
        instructions = steer_port(port, sockets, qpn)
        program = bpf_prog_load(BPF_PROG_TYPE_XDP, "hwrx_steer", "Dual BSD/GPL",
                                <const bpf_insn *> <const char *> instructions, len(instructions) // 8, NULL)
        if program < 0:
            raise OSError(-program, f"BPF_PROG_LOAD: {os.strerror(-program)}")
        self.descriptors.append(program)
        # in front of the driver's own buffers if it can; else behind them
        for mode, flags in (("driver", XDP_FLAGS_DRV_MODE), ("skb", XDP_FLAGS_SKB_MODE)):
            memset(&options, 0, sizeof(options))
            options.sz = sizeof(options)
            options.flags = flags
            link = bpf_link_create(program, index, BPF_XDP, &options)
            if link >= 0:
                self.mode = mode
                self.descriptors.append(link)
                return
        raise OSError(-link, f"BPF_LINK_CREATE: {os.strerror(-link)}")

    def statistics(self) -> dict:
        """The socket's counters: frames dropped, and for want of what (struct xdp_statistics).

        :return: a dict of whole numbers since the socket was made, and `cpu_copied_bytes`: 0 of a zero-copy socket, for
            whose frames the device writes to our chunks itself; {} once closed
        """
        cdef xdp_statistics counts
        cdef bytes raw
        if self.state.fd < 0:
            return {}
        raw = self.sock.getsockopt(SOL_XDP, XDP_STATISTICS, sizeof(counts))
        memset(&counts, 0, sizeof(counts))
        memcpy(&counts, <const char *> raw, min(<size_t> len(raw), sizeof(counts)))
        # in copy mode __xsk_rcv copies each frame from the driver's buffer into its chunk
        return {**counts, "cpu_copied_bytes": 0 if self.zero_copy else self.state.bytes, "cpu_sent_bytes": 0}

    def close(self):
        """Detach the program, close the socket, give the memory back; harmless when called twice.

        Frames that are still in the rings are lost. Memory of which views are alive stays until they are gone.
        """
        FrameLink.close(self)
        self.state.fd = -1
        # The program first: after it no frame is steered to a socket that is going.
        while self.descriptors:
            os.close(self.descriptors.pop())
        while self.views:
            self.views.pop().release()
        # The rings before the socket, the UMEM last of all: the kernel writes to it as long as the socket lives.
        while self.maps:
            self.maps.pop().close()
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self.umem is not None and not self.umem.closed:
            self.umem.users -= 1
            if not self.umem.exports:
                self.umem.close()
