# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""io_uring: setting a ring up, handing requests over, waiting for what completes, and sending through it."""

import errno
import os
from pathlib import Path

from libc.errno cimport EINTR, ETIME
from libc.errno cimport errno as c_errno
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from posix.unistd cimport close

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.lengths cimport length_of
from cython_ext.headers.linux_io_uring cimport (
    IORING_ASYNC_CANCEL_ANY,
    IORING_CQE_F_MORE,
    IORING_CQE_F_NOTIF,
    IORING_ENTER_EXT_ARG,
    IORING_ENTER_GETEVENTS,
    IORING_FEAT_EXT_ARG,
    IORING_FEAT_NODROP,
    IORING_FEAT_SINGLE_MMAP,
    IORING_NOTIF_USAGE_ZC_COPIED,
    IORING_OFF_SQ_RING,
    IORING_OFF_SQES,
    IORING_OP_RECV,
    IORING_OP_SEND,
    IORING_OP_SEND_ZC,
    IORING_RECV_MULTISHOT,
    IORING_RECVSEND_FIXED_BUF,
    IORING_REGISTER_BUFFERS,
    IORING_REGISTER_ENABLE_RINGS,
    IORING_REGISTER_FILES,
    IORING_REGISTER_PBUF_RING,
    IORING_REGISTER_SYNC_CANCEL,
    IORING_SEND_ZC_REPORT_USAGE,
    IORING_SETUP_CQSIZE,
    IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_R_DISABLED,
    IORING_SETUP_SINGLE_ISSUER,
    IORING_SETUP_TASKRUN_FLAG,
    IOSQE_BUFFER_SELECT,
    IOSQE_FIXED_FILE,
    io_uring_buf,
    io_uring_buf_reg,
    io_uring_cqe,
    io_uring_enter,
    io_uring_getevents_arg,
    io_uring_params,
    io_uring_register,
    io_uring_setup,
    io_uring_sqe,
    io_uring_sync_cancel_reg,
)
from cython_ext.headers.sys_socket cimport MSG_NOSIGNAL, MSG_WAITALL, iovec
from cython_ext.sockets.uring cimport SEND, Ring, Sends, completion, looked_at, store_half, wants_entry

from hwrx.errors import MachineError

cdef enum:
    GROUP = 1           # of provided buffers: a ring has only this one
    CANCEL_SECONDS = 2  # that what is still asked for may take to be taken back

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")


# --- while messages go ----------------------------------------------------------------------------------------------

