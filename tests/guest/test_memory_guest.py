"""Which pages the guest's kernel moves and pages out, and that whoever pins them is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_ends import Places

from hwrx import memory
from hwrx.host import tools
from hwrx.probes import cgroups
from hwrx.wires import guest_nics

PAGES = 128
LITTLE = 128 << 20  # bytes of filler: enough for a guest that does nothing else
PINNED = ("registered", "ring")


def state() -> tuple[str, ...]:
    """What a measurement changes for so long."""
    sysctls = ("vm/nr_hugepages", "vm/compact_unevictable_allowed")
    ours = sorted(path.name for path in cgroups.find_hierarchy().glob("hwrx-*"))
    own = [Path("/proc/swaps"), Path("/proc/self/cgroup"), cgroups.find_hierarchy() / "cgroup.subtree_control"]
    return (*(path.read_text() for path in (*own, *(Path("/proc/sys", name) for name in sysctls))), *ours)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def measured(pair: Places) -> memory.Measured:
    tools.run_tool("modprobe", "e1000e")
    nic = guest_nics.NIC_HARDWARE["server"]
    return memory.measure_pages(
        pages=PAGES, device="rxe0", nic=nic, own=(guest_nics.NIC_ADDRESSES["server"],), filler=LITTLE
    )


def test_pinned_pages_stay_where_locked_ones_are_moved_and_ordinary_ones_paged_out(measured: memory.Measured) -> None:
    assert measured.unavailable == {}
    assert measured.unevictable
    assert [row.kind for row in measured.rows] == list(memory.KINDS)
    for row in measured.rows:
        assert row.compaction is not None
        assert row.pressure is not None
        assert (row.compaction.moved > 0) == (row.kind in ("ordinary", "locked")), row.kind
        assert row.pressure.swapped == (row.pages if row.kind == "ordinary" else 0)
        assert row.damaged == 0
    for kind in PINNED:
        row = measured.row(kind)
        assert row.before == row.compacted == row.squeezed
        assert len(set(row.before)) == PAGES


def test_who_faults_the_pages_in(measured: memory.Measured) -> None:
    for row in measured.rows:
        # the interpreter's own memory may take a fault or two meanwhile
        if row.kind == "ordinary":
            assert row.holding.minor < 8
            assert PAGES <= row.receiving.minor < PAGES + 8
            assert PAGES <= row.again.major < PAGES + 8
        elif row.kind != "huge":
            assert PAGES <= row.holding.minor < PAGES + 8
            assert row.receiving.minor + row.again.minor + row.again.major < 8
    size = PAGES << 12
    counted = {row.kind: (row.locked, row.pinned) for row in measured.rows}
    assert counted["ordinary"] == counted["huge"] == (0, 0)
    assert counted["locked"] == counted["ring"] == (size, 0)
    assert counted["registered"] == (0, size)


def test_locked_pages_stay_where_compaction_may_not_move_them(pair: Places) -> None:
    found = memory.measure_pages(["ordinary", "locked"], pages=PAGES, filler=LITTLE, unevictable=False, pressure=False)
    ordinary, locked = found.row("ordinary").compaction, found.row("locked").compaction
    assert ordinary is not None
    assert ordinary.moved > 0
    assert locked == memory.Fate(stayed=PAGES, moved=0, swapped=0)


def test_a_registered_region_in_huge_pages_is_in_fewer_pieces(pair: Places) -> None:
    found, unavailable = memory.hold_pages(2 << 20)
    # SoftRoCE takes no dma-buf; and of on-demand paging what the kernel's has (test_verbs_memory)
    assert unavailable.pop("ibv_reg_dmabuf_mr, touched before")
    assert set(unavailable) <= {"ibv_reg_mr, on demand (ODP)"}
    by = {one.what: one for one in found}
    assert by["ibv_reg_mr, small pages"].faults.minor >= by["ibv_reg_mr, small pages"].pages == 512
    assert by["ibv_reg_mr, small pages, touched before"].faults.minor < 8
    assert by["ibv_reg_mr, reserved huge pages, touched before"].extents == 1
    assert all(one.ns > 0 for one in found)


def test_the_limits_end_in_words(pair: Places) -> None:
    found, _ = memory.find_limits(device="rxe0")
    assert [(each.limit, each.call) for each in found] == [
        (limit, call) for call in ("mlock", "ibv_reg_mr") for limit in ("RLIMIT_MEMLOCK", "memory.max")
    ]
    for each in found:
        if each.limit == "memory.max":
            assert each.outcome == "killed"
        else:
            assert each.outcome == "refused"
            assert "limit of locked memory is 65536 bytes" in each.said
            assert "ulimit -l" in each.said
