"""Endpoints of RoCEv2 on network devices of the kernel: two of them over a veth pair between two namespaces."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hwrx import roce
from hwrx.errors import HwrxError, MachineError, PathError, UsageError
from hwrx.host import tools
from hwrx.host.netns import entered_namespace
from hwrx.wires import topology
from hwrx.wires.made import Made

OURS, THEIRS = "198.18.77.70", "198.18.77.71"
OURS_V6, THEIRS_V6 = "2001:2:0:77::70", "2001:2:0:77::71"
LIMIT = 30.0


@pytest.fixture(scope="module")
def wire() -> Iterator[Made]:
    with topology.netns() as made:
        yield made


@pytest.fixture
def opened(wire: Made) -> Iterator[object]:
    with contextlib.ExitStack() as stack:

        def opens(end: str, address: str, **options) -> roce.Endpoint:
            name = wire.peers[end].removeprefix("netns:")
            with entered_namespace(name):
                return stack.enter_context(roce.endpoint(topology.LINKS[end], address, **options))

        opens.name = {end: peer.removeprefix("netns:") for end, peer in wire.peers.items()}  # type: ignore[attr-defined]
        yield opens


def work(*ends: roce.Endpoint, until) -> None:
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline, [end.queue_pair.counters for end in ends]
        for end in ends:
            end.drive()


@pytest.mark.parametrize(("ours", "theirs"), [(OURS, THEIRS), (OURS_V6, THEIRS_V6)], ids=["IPv4", "IPv6"])
def test_two_endpoints_speak_over_the_kernels_devices(opened, ours: str, theirs: str) -> None:
    us, them = opened("client", ours), opened("server", theirs)
    memory, there = bytearray(b"x" * 100_000), bytearray(100_000)
    us.connect(them.parameters.to_line())
    them.connect(us.parameters.to_line())
    region = them.register(there)
    them.post_receive(region, wr_id=3)
    us.post_send("send", us.register(memory), wr_id=4)
    found = []
    work(us, them, until=lambda: found.extend(them.queue_pair.poll_receives()) or found)
    assert found == [(3, "IBV_WC_SUCCESS", "IBV_WC_RECV", 100_000, None)]
    assert there == memory


@pytest.mark.parametrize(("version", "ours"), [("-4", OURS), ("-6", OURS_V6)])
def test_the_kernel_is_told_our_address_and_asked_for_its_own(opened, version: str, ours: str) -> None:
    us = opened("client", ours)
    kernels = topology.ADDRESSES["server"] if version == "-4" else topology.ADDRESSES_V6["server"]
    assert us.find_mac(kernels) == us.find_mac(kernels)
    # the other namespace's kernel asks for ours, because it has something to send; nobody but us can answer
    ip = ("ip", "-n", opened.name["server"], version)
    tools.run_tool(*ip, "neighbour", "replace", ours, "dev", topology.LINKS["server"], "nud", "none", "managed")
    deadline = time.monotonic() + LIMIT
    while us.link.mac not in (shown := tools.run_tool(*ip, "neighbour", "show", ours)):
        assert time.monotonic() < deadline, shown
        with contextlib.suppress(PathError):
            us.find_mac("2001:2:0:77::99" if version == "-6" else "198.18.77.99", patience=0.1)


def test_one_number_is_one_endpoints(opened) -> None:
    first = opened("client", OURS, qpn=0x11)
    with pytest.raises(UsageError, match=r"another endpoint has queue pair 0x11 of 198\.18\.77\.70 on hwrx0"):
        opened("client", OURS, qpn=0x11)
    opened("client", OURS, qpn=0x12)
    first.close()
    opened("client", OURS, qpn=0x11)


def test_one_address_has_one_mac_address(opened) -> None:
    first = opened("client", OURS, mac="02:00:00:00:00:07")
    with pytest.raises(
        UsageError, match=r"another endpoint on hwrx0 has 198\.18\.77\.70, with the MAC address"
    ) as caught:
        opened("client", OURS)
    assert "--mac 02:00:00:00:00:07" in caught.value.remedy
    opened("client", OURS, mac="02:00:00:00:00:07").close()
    opened("client", THEIRS)  # another address
    first.close()
    opened("client", OURS)


def test_numbers_that_are_not_given_differ(opened) -> None:
    assert len({opened("client", OURS).parameters.qpn for _ in range(8)}) == 8


def test_the_kernels_own_address_is_refused(opened) -> None:
    with pytest.raises(UsageError, match="an address of this machine's kernel"):
        opened("client", topology.ADDRESSES["client"])


def test_a_device_that_is_not_there_or_may_not_be_used_is_told(opened) -> None:
    with pytest.raises(MachineError, match="no network device 'nosuch0'"):
        roce.endpoint("nosuch0", OURS)
    with pytest.raises(HwrxError, match="the link of ifdown0 is down"):
        tools.run_tool("ip", "link", "add", "ifdown0", "type", "veth", "peer", "name", "ifdown1")
        try:
            roce.endpoint("ifdown0", OURS)
        finally:
            tools.run_tool("ip", "link", "delete", "ifdown0")


def test_nothing_that_stands_on_the_wire_answers_for_nobody(opened) -> None:
    us = opened("client", OURS)
    with pytest.raises(PathError, match=r"nobody on this link says to have 198\.18\.77\.99"):
        us.connect("QPN 0x11, PSN 0x1, GID ::ffff:198.18.77.99", patience=0.2)


# --- the commands --------------------------------------------------------------------------------------------------


class Command:
    """`hwrx roce …` in a namespace, whose own line is read as soon as it says it."""

    def __init__(self, name: str, *words: str) -> None:
        command = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "hwrx",
            "roce",
            words[0],
            words[1],
            "--ack-timeout",
            "18",
        ]
        command += words[2:]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self, given: str | None = None) -> tuple[int, str, str]:
        out, err = self.process.communicate(given, timeout=LIMIT)
        return self.process.returncode, out, err


@pytest.fixture
def ends(wire: Made) -> Iterator[object]:
    with contextlib.ExitStack() as stack:

        def start(end: str, verb: str, *words: str) -> Command:
            address = OURS if end == "client" else THEIRS
            name = wire.peers[end].removeprefix("netns:")
            made = Command(name, verb, topology.LINKS[end], "--address", address, *words)
            stack.callback(made.stop)
            return made

        yield start


def test_messages_are_sent_and_printed(ends) -> None:
    far = ends("server", "listen", "-n", "3", "--timeout", "20")
    near = ends("client", "send", "--peer", far.line, "-n", "3", "--size", "3000", "--verb", "send-imm", "--json")
    far.process.stdin.write(f"{near.line}\n")
    far.process.stdin.flush()
    code, out, err = near.end()
    assert code == 0, err
    found = json.loads(out)
    assert (found["messages"], found["size"], found["verb"]) == (3, 3000, "send-imm")
    code, out, err = far.end()
    assert (code, out.splitlines()) == (
        0, [f"message {n + 1}: SEND, 3000 bytes, immediate {n:#010x}" for n in range(3)]
    )  # fmt: skip
    assert "3 messages, 9000 bytes; 9 packets came from the peer" in err


@pytest.mark.parametrize("verb", ["send", "write", "read"])
def test_round_trips_are_timed(ends, verb: str) -> None:
    far = ends("server", "listen", "--echo", "--timeout", "20", "--size", "100")
    near = ends("client", "ping", "--peer", far.line, "-n", "5", "--size", "100", "--json", "--verb", verb)
    far.process.stdin.write(f"{near.line}\n")
    far.process.stdin.flush()
    code, out, err = near.end()
    assert code == 0, err
    found = json.loads(out)
    assert len(found["times"]) == 5 and min(found["times"]) > 0 and found["different"] == 0
    far.process.send_signal(signal.SIGINT)
    assert far.end()[0] == 130


def test_lines_are_exchanged_over_tcp(ends) -> None:
    far = ends("server", "listen", "--echo", "-n", "5", "--exchange", "--timeout", "20")
    near = ends("client", "ping", "-n", "5", "--exchange", topology.ADDRESSES["server"], "--size", "2000")
    code, out, err = near.end()
    assert code == 0, err
    assert "5 round trips of 2000 bytes (send): least" in out
    assert far.end()[0] == 0


def test_a_peer_that_is_not_there_and_memory_that_is_not_offered_are_told(ends) -> None:
    peer = f"QPN 0x11, PSN 0x1, GID ::ffff:{THEIRS}, MAC 02:00:00:00:00:09"
    code, _, err = ends("client", "send", "--peer", peer, "--ack-timeout", "5", "--retries", "2").end()
    assert code == 1 and "IBV_WC_RETRY_EXC_ERR: the other end acknowledged nothing" in err and "remedy" in err
    code, _, err = ends("client", "send", "--peer", peer, "--verb", "write").end()
    assert code == 2 and "the other end offers 0 bytes of memory" in err
    code, _, err = ends("client", "send").end("nonsense\n")
    assert code == 2 and "there is no QPN in 'nonsense'" in err


@pytest.mark.parametrize("verb", ["ping", "send"])
def test_rdma_cm_joins_both_ends_and_takes_leave(ends, verb: str) -> None:
    far = ends("server", "listen", "--cm", "7001", *["--echo"] * (verb == "ping"), "--timeout", "20", "--size", "2000")
    code, out, err = ends("client", verb, "-n", "5", "--cm", f"{THEIRS}:7001", "--size", "2000").end()
    assert code == 0, err
    assert f"connected with {THEIRS}" in err and "did not answer" not in err
    assert out.splitlines()[-1].startswith("5 round trips of 2000" if verb == "ping" else "5 × send of 2000")
    code, out, err = far.end()
    assert code == 0, err
    assert out.splitlines()[-1] == "message 5: SEND, 2000 bytes" and "5 messages, 10000 bytes" in err


def test_rpings_texts_go_to_and_fro_between_our_own_ends(ends) -> None:
    far = ends("server", "listen", "--cm", "--rping", "--timeout", "20")
    near = ends("client", "ping", "--cm", THEIRS, "--rping", "-n", "3", "--size", "3000", "--json")
    code, out, err = near.end()
    assert code == 0, err
    found = json.loads(out)
    assert (found["verb"], len(found["times"]), found["different"]) == ("rping", 3, 0)
    code, out, err = far.end()
    assert code == 0 and "3 texts went to and fro" in err
    assert out.splitlines()[0].startswith("text 1: 3000 bytes, rdma-ping-0: ABCDEF")


def test_a_listener_that_refuses_and_one_that_is_not_there_are_told(ends) -> None:
    far = ends("server", "listen", "--cm", "7001", "--timeout", "20")
    code, _, err = ends("client", "send", "--cm", f"{THEIRS}:7002").end()
    assert code == 1 and f"{THEIRS}, port 7002 refuses the connection: nobody listens at this port" in err
    far.stop()
    # its kernel answers for the address, and knows nothing of RDMA-CM
    code, _, err = ends("client", "ping", "--cm", topology.ADDRESSES["server"], "--rping").end()
    assert code == 1 and f"nobody answers at {topology.ADDRESSES['server']}, port 7174" in err


def test_datagrams_are_received_of_whoever_has_the_q_key(ends) -> None:
    far = ends("server", "listen", "--service", "ud", "--qkey", "0x77", "-n", "3", "--timeout", "20")
    assert "QKEY 0x00000077" in far.line
    near = ends("client", "send", "--service", "ud", "--peer", far.line, "-n", "3", "--size", "100", "--json")
    code, out, err = near.end()
    assert code == 0, err
    assert json.loads(out)["messages"] == 3
    code, out, err = far.end()
    assert (code, out.splitlines()) == (0, [f"message {n + 1}: SEND, 100 bytes" for n in range(3)]), err


def test_datagrams_are_sent_back_and_timed(ends) -> None:
    far = ends("server", "listen", "--service", "ud", "--echo", "--exchange", "-n", "5", "--timeout", "20")
    words = ("--service", "ud", "-n", "5", "--exchange", topology.ADDRESSES["server"], "--timeout", "20")
    code, out, err = ends("client", "ping", *words, "--size", "1000").end()
    assert code == 0, err
    assert out.splitlines()[-1].startswith("5 round trips of 1000 bytes (send): least")
    code, out, err = far.end()
    assert code == 0 and "5 messages, 5000 bytes" in err, err
