"""What the layers of the tests need, decided in one place.

unit/ runs anywhere. host/ needs root and network namespaces. guest/ runs inside a virtual machine (`elsewhere`).
hil/ needs a real verbs NIC. What this machine lacks is a skip that says why; HWRX_REQUIRE_HW=1 makes it a failure.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ("elsewhere",)

REQUIRED = os.environ.get("HWRX_REQUIRE_HW") == "1"
LAYERS = {"host": ("root", "namespaces"), "hil": ("root", "nic")}


def root() -> str:
    return "" if os.geteuid() == 0 else "not root"


@functools.cache
def namespaces() -> str:
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else "" if shutil.which("ip") else "there is no `ip` (iproute2)"


@functools.cache
def rxe() -> str:
    done = subprocess.run(["modprobe", "rdma_rxe"], capture_output=True, text=True)
    return f"no module rdma_rxe: {done.stderr.strip()}" if done.returncode else ""


def verbs() -> str:
    folder = Path("/sys/class/infiniband")
    return "" if folder.is_dir() and any(folder.iterdir()) else "there is no verbs device"


def nic() -> str:
    # an rxe device has a `parent`; hardware has a PCI device beneath it
    devices = Path("/sys/class/infiniband").glob("*/device") if not verbs() else ()
    return "" if any(devices) else "there is no verbs NIC"


def two_cpus() -> str:
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is one CPU only"


def queues() -> str:
    from hwrx.wires import topology

    subprocess.run(["modprobe", "-a", *topology.QUEUES_MODULES], capture_output=True)
    found = {file.read_text().strip() for file in Path("/sys/class/net").glob("*/address")}
    return "" if topology.QUEUES_HARDWARE["server"] in found else "there is no NIC with several queues"


@functools.cache
def io_uring() -> str:
    """Whether this kernel lets this process make the ring that hwrx wants."""
    from hwrx.control.messages import Place, Prepare, Setting
    from hwrx.errors import HwrxError
    from hwrx.paths import open_endpoint

    try:
        setting = Setting(path="udp-uring")
        open_endpoint(Prepare(trial=1, role="client", setting=setting, here=Place(), there=Place())).close()
    except HwrxError as error:
        return str(error)
    return ""


def pyverbs() -> str:
    try:
        import pyverbs.device  # noqa: F401
    except ImportError as error:
        return f"no pyverbs: {error}"
    return ""


@functools.cache
def guest() -> str:
    """Whether a virtual machine can be booted; not whether it will."""
    from hwrx.errors import HwrxError
    from hwrx.host import tools
    from hwrx.lab import accelerator, initramfs, kernel

    try:
        tools.find_tool(accelerator.QEMU)
        initramfs.find_busybox()
        kernel.find_kernel()
    except HwrxError as error:
        return str(error)
    return ""


def two_guests() -> str:
    """Whether two guests of one CPU can run at the same time."""
    from hwrx.runs import lanes, testbed

    return "" if lanes.has_room(2, testbed.GUEST_MEMORY) else "there is no CPU or no memory for two guests"


CAPABILITIES: dict[str, Callable[[], str]] = {
    "root": root,
    "namespaces": namespaces,
    "rxe": rxe,
    "verbs": verbs,
    "nic": nic,
    "queues": queues,
    "two CPUs": two_cpus,
    "io_uring": io_uring,
    "pyverbs": pyverbs,
    "guest": guest,
    "two guests": two_guests,
}


def lack(what: str) -> str:
    """Why this machine cannot do `what`; "" where it can. A name that is no capability is taken for a command's."""
    if what in CAPABILITIES:
        return CAPABILITIES[what]()
    return "" if shutil.which(what) else f"there is no command `{what}`"


def without(reason: str) -> None:
    """Skip, or fail where all that the machine can do has to be tested."""
    if REQUIRED:
        pytest.fail(f"HWRX_REQUIRE_HW=1, and {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """`needs("root", "iperf3")` skips or fails where this machine lacks one of them."""

    def check(*names: str) -> None:
        for name in names:
            reason = lack(name)
            if reason:
                without(reason)

    return check


@pytest.fixture(autouse=True)
def _layer(request: pytest.FixtureRequest, needs: Callable[..., None]) -> None:
    needs(*LAYERS.get(request.path.parent.name, ()))
