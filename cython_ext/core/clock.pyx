# cython: language_level=3, boundscheck=False, wraparound=False
"""The clock that every stamp comes from, and what reading it costs."""

import numpy as np

cimport cython
from libc.stdint cimport int64_t


def monotonic_ns() -> int:
    """Nanoseconds of CLOCK_MONOTONIC, read the way the loops read it."""
    return now()


@cython.cdivision(True)
def cost(int rounds=10000):
    """What one reading of the clock costs.

    Two readings follow each other at once, `rounds` times; the gap is the cost of one reading.

    Returns a dict of nanoseconds: `p50`, `p99`, `min`, `max` of the gaps, and `rounds`.
    """
    if rounds < 1:
        raise ValueError("rounds must be at least 1")
    gaps = np.zeros(rounds, dtype=np.int64)
    cdef int64_t[::1] out = gaps
    cdef int64_t before
    cdef int i
    with nogil:
        for i in range(rounds):
            before = now()
            out[i] = now() - before
    return {
        "p50": float(np.quantile(gaps, 0.5)),
        "p99": float(np.quantile(gaps, 0.99)),
        "min": int(gaps.min()),
        "max": int(gaps.max()),
        "rounds": rounds,
    }
