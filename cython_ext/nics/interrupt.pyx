# cython: language_level=3, cdivision=True
"""Interrupt: what VFIO's eventfds and UIO's device file have in common."""

import os
import select

from libc.errno cimport EBADF, EINTR, errno
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from posix.time cimport timespec
from posix.unistd cimport pread, pwrite, write

from cython_ext.core.clock cimport now
from cython_ext.headers.sys_epoll cimport epoll_event, epoll_pwait2


cdef int alarm_wait(Alarm *alarm, int64_t at, int64_t deadline) noexcept nogil:
    cdef epoll_event event
    cdef timespec pause
    cdef int64_t left
    cdef int status
    if alarm.fd < 0:
        return -EBADF
    while True:
        left = max(deadline - at, 0)
        pause.tv_sec = left // 1_000_000_000
        pause.tv_nsec = left % 1_000_000_000
        status = epoll_pwait2(alarm.epoll, &event, 1, &pause, NULL)
        if status >= 0:
            alarm.fired += status
            return status
        if errno != EINTR:
            return -errno
        at = now()


cdef int alarm_unmask(Alarm *alarm) noexcept nogil:
    """Let the next one come, where it masks itself: 0 or -errno."""
    cdef ssize_t done
    if alarm.unmask_fd < 0:
        return 0
    if alarm.unmask_at < 0:
        done = write(alarm.unmask_fd, alarm.unmask_data, alarm.unmask_size)
    else:
        if alarm.unmask_keeps and pread(alarm.unmask_fd, alarm.unmask_data, alarm.unmask_keeps, alarm.unmask_at) < 0:
            return -errno
        done = pwrite(alarm.unmask_fd, alarm.unmask_data, alarm.unmask_size, alarm.unmask_at)
    return 0 if done == <ssize_t> alarm.unmask_size else -errno


cdef class Interrupt:
    """`fd` becomes readable at each interrupt, and stays so, as nobody reads it.

    Interrupts that come between two waits are one; none of them is a packet: whoever waits looks at the ring
    afterwards, and before.

    :param kind: msix, msi or intx
    :param fd: belongs to `on_close`, which closes it
    :param unmask: if the interrupt stays masked after it fired, `(descriptor, bytes, offset or -1)`: what to write to
        let the next one come
    :param keeps: leading bytes of these that are read there each time, and stay as they are
    :param on_close: called once by `close()`, and owns the descriptors
    :raises ValueError: if what is written to unmask has not 1 to 8 bytes, or all of them are kept
    """

    def __init__(self, str kind, int fd, *, unmask=None, size_t keeps=0, on_close=None):
        self.kind = kind
        self.alarm.fd = fd
        self.epoll = select.epoll()
        self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self.alarm.epoll = self.epoll.fileno()
        self.alarm.unmask_fd = -1
        self.on_close = on_close
        if unmask is not None:
            self.alarm.unmask_fd, data, self.alarm.unmask_at = unmask
            if not keeps < len(data) <= 8:
                raise ValueError("what is written to unmask has 1 to 8 bytes, and not all are kept")
            self.alarm.unmask_size = len(data)
            self.alarm.unmask_keeps = keeps
            memcpy(self.alarm.unmask_data, <const char *> data, self.alarm.unmask_size)

    @property
    def fd(self) -> int:
        """The descriptor; -1 once closed."""
        return self.alarm.fd

    @property
    def fired(self) -> int:
        """How many times a wait was ended by it."""
        return self.alarm.fired

    def wait_for(self, double seconds) -> bool:
        """Wait for the interrupt; releases the GIL.

        :param seconds: how long
        :return: whether it fired
        :raises OSError: if the descriptor fails; EBADF once closed
        """
        cdef int64_t at = now()
        cdef int status
        with nogil:
            status = alarm_wait(&self.alarm, at, at + <int64_t> (seconds * 1e9))
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        return status == 1

    def rearm(self) -> None:
        """Unmask, from Python, so that the next one comes.

        :raises OSError: if the write fails
        """
        cdef int status = alarm_unmask(&self.alarm)
        if status < 0:
            raise OSError(-status, os.strerror(-status))

    def close(self):
        """Give the descriptors back; harmless when called twice."""
        self.alarm.fd = self.alarm.unmask_fd = -1
        self.epoll.close()
        if self.on_close is not None:
            on_close, self.on_close = self.on_close, None
            on_close()
