"""Where a program runs, as the user writes it: `local`, `netns:NAME`, `ssh:HOST`, or a command with {agent} in it."""

from __future__ import annotations

import shlex
import sys
from typing import Literal

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.host.outside import check_name


class Environment(Struct, frozen=True):
    """One of them, parsed. `name`: of the network namespace or of the host, or the whole command template."""

    kind: Literal["local", "netns", "ssh", "command"]
    name: str = ""

    @property
    def netns(self) -> str | None:
        """The name of the network namespace; None if it is not one of its own."""
        return self.name if self.kind == "netns" else None

    @property
    def same_kernel(self) -> bool:
        """Whether it is surely on this kernel."""
        return self.kind in ("local", "netns")

    def agent_command(self) -> list[str]:
        """Return the command that starts an agent there."""
        here = [sys.executable, "-P", "-m", "hwrx", "agent"]
        match self.kind:
            case "local":
                return here
            case "netns":
                return ["ip", "netns", "exec", self.name, *here]
            case "ssh":
                return ["ssh", "-o", "BatchMode=yes", "--", self.name, "hwrx agent"]
            case "command":
                words = [here if word == "{agent}" else [word] for word in shlex.split(self.name)]
                return [word for part in words for word in part]


def parse_environment(text: str) -> Environment:
    """Parse what the user, or a topology, wrote; UsageError if it is not the name of an environment."""
    kind, _, name = text.partition(":")
    if text == "local":
        return Environment("local")
    if kind == "netns" and name:
        return Environment("netns", check_name(name, "network namespace", remedy="ip netns list"))
    if kind == "ssh" and name:
        if name.startswith("-"):
            raise UsageError(f"'{name}' is no host for ssh", remedy="write ssh:HOST or ssh:USER@HOST")
        return Environment("ssh", name)
    if "{agent}" in text:
        return Environment("command", text)
    raise UsageError(
        f"'{text}' is no peer", remedy="write local, netns:NAME, ssh:HOST, or a command with {agent} in it"
    )


def in_namespace(name: str) -> str:
    """Write the environment that is the network namespace called `name`."""
    return f"netns:{name}"
