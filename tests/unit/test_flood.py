"""The arithmetic of floods, in closed forms; what cannot be asked for; what is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrx import paths
from hwrx.errors import UsageError
from hwrx.flood import Spec, scene
from hwrx.probes import account, counting
from hwrx.probes.counting import BIN, CPU, SETTINGS

WIDTH = 1000
ACTORS = len(account.ACTORS)


def programs_account(events: list[tuple[int, int]], bins: int) -> tuple[np.ndarray, np.ndarray]:
    """What the BPF programs' `give` does: pieces that do not fill a bin, and differences for those that do."""
    ns, whole = np.zeros((1, bins, ACTORS), np.int64), np.zeros((1, bins, ACTORS), np.int64)
    last = 0
    for at, actor in events:
        first, second = last // WIDTH, at // WIDTH
        if first == second:
            ns[0, first, actor] += at - last
        else:
            ns[0, first, actor] += WIDTH - last % WIDTH
            ns[0, second, actor] += at % WIDTH
            if second > first + 1:
                whole[0, second, actor] -= 1
                whole[0, first + 1, actor] += 1
        last = at
    return ns, whole


@given(st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, ACTORS - 1)), max_size=40), st.integers(9_000, 9_999))
def test_every_nanosecond_of_a_cpu_is_given_to_somebody_once(events: list[tuple[int, int]], until: int) -> None:
    events = sorted(events)
    ns, whole = programs_account(events, 10)
    time = account.spread_time(ns, whole, WIDTH)
    account.close_account(time[0], events[-1][0] if events else 0, until, 0, 0, WIDTH)
    assert (time >= 0).all()
    sums = time[0].sum(axis=1)
    assert (sums[:9] == WIDTH).all()
    assert sums[9] == until - 9 * WIDTH
    mine = [0] * ACTORS
    last = 0
    for at, actor in events:
        mine[actor] += at - last
        last = at
    mine[0] += until - last
    assert time[0].sum(axis=0).tolist() == mine


def test_coarser_bins_hold_the_same_and_queues_keep_their_peaks() -> None:
    values = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    coarse, together = account.coarser_bins(values, 3)
    assert together == 3
    assert coarse.shape == (2, 3, 3)
    assert (coarse.sum(axis=1) == values.sum(axis=1)).all()
    assert account.most_of(np.array([[1], [9], [2], [3], [0]]), 2)[:, 0].tolist() == [9, 3]


def test_histograms_tell_sum_mean_and_quantiles() -> None:
    histogram = account.time_histogram([0, 3, 0, 0, 1])
    assert histogram == {1: 3, 4: 1}
    assert account.total_time(histogram) == 7
    assert account.mean_of(histogram) == 7 / 4
    assert [account.quantile_of(histogram, p) for p in (0.5, 0.75, 0.76, 1.0)] == [1, 1, 4, 4]
    assert account.mean_of({}) == account.quantile_of({}, 0.5) == 0


@given(st.integers(1, 16))
def test_jains_index_is_1_for_equals_and_one_nth_for_one_who_has_all(sockets: int) -> None:
    assert account.jain_index([5] * sockets) == pytest.approx(1)
    assert account.jain_index([7] + [0] * (sockets - 1)) == pytest.approx(1 / sockets)
    assert account.jain_index([0] * sockets) == 0


def test_messages_over_time_and_the_first_that_is_missing() -> None:
    sent = np.array([100, 200, 1100, 1200, 2100])
    taken = np.array([150, 0, 2200, 1300, 2300])
    assert account.per_bin(sent, 0, WIDTH, 3).tolist() == [2, 2, 1]
    assert account.per_bin(taken, 0, WIDTH, 3).tolist() == [1, 1, 2]
    # message 2 waits from the second bin to the third
    assert account.under_way(sent, taken, 0, WIDTH, 3).tolist() == [0, 1, 0]
    assert account.first_missing(sent, taken) == 1
    assert account.first_missing(sent, np.maximum(taken, 1)) is None


def test_each_socket_is_offered_a_batch_in_turn() -> None:
    assert account.socket_of(np.arange(8), 2, 3).tolist() == [0, 0, 1, 1, 2, 2, 0, 0]


