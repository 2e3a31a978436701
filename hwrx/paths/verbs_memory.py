"""The memory of one end of a verbs path: of which kind it is, whether the device takes that, and how it is paged."""

from __future__ import annotations

import json
import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cython_ext.core.dma_buf import open_dma_buf
from cython_ext.core.pinned import PRESENT, PinnedBuffer
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools

if TYPE_CHECKING:
    from cython_ext.verbs.verbs_device import Context, OnDemand
    from hwrx.control.messages import Setting

SMAPS = Path("/proc/self/smaps")
ON_DEMAND = ("odp", "implicit-odp")
# of which transport, and for what, a device needs on-demand paging, for the pages of a path to be faulted in
_OPERATIONS = {
    "rdma-send": ("RC", {"SEND", "RECV"}),
    "rdma-write": ("RC", {"WRITE"}),
    "rdma-write-imm": ("RC", {"WRITE"}),  # its receive requests have no buffer
    "rdma-read": ("RC", {"READ"}),
    "rdma-fetch-add": ("RC", {"ATOMIC"}),
    "rdma-cas": ("RC", {"ATOMIC"}),
    "rdma-ud": ("UD", {"SEND", "RECV"}),
}
_KINDS = {
    "pinned": "pinned",
    "odp": "on demand (ODP)",
    "implicit-odp": "on demand (implicit ODP)",
    "dmabuf": "a dma-buf, pinned",
}
PINNED = "leave mr out: pinned memory, which every device takes"


def check_memory(setting: Setting) -> None:
    """UsageError where a setting asks for memory that no device could take."""
    if setting.registration == "once":
        return
    if setting.mr != "pinned":
        raise UsageError(
            f"registration = 'message' pins what it registers, and mr = '{setting.mr}' is another kind of region",
            remedy="leave one of them out",
        )
    if setting.inline:
        raise UsageError(
            "what is sent inline is copied into the work request and needs no registration",
            remedy="leave inline out, or registration = 'once'",
        )
    if setting.mix:
        raise UsageError(
            "a message is registered before its length is read from it, so messages have to be of one size",
            remedy="one size, or registration = 'once'",
        )
    if setting.connections > 1:
        raise UsageError(
            "many connections of one process share one memory region, which is registered once",
            remedy="connections = 1, or registration = 'once'",
        )


def get_memory(context: Context, setting: Setting, size: int) -> PinnedBuffer:
    """Return at least `size` bytes of the kind that the setting asks for; the caller closes them.

    :raises MachineError: if the device has no regions of this kind, or the machine has no such memory
    """
    if setting.mr == "dmabuf":
        return _checked(open_dma_buf(size, huge=setting.huge_pages), setting)
    if setting.mr in ON_DEMAND:
        _need_on_demand(context.name, context.on_demand, setting)
        # nobody holds these: whoever comes to a page first faults it in, and it may be paged out again. Huge pages that
        # the kernel makes by itself would be faulted in 512 at a time
        ours = PinnedBuffer(size, huge=setting.huge_pages, lock=False, fault_in=False, transparent=False)
        return _checked(ours, setting)
    return _checked(PinnedBuffer(size, huge=setting.huge_pages), setting)


def _need_on_demand(device: str, has: OnDemand, setting: Setting) -> None:
    transport, needs = _OPERATIONS[setting.path]
    if setting.connections > 1 and setting.srq and "RECV" in needs:
        # of UD one end alone: the client's one queue pair has a queue of its own
        needs = needs - ({"RECV"} if transport == "RC" else set()) | {"SRQ_RECV"}
    found = has.ud if transport == "UD" else has.rc
    if not has.rc and not has.ud:
        raise MachineError(
            f"{device} has no on-demand paging (odp_caps of ibv_query_device_ex(3)); SoftRoCE has some from Linux 6.15"
            " on",
            remedy=PINNED,
        )
    if not needs <= found:
        raise MachineError(
            f"{device} has on-demand paging for {', '.join(sorted(found)) or 'nothing'} of {transport}, and"
            f" {setting.path} needs it for {', '.join(sorted(needs))}",
            remedy=f"another path; or {PINNED}",
        )
    if setting.mr == "implicit-odp" and not has.implicit:
        raise MachineError(
            f"{device} has on-demand paging of regions, and no implicit one, of all memory (IBV_ODP_SUPPORT_IMPLICIT)",
            remedy="mr = 'odp'",
        )


def _checked(buffer: PinnedBuffer, setting: Setting) -> PinnedBuffer:
    """Return a buffer whose pages are what was asked for, as the kernel has them in /proc/self/smaps."""
    if setting.huge_pages and not is_huge(buffer):
        size = buffer.page_size >> 10
        buffer.close()
        raise MachineError(f"the buffers were to be in huge pages of {size} KiB, and are not (/proc/self/smaps)")
    return buffer


def is_huge(buffer: PinnedBuffer) -> bool:
    """Whether a buffer lies in huge pages that were reserved, not in those that the kernel makes by itself (THP)."""
    found = re.search(
        rf"^{buffer.address:x}-.*?^KernelPageSize: +(\d+) kB.*?^VmFlags:(.*?)$",
        SMAPS.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return found is not None and int(found[1]) << 10 == buffer.page_size > mmap.PAGESIZE and "ht" in found[2].split()


def describe_memory(setting: Setting, buffer: PinnedBuffer) -> str:
    """Say of which kind the memory is, for the report: "pinned, 2 MiB pages"."""
    size = buffer.page_size
    pages = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    each = ", each message registered before it is sent" if setting.registration == "message" else ""
    return f"{_KINDS[setting.mr]}, {pages} pages{each}"


def count_paging(device: str, setting: Setting, address: int, size: int) -> dict[str, int]:
    """Count what was faulted in so far, of regions on demand; nothing of others.

    :param device: whose own counters are asked for; SoftRoCE has none
    :param address, size: of the ring in which messages land, bytes
    :return: `odp_pages`: of its pages, those that are in memory; and what the device counts, as `odp_page_faults`
    """
    if setting.mr not in ON_DEMAND:
        return {}
    return {"odp_pages": _present(address, size), **device_paging(_statistics(device), os.getpid())}


def _present(address: int, size: int) -> int:
    first, last = address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), (last - first + 1) * 8, first * 8)
    return sum(int.from_bytes(entries[at : at + 8], "little") & PRESENT != 0 for at in range(0, len(entries), 8))


def _statistics(device: str) -> str:
    """What the device counts of each memory region, as JSON; "" where there is no tool to ask, or no answer."""
    try:
        return tools.run_tool("rdma", "-j", "statistic", "show", "mr", "dev", device)
    except MachineError:
        return ""


def device_paging(statistics: str, process: int) -> dict[str, int]:
    """Add up what a device counts of the pages of its regions (rdma-statistic(8)); {} if it counts none.

    A region that is said to be another process's does not count. The kernel gives no more than a region's number
    (fill_stat_mr_entry of drivers/infiniband/core/nldev.c), so all that use the device are in it.
    """
    found: dict[str, int] = {}
    for region in json.loads(statistics or "[]"):
        if region.get("pid", process) == process:
            for key, value in region.items():
                if key.startswith("page_"):
                    found[f"odp_{key}"] = found.get(f"odp_{key}", 0) + int(value)
    return found
