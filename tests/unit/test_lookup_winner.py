"""Who of several sockets gets a packet, by the kernel's rules; and what is said where something is not known.

The sockets are made out of nothing. That real kernels do the same is tests/host/test_lookup_here.py and its twin in the
guest.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hwrx.cli import cli
from hwrx.errors import UsageError
from hwrx.lookup import words
from hwrx.lookup.hashes import Address, words_of
from hwrx.lookup.prove import judge_delivery
from hwrx.lookup.table import ENTRY, Entries, Entry, Protocol
from hwrx.lookup.winner import (
    NO_CPU,
    Outcome,
    Packet,
    View,
    hears,
    match_connected,
    predict_outcome,
    score_socket,
)

HERE, ANY4, ANY6 = (ipaddress.ip_address(text) for text in ("192.0.2.1", "0.0.0.0", "::"))
PEER, STRANGER = ipaddress.ip_address("192.0.2.9"), ipaddress.ip_address("192.0.2.8")
HERE6, PEER6 = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::9")
ESTABLISHED, TIME_WAIT, CLOSE, LISTEN, REQUEST = 1, 6, 7, 10, 12
NUMBERS = itertools.count(1000)


def made(local: str, *, far: str = "", far_port: int = 0, **more: Any) -> Entry:
    """An entry of the tables, as the kernel fills it: what IPv4 compares of an IPv6 socket, too."""
    one = np.zeros((), dtype=ENTRY)
    one["sk"] = one["inode"] = next(NUMBERS)
    address, peer = ipaddress.ip_address(local), ipaddress.ip_address(far) if far else None
    one["family"] = 2 if address.version == 4 else 10
    for each, wide, narrow in ((address, "address", "address4"), (peer, "peer", "peer4")):
        if each is None:
            continue
        one[wide][: len(words_of(each))] = words_of(each)
        inner = each.ipv4_mapped if isinstance(each, ipaddress.IPv6Address) else each
        # of a native IPv6 address the kernel keeps 127.0.0.6 (LOOPBACK4_IPV6)
        one[narrow] = words_of(inner)[0] if inner else words_of(ipaddress.ip_address("127.0.0.6"))[0] * bool(int(each))
    one["peer_port"], one["port"], one["namespace"], one["cpu"], one["slot"] = far_port, 53, 1, -1, -1
    one["state"] = ESTABLISHED if far else CLOSE
    for name, value in more.items():
        one[name] = value
    return one[()]


def seen(sockets: Sequence[Entry], protocol: Protocol = "udp", *, hashed: int | None = 0, **more: Any) -> View:
    """A view of sockets that all hang on one chain, in this order; the same number is each one's group's."""
    there = np.array(list(sockets), dtype=ENTRY)

    def group(entry: Entry) -> Entries:
        return there[there["group"] == entry["group"]]

    chain = there if protocol == "udp" else there[there["state"] == LISTEN]
    return View(protocol, 1, there, lambda _: chain, group, lambda _: hashed, **more)


def packet(destination: Address = HERE, source: Address | None = PEER, **more: Any) -> Packet:
    return Packet(destination, 53, source, 999, **{"device": 3, "cpu": NO_CPU, "looped": False, **more})


def names(sockets: Sequence[Entry]) -> frozenset[int]:
    return frozenset(int(each["sk"]) for each in sockets)


def test_of_several_the_kernels_scores_decide() -> None:
    asked = packet()
    plain, tied = made("192.0.2.1"), made("192.0.2.1", device=3)
    friend = made("192.0.2.1", far="192.0.2.9", far_port=999)
    assert score_socket("udp", plain, asked, HERE, 1) == 2
    assert score_socket("udp", tied, asked, HERE, 1) == 6
    assert score_socket("udp", friend, asked, HERE, 1) == 10
    assert score_socket("udp", made("192.0.2.1", far="192.0.2.8", far_port=999), asked, HERE, 1) is None
    assert score_socket("udp", made("192.0.2.1", device=4), asked, HERE, 1) is None
    assert score_socket("udp", plain, asked, HERE, 2) is None
    assert score_socket("udp", made("192.0.2.1", cpu=5), packet(cpu=5), HERE, 1) == 3
    assert score_socket("tcp", plain, asked, HERE, 1) == 2
    assert predict_outcome(seen([plain, tied, friend]), asked).sockets == names([friend])
    # of equals the first on the chain
    assert predict_outcome(seen([plain, made("192.0.2.1")]), asked).sockets == names([plain])


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_an_ipv4_packet_finds_the_socket_of_both_families(protocol: Protocol) -> None:
    state = LISTEN if protocol == "tcp" else CLOSE
    both, only6, mapped = (made("::", state=state), made("::", only6=1, state=state),
                           made("::ffff:192.0.2.1", state=state))  # fmt: skip
    assert predict_outcome(seen([only6, both], protocol), packet()).sockets == names([both])
    assert predict_outcome(seen([both, mapped], protocol), packet()).sockets == names([mapped])
    assert predict_outcome(seen([only6], protocol), packet()).sockets == {0}
    # an IPv6 address is no IPv4 address, and IPv6's packets are none of the mapped socket's
    assert predict_outcome(seen([made("2001:db8::1", state=state)], protocol), packet()).sockets == {0}
    assert predict_outcome(seen([mapped], protocol), packet(HERE6, PEER6)).sockets == {0}


@pytest.mark.parametrize(("local", "far"), [("192.0.2.1", "192.0.2.9"), ("::ffff:192.0.2.1", "::ffff:192.0.2.9")])
def test_a_connection_is_found_by_its_four_values_mapped_or_not(local: str, far: str) -> None:
    listener = made("::", state=LISTEN)
    connection = made(local, far=far, far_port=999)
    there = seen([listener, connection], "tcp")
    assert predict_outcome(there, packet()).sockets == names([connection])
    assert predict_outcome(there, packet(source=STRANGER)).sockets == names([listener])
    assert "the connection itself" in words.tell_receivers(there, packet(), predict_outcome(there, packet()))
    # one that is bound to another device is another's
    assert not match_connected(made(local, far=far, far_port=999, device=4), packet(), 1)


def test_what_is_left_of_a_connection_and_a_request_name_their_listener() -> None:
    listener = made("192.0.2.1", state=LISTEN)
    rest = made("192.0.2.1", far="192.0.2.9", far_port=999, state=TIME_WAIT)
    there = seen([listener, rest], "tcp")
    found = predict_outcome(there, packet())
    told = words.tell_receivers(there, packet(), found)
    assert found.sockets == names([rest]) and "TIME_WAIT" in told and f"inode {listener['inode']}" in told
    request = made("192.0.2.1", far="192.0.2.9", far_port=999, state=REQUEST, listener=listener["sk"])
    there = seen([listener, request], "tcp")
    told = words.tell_receivers(there, packet(), predict_outcome(there, packet()))
    assert "NEW_SYN_RECV" in told and f"inode {listener['inode']}" in told


def test_a_group_chooses_by_the_hash_of_the_address_that_was_looked_for() -> None:
    asked: list[Address] = []
    group = [made("0.0.0.0", reuseport=1, group=7) for _ in range(4)]
    there = np.array(group, dtype=ENTRY)

    def hashed(near: Address) -> int:
        asked.append(near)
        return 3 << 30 if near == ANY4 else 0

    view = View("udp", 1, there, lambda address: there if address == ANY4 else there[:0], lambda _: there, hashed)
    assert predict_outcome(view, packet()).sockets == names([group[3]])
    assert set(asked) == {ANY4}  # the second pass hashes the wildcard, not the packet's own address


def test_a_connected_member_is_its_peers_alone_and_a_stranger_goes_on() -> None:
    mine = made("192.0.2.1", far="192.0.2.9", far_port=999, reuseport=1, group=7, has_conns=1)
    group = [mine, *(made("192.0.2.1", reuseport=1, group=7, has_conns=1) for _ in range(2))]
    assert predict_outcome(seen(group), packet()).sockets == names([mine])
    # the stranger's hash falls on the connected one, whose place the next takes
    assert predict_outcome(seen(group, hashed=0), packet(source=STRANGER)).sockets == names([group[1]])
    assert predict_outcome(seen(group, hashed=0xFFFFFFFF), packet(source=STRANGER)).sockets == names([group[2]])
    # a group with connections does not end the search: one with a better score behind it is found
    better = made("192.0.2.1", device=3)
    assert predict_outcome(seen([*group[1:], better]), packet()).sockets == names([better])


def test_a_stated_cpu_chooses_among_a_group_before_the_hash() -> None:
    group = [made("192.0.2.1", reuseport=1, group=7, group_cpus=1, cpu=cpu) for cpu in (-1, -1, 4)]
    assert predict_outcome(seen(group), packet(cpu=4)).sockets == names([group[2]])
    assert predict_outcome(seen(group), packet(cpu=5)).sockets == names([group[0]])
    found = predict_outcome(seen(group), packet(cpu=None))
    assert not found.decided and found.sockets == names([group[0], group[2]])
    assert found.open == ("it depends on the CPU that receives it (SO_INCOMING_CPU)",)


@pytest.mark.parametrize(
    ("more", "asked", "why"),
    [
        ({"chooser": 9}, packet(), "a BPF program of the group chooses"),
        ({}, packet(source=None), "name a sender"),
    ],
)
def test_what_cannot_be_told_of_a_group_is_said(more: dict[str, int], asked: Packet, why: str) -> None:
    group = [made("192.0.2.1", reuseport=1, group=7, **more) for _ in range(3)]
    found = predict_outcome(seen(group), asked)
    assert not found.decided and found.sockets == names(group) and why in found.open[0]
    assert why in words.tell_receivers(seen(group), asked, found)
    hidden = predict_outcome(seen(group, hashed=None), packet())
    assert not hidden.decided and hidden.sockets == names(group)


def test_a_device_that_is_not_known_and_decides_is_said() -> None:
    plain, tied = made("192.0.2.1"), made("192.0.2.1", device=3)
    found = predict_outcome(seen([plain, tied]), packet(device=0))
    assert found.sockets == names([plain, tied]) and "--device" in found.open[0]
    assert predict_outcome(seen([plain]), packet(device=0)).decided


def test_a_program_of_the_namespace_makes_it_undecided_unless_a_connection_is_found() -> None:
    plain = made("192.0.2.1")
    found = predict_outcome(seen([plain], redirected=True), packet())
    assert found.sockets == {0, int(plain["sk"])} and "sk_lookup" in found.open[0]
    friend = made("192.0.2.1", far="192.0.2.9", far_port=999)
    assert predict_outcome(seen([friend], redirected=True), packet()).decided


def test_the_table_by_four_values_takes_the_first_of_its_chain_whatever_its_score() -> None:
    far = {"far": "192.0.2.9", "far_port": 999}
    tied = made("192.0.2.1", device=3, slot=[1, 1, 5], before=[0, 0, 1], **far)
    plain = made("192.0.2.1", slot=[1, 1, 5], before=[0, 0, 0], **far)
    late = made("192.0.2.1")  # first on the other chain, so that early demux finds nothing
    assert predict_outcome(seen([late, tied, plain]), packet()).sockets == names([plain])
    for each in (tied, plain):
        each["slot"] = [1, 1, -1]  # a kernel without that table goes by the scores
    assert predict_outcome(seen([late, tied, plain]), packet()).sockets == names([tied])


def test_early_demux_goes_by_the_whole_packet_and_the_first_on_the_chain() -> None:
    far = {"far": "192.0.2.9", "far_port": 999}
    plain, tied = made("192.0.2.1", **far), made("192.0.2.1", device=3, **far)
    there = seen([plain, tied])
    assert predict_outcome(there, packet()).sockets == names([plain])
    assert "is connected to this very sender" in words.tell_early_demux(there, packet())
    assert "without effect" in words.tell_early_demux(there, packet(source=STRANGER))
    # what comes from this machine itself has a route already, and with early demux off the score decides
    assert predict_outcome(there, packet(looped=True)).sockets == names([tied])
    assert predict_outcome(seen([plain, tied], early=False), packet()).sockets == names([tied])
    assert not predict_outcome(there, packet(looped=None)).decided


def test_all_that_listen_to_a_group_get_its_packets() -> None:
    group = packet(ipaddress.ip_address("239.1.2.3"))
    member = made("0.0.0.0", joined=1)
    easy, strict = made("0.0.0.0", mc_all=1), made("0.0.0.0")  # IP_MULTICAST_ALL is on unless it is put off
    bound, other = made("239.1.2.3", mc_all=1), made("239.1.2.4", mc_all=1)
    both, only6 = made("::", mc_all=1), made("::", mc_all=1, only6=1)
    stranger, elsewhere = made("0.0.0.0", mc_all=1, far="192.0.2.8", far_port=999), made("0.0.0.0", joined=1, device=4)
    choosy = [made("0.0.0.0", joined=1, sources=1, include=include, listed=listed)
              for include, listed in ((1, 1), (1, 0), (0, 1), (0, 0))]  # fmt: skip
    there = [member, easy, strict, bound, other, both, only6, stranger, elsewhere, *choosy]
    found = predict_outcome(seen(there, every=True), group)
    assert found.every and found.sockets == names([member, easy, bound, both, choosy[0], choosy[3]])
    assert words.tell_receivers(seen(there, every=True), group, found).startswith("all 6 that listen")
    kept_out = seen(there, every=True, admitted=False)
    assert predict_outcome(kept_out, group).sockets == frozenset()
    assert predict_outcome(seen(there, "tcp", every=True), group).sockets == frozenset()


def test_ipv6_groups_have_their_own_rules_and_broadcasts_ask_for_no_membership() -> None:
    group = packet(ipaddress.ip_address("ff02::5"), PEER6)
    assert hears(made("::", mc6_all=1), group, 1) and hears(made("ff02::5", joined=1), group, 1)
    assert not hears(made("::", mc_all=1), group, 1) and not hears(made("0.0.0.0", mc6_all=1), group, 1)
    everyone = packet(ipaddress.ip_address("192.0.2.255"))
    assert hears(made("0.0.0.0"), everyone, 1) and hears(made("::"), everyone, 1)
    assert not hears(made("192.0.2.1"), everyone, 1)


def test_the_one_listener_of_early_demux_hands_over_to_its_group() -> None:
    asked = packet(ipaddress.ip_address("239.1.2.3"))
    group = [made("239.1.2.3", reuseport=1, group=7, mc_all=mc_all) for mc_all in (1, 0)]
    last = 0xFFFFFFFF  # the hash of the second
    assert predict_outcome(seen(group, hashed=last, every=True), asked).sockets == names([group[0]])
    assert predict_outcome(seen(group, hashed=last, every=True, rechosen=True), asked).sockets == names([group[1]])


def test_a_proof_is_of_those_that_were_named_and_of_no_other() -> None:
    one = Outcome(frozenset([5]))
    assert judge_delivery(one, {5})
    assert not judge_delivery(one, {6}) and not judge_delivery(one, {5, 6}) and not judge_delivery(one, set())
    several = Outcome(frozenset([5, 6]))
    assert judge_delivery(several, {6}) and not judge_delivery(several, {5, 6}) and not judge_delivery(several, set())
    assert judge_delivery(Outcome(frozenset([0, 5])), set())
    everyone = Outcome(frozenset([5, 6]), True)
    assert judge_delivery(everyone, {5, 6}) and not judge_delivery(everyone, {5})
    assert judge_delivery(Outcome(frozenset([0])), set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["[fe80::1]:53"], "on every link"),
        (["239.1.2.3:53"], "depends on the device"),
        (["[fe80::1%lo]:53", "--device", "nosuch0"], "by one device, not by lo and nosuch0"),
        (["[fe80::1%nosuch0]:53"], "no network device 'nosuch0'"),
        (["127.0.0.1:53", "--seed", "xyz"], "not a hexadecimal number"),
        (["127.0.0.1:53", "--seed", "1ffffffff"], "is not a hash_mix"),
        (["127.0.0.1:53", "--slots", "3"], "a power of two"),
        (["127.0.0.1:53", "--seed", "1", "--prove"], "does not ask the kernel"),
        (["127.0.0.1:53", "--slots", "16", "--netns", "blue"], "does not ask the kernel"),
        (["--all", "--seed", "1"], "nor --slots"),
        (["--all", "--prove"], "neither an address, --prove"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(options: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["lookup", *options])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)


def test_a_stated_seed_and_number_of_slots_are_used_by_everybody() -> None:
    done = CliRunner().invoke(cli, ["lookup", "192.0.2.1:53", "--seed", "1234", "--slots", "256"])
    assert done.exit_code == 0, done.output
    assert "hash_mix 0x00001234: stated, not the kernel's" in done.output
    assert f"slot {(53 + 0x1234) & 255} of 256" in done.output
