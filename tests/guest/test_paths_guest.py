"""The socket paths that not every machine has, on the guest's kernel and its wire: io_uring, kTLS, Multipath TCP."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from guest_ends import Places
from leaving import nothing_is_left  # noqa: F401
from two_sides import Side, both, clean, endpoint

from hwrx.control.messages import Setting
from hwrx.errors import MachineError, PathError

PATHS = ("udp-uring", "tcp-uring", "tcp-ktls", "mptcp")


@pytest.mark.parametrize(("wait", "size"), [("event", 64), ("event", 5000), ("poll", 1400)])
@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
@pytest.mark.parametrize("path", PATHS)
def test_every_message_arrives_whole_and_once(pair: Places, path: str, pattern: Any, wait: Any, size: int) -> None:
    setting = Setting(
        path=path, pattern=pattern, size=size, wait=wait, messages=50, warmup=5, cooldown=5, check_every=1,
        rate=100.0 if pattern == "paced" else None, limit=30, socket_buffer=4 << 20,  # an open loop waits for nobody
    )  # fmt: skip
    client, server = both(setting, places=pair)
    assert (client.verdict, server.verdict) == ("complete", "complete"), (client.counts, server.counts)
    assert clean(server.counts), server.counts
    assert server.counts["checked"] == 60


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
def test_one_request_receives_all_datagrams(pair: Places, pattern: Any) -> None:
    setting = Setting(
        path="udp-uring", pattern=pattern, size=1400, multishot=True, messages=200, check_every=1, limit=30
    )
    client, server = both(setting, places=pair)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts


@pytest.mark.parametrize("path", ["udp-uring", "tcp-uring"])
def test_what_is_sent_without_copying_is_accounted_as_the_kernel_tells(pair: Places, path: str) -> None:
    setting = Setting(path=path, size=8000, zerocopy_send=True, messages=50, check_every=1, limit=30)
    with endpoint("client", setting, pair["client"]) as client, endpoint("server", setting, pair["server"]) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        for side in (Side(server, setting, "server"), Side(client, setting, "client")):
            side.join(timeout=120)
            assert side.verdict == "complete"
        counts = client.counts()
        tells = "does not say" not in client.chosen()["zerocopy_send"]
    assert counts["zerocopy_unsettled"] == 0
    assert counts["zerocopy_bytes"] >= 50 * 8000
    # on a veth the receiver's stack copies after all
    assert counts["zerocopy_copied_bytes"] == (counts["zerocopy_bytes"] if tells else 0)
    assert ("zerocopy_untold_bytes" in counts) is not tells


def test_what_crosses_the_wire_of_ktls_is_not_the_message(pair: Places) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((pair["server"].netdev or "", 3))
        tap.setblocking(False)
        client, _ = both(Setting(path="tcp-ktls", size=256, messages=20, check_every=1), places=pair)
        frames = []
        while True:
            try:
                frames.append(tap.recv(65536))
            except BlockingIOError:
                break
    assert client.verdict == "complete"
    assert any(len(frame) > 256 for frame in frames)
    # a message's first bytes; "hwrx" is in the devices' addresses, too
    assert not any(b"hwrx" in frame[14:] for frame in frames)


def test_a_record_that_was_changed_is_told_as_such(pair: Places) -> None:
    setting = Setting(path="tcp-ktls", messages=20, limit=10)
    with endpoint("client", setting, pair["client"]) as client, endpoint("server", setting, pair["server"]) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        # another key than the client's: what it sends cannot be opened
        server.connect(ours | {"tls_key": "00" * 36})
        sides = Side(server, setting, "server"), Side(client, setting, "client")
        for side in sides:
            side.join(timeout=60)
            assert not side.is_alive()
            server.close()
    assert "EBADMSG" in sides[0].verdict


def test_an_end_that_names_no_key_is_refused(pair: Places) -> None:
    setting = Setting(path="tcp-ktls", limit=10)
    with (
        endpoint("client", setting, pair["client"]) as client,
        endpoint("server", setting, pair["server"]) as server,
        pytest.raises(PathError, match="names no key of TLS"),
    ):
        client.connect({**server.describe(), "tls_key": "0g"})


def test_a_connection_that_fell_back_to_tcp_is_refused(pair: Places) -> None:
    asked = Setting(path="mptcp", limit=10)
    plain = msgspec.structs.replace(asked, path="tcp")
    with (
        endpoint("client", asked, pair["client"]) as client,
        endpoint("server", plain, pair["server"]) as server,
        pytest.raises(PathError, match="fell back to TCP") as caught,
    ):
        client.connect(server.describe())
    assert "net.mptcp.enabled" in (caught.value.remedy or "")


@pytest.fixture
def sysctl() -> Iterator[Any]:
    before: list[tuple[Path, str]] = []

    def put(name: str, value: str) -> None:
        file = Path("/proc/sys") / name
        before.append((file, file.read_text()))
        file.write_text(value)

    yield put
    for file, value in before:
        file.write_text(value)


def test_multipath_tcp_that_is_switched_off_is_told_with_what_mends_it(pair: Places, sysctl: Any) -> None:
    sysctl("net/mptcp/enabled", "0")
    with pytest.raises(MachineError, match=r"net\.mptcp\.enabled is 0") as caught:
        endpoint("client", Setting(path="mptcp"), pair["client"])
    assert caught.value.remedy == "sysctl -w net.mptcp.enabled=1"


def test_a_ring_that_seccomp_forbids_is_told_as_such(pair: Places) -> None:
    """In a process of its own, which forbids itself io_uring_setup, as containers do."""
    program = (
        "import ctypes, struct, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "code = b''.join(struct.pack('HBBI', *each) for each in (\n"
        "    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)))\n"
        "kept = ctypes.create_string_buffer(code)\n"
        "class Program(ctypes.Structure):\n"
        "    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(kept)))) == 0\n"
        "from hwrx.control.messages import Place, Prepare, Setting\n"
        "from hwrx.errors import HwrxError\n"
        "from hwrx.paths import open_endpoint\n"
        "try:\n"
        "    open_endpoint(Prepare(trial=1, role='client', setting=Setting(path='udp-uring'), here=Place(),\n"
        "                          there=Place()))\n"
        "except HwrxError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "seccomp" in done.stdout, done.stdout + done.stderr
