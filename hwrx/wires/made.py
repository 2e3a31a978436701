"""What a topology is once it is up."""

from __future__ import annotations

from msgspec import Struct

from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place

SMALLEST_MTU = 1280  # of a wire that carries IPv6 (RFC 8200, section 5)


class Made(Struct, frozen=True):
    """A topology that is up: where each end lives, the peer that reaches it; `middle`: the namespace that forwards."""

    places: dict[Role, Place]
    peers: dict[Role, str]
    middle: str | None = None


def both_here(places: dict[Role, Place]) -> Made:
    """Return a topology of which both ends are in this namespace."""
    return Made(places, dict.fromkeys(ENDS, "local"))
