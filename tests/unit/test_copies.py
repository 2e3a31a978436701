"""The copy ledger: what the kernel counted against what the sizes demand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hwrx import paths, stages
from hwrx.timelines import copies
from hwrx.timelines.actors import ACTORS

TOTALS = np.dtype([("count", "<u8"), ("bytes", "<u8"), ("by", "<u8", (len(ACTORS),))])


def counted(**by_ident: int) -> npt.NDArray[Any]:
    totals = np.zeros(stages.COUNT, dtype=TOTALS)
    idents = {stage.ident.removeprefix("STAGE_").lower(): stage.number for stage in stages.STAGES}
    for ident, count in by_ident.items():
        totals[idents[ident]]["count"], totals[idents[ident]]["bytes"] = 1, count
    return totals


def reckon(path: str, delivered: int, missing: tuple[str, ...] = (), **by_ident: int) -> copies.Ledger:
    probed = [stage for stage in paths.path_stages(path) if stage.probes and stage.name not in missing]
    return copies.reckon_copies(path, counted(**by_ident), delivered, available=probed)


def test_udp_copies_once_on_each_side() -> None:
    ledger = reckon("udp", 64_000, ("sock_send_length",), ip_generic_getfrag=64_000, copied_to_the_user=64_000)
    assert (ledger.sender, ledger.receiver, ledger.balanced) == (1.0, 1.0, True)
    assert not [row for row in ledger.rows if row.kind == "balance"]


def test_where_getfrag_cannot_be_probed_the_send_length_stands_in() -> None:
    ledger = reckon("udp", 100, ("ip_generic_getfrag",), sock_send_length=100, copied_to_the_user=100)
    assert (ledger.sender, ledger.receiver) == (1.0, 1.0)


def test_a_side_that_nothing_counted_is_not_zero() -> None:
    ledger = reckon("udp", 100, ("ip_generic_getfrag", "sock_send_length"), copied_to_the_user=100)
    assert math.isnan(ledger.sender)
    assert ledger.receiver == 1.0


def test_a_retransmission_is_a_row() -> None:
    ledger = reckon("rdma-send", 1000, rxe_mr_copy_from_mr=1100, rxe_mr_copied=1000)
    assert not ledger.balanced
    (row,) = [row for row in ledger.rows if row.kind == "balance"]
    assert (row.side, row.bytes) == ("sender", 100)
    assert "again" in row.words


def test_the_drivers_counters_say_what_was_sent_again() -> None:
    totals = counted(rxe_mr_copy_from_mr=1100, rxe_mr_copied=1000)
    totals[stages.BY_NAME["rxe_mr_copy from MR"].number]["count"] = 11
    totals[stages.BY_NAME["rxe_mr_copied"].number]["count"] = 10
    probed = [stage for stage in paths.path_stages("rdma-send") if stage.probes]
    tally = {"hw_duplicate_request": 1, "hw_out_of_seq_request": 0}
    ledger = copies.reckon_copies("rdma-send", totals, 1000, available=probed, tally=tally)
    (row,) = [row for row in ledger.rows if row.kind == "balance"]
    assert "1 packets were sent again" in row.words
    assert "1 duplicate_request" in row.words
    assert "out_of_seq" not in row.words


def test_a_pass_is_no_copy() -> None:
    ledger = reckon("rdma-send", 1000, rxe_mr_copy_from_mr=1000, rxe_icrc_checked=1000, rxe_mr_copied=1000)
    assert ledger.receiver == 1.0
    assert [row.kind for row in ledger.rows if row.stage == "rxe_icrc_checked"] == ["passed"]
    assert (ledger.sender_passes, ledger.receiver_passes) == (0.0, 1.0)


def test_passes_that_nobody_could_see_are_not_zero() -> None:
    ledger = reckon("udp", 1000, ("__skb_checksum_complete",), ip_generic_getfrag=1000, copied_to_the_user=1000)
    assert ledger.sender_passes == 0.0
    assert math.isnan(ledger.receiver_passes)


def test_a_payload_posted_inline_is_copied_twice_at_the_sender() -> None:
    """By the library into the work request, as the endpoint counts it; from there by rxe, as its packets show."""
    probed = [stage for stage in paths.path_stages("rdma-send") if stage.probes]
    totals = counted(rxe_inline=64, rxe_mr_copied=64)
    ledger = copies.reckon_copies("rdma-send", totals, 64, available=probed, tally={"inline_bytes": 64})
    assert (ledger.sender, ledger.receiver, ledger.balanced) == (2.0, 1.0, True)
    assert {row.stage for row in ledger.rows if row.side == "sender"} == {"rxe inline", copies.INLINE}


def test_an_inline_copy_that_nobody_saw_is_not_invented() -> None:
    probed = [stage for stage in paths.path_stages("rdma-send") if stage.probes]
    ledger = copies.reckon_copies("rdma-send", counted(rxe_mr_copied=64), 64, available=probed)
    assert ledger.sender == 0.0
    assert [(row.side, row.bytes) for row in ledger.rows if row.kind == "balance"] == [("sender", -64)]


def test_by_whom_is_what_was_observed_not_what_the_catalogue_expects() -> None:
    totals = counted(rxe_mr_copy_from_mr=400, rxe_mr_copied=400)
    copied = stages.BY_NAME["rxe_mr_copied"]
    totals[copied.number]["by"][ACTORS.index("softirq")] = 300
    totals[copied.number]["by"][ACTORS.index("user thread")] = 100
    assert copied.actor == "kernel worker"
    probed = [stage for stage in paths.path_stages("rdma-send") if stage.probes]
    ledger = copies.reckon_copies("rdma-send", totals, 400, available=probed)
    (row,) = [row for row in ledger.rows if row.stage == "rxe_mr_copied"]
    assert row.actor == "softirq 75 %, user thread 25 %"


def test_an_extra_copy_is_found() -> None:
    ledger = reckon("tcp", 1000, tcp_sendmsg=0, skb_copy_ubufs=1000, copied_to_the_user=1000)
    assert ledger.sender == 1.0, "MSG_ZEROCOPY over loopback is copied after all"
    assert not ledger.balanced, "nothing entered by the way that is counted"


def test_mapped_pages_are_no_copies() -> None:
    ledger = reckon("tcp", 1_000_000, tcp_sendmsg=1_000_000, copied_to_the_user=50_000, tcp_zerocopy_receive=950_000)
    assert ledger.receiver == pytest.approx(0.05)
    assert ledger.balanced


def test_where_no_probe_sees_it_the_endpoints_and_the_notifications_tell() -> None:
    probed = [stage for stage in paths.path_stages("tcp") if stage.probes and stage.probes[0].kind == "user"]
    probed += [stages.BY_NAME["tcp_sendmsg"], stages.BY_NAME["copied to the user"]]
    tally = {"zerocopy_bytes": 1000, "zerocopy_copied_bytes": 250, "mapped_bytes": 900, "gathered_bytes": 50}
    totals = counted(tcp_sendmsg=1000, copied_to_the_user=100)
    ledger = copies.reckon_copies("tcp", totals, 1000, available=probed, tally=tally)
    assert ledger.sender == 0.25
    assert ledger.receiver == pytest.approx(0.15)
    assert ledger.balanced
    (pinned,) = [row for row in ledger.rows if row.stage == "skb_zerocopy_iter"]
    assert "25.0% of the bytes" in pinned.words


@pytest.mark.parametrize("path", ["udp-uring", "tcp-uring"])
def test_of_a_zero_copy_send_through_io_uring_stands_what_the_kernel_told_and_no_more(path: str) -> None:
    tally = {"zerocopy_bytes": 1000, "zerocopy_copied_bytes": 1000}
    probed = [stages.BY_NAME["skb_zerocopy_iter"]]  # another path's, in the same run: it counts nothing of this one
    told = copies.reckon_copies(path, counted(), 1000, available=probed, tally=tally)
    assert told.sender == 1.0
    (mapped,) = [row for row in told.rows if row.kind == "mapped"]
    assert mapped.bytes == 1000
    silent = {"zerocopy_bytes": 1000, "zerocopy_copied_bytes": 0, "zerocopy_untold_bytes": 1000}
    untold = copies.reckon_copies(path, counted(), 1000, available=probed, tally=silent)
    assert math.isnan(untold.sender)
    assert "does not say" in untold.rows[0].words


@pytest.mark.parametrize("path", ["tcp-ktls", "mptcp", "udp-uring", "tcp-uring"])
def test_what_no_probe_sees_is_claimed_of_no_side(path: str) -> None:
    others = [stage for stage in paths.path_stages("tcp") + paths.path_stages("udp") if stage.probes]
    ledger = copies.reckon_copies(path, counted(), 1000, available=others)
    assert math.isnan(ledger.sender)
    assert math.isnan(ledger.receiver)
    assert ledger.rows == ()
    if not path.endswith("-uring"):
        assert all(stage.why_not for stage in paths.path_stages(path) if stage.handles == "copied")


def test_nothing_delivered_makes_no_ratio() -> None:
    ledger = reckon("udp", 0)
    assert ledger.balanced
    assert ledger.rows == ()


def test_the_slope_is_the_cost_of_a_byte() -> None:
    found = copies.fit_slope([64, 1024, 4096, 65536], [2000 + 0.5 * size for size in (64, 1024, 4096, 65536)])
    assert found is not None
    assert found.ns_per_byte == pytest.approx(0.5)
    assert found.ns_fixed == pytest.approx(2000)
    assert copies.fit_slope([64, 64], [1.0, 2.0]) is None


# --- whole frames ---------------------------------------------------------------------------------------------------


def frames(path: str, delivered: int, tally: dict[str, int], missing: tuple[str, ...] = (), **by_ident: int) -> Any:
    probed = [stage for stage in paths.path_stages(path) if stage.probes and stage.name not in missing]
    return copies.reckon_frames(path, counted(**by_ident), delivered, available=probed, tally=tally)


def test_what_the_nic_wrote_in_place_is_no_copy() -> None:
    ledger = frames("nic-ring", 6400, {"payload_bytes": 6400, "in_place_bytes": 6400, "checked_bytes": 6400})
    assert (ledger.sender, ledger.receiver, ledger.balanced) == (0.0, 0.0, True)
    assert {(row.stage, row.kind) for row in ledger.rows} == {("DMA", "DMA"), ("parsed", "passed")}


def test_a_payload_that_was_moved_is_a_row_of_the_books() -> None:
    ledger = frames("nic-ring", 6400, {"payload_bytes": 6400, "in_place_bytes": 3200})
    assert not ledger.balanced
    assert [row.bytes for row in ledger.rows if row.kind == "balance"] == [-3200]


def test_programmed_io_copies_once_on_each_side() -> None:
    tally = {"payload_bytes": 6400, "sent_bytes": 6400, "cpu_copied_bytes": 10_600, "cpu_sent_bytes": 10_600}
    ledger = frames("nic-pio", 6400, tally)
    assert (ledger.sender, ledger.receiver, ledger.balanced) == (1.0, 1.0, True)


def test_a_driver_that_copies_short_frames_adds_one() -> None:
    ledger = frames("packet-ring", 6400, {}, skb_copy_bits=6400, copybreak=6400)
    assert (ledger.sender, ledger.receiver, ledger.balanced) == (0.0, 2.0, True)


def test_af_xdp_whose_copies_nobody_counted_is_not_zero() -> None:
    ledger = frames("xdp", 6400, {}, ("skb_store_bits", "xsk_generic_rcv"))
    assert math.isnan(ledger.sender)
    assert math.isnan(ledger.receiver)
