"""The memory of verbs: registered once or for each message, in huge pages, on demand, as a dma-buf; or why not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_ends import ROLES, Ends, Places, resources

from cython_ext.core import dma_buf
from cython_ext.verbs.rc import RcSendTransport
from cython_ext.verbs.verbs_device import Context
from cython_ext.verbs.verbs_shape import Shape
from hwrx.control.messages import Pattern, Prepare, Setting
from hwrx.errors import MachineError, PathError
from hwrx.host import tools
from hwrx.paths import verbs_memory
from hwrx.paths.verbs_port import open_port

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
RETRIED_ONCE = {"netem": "loss 100%", "ack_timeout": 12, "retry_count": 1}


def setting(path: str = "rdma-send", pattern: Pattern = "pingpong", **more: object) -> Setting:
    given = {"size": 64, "messages": 200, "warmup": 5, "cooldown": 3, "limit": 20.0, "check_every": 1}
    rate = 200.0 if pattern == "paced" else None
    return Setting(path=path, pattern=pattern, rate=rate, **{**given, **more})  # type: ignore[arg-type]


@pytest.fixture
def huge_pages() -> Iterator[Path]:
    before = HUGE_PAGES.read_text()
    yield HUGE_PAGES
    HUGE_PAGES.write_text(before)


# --- registration of each message ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud"])
@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
def test_each_message_is_registered_and_deregistered(ends: Ends, path: str, pattern: Pattern) -> None:
    outcome = ends.run(setting(path, pattern, registration="message", window=8))
    client, server = (outcome.done[role] for role in ROLES)
    assert (client.ended, client.error, server.error) == ("complete", "", "")
    for role, done in outcome.done.items():
        # what an end has posted, and those messages that were only to be checked
        count = done.tally["registered"]
        assert count == done.tally["deregistered"] >= done.tally["posted"]
        assert count > 0 or (role == "server" and (pattern == "stream" or path == "rdma-read"))
        assert "inline_bytes" not in done.tally  # what is inline needs no registration
        assert done.chosen["signal_every"] == 1
        assert done.chosen["memory"] == "pinned, 4 KiB pages, each message registered before it is sent"
        assert not any(done.tally[kind] for kind in ("corrupt", "duplicated", "stale", "wrong_size"))
    seen = server if pattern == "stream" and path in ("rdma-send", "rdma-write-imm", "rdma-ud") else client
    assert seen.tally["delivered"] == seen.tally["expected"]


def test_what_a_broken_trial_had_registered_is_given_back(ends: Ends) -> None:
    """`ends` looks: no device holds a region afterwards."""
    done = ends.run(setting(registration="message", **RETRIED_ONCE)).done["client"]
    assert (done.ended, "IBV_WC_RETRY_EXC_ERR" in done.error) == ("error", True)
    assert done.tally["registered"] == 1
    assert done.tally["deregistered"] == 0


# --- kinds of regions ------------------------------------------------------------------------------------------------


def test_a_region_in_huge_pages(ends: Ends, huge_pages: Path) -> None:
    huge_pages.write_text("8")
    for role, done in ends.run(setting(huge_pages=True)).done.items():
        assert done.ended == "complete", role
        assert done.chosen["memory"] == "pinned, 2 MiB pages"


def test_without_huge_pages_it_says_what_to_reserve(ends: Ends, huge_pages: Path) -> None:
    huge_pages.write_text("0")
    with pytest.raises(MachineError, match="1 huge pages of 2048 KiB are wanted and 0 are free") as caught:
        ends.run(setting(huge_pages=True))
    assert "sysctl -w vm.nr_hugepages=1" in caught.value.remedy


def test_a_dma_buf_is_made_and_the_device_is_asked(ends: Ends) -> None:
    """Kernels before 6.12 make none here; and of all devices hwrx has tried, SoftRoCE takes none."""
    if Path(dma_buf.DEVICE).exists():
        with dma_buf.open_dma_buf(10_000) as buffer:
            assert buffer.size == 12_288
            assert Path(f"/proc/self/fd/{buffer.dma_buf}").readlink().name.startswith("dmabuf")
            view = memoryview(buffer)
            view[:5] = b"hello"
            view.release()
        words, instead = "was given a dma-buf of .* and takes none", "leave mr out"
    else:
        words, instead = "there is no /dev/udmabuf", "--kernel 6.12"
    with pytest.raises(MachineError, match=words) as caught:
        ends.run(setting(mr="dmabuf"))
    assert instead in caught.value.remedy


def on_demand(ends: Ends) -> bool:
    """Whether the devices have on-demand paging: SoftRoCE from Linux 6.15 on, which no packaged kernel here is."""
    device = ends.places["client"].verbs
    assert device is not None
    with contextlib.closing(Context(device)) as context:
        return bool(context.on_demand.rc)


@pytest.mark.parametrize("path", ["rdma-send", "rdma-fetch-add", "rdma-cas", "rdma-read"])
def test_pages_are_faulted_in_on_demand_or_it_says_that_the_device_has_none(ends: Ends, path: str) -> None:
    """On demand, the SoftRoCE of Linux 6.18 to 7.2 moves what is for the middle of a page to and from its beginning.

    So one buffer each is right, which lies there; READ has two, and what it brings of the second is found to be wrong.
    """
    more = {"rdma-send": {"receives": 1}, "rdma-read": {"limit": 4.0}}.get(path, {"size": 8})
    asked = setting(path, mr="odp", window=1, **more)
    if not on_demand(ends):
        with pytest.raises(MachineError, match=r"has no on-demand paging .* from Linux 6\.15") as caught:
            ends.run(asked)
        assert "leave mr out" in caught.value.remedy
        return
    client = ends.run(asked).done["client"]
    assert client.tally["odp_pages"] > 0
    if path == "rdma-read" and client.ended != "complete":
        assert client.tally["corrupt"] > 0
        return
    assert (client.ended, client.error) == ("complete", "")
    assert client.tally["delivered"] == client.tally["expected"]
    assert client.tally["corrupt"] == client.tally["lost"] == 0
    assert client.chosen["memory"] == "on demand (ODP), 4 KiB pages"


def test_on_demand_paging_of_all_memory_is_asked_of_the_device(ends: Ends) -> None:
    """SoftRoCE has none of it, on any kernel so far."""
    with pytest.raises(MachineError, match=r"has no on-demand paging|and no implicit one"):
        ends.run(setting(mr="implicit-odp"))


# --- ends in this process --------------------------------------------------------------------------------------------


class Refused(RcSendTransport):
    """Its landing ring asks for access that no kernel knows."""

    def shape(self) -> Shape:
        usual = super().shape()
        return Shape(opcode=usual.opcode, access=1 << 18, slots=usual.slots, receives=usual.receives)


def test_a_region_that_is_refused_is_said_and_leaves_nothing(pair: Places) -> None:
    before = resources()
    asked = Prepare(
        trial=3, role="client", setting=setting(registration="message"), here=pair["client"], there=pair["server"]
    )
    with pytest.raises(PathError, match="ibv_reg_mr of"):
        Refused(asked, open_port(asked, str(pair["client"].verbs)))
    assert resources() == before


def test_whose_a_region_is_the_device_says(pair: Places) -> None:
    asked = Prepare(trial=3, role="client", setting=setting(), here=pair["client"], there=pair["server"])
    device = str(pair["client"].verbs)
    transport = RcSendTransport(asked, open_port(asked, device))
    try:
        shown = tools.run_tool("rdma", "-j", "resource", "show", "mr", "dev", device)
        assert len(verbs_memory.regions_of(shown, os.getpid())) == 2
        assert verbs_memory.regions_of(shown, os.getppid()) == set()
    finally:
        transport.close()
