"""`hwrx roce` and endpoints of Python against peers of others: ibv_rc_pingpong on rxe, both ways, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from guest_ends import Places
from rxe_peer import LIMIT, TIMEOUT, RxePeer

from hwrx import roce
from hwrx.host import tools
from hwrx.roce.parameters import gid_of
from hwrx.verbs import rxe
from hwrx.wires import topology

ADDRESS, ADDRESS_V6 = "198.18.77.70", "2001:2:0:77::70"
ROOM = 1 << 16
SUCCESS = "IBV_WC_SUCCESS"
ACK = ("--ack-timeout", str(TIMEOUT))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def starts(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield starts
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def pingpong(pair: Places, *words: str, service: str = "rc") -> list[str]:
    there = pair["server"]
    device = str(there.verbs)
    index = rxe.gid_index(device, str(there.address))
    return [f"ibv_{service}_pingpong", "-d", device, "-g", str(index), *words]


def ended(process: subprocess.Popen[str], limit: float = 2 * LIMIT) -> str:
    out, err = process.communicate(timeout=limit)
    assert process.returncode == 0, out + err
    return out


def roce_command(pair: Places, verb: str, *words: str) -> list[str]:
    netdev = str(pair["client"].netdev)
    return [sys.executable, "-m", "hwrx", "roce", verb, netdev, "--address", ADDRESS, *ACK, *words]


SERVICES = [("rc", 64), ("rc", 4096), ("rc", 65536), ("ud", 1), ("ud", 64), ("ud", 1000)]


@pytest.mark.parametrize(("service", "size"), SERVICES)
def test_we_ping_pingpong_of_rdma_core(pair: Places, needs, start, service: str, size: int) -> None:
    needs(f"ibv_{service}_pingpong")
    count = 50
    # -c: check each byte; datagrams' has no such option
    words = ("-s", str(size), "-n", str(count), *["-c"] * (service == "rc"))
    server = start(*pingpong(pair, *words, service=service))
    client = start(*roce_command(pair, "ping", "--service", service, "--exchange", "127.0.0.1", "--size", str(size),
                                 "-n", str(count), "--json", "--timeout", str(LIMIT)))  # fmt: skip
    found = json.loads(ended(client).splitlines()[-1])
    assert (len(found["times"]), found["size"], found["different"], found["lost"]) == (count, size, 0, 0)
    assert f"{count} iters in" in ended(server)


@pytest.mark.parametrize(("service", "size"), SERVICES)
def test_pingpong_of_rdma_core_pings_us(pair: Places, needs, start, service: str, size: int) -> None:
    needs(f"ibv_{service}_pingpong")
    count = 50
    server = start(*roce_command(pair, "listen", "--service", service, "--exchange", "--echo", "--size", str(size),
                                 "-n", str(count)))  # fmt: skip
    line = server.stdout.readline()
    client = start(*pingpong(pair, "-s", str(size), "-n", str(count), "127.0.0.1", service=service))
    said = ended(client)
    ours = roce.parse_parameters(line)
    assert f"QPN {ours.qpn:#08x}, PSN {ours.psn:#08x}" in said and f"GID ::ffff:{ADDRESS}" in said, said
    assert f"{count} iters in" in said
    out, err = server.communicate(timeout=LIMIT)
    assert server.returncode == 0, err
    assert out.splitlines()[-1] == f"message {count}: SEND, {size} bytes"
    assert f"{count} messages, {count * size} bytes" in err


@pytest.mark.parametrize(("size", "ours"), [(64, ADDRESS), (5000, ADDRESS), (5000, ADDRESS_V6)])
def test_rping_connects_by_rdma_cm_and_its_texts_go_to_and_fro(
    pair: Places, needs, start, size: int, ours: str
) -> None:
    needs("rping")
    tools.run_tool("modprobe", "-a", "rdma_ucm")
    netdev, theirs = str(pair["client"].netdev), str(pair["server"].address)
    if ours == ADDRESS_V6:
        theirs = topology.ADDRESSES_V6["server"]
        tools.wait_until(lambda: has_gid(str(pair["server"].verbs), theirs), "the IPv6 GID")
    words = [sys.executable, "-m", "hwrx", "roce", "listen", netdev, "--address", ours, *ACK, "--cm", "--rping"]
    server = start(*words, "--timeout", str(LIMIT))
    assert "QPN" in server.stdout.readline()
    client = start("rping", "-c", "-I", theirs, "-a", ours, "-C", "5", "-S", str(size), "-V", "-v")
    said = ended(client)
    assert said.count("ping data: rdma-ping-") == 5, said
    out, err = server.communicate(timeout=LIMIT)
    assert server.returncode == 0, err
    assert f"connected by {theirs}" in err and "5 texts went to and fro" in err
    assert [line.partition(":")[0] for line in out.splitlines()] == [f"text {n}" for n in range(1, 6)]
    assert f"{size} bytes, rdma-ping-0" in out


def test_rping_is_refused_at_a_port_that_nobody_listens_to(pair: Places, needs, start) -> None:
    needs("rping")
    tools.run_tool("modprobe", "-a", "rdma_ucm")
    netdev, theirs = str(pair["client"].netdev), str(pair["server"].address)
    words = [sys.executable, "-m", "hwrx", "roce", "listen", netdev, "--address", ADDRESS, "--cm", "7000"]
    server = start(*words, "--timeout", "30")
    assert "QPN" in server.stdout.readline()
    client = start("rping", "-c", "-I", theirs, "-a", ADDRESS, "-C", "1")
    _, err = client.communicate(timeout=LIMIT)
    assert client.returncode != 0 and "REJECTED" in err.upper(), err
    _, err = server.communicate(timeout=LIMIT)
    assert server.returncode == 1 and "nobody asked for a connection to port 7000" in err


@pytest.mark.parametrize(("size", "ours"), [(64, ADDRESS), (5000, ADDRESS), (5000, ADDRESS_V6)])
def test_we_connect_to_rping_by_rdma_cm_and_our_texts_come_back(
    pair: Places, needs, start, size: int, ours: str
) -> None:
    needs("rping")
    tools.run_tool("modprobe", "-a", "rdma_ucm")
    netdev, theirs = str(pair["client"].netdev), str(pair["server"].address)
    if ours == ADDRESS_V6:
        theirs = topology.ADDRESSES_V6["server"]
        tools.wait_until(lambda: has_gid(str(pair["server"].verbs), theirs), "the IPv6 GID")
    server = start("rping", "-s", "-a", theirs, "-S", str(size), "-v")
    tools.wait_until(lambda: "LISTEN" in tools.run_tool("rdma", "resource", "show", "cm_id"), "rping's listener")
    words = [sys.executable, "-m", "hwrx", "roce", "ping", netdev, "--address", ours, *ACK, "--cm", theirs, "--rping"]
    client = start(*words, "--size", str(size), "-n", "5", "--json", "--timeout", str(LIMIT))
    found = json.loads(ended(client).splitlines()[-1])
    assert (found["size"], len(found["times"]), found["different"]) == (size, 5, 0)
    # it ends when we have left, and calls that a failure
    out, err = server.communicate(timeout=LIMIT)
    assert "server DISCONNECT EVENT" in err, err
    assert [line.split()[3] for line in out.splitlines() if "ping data" in line] == [
        f"rdma-ping-{n}:" for n in range(5)
    ]


def test_the_kernels_connection_manager_refuses_a_port_that_nobody_listens_to(pair: Places, needs, start) -> None:
    needs("rping")
    tools.run_tool("modprobe", "-a", "rdma_ucm")
    words = roce_command(pair, "send", "--cm", f"{pair['server'].address}:7001")
    client = start(*words)
    _, err = client.communicate(timeout=LIMIT)
    assert client.returncode == 1 and "port 7001 refuses the connection: nobody listens at this port" in err


# --- endpoints of Python -------------------------------------------------------------------------------------------


class Met:
    """An endpoint and a queue pair of rxe, connected; the endpoint's address is found by ARP, and no entry made."""

    def __init__(self, pair: Places, stack: contextlib.ExitStack, address: str, theirs: str, index: int | None) -> None:
        self.qp = stack.enter_context(roce.endpoint(str(pair["client"].netdev), address, depth=128))
        self.memory = bytearray(ROOM)
        self.region = self.qp.register(self.memory)
        self.rxe = RxePeer(str(pair["server"].verbs), str(pair["server"].address), size=ROOM, index=index)
        stack.callback(self.rxe.close)
        own = self.qp.parameters
        self.be_found(str(pair["server"].netdev), address)
        self.rxe.connect(ipaddress.ip_address(own.gid).exploded, own.qpn, expects=own.psn, begins=77)
        # rxe's own end is asked for by ARP or neighbour discovery, and so is ours by its kernel
        there = roce.Parameters(gid=gid_of(theirs), qpn=self.rxe.number, psn=77, mtu=1024)
        self.qp.connect(there, timeout=TIMEOUT, patience=LIMIT)

    def be_found(self, netdev: str, address: str) -> None:
        """rxe's `connect` waits until the kernel knows our address: it is made to ask, and hears us."""
        tools.run_tool("ip", "neighbour", "replace", address, "dev", netdev, "nud", "none", "managed")
        deadline = time.monotonic() + LIMIT
        while self.qp.link.mac not in (shown := tools.run_tool("ip", "neighbour", "show", address, "dev", netdev)):
            assert time.monotonic() < deadline, shown
            self.qp.idle()

    def rxe_completion(self, queue: str):
        deadline = time.monotonic() + LIMIT
        while (found := self.rxe.poll(queue)) is None:
            assert time.monotonic() < deadline, self.qp.queue_pair.counters
            self.qp.drive(0.001)
        return found


