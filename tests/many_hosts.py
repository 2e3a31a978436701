"""Stand-ins for hosts: network namespaces on one bridge, each of them a host of an inventory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hwrx.host import tools
from hwrx.host.undo import Undo

NETWORK = "198.18.80"


@contextlib.contextmanager
def bridged_namespaces(count: int, folder: Path, *, more: str = "") -> Iterator[Path]:
    """Put up namespaces h1 … on a bridge, and yield their inventory. `more`: lines of each host's table."""
    with Undo("namespaces on a bridge") as undo:
        switch = f"hwrx-s-{undo.token}"
        names = {number: f"hwrx-h{number}-{undo.token}" for number in range(1, count + 1)}
        for name in (switch, *names.values()):
            undo.plan("ip", "netns", "delete", name)
            tools.run_tool("ip", "netns", "add", name)
        tools.run_tool("ip", "-n", switch, "-batch", "-", given="link add br0 type bridge\nlink set br0 up\n")
        for number, name in names.items():
            tools.run_tool(
                "ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", f"p{number}", "netns", switch
            )
            tools.run_tool("ip", "-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            lines = f"address add {NETWORK}.{number}/24 dev eth0\nlink set lo up\nlink set eth0 up\n"
            tools.run_tool("ip", "-n", name, "-batch", "-", given=lines)
        file = folder / "bench.toml"
        file.write_text(
            "".join(
                f'[hosts.h{number}]\nreach = "netns:{name}"\naddress = "{NETWORK}.{number}"\nnetdev = "eth0"\n{more}\n'
                for number, name in names.items()
            )
        )
        yield file
