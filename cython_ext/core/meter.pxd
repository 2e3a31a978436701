"""The processor time of one end of a trial, from its first measured message to its last."""

from libc.stdint cimport int64_t, uint64_t


cdef struct Reading:
    int64_t at          # CLOCK_MONOTONIC
    int64_t thread      # CLOCK_THREAD_CPUTIME_ID
    int64_t user        # of getrusage(2): the thread's time as the kernel divides it
    int64_t system
    uint64_t done       # messages that this end was through with


cdef class Meter:
    cdef uint64_t due   # the next reading is taken as soon as so many messages are done
    cdef uint64_t ends
    # of a trial that goes on for a time: how long, from the first reading on, and what is told the end; else 0, NULL
    cdef int64_t lasts
    cdef uint64_t cooldown
    cdef uint64_t *total      # of the client: all messages of the trial, once that is known
    cdef const uint64_t *posted
    cdef readonly bint filled  # it ended before its time, for want of memory for more messages
    cdef int readings
    cdef Reading first, last
    cdef uint64_t beside      # further exchanges between the readings, of messages that are checked and not timed
    cdef int64_t left_at, left_thread, away, away_thread
    cdef int files
    cdef int *descriptors
    cdef char *before   # what the files said, `room` bytes each
    cdef char *after
    cdef int *lengths   # of `before`, then of `after`
    cdef readonly tuple paths

    cdef void take(self, uint64_t done) noexcept nogil
    cdef bint ends_now(self, uint64_t done) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef void back(self) noexcept nogil

    cdef inline void mark(self, uint64_t done) noexcept nogil:
        """Called when `done` messages are behind this end, outside of any timed interval."""
        if done >= self.due:
            self.take(done)
