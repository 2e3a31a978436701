"""Where a program runs, as the user writes it: `local`, `netns:NAME`, `ssh:HOST`, or a command with {agent} in it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.host.outside import check_name

# nobody is there to answer a question; a host that does not answer is told in seconds, not in the kernel's two minutes,
# and one that vanishes while it is used does not hold a trial for ever
SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


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

    def agent_command(self, hwrx: str = "") -> list[str]:
        """Return the command that starts an agent there.

        :param hwrx: the command `hwrx` of that machine; "": the one that runs here, or of a host behind ssh the one
            that its PATH has.
        """
        here = [hwrx] if hwrx else ["hwrx"] if self.kind == "ssh" else [sys.executable, "-P", "-m", "hwrx"]
        return self.run_command([*here, "agent"])

    def run_command(self, words: list[str]) -> list[str]:
        """Return the command that runs a program there. What goes through ssh is quoted for the shell behind it."""
        match self.kind:
            case "local":
                return words
            case "netns":
                return ["ip", "netns", "exec", self.name, *words]
            case "ssh":
                return ["ssh", *SSH_OPTIONS, "--", self.name, shlex.join(words)]
            case "command":
                template = shlex.split(self.name)
                inner = [shlex.join(words)] if Path(template[0]).name == "ssh" else words
                parts = [inner if word == "{agent}" else [word] for word in template]
                return [word for part in parts for word in part]


class Host(Struct, frozen=True, kw_only=True):
    """A machine, or a part of one, that takes part in a comparison: how an agent is started there, and what it has.

    `reach` is what `parse_environment` reads; `address`, `netdev` and `verbs` are those of the wire that is measured.
    """

    name: str
    reach: str
    hwrx: str = ""  # the command `hwrx` there: see Environment.agent_command
    address: str = ""
    netdev: str | None = None
    verbs: str | None = None
    port: int = 1  # of the verbs device
    cpus: tuple[int, ...] = ()  # that its ends are bound to, in this order; (): hwrx chooses
    numa: int | None = None  # node from which hwrx chooses them

    def agent_command(self) -> list[str]:
        """Return the command that starts an agent there."""
        return parse_environment(self.reach).agent_command(self.hwrx)


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
        try:
            shlex.split(text)
        except ValueError as error:
            raise UsageError(f"'{text}' is not a command: {error}", remedy="close the quotation mark") from None
        return Environment("command", text)
    raise UsageError(
        f"'{text}' is no peer", remedy="write local, netns:NAME, ssh:HOST, or a command with {agent} in it"
    )


def in_namespace(name: str) -> str:
    """Write the environment that is the network namespace called `name`."""
    return f"netns:{name}"
