"""The ledger's copies of a reader that takes less than a datagram has, where functions can be probed."""

from __future__ import annotations

from tracing import check_short_reads


def test_a_short_read_copies_what_it_takes() -> None:
    check_short_reads()
