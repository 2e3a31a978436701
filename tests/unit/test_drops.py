"""The balance: what is told by which reason, and that it closes or says by how much it does not."""

from __future__ import annotations

from hwrx.drops import places, provoke
from hwrx.drops.books import Drop, close_balance


def test_every_reason_has_one_place_but_netfilters_two() -> None:
    seen: dict[str, str] = {}
    for place in places.PLACES:
        for reason in place.reasons:
            if reason != "NETFILTER_DROP":
                assert reason not in seen, reason
            seen[reason] = place.name
    # one of them is provoked twice, in the kernel's hands and in ours
    assert set(provoke.PLACES) - {"nothing", "nic-ring-ours"} <= set(places.BY_NAME)


def test_routing_tells_netfilters_hooks_apart() -> None:
    before = places.place_of("NETFILTER_DROP", "nft_do_chain", routed=False)
    behind = places.place_of("NETFILTER_DROP", "nf_hook_slow", routed=True)
    assert before is not None
    assert behind is not None
    assert (before.name, behind.name) == ("pre-routing", "local-in")


def test_a_function_tells_where_the_kernel_gives_no_reason() -> None:
    for function, name in (("ip_error", "not-local"), ("free_pkt [rdma_rxe]", "rxe-handled"), ("rxe_rcv", "rxe-no-qp")):
        place = places.place_of("NOT_SPECIFIED", function, routed=True)
        assert place is not None
        assert place.name == name
    assert places.place_of("NOT_SPECIFIED", "some_new_function", routed=True) is None


def test_rxe_says_which_packet_had_a_queue_pair() -> None:
    for paired, name in ((False, "rxe-no-qp"), (True, "rxe-icrc")):
        place = places.place_of("NOT_SPECIFIED", "rxe_rcv [rdma_rxe]", routed=True, paired=paired)
        assert place is not None
        assert place.name == name


def test_rxe_frees_a_datagram_at_one_place_whatever_became_of_it() -> None:
    for fate, name in (("", "rxe-handled"), ("starved", "no-receive"), ("broken", "queue-pair")):
        for function in ("rxe_responder [rdma_rxe]", "rxe_receiver"):
            place = places.place_of("NOT_SPECIFIED", function, routed=True, paired=True, fate=fate)  # type: ignore[arg-type]
            assert place is not None
            assert place.name == name
    # elsewhere it does not matter what a queue pair that is idle has
    place = places.place_of("NOT_SPECIFIED", "rxe_rcv", routed=True, paired=True, fate="starved")
    assert place is not None
    assert place.name == "rxe-icrc"


def test_a_packet_that_is_sent_again_is_no_message_lost() -> None:
    dropped = [
        Drop("QDISC_DROP", "kfree_skb_list_reason", True, 9, "wire", again=True),
        Drop("NOT_SPECIFIED", "f", True, 2, "", again=True),
    ]
    found = close_balance(100, 40, {"retry-exceeded": 60}, dropped, {})
    assert found.unexplained == 0
    assert [(row.place, row.count) for row in found.rows] == [("retry-exceeded", 60)]
    assert [(row.place, row.count) for row in found.beside] == [("wire", 9), ("NOT_SPECIFIED in f", 2)]


def test_a_balance_closes() -> None:
    lost = [Drop("NO_SOCKET", "__udp4_lib_rcv", True, 30, "no-socket"), Drop("NOT_SPECIFIED", "f", True, 5, "")]
    found = close_balance(100, 60, {"truncated": 5, "af-packet": 7}, lost, {"UdpNoPorts": 30})
    assert found.unexplained == 0
    assert [(row.place, row.count) for row in found.rows] == [
        ("no-socket", 30),
        ("truncated", 5),
        ("NOT_SPECIFIED in f", 5),
    ]
    assert found.rows[0].witness == 30
    assert [(row.place, row.count) for row in found.beside] == [("af-packet", 7)]


def test_what_nobody_saw_is_unexplained_unless_a_device_counted_it() -> None:
    found = close_balance(100, 90, {}, [], {})
    assert found.unexplained == 10
    assert "no device here counts" in found.notes[0]
    assert close_balance(100, 90, {}, [], {"nic-ring": 0}).unexplained == 10
    ring = close_balance(100, 90, {}, [], {"nic-ring": 25})
    assert ring.unexplained == 0
    assert [(row.place, row.count) for row in ring.rows] == [("nic-ring", 10)]


def test_what_is_counted_twice_shows() -> None:
    assert close_balance(10, 10, {}, [Drop("NO_SOCKET", "f", True, 2, "no-socket")], {}).unexplained == -2


def test_what_rxe_frees_is_no_loss() -> None:
    found = close_balance(10, 10, {}, [Drop("NOT_SPECIFIED", "free_pkt", True, 10, "rxe-handled")], {})
    assert found.unexplained == 0
    assert not found.rows
    assert found.beside[0].count == 10
