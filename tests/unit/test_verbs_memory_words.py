"""The memory of verbs, as far as no device is needed: what a setting may ask for, and what is said of a buffer."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import click
import made_runs
import pytest
from click.testing import CliRunner

import hwrx
from cython_ext.core import dma_buf
from cython_ext.core.pinned import PinnedBuffer
from cython_ext.verbs.verbs_device import OnDemand
from hwrx import paths
from hwrx.commands.shared.options import experiment_options
from hwrx.control.messages import Setting
from hwrx.errors import MachineError, UsageError
from hwrx.paths import verbs_memory
from hwrx.report import about
from hwrx.runs.experiment import described_experiment


class Device:
    """What is asked of an open device."""

    def __init__(self, implicit: bool = False, rc: str = "", ud: str = "") -> None:
        self.name = "mlx5_0"
        self.on_demand = OnDemand(implicit, frozenset(rc.split()), frozenset(ud.split()))


def get(device: Device, **fields: Any) -> PinnedBuffer:
    setting = Setting(**{"path": "rdma-send", **fields})
    return verbs_memory.get_memory(device, setting, 10_000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "fields", "words", "remedy"),
    [
        (Device(), {"mr": "odp"}, "mlx5_0 has no on-demand paging", "leave mr out"),
        (
            Device(rc="SEND WRITE"), {"mr": "odp"},
            "has on-demand paging for SEND, WRITE of RC, and rdma-send needs it for RECV, SEND", "another path",
        ),
        (
            Device(rc="SEND RECV"), {"mr": "odp", "connections": 3},
            "for RECV, SEND of RC, and rdma-send needs it for SEND, SRQ_RECV", "another path",
        ),
        (  # its client has one queue pair, with a queue of its own
            Device(ud="SEND SRQ_RECV"), {"mr": "odp", "path": "rdma-ud", "connections": 3},
            "for SEND, SRQ_RECV of UD, and rdma-ud needs it for RECV, SEND, SRQ_RECV", "another path",
        ),
        (
            Device(rc="SEND RECV"), {"mr": "odp", "path": "rdma-ud"},
            "has on-demand paging for nothing of UD", "another path",
        ),
        (Device(rc="SEND RECV"), {"mr": "implicit-odp"}, "and no implicit one", "mr = 'odp'"),
    ],
)  # fmt: skip
def test_what_a_device_has_not_is_said(device: Device, fields: dict[str, Any], words: str, remedy: str) -> None:
    with pytest.raises(MachineError, match=words) as caught:
        get(device, **fields)
    assert remedy in caught.value.remedy


def test_pages_on_demand_are_nobodys_until_they_are_touched() -> None:
    asked = Setting(path="rdma-send", mr="odp")
    with get(Device(rc="SEND RECV"), mr="odp") as buffer:
        assert not buffer.locked
        at, size = buffer.address, buffer.size
        paging = verbs_memory.count_paging("no-such-device", asked, at, size)
        assert paging == {"odp_pages": 0}
        with memoryview(buffer) as view:
            view[5000] = 1
        assert verbs_memory.count_paging("no-such-device", asked, at, size) == {"odp_pages": 1}
    assert verbs_memory.count_paging("no-such-device", Setting(path="rdma-send"), at, size) == {}


def test_what_a_device_counts_of_our_regions_is_added_up() -> None:
    """As rdma-statistic(8) shows the regions of a device that counts their page faults; rdma-resource(8), of whom."""
    resources = [
        {"ifname": "mlx5_0", "mrn": 8, "mrlen": 4096, "pid": 7, "comm": "python3"},
        {"ifname": "mlx5_0", "mrn": 9, "mrlen": 4096, "pid": 7, "comm": "python3"},
        {"ifname": "mlx5_0", "mrn": 4, "mrlen": 4096, "pid": 8, "comm": "ib_write_bw"},
        {"ifname": "mlx5_0", "mrn": 5, "mrlen": 4096, "comm": "[nvme_rdma]"},
    ]
    regions = [
        {"ifname": "mlx5_0", "mrn": 8, "page_faults": 27, "page_invalidations": 0, "page_prefetch": 29},
        {"ifname": "mlx5_0", "mrn": 9, "page_faults": 3, "page_invalidations": 1, "page_prefetch": 0},
        {"ifname": "mlx5_0", "mrn": 4, "page_faults": 500},
        {"ifname": "mlx5_0", "mrn": 5, "page_faults": 60},
    ]
    ours = verbs_memory.regions_of(json.dumps(resources), 7)
    assert ours == {8, 9}
    assert verbs_memory.device_paging(json.dumps(regions), ours) == {
        "odp_page_faults": 30, "odp_page_invalidations": 1, "odp_page_prefetch": 29,
    }  # fmt: skip
    assert verbs_memory.device_paging("", ours) == verbs_memory.device_paging("[]", ours) == {}
    assert verbs_memory.regions_of("", 7) == set()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mr": "odp"}, "'message' pins what it registers, and mr = 'odp' is another kind"),
        ({"mr": "dmabuf"}, "'message' pins what it registers"),
        ({"inline": 64}, "needs no registration"),
        ({"mix": "64:7,1500:1", "size": 1500}, "messages have to be of one size"),
        ({"connections": 4}, "share one memory region"),
        ({"signal_every": 4}, "signal_every = 4 would change nothing"),
    ],
)
def test_what_cannot_be_registered_for_each_message_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        paths.check_setting(Setting(path="rdma-send", registration="message", **fields))
    assert caught.value.remedy


def test_a_buffer_is_said_as_it_is() -> None:
    with PinnedBuffer(100) as buffer:
        assert not verbs_memory.is_huge(buffer)
        assert verbs_memory.describe_memory(Setting(path="rdma-send"), buffer) == "pinned, 4 KiB pages"
        each = Setting(path="rdma-send", registration="message")
        assert verbs_memory.describe_memory(each, buffer).endswith("pages, each message registered before it is sent")
        # huge pages that were asked for and are not there: what a kernel may one day give, hwrx does not take for them
        with pytest.raises(MachineError, match=r"were to be in huge pages of 4 KiB, and are not"):
            verbs_memory._checked(buffer, Setting(path="rdma-send", huge_pages=True))
        assert buffer.closed


def test_a_dma_buf_is_had_or_it_is_said_why_not() -> None:
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    if not Path(dma_buf.DEVICE).exists():
        with pytest.raises(MachineError, match="no /dev/udmabuf") as caught:
            dma_buf.open_dma_buf(100)
        assert "leave the kind of memory region out" in caught.value.remedy
    else:
        with contextlib.suppress(MachineError):  # root alone may
            dma_buf.open_dma_buf(100).close()
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before


def test_a_buffer_closes_its_dma_buf() -> None:
    memfd = os.memfd_create("memory")
    os.ftruncate(memfd, 8192)
    stand_in = os.open("/dev/null", os.O_RDONLY)
    with PinnedBuffer(8192, memfd=memfd, dma_buf=stand_in) as buffer:
        with memoryview(buffer) as view:
            view[:4] = b"seen"
        assert os.pread(memfd, 4, 0) == b"seen"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stand_in)
    assert buffer.dma_buf == -1
    os.close(memfd)


def test_a_buffer_that_was_not_made_closes_nothing() -> None:
    with pytest.raises(TypeError):
        PinnedBuffer()  # type: ignore[call-arg]
    os.fstat(0)  # not standard input, whose number an object has that was not set up


# --- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["--mr", "huge"], {"mr": "pinned", "huge_pages": True}),
        (["--mr", "huge", "--huge-pages"], {"mr": "pinned", "huge_pages": True}),
        (["--mr", "odp", "--huge-pages"], {"mr": "odp", "huge_pages": True}),
        (["--mr", "dmabuf"], {"mr": "dmabuf"}),
        (["--no-huge-pages"], {"huge_pages": False}),
        (["--registration", "message"], {"registration": "message"}),
        (["--mr", "huge", "--no-huge-pages"], None),
        (["--no-huge-pages", "--mr", "huge"], None),
    ],
)
def test_huge_is_a_pinned_region_in_huge_pages(words: list[str], setting: dict[str, Any] | None) -> None:
    @click.command()
    @experiment_options
    def command(**options: Any) -> None:
        click.echo(json.dumps(described_experiment(None, options).setting))

    done = CliRunner().invoke(command, ["--paths", "rdma-send", *words])
    if setting is None:
        assert done.exit_code == 2
        assert "huge" in done.output
    else:
        assert json.loads(done.output) == setting, done.output


def test_the_report_says_of_which_kind_the_memory_was(tmp_path: Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path, paths=["udp", "rdma-send", "rdma-read"])).summary()
    assert "The buffers of rdma-send, rdma-read: pinned, 4 KiB pages." in about.about_row(summary)


def test_huge_takes_the_place_of_what_a_file_says(tmp_path: Path) -> None:
    file = tmp_path / "odp.toml"
    file.write_text('paths = ["rdma-send"]\n[setting]\nmr = "odp"\n')

    @click.command()
    @experiment_options
    def command(**options: Any) -> None:
        click.echo(json.dumps(described_experiment(file, options).setting))

    done = CliRunner().invoke(command, ["--mr", "huge"])
    assert json.loads(done.output) == {"mr": "pinned", "huge_pages": True}, done.output
