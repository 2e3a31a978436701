"""Stages from a message's stacks in the order of execution: entries, returns, what is skipped, there and back."""

from __future__ import annotations

import pytest

from hwrx.anatomy.model import Stamp
from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.stamps import actor_of, point_of, stamp_stages
from hwrx.anatomy.symbols import Function
from hwrx.stages import BY_NAME, STAGES


def piece(count: int, *names: str) -> Piece:
    user = {"pingpong_client", "answering_server", "post", "receive"}
    return Piece(
        tuple(Function(name, "cython_ext.loops.pingpong" if name in user else "vmlinux") for name in names), count
    )


CLIENT, SERVER = ["pingpong_client"], ["answering_server"]
SEND = ["post", "entry_SYSCALL_64", "__sys_sendto"]
DELIVER = ["__udp4_lib_rcv", "udp_rcv"]


def way(sender: list[str], receiver: list[str]) -> list[Piece]:
    """A message of 100 instructions up to the call, 10 in it, 200 below it, and 50 until the receiver has it."""
    return [
        piece(100, *sender, "post"),
        piece(10, *sender, *SEND),
        piece(20, *sender, *SEND, "ip_generic_getfrag.part.0"),
        piece(5, *sender, *SEND),
        piece(30, *sender, *SEND, "ip_output"),
        piece(3, *sender, *SEND, "ip_output", "nf_hook"),
        piece(4, *sender, *SEND, "ip_output"),
        piece(40, *sender, *SEND, "ip_output", "udp_rcv"),
        piece(10, *receiver, "receive", "entry_SYSCALL_64", "__sys_recvfrom", "__skb_recv_udp"),
        piece(11, *receiver, "receive", "entry_SYSCALL_64", "__sys_recvfrom"),
        piece(12, *receiver, "receive", "entry_SYSCALL_64"),
        piece(13, *receiver, "receive"),
        piece(14, *receiver),
    ]


def since(stamps: list[Stamp], direction: str) -> dict[str, int]:
    return {stamp.stage: stamp.since for stamp in stamps if stamp.direction == direction}


def test_each_stage_is_where_its_function_is_entered_or_has_returned() -> None:
    stamps = stamp_stages("udp", [*way(CLIENT, SERVER), *way(SERVER, CLIENT)])
    there = since(stamps, "there")
    assert there == {
        "posted": 0,
        "sys_enter send": 100,
        "ip_generic_getfrag": 30,  # it has returned
        "ip_output": 5,
        "udp_rcv": 37,  # what it had called does not make it begin again
        "__skb_recv_udp": 50,
        "sys_exit recv": 11,
        "delivered": 12 + 13,
    }
    assert list(there) == sorted(there, key=lambda name: 0 if name == "posted" else BY_NAME[name].number)
    whole = sum(each.instructions for each in way(CLIENT, SERVER))
    (delivered,) = (stamp for stamp in stamps if stamp.stage == "delivered" and stamp.direction == "there")
    assert delivered.at == whole - 14  # the loop has it; what it then does is of the answer


def test_of_the_answer_the_same_and_the_two_ways_add_up() -> None:
    pieces = [*way(CLIENT, SERVER), *way(SERVER, CLIENT)]
    stamps = stamp_stages("udp", pieces)
    back = since(stamps, "back")
    assert back["sys_enter send"] == 14 + 100
    assert back["udp_rcv"] == 37
    assert sum(stamp.since for stamp in stamps) == sum(each.instructions for each in pieces)


def test_a_stage_that_the_message_skipped_is_not_taken_from_another_packet() -> None:
    """An acknowledgement comes back through the stages that the message had skipped."""
    late = [piece(7, *SERVER, "receive", "entry_SYSCALL_64", "__sys_recvfrom", "inet_gro_receive")]
    pieces = way(CLIENT, SERVER)
    pieces[9:9] = late
    assert "inet_gro_receive" not in since(stamp_stages("udp", [*pieces, *way(SERVER, CLIENT)]), "there")
    early = way(CLIENT, SERVER)
    early[7:7] = [piece(7, *CLIENT, *SEND, "ip_output", "inet_gro_receive")]
    assert since(stamp_stages("udp", [*early, *way(SERVER, CLIENT)]), "there")["inet_gro_receive"] == 37


def test_what_no_probe_can_tie_to_a_message_has_its_place() -> None:
    pieces = way(CLIENT, SERVER)
    pieces[7:7] = [piece(9, *CLIENT, *SEND, "ip_output", "__handle_irq_event_percpu")]
    there = since(stamp_stages("udp", [*pieces, *way(SERVER, CLIENT)]), "there")
    assert there["irq_handler_entry"] == 37 and there["udp_rcv"] == 9


@pytest.mark.parametrize("within", [True, False], ids=["6.12", "6.1"])
def test_a_stage_of_no_one_order_does_not_hide_the_next(within: bool) -> None:
    """6.12 sends the completion event before rxe_cq_post returns, 6.1 afterwards."""
    work = ["ret_from_fork", "rxe_do_task"]
    told = piece(9, *work, *(["rxe_cq_post"] if within else []), "ib_uverbs_comp_handler")
    message = [piece(10, *CLIENT, "post", "rxe_post_send"), piece(20, *work), piece(5, *work, "rxe_cq_post")]
    message += [told, piece(6, *work, "rxe_cq_post"), piece(7, *work)] if within else [piece(7, *work), told]
    message += [piece(8, *work), piece(30, *SERVER, "receive"), piece(14, *SERVER)]
    there = since(stamp_stages("rdma-send", [*message, piece(10, *SERVER, "post", "rxe_post_send")]), "there")
    order = ["ib_uverbs_comp_handler", "rxe_cq_posted"]
    assert [name for name in there if name in order] == (order if within else order[::-1])
    assert there["rxe_cq_posted"] == (9 + 6 if within else 5)
    assert there["ib_uverbs_comp_handler"] == (5 if within else 7)


def test_a_path_that_fetches_has_one_way() -> None:
    pieces = [piece(10, *CLIENT), piece(20, *CLIENT, "rxe_post_send"), piece(5, *CLIENT)]
    assert {stamp.direction for stamp in stamp_stages("rdma-read", pieces)} == {"there"}


def test_a_path_without_a_kernel_is_posted_and_delivered() -> None:
    pieces = [piece(10, *CLIENT, "post"), piece(20, *SERVER, "receive"), piece(5, *SERVER), piece(30, *CLIENT)]
    there = since(stamp_stages("nic-ring", pieces), "there")
    assert set(there) == {"posted", "delivered"}


def test_every_function_that_the_catalogue_probes_is_a_point() -> None:
    for stage in STAGES:
        probed = [probe for probe in stage.probes if probe.kind in ("fentry", "fexit")]
        assert (point_of(stage) is not None) >= bool(probed), stage.name


@pytest.mark.parametrize(
    ("stack", "actor"),
    [
        ((*CLIENT, "entry_SYSCALL_64", "udp_sendmsg"), "user thread"),
        ((*CLIENT, "entry_SYSCALL_64", "handle_softirqs", "udp_rcv"), "softirq"),
        ((*CLIENT, "asm_common_interrupt", "e1000_intr"), "hard IRQ"),
        ((*CLIENT, "asm_common_interrupt", "__do_softirq", "e1000e_poll"), "softirq"),
        (("ret_from_fork", "kthread", "worker_thread", "rxe_do_task"), "kernel worker"),
    ],
)
def test_who_works_is_told_by_the_innermost_context(stack: tuple[str, ...], actor: str) -> None:
    assert actor_of([Function(name, "vmlinux") for name in stack]) == actor
