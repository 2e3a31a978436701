# cython: language_level=3
"""Messages that differ in size: how many of them an end that is only read from keeps ready."""

MOST_ENTRIES = 4096
ROOM = 32 << 20  # bytes that they may take


def read_entries(size: int) -> int:
    """How many entries a table of sizes has if messages are READ: each is a slot at the end that is read from.

    :param size: bytes of the longest message
    :return: a power of two, at least 2
    """
    fit = max(2, min(MOST_ENTRIES, ROOM // (size + 4095 & ~4095)))
    return 1 << (fit.bit_length() - 1)