def gid_index_v6(device: str, address: str) -> int:
    """Of a global IPv6 address, for which the kernel makes a GID of its own."""
    table = rxe.VERBS / device / "ports/1"
    wanted = ipaddress.ip_address(address).exploded
    for path in sorted((table / "gids").glob("[0-9]*")):
        if path.read_text().strip() == wanted and "v2" in (table / "gid_attrs/types" / path.name).read_text():
            return int(path.name)
    raise AssertionError(f"{device} has no GID of {address}")


@pytest.fixture(params=["IPv4", "IPv6"])
def met(pair: Places, needs, request: pytest.FixtureRequest) -> Iterator[Met]:
    needs("pyverbs")
    ours, theirs, index = ADDRESS, str(pair["server"].address), None
    if request.param == "IPv6":
        ours, theirs = ADDRESS_V6, topology.ADDRESSES_V6["server"]
        tools.wait_until(lambda: has_gid(str(pair["server"].verbs), theirs), "the IPv6 GID")
        index = gid_index_v6(str(pair["server"].verbs), theirs)
    with contextlib.ExitStack() as stack:
        yield Met(pair, stack, ours, theirs, index)


def has_gid(device: str, address: str) -> bool:
    with contextlib.suppress(AssertionError):
        return gid_index_v6(device, address) >= 0
    return False


