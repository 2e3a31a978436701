# cython: language_level=3
"""SocketTransport: the life of a socket that is one end of a path; its data path stands in udp.pyx and tcp.pyx."""

import errno
import select
import socket
import struct

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport FINISHED, WC_STATUS, Transport
from cython_ext.headers.sys_select cimport FD_SETSIZE
from cython_ext.sockets.waiting cimport BLOCK, EPOLL, SELECT, SPIN, Waiter
from cython_ext.sockets.zerocopy cimport MOST_SLOTS, ZeroCopy
from cython_ext.sockets.zerocopy_send cimport install

from hwrx.errors import MachineError, PathError

# Busy polling is blocking on a socket whose SO_BUSY_POLL is set.
MANNERS = {"block": BLOCK, "busy-poll": BLOCK, "epoll": EPOLL, "select": SELECT, "spin": SPIN}

# asm-generic/socket.h; Python's socket module does not have it
SO_ZEROCOPY = 60
SO_INCOMING_NAPI_ID = 56

MAX_RW_COUNT = 0x7ffff000  # bytes that one call moves at the most: include/linux/fs.h

UNREACHABLE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


def sending_slots(batch: int) -> int:
    """How many messages of a zero-copy sender may be the kernel's at a time: two batches, and two."""
    return min(2 * batch + 2, MOST_SLOTS)


