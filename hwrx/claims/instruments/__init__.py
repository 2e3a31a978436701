"""The instruments of the ledger of claims: each measures one thing, with parameters, and returns its figures.

An instrument is a function `(session, **parameters) -> Measurement`; its parameters and their defaults are those of the
function. Where the kernel, the machine or the privilege does not allow it, it raises a HwrxError whose words become the
reason for which a claim was not tested.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from hwrx.claims import model
from hwrx.claims.model import Claim, Measurement
from hwrx.errors import UsageError

# name -> module of this package; the function has the instrument's name. Imported when it is wanted
MODULES: dict[str, str] = {
    "functions": "functions",
    "interrupts": "interrupts",
    "allocations": "allocations",
    "merged": "allocations",
    "steering": "steering",
    "journey": "journey",
    "entries": "bypass",
    "busy": "bypass",
    "waits": "trials",
    "rivals": "trials",
    "balance": "balance",
    "contest": "balance",
    "frames": "frames",
    "ring": "ring",
    "descriptors": "ring",
    "carried": "ring",
    "slots": "sockets",
    "key": "sockets",
    "crowd": "sockets",
    "owner": "sockets",
    "sharing": "sockets",
    "pinning": "pinning",
    "flooded": "floods",
}


def find_instrument(name: str) -> Callable[..., Measurement]:
    """Return an instrument; UsageError has near names."""
    if name not in MODULES:
        raise UsageError(
            f"there is no instrument '{name}'", remedy=f"{model.near_names(name, MODULES)}; {', '.join(MODULES)}"
        )
    function: Callable[..., Measurement] = getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    return function


def parameters_of(name: str) -> dict[str, Any]:
    """Return an instrument's parameters with their defaults."""
    found = inspect.signature(find_instrument(name)).parameters
    return {key: each.default for key, each in found.items() if key != "session"}


def check_parameters(claim: Claim) -> None:
    """UsageError where a claim's file asks its instrument for a parameter that it has not, or of another kind."""
    known = parameters_of(claim.instrument)
    for key, value in claim.parameters.items():
        if key not in known:
            raise UsageError(
                f"{claim.name}: the instrument '{claim.instrument}' has no parameter '{key}'",
                remedy=f"{model.near_names(key, known)}; it has: {', '.join(known)}",
            )
        wanted = type(known[key])
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UsageError(f"{claim.name}: {key} is to be {wanted.__name__}, not {value!r}", remedy=f"{known[key]!r}")
