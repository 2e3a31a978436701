"""Which figures an instrument gives, stated where it is defined, so that a misspelt one in a claim is found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from msgspec import Struct

Parameters = Mapping[str, object]
Instrument = TypeVar("Instrument", bound=Callable[..., object])


class Figures(Struct, frozen=True):
    """Names that are always given, and what makes those that follow from the parameters."""

    names: frozenset[str]
    more: Callable[[Parameters], Iterable[str]]

    def of(self, parameters: Parameters) -> set[str]:
        """Return the names of the figures that a measurement with these parameters has."""
        return {*self.names, *self.more(parameters)}


def give_figures(
    *names: str, more: Callable[[Parameters], Iterable[str]] = lambda _: ()
) -> Callable[[Instrument], Instrument]:
    """Declare what an instrument gives.

    :param names: figures of every measurement, found or absent
    :param more: from the parameters to the names of further figures
    """

    def declare(instrument: Instrument) -> Instrument:
        instrument.figures = Figures(frozenset(names), more)  # type: ignore[attr-defined]
        return instrument

    return declare


def words_of(parameters: Parameters, name: str) -> list[str]:
    """Return a parameter that is a list of words."""
    value = parameters.get(name, [])
    return [str(each) for each in value] if isinstance(value, list) else []
