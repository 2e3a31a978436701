"""What the host and the supervisor of a guest say to each other: see `hwrx.lab.mux` for how."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

PORT = "hwrx.0"  # name of the virtio-serial port between the two
SUPERVISOR = "hwrx.lab.guest"  # module that a guest runs (`python -m`) and that serves the port


class Open(Struct, frozen=True, forbid_unknown_fields=True):
    """What to start on a channel: an agent, or the command `argv`."""

    argv: list[str] | None = None  # None: an agent
    environment: dict[str, str] = {}
    folder: str = "/"
    netns: str | None = None  # name of the network namespace to be in
    errors: Literal["apart", "merged"] = "apart"  # standard error: its end on EXIT, or mixed into the output


class Problem(Struct, frozen=True):
    """What went wrong in the guest: `kind` is the name of an exception of hwrx.errors."""

    kind: str
    message: str
    remedy: str = ""


encode = msgspec.json.Encoder().encode
