"""Does `hwrx lookup` say who gets a packet: random situations, each predicted, then sent, then looked at.

What a situation is says situations.py. Prints those that disagree, with all that was made, and the tally; exit code 1
if one disagrees. `undecided` is what hwrx itself says that it cannot tell (a program of the group chooses; a secret
that this kernel keeps to itself): it agrees if the receiver is among those that are named.

    lab/bench/lookup [--count 2000] [--seed 1] [--only 17] [--verbose]

In a guest, of another kernel: hwrx lab shell pair --kernel 6.12 -- lab/bench/lookup
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import sys
from dataclasses import dataclass, field

from situations import Bench, Situation, made_spaces


@dataclass
class Tally:
    """What came of some situations."""

    agree: int = 0
    undecided: int = 0  # of those that agree
    disagree: list[str] = field(default_factory=list)
    kinds: collections.Counter = field(default_factory=collections.Counter)

    def words(self) -> str:
        """The last line."""
        total = self.agree + len(self.disagree)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{self.agree} of {total} agree ({self.undecided} of them undecided: one of those named): {kinds}"


def run_situations(numbers: range, seed: int, *, verbose: bool = False) -> Tally:
    """Make, predict and send situations; needs root. What disagrees is printed at once."""
    tally = Tally()
    with made_spaces() as spaces, contextlib.closing(Bench(*spaces, seed)) as bench:
        for number in numbers:
            with contextlib.ExitStack() as stack:
                made = bench.make_situation(number, stack)
                outcome, named = bench.predict(made)
                got = bench.deliver(made)
                named = named or {0}
                good = got == named if outcome.decided else len(got) == 1 and got <= named
                tally.kinds[f"{made.protocol} {made.before or made.kind}"] += 1
                tally.agree += good
                tally.undecided += good and not outcome.decided
                line = f"{_tell(made)}: predicted {sorted(named)}, got it {sorted(got)} {'; '.join(outcome.open)}"
                if not good:
                    tally.disagree.append(line)
                if verbose or not good:
                    print("agree:" if good else "DISAGREE:", line, flush=True)
    return tally


def _tell(made: Situation) -> str:
    """The situation with its sockets' inodes."""
    sockets = "; ".join(f"[{each.inode}] {each.words}" for each in made.members)
    return f"{made.words()}: {sockets}"


def main() -> None:
    """Run, and print the tally."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one situation by its number")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else range(options.only, options.only + 1)
    tally = run_situations(numbers, options.seed, verbose=options.verbose or options.only is not None)
    print(f"Linux {os.uname().release}, seed {options.seed}: {tally.words()}")
    sys.exit(bool(tally.disagree))


if __name__ == "__main__":
    main()
