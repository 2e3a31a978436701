"""The instruments of the ledger of claims: each measures one thing, with parameters, and returns its figures.

An instrument is a function `(session, **parameters) -> Measurement`; its parameters and their defaults are those of the
function. Where the kernel, the machine or the privilege does not allow it, it raises a HwrxError whose words become the
reason for which a claim was not tested.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import string
from collections.abc import Callable
from types import ModuleType
from typing import Any

from hwrx.claims import model, predicate
from hwrx.claims.figures import Figures
from hwrx.claims.model import Claim, Measurement
from hwrx.claims.ranges import check_range
from hwrx.errors import UsageError


def find_instrument(name: str) -> Callable[..., Measurement]:
    """Return the instrument called `name`.

    A module is imported when it is looked into, first the one that has the name itself: an instrument needs what others
    do not, and a guest starts slowly.

    :raises UsageError: if there is none; it has near names
    """
    known: list[str] = []
    modules = [each.name for each in pkgutil.iter_modules(__path__)]
    for module in sorted(modules, key=lambda module: module != name):
        found = instruments_in(importlib.import_module(f"{__name__}.{module}"))
        if name in found:
            return found[name]
        known += found
    raise UsageError(f"there is no instrument '{name}'", remedy=f"{model.near_names(name, known)}; {', '.join(known)}")


def instruments_in(module: ModuleType) -> dict[str, Callable[..., Measurement]]:
    """Return the instruments that a module defines, by name: its public functions of a session to a Measurement."""
    found: dict[str, Callable[..., Measurement]] = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        signature = inspect.signature(function)
        own = function.__module__ == module.__name__ and not name.startswith("_")
        # as it is written: these modules leave their annotations unevaluated
        if own and next(iter(signature.parameters), "") == "session" and signature.return_annotation == "Measurement":
            found[name] = function
    return found


def parameters_of(name: str) -> dict[str, Any]:
    """Return an instrument's parameters with their defaults."""
    found = inspect.signature(find_instrument(name)).parameters
    return {key: each.default for key, each in found.items() if key != "session"}


def instrument_names() -> list[str]:
    """Return the names of all instruments."""
    modules = [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    return sorted(name for module in modules for name in instruments_in(module))


def figures_of(claim: Claim) -> set[str]:
    """Return the names of the figures that a claim's experiment gives, with its parameters.

    :raises UsageError: if its instrument does not declare them
    """
    declared = getattr(find_instrument(claim.instrument), "figures", None)
    if not isinstance(declared, Figures):
        raise UsageError(
            f"{claim.name}: the instrument '{claim.instrument}' does not declare its figures",
            remedy="write @give_figures('NAME', …) above it (hwrx.claims.figures)",
        )
    return declared.of(parameters_of(claim.instrument) | claim.parameters)


def check_claim(claim: Claim) -> None:
    """Hold a claim's file against its instrument.

    :raises UsageError: if it sets a parameter that the instrument has not, or to another kind of value; if its
        predicates ask for a figure, or its sentence for a figure or a parameter, that the experiment does not give
    """
    check_parameters(claim)
    known = figures_of(claim)
    ruling = claim.verdict
    asked = set().union(
        *(predicate.names_in(text) for text in (ruling.needs, ruling.confirmed, ruling.depends) if text)
    )
    fields = {field for _, field, _, _ in string.Formatter().parse(ruling.figure) if field is not None}
    for names, there in ((asked, known), (fields, known | set(parameters_of(claim.instrument)))):
        for name in sorted(names - there):
            raise UsageError(
                f"{claim.name}: the instrument '{claim.instrument}' gives no figure '{name}'",
                remedy=f"{model.near_names(name, dict.fromkeys(there))}; it gives: {', '.join(sorted(known))}",
            )


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
        check_range(claim.name, key, value)