def test_the_layouts_are_those_of_the_programs() -> None:
    """Sizes that the C compiler gives the structs of cputime.h; the names of the actors are as many."""
    source = (counting.build.SOURCES / "cputime.h").read_text()
    actors = source.split("enum actor {")[1].split("ACTORS,")[0].count(",")
    assert actors == ACTORS
    assert (SETTINGS.itemsize, BIN.itemsize, CPU.itemsize) == (208, 176, 11512)


def test_whose_time_a_cpu_has_is_read_as_the_programs_write_it() -> None:
    cpu = np.zeros((), CPU)
    assert account.ACTORS[counting.actor_of(cpu)] == "idle"
    cpu["known"] = 1
    for role, kernel, words in ((1, 0, "sender, user"), (2, 1, "reader, system"), (3, 1, "others, system")):
        cpu["role"], cpu["kernel"] = role, kernel
        assert account.ACTORS[counting.actor_of(cpu)] == words
    cpu["role"] = 5
    assert account.ACTORS[counting.actor_of(cpu)] == "kernel workers"
    cpu["softirq"] = 1
    assert account.ACTORS[counting.actor_of(cpu)] == "softirq NET_RX"
    cpu["role"] = 4
    assert account.ACTORS[counting.actor_of(cpu)] == "ksoftirqd"
    cpu["irqs"] = 1
    assert account.ACTORS[counting.actor_of(cpu)] == "interrupts"


INTERRUPTS = """\
           CPU0       CPU1
  0:         37          0   IO-APIC   2-edge      timer
 24:          0          5   PCI-MSI 16384-edge      hwnic1-rx-0
 25:          0          9   PCI-MSI 16385-edge      hwnic1-tx-0
 26:          1          0   PCI-MSI 16386-edge      hwnic1
 27:          0          7   PCI-MSI 65536-edge      hwnic10
 30:          0          2   PCI-MSI-0000:00:05.0    1-edge      virtio4-input.0
 31:          0          2   PCI-MSI-0000:00:05.0    2-edge      virtio4-output.0
 32:          0          2   PCI-MSI-0000:00:05.0    3-edge      virtio4-input.1
 33:          3          0   PCI-MSI 4-edge      eth0
LOC:       9000       9000   Local timer interrupts
"""


def test_a_devices_interrupts_are_those_that_tell_of_packets_received() -> None:
    assert counting.interrupts_in(INTERRUPTS, {"hwnic1"}) == [24]
    assert counting.interrupts_in(INTERRUPTS, {"hwvirt1", "virtio4"}) == [30, 32]
    assert counting.interrupts_in(INTERRUPTS, {"eth0"}) == [33]  # one for everything
    assert counting.interrupts_in(INTERRUPTS, {"hwrx1"}) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(path="nonsense"), "cannot go over 'nonsense'"),
        (Spec(path="udp-uring"), "cannot go over 'udp-uring': its reader waits on the ring of one socket"),
        (Spec(path="tcp-ktls"), "cannot go over 'tcp-ktls': .* ciphertext"),
        (Spec(path="mptcp"), "cannot go over 'mptcp': its queues are those of subflows"),
        (Spec(path="xdp", sockets=2), "one receiver"),
        (Spec(burst=None), "a burst or lasts"),
        (Spec(path="tcp", read="after"), "waits for its reader"),
        (Spec(path="rdma-write", completions=8), "has no completions"),
        (Spec(path="rdma-ud", size=8000), "at most the MTU"),
        (Spec(path="xdp", size=2000), "at most"),
    ],
)
def test_what_cannot_be_is_refused_in_words(spec: Spec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        scene.check_words([spec])


def test_a_path_has_floods_or_says_why_not() -> None:
    for name, path in paths.PATHS.items():
        assert (path.flooding is None) == bool(path.unflooded), name


def test_a_rate_is_kept_a_millisecond_at_a_time() -> None:
    assert Spec(rate=500.0).together == 1
    assert Spec(rate=20_000.0).together == 20
    assert Spec(rate=1e9).together == Spec().together == 64
    assert Spec(seconds=2.0, rate=1000.0).wants == 2000
