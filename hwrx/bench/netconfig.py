"""`net.config` of the kernel's driver tests (tools/testing/selftests/drivers/net/README.rst), as an inventory.

This machine is the host `local`, at NETIF and LOCAL_V4 or LOCAL_V6; the other is `remote`, at REMOTE_V4 or REMOTE_V6,
reached by REMOTE_TYPE and REMOTE_ARGS.
"""

from __future__ import annotations

import shlex
from typing import Any

from hwrx.errors import UsageError
from hwrx.runs import checked

Tables = dict[str, Any]  # of an inventory, as its TOML would have it
KNOWN = ("NETIF", "LOCAL_V4", "LOCAL_V6", "REMOTE_V4", "REMOTE_V6", "REMOTE_TYPE", "REMOTE_ARGS")
TYPES = ("netns", "ssh")


def parse_netconfig(text: str, source: str) -> Tables:
    """Return the file's hosts as the tables of an inventory; other variables, of which tests may have some, are left.

    :raises UsageError: if a line is not NAME=VALUE, or what says how the other end is reached is missing.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"{source}: line {number}: {error}", remedy='NAME=value or NAME="value"') from None
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if not equals or len(words) != 1:
            raise UsageError(f"{source}: line {number} is not NAME=value", remedy='NAME=value or NAME="value"')
        values[name] = value
    for key in ("REMOTE_TYPE", "REMOTE_ARGS"):
        if not values.get(key):
            raise UsageError(
                f"{source}: {key} is missing, so that the other end cannot be reached",
                remedy="REMOTE_TYPE=netns or ssh, and in REMOTE_ARGS the namespace or the host",
            )
    checked.check_known(source, "REMOTE_TYPE", values["REMOTE_TYPE"], TYPES)
    here: dict[str, Any] = {"reach": "local"}
    there: dict[str, Any] = {"reach": f"{values['REMOTE_TYPE']}:{values['REMOTE_ARGS']}"}
    # both of one family: that of which both ends have an address, IPv4 before IPv6
    for family in ("V4", "V6"):
        if values.get(f"LOCAL_{family}") and values.get(f"REMOTE_{family}") and "address" not in here:
            here["address"], there["address"] = values[f"LOCAL_{family}"], values[f"REMOTE_{family}"]
    if values.get("NETIF"):
        here["netdev"] = values["NETIF"]
    return {"hosts": {"local": here, "remote": there}}
