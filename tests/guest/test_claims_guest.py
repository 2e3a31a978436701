"""A handful of claims on a real kernel: the verdicts that it is known to give, and that they follow the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hwrx.claims import inside, instruments, model
from hwrx.claims.session import Session

CLAIMS = model.every_claim()
KNOWN = {
    "lo-takes-the-backlog": "confirmed",
    "tap-before-netfilter": "confirmed",
    "pre-routing-before-routing": "confirmed",
    "woken-by-data-ready": "confirmed",
}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session() as opened:
        yield opened


def changed(name: str, *settings: str) -> model.Claim:
    return model.with_parameters(CLAIMS[name], settings, instruments.parameters_of(CLAIMS[name].instrument))


@pytest.mark.parametrize("name", sorted(KNOWN, key=lambda name: (CLAIMS[name].topology, name)))
def test_a_verdict_is_the_kernels(session: Session, name: str) -> None:
    found = inside.test(changed(name, "messages=20"), session)
    assert (found.verdict, found.why) == (KNOWN[name], "")
    assert found.measurement is not None and found.measurement.picture is not None


def test_another_parameter_brings_another_verdict(session: Session) -> None:
    # the order of a kernel that asked netfilter after UDP would refute the claim
    turned = list(reversed(CLAIMS["local-in-after-routing"].parameters["order"]))
    found = inside.test(changed("local-in-after-routing", f"order={','.join(turned)}", "messages=20"), session)
    assert found.verdict == "refuted"


def test_a_rule_before_routing_beside_the_one_that_is_asked_about_changes_no_verdict(session: Session) -> None:
    both = changed("local-in-after-routing", "switch_on=pre-routing,local-in", "messages=20")
    assert (found := inside.test(both, session)).verdict == "confirmed", found.why
    # and that rule alone is not the one that is asked about
    other = inside.test(changed("local-in-after-routing", "switch_on=pre-routing", "messages=20"), session)
    assert other.verdict == "not tested here" and "seen_whole is 0" in other.why


def test_what_cannot_be_traced_gives_no_verdict(session: Session) -> None:
    found = inside.test(changed("filter-before-queueing", "watch=no_such_function", "order="), session)
    assert found.verdict == "not tested here"
    assert "does not let no_such_function be traced" in found.why
