"""The kernel's hashes, held against what kernels made of real sockets; and who of several gets a packet.

lookup_vectors.json was written by the kernels that it names (tests/lookup_sockets.py, `vectors`): each socket's stored
hash and the slots on which its kernel had it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwrx import paths
from hwrx.commands.lookup import parse_endpoint
from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.host import netns
from hwrx.lookup import answer, crowd, winner
from hwrx.lookup.hashes import FORMS, Secrets, Steps, ehashfn, portaddr_hash, udp_hashfn

KERNELS: dict[str, Any] = json.loads(Path(__file__).with_name("lookup_vectors.json").read_text())


@pytest.mark.parametrize("kernel", KERNELS)
def test_hashes_are_the_kernels(kernel: str) -> None:
    data = KERNELS[kernel]
    mix, masks, secrets = data["hash_mix"], data["masks"], Secrets(*data["secrets"])
    kinds = set()
    for row in data["sockets"]:
        local, far = ipaddress.ip_address(row["local"]), ipaddress.ip_address(row["far"])
        kinds.add((row["kind"], local.version))
        portaddr = portaddr_hash(local, row["port"], mix)
        if row["kind"] == "udp":
            slots = [udp_hashfn(row["port"], mix, masks["UDP_PORT"]), portaddr & masks["UDP_ADDRESS"]]
            assert row["slots"] == slots
            assert row["hash"] == (portaddr & 0xFFFF) << 16 | row["port"]
        elif row["kind"] == "listen":
            assert row["slots"][0] == portaddr & masks["TCP_LISTEN"]
        else:
            whole = ehashfn(local, row["port"], far, row["far_port"], mix, secrets, FORMS[0])
            assert whole == row["hash"]
            assert row["slots"][0] == whole & masks["TCP_ESTABLISHED"]
    assert len(kinds) == 6


def test_forms_differ_where_kernels_did() -> None:
    six = ipaddress.ip_address("2001:db8::1"), 80, ipaddress.ip_address("2001:db8:7::2"), 40000
    four = ipaddress.ip_address("192.0.2.1"), 80, ipaddress.ip_address("192.0.2.2"), 40000
    secrets = Secrets(1, 2, 3)
    assert len({ehashfn(*six, 9, secrets, form) for form in FORMS}) == 3
    assert len({ehashfn(*four, 9, secrets, form) for form in FORMS}) == 2


def test_the_port_outside_moves_neighbouring_ports_to_neighbouring_slots() -> None:
    one, two = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
    outside = FORMS[1]
    hashes = [ehashfn(one, port, two, 443, 7, Secrets(5), outside) for port in (1000, 1001)]
    assert (hashes[1] - hashes[0]) & 0xFFFFFFFF == 1


def test_steps_end_with_the_result() -> None:
    for text in ("192.0.2.1", "2001:db8::1", "::", "::ffff:192.0.2.1"):
        steps = Steps()
        assert steps == []
        assert portaddr_hash(ipaddress.ip_address(text), 53, 77, steps) == steps[-1].value
    assert portaddr_hash(ipaddress.ip_address("::ffff:192.0.2.1"), 53, 77) == portaddr_hash(
        ipaddress.ip_address("192.0.2.1"), 53, 77
    )


def test_without_privilege_the_seed_is_a_stated_one() -> None:
    packet = winner.Packet(*parse_endpoint("192.0.2.1:53"))
    found = answer.compute_answer("udp", packet, 0x1234, 1024, "no root")
    assert found.verdict == "not compared"
    assert found.looks[0].slot == (53 + 0x1234) & 1023
    assert found.looks[1].slot == portaddr_hash(packet.destination, 53, 0x1234) & 1023
    assert "no root" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("localhost:53", "is not ADDRESS:PORT"),
        ("::1:53", "brackets"),
        ("[::1]", "is not ADDRESS:PORT"),
        ("127.0.0.1:0", "is not a port"),
        ("127.0.0.1:65536", "is not a port"),
        ("127.0.0.1", "is not ADDRESS:PORT"),
    ],
)
def test_bad_targets_get_words(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        parse_endpoint(text)


def test_a_crowd_on_one_chain_is_on_one_chain_and_a_spread_one_on_all() -> None:
    mask, mix, slot = 1023, 0xC0FFEE, 77
    on_chain = list(itertools.islice(crowd.chained_crowd(slot, mask, mix), 5000))
    assert len(set(on_chain)) == 5000
    assert {portaddr_hash(ipaddress.ip_address(a), p, mix) & mask for a, p in on_chain} == {slot}
    over_ports = np.bincount([(p + mix) & mask for _, p in on_chain], minlength=mask + 1)
    assert over_ports.max() < 500  # binding looks through the chain by port
    everywhere = list(itertools.islice(crowd.spread_crowd(), 50 * 1024))
    counts = np.bincount(
        [portaddr_hash(ipaddress.ip_address(a), p, mix) & mask for a, p in everywhere], minlength=mask + 1
    )
    assert set(counts) == {50}


def test_a_crowd_is_for_udp_alone() -> None:
    paths.check_setting(Setting(path="udp", crowd=10))
    with pytest.raises(UsageError, match="UDP's table"):
        paths.check_setting(Setting(path="tcp", crowd=10))


def test_a_namespace_that_is_not_there_gets_words() -> None:
    with pytest.raises(UsageError, match="no network namespace 'no-such'"), netns.entered_namespace("no-such"):
        pass


def test_a_crowd_passes_over_a_port_that_somebody_has_on_every_address() -> None:
    taken = list(itertools.islice(crowd.spread_crowd(), 5))[4][1]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder,
        crowd.Crowded(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        with contextlib.suppress(OSError):  # somebody else has it then
            holder.bind(("", taken))
        one.bind(("127.0.0.1", 0))
        one.gather(10, "spread")
        ports = [each.getsockname()[1] for each in one.company]
        assert len(set(ports)) == 10
        assert taken not in ports
