"""The verbs paths: what a setting may be, and one end of one, in words where it cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwrx.errors import MachineError, UsageError
from hwrx.paths.verbs_end import choose_device

if TYPE_CHECKING:
    from cython_ext.verbs_path import VerbsTransport
    from hwrx.control.messages import Prepare, Setting

# path -> module of cython_ext, class
TRANSPORTS = {
    "rdma-send": ("rc", "RcSendTransport"),
    "rdma-write": ("rc_write", "RcWriteTransport"),
    "rdma-write-imm": ("rc", "RcWriteImmTransport"),
    "rdma-read": ("rc", "RcReadTransport"),
    "rdma-ud": ("ud", "UdSendTransport"),
}
WAITS = ("poll", "event")
LARGEST_MTU = 4096


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be on any device; what a device cannot is said when it is opened."""
    if setting.wait not in WAITS:
        raise UsageError(
            f"{setting.path} cannot wait by '{setting.wait}'",
            remedy="poll, or event (asleep on a completion channel)",
        )
    if setting.pattern == "paced" and setting.rate is None:
        raise UsageError("paced needs a rate in messages a second", remedy="set rate")
    if setting.path == "rdma-ud" and setting.size > LARGEST_MTU:
        raise UsageError(
            f"a UD datagram carries at most the MTU, which is {LARGEST_MTU} bytes or less, not {setting.size}",
            remedy="a smaller size, or rdma-send",
        )


def open_endpoint(prepare: Prepare) -> VerbsTransport:
    """Return one end of a trial, its queue pair in INIT and its buffers pinned; the caller closes it."""
    check_setting(prepare.setting)
    try:
        from importlib import import_module

        from cython_ext.verbs_device import device_names

        module, name = TRANSPORTS[prepare.setting.path]
        transport = getattr(import_module(f"cython_ext.{module}"), name)
    except ImportError as error:
        raise MachineError(
            f"the verbs library cannot be used: {error}",
            remedy="apt install libibverbs1 ibverbs-providers (libibverbs-dev before hwrx is built)",
        ) from error
    endpoint: VerbsTransport = transport(prepare, choose_device(prepare.here, device_names()))
    return endpoint