def test_an_endpoint_speaks_with_rxe(met: Met) -> None:
    e = met.rxe.e
    body = bytes(range(256)) * 100
    met.memory[: len(body)] = body
    met.rxe.post_receive(0, ROOM, wr_id=5)
    met.qp.post_send("send", met.region, 0, len(body))
    assert met.rxe_completion("receive").byte_len == len(body)
    assert met.rxe.read(len(body), 0) == body
    assert met.qp.next_send(LIMIT).status == SUCCESS
    met.qp.post_receive(met.region, 30_000, 20_000, wr_id=6)
    met.rxe.post(e.IBV_WR_SEND_WITH_IMM, 0, 5000, immediate=9)
    assert met.qp.next_receive(LIMIT) == (6, SUCCESS, "IBV_WC_RECV", 5000, 9)
    assert met.memory[30_000:35_000] == body[:5000]
    assert met.rxe_completion("send").status == e.IBV_WC_SUCCESS
    met.rxe.write(b"written there", 100)
    met.qp.post_send("read", met.region, 0, 13, key=met.rxe.key, address=met.rxe.address + 100)
    assert met.qp.next_send(LIMIT).status == SUCCESS
    assert met.memory[:13] == b"written there"
    met.rxe.post(e.IBV_WR_RDMA_WRITE, 100, 13, key=met.region.key, address=met.region.address + 50_000)
    assert met.rxe_completion("send").status == e.IBV_WC_SUCCESS
    assert met.memory[50_000:50_013] == b"written there"
