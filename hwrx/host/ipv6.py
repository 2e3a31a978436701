"""Whether this network namespace takes IPv6 packets."""

from __future__ import annotations

from pathlib import Path

SYSCTLS = Path("/proc/sys/net/ipv6")  # of the calling thread's network namespace; not there without IPv6


def why_no_ipv6(netdev: str = "all") -> str:
    """Say why a network device takes no IPv6 packets; "" if it does.

    :param netdev: its name; "all": whether no device at all does
    :return: words that go on after a comma or a colon
    """
    if not SYSCTLS.exists():
        return "this kernel has no IPv6 (it was built without, or booted with ipv6.disable=1)"
    switches = list(SYSCTLS.glob("conf/*/disable_ipv6")) if netdev == "all" else [_switch(netdev)]
    # `all` sets every device's own switch when it is written, and decides on nothing (addrconf_disable_ipv6)
    devices = [each for each in switches if each.parent.name not in ("all", "default")]
    if all(each.exists() and each.read_text(encoding="ascii").strip() == "1" for each in devices):
        where = "every network device" if netdev == "all" else netdev
        return f"IPv6 is switched off on {where} (sysctl net.ipv6.conf.{netdev}.disable_ipv6 is 1)"
    return ""


def _switch(netdev: str) -> Path:
    return SYSCTLS / "conf" / netdev / "disable_ipv6"
