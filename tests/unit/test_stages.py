"""The catalogue: complete, in packet order, one enumeration that Python and C share."""

from __future__ import annotations

import re

import pytest

from hwrx import paths, stages
from hwrx.probes import build


def test_numbers_are_the_order_of_the_catalogue() -> None:
    assert [stage.number for stage in stages.STAGES] == list(range(1, stages.COUNT))


def test_names_are_unique_also_in_c() -> None:
    assert len({stage.name for stage in stages.STAGES}) == len(stages.STAGES)
    assert len({stage.ident for stage in stages.STAGES}) == len(stages.STAGES)
    assert all(re.fullmatch(r"STAGE_[A-Z0-9_]+", stage.ident) for stage in stages.STAGES)


def test_the_header_has_every_stage() -> None:
    defined = dict(re.findall(r"#define (STAGE\w+) (\d+)", stages.stage_header()))
    assert {stage.ident: str(stage.number) for stage in stages.STAGES}.items() <= defined.items()
    assert defined["STAGES"] == str(stages.COUNT)


@pytest.mark.parametrize("path", list(paths.PATHS))
def test_every_path_has_a_chain_from_the_sender_to_the_receiver(path: str) -> None:
    chain = paths.stage_chain(path)
    assert chain[0].name == "posted"
    assert chain[-1].name == "delivered"
    sides = [stage.side for stage in chain]
    assert sides == sorted(sides, key=("sender", "wire", "receiver").index)
    if paths.way_of(path) in stages.KERNEL:
        assert len(chain) > 20


def test_reception_is_in_packet_order() -> None:
    names = [stage.name for stage in paths.stage_chain("udp")]
    order = [
        "net_dev_start_xmit", "netif_rx", "enqueue_to_backlog", "net_rx_action", "netif_receive_skb", "packet_rcv",
        "ip_rcv", "PRE_ROUTING", "ip_route_input", "ip_local_deliver", "LOCAL_IN", "udp_rcv", "udp_queue_rcv_one_skb",
        "sk_filter", "__udp_enqueue_schedule_skb", "sk_data_ready", "sched_waking", "sched_switch", "__skb_recv_udp",
        "copied to the user", "sys_exit recv", "delivered",
    ]  # fmt: skip
    assert [name for name in names if name in order] == order


def test_a_stage_without_a_probe_says_why() -> None:
    assert [stage.name for stage in stages.STAGES if not stage.probes and not stage.why_not] == []


def test_every_sentence_is_one() -> None:
    for stage in stages.STAGES:
        assert len(stage.sentence.split()) > 4
        assert not stage.sentence.endswith(".")


def test_the_programs_of_the_catalogue_are_those_of_the_source() -> None:
    source = "".join(file.read_text() for file in sorted(build.SOURCES.iterdir()))
    written = set(re.findall(r"\b(\w+__(?:tp|fentry|fexit|netfilter|cgroup))\b", source))
    named = {
        program for stage in stages.STAGES for probe in stage.probes for program in (*probe.programs, *probe.along)
    }
    assert named == written


def test_there_is_no_path_of_that_name() -> None:
    assert paths.path_stages("carrier-pigeon") == []