cdef int begin(Ring *r) noexcept nogil:
    """Once, in the loop's thread: from now on the ring is this thread's (IORING_SETUP_SINGLE_ISSUER). 0 or -errno."""
    if io_uring_register(r.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0:
        return -c_errno
    r.enabled = True
    return 0


cdef io_uring_sqe *next_request(Ring *r) noexcept nogil:
    """The next free entry, for the one registered file; it is handed over with the next entering call."""
    cdef io_uring_sqe *request = &r.requests[r.tail & r.sq_mask]
    # There is always room: the ring was made for all that can be asked for at a time, and a call takes all there is.
    memset(request, 0, sizeof(io_uring_sqe))
    request.flags = IOSQE_FIXED_FILE
    r.tail += 1
    r.pending += 1
    return request


cdef int enter_ring(Ring *r, uint32_t least, int64_t timeout_ns) noexcept nogil:
    """Hand over what is pending and, if `least` is not 0, sleep until so many completions wait to be looked at.

    A time below 0 is no limit: who waits so has a beat, as a blocking receive has (waiting.pxd), and pays no more for
    its patience than that. 0, also if the time has passed or a signal came; or -errno.
    """
    cdef io_uring_getevents_arg more
    cdef int64_t[2] limit
    cdef int status
    if not r.enabled:
        status = begin(r)
        if status < 0:
            return status
    # A release: no entry is read by io_get_sqe before it is written.
    store_word(r.sq_tail, r.tail)
    memset(&more, 0, sizeof(more))
    if least and timeout_ns >= 0:
        limit[0] = timeout_ns // 1000000000
        limit[1] = timeout_ns % 1000000000
        more.ts = <uint64_t> limit
    # GETEVENTS also if nothing is waited for: with DEFER_TASKRUN it is what runs the work that was deferred.
    status = io_uring_enter(
        r.fd, r.pending, least, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &more, sizeof(more)
    )
    if status >= 0:
        r.pending -= <uint32_t> status
        return 0
    return 0 if c_errno in (ETIME, EINTR) else -c_errno


cdef int look_at_ring(Ring *r) noexcept nogil:
    """Hand over what is pending, and let what was deferred be done, without waiting; no call if there is neither."""
    return enter_ring(r, 0, 0) if r.pending or wants_entry(r) else 0


cdef int wait_ring(Ring *r, uint32_t least, int64_t timeout_ns) noexcept nogil:
    """Wait as the ring was told to, no longer than that: 0 or -errno. A ring that spins comes back at the first one."""
    cdef int64_t start = 0
    cdef int status, _
    if not r.spins:
        return enter_ring(r, least, timeout_ns)
    while True:
        # The clock only now and then, as in the other paths that spin.
        for _ in range(LOOKS):
            status = look_at_ring(r)
            if status < 0 or completion(r) != NULL:
                return status
        if start == 0:
            start = now()
        elif now() - start > timeout_ns:
            return 0


cdef void lend(Ring *r, char *at, uint32_t length, uint16_t number) noexcept nogil:
    """Give a buffer to the multishot receive; the kernel sees it once `buffer_tail` is published."""
    cdef io_uring_buf *entry = <io_uring_buf *> r.buffers + (r.buffer_tail & r.buffer_mask)
    # Field by field: the ring's tail lies where the first entry has its reserved bytes.
    entry.addr = <uint64_t> at
    entry.len = length
    entry.bid = number
    r.buffer_tail += 1
    # A release: the kernel's acquire (io_ring_buffer_select) must not see the tail before the entry.
    store_half(&r.buffers.tail, r.buffer_tail)


cdef uint32_t piece_of(const Sends *s, uint32_t first, uint32_t count) noexcept nogil:
    """Bytes of `count` slots as one piece. Messages that differ in size lie one right behind the other in it."""
    cdef const char *at = s.base + first * s.stride
    cdef uint32_t length = 0, _
    if not s.varies:
        return (count - 1) * <uint32_t> s.stride + s.size
    for _ in range(count):
        length += length_of(s.lengths, at + length)
    return length


cdef int request_send(Ring *r, Sends *s, uint32_t first, uint32_t count, uint32_t skip) noexcept nogil:
    """Ask for `count` slots to be sent as one piece, less the `skip` bytes of it that have gone out already.

    MSG_WAITALL lets the kernel go on with a stream that had no room for all of it (io_send).
    """
    cdef io_uring_sqe *request = next_request(r)
    cdef uint32_t k
    request.addr = <uint64_t> (s.base + first * s.stride + skip)
    request.len = piece_of(s, first, count) - skip
    request.msg_flags = MSG_NOSIGNAL | MSG_WAITALL
    request.user_data = <uint64_t> SEND << 48 | <uint64_t> first << 16 | count
    request.opcode = IORING_OP_SEND_ZC if s.zerocopy else IORING_OP_SEND
    request.ioprio = s.how  # buf_index is 0: the one registered piece of memory
    for k in range(first, first + count):
        s.busy[k] += 1
    s.open += 1
    s.unsent += 1
    return 0


cdef int sent(Sends *s, const io_uring_cqe *done, uint32_t *first, uint32_t *count) noexcept nogil:
    """A completion of a request to send: bytes sent, -errno, or 0 for a notification. Which slots it is about is told.

    SEND_ZC completes twice: once with its result, and, if that says MORE, once more when the kernel reads the memory no
    longer (io_uring_enter(2)).
    """
    cdef uint32_t k
    first[0] = <uint32_t> (done.user_data >> 16)
    count[0] = <uint32_t> (done.user_data & 0xffff)
    if done.flags & IORING_CQE_F_NOTIF:
        s.held -= 1
        if <uint32_t> done.res & IORING_NOTIF_USAGE_ZC_COPIED:
            s.copied += s.took[first[0]]
        for k in range(first[0], first[0] + count[0]):
            s.busy[k] -= 1
        return 0
    s.open -= 1
    if done.flags & IORING_CQE_F_MORE:
        s.held += 1
        s.took[first[0]] = <uint32_t> max(done.res, 0)
        s.asked += s.took[first[0]]
        return done.res
    for k in range(first[0], first[0] + count[0]):
        s.busy[k] -= 1
    return done.res


# --- before and after -----------------------------------------------------------------------------------------------

def why_no_ring(error: int) -> MachineError:
    """The error for an io_uring_setup(2) that failed, with what mends it."""
    name = errno.errorcode.get(error, error)
    if error == errno.ENOSYS:
        return MachineError(
            f"this kernel has no io_uring ({name})", remedy="a kernel with CONFIG_IO_URING, or the paths udp and tcp"
        )
    if error == errno.EPERM:
        said = DISABLED.read_text(encoding="ascii").strip() if DISABLED.exists() else "0"
        if said != "0":
            return MachineError(
                f"io_uring is switched off: kernel.io_uring_disabled is {said}",
                remedy="sysctl -w kernel.io_uring_disabled=0",
            )
        return MachineError(
            f"this process may not use io_uring ({name}): a seccomp filter, as those of containers, or a security"
            " module forbids it",
            remedy="allow io_uring_setup, io_uring_enter and io_uring_register, or run outside of the container",
        )
    if error == errno.EINVAL:
        return MachineError(
            "this kernel's io_uring cannot defer work to the thread that waits (IORING_SETUP_DEFER_TASKRUN)",
            remedy="Linux has it since 6.1; or the paths udp and tcp",
        )
    return MachineError(
        f"io_uring_setup: {os.strerror(error)} ({name})",
        remedy="raise 'ulimit -l' and 'ulimit -n', or close what is open",
    )


cdef int set_up_ring(Ring *r, uint32_t requests, uint32_t completions) except -1:
    cdef io_uring_params told
    memset(&told, 0, sizeof(told))
    # R_DISABLED: the thread that enables it owns it, and that is the loop's, not necessarily the one that sets up
    told.flags = (
        IORING_SETUP_CQSIZE | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER
        | IORING_SETUP_TASKRUN_FLAG
    )
    told.cq_entries = completions
    r.fd = io_uring_setup(requests, &told)
    if r.fd < 0:
        raise why_no_ring(c_errno)
    # all kernels that can defer work have these
    assert told.features & IORING_FEAT_EXT_ARG and told.features & IORING_FEAT_NODROP
    assert told.features & IORING_FEAT_SINGLE_MMAP
    r.mapped_length = max(
        told.sq_off.array + told.sq_entries * sizeof(uint32_t),
        told.cq_off.cqes + told.cq_entries * sizeof(io_uring_cqe),
    )
    r.mapped = <char *> map_ring(r.fd, r.mapped_length, IORING_OFF_SQ_RING)
    r.requests_length = told.sq_entries * sizeof(io_uring_sqe)
    r.requests = <io_uring_sqe *> map_ring(r.fd, r.requests_length, IORING_OFF_SQES)
    r.sq_tail = <uint32_t *> (r.mapped + told.sq_off.tail)
    r.sq_flags = <uint32_t *> (r.mapped + told.sq_off.flags)
    r.sq_mask = (<uint32_t *> (r.mapped + told.sq_off.ring_mask))[0]
    r.cq_head = <uint32_t *> (r.mapped + told.cq_off.head)
    r.cq_tail = <uint32_t *> (r.mapped + told.cq_off.tail)
    r.cq_mask = (<uint32_t *> (r.mapped + told.cq_off.ring_mask))[0]
    r.completions = <io_uring_cqe *> (r.mapped + told.cq_off.cqes)
    r.tail = r.sq_tail[0]
    r.head = r.cq_head[0]
    # entry k of the ring is request k, for good
    cdef uint32_t *array = <uint32_t *> (r.mapped + told.sq_off.array)
    cdef uint32_t k
    for k in range(told.sq_entries):
        array[k] = k
    return 0


cdef void *map_ring(int fd, size_t length, unsigned long long offset) except NULL:
    cdef void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, <int64_t> offset)
    if at == MAP_FAILED:
        error = c_errno
        raise MachineError(
            f"the rings of an io_uring cannot be mapped: {os.strerror(error)} ({errno.errorcode.get(error, error)})",
            remedy="raise 'ulimit -v', or end what uses so much memory",
        )
    return at