def batch_in_a_piece(batch: int, size: int) -> int:
    """How many messages of `size` bytes go out as one piece of a stream: as a call moves no more, and counts them."""
    return max(1, min(batch, MAX_RW_COUNT // size))


def named(address) -> str:
    """`ADDRESS port N` of what getsockname and its kin return."""
    return f"{address[0]} port {address[1]}"


cdef class SocketTransport(Transport):
    """A socket with pinned buffers: `received` for delivered messages, `built` for outgoing ones.

    :param sock: bound and blocking, with its options set; it belongs to this object from the moment it is given
    :param manner: how to wait, a name of MANNERS
    :param patience: seconds that one call waits for a message
    :param limit: seconds without any progress after which an operation fails with ETIMEDOUT
    :param huge: take the buffers from huge pages
    :param notes: options chosen by whoever made the socket; they go into `chosen()`
    """

    cdef int set_up(self, Waiter *waiter, object sock, str manner, double patience, object notes) except -1:
        if self.waiter != NULL:
            raise ValueError("an endpoint is set up once")
        waiter.fd = waiter.epoll = -1
        self.waiter = waiter
        self.sock = sock
        self.notes = dict(notes or {})
        self.peer = "the other end"
        if manner not in MANNERS:
            raise ValueError(f"no such manner of waiting: {manner!r}")
        waiter.manner = MANNERS[manner]
        waiter.patience_ns = <int64_t> (patience * 1e9)
        self.wait_on(sock)
        return 0

    cdef int wait_on(self, object sock) except -1:
        """Let the loops receive from `sock`."""
        cdef Waiter *waiter = self.waiter
        sock.setblocking(True)
        if waiter.manner != BLOCK:
            # sending waits in the sending call, in every manner; microseconds, and 0 would mean for ever
            patience = struct.pack("ll", *divmod(max(waiter.patience_ns // 1000, 1), 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        if waiter.manner == EPOLL:
            self.epoll = select.epoll()
            self.epoll.register(sock.fileno(), select.EPOLLIN)
            waiter.epoll = self.epoll.fileno()
        elif waiter.manner == SELECT and sock.fileno() >= FD_SETSIZE:
            raise MachineError(
                f"select cannot watch file descriptor {sock.fileno()}: it must be below {FD_SETSIZE}",
                remedy="wait by epoll, or close what else is open",
            )
        waiter.fd = sock.fileno()
        return 0

    cdef int pin(self, size_t receive, size_t send, bint huge) except -1:
        self.received = PinnedBuffer(receive, huge=huge)
        self.received.users += 1
        self.built = PinnedBuffer(send, huge=huge)
        self.built.users += 1
        return 0

    cdef int send_zerocopy(self, size_t stride, uint32_t slots, uint64_t *posted, int64_t limit_ns) except -1:
        """Send with MSG_ZEROCOPY, from `slots` slots in `built`; the last step of setting up, after `ops` is filled."""
        cdef ZeroCopy *z
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        except OSError as error:
            raise MachineError(
                f"this kernel's {'TCP' if self.sock.type == socket.SOCK_STREAM else 'UDP'} sockets do not send without"
                f" copying: SO_ZEROCOPY: {error.strerror} ({errno.errorcode.get(error.errno, error.errno)})",
                remedy="leave zerocopy_send off; TCP has it since Linux 4.14, UDP since 5.0",
            ) from error
        z = <ZeroCopy *> calloc(1, sizeof(ZeroCopy))
        if z == NULL:
            raise MemoryError
        z.slots = slots
        z.base = self.built.base
        z.stride = stride
        z.lengths = &self.lengths
        z.limit_ns = limit_ns
        z.posted = posted
        self.zero = self.waiter.zero = z
        install(z, &self.ops)
        self.notes["zerocopy_send"] = f"MSG_ZEROCOPY, {slots} buffers"
        return 0

    def counts(self):
        """What a zero-copy sender has counted.

        :return: `zerocopy_bytes` sent so, `zerocopy_copied_bytes` of them that the kernel says it copied after all
            (SO_EE_CODE_ZEROCOPY_COPIED), `zerocopy_unsettled` sends of which it has said nothing yet; {} of others
        """
        if self.zero == NULL:
            return {}
        return {
            "zerocopy_bytes": self.zero.asked,
            "zerocopy_copied_bytes": self.zero.copied,
            "zerocopy_unsettled": self.zero.open,
        }

    def __dealloc__(self):
        # the subclass's state, which `waiter` points into, lies in this object
        if self.waiter != NULL:
            stop_beat(&self.waiter.beat)
        free(self.zero)

    def describe(self):
        """Return the address and port to connect to, and `receive_buffer`, the effective SO_RCVBUF in bytes."""
        address, port = self.sock.getsockname()[:2]
        return {
            "address": address,
            "port": port,
            "receive_buffer": self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        }

    def resolve(self, remote):
        """Return the socket address of what the other end described; no names are looked up.

        :param remote: a dict with `address` and `port`
        :return: a tuple for connect(2), with our own scope if the address is link-local
        :raises PathError: if the description is not an address of this socket's family
        """
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        try:
            found = socket.getaddrinfo(
                remote["address"], str(int(remote["port"])), self.sock.family, self.sock.type, 0, flags
            )
        except (KeyError, ValueError, TypeError, socket.gaierror) as error:
            told = remote.get("address", "none was sent")
            raise PathError(f"the other end's address cannot be used: {told}: {error}") from error
        address = found[0][4]
        if len(address) == 4 and address[3] == 0:
            # a link-local address means nothing without the link; ours is the one that it can be reached over
            address = (*address[:3], self.sock.getsockname()[3])
        self.peer = named(address)
        return address

    def connect_socket(self, remote):
        """Connect the socket.

        :param remote: a dict with `address` and `port`
        :raises PathError: naming the peer, if it cannot be reached
        """
        address = self.resolve(remote)
        try:
            self.sock.connect(address)
        except TimeoutError as error:
            raise PathError(
                f"peer unreachable: {self.peer} did not answer in time",
                remedy="see whether the addresses are in one network and the link is up",
            ) from error
        except OSError as error:
            raise PathError(
                f"peer unreachable: connect to {self.peer}: {error.strerror} ({errno.errorcode.get(error.errno)})",
                remedy="see whether the other end runs, and whether a route leads to it over the device it is bound to",
            ) from error

    def chosen(self):
        """Return the options in force: the manifest's `chosen`.

        :return: a dict: effective `send_buffer` and `receive_buffer` in bytes (the kernel doubles what it is asked for:
            socket(7)), and what was noted when the socket was made
        """
        notes = dict(self.notes)
        if self.sock.fileno() >= 0:
            notes["send_buffer"] = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            notes["receive_buffer"] = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            if "busy_poll" in notes and self.sock.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID) == 0:
                # lo and a plain veth have no queue of a driver: what was received so far came past none
                notes["busy_poll"] += ", but nothing came from a device that can be polled: the receiver blocked"
        return notes

    def explain(self, int status):
        """One sentence for what an operation returned: what happened, to which peer, and the usual cause.

        :param status: -errno, FINISHED or a path's own
        """
        if WC_STATUS < status < 0 and status != FINISHED:
            if -status in UNREACHABLE:
                return (
                    f"peer unreachable: {self.peer}: {errno.errorcode[-status]} came back;"
                    " the other end is gone, or no route leads to it"
                )
            if -status in (errno.ECONNRESET, errno.EPIPE):
                return f"{self.peer} broke off ({errno.errorcode[-status]}): the other end died or closed early"
            if -status == errno.ENOBUFS and self.zero != NULL:
                return (
                    "the kernel took no further buffer to send without copying (ENOBUFS): its memory for notifications"
                    " or the limit of locked memory is used up; raise net.core.optmem_max or 'ulimit -l'"
                )
            if -status == errno.ETIMEDOUT:
                return f"{self.peer} took nothing for the time limit (ETIMEDOUT)"
        return Transport.explain(self, status)

    def close(self):
        """Close the socket and give the buffers back; harmless when called twice.

        :raises BufferError: while views of the buffers are alive; the socket is closed all the same
        """
        if self.waiter != NULL:
            stop_beat(&self.waiter.beat)
            self.waiter.fd = self.waiter.epoll = -1
        if self.epoll is not None:
            self.epoll.close()
            self.epoll = None
        if self.sock is not None:
            self.sock.close()
        for buffer in (self.received, self.built):
            if buffer is not None and not buffer.closed:
                _give_up(buffer)


cdef int _give_up(PinnedBuffer buffer) except -1:
    """Close a buffer that the loops pointed into; where a view keeps it, the pointer stays counted for the next try."""
    buffer.users -= 1
    try:
        buffer.close()
    except BufferError:
        buffer.users += 1
        raise
    return 0
