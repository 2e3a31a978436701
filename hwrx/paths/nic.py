"""Paths of whole frames: UDP datagrams that the endpoint builds and takes apart itself, over a NIC that hwrx drives.

The NIC is the one beneath the place's network device. It is taken from the kernel for the trial and given back after
it, so that other paths of the same run can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwrx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cython_ext.datagram import DatagramTransport
    from cython_ext.link import FrameLink
    from hwrx.messages import Prepare, Setting

LARGEST = 1472  # 1500 bytes of an Ethernet frame less IPv4's header and UDP's
PATIENCE = 0.1  # seconds that one call waits for a message: how soon a loss is noticed
RING = 1024  # descriptors
WAITS = ("poll", "event")
FIRST_PORT = 40_000  # the trial's number is added, so that stragglers of another trial are nobody's


def check(setting: Setting) -> None:
    """UsageError where the setting cannot be."""
    if setting.size > LARGEST:
        raise UsageError(
            f"{setting.path} sends one Ethernet frame a message, which carries at most {LARGEST} bytes,"
            f" not {setting.size}",
            remedy="choose a smaller size",
        )
    if setting.wait not in WAITS:
        raise UsageError(f"{setting.path} cannot wait by {setting.wait}", remedy=f"choose of: {', '.join(WAITS)}")
    if setting.pattern == "paced" and setting.rate is None:
        raise UsageError("paced needs a rate in messages a second", remedy="set rate")
    for name in ("inline", "mtu", "gid_index", "socket_buffer"):
        if getattr(setting, name) is not None:
            raise UsageError(f"{name} is not for {setting.path}, which has none", remedy=f"leave {name} out")


def open_endpoint(prepare: Prepare) -> DatagramTransport:
    """Return one end of a trial; the caller closes it, which gives the NIC back."""
    from cython_ext.datagram import DatagramTransport

    setting = prepare.setting
    check(setting)
    link, notes = LINKS[setting.path](prepare)
    try:
        return DatagramTransport(
            link,
            address=prepare.here.address,
            port=FIRST_PORT + prepare.trial % 20_000,
            size=setting.size,
            window=setting.window,
            batch=1 if setting.pattern == "pingpong" else min(setting.batch, setting.window),
            stream=setting.pattern == "stream",
            trial=prepare.trial,
            patience=min(PATIENCE, setting.limit),
            limit=setting.limit,
            notes=notes,
        )
    except BaseException:
        link.close()
        raise


def _ring(prepare: Prepare) -> tuple[FrameLink, dict[str, Any]]:
    """The NIC's own rings."""
    import hwrx.nic
    from cython_ext.e1000e_link import RingLink

    here = prepare.here
    if here.netdev is None:
        raise UsageError(
            "nic-ring needs a NIC to drive, and this place names no network device", remedy="use the topology `nic`"
        )
    nic = hwrx.nic.open(
        here.netdev,
        own=(here.address,),
        rx=RING,
        tx=RING,
        interrupt="auto" if prepare.setting.wait == "event" else None,
    )
    interrupt = nic.rx.interrupt
    return RingLink(nic), {
        "nic": nic.device.address,
        "access": nic.device.access,
        "mac": nic.mac,
        "link_mbit": nic.link,
        "descriptors": RING,
        "wait": interrupt.kind if interrupt is not None else "poll",
    }


LINKS: dict[str, Callable[[Prepare], tuple[FrameLink, dict[str, Any]]]] = {"nic-ring": _ring}
