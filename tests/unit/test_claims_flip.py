"""Every claim fails if the kernel behaves otherwise: really measured figures, changed to the opposite behaviour.

tests/data/claims-measured.jsonl holds what Linux 6.1 gave in a guest (`hwrx claims run --kernel 6.1`): the lines of the
run's claims.jsonl, without the pictures. A claim whose predicate or instrument changes needs a new line. Of the claims
on real verbs NICs there are no figures to keep until such a machine has measured them; their predicates are held to
stated ones.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hwrx.claims import instruments, model, verdict
from hwrx.claims.model import Measurement, Result

CLAIMS = model.every_claim()
KEPT = Path(__file__).parents[1] / "data/claims-measured.jsonl"
RESULTS = [msgspec.json.decode(line, type=Result) for line in KEPT.read_bytes().splitlines()]
MEASURED = {each.claim.name: each for each in RESULTS}
HARDWARE = {name for name, claim in CLAIMS.items() if claim.parameters.get("device") == "hardware"}
Opposite = dict[str, float | str]

# what the figures would be on a kernel, or a NIC, that does the opposite, and the verdict then; a word is the figure
# of that name
OPPOSITES: dict[str, tuple[Opposite, model.Verdict]] = {
    "a-hundred-thousand-at-once": ({"delivered": 99_000, "lost": 1000, "lost_at_buffer": 400}, "refuted"),
    "address-is-burned-in": ({"taken_renamed": 0.0, "taken_old": 1.0}, "confirmed"),
    "address-is-hashed-as-written": ({"as_written": "sockets"}, "confirmed"),
    "both-ways-bring-all": ({"epoll_lost": 3}, "refuted"),
    "budget-of-a-softirq": ({"most_in_a_softirq": "budget"}, "confirmed"),
    "buffer-before-filter": ({"by_filter": 0, "by_buffer": "more"}, "confirmed"),
    "copied-once": ({"copies_receiver": 0.0}, "refuted"),
    "copy-faults-pages-in": ({"registered_faults": 1.0}, "refuted"),
    "copy-in-the-readers-context": ({"skb_consume_udp_reader": 0.0}, "refuted"),
    "descriptors-hold-physical-addresses": ({"physical_vfio": 1.0}, "confirmed"),
    "dma-before-the-cpu-knows": ({"interrupts": "sent"}, "refuted"),
    "driver-masks-the-nic": ({"masked_by_driver": 1.0}, "confirmed"),
    "epoll-against-recv": ({"ratio": 1.0}, "refuted"),
    "file-knows-its-process": ({"owner_bound": "pid"}, "confirmed"),
    "filter-before-queueing": ({"in_order": 0.0}, "refuted"),
    "forward-before-output": ({"in_order": 0.0}, "refuted"),
    "full-backlog-drops": ({"lost_here": 0}, "refuted"),
    "full-buffer-drops-after-lookup": ({"in_order": 0.0}, "refuted"),
    "gro-joins-packets": ({"tcp_merge": 1.0}, "refuted"),
    "handler-does-the-work": ({"ip_rcv_core_hard": 1.0, "__udp4_lib_lookup_hard": 1.0}, "confirmed"),
    "handler-is-not-interrupted": ({"interruptible": 1.0}, "refuted"),
    "hooks-can-rewrite": ({"rewritten": 0.0}, "refuted"),
    "interrupted-task-goes-on": ({"resumed": 1.0}, "confirmed"),
    "ip-drops-foreign-frames": ({"otherhost_promiscuous": 0.0}, "refuted"),
    "kernel-posts-physical-addresses": ({"dma_physical": 0.0}, "refuted"),
    "key-is-four-values": ({"udp_four_slots": "peers"}, "confirmed"),
    "ksoftirqd-handles-softirqs": ({"polls_in_ksoftirqd": 1.0}, "confirmed"),
    "ksoftirqd-takes-over-under-load": ({"ksoftirqd": 0.0}, "refuted"),
    "lo-takes-the-backlog": ({"enqueue_to_backlog_share": 0.0}, "refuted"),
    "local-in-after-routing": ({"in_order": 0.0}, "refuted"),
    "locked-pages-do-not-move": ({"locked_moved": 0}, "confirmed"),
    "lookup-is-constant": ({"spread_extra": 40.0, "chain_extra": 60.0}, "confirmed"),
    "masked-while-polling": ({"pollings_interrupted": "pollings"}, "refuted"),
    "nic-drops-foreign-frames": ({"taken_foreign": 1.0}, "refuted"),
    "nic-knows-no-process": ({"taken_unbound": 0.0}, "refuted"),
    "nic-passes-the-backlog-by": ({"enqueue_to_backlog_share": 1.0}, "refuted"),
    "no-socket-is-dropped": ({"lost_here": 0, "delivered": "sent"}, "refuted"),
    "not-local-is-dropped": ({"lost_here": 0, "delivered": "sent"}, "refuted"),
    "one-interrupt-many-packets": ({"packets_per_interrupt": 1.0}, "refuted"),
    "page-tables-at-switch-and-copy": ({"copy_in_readers": 0.0}, "refuted"),
    "pinned-pages-do-not-move": ({"registered_moved": "ordinary_moved"}, "refuted"),
    "port-is-assigned-by-connect": ({"port_before": 40_000}, "refuted"),
    "port-is-hashed": ({"agree": 0}, "refuted"),
    "port-is-one-program": ({"receivers": 1}, "confirmed"),
    "pre-routing-before-routing": ({"in_order": 0.0}, "refuted"),
    "programmed-io-is-slower": ({"ratio": 1.0}, "refuted"),
    "rdma-makes-no-copies": ({"copies_receiver": 1.0}, "refuted"),
    "rdma-runs-no-kernel-code": ({"entries": 2.0}, "refuted"),
    "ring-of-256-holds-256": ({"written": "entries"}, "confirmed"),
    "rps-spreads-the-load": ({"cpus_on": 1, "busiest_on": 1.0}, "refuted"),
    "rps-takes-the-backlog": ({"enqueue_to_backlog_share": 0.0}, "refuted"),
    "rss-spreads-the-load": ({"cpus_off": 1, "busiest_off": 1.0}, "refuted"),
    "rxe-is-faster": ({"ratio": 0.5}, "confirmed"),
    "rxe-makes-no-copies": ({"copies_sender": 0.0, "copies_receiver": 0.0}, "confirmed"),
    "rxe-runs-no-kernel-code": ({"kernel_stages": 0.0}, "confirmed"),
    "skb-after-lookup": ({"in_order": 1.0}, "confirmed"),
    "skb-is-a-copy": ({"copied_large": 1.0}, "confirmed"),
    "softirq-up-to-data-ready": ({"udp_rcv_soft": 0.0}, "refuted"),
    "sum-of-the-seed": ({"total": 0xF1234571}, "confirmed"),
    "table-has-256-slots": ({"slots": 256}, "confirmed"),
    "tap-before-netfilter": ({"in_order": 0.0}, "refuted"),
    "tap-gets-a-copy": ({"tap_shares": 0.0}, "confirmed"),
    "udp-calls-sock-queue-rcv-skb": ({"sock_queue_rcv_skb_reason_share": 1.0}, "confirmed"),
    "weight-of-a-poll": ({"most_in_a_poll": 256, "poll_weight": 256}, "confirmed"),
    "woken-by-data-ready": ({"woken_soft": 0.0}, "refuted"),
}


def measured(name: str) -> Measurement:
    assert name in MEASURED, f"no measured figures of {name}: see the top of this file"
    found = MEASURED[name].measurement
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(CLAIMS.keys() - HARDWARE))
def test_a_claim_fails_if_the_kernel_does_the_opposite(name: str) -> None:
    found = measured(name)
    as_it_is, words, why = verdict.judge_claim(CLAIMS[name], _with_parameters(name, found))
    assert as_it_is != "not tested here", why
    assert words
    assert name in OPPOSITES, f"say what the figures of {name} are on a kernel that does the opposite"
    changes, expected = OPPOSITES[name]
    other = {key: found.figures[value] if isinstance(value, str) else value for key, value in changes.items()}
    assert other.keys() <= found.figures.keys()
    turned = msgspec.structs.replace(found, figures={**found.figures, **other})
    assert verdict.judge_claim(CLAIMS[name], _with_parameters(name, turned))[0] == expected != as_it_is


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("hca-makes-no-copies", {"delivered": 4112, "copies": 0.01, "control_copies": 2.0}, {"copies": 1.0}),
        ("hca-runs-no-kernel-code", {"delivered": 400, "entries": 0.0, "control_entries": 6.0}, {"entries": 2.0}),
    ],
)
def test_a_claim_on_hardware_goes_either_way(name: str, good: dict[str, float], bad: dict[str, float]) -> None:
    # stated, not measured: what a NIC with and without the property would give
    assert verdict.judge_claim(CLAIMS[name], Measurement({**good}))[0] == "confirmed"
    assert verdict.judge_claim(CLAIMS[name], Measurement({**good, **bad}))[0] == "refuted"


def test_every_claim_has_an_opposite_and_every_measured_one_its_figures() -> None:
    assert OPPOSITES.keys() == CLAIMS.keys() - HARDWARE
    assert MEASURED.keys() == CLAIMS.keys() - HARDWARE


@pytest.mark.parametrize("name", sorted(CLAIMS.keys() - HARDWARE))
def test_what_an_instrument_gave_is_what_it_declares(name: str) -> None:
    whole = msgspec.structs.replace(CLAIMS[name], parameters=MEASURED[name].claim.parameters)
    assert measured(name).figures.keys() == instruments.figures_of(whole)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("weight-of-a-poll", {"most_in_a_poll": 31}),
        ("budget-of-a-softirq", {"most_in_a_poll": 31, "most_in_a_softirq": 31}),
        ("masked-while-polling", {"pollings": 19, "pollings_interrupted": 0}),
        ("rps-spreads-the-load", {"flows": 2}),
        ("descriptors-hold-physical-addresses", {"descriptors": 0}),
        ("gro-joins-packets", {"udp_frames": 3}),
        ("programmed-io-is-slower", {"dma_batches": 1}),
        ("skb-is-a-copy", {"received": 2}),
    ],
)
def test_what_did_not_reach_what_is_asked_about_decides_nothing(name: str, changes: dict[str, float]) -> None:
    found = measured(name)
    short = msgspec.structs.replace(found, figures={**found.figures, **changes})
    assert verdict.judge_claim(CLAIMS[name], _with_parameters(name, short))[0] == "not tested here"


def test_a_frame_that_the_driver_copies_makes_a_second_copy_and_no_refutation() -> None:
    found = measured("copied-once")
    twice = msgspec.structs.replace(found, figures={**found.figures, "copies_receiver": 2.0})
    assert verdict.judge_claim(CLAIMS["copied-once"], twice)[0] == "depends"


def _with_parameters(name: str, found: Measurement) -> Measurement:
    """The sentence may name parameters, of which the file states some and the experiment knows all."""
    return msgspec.structs.replace(found, figures={**MEASURED[name].claim.parameters, **found.figures})
