"""MSG_ZEROCOPY and TCP_ZEROCOPY_RECEIVE over a veth pair: every byte arrives, and the claims are the kernel's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from zerocopy import MIB, MTU, row, sendings, setting, sound

import hwrx
from hwrx.cli import cli
from hwrx.control.messages import Role, Wait
from hwrx.control.places import Place
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with topology.netns(mtu=MTU) as made:
        yield Bed(made.places, made.peers, {})


@pytest.fixture(scope="module")
def pair(bed: Bed) -> Iterator[Pair]:
    with Pair(bed) as agents:
        yield agents


@pytest.mark.parametrize("wait", ["block", "epoll", "select", "spin"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_sent_without_copying_and_told_that_it_was_copied_after_all(pair: Pair, path: str, wait: Wait) -> None:
    # room for a whole window, which a reader who is kept waiting finds in its queue: the default has it for some forty
    room = {"socket_buffer": 4 * MIB}
    for more in ({}, {"pattern": "stream", **room}, {"pattern": "paced", "rate": 2000.0, **room}):
        measured = pair.measure(1, setting(path, 3000, wait=wait, zerocopy_send=True, **more))
        sound(measured)
        assert measured.tally["zerocopy_bytes"] == sendings(more) * measured.tally["bytes"]
        # both ends are on one machine: nothing of this leaves it without a copy, and the kernel says so
        assert measured.tally["zerocopy_copied_bytes"] == measured.tally["zerocopy_bytes"]


def test_a_message_may_take_more_calls_than_are_noted(pair: Pair) -> None:
    """A small buffer takes a message in a great many calls, each of which the kernel settles by its number."""
    more = {"pattern": "stream", "wait": "spin", "socket_buffer": 4096, "batch": 16}
    measured = pair.measure(7, setting("tcp", MIB, zerocopy_send=True, **more))
    sound(measured)
    assert measured.tally["zerocopy_copied_bytes"] == measured.tally["zerocopy_bytes"] == measured.tally["bytes"]


@pytest.mark.parametrize("wait", ["block", "epoll", "spin"])
def test_whole_pages_are_mapped(pair: Pair, wait: Wait) -> None:
    both = {"zerocopy_send": True, "zerocopy_receive": True}
    for size, more in ((MIB, {}), (65536, {"pattern": "stream"}), (65536, {"pattern": "paced", "rate": 300.0})):
        measured = pair.measure(2, setting("tcp", size, wait=wait, **both, **more))
        sound(measured)
        tally = measured.tally
        assert tally["mapped_bytes"] + tally["read_bytes"] == sendings(more) * tally["bytes"]
        assert tally["mapped_bytes"] > 0
        if size == MIB:
            # elsewhere windows cut as they please, and a page that comes in two parts is read
            assert tally["read_bytes"] + tally["gathered_bytes"] < 0.1 * sendings(more) * tally["bytes"]


def test_what_fills_no_pages_is_read(pair: Pair) -> None:
    """An ordinary sender's bytes lie in large fragments, which the kernel does not map."""
    measured = pair.measure(3, setting("tcp", 8192, zerocopy_receive=True))
    sound(measured)
    assert measured.tally["mapped_bytes"] == 0
    assert measured.tally["read_bytes"] == 2 * measured.tally["bytes"] + 8192 * measured.tally["checked"]


def test_a_sender_that_dies_in_a_message_ends_the_mapping_receiver(bed: Bed) -> None:
    with Pair(bed) as pair:
        pair.peers["client"].kill()
        with pytest.raises(hwrx.errors.PeerError):
            pair.measure(4, setting("tcp", MIB, zerocopy_receive=True))


def test_the_books_name_both_claims(bed: Bed, pair: Pair) -> None:
    with RunTracer(bed, ["udp", "tcp"]) as tracer:
        tracer.attach()
        datagrams = tracer.trace(pair, 5, setting("udp", 3000, zerocopy_send=True))
        mapped = tracer.trace(pair, 6, setting("tcp", MIB, zerocopy_send=True, zerocopy_receive=True))
    for found in (datagrams, mapped):
        sound(found.measured, checked=0)  # what is traced has no messages beside those that are looked at
        assert found.ledger.sender == pytest.approx(1.0, abs=1e-3)  # by the copy that a veth forces
        assert row(found, "skb_zerocopy_iter").kind == "mapped"
        assert "100.0% of the bytes" in row(found, "skb_zerocopy_iter").words
        assert found.timelines["there"].share == 1.0
    assert datagrams.ledger.receiver == pytest.approx(1.0, abs=1e-2)
    assert mapped.ledger.receiver < 0.1
    assert row(mapped, "tcp_zerocopy_receive").per_byte > 0.9


def test_by_options_of_compare(tmp_path: Path) -> None:
    words = ["compare", "--paths", "tcp", "--size", "65536", "--topology", "netns", "--wire-mtu", str(MTU)]
    more = ["--zerocopy-send", "--zerocopy-receive", "--messages", "60", "--repeats", "1", "--runs", str(tmp_path)]
    done = CliRunner().invoke(cli, [*words, *more])
    assert done.exit_code == 0, done.output
    ((trial, _),) = hwrx.load(tmp_path / "latest").each_trial()
    assert trial["zerocopy_send"]
    assert trial["mapped_bytes"] > 0.9 * trial["zerocopy_bytes"]


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_notifications_are_read_behind_the_answer(needs: Callable[..., None], tmp_path: Path, path: str) -> None:
    """Between a message that was received and the answer to it lies no look at the error queue, on either end."""
    needs("strace")
    files: dict[Role, Path] = {"client": tmp_path / "client", "server": tmp_path / "server"}
    traced: dict[Role, str] = {
        role: f"strace -f -e trace=recvfrom,recvmsg,sendto -o {file} {{agent}}" for role, file in files.items()
    }
    places: dict[Role, Place] = {"client": Place(), "server": Place()}
    with Pair(Bed(places, traced, {})) as ends:
        measured = ends.measure(1, setting(path, 8192, messages=20, zerocopy_send=True))
    sound(measured)
    for role, file in files.items():
        done = [line for line in file.read_text().splitlines() if " = -1 " not in line]
        calls = [line for line in done if any(word in line for word in ("MSG_ERRQUEUE", "MSG_ZEROCOPY", "recvfrom("))]
        kinds = [
            # a client looks without waiting for what it only checks, which is not timed
            "look" if "MSG_ERRQUEUE" in line else "send" if "MSG_ZEROCOPY" in line else "got"
            for line in calls
        ]
        timed = [
            at
            for at, line in enumerate(calls)
            if kinds[at] == ("send" if role == "server" else "got") and "MSG_DONTWAIT" not in line
        ]
        assert kinds.count("look") > 10
        first = "got" if role == "server" else "send"
        inside = [kinds[max(n for n in range(at) if kinds[n] == first) : at] for at in timed if first in kinds[:at]]
        assert len(inside) > 20
        assert not any("look" in between for between in inside)
