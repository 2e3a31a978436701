"""The balance on this machine's own kernel: two places that every kernel has, and one message each way out."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_command_closes_every_balance() -> None:
    words = ["drops", "nothing", "no-socket", "receive-buffer", "truncated", "--messages", "3000", "--json"]
    done = subprocess.run([sys.executable, "-m", "hwrx", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["not here"]
    for place, balance in found["balances"].items():
        assert balance["sent"] == 3000
        assert balance["unexplained"] == 0
        assert [row["place"] for row in balance["rows"]] == ([] if place == "nothing" else [place])


def test_a_place_that_is_none_gets_words() -> None:
    done = subprocess.run([sys.executable, "-m", "hwrx", "drops", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be provoked" in done.stderr
