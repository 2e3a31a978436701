# cython: language_level=3, cdivision=True
"""Interrupt: what VFIO's eventfds and UIO's device file have in common."""

import os

from libc.errno cimport EAGAIN, EBADF, EINTR, errno
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from posix.time cimport timespec
from posix.unistd cimport pread, pwrite, read, write

from cython_ext.core.clock cimport now
from cython_ext.headers.sys_poll cimport POLLIN, pollfd, ppoll


cdef int alarm_wait(Alarm *alarm, int64_t deadline) noexcept nogil:
    """Sleep until it fires: 1; until CLOCK_MONOTONIC reaches `deadline`: 0; or -errno. Takes the report."""
    cdef pollfd watched
    cdef char[8] drop
    cdef timespec pause
    cdef int64_t left
    cdef int status
    if alarm.fd < 0:
        return -EBADF
    watched.fd = alarm.fd
    watched.events = POLLIN
    while True:
        left = max(deadline - now(), 0)
        pause.tv_sec = left // 1_000_000_000
        pause.tv_nsec = left % 1_000_000_000
        status = ppoll(&watched, 1, &pause, NULL)
        if status == 0:
            return 0
        if status < 0:
            if errno == EINTR:
                continue
            return -errno
        if read(alarm.fd, drop, alarm.report) < 0:
            if errno == EAGAIN or errno == EINTR:
                continue
            return -errno
        alarm.fired += 1
        return 1


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
    """`fd` is readable after an interrupt, and non-blocking; a read of `report` bytes takes the report.

    A count that is read is a count of interrupts, not of packets: whoever waits looks at the ring afterwards, whatever
    it says, and before.

    :param kind: msix, msi or intx
    :param fd: belongs to `on_close`, which closes it
    :param report: bytes that one read takes
    :param unmask: if the interrupt stays masked after it fired, `(descriptor, bytes, offset or -1)`: what to write to
        let the next one come
    :param keeps: leading bytes of these that are read there each time, and stay as they are
    :param on_close: called once by `close()`, and owns the descriptors
    :raises ValueError: if what is written to unmask has not 1 to 8 bytes, or all of them are kept
    """

    def __init__(self, str kind, int fd, *, size_t report=8, unmask=None, size_t keeps=0, on_close=None):
        self.kind = kind
        self.alarm.fd = fd
        self.alarm.report = report
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
        """How many reports were taken."""
        return self.alarm.fired

    def wait_for(self, double seconds) -> bool:
        """Wait for the interrupt; releases the GIL.

        :param seconds: how long
        :return: whether it fired
        :raises OSError: if the descriptor fails; EBADF once closed
        """
        cdef int64_t deadline = now() + <int64_t> (seconds * 1e9)
        cdef int status
        with nogil:
            status = alarm_wait(&self.alarm, deadline)
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
        if self.on_close is not None:
            on_close, self.on_close = self.on_close, None
            on_close()
