"""The program that runs where the kernel under test is: takes claims on standard input, prints a line for each result.

`python -m hwrx.claims.inside < request.json`. A line is JSON with `starting` (a claim's name) or a whole `Result`.
"""

from __future__ import annotations

import os
import sys
import time
import traceback

import msgspec
from msgspec import Struct

from hwrx.claims import instruments, verdict
from hwrx.claims.model import Claim, Measurement, Result
from hwrx.claims.session import Session
from hwrx.control.messages import Clock
from hwrx.errors import HwrxError, PeerError, UsageError
from hwrx.host.interruption import run_beneath


class Request(Struct, frozen=True):
    """What the driver asks for: claims of one clock, in an order that lets topologies be put up once."""

    claims: list[Claim]
    clock: Clock = "wall"
    emulated: bool = False


class Line(Struct, frozen=True, omit_defaults=True):
    """One line of the output."""

    starting: str = ""
    result: Result | None = None


def test(claim: Claim, session: Session, *, emulated: bool = False, kernel: str = "") -> Result:
    """Run a claim's experiment and judge it; `kernel` is its version where it is not this one.

    A HwrxError of the experiment becomes the reason why there is no verdict.
    UsageError (a file that asks for what there is not) is not caught: that is no finding about the kernel.
    """
    before = time.monotonic()
    whole = instruments.parameters_of(claim.instrument) | claim.parameters
    claim = msgspec.structs.replace(claim, parameters=whole)
    found: Measurement | None = None
    try:
        session.use(claim.topology)
        found = instruments.find_instrument(claim.instrument)(session, **claim.parameters)
        ruled, words, why = verdict.judge_claim(claim, found)
    except UsageError:
        raise
    except PeerError as error:
        session.down()  # whoever is left of the agents is of no use to the next claim
        ruled, words, why = "not tested here", "", str(error.args[0]).splitlines()[0]
    except HwrxError as error:
        ruled, words, why = "not tested here", "", str(error.args[0]).splitlines()[0]
    except Exception as error:
        # a mistake in one experiment must not take the other claims' verdicts along
        traceback.print_exc()
        ruled, words, why = "not tested here", "", f"the experiment broke off: {type(error).__name__}: {error}"
    seconds = round(time.monotonic() - before, 3)
    return Result(claim, ruled, words, why, found, seconds, kernel or os.uname().release, session.clock, emulated)


def main() -> int:
    """Serve one request."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    with Session(request.clock) as session:
        for claim in request.claims:
            _say(Line(starting=claim.name))
            _say(Line(result=test(claim, session, emulated=request.emulated)))
    return 0


def _say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(run_beneath(main))
