# cython: language_level=3, boundscheck=False, wraparound=False
"""Trial: what one end of a trial is to do, and the memory that the loop (loop.pyx) fills."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.core.meter cimport Meter
from cython_ext.core.payload cimport SMALLEST


cdef class Trial:
    """What one end is to do, and what it saw.

    Only the measured messages are recorded, all are accounted for. Of every message header and trailer are looked at;
    `check_every` says how many more are verified to the last byte. In a ping-pong a message of its own, which is not
    timed, goes before each n-th and is filled and verified by either end while nothing else is under way. Other
    patterns have no such gap: of their warm-up and cool-down each n-th message is verified, or of all messages each (n
    = 1), and then filling and verifying is part of every figure.

    `intended`, `posted`, `delivered`: int64 arrays of `messages` CLOCK_MONOTONIC nanoseconds, 0 where it was not. They
    belong to the trial and stay valid as long as anybody holds them. `meter` has the processor time of the measured
    messages.

    :param messages, warmup, cooldown: how many messages are measured, and how many come before and after
    :param size: bytes of a message; of the longest one if they differ
    :param sizes: uint32 bytes of message k modulo its length, which is a power of two; None: all have `size`
    :param trial: stands in each payload, so that a straggler of another trial is known as such
    :param batch: most messages in one post or one receive
    :param check_every: each n-th message is verified in full; 0: none
    :param due: of the client of `paced`: int64 nanoseconds from the loop's start at which each of the warmup + messages
        + cooldown is to be sent, ascending; they are copied
    :param limit_ns: how long nothing may move
    :param patience_ns: how long the client waits for the answer to a message that may be lost
    :param stamped: whether the server of a ping-pong records its deliveries, too
    :param lasts_ns: not 0: the measured messages go on for so long from the first one on; `messages` is then how many
        there is memory for
    :param closes: this end decides by its clock which message is the last; the other one is told (`stop`)
    :param counters: paths of files that are read where the measured messages begin and end (see Meter)
    :raises ValueError: if there are no messages, `size` is too small for the header, `sizes` is not a table of sizes up
        to it, or `due` has another length
    """

    def __init__(self, *, uint64_t messages, uint32_t size, uint64_t warmup=0, uint64_t cooldown=0, uint32_t trial=0,
                 uint32_t batch=1, uint32_t check_every=0, sizes=None, due=None, int64_t limit_ns=10_000_000_000,
                 int64_t patience_ns=500_000_000, bint stamped=True, counters=(), int64_t lasts_ns=0,
                 bint closes=True):
        if messages < 1:
            raise ValueError("a trial has at least one message")
        if size < SMALLEST:
            raise ValueError(f"a message has at least {SMALLEST} bytes, not {size}")
        self.plan.messages = messages
        self.plan.warmup = warmup
        self.plan.cooldown = cooldown
        self.plan.size = size
        # one size is a table with one entry, so that the loops look up either in the same way
        self.sizes = np.array([size] if sizes is None else sizes, dtype=np.uint32)  # a copy, whose pages are there
        if not len(self.sizes) or len(self.sizes) & (len(self.sizes) - 1):
            raise ValueError(f"a table of sizes has a power of two of entries, not {len(self.sizes)}")
        if self.sizes.min() < SMALLEST or self.sizes.max() > size:
            raise ValueError(f"sizes are within {SMALLEST} and {size} bytes")
        cdef uint32_t[::1] table = self.sizes
        self.plan.lengths.of = &table[0]
        self.plan.lengths.mask = <uint32_t> (len(self.sizes) - 1)
        self.plan.trial = trial
        self.plan.batch = max(1, min(batch, MOST))
        self.plan.check_every = check_every
        self.plan.limit_ns = limit_ns
        self.plan.patience_ns = min(patience_ns, limit_ns)
        self.plan.stamped = stamped
        # a range in any case, so that the loops do the same work whatever is checked
        if check_every != 1:
            self.plan.exempt_from = warmup if check_every else 0
            self.plan.exempt_to = warmup + messages if check_every else <uint64_t> -1
        self.total = warmup + messages + cooldown
        self.meter = Meter(warmup, messages, counters, lasts_ns)
        if lasts_ns and closes:
            self.meter.total = &self.total
            self.meter.posted = &self.tally.posted
            self.meter.cooldown = cooldown
        self.intended = touched(messages, np.int64)
        self.sent = touched(self.total, np.int64)
        self.posted = self.sent[warmup:warmup + messages]
        self.delivered = touched(messages, np.int64)
        self.seen_bits = touched((self.total + 7) // 8, np.uint8)
        cdef int64_t[::1] stamps
        if due is not None:
            self.due = np.array(due, dtype=np.int64)  # a copy, whose pages are there
            if len(self.due) != self.total:
                raise ValueError(f"{self.total} messages have {self.total} times to be sent at, not {len(self.due)}")
            stamps = self.due
            self.due_at = &stamps[0]
        stamps = self.intended
        self.intended_at = &stamps[0]
        stamps = self.sent
        self.sent_at = &stamps[0]
        stamps = self.delivered
        self.delivered_at = &stamps[0]
        cdef uint8_t[::1] bits = self.seen_bits
        self.seen = &bits[0]

    def counts(self) -> dict:
        """The tally, by name (see Tally).

        :return: a dict of whole numbers; `expected` is how many messages the trial has, warm-up and cool-down included;
            `lost` those of them that were not delivered, which is meaningful on the side that receives
        """
        t = self.tally
        return {
            "expected": self.total, "posted": t.posted, "delivered": t.delivered, "bytes": t.bytes,
            "lost": self.total - t.delivered, "duplicated": t.duplicated, "reordered": t.reordered,
            "corrupt": t.corrupt, "stale": t.stale, "wrong_size": t.wrong_size, "checked": t.checked,
            "unchecked": t.unchecked, "late": t.late, "sent_late": t.sent_late, "window_full": t.window_full,
        }

    def progress(self) -> int:
        """For another thread, while the loop runs: a number that grows with every message sent or delivered."""
        return self.tally.posted + self.tally.delivered + self.tally.checked

    def stop(self, uint64_t total=0):
        """For another thread: the other end has ended; do not wait for what a path may have lost.

        :param total: of a trial that went on for a time: all messages that it has, warm-up and cool-down among them
        """
        if 0 < total < self.total:
            self.total = total
        self.stopped = True

    @property
    def filled(self) -> bool:
        """Whether a trial that was to go on for a time ended before it, because it had no memory for more messages."""
        return self.meter.filled


def touched(size_t count, kind):
    """Zeros whose pages are there: np.zeros would leave them to be faulted in by a loop."""
    array = np.empty(count, dtype=kind)
    array.fill(0)
    return array
