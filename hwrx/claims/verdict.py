"""From figures to a verdict. Nothing else decides: no figure, no verdict."""

from __future__ import annotations

from typing import Any

from hwrx.claims import predicate
from hwrx.claims.model import Claim, Measurement, Verdict
from hwrx.errors import UsageError


def judge_claim(claim: Claim, found: Measurement) -> tuple[Verdict, str, str]:
    """Return the verdict, the sentence with the figures, and for what could not be decided the reason.

    UsageError where the claim's file has a predicate that is none, or a sentence with a field that is no figure.
    """
    ruling = claim.verdict
    try:
        if ruling.needs and not predicate.predicate_holds(ruling.needs, found.figures):
            asked = sorted(predicate.names_in(ruling.needs))
            seen = ", ".join(f"{name} is {_shown(found.figures[name])}" for name in asked)
            return "not tested here", "", f"it takes {ruling.needs}, and {seen}"
        verdict: Verdict
        if predicate.predicate_holds(ruling.confirmed, found.figures):
            verdict = "confirmed"
        elif ruling.depends and predicate.predicate_holds(ruling.depends, found.figures):
            verdict = "depends"
        else:
            verdict = "refuted"
    except predicate.MissingError as missing:
        name = str(missing)
        return "not tested here", "", found.absent.get(name, f"{name} was not measured")
    return verdict, sentence_of(claim, found), ""


def sentence_of(claim: Claim, found: Measurement) -> str:
    """Fill the claim's sentence with figures and parameters."""
    values: dict[str, Any] = {**claim.parameters, **found.figures}
    try:
        return claim.verdict.figure.format_map(values)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"{claim.name}: the sentence '{claim.verdict.figure}' cannot be filled ({error})",
            remedy=f"its fields may be: {', '.join(sorted(values))}",
        ) from None


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