cdef int ask(Ring *r, unsigned int what, void *arg, unsigned int count, str name) except -1:
    if io_uring_register(r.fd, what, arg, count) < 0:
        error = c_errno
        remedy = "raise 'ulimit -l', the memory that may be locked" if error == errno.ENOMEM else (
            "a newer kernel: Linux has all that these paths use since 6.1"
        )
        raise MachineError(f"{name}: {os.strerror(error)} ({errno.errorcode.get(error, error)})", remedy=remedy)
    return 0


cdef int open_ring(Ring *r, uint32_t requests, uint32_t completions, int fd, bint spins) except -1:
    """Make a ring for so many requests and completions at a time, with `fd` as its one registered file."""
    cdef int32_t file = fd
    r.spins = spins
    set_up_ring(r, requests, completions)
    ask(r, IORING_REGISTER_FILES, &file, 1, "IORING_REGISTER_FILES")
    return 0


cdef int lend_buffers(Ring *r, char *base, size_t stride, uint32_t count) except -1:
    """Register a ring of provided buffers and lend all of them: `count` of `stride` bytes from `base` on."""
    cdef io_uring_buf_reg told
    cdef uint32_t k, entries = 1
    while entries < count:
        entries *= 2
    if not _knows(IORING_OP_RECV, IORING_RECV_MULTISHOT):
        raise MachineError(
            "this kernel's io_uring has no multishot receive (IORING_RECV_MULTISHOT)",
            remedy="leave multishot off; Linux has it since 6.0",
        )
    r.buffers_length = entries * sizeof(io_uring_buf)
    at = mmap(NULL, r.buffers_length, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_POPULATE, -1, 0)
    if at == MAP_FAILED:
        r.buffers_length = 0
        raise MemoryError
    r.buffers = <io_uring_buf_ring *> at
    r.buffer_mask = entries - 1
    memset(&told, 0, sizeof(told))
    told.ring_addr = <uint64_t> at
    told.ring_entries = entries
    told.bgid = GROUP
    ask(r, IORING_REGISTER_PBUF_RING, &told, 1, "IORING_REGISTER_PBUF_RING")
    for k in range(count):
        lend(r, base + k * stride, <uint32_t> stride, <uint16_t> k)
    return 0


