"""The ranges of the numbers that an experiment takes: by the name of the parameter, whichever instrument has it.

A number beyond them would end in a traceback, take the machine's memory, or be measured and mean nothing.
"""

from __future__ import annotations

from hwrx.errors import UsageError

RANGES: dict[str, tuple[float, float]] = {
    "budget": (0, 2**31 - 1),  # net.core.netdev_budget is an int; 0: as it is
    "burden": (0, 1024),
    "burst": (1, 10_000_000),
    "connections": (1, 60_000),
    "count": (1, 1_000_000),
    "counts": (0, 1_000_000),
    "entries": (8, 4096),  # 82574 datasheet, 7.1.5: a ring has 8 descriptors at the least
    "filler_mb": (1, 1 << 20),
    "flows": (1, 60_000),
    "frames": (1, 1_000_000),
    "gap_ms": (0.001, 60_000),
    "kilobytes": (1, 4 << 20),
    "megabytes": (1, 1 << 20),
    "messages": (1, 10_000_000),
    "packets": (1, 10_000_000),
    "pages": (1, 1 << 20),
    "peers": (1, 60_000),
    "port": (1, 65_535),
    "receive_buffer": (0, 1 << 30),  # the kernel doubles it, in an int
    "rounds": (1, 100_000),
    "seed": (0, 2**32 - 1),  # of jhash: a word
    "senders": (1, 60_000),
    "size": (16, 65_507),  # bytes of a UDP datagram
    "sizes": (16, 65_507),
    "sockets": (1, 1_000_000),
    "table": (1, 1 << 16),  # slots of the kernel's table of UDP sockets
    "width": (1, 4),
    "work_us": (0, 1e6),
}


def check_range(claim: str, key: str, value: object) -> None:
    """Hold a parameter's value against its range; what is not a number has none.

    :raises UsageError: that names the range, if a number lies outside of it, is not finite, or a list has none
    """
    if key not in RANGES:
        return
    least, most = RANGES[key]
    numbers = value if isinstance(value, list) else [value]
    if not numbers:
        raise UsageError(f"{claim}: {key} names no number", remedy=f"{key} is from {least:,} to {most:,}")
    for number in numbers:
        if not isinstance(number, int | float) or not least <= number <= most:  # nan is neither below nor above
            raise UsageError(
                f"{claim}: {key} is {str(number)[:40]}", remedy=f"{key} is from {least:,} to {most:,}, and finite"
            )
