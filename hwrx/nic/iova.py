"""Which addresses a device may be told: an allocator over the ranges that an IOMMU can map."""

from __future__ import annotations

from bisect import insort

from hwrx.errors import MachineError


class IovaAllocator:
    """Hands out ranges of I/O virtual addresses, first fit, and takes them back.

    `ranges` are (first, last) pairs as VFIO_IOMMU_GET_INFO gives them; `page_sizes` has a bit for each size in bytes.
    All that is handed out begins and ends on a multiple of the smallest page. The first page is never used, so that
    address 0 stays what it is for a NIC: no buffer (82574 datasheet 7.1.7.2).
    """

    def __init__(self, ranges: list[tuple[int, int]], page_sizes: int) -> None:
        if page_sizes <= 0:
            raise MachineError("the IOMMU names no page size that it can map")
        self.page = page_sizes & -page_sizes
        self._free: list[tuple[int, int]] = []  # (first, one past the last), ascending, never adjacent
        for first, last in sorted(ranges):
            start = max(-(-first // self.page) * self.page, self.page)
            end = (last + 1) // self.page * self.page
            if start < end:
                self._free.append((start, end))
        self._used: dict[int, int] = {}

    def take(self, size: int, *, align: int = 0) -> int:
        """An address of `size` bytes, a multiple of `align`; MachineError where no range has so much left."""
        if size <= 0:
            raise ValueError("a range has at least one byte")
        size = -(-size // self.page) * self.page
        align = max(align, self.page)
        if align & (align - 1):
            raise ValueError("an alignment is a power of two")
        for index, (start, end) in enumerate(self._free):
            at = -(-start // align) * align
            if at + size <= end:
                self._free[index : index + 1] = [
                    piece for piece in ((start, at), (at + size, end)) if piece[0] < piece[1]
                ]
                self._used[at] = size
                return at
        raise MachineError(
            f"the IOMMU has no {size} bytes of addresses left in one piece ({len(self._used)} ranges are in use)",
            remedy="use a smaller ring or smaller buffers, or close other devices of this container",
        )

    def give(self, at: int) -> int:
        """Take a range back; returns its size. ValueError where nothing begins at `at`."""
        size = self._used.pop(at, 0)
        if not size:
            raise ValueError(f"no range begins at {at:#x}")
        insort(self._free, (at, at + size))
        merged: list[tuple[int, int]] = []
        for start, end in self._free:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged
        return size

    @property
    def used(self) -> dict[int, int]:
        """Address and size of each range in use."""
        return dict(self._used)
