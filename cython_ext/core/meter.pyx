# cython: language_level=3, boundscheck=False, wraparound=False
"""Meter: reads a thread's processor time, and the kernel's counters, where the measured messages begin and end.

The loop (loop.pyx) calls `mark` after each message. Two of the calls take a reading: the first with at least `warmup`
messages done, and the first with at least `warmup + messages`. Their numbers of messages are kept, for a receiver of
batches may be a few beyond. Nothing is allocated and no Python object touched: files are opened, and the memory for
what they say is there, before the trial.
"""

import os

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.resource cimport getrusage, rusage
from posix.time cimport CLOCK_MONOTONIC, clock_getres, clock_gettime, clockid_t, timespec
from posix.types cimport off_t

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_THREAD_CPUTIME_ID
    clockid_t CLOCK_MONOTONIC_COARSE

cdef extern from "<sys/resource.h>" nogil:
    int RUSAGE_THREAD

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)

cdef enum:
    ROOM = 1 << 14  # bytes of a file that are read; what goes on is cut, and its reader sees that

cdef uint64_t NEVER = <uint64_t> -1


cdef inline int64_t read_clock(clockid_t which) noexcept nogil:
    cdef timespec t
    clock_gettime(which, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef inline void read_usage(Reading *reading) noexcept nogil:
    cdef rusage used
    getrusage(RUSAGE_THREAD, &used)
    reading.user = <int64_t> used.ru_utime.tv_sec * 1000000000 + used.ru_utime.tv_usec * 1000
    reading.system = <int64_t> used.ru_stime.tv_sec * 1000000000 + used.ru_stime.tv_usec * 1000


cdef class Meter:
    """Measures the calling thread from `warmup` messages done to `warmup + messages` done.

    Close it, or leave that to the garbage collector.

    :param warmup, messages: numbers of messages
    :param lasts_ns: not 0: the second reading is taken so long after the first, or at `messages` if those are fewer
    :param paths: files (of procfs) whose first 16 KiB are read at both readings, outside of what is measured; one that
        cannot be opened or read says nothing
    """

    def __cinit__(self, uint64_t warmup=0, uint64_t messages=1, paths=(), int64_t lasts_ns=0):
        self.paths = tuple(paths)
        self.lasts = lasts_ns
        self.due = warmup
        self.ends = warmup + messages
        self.files = 0
        cdef size_t count = max(1, len(self.paths))
        self.descriptors = <int *> calloc(count, sizeof(int))
        self.before = <char *> calloc(count, ROOM)
        self.after = <char *> calloc(count, ROOM)
        self.lengths = <int *> calloc(2 * count, sizeof(int))
        if not self.descriptors or not self.before or not self.after or not self.lengths:
            raise MemoryError
        for path in self.paths:
            try:
                self.descriptors[self.files] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self.descriptors[self.files] = -1
            self.files += 1
        memset(self.before, 0, count * ROOM)  # the pages are there before the trial
        memset(self.after, 0, count * ROOM)

    def __dealloc__(self):
        self.close()
        free(self.descriptors)
        free(self.before)
        free(self.after)
        free(self.lengths)

    def close(self) -> None:
        """Close the files; what they said stays. A second call does nothing."""
        for k in range(self.files):
            if self.descriptors[k] >= 0:
                os.close(self.descriptors[k])
                self.descriptors[k] = -1

    cdef void take(self, uint64_t done) noexcept nogil:
        cdef int k
        if self.lasts and not self.ends_now(done):
            return
        if self.readings == 0:
            # the files first and the clocks last, at the end the other way round: reading them is not what is measured
            for k in range(self.files):
                self.lengths[k] = <int> pread(self.descriptors[k], self.before + k * ROOM, ROOM, 0)
            self.first.done = done
            read_usage(&self.first)
            self.first.thread = read_clock(CLOCK_THREAD_CPUTIME_ID)
            self.first.at = read_clock(CLOCK_MONOTONIC)
            self.due = done + 1 if self.lasts else self.ends
        else:
            self.last.at = read_clock(CLOCK_MONOTONIC)
            self.last.thread = read_clock(CLOCK_THREAD_CPUTIME_ID)
            read_usage(&self.last)
            self.last.done = done
            for k in range(self.files):
                self.lengths[self.files + k] = <int> pread(self.descriptors[k], self.after + k * ROOM, ROOM, 0)
            self.due = NEVER
        self.readings += 1

    cdef bint ends_now(self, uint64_t done) noexcept nogil:
        # Of a trial that goes on for a time `mark` comes here after each message, outside of any timed interval.
        if self.readings == 0:
            return True
        self.filled = done >= self.ends
        if not self.filled and read_clock(CLOCK_MONOTONIC) - self.first.at < self.lasts:
            self.due = done + 1
            return False
        if self.total != NULL and not self.filled:
            # what is under way belongs to the cool-down
            self.total[0] = min(self.total[0], max(done + self.cooldown, self.posted[0]))
            self.ends = done
        return True

    cdef void leave(self) noexcept nogil:
        """What comes until `back` is work on the bytes of a checked message, and no part of the path's."""
        self.left_at = read_clock(CLOCK_MONOTONIC)
        self.left_thread = read_clock(CLOCK_THREAD_CPUTIME_ID)

    cdef void back(self) noexcept nogil:
        if self.readings == 1:
            self.away_thread += read_clock(CLOCK_THREAD_CPUTIME_ID) - self.left_thread
            self.away += read_clock(CLOCK_MONOTONIC) - self.left_at

    def found(self) -> dict | None:
        """What lies between the readings, in ns; None unless both were taken with messages between them.

        `messages`, those `beside` the measured ones among them that are checked and not timed; `elapsed` (by
        CLOCK_MONOTONIC) and `thread` (exact) without what such a check does to bytes, for which the thread was `away`
        (by CLOCK_MONOTONIC); and `user` and `system` as getrusage(2) divides it, by looking at every `tick`, which that
        many ns are between.
        """
        if self.readings < 2 or self.last.done <= self.first.done:
            return None
        cdef timespec tick
        clock_getres(CLOCK_MONOTONIC_COARSE, &tick)
        return {
            "messages": self.last.done - self.first.done + self.beside,
            "beside": self.beside,
            "elapsed": self.last.at - self.first.at - self.away,
            "away": self.away,
            "thread": self.last.thread - self.first.thread - self.away_thread,
            "user": self.last.user - self.first.user,
            "system": self.last.system - self.first.system,
            "tick": tick.tv_nsec,
        }

    def said(self) -> dict:
        """What each file said at the two readings.

        :return: path -> (bytes at the first reading, bytes at the second), without those that could not be read
        """
        result = {}
        if self.readings == 2:
            for k, path in enumerate(self.paths):
                one, two = self.lengths[k], self.lengths[self.files + k]
                if one > 0 and two > 0:
                    result[path] = (self.before[k * ROOM : k * ROOM + one], self.after[k * ROOM : k * ROOM + two])
        return result

    @property
    def times(self) -> tuple:
        """CLOCK_MONOTONIC ns of both readings; 0 for one that was not taken."""
        return self.first.at, self.last.at