cdef int register_memory(Ring *r, char *base, size_t length) except -1:
    """Let the kernel pin that memory once, instead of with every request that is sent from it."""
    cdef iovec piece
    piece.iov_base = base
    piece.iov_len = length
    ask(r, IORING_REGISTER_BUFFERS, &piece, 1, "IORING_REGISTER_BUFFERS")
    return 0


cdef str send_without_copying(Sends *s, Ring *r, char *base, size_t length):
    """Let `s` send by SEND_ZC from registered memory; what is chosen, in words."""
    if not _knows(IORING_OP_SEND_ZC, IORING_RECVSEND_FIXED_BUF):
        raise MachineError(
            "this kernel's io_uring does not send without copying (IORING_OP_SEND_ZC)",
            remedy="leave zerocopy_send off; Linux has it since 6.0",
        )
    register_memory(r, base, length)
    s.zerocopy = True
    s.how = IORING_RECVSEND_FIXED_BUF
    if _knows(IORING_OP_SEND_ZC, IORING_SEND_ZC_REPORT_USAGE):
        s.how |= IORING_SEND_ZC_REPORT_USAGE
        told = ""
    else:
        told = "; this kernel does not say what it copied after all"
    return f"IORING_OP_SEND_ZC, {s.slots} registered buffers{told}"


cdef dict sent_counts(const Sends *s):
    """What a sender without copies has counted, by the names of MSG_ZEROCOPY's.

    `zerocopy_untold_bytes`: those of which this kernel never says whether it copied them after all.
    """
    if not s.zerocopy:
        return {}
    counted = {"zerocopy_bytes": s.asked, "zerocopy_copied_bytes": s.copied, "zerocopy_unsettled": s.held}
    if not s.how & IORING_SEND_ZC_REPORT_USAGE:
        counted["zerocopy_untold_bytes"] = s.asked
    return counted


cdef bint _knows(int operation, int flag) except -1:
    """Whether the kernel takes this operation with this flag: a request for no file says which of both is wrong.

    What is not known is refused as such (EINVAL) before the file, or the registered memory, is looked for.
    """
    cdef Ring r
    cdef io_uring_sqe *request
    memset(&r, 0, sizeof(r))
    r.fd = -1
    try:
        set_up_ring(&r, 2, 4)
        request = next_request(&r)
        request.opcode = <unsigned char> operation
        request.flags = IOSQE_BUFFER_SELECT if flag == IORING_RECV_MULTISHOT else 0
        request.fd = -1
        request.buf_group = GROUP if flag == IORING_RECV_MULTISHOT else 0
        request.ioprio = <uint16_t> flag
        enter_ring(&r, 1, 1000000000)
        done = completion(&r)
        if done == NULL:
            return False
        known = done.res not in (-errno.EINVAL, -errno.EOPNOTSUPP)
        looked_at(&r)
        return known
    finally:
        close_ring(&r)


cdef void close_ring(Ring *r) noexcept:
    """Take back what is still asked for and give the ring back; harmless when called twice.

    A request that is left may still write into the path's buffers, which go next. A thread that is gone has taken its
    requests with it; the thread that owns the ring takes them back here.
    """
    cdef io_uring_sync_cancel_reg all_of_them
    if r.fd >= 0 and r.enabled:
        memset(&all_of_them, 0, sizeof(all_of_them))
        all_of_them.fd = -1
        all_of_them.flags = IORING_ASYNC_CANCEL_ANY
        all_of_them.timeout_sec = CANCEL_SECONDS
        io_uring_register(r.fd, IORING_REGISTER_SYNC_CANCEL, &all_of_them, 1)
    if r.requests != NULL:
        munmap(r.requests, r.requests_length)
        r.requests = NULL
    if r.mapped != NULL:
        munmap(r.mapped, r.mapped_length)
        r.mapped = NULL
    if r.fd >= 0:
        close(r.fd)
        r.fd = -1
    if r.buffers != NULL:
        munmap(r.buffers, r.buffers_length)
        r.buffers = NULL
