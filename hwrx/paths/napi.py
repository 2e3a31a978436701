"""How a trial's devices are polled: NAPI in threads of its own, and interrupts that are put off.

These are switches of the network device in sysfs, whoever uses it (Documentation/networking/napi.rst). Each end sets
those of its own device before a trial and sets them back behind it, also if it is killed: see `hwrx.host.undo`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.own_sysfs import in_own_sysfs, own_sysfs_command
from hwrx.host.undo import Undo

if TYPE_CHECKING:
    from hwrx.control.messages import Prepare, Setting

# of a Setting -> the attribute of the device
ATTRIBUTES = {
    "threaded_napi": "threaded",
    "napi_defer_hard_irqs": "napi_defer_hard_irqs",
    "gro_flush_timeout": "gro_flush_timeout",
}


def asked_of_napi(setting: Setting) -> dict[str, int]:
    """Return what a setting asks of the device: attributes and their values; empty if it takes it as it is."""
    values = {attribute: getattr(setting, field) for field, attribute in ATTRIBUTES.items()}
    return {attribute: int(value) for attribute, value in values.items() if value is not None}


def check_napi(setting: Setting) -> None:
    """UsageError if the attributes that are asked for make no sense together."""
    if setting.napi_defer_hard_irqs and not setting.gro_flush_timeout:
        raise UsageError(
            "napi_defer_hard_irqs puts interrupts off until gro_flush_timeout has passed, which is not set",
            remedy="set gro_flush_timeout, in ns, for example 20000; or leave napi_defer_hard_irqs out",
        )


def switch_napi(prepare: Prepare, stack: contextlib.ExitStack) -> dict[str, int]:
    """Set what is asked of the device of this end, until the stack is closed; the first of several senders does it.

    :return: the attributes as the device has them then; empty if nothing is asked
    :raises UsageError: if the end is bound to no device
    :raises MachineError: if the device has no NAPI, or the kernel lacks the attribute
    """
    asked, netdev = asked_of_napi(prepare.setting), prepare.here.netdev
    if not asked or prepare.sender:
        return {}
    if netdev is None:
        raise UsageError(
            f"{', '.join(asked)}: these are attributes of a device, and this end is bound to none",
            remedy="use a topology whose ends have devices: netns, pair, nic or queues",
        )
    tools.need_root("setting how a device is polled")
    folder = f"class/net/{netdev}"
    undo = stack.enter_context(Undo(f"how {netdev} is polled"))
    for attribute, value in asked.items():
        try:
            before = in_own_sysfs(f"cat {folder}/{attribute}").strip()
        except MachineError as error:
            raise MachineError(
                f"{netdev} has no attribute {attribute}: {error.args[0]}", remedy="a newer kernel, or leave it out"
            ) from None
        undo.plan(*own_sysfs_command(f"echo {before} > {folder}/{attribute}"))
        try:
            # Only `threaded` is refused where there is no NAPI; the others would be kept, and mean nothing.
            in_own_sysfs(f"echo $(cat {folder}/threaded) > {folder}/threaded")
            in_own_sysfs(f"echo {value} > {folder}/{attribute}")
        except MachineError as error:
            raise MachineError(
                f"{netdev} is not polled with NAPI, so {attribute} means nothing to it: {error.args[0]}",
                remedy="a device whose driver has NAPI: those of the topologies nic and queues, or a veth with GRO"
                " (ethtool -K DEV gro on)",
            ) from None
    return {attribute: int(in_own_sysfs(f"cat {folder}/{attribute}")) for attribute in asked}
