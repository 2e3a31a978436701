"""What a run needs of the place where it takes place; `hwrx.runs.testbed` has the kinds that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Role
from hwrx.control.peers import Peer
from hwrx.control.places import Place
from hwrx.errors import SilenceError


class Testbed(Protocol):
    """Two places with something between them, and a way to start an agent at each, and one that traces both."""

    places: Mapping[Role, Place]
    alone: bool  # nobody else uses the machine that both ends are on
    boot: Boot | None  # what its guests were booted with; None: it has none

    def start(self, role: Role) -> Peer:
        """Start the agent of one end."""

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """Start an agent on the kernel that both ends share; and name the network namespaces that they live in.

        :raises MachineError: if they do not share one.
        """

    def need_answer(self, trouble: SilenceError) -> None:
        """Find out why an agent fell silent.

        :raises StandstillError: if it is in a guest that does nothing any more.
        """

    def manifest(self) -> dict[str, Any]:
        """Describe the machine that the messages cross."""
